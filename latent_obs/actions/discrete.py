"""`DiscreteActions`: a table of whole Dict actions, chosen from by number."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from latent_obs.actions.common import dict_space, is_camera, is_key, noop_action, value_of
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
        if not isinstance(actions, Mapping | Sequence) or isinstance(actions, str) or not actions:
            raise InputError(f"actions must be a list of mappings or a mapping of named ones, got {actions!r}")
        named = actions.items() if isinstance(actions, Mapping) else [("", changes) for changes in actions]
        self._table, names, effects = [noop], [NOOP], [_numbers(space, noop)]
        for i, (name, changes) in enumerate(named, 1):
            what = f"action {i}" + (f" ({name!r})" if name else "")
            if not isinstance(name, str) or not isinstance(changes, Mapping):
                raise InputError(f"{what} must be a mapping such as {{'forward': 1}}, got {changes!r}")
            entries = _entries(space, changes, what)
            self._table.append({**noop, **self.always, **entries})
            names.append(name or _name(space, entries or self.always, noop, self.always))
            effects.append(_numbers(space, self._table[i]))
            first = min(names.index(names[i]), effects.index(effects[i]))
            if first < i:
                raise InputError(
                    f"{what}, {dict(changes)}, does the same or has the same name as action {first} "
                    f"({names[first]!r}); leave it out, or name it"
                )
        self.names = tuple(names)
        self.action_space: spaces.Discrete = spaces.Discrete(len(names))

    @property
    def actions(self) -> list[dict[str, Any]]:
        """A fresh copy of the table: the whole Dict action behind each number."""
        return [copy.deepcopy(action) for action in self._table]

    def action(self, action: Any) -> dict[str, Any]:
        """A fresh copy of the Dict action with a number; `InputError` for a number outside the action space."""
        return copy.deepcopy(self._table[value_of(self.action_space, action, "the action")])


def held(always: Mapping[str, Any] | Sequence[str]) -> dict[str, Any]:
    """The part that is always done, as a mapping; a text such as "attack+forward" names keys."""
    if isinstance(always, Mapping):
        return dict(always)
    keys = [key.strip() for key in always.split("+")] if isinstance(always, str) and always else always
    if not isinstance(keys, Sequence) or not all(isinstance(key, str) and key for key in keys):
        raise InputError(f"always must be names of keys, such as 'attack+forward', or a mapping, got {always!r}")
    return dict.fromkeys(keys, 1)


def _entries(space: spaces.Dict, changes: Mapping[str, Any], what: str) -> dict[str, Any]:
    for key in changes:
        if key not in space.spaces:
            raise InputError(f"{what} has the entry {key!r}; the action space has {', '.join(space.spaces)}")
    return {key: value_of(space.spaces[key], value, f"{what}: {key}") for key, value in changes.items()}


def _numbers(space: spaces.Space[Any], value: Any) -> list[float]:
    """The numbers in a value of a space; equal values have equal ones."""
    return np.asarray(spaces.flatten(space, value)).tolist()


def _name(space: spaces.Dict, entries: Mapping[str, Any], noop: Mapping[str, Any], always: Mapping[str, Any]) -> str:
    """The entries in words; one that equals the no-op says nothing, unless it releases a key that is always held."""
    words: list[str] = []
    for key, value in entries.items():
        part = space.spaces[key]
        if key not in always and _numbers(part, value) == _numbers(part, noop[key]):
            continue
        if is_key(part):
            words.append(key if value else f"no {key}")
        elif isinstance(part, Enum):
            words.append(f"{key} {part.names[value]}")
        elif is_camera(key, part):
            pitch, yaw = map(float, value)
            turns = [f"{'down' if pitch > 0 else 'up'} {abs(pitch):g}"] if pitch else []
            turns += [f"{'right' if yaw > 0 else 'left'} {abs(yaw):g}"] if yaw else []
            words.append(" ".join([key, *(turns or ["still"])]))
        else:
            words.append(f"{key} {value.tolist() if isinstance(value, np.ndarray) else value}")
    return "+".join(words) or "nothing held"
