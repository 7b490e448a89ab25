"""`DiscreteActions`: a table of whole Dict actions, chosen from by number."""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from latent_obs.actions.common import (
    copy_action,
    dict_space,
    is_camera,
    is_key,
    noop_action,
    value_of,
    whole_number,
)
from latent_obs.envs.old_gym import Enum
from latent_obs.util.errors import InputError

#: Name of action 0.
NOOP = "noop"


class DiscreteActions(gym.ActionWrapper[Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Choose by number from a table of Dict actions; number 0 is always the environment's no-op, with nothing held.

    Args:
        env: An environment with a Dict action space.
        actions: Actions 1, 2, … as changes of the no-op: {"forward": 1, "jump": 1}, {"craft": "planks"},
            {"camera": (0, 10)}, the camera in degrees of (pitch, yaw): down and right are positive. A list, or a
            mapping from names to actions. An empty action does only what is always held.
        always: Part of every action but the no-op, unless the action overrides it: names of keys to hold, such as
            ("attack",) or "attack+sprint", or a mapping with values.

    Attributes:
        names: A name per action, such as "forward+jump", "camera right 10", "craft planks"; the first is "noop".
        noop: 0.

    Raises:
        InputError: The action space is no Dict; an action has an entry or a value outside the space, or does the same
            as another one or the no-op.

    Example:
        >>> env = gym.Env()
        >>> env.action_space = spaces.Dict(attack=spaces.Discrete(2), camera=spaces.Box(-180.0, 180.0, (2,)))
        >>> env = DiscreteActions(env, [{}, {"camera": (0, 10)}], always="attack")
        >>> env.action_space, env.names
        (Discrete(3), ('noop', 'attack', 'camera right 10'))
        >>> env.action(2)
        {'attack': 1, 'camera': array([ 0., 10.], dtype=float32)}
    """

    noop = 0

    def __init__(
        self,
        env: gym.Env[Any, Any],
        actions: Sequence[Mapping[str, Any]] | Mapping[str, Mapping[str, Any]],
        *,
        always: Mapping[str, Any] | Sequence[str] = (),
    ) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, actions=actions, always=always)
        gym.ActionWrapper.__init__(self, env)
        space = dict_space(env.action_space, "DiscreteActions")
        noop = noop_action(env)
        self.always = _entries(space, held(always), "always")
        for key in [] if isinstance(always, Mapping) else self.always:
            if not is_key(space.spaces[key]):
                raise InputError(f"always: {key!r} is no key but {space.spaces[key]}; give it a value: {{{key!r}: …}}")
        table, names = [noop], [NOOP]
        for i, (name, changes) in enumerate(_named(actions), 1):
            what = f"action {i}" + (f" ({name!r})" if name else "")
            entries = _entries(space, changes, what)
            action = {**copy_action(noop), **copy_action(self.always), **entries}
            name = name or _name(space, entries or self.always, noop, self.always)
            for j, other in enumerate(table):
                if _equal(other, action) or names[j] == name:
                    raise InputError(
                        f"{what}, {dict(changes)}, does the same or has the same name as action {j} ({names[j]!r}); "
                        "leave it out, or name it"
                    )
            table.append(action)
            names.append(name)
        self._table = table
        self.names = tuple(names)
        self.action_space: spaces.Discrete = spaces.Discrete(len(table))

    @property
    def actions(self) -> list[dict[str, Any]]:
        """A fresh copy of the table: the whole Dict action behind each number."""
        return [copy_action(action) for action in self._table]

    def action(self, action: Any) -> dict[str, Any]:
        """A fresh copy of the Dict action with a number; `InputError` for a number outside the action space."""
        chosen = self._table[whole_number(action, 0, len(self._table), "the action")]
        # Plain numbers need no copy: a third of copy_action's time.
        return {key: value if isinstance(value, int) else copy_action(value) for key, value in chosen.items()}


def held(always: Mapping[str, Any] | Sequence[str]) -> dict[str, Any]:
    """The part that is always done, as a mapping; a text such as "attack+forward" names keys."""
    if isinstance(always, Mapping):
        return dict(always)
    keys = [key.strip() for key in always.split("+")] if isinstance(always, str) and always else always
    if not isinstance(keys, Sequence) or not all(isinstance(key, str) and key for key in keys):
        raise InputError(f"always must be names of keys, such as 'attack+forward', or a mapping, got {always!r}")
    return dict.fromkeys(keys, 1)


def _named(actions: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """The actions with their names, an empty one where it is still to be made."""
    if not isinstance(actions, Mapping | Sequence) or isinstance(actions, str) or not actions:
        raise InputError(f"actions must be a list of mappings or a mapping of named ones, got {actions!r}")
    pairs = list(actions.items()) if isinstance(actions, Mapping) else [("", changes) for changes in actions]
    for i, (name, changes) in enumerate(pairs, 1):
        if not isinstance(name, str) or not isinstance(changes, Mapping):
            raise InputError(f"action {i} must be a mapping such as {{'forward': 1}}, got {name!r}: {changes!r}")
    return pairs


def _entries(space: spaces.Dict, changes: Mapping[str, Any], what: str) -> dict[str, Any]:
    unknown = [key for key in changes if key not in space.spaces]
    if unknown:
        raise InputError(f"{what} has the entry {unknown[0]!r}; the action space has {', '.join(space.spaces)}")
    return {key: value_of(space.spaces[key], value, f"{what}: {key}") for key, value in changes.items()}


def _name(space: spaces.Dict, entries: Mapping[str, Any], noop: Mapping[str, Any], always: Mapping[str, Any]) -> str:
    """The entries in words; one that equals the no-op says nothing, unless it releases a key that is always held."""
    named = [key for key, value in entries.items() if key in always or not _equal(value, noop[key])]
    return "+".join(_part(space.spaces[key], key, entries[key]) for key in named) or "nothing held"


def _part(space: spaces.Space[Any], key: str, value: Any) -> str:
    """One entry of an action in words."""
    if is_key(space):
        return key if value else f"no {key}"
    if isinstance(space, Enum):
        return f"{key} {space.names[value]}"
    if is_camera(key, space):
        pitch, yaw = (float(degrees) for degrees in value)
        words = [f"{'down' if pitch > 0 else 'up'} {abs(pitch):g}"] if pitch else []
        words += [f"{'right' if yaw > 0 else 'left'} {abs(yaw):g}"] if yaw else []
        return " ".join([key, *(words or ["still"])])
    return f"{key} {value.tolist() if isinstance(value, np.ndarray) else value}"


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_equal(value, other[key]) for key, value in one.items())
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(np.array_equal(one, other))
