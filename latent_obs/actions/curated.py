"""Curated actions for MineRL's families of tasks: small tables in which each action is there for a reason.

actions, always = curated_actions(env.action_space, env_id="MineRLTreechop-v0")
env = DiscreteActions(env, actions, always=always)
"""

from collections.abc import Callable
from typing import Any

from gymnasium import spaces

from latent_obs.actions.common import CAMERA, dict_space, is_camera, is_key
from latent_obs.envs.old_gym import Enum
from latent_obs.util.errors import InputError, check_choice

#: Names of an Enum's entries that stand for nothing to craft, place or equip; the game ignores them.
_NOTHING = ("none", "other")
Entry = dict[str, Any]


def curated_actions(
    space: spaces.Space[Any],
    family: str | None = None,
    env_id: str | None = None,
    camera_step_degrees: float = 10.0,
) -> tuple[list[Entry], tuple[str, ...]]:
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
    parts = _Parts(space, camera_step_degrees)
    actions, always = _FAMILIES[family](parts)
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
    return next((family for name, family in _BY_NAME.items() if name in env_id), None)


class _Parts:
    """Actions made of the entries that an action space has; a list is empty where it lacks one."""

    def __init__(self, space: spaces.Space[Any], camera_step_degrees: float) -> None:
        self.inner = dict_space(space, "curated_actions").spaces
        self.keys = [key for key, part in self.inner.items() if is_key(part)]
        camera = self.inner.get(CAMERA)
        self.camera = camera if isinstance(camera, spaces.Box) and is_camera(CAMERA, camera) else None
        self.step, reach = camera_step_degrees, 180.0
        if self.camera is not None:
            reach = float(min(self.camera.high.min(), -self.camera.low.max()))
        if not 0 < self.step <= reach:
            raise InputError(f"camera_step_degrees must be above 0 and at most {reach:g}, got {self.step!r}")

    def held(self, *keys: str) -> list[Entry]:
        """One action that holds keys together."""
        return [dict.fromkeys(keys, 1)] if set(keys) <= set(self.keys) else []

    def each(self, *keys: str) -> list[Entry]:
        """One action per key."""
        return [action for key in keys for action in self.held(key)]

    def turns(self) -> list[Entry]:
        """Turns to the left and right, up and down; pitch grows downwards and yaw to the right."""
        if self.camera is None:
            return []
        step = self.step
        return [{CAMERA: turn} for turn in ((0.0, -step), (0.0, step), (-step, 0.0), (step, 0.0))]

    def items(self, *keys: str, **with_them: int) -> list[Entry]:
        """One action per name of these Enums that stands for something, with keys held too where there are such."""
        found = [(key, part) for key in keys if isinstance(part := self.inner.get(key), Enum)]
        also = {key: value for key, value in with_them.items() if key in self.keys}
        return [
            {**also, key: name}
            for key, part in found
            for i, name in enumerate(part.names)
            if i != part.default and name not in _NOTHING
        ]

    def numbers(self) -> list[Entry]:
        """One action per other value of the entries that are neither keys nor Enums but Discrete."""
        return [
            {key: value}
            for key, part in self.inner.items()
            if isinstance(part, spaces.Discrete) and not isinstance(part, Enum) and key not in self.keys
            for value in range(int(part.start), int(part.start + part.n))
            if value != min(max(0, part.start), part.start + part.n - 1)
        ]


def _treechop(parts: _Parts) -> tuple[list[Entry], tuple[str, ...]]:
    always = ("attack",) if "attack" in parts.keys else ()
    plain: list[Entry] = [{}] if always else []
    return plain + parts.held("forward") + parts.held("forward", "jump") + parts.turns(), always


def _navigate(parts: _Parts) -> tuple[list[Entry], tuple[str, ...]]:
    fast = parts.held("forward", "sprint") or parts.held("forward")
    leap = parts.held("forward", "jump", "sprint") or parts.held("forward", "jump")
    return fast + leap + parts.turns() + parts.items("place", jump=1) + parts.held("attack"), ()


def _obtain(parts: _Parts) -> tuple[list[Entry], tuple[str, ...]]:
    walk = parts.each("forward", "back", "left", "right", "jump") + parts.held("forward", "jump")
    dig = parts.held("attack") + parts.held("forward", "attack")
    return walk + dig + parts.turns() + parts.items("craft", "nearbyCraft", "nearbySmelt", "place", "equip"), ()


def _basalt(parts: _Parts) -> tuple[list[Entry], tuple[str, ...]]:
    walk = parts.each("forward", "back", "left", "right", "jump")
    walk += parts.held("forward", "jump") + parts.held("forward", "sprint")
    hands = parts.each("attack", "use") + parts.held("jump", "use")
    return walk + hands + parts.turns() + parts.items("equip"), ()


def _basic(parts: _Parts) -> tuple[list[Entry], tuple[str, ...]]:
    keys = parts.each(*parts.keys) + parts.held("forward", "jump")
    return keys + parts.turns() + parts.items(*parts.inner) + parts.numbers(), ()


_FAMILIES: dict[str, Callable[[_Parts], tuple[list[Entry], tuple[str, ...]]]] = {
    "treechop": _treechop,
    "navigate": _navigate,
    "obtain": _obtain,
    "basalt": _basalt,
    "basic": _basic,
}
#: The families that `curated_actions` knows.
FAMILIES = tuple(_FAMILIES)
_BY_NAME = {"Treechop": "treechop", "Navigate": "navigate", "Obtain": "obtain", "Basalt": "basalt"}
