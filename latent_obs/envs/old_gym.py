"""`OldGymEnv`: an environment of the old Gym API as a `gymnasium.Env`, with its spaces and their values converted.

Old spaces, MineRL's own kinds among them, are recognized by the names of their classes, so that nothing here imports
gym: any version of it works.
"""

import contextlib
import dis
import inspect
import logging
import operator
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from latent_obs.util.errors import InputError, check_choice, check_count

_log = logging.getLogger(__name__)


def is_old_gym(env: Any) -> bool:
    """Whether something is an environment, and not one of Gymnasium's; a class of Gymnasium's may have the old API."""
    parts = ("reset", "step", "observation_space", "action_space")
    if isinstance(env, gym.Wrapper | type) or not all(hasattr(env, part) for part in parts):
        return False
    return not (isinstance(env, gym.Env) and takes_seed(env.reset))


def takes_seed(reset: Any) -> bool:
    """Whether a `reset` has the seed among its parameters, as Gymnasium's have."""
    try:
        parameters = inspect.signature(reset).parameters
    except (TypeError, ValueError):  # a compiled one does not show them
        return True
    return "seed" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


class OldGymEnv(gym.Env[Any, Any]):
    """Adapt an environment in hand that has the old Gym API (any of 0.10 to 0.26) to Gymnasium's.

    - `step` gives five values. A time-out (``info["TimeLimit.truncated"]``, as Gym's TimeLimit sets it, or an end
      within `time_limit_slack` steps of the specification's limit) is a truncation, any other end a termination.
    - Spaces are converted, MineRL's Enum, DiscreteRange and Text among them; frames are fresh, contiguous and writable.
    - Actions outside the space raise before the old environment sees them.
    - A seed goes to the old environment's `reset` or `seed`; where neither takes one, `seeded_by_hand` seeds it.

    Args:
        env: The old environment.
        render_mode: "rgb_array" or "human", where it can draw itself; None for not at all.
        seed_every_reset: Seed it at every reset, once it was seeded at all, so that one seed fixes a whole run of an
            environment that forgets its seed after one episode, as MineRL's do.
        time_limit_slack: An end this many steps before the limit still counts as a time-out: a server's own clock may
            be a little ahead.

    Raises:
        InputError: It is no environment of the old API, a space has no counterpart, or it has no such render mode.
    """

    def __init__(
        self, env: Any, *, render_mode: str | None = None, seed_every_reset: bool = False, time_limit_slack: int = 0
    ) -> None:
        # One of Gymnasium's may be half old: its `reset` takes a seed, and returns the observation alone.
        if not is_old_gym(env) and (not isinstance(env, gym.Env) or isinstance(env, gym.Wrapper)):
            raise InputError(
                f"env must be an environment of the old Gym API, with reset, step and spaces, beneath Gymnasium's "
                f"wrappers; got {env}"
            )
        self.time_limit_slack = check_count("time_limit_slack", time_limit_slack, at_least=0)
        self.gym_env = env
        old = dict(getattr(env, "metadata", None) or {})  # under the names of several versions
        modes = old.pop("render.modes", None) or old.pop("render_modes", None) or []
        rates = [old.pop(name, None) for name in ("video.frames_per_second", "video_frames_per_second", "render_fps")]
        self.metadata = {**old, "render_modes": list(modes), "render_fps": next(filter(None, rates), 30)}
        check_choice("render_mode", render_mode, (None, *modes))
        self.render_mode = render_mode
        self._observation = convert_space(env.observation_space, "observation")
        self._action = convert_space(env.action_space, "action")
        self.observation_space: spaces.Space[Any] = self._observation.space
        self.action_space: spaces.Space[Any] = self._action.space
        self.seed_every_reset = seed_every_reset
        self.max_episode_steps: int | None = getattr(getattr(env, "spec", None), "max_episode_steps", None)
        self._seeded = False
        self._elapsed: int | None = None  # steps of the episode; None when there is none under way

    @property
    def noop(self) -> Any:
        """The action that does nothing."""
        return noop_of(self.action_space)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; options are an InputError where the old environment's `reset` takes none."""
        takes = _parameters(self.gym_env.reset)
        super().reset(seed=seed)
        if options and "options" not in takes:
            raise InputError(f"options: this environment's reset takes none, got {options}")
        self._seeded = self._seeded or seed is not None
        if seed is None and self._seeded and self.seed_every_reset:
            seed = int(self.np_random.integers(2**31))
        self._elapsed = None
        keywords: dict[str, Any] = {"options": options} if options else {}
        by_hand: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if seed is not None and "seed" in takes:
            keywords["seed"] = seed
        elif seed is not None:
            method = getattr(self.gym_env, "seed", None)
            if callable(method):
                method(seed)
            # That of the oldest gym.Env, which its wrappers call, does nothing.
            method = getattr(getattr(self.gym_env, "unwrapped", self.gym_env), "seed", None)
            if not callable(method) or method.__module__ == "gym.core":
                by_hand = seeded_by_hand(self.gym_env, seed)
        with by_hand:
            observation, info = self._begin(keywords)
        self._elapsed = 0
        if self.render_mode == "human":
            self.render()
        return self._observation.from_old(observation), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take a step; an action outside the space is an InputError."""
        if self._elapsed is None:
            _ = self.gym_env.step  # raises if this is closed
            raise gym.error.ResetNeeded("no episode is under way: call reset() first, and after each episode's end")
        observation, reward, terminated, truncated, info = self._play(self._action.to_old(action))
        self._elapsed += 1
        if self.render_mode == "human":
            self.render()
        if terminated or truncated:
            limit, gyms_own = self.max_episode_steps, info.get("TimeLimit.truncated")
            truncated = truncated or bool(gyms_own)
            # Gym's own is False for an end by itself in the last step of all.
            if limit is not None and (self.time_limit_slack or gyms_own is None):
                truncated = truncated or self._elapsed >= limit - self.time_limit_slack
            terminated = terminated and not truncated
            self._elapsed = None
        return self._observation.from_old(observation), float(reward), terminated, truncated, info

    def _begin(self, keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Reset the old environment: its observation, unconverted, and its info."""
        result = self.gym_env.reset(**keywords)
        is_pair = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping)
        if is_pair and isinstance(self.observation_space, spaces.Tuple):  # or the pair is the observation
            is_pair = bool(self.gym_env.observation_space.contains(result[0]))
        return (result[0], dict(result[1])) if is_pair else (result, {})  # Gym 0.26 gives a pair

    def _play(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step the old environment: observation and action are the old environment's own."""
        result: Any = self.gym_env.step(action)
        observation, reward, terminated, *truncated, info = result  # Gym 0.26 gives five values
        return observation, reward, bool(terminated), any(truncated), dict(info)

    def render(self) -> Any:
        """The picture, uint8 (H, W, 3), or a window, as `render_mode` says; None without one."""
        if self.render_mode is None:
            return None
        render: Any = self.gym_env.render
        picture = render(mode=self.render_mode) if "mode" in _parameters(render) else render()
        if self.render_mode != "rgb_array":
            return None
        if picture is None:  # Gym 0.26 settles it when the environment is made
            raise InputError(f"render_mode: {self.gym_env} gave no picture; make it with render_mode='rgb_array' too")
        return np.array(picture, order="C")

    def close(self) -> None:
        """Close the old environment; closing it twice does no harm."""
        env, self.gym_env = self.gym_env, _Closed()
        self._elapsed = None
        env.close()


@contextlib.contextmanager
def seeded_by_hand(env: Any, seed: int) -> Iterator[None]:
    """Seed an environment that takes no seed, for its next reset: whatever of it can be seeded from outside.

    These are the random generators and the seeds among its attributes, and the global generators of numpy and Python,
    which all environments of this process share. If there are no such attributes, and the reset draws from none of
    these generators, a warning is logged, once for a class.
    """
    has_own, layer = False, env
    while layer is not None:
        env, inside = layer, getattr(layer, "__dict__", {})
        for name, value in list(inside.items()):
            if isinstance(value, np.random.Generator):
                value.bit_generator.state = type(value.bit_generator)(seed).state  # pyright: ignore[reportCallIssue]
            elif isinstance(value, np.random.RandomState | random.Random):
                value.seed(seed)
            elif name in ("_seed", "seed") and (value is None or isinstance(value, int | np.integer)):
                setattr(layer, name, seed)
                if "_episode" in inside:
                    layer._episode = 0  # Crafter draws a world by both
            else:
                continue
            has_own = True
        layer = inside.get("env")
    if isinstance(env, gym.Env):
        gym.Env.reset(env, seed=seed)  # seeds `np_random`
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    before = _random_state(env)
    yield
    if not has_own and type(env) not in _UNSEEDED and before == _random_state(env):
        _UNSEEDED.add(type(env))
        what = "%s takes no seed, and its reset draws from no generator known here: equal seeds may give other episodes"
        _log.warning(what, type(env).__name__)


_UNSEEDED: set[type] = set()  # that were warned of


def _random_state(env: Any) -> tuple[Any, ...]:
    own = repr(env.np_random.bit_generator.state) if isinstance(env, gym.Env) else ""
    _, words, *rest = np.random.get_state()  # noqa: NPY002
    return random.getstate(), np.asarray(words).tobytes(), rest, own


class SeedByHand(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Seed a Gymnasium environment whose `reset` does not use its seed (`ignores_seed`), by `seeded_by_hand`."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset; a seed is given by hand first."""
        with contextlib.nullcontext() if seed is None else seeded_by_hand(self.env.unwrapped, seed):
            return self.env.reset(seed=seed, options=options)


def ignores_seed(env: gym.Env[Any, Any]) -> bool:
    """Whether the `reset` of an environment has an argument `seed` that its code never reads."""
    code = getattr(inspect.unwrap(type(env.unwrapped).reset), "__code__", None)
    if code is None or "seed" not in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]:
        return False
    # From Python 3.13 one instruction may load two variables.
    used = [(i.opname, i.argval if isinstance(i.argval, tuple) else (i.argval,)) for i in dis.get_instructions(code)]
    return not any("seed" in names for operation, names in used if operation != "DELETE_FAST")


class _Closed:
    """What an environment is after `close`."""

    def close(self) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copying and pickling look for these
            raise AttributeError(name)
        raise gym.error.ClosedEnvironmentError(f"{name!r} needs an open environment: this one was closed")


def _parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    """Parameters of a method, through Gym's wrappers, which pass on whatever they are given."""
    parameters: Mapping[str, inspect.Parameter] = inspect.signature(function).parameters
    passes_on = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    inner = getattr(getattr(function, "__self__", None), "env", None)
    method = getattr(inner, getattr(function, "__name__", ""), None)
    return {**parameters, **_parameters(method)} if passes_on and callable(method) else parameters


class Enum(spaces.Discrete):
    """A `Discrete` whose entries have names, such as the items that can be crafted.

    Args:
        names: One per entry, in order.
        default: The entry that does nothing or stands for nothing; the first one when not given. The attribute
            `default` is its index.

    Example:
        >>> craft = Enum(["none", "planks", "torch"], default="none")
        >>> craft.index("torch"), craft.names[1], int(craft.n)
        (2, 'planks', 3)
    """

    def __init__(self, names: Sequence[str], default: str | None = None, seed: Any = None) -> None:
        self.names = tuple(str(name) for name in names)
        if len(set(self.names)) != len(self.names):
            raise InputError(f"names of an Enum must differ, got {self.names}")
        check_choice("default", default, (None, *self.names))
        self.default = 0 if default is None else self.names.index(default)
        super().__init__(len(self.names), seed=seed)

    def index(self, name: str) -> int:
        """Index of a name; an InputError if there is none."""
        check_choice("name", name, self.names)
        return self.names.index(name)

    def __repr__(self) -> str:
        return f"Enum({', '.join(map(repr, self.names))})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Enum) and self.names == other.names and self.default == other.default

    def __hash__(self) -> int:
        return hash((self.names, self.default))


class Converted(NamedTuple):
    """A space of the old Gym as Gymnasium's, with the conversion of its values in both directions.

    `from_old` gives fresh, C-contiguous and writable arrays, and clips numbers to their bounds, as an obfuscated vector
    may be a little outside of them. `to_old` checks a value of `space` (InputError).
    """

    space: spaces.Space[Any]
    from_old: Callable[[Any], Any]
    to_old: Callable[[Any], Any]


def convert_space(old: Any, what: str = "space") -> Converted:
    """Convert a space of the old Gym to Gymnasium's.

    Args:
        old: The space: Box, Discrete, MultiDiscrete, MultiBinary, Tuple, Dict, or MineRL's Enum, DiscreteRange and
            Text.
        what: What it is the space of, for messages.

    Raises:
        InputError: It is of another kind.
    """
    names = [kind.__name__.removesuffix("Space") for kind in type(old).__mro__]  # Crafter's, where there is no gym
    for name, convert in _KINDS.items():
        if name in names:
            return convert(old, what)
    raise InputError(
        f"{what} space {old!r} has no counterpart in Gymnasium: expected one of {', '.join(_KINDS)}. Change it with a "
        "wrapper of the old Gym"
    )


def noop_of(space: spaces.Space[Any]) -> Any:
    """The value of an action space that does nothing: zeros (or the bound nearest to zero), the default of an `Enum`.

    Example:
        >>> noop_of(spaces.Dict(jump=spaces.Discrete(2), craft=Enum(["log", "none"], default="none")))
        {'jump': 0, 'craft': 1}
    """
    match space:
        case Enum():
            return space.default
        case spaces.Discrete():
            return int(min(max(0, space.start), space.start + space.n - 1))
        case spaces.Box():
            return np.asarray(np.clip(np.zeros(space.shape, space.dtype), space.low, space.high), space.dtype)
        case spaces.MultiDiscrete() | spaces.MultiBinary():
            return np.zeros(space.shape, space.dtype)
        case spaces.Dict():
            return {key: noop_of(inner) for key, inner in space.spaces.items()}
        case spaces.Tuple():
            return tuple(noop_of(inner) for inner in space.spaces)
        case spaces.Text():
            return ""
    raise InputError(f"space must be a Box, Discrete, Dict, … to have an action that does nothing, got {space}")


def _numbers(old: Any, what: str) -> Converted:
    """A Box, MultiDiscrete or MultiBinary: arrays of numbers within bounds."""
    space: Any
    low: Any
    high: Any
    if hasattr(old, "nvec"):
        space = spaces.MultiDiscrete(np.asarray(old.nvec))
        low, high = 0, space.nvec - 1
    elif hasattr(old, "low"):
        low, high = (np.broadcast_to(np.asarray(bound, old.dtype), old.shape) for bound in (old.low, old.high))
        space = spaces.Box(low, high, tuple(old.shape), np.dtype(old.dtype).type)
    else:
        space = spaces.MultiBinary(old.n)
        low, high = 0, 1
    shape, dtype = space.shape, np.dtype(space.dtype)
    is_picture = dtype == np.uint8 and shape != ()
    clips = isinstance(space, spaces.Box) and not is_picture and bool(np.isfinite([low, high]).any())

    def from_old(value: Any) -> NDArray[Any]:
        array = np.asarray(value)
        if array.shape != shape:
            raise InputError(f"{what} has shape {array.shape}, and its space declares {shape}: {space}")
        # Always a copy: a frame of MineRL's is a read-only, flipped view.
        return np.array(np.minimum(np.maximum(array, low), high) if clips else array, dtype, order="C")

    def to_old(value: Any) -> NDArray[Any]:
        try:
            array = np.asarray(value)
        except ValueError:  # rows of different lengths
            array = np.asarray(None)
        if array.shape != shape or array.dtype.kind not in ("biu" if dtype.kind in "biu" else "biuf"):
            raise InputError(f"{what} must be {dtype} numbers of shape {shape}, got {value!r}")
        if dtype.kind == "f":
            with np.errstate(over="ignore"):  # what is too large is so as infinity, too
                array = array.astype(dtype, copy=False)
        if not (np.greater_equal(array, low).all() and np.less_equal(array, high).all()):  # False for NaN too
            raise InputError(f"{what} must lie in {space}, got {array.tolist()}")
        return array.astype(dtype, copy=False)

    return Converted(space, from_old, to_old)


def _whole_number(value: Any, numbers: range, what: str) -> int:
    """Check a whole number: Python's, numpy's or in an array of one."""
    try:
        number = operator.index(value.item() if isinstance(value, np.ndarray) and value.size == 1 else value)
    except TypeError:
        number = None
    if number is None or number not in numbers:
        raise InputError(f"{what} must be a whole number from {numbers[0]} to {numbers[-1]}, got {value!r}")
    return number


def _discrete(old: Any, what: str) -> Converted:
    n, start = int(old.n), int(getattr(old, "begin", getattr(old, "start", 0)))  # MineRL's DiscreteRange has `begin`
    numbers = range(start, start + n)
    return Converted(spaces.Discrete(n, start=start), np.int64, lambda value: _whole_number(value, numbers, what))


def _enum(old: Any, what: str) -> Converted:
    names = [str(name) for name in old.values]
    places = {name: np.int64(i) for i, name in enumerate(names)}

    def from_old(value: Any) -> np.int64:
        check_choice(what, str(value), names)
        return places[str(value)]

    return Converted(
        Enum(names, str(old.default)), from_old, lambda value: names[_whole_number(value, range(len(names)), what)]
    )


def _text(old: Any, what: str) -> Converted:
    if getattr(old, "shape", None) not in (None, 1, (), (1,)):
        raise InputError(f"{what} is {old!r}, several texts at once; only a single one has a counterpart in Gymnasium")
    longest = int(getattr(old, "max_length", getattr(old, "MAX_STR_LEN", 4096)))
    printable = "".join(map(chr, range(32, 127))) + "\n\t"

    def from_old(value: Any) -> str:
        text = str(value.item() if isinstance(value, np.ndarray) else value)[:longest]
        return "".join(character if character in printable else "?" for character in text)

    def to_old(value: Any) -> str:
        if not isinstance(value, str) or len(value) > longest or not set(value) <= set(printable):
            raise InputError(f"{what} must be a text of at most {longest} characters of ASCII, got {value!r}")
        return value

    return Converted(spaces.Text(max_length=longest, min_length=0, charset=printable), from_old, to_old)


def _nested(old: Any, what: str) -> Converted:
    """A Dict or a Tuple."""
    is_dict = isinstance(old.spaces, Mapping)
    parts = {str(key): space for key, space in old.spaces.items()} if is_dict else dict(enumerate(old.spaces))
    inner = {key: convert_space(space, f"{what}[{key!r}]") for key, space in parts.items()}

    def converted(value: Any, back: bool) -> Any:
        if is_dict:
            fits = isinstance(value, Mapping) and value.keys() >= inner.keys()
            fits = fits and not (back and value.keys() - inner.keys())  # observations may have more than is declared
        else:
            fits = isinstance(value, Sequence | np.ndarray) and len(value) == len(inner)
        if not fits:
            found = sorted(map(str, value)) if isinstance(value, Mapping) else repr(value)
            raise InputError(f"{what} must have the entries {list(inner)}, which its space declares; got {found}")
        entries: Any = value
        parts = {key: (each.to_old if back else each.from_old)(entries[key]) for key, each in inner.items()}
        return parts if is_dict else tuple(parts.values())

    inner_spaces: Any = {key: each.space for key, each in inner.items()}
    space = spaces.Dict(inner_spaces) if is_dict else spaces.Tuple(list(inner_spaces.values()))
    return Converted(space, partial(converted, back=False), partial(converted, back=True))


# In this order: MineRL's Enum and DiscreteRange derive from Discrete.
_KINDS: dict[str, Callable[[Any, str], Converted]] = {
    "Enum": _enum,
    "Dict": _nested,
    "Tuple": _nested,
    "Box": _numbers,
    "Discrete": _discrete,
    "MultiDiscrete": _numbers,
    "MultiBinary": _numbers,
    "Text": _text,
}
