"""Actions that an agent can take: Dict actions, such as MineRL's, as numbers, rows of numbers or vectors, and back.

env = sb3_actions(FrameSkip(env, 4), "discrete")
"""

from latent_obs.actions.choose import CHOICES, FAMILIES, curated_actions, family_of, plain_actions, sb3_actions
from latent_obs.actions.common import noop_action
from latent_obs.actions.discrete import DiscreteActions
from latent_obs.actions.frame_skip import FrameSkip
from latent_obs.actions.multi_discrete import CameraBins, MultiDiscreteActions
from latent_obs.actions.vector import CentroidActions, Centroids, VectorActions, fit_centroids

__all__ = [
    "CHOICES",
    "FAMILIES",
    "CameraBins",
    "CentroidActions",
    "Centroids",
    "DiscreteActions",
    "FrameSkip",
    "MultiDiscreteActions",
    "VectorActions",
    "curated_actions",
    "family_of",
    "fit_centroids",
    "noop_action",
    "plain_actions",
    "sb3_actions",
]
