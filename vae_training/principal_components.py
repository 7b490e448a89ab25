"""Principal components of frames, for what begins as PCA or is told from a low-rank background."""

from latent_obs.principal_components import LEAST_SPREAD, principal_components

__all__ = ["LEAST_SPREAD", "principal_components"]
