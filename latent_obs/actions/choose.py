"""Which actions an agent chooses from: `sb3_actions`, and the curated tables for MineRL's families of tasks.

A curated table is small, and each action in it is there for a reason:

    actions, always = curated_actions(env.action_space, env_id="MineRLTreechop-v0")
    env = DiscreteActions(env, actions, always=always)
"""

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from latent_obs.actions.common import CAMERA, dict_space, is_camera, is_key, only_box
from latent_obs.actions.discrete import DiscreteActions, held
from latent_obs.actions.multi_discrete import CameraBins, MultiDiscreteActions
from latent_obs.actions.vector import CentroidActions, VectorActions
from latent_obs.envs.old_gym import Enum, noop_of
from latent_obs.util.errors import InputError, check_choice

#: The values of `actions`, besides a file of centroids.
CHOICES = ("auto", "discrete", "multidiscrete", "multidiscrete-linear", "continuous", "dict")
#: The actions of each family as words, "nothing" for only what is always held. A word joins entries of the action space
#: by "+"; the camera stands for its four turns, and an Enum for each of its items. A word with an entry that the space
#: lacks is left out, but for one with "?".
_WORDS = {
    "treechop": "nothing forward forward+jump camera",
    "navigate": "forward+sprint? forward+jump+sprint? camera jump?+place attack",
    "obtain": "forward back left right jump forward+jump attack forward+attack camera "
    "craft nearbyCraft nearbySmelt place equip",
    "basalt": "forward back left right jump forward+jump forward+sprint attack use jump+use camera equip",
}
#: The families that `curated_actions` knows.
FAMILIES = (*_WORDS, "basic")
#: Names of an Enum's entries that stand for nothing to craft, place or equip; the game ignores them.
_NOTHING = ("none", "other")


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
            - "auto": "continuous" for a single vector, "discrete" for other Dicts, `plain_actions` otherwise.

        env_id: Id of the environment, which chooses the table; by default MineRL's own task, or that of its spec.
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
    kind = "centroids" if str(actions).endswith(".safetensors") else str(actions)
    if kind != "centroids":
        check_choice("actions", kind, CHOICES)
    if kind == "auto":
        if not isinstance(
            space, spaces.Dict | spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary
        ):
            raise InputError(f"actions='auto' needs an action space that is a Dict, Box or Discrete, got {space}")
        if not isinstance(space, spaces.Dict | spaces.Box):
            return plain_actions(env)
        kind = "continuous" if only_box(space) else "discrete" if isinstance(space, spaces.Dict) else "dict"
    if always is not None and kind != "discrete":
        raise InputError(f"always={always!r} is for actions='discrete', and these are {kind!r}; leave it out")
    if kind == "centroids":
        return CentroidActions(env, Path(actions))
    if kind == "dict" or (kind == "continuous" and isinstance(space, spaces.Box)):
        return env
    if kind == "continuous":
        return VectorActions(env)
    if kind != "discrete":
        rule = "linear" if kind == "multidiscrete-linear" else "mu-law"
        return MultiDiscreteActions(env, CameraBins(camera_bins, camera_max_degrees, rule))
    # MineRL's know their task, whatever name they are registered by.
    env_id = env_id or getattr(env.unwrapped, "env_id", None) or (env.spec.id if env.spec is not None else None)
    table, usually = curated_actions(space, env_id=env_id, camera_step_degrees=camera_step_degrees)
    if always is None:
        return DiscreteActions(env, table, always=usually)
    # Those that still differ, and do something, when other keys are held than the table was made for.
    effects = [{**held(always), **action} for action in ({}, *table)]
    differing = [action for i, action in enumerate(({}, *table)) if effects[i] and effects[i] not in effects[:i]]
    return DiscreteActions(env, differing, always=always)


