"""`sb3_actions`: one line from an environment with any of these action spaces to one that Stable-Baselines3 takes."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium import spaces

from latent_obs.actions.camera import CameraBins
from latent_obs.actions.common import check_env, only_box
from latent_obs.actions.curated import curated_actions
from latent_obs.actions.discrete import DiscreteActions, held
from latent_obs.actions.multi_discrete import MultiDiscreteActions
from latent_obs.actions.vector import CentroidActions, VectorActions
from latent_obs.util.errors import InputError

#: What `sb3_actions` can be asked for, besides a file of centroids.
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
    """Wrap an environment such that its actions are of a kind that Stable-Baselines3 takes.

    Args:
        env: The environment.
        actions: How to act:

            - "discrete": a curated table for the task (`curated_actions`, `DiscreteActions`);
            - "multidiscrete": every key, every Enum and the camera in mu-law bins (`MultiDiscreteActions`);
            - "multidiscrete-linear": the same with evenly spaced bins;
            - "continuous": the vector that is the single entry of a Dict (`VectorActions`);
            - "dict": as they are;
            - a .safetensors file of centroids (`CentroidActions`);
            - "auto": "continuous" for a single vector, "discrete" for other Dicts, and as they are where they are taken
            so.

        env_id: Id of the environment, to choose the table by; that of its spec when not given.
        camera_step_degrees: Degrees of a turn, for "discrete".
        always: Keys to hold in every action but the no-op, such as "attack+forward", for "discrete"; those of the
            curated table when not given.
        camera_bins: Bins of each turn, for "multidiscrete".
        camera_max_degrees: The largest turn, for "multidiscrete".

    Raises:
        InputError: `actions` is none of these, does not fit the action space, or does not take `always`.

    Example:
        >>> env = gym.Env()
        >>> env.action_space = spaces.Dict({key: spaces.Discrete(2) for key in ("attack", "forward", "jump")})
        >>> sb3_actions(env, env_id="MineRLTreechop-v0").names
        ('noop', 'attack', 'forward', 'forward+jump')
        >>> sb3_actions(env, "multidiscrete").action_space
        MultiDiscrete([2 2 2])
    """
    check_env(env, "sb3_actions")
    centroids = _centroids(actions)
    if centroids is None and actions not in CHOICES:
        raise InputError(
            f"there are no actions {actions!r}; choose one of {', '.join(CHOICES)}, or give a .safetensors file of centroids"
        )
    kind = "centroids" if centroids is not None else _auto(env.action_space) if actions == "auto" else str(actions)
    if always is not None and kind != "discrete":
        raise InputError(
            f"always={always!r} holds keys in actions of the kind 'discrete', and these are {kind!r}; leave it out"
        )
    if centroids is not None:
        return CentroidActions(env, centroids)
    if kind == "discrete":
        if not isinstance(env.action_space, spaces.Dict):
            raise InputError(_misfit(kind, env.action_space))
        env_id = env_id or (env.spec.id if env.spec is not None else None)
        table, usually = curated_actions(env.action_space, env_id=env_id, camera_step_degrees=camera_step_degrees)
        if always is None:
            return DiscreteActions(env, table, always=usually)
        return DiscreteActions(env, _distinct(table, held(always)), always=always)
    if kind in ("multidiscrete", "multidiscrete-linear"):
        if not isinstance(env.action_space, spaces.Dict):
            raise InputError(_misfit(kind, env.action_space))
        return MultiDiscreteActions(
            env, CameraBins(camera_bins, camera_max_degrees, "linear" if "-" in kind else "mu-law")
        )
    if kind == "continuous" and not isinstance(env.action_space, spaces.Box):
        if only_box(env.action_space) is None:
            raise InputError(_misfit(kind, env.action_space))
        return VectorActions(env)
    return env


def _centroids(actions: Any) -> Path | None:
    """The file of centroids, if `actions` is one."""
    if isinstance(actions, os.PathLike):
        return Path(actions)
    return Path(actions) if isinstance(actions, str) and actions.endswith(".safetensors") else None


def _auto(space: spaces.Space[Any]) -> str:
    if isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return "dict"  # Stable-Baselines3 takes them as they are
    if isinstance(space, spaces.Dict):
        return "discrete" if only_box(space) is None else "continuous"
    raise InputError(
        f"there are no actions made by themselves for {space}; wrap it so that it is a Dict, Box or Discrete"
    )


def _misfit(kind: str, space: spaces.Space[Any]) -> str:
    fits = "a Dict with a single Box" if kind == "continuous" else "a Dict of keys, Enums and a camera"
    return f"actions={kind!r} needs {fits}, and the action space is {space}; choose another one of {', '.join(CHOICES)}"


def _distinct(table: Sequence[Mapping[str, Any]], always: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The actions that are still different, and not nothing, when other keys are held than the table was made for."""
    seen: set[frozenset[tuple[str, Any]]] = {frozenset()}
    kept: list[Mapping[str, Any]] = []
    for action in [{}, *table]:
        does = frozenset(
            (key, str(value))
            for key, value in {**always, **action}.items()
            if not (isinstance(value, int) and value == 0)
        )
        if does not in seen:
            seen.add(does)
            kept.append(action)
    return kept
