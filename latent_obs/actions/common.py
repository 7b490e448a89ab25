"""What the action wrappers share: an environment's no-op, values written by hand, and copies of actions."""

import operator
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from latent_obs.envs.old_gym import Enum, noop_of
from latent_obs.util.errors import InputError

#: The entry of a Dict action that turns the view: degrees of (pitch, yaw).
CAMERA = "camera"


def dict_space(space: spaces.Space[Any], wrapper: str) -> spaces.Dict:
    """The space, if it is a Dict with entries; `InputError` otherwise."""
    if isinstance(space, spaces.Dict) and space.spaces:
        return space
    raise InputError(f"{wrapper} needs a Dict action space with entries such as attack=Discrete(2), got {space}")


def noop_action(env: gym.Env[Any, Any]) -> Any:
    """A fresh copy of the action that does nothing: the environment's `noop` if it has one, else zeros of its space.

    An environment whose actions are a code, such as MineRL's obfuscated ones, must have its own: zeros are not its
    no-op.

    Raises:
        InputError: The environment's `noop` is not in its action space, or a wrapper that changes a vector of numbers
            hides it.

    Example:
        >>> env = gym.Env()
        >>> env.action_space = spaces.Dict(jump=spaces.Discrete(2))
        >>> noop_action(env)
        {'jump': 0}
        >>> env.noop = {"jump": 1}
        >>> noop_action(env)
        {'jump': 1}
    """
    space, layer = env.action_space, env
    while not hasattr(layer, "noop"):
        if not isinstance(layer, gym.Wrapper):
            return noop_of(space)
        if layer.env.action_space != layer.action_space:  # a `noop` further inside is of another action space
            if layer.has_wrapper_attr("noop") and only_box(space) is not None:
                raise InputError(
                    f"noop: {type(layer).__name__} changes the action space and has no `noop`, but the environment in "
                    "it does: its vector that does nothing is unknown. Set its `noop`, or put this wrapper inside it"
                )
            return noop_of(space)
        layer = layer.env
    noop = copy_action(layer.get_wrapper_attr("noop"))
    if not space.contains(noop):
        raise InputError(f"noop of the environment is {noop!r}, which is not in its action space {space}")
    return noop


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


def whole_number(value: Any, start: int, n: int, what: str) -> int:
    """One of the `n` integers from `start` on, or an array of one such number; `InputError` otherwise."""
    try:
        number = operator.index(value.item() if isinstance(value, np.ndarray) and value.size == 1 else value)
    except TypeError:
        number = start - 1
    if not start <= number < start + n:
        raise InputError(f"{what} must be a whole number from {start} to {start + n - 1}, got {value!r}")
    return number


def box_value(space: spaces.Box, value: Any, what: str) -> NDArray[Any]:
    """A fresh array of a Box's dtype, within its bounds; `InputError` if `value` has another shape or exceeds them."""
    try:
        array = np.asarray(value)
    except ValueError:  # a ragged list
        array = np.asarray(None)
    if array.dtype.kind not in "fiu" or array.shape != space.shape:
        raise InputError(f"{what} must be {space.dtype} numbers of shape {space.shape}, got {value!r}")
    with np.errstate(over="ignore", invalid="ignore"):  # rejected below
        fresh = array.astype(space.dtype)
    integers = np.dtype(space.dtype).kind in "iu"
    # The comparison with the bounds is False for NaN too.
    if (integers and not (fresh == array).all()) or not ((fresh >= space.low) & (fresh <= space.high)).all():
        raise InputError(f"{what} must lie within {space}, got {array.tolist()}")
    return fresh


def value_of(space: spaces.Space[Any], value: Any, what: str) -> Any:
    """A fresh value of a space from one written by hand: a name for an `Enum`, a pair for a camera.

    Raises:
        InputError: It is not in the space.

    Example:
        >>> value_of(Enum(["none", "planks"]), "planks", "craft")
        1
    """
    if isinstance(space, Enum) and isinstance(value, str):
        try:
            return space.index(value)
        except InputError as error:
            raise InputError(f"{what}: {error}") from None
    if isinstance(space, spaces.Discrete):
        return whole_number(value, int(space.start), int(space.n), what)
    if isinstance(space, spaces.Box):
        return box_value(space, value, what)
    if isinstance(space, spaces.Dict):
        if not isinstance(value, Mapping) or value.keys() != space.spaces.keys():
            got = sorted(map(str, value)) if isinstance(value, Mapping) else repr(value)
            raise InputError(f"{what} must be a dictionary with exactly the entries {sorted(space.spaces)}, got {got}")
        return {key: value_of(inner, value[key], f"{what}[{key!r}]") for key, inner in space.spaces.items()}
    if not space.contains(value):
        raise InputError(f"{what} must be a value of {space}, got {value!r}")
    return copy_action(value)


def copy_action(action: Any) -> Any:
    """The action with dictionaries and arrays of its own."""
    if isinstance(action, Mapping):
        return {key: copy_action(value) for key, value in action.items()}
    if isinstance(action, tuple):
        return tuple(copy_action(value) for value in action)
    return action.copy() if isinstance(action, np.ndarray) else action