def plain_actions(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """Make the actions of an environment those that Stable-Baselines3 sends: in one row, and counted from 0.

    It sends 0 to n - 1 for a Discrete or MultiDiscrete space, whatever its start, and knows no tables of choices or
    keys. Other action spaces stay unchanged.

    Example:
        >>> env = gym.Env()
        >>> env.action_space = spaces.Discrete(3, start=-1)
        >>> plain_actions(env).action_space
        Discrete(3)
    """
    space, start = env.action_space, np.asarray(getattr(env.action_space, "start", 0))
    match space:
        case spaces.Discrete() if start.any():
            plain: spaces.Space[Any] = spaces.Discrete(int(space.n))
        case spaces.MultiDiscrete() if start.any() or space.nvec.ndim > 1:
            plain = spaces.MultiDiscrete(space.nvec.reshape(-1))
        case spaces.MultiBinary() if len(space.shape) > 1:
            plain = spaces.MultiBinary(math.prod(space.shape))
        case _:
            return env
    return gym.wrappers.TransformAction(env, lambda action: np.reshape(action, space.shape or ()) + start, plain)


def curated_actions(
    space: spaces.Space[Any],
    family: str | None = None,
    env_id: str | None = None,
    camera_step_degrees: float = 10.0,
) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Actions for a task, and the keys that are held in all of them, as `DiscreteActions` takes them.

    Only entries that the action space has are used. The families:

    - "treechop": attack is always held, because a log takes some sixty uninterrupted frames of it; forward,
      forward+jump and the four turns, as in the intro baselines of the MineRL competition of 2021.
    - "navigate": forward and forward+jump with sprint held; the four turns; each block to place together with jump,
      which builds a pillar out of a hole; attack, which digs through obstacles.
    - "obtain": all ways of walking, jump, forward+jump; attack, and forward+attack, which digs a tunnel; the four
      turns; and one action per recipe, item to smelt, block to place and item to equip.
    - "basalt": all ways of walking, jump, forward+jump and forward+sprint; attack; use, which places, pours or throws
      what is in hand; jump+use, which builds a pillar; the four turns; and one action per item to equip. Using the
      snowball ends the episode.
    - "basic", for anything else with such entries: each key, forward+jump, the four turns, and each other value of
      each Enum and Discrete entry.

    Args:
        space: The environment's action space: a Dict.
        family: One of `FAMILIES`; by default that of `env_id`, or "basic".
        env_id: The environment's id.
        camera_step_degrees: Degrees of each turn.

    Returns:
        What each action changes of the no-op, and the keys always held.

    Raises:
        InputError: There is no such family, the camera cannot turn by such a step, or the action space has nothing to
            choose from, such as an obfuscated one.

    Example:
        >>> keys = {key: spaces.Discrete(2) for key in ("attack", "back", "forward", "jump")}
        >>> space = spaces.Dict({**keys, "camera": spaces.Box(-180.0, 180.0, (2,))})
        >>> curated_actions(space, env_id="MineRLTreechop-v0")
        ([{}, {'forward': 1}, {'forward': 1, 'jump': 1},
          {'camera': (0.0, -10.0)}, {'camera': (0.0, 10.0)}, {'camera': (-10.0, 0.0)}, {'camera': (10.0, 0.0)}],
          ('attack',))
    """
    family = family or family_of(env_id) or "basic"
    check_choice("family", family, FAMILIES)
    entries = dict_space(space, "curated_actions").spaces
    keys = [key for key, part in entries.items() if is_key(part)]
    values: dict[str, list[Any]] = {key: [1] for key in keys}
    reach, step = 180.0, camera_step_degrees
    for key, part in entries.items():
        if isinstance(part, Enum):
            values[key] = [name for i, name in enumerate(part.names) if i != part.default and name not in _NOTHING]
        elif isinstance(part, spaces.Discrete) and key not in keys:
            values[key] = [i for i in range(int(part.start), int(part.start + part.n)) if i != noop_of(part)]
        elif isinstance(part, spaces.Box) and is_camera(key, part):
            reach = float(min(part.high.min(), -part.low.max()))
            values[key] = [(0.0, -step), (0.0, step), (-step, 0.0), (step, 0.0)]  # left, right, up, down
    if not 0 < step <= reach:
        raise InputError(f"camera_step_degrees must be above 0 and at most {reach:g}, got {step!r}")
    if family == "basic":
        enums = [key for key, part in entries.items() if isinstance(part, Enum)]
        words = list(dict.fromkeys([*keys, "forward+jump", CAMERA, *enums, *values]))
    else:
        words = _WORDS[family].split()
    always = ("attack",) if family == "treechop" and "attack" in keys else ()
    actions: list[dict[str, Any]] = [{}] if "nothing" in words and always else []
    for word in words:
        parts = [part for part in word.split("+") if not part.endswith("?") or part[:-1] in values]
        names = [part.removesuffix("?") for part in parts]
        for chosen in itertools.product(*(values.get(name, ()) for name in names)):
            actions.append(dict(zip(names, chosen, strict=True)))
    if not any(actions):
        raise InputError(
            f"space {space} has no keys, Enums or camera for {family!r} actions; for a vector use VectorActions or "
            "CentroidActions"
        )
    return actions, always


def family_of(env_id: str | None) -> str | None:
    """The family of a MineRL environment by its id; None for another one, and for one whose actions are a vector.

    Example:
        >>> family_of("MineRLObtainDiamondDense-v0"), family_of("MineRLTreechopVectorObf-v0"), family_of("CartPole-v1")
        ('obtain', None, None)
    """
    if env_id is None or "MineRL" not in env_id or "Vector" in env_id:
        return None
    return next((family for family in _WORDS if family.capitalize() in env_id), None)
