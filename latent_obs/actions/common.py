"""What the action wrappers share: an environment's no-op, kinds of entries, and values written by hand."""

import copy
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from latent_obs.envs.old_gym import Enum, noop_of
from latent_obs.util.errors import InputError

#: The entry of a Dict action that turns the view: degrees of (pitch, yaw).
CAMERA = "camera"


def dict_space(space: spaces.Space[Any], wrapper: str) -> spaces.Dict:
    """The space, if it is a Dict with entries; `InputError` otherwise."""
    if isinstance(space, spaces.Dict) and space.spaces:
        return space
    raise InputError(f"{wrapper} needs a Dict action space with entries such as attack=Discrete(2), got {space}")


def only_box(space: spaces.Space[Any]) -> tuple[str | None, spaces.Box] | None:
    """The Box of floats that is the whole action, with its key if it is a Dict's single entry; None otherwise."""
    key: str | None = None
    if isinstance(space, spaces.Dict) and len(space.spaces) == 1:
        [(key, space)] = space.spaces.items()
    return (key, space) if isinstance(space, spaces.Box) and np.dtype(space.dtype).kind == "f" else None


def is_key(space: spaces.Space[Any]) -> bool:
    """Whether an entry is a key, held or not; an `Enum` of two names is none."""
    return isinstance(space, spaces.Discrete) and not isinstance(space, Enum) and (space.n, space.start) == (2, 0)


def is_camera(key: str, space: spaces.Space[Any]) -> bool:
    """Whether an entry turns the view: named `camera`, a Box of two floats."""
    return key == CAMERA and isinstance(space, spaces.Box) and space.shape == (2,) and np.dtype(space.dtype).kind == "f"


def noop_action(env: gym.Env[Any, Any]) -> Any:
    """A fresh copy of the action that does nothing: the environment's `noop` if it has one, else zeros of its space.

    An environment whose actions are a code, such as MineRL's obfuscated ones, must have its own: zeros are not its
    no-op.

    Raises:
        InputError: The environment's `noop` is not in its action space, or a wrapper that changes a vector hides it.

    Example:
        >>> env = gym.Env()
        >>> env.action_space = spaces.Dict(jump=spaces.Discrete(2))
        >>> noop_action(env)
        {'jump': 0}
        >>> env.noop = {"jump": 1}
        >>> noop_action(env)
        {'jump': 1}
    """
    layer = env
    while not hasattr(layer, "noop"):
        if not isinstance(layer, gym.Wrapper):
            return noop_of(env.action_space)
        if layer.env.action_space != layer.action_space:  # a `noop` further inside is of another action space
            if layer.has_wrapper_attr("noop") and only_box(env.action_space) is not None:
                raise InputError(
                    f"noop: {type(layer).__name__} changes the action space and has no `noop`, but the environment in "
                    "it does: its vector that does nothing is unknown. Set its `noop`, or put this wrapper inside it"
                )
            return noop_of(env.action_space)
        layer = layer.env
    return value_of(env.action_space, layer.get_wrapper_attr("noop"), "noop of the environment")


def value_of(space: spaces.Space[Any], value: Any, what: str) -> Any:
    """A fresh value of a space from one written by hand: a name for an `Enum`, a pair for a camera.

    Raises:
        InputError: It is not in the space; the message begins with `what`.

    Example:
        >>> value_of(Enum(["none", "planks"]), "planks", "craft")
        1
    """
    if isinstance(space, spaces.Dict) and isinstance(value, Mapping) and value.keys() == space.spaces.keys():
        return {key: value_of(inner, value[key], f"{what}[{key!r}]") for key, inner in space.spaces.items()}
    if isinstance(space, Enum) and isinstance(value, str) and value in space.names:
        return space.index(value)
    if isinstance(space, spaces.Discrete | spaces.Box):
        try:
            array = np.asarray(value)
        except ValueError:  # a ragged list
            array = np.asarray(None)
        if isinstance(space, spaces.Discrete) and array.dtype.kind in "biu" and array.size == 1:
            if space.start <= array.item() < space.start + space.n:
                return int(array.item())
        elif isinstance(space, spaces.Box) and array.dtype.kind in "fiu" and array.shape == space.shape:
            with np.errstate(over="ignore", invalid="ignore"):
                fresh = array.astype(space.dtype)
            exact = fresh.dtype.kind == "f" or np.array_equal(fresh, array)
            if exact and ((fresh >= space.low) & (fresh <= space.high)).all():  # False for NaN too
                return fresh
    elif space.contains(value):
        return copy.deepcopy(value)
    raise InputError(f"{what} must be a value of {space}, got {value!r}")
