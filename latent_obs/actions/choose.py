"""`sb3_actions`: one line from an environment's action space to one that Stable-Baselines3 supports."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium import spaces

from latent_obs.actions.camera import CameraBins
from latent_obs.actions.common import only_box
from latent_obs.actions.curated import curated_actions
from latent_obs.actions.discrete import DiscreteActions, held
from latent_obs.actions.multi_discrete import MultiDiscreteActions
from latent_obs.actions.vector import CentroidActions, VectorActions
from latent_obs.util.errors import InputError, check_choice

#: The values of `actions`, besides a file of centroids.
CHOICES = ("auto", "discrete", "multidiscrete", "multidiscrete-linear", "continuous", "dict")


def sb3_actions(
    env: gym.Env[Any, Any],
    actions: str | os.PathLike[str] = "auto",
    *,
    env_id: str | None = None,
    camera_step_degrees: float = 10.0,
    always: Mapping[str, Any] | Sequence[str] | None = None,
    camera_bins: int = 11,
    camera_max_degrees: float = 10.0,
) -> gym.Env[Any, Any]:
    """Wrap an environment so that Stable-Baselines3 can act in it.

    Args:
        env: The environment.
        actions: How to act:

            - "discrete": a curated table for the task (`curated_actions`, `DiscreteActions`);
            - "multidiscrete": every key, every Enum and the camera in mu-law bins (`MultiDiscreteActions`);
            - "multidiscrete-linear": the same with evenly spaced bins;
            - "continuous": the vector that is the single entry of a Dict (`VectorActions`);
            - "dict": the environment's own actions;
            - a .safetensors file of centroids (`CentroidActions`);
            - "auto": "continuous" for a single vector, "discrete" for other Dicts, the environment's own otherwise.

        env_id: Id of the environment, which chooses the table; by default that of its spec.
        camera_step_degrees: Degrees of a turn, for "discrete".
        always: Keys to hold in every action but the no-op, such as "attack+forward", for "discrete"; by default those
            of the curated table.
        camera_bins: Bins of each turn, for "multidiscrete".
        camera_max_degrees: The largest turn, for "multidiscrete".

    Raises:
        InputError: `actions` is none of these, does not fit the action space, or does not support `always`.

    Example:
        >>> env = gym.Env()
        >>> env.action_space = spaces.Dict({key: spaces.Discrete(2) for key in ("attack", "forward", "jump")})
        >>> sb3_actions(env, env_id="MineRLTreechop-v0").names
        ('noop', 'attack', 'forward', 'forward+jump')
        >>> sb3_actions(env, "multidiscrete").action_space
        MultiDiscrete([2 2 2])
    """
    space = env.action_space
    if isinstance(actions, os.PathLike) or str(actions).endswith(".safetensors"):
        kind = "centroids"
    else:
        check_choice("actions", actions, CHOICES)
        kind = _automatic(space) if actions == "auto" else str(actions)
    if always is not None and kind != "discrete":
        raise InputError(f"always={always!r} is for actions='discrete', and these are {kind!r}; leave it out")
    if kind == "centroids":
        return CentroidActions(env, Path(actions))
    if kind == "dict" or (kind == "continuous" and isinstance(space, spaces.Box)):
        return env
    if kind == "continuous":
        return VectorActions(env)
    if kind == "discrete":
        env_id = env_id or (env.spec.id if env.spec is not None else None)
        table, usually = curated_actions(space, env_id=env_id, camera_step_degrees=camera_step_degrees)
        if always is None:
            return DiscreteActions(env, table, always=usually)
        return DiscreteActions(env, _distinct(table, held(always)), always=always)
    rule = "linear" if kind == "multidiscrete-linear" else "mu-law"
    return MultiDiscreteActions(env, CameraBins(camera_bins, camera_max_degrees, rule))


def _automatic(space: spaces.Space[Any]) -> str:
    if isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return "dict"  # Stable-Baselines3 supports these
    if isinstance(space, spaces.Dict):
        return "discrete" if only_box(space) is None else "continuous"
    raise InputError(f"actions='auto' needs an action space that is a Dict, Box or Discrete, got {space}")


def _distinct(table: Sequence[Mapping[str, Any]], always: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The actions that still differ, and do something, when other keys are held than the table was made for."""
    seen: set[frozenset[tuple[str, Any]]] = {frozenset()}
    kept: list[Mapping[str, Any]] = []
    for action in [{}, *table]:
        effects = {**always, **action}.items()
        effect = frozenset((key, str(value)) for key, value in effects if not (isinstance(value, int) and value == 0))
        if effect not in seen:
            seen.add(effect)
            kept.append(action)
    return kept
