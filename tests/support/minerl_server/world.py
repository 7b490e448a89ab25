"""The little world behind the stand-in: a flat plane with trees, a player, an inventory, rewards and an end.

It is deterministic given its seed and the commands, so that two clients that do the same see the same. It is no
Minecraft: there is just enough of it that chopping needs aim and patience, that a compass leads somewhere and that
items make items.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from typing import Any

from .inventory import RECIPES, Inventory
from .mission import Mission
from .picture import EYES, TRUNK_HEIGHT, Painter

#: How near a player's middle can come to a block's.
TOUCH = 0.8
#: What digging yields with what in hand, over and over; the ground is dirt to everything else.
DIG = {
    "wooden_pickaxe": ("cobblestone",),
    "stone_pickaxe": ("cobblestone", "iron_ore", "coal"),
    "iron_pickaxe": ("cobblestone", "iron_ore", "diamond"),
}
DIG_PITCH = 50.0
THROW_EVERY = 4  # ticks between two snowballs


@dataclass(frozen=True)
class WorldSettings:
    """How hard the world is; the defaults let a random agent get a log now and then, and a good one many."""

    #: Ticks of attack in a row, on the same trunk, for a log (or a block of ground).
    hits_per_log: int = 4
    #: Logs in a tree; then it is gone and another stands elsewhere.
    logs_per_tree: int = 4
    trees: int = 10
    #: How far from the player a tree may appear, in metres.
    tree_distance: tuple[float, float] = (2.0, 14.0)
    #: How far from where the player looks a tree may appear, in degrees.
    tree_bearing: float = 180.0
    #: How near a trunk has to be, in metres, and how near the middle of the picture, in degrees, to be hit.
    reach: float = 3.0
    aim: float = 12.0
    #: Metres a tick; 0 roots the player to the spot.
    walk: float = 0.2
    #: How far up and down the player can look, in degrees.
    pitch_limit: float = 90.0
    #: Ticks until the episode ends; None takes the mission's.
    time_limit_ticks: int | None = None

    @classmethod
    def easy(cls, **changes: Any) -> WorldSettings:
        """A task that PPO learns within some 10,000 steps: turn to the only trunk, which is in reach, and attack.

        Each hit is a log, after which the trunk stands elsewhere. It is always in the picture, because it would prove
        little about seeing if it were not: with trunks within 90 degrees, turning and hitting blindly earns half of
        what a seeing policy does, and with trunks within 35 a tenth.
        """
        easy = cls(
            hits_per_log=1,
            logs_per_tree=1,
            trees=1,
            tree_distance=(2.0, 2.6),
            tree_bearing=35.0,
            walk=0.0,
            pitch_limit=25.0,
            time_limit_ticks=60,
        )
        return replace(easy, **changes)


@dataclass
class Tree:
    """A trunk on the plane."""

    x: float
    z: float
    logs: int


def wrap(degrees: float) -> float:
    """The same direction within -180 and 180."""
    return (degrees + 180.0) % 360.0 - 180.0


class World:
    """One episode. `act` runs a tick; `frame`, `info`, `reward` and `done` say how it went."""

    def __init__(self, mission: Mission, seed: int, settings: WorldSettings | None = None) -> None:
        self.mission, self.seed = mission, seed
        self.settings = settings or WorldSettings()
        self._rng = random.Random(str(seed))  # of the number itself, Random would drop the sign
        self.painter = Painter(mission.width, mission.height, mission.channels, self._rng)
        self.x = self.y = self.z = 0.0
        self._rise = 0.0
        self.yaw, self.pitch = self._rng.uniform(-180.0, 180.0), 0.0
        self.inventory = Inventory()
        for slot, item, metadata, quantity in mission.inventory:
            self.inventory.put(slot, item, metadata, quantity)
        self.goal: tuple[float, float] | None = None
        if mission.goal_block:
            self.goal = self._place(self._rng.uniform(-180.0, 180.0), mission.goal_distance)
        self.trees = [self._grow() for _ in range(self.settings.trees)]
        self.ticks = 0
        self.limit = self.settings.time_limit_ticks or mission.time_limit_ticks
        self.reward, self.done = 0.0, False
        self._keys: dict[str, int] = {}
        self._possessed: dict[str, int] = {}
        self._most_possessed: dict[str, int] = {}
        self._touched: set[str] = set()
        self._hits, self._target = 0, None
        self._dug = 0
        self._throw_again = 0
        self._goal_distance = self._distance(self.goal) if self.goal else 0.0

    @classmethod
    def from_xml(cls, xml: str, seed: int | None = None, settings: WorldSettings | None = None) -> World:
        """The world of a mission document; without a seed, a fresh random one.

        Raises:
            ValueError: If the mission cannot be read.
        """
        return cls(Mission.from_xml(xml), random.SystemRandom().getrandbits(32) if seed is None else seed, settings)

    # ---- what there is ----

    def _place(self, yaw: float, distance: float) -> tuple[float, float]:
        angle = math.radians(yaw)
        return self.x - distance * math.sin(angle), self.z + distance * math.cos(angle)

    def _grow(self) -> Tree:
        near, far = self.settings.tree_distance
        width = self.settings.tree_bearing
        x, z = self._place(self.yaw + self._rng.uniform(-width, width), self._rng.uniform(near, far))
        return Tree(x, z, self.settings.logs_per_tree)

    def _distance(self, place: tuple[float, float]) -> float:
        return math.hypot(place[0] - self.x, place[1] - self.z)

    def bearing(self, x: float, z: float) -> float:
        """Where a place lies relative to the view, in degrees; positive is to the right."""
        return wrap(math.degrees(math.atan2(self.x - x, z - self.z)) - self.yaw)

    def target(self) -> Tree | None:
        """The trunk that an attack would hit."""
        best, best_distance = None, self.settings.reach
        for tree in self.trees:
            distance = math.hypot(tree.x - self.x, tree.z - self.z)
            if distance <= best_distance and abs(self.bearing(tree.x, tree.z)) <= self.settings.aim:
                eye = EYES + self.y
                low, high = (
                    math.degrees(math.atan2(-eye, distance)),
                    math.degrees(math.atan2(TRUNK_HEIGHT - eye, distance)),
                )
                if low <= -self.pitch <= high:
                    best, best_distance = tree, distance
        return best

    # ---- a tick ----

    def act(self, commands: str) -> None:
        """Runs one tick under the commands, one a line as the client sends them."""
        self.reward = 0.0
        for line in commands.split("\n"):
            verb, _, rest = line.partition(" ")
            self._command(verb, rest)
        self._move()
        if self._keys.get("attack"):
            self._attack()
        else:
            self._hits, self._target = 0, None
        self._use()
        self._goal()
        self.ticks += 1
        if self.limit and self.ticks >= self.limit:
            self.done = True

    def _command(self, verb: str, rest: str) -> None:
        if verb == "camera":
            pitch, yaw = (float(number) for number in rest.split())
            if math.isfinite(pitch) and math.isfinite(yaw):
                limit = self.settings.pitch_limit
                self.pitch = max(-limit, min(limit, self.pitch + pitch))
                self.yaw = wrap(self.yaw + yaw)
        elif verb in RECIPES:
            made = self.inventory.make(verb, rest)
            if made:
                self._gain(rest, made)
                self.done = self.done or rest in self.mission.quit_crafting
        elif verb == "place":
            if self.inventory.remove(rest):
                self._possessed[rest] = self._possessed.get(rest, 0) - 1
        elif verb == "equip":
            self.inventory.equip(rest)
        elif rest.lstrip("-").isdigit():
            self._keys[verb] = int(rest)  # a key stays down until the client lifts it

    def _move(self) -> None:
        keys = self._keys.get
        step = self.settings.walk
        if not step:
            return
        if keys("jump") and self.y <= 0.0:
            self._rise = 0.42
        if self._rise or self.y > 0.0:
            self.y = max(0.0, self.y + self._rise)
            self._rise = (self._rise - 0.08) * 0.98 if self.y > 0.0 else 0.0
        ahead, right = keys("forward", 0) - keys("back", 0), keys("right", 0) - keys("left", 0)
        if not ahead and not right:
            return
        step *= (1.3 if keys("sprint") and ahead > 0 else 1.0) * (0.3 if keys("sneak") else 1.0)
        angle, length = math.radians(self.yaw), math.hypot(ahead, right)
        x = self.x + step * (-ahead * math.sin(angle) - right * math.cos(angle)) / length
        z = self.z + step * (ahead * math.cos(angle) - right * math.sin(angle)) / length
        blocks = [(tree.x, tree.z) for tree in self.trees] + ([self.goal] if self.goal else [])
        for block_x, block_z in blocks:  # a trunk is solid, but one may always walk away from it
            gap = math.hypot(block_x - x, block_z - z)
            if gap < TOUCH and gap < math.hypot(block_x - self.x, block_z - self.z):
                return
        self.x, self.z = x, z

    def _attack(self) -> None:
        tree = self.target()
        if tree is None and self.pitch < DIG_PITCH:
            self._hits, self._target = 0, None
            return
        self._hits = self._hits + 1 if tree is self._target else 1
        self._target = tree
        if self._hits < self.settings.hits_per_log:
            return
        self._hits = 0
        if tree is None:
            yields = DIG.get(self.inventory.in_hand, ("dirt",))
            item = yields[self._dug % len(yields)]
            self._dug += 1
        else:
            item = "log"
            tree.logs -= 1
            if tree.logs <= 0:
                self.trees[self.trees.index(tree)] = self._grow()
        self.inventory.add(item, 1)
        self._gain(item, 1)

    def _use(self) -> None:
        self._throw_again = max(0, self._throw_again - 1)
        if self._keys.get("use") and not self._throw_again and self.inventory.in_hand == "snowball":
            self.inventory.remove("snowball")
            self._throw_again = THROW_EVERY

    def _gain(self, item: str, quantity: int) -> None:
        """Rewards and ends for what was collected or made.

        As Malmo counts, the rewards go by the most ever possessed, so that placing and picking up again earns nothing.
        """
        before = self._most_possessed.get(item, 0)
        now = self._possessed.get(item, 0) + quantity
        for rule in self.mission.item_rewards:
            if rule.type == item:
                if rule.sparse:
                    self.reward += rule.reward if before < rule.amount <= now else 0.0
                else:
                    self.reward += rule.reward * max(0, now // rule.amount - before // rule.amount)
        self._possessed[item] = now
        self._most_possessed[item] = max(before, now)
        if now >= self.mission.quit_possessing.get(item, now + 1):
            self.done = True

    def _goal(self) -> None:
        if self.goal is None:
            return
        distance = self._distance(self.goal)
        self.reward += self.mission.reward_per_block * (self._goal_distance - distance)
        self._goal_distance = distance
        block = self.mission.goal_block or ""
        if distance < TOUCH + self.settings.walk + 0.05:
            if block not in self._touched:
                self.reward += self.mission.touch_rewards.get(block, 0.0)
            self._touched.add(block)
            self.done = self.done or block in self.mission.quit_touching

    # ---- what the client is sent ----

    def frame(self) -> bytes:
        """The picture, bottom row first."""
        trunks = [(self.bearing(tree.x, tree.z), math.hypot(tree.x - self.x, tree.z - self.z)) for tree in self.trees]
        goal = (self.bearing(*self.goal), self._distance(self.goal)) if self.goal else None
        return self.painter.draw(self.yaw, self.pitch, EYES + self.y, trunks, goal)

    def info(self) -> str:
        """The observations that the mission asks for, as JSON."""
        asked = self.mission.observations
        members = []
        if "ObservationFromDamage" in asked:
            members.append('"is_dead": false, "living_death_event_fired": false, "damage_source": {}')
        if "ObservationFromFullInventory" in asked or "ObservationFromEquippedItem" in asked:
            members.append(
                self.inventory.json("ObservationFromFullInventory" in asked, "ObservationFromEquippedItem" in asked)
            )
        if "ObservationFromCompass" in asked:
            angle, distance = (self.bearing(*self.goal), self._distance(self.goal)) if self.goal else (0.0, 0.0)
            has = str(self.inventory.count("compass") > 0).lower()
            members.append(f'"compassAngle": {angle}, "hasCompass": {has}, "distanceToCompassTarget": {distance}')
        return "{" + ", ".join(members) + "}"
