"""The little world behind the stand-in: a flat plane with trees, a player, an inventory, rewards and a time limit.

It is deterministic given its seed and the commands. There is just enough of it that chopping needs aim and patience.
"""

import json
import math
import random
import xml.etree.ElementTree as ET
from dataclasses import dataclass

from .picture import EYES, TRUNK_HEIGHT, Painter

#: How near a player's middle can come to a trunk's, in metres.
TOUCH = 0.8
SLOTS = 41  # 36 of the main inventory, 4 of armor, the off hand
#: Which slot Malmo shows as which piece of equipment.
EQUIPMENT = {"mainhand": 0, "offhand": 5, "feet": 1, "legs": 2, "chest": 3, "head": 4}


@dataclass(frozen=True)
class WorldSettings:
    """How hard the world is; the defaults let a random agent get a log now and then, and a good one many."""

    #: Ticks of attack in a row, on the same trunk, for a log.
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
    def easy(cls) -> "WorldSettings":
        """A task that PPO learns within some 10,000 steps: turn to the only trunk, which is in reach, and attack.

        Each hit is a log, after which the trunk stands elsewhere, but always in the picture: with trunks all around,
        turning and hitting blindly would earn half of what a seeing policy does.
        """
        return cls(
            hits_per_log=1,
            logs_per_tree=1,
            trees=1,
            tree_distance=(2.0, 2.6),
            tree_bearing=35.0,
            walk=0.0,
            pitch_limit=25.0,
            time_limit_ticks=60,
        )


class Mission:
    """What the stand-in takes from the mission that the real client sends; a ValueError if it has no picture size.

    Reading the XML, instead of knowing the task's name, keeps the stand-in honest: a changed environment specification
    changes the stand-in's episode as it would change the game's.
    """

    def __init__(self, xml: str) -> None:
        try:
            root = ET.fromstring(xml)
        except ET.ParseError as error:
            raise ValueError(f"the mission is not XML: {error}") from error
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]  # without the namespace
        video, time_up = root.find(".//VideoProducer"), root.find(".//ServerQuitFromTimeUp")
        if video is None:
            raise ValueError("the mission asks for no picture (no VideoProducer)")
        self.width, self.height = (int(video.findtext(name, "64")) for name in ("Width", "Height"))
        #: Ticks until the server quits; None for an episode without an end.
        self.time_limit_ticks: int | None = None
        if time_up is not None:
            ms_per_tick = int(root.findtext(".//MsPerTick", "50"))
            self.time_limit_ticks = int(float(time_up.get("timeLimitMs", "0"))) // ms_per_tick
        #: (type, metadata, quantity) of what the player starts with, by slot.
        self.inventory = {
            int(item.get("slot", "0")): (
                item.get("type", ""),
                int(item.get("metadata", "0")),
                int(item.get("quantity", "1")),
            )
            for item in root.findall(".//AgentStart/Inventory/InventoryObject")
        }
        #: (amount, reward, sparse): a reward for each `amount` of logs; a sparse one only the first time.
        self.log_rewards = [
            (int(item.get("amount", "1")), float(item.get("reward", "0")), handler.get("sparse") == "true")
            for kind in ("RewardForPossessingItem", "RewardForCollectingItem")
            for handler in root.iter(kind)
            for item in handler.iter("Item")
            if item.get("type") == "log"
        ]
        #: The observations asked for, by the handler's name.
        self.observations = {e.tag for e in root.iter() if e.tag.startswith("ObservationFrom")}


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
    """One episode. `act` runs a tick; `frame`, `info`, `reward` and `done` are its outcome."""

    def __init__(self, xml: str, seed: int | None = None, settings: WorldSettings | None = None) -> None:
        self.mission = Mission(xml)
        self.seed = random.SystemRandom().getrandbits(32) if seed is None else seed
        self.settings = settings or WorldSettings()
        self._rng = random.Random(str(self.seed))  # of the number itself, Random would drop the sign
        self.painter = Painter(self.mission.width, self.mission.height, self._rng)
        self.x = self.z = 0.0
        self.yaw, self.pitch = self._rng.uniform(-180.0, 180.0), 0.0
        self.slots = [self.mission.inventory.get(slot, ("air", 0, 0)) for slot in range(SLOTS)]
        self._slots_json: str | None = None  # kept until something changes
        self.trees = [self._grow() for _ in range(self.settings.trees)]
        self.ticks = 0
        self.limit = self.settings.time_limit_ticks or self.mission.time_limit_ticks
        self.reward, self.done = 0.0, False
        self._keys: dict[str, int] = {}
        self._logs = 0
        self._hits, self._target = 0, None

    def _grow(self) -> Tree:
        width = self.settings.tree_bearing
        angle = math.radians(self.yaw + self._rng.uniform(-width, width))
        distance = self._rng.uniform(*self.settings.tree_distance)
        x, z = self.x - distance * math.sin(angle), self.z + distance * math.cos(angle)
        return Tree(x, z, self.settings.logs_per_tree)

    def _bearing_and_distance(self, tree: Tree) -> tuple[float, float]:
        """Where a tree is relative to the view, in degrees (positive is to the right), and how far away."""
        bearing = wrap(math.degrees(math.atan2(self.x - tree.x, tree.z - self.z)) - self.yaw)
        return bearing, math.hypot(tree.x - self.x, tree.z - self.z)

    def target(self) -> Tree | None:
        """The trunk that an attack would hit."""
        best, best_distance = None, self.settings.reach
        for tree in self.trees:
            bearing, distance = self._bearing_and_distance(tree)
            if distance <= best_distance and abs(bearing) <= self.settings.aim:
                low = math.degrees(math.atan2(-EYES, distance))
                high = math.degrees(math.atan2(TRUNK_HEIGHT - EYES, distance))
                if low <= -self.pitch <= high:
                    best, best_distance = tree, distance
        return best

    def act(self, commands: str) -> None:
        """Run one tick under the commands, one a line as the client sends them."""
        self.reward = 0.0
        for line in commands.split("\n"):
            verb, _, rest = line.partition(" ")
            if verb == "camera":
                pitch, yaw = (float(number) for number in rest.split())
                if math.isfinite(pitch) and math.isfinite(yaw):
                    limit = self.settings.pitch_limit
                    self.pitch = max(-limit, min(limit, self.pitch + pitch))
                    self.yaw = wrap(self.yaw + yaw)
            elif rest.lstrip("-").isdigit():
                self._keys[verb] = int(rest)  # a key stays down until the client lifts it
        self._move()
        if self._keys.get("attack"):
            self._attack()
        else:
            self._hits, self._target = 0, None
        self.ticks += 1
        self.done = self.done or bool(self.limit and self.ticks >= self.limit)

    def _move(self) -> None:
        keys = self._keys.get
        ahead, right = (keys("forward", 0) - keys("back", 0), keys("right", 0) - keys("left", 0))
        if not self.settings.walk or (not ahead and not right):
            return
        angle, step = (math.radians(self.yaw), self.settings.walk / math.hypot(ahead, right))
        x = self.x + step * (-ahead * math.sin(angle) - right * math.cos(angle))
        z = self.z + step * (ahead * math.cos(angle) - right * math.sin(angle))
        for tree in self.trees:  # a trunk is solid, but one may always walk away from it
            gap = math.hypot(tree.x - x, tree.z - z)
            if gap < TOUCH and gap < math.hypot(tree.x - self.x, tree.z - self.z):
                return
        self.x, self.z = x, z

    def _attack(self) -> None:
        tree = self.target()
        self._hits = self._hits + 1 if tree is self._target else 1
        self._target = tree
        if tree is None or self._hits < self.settings.hits_per_log:
            return
        self._hits = 0
        tree.logs -= 1
        if tree.logs <= 0:
            self.trees[self.trees.index(tree)] = self._grow()
        for slot, (kind, metadata, quantity) in enumerate(self.slots):
            if quantity == 0 or (kind == "log" and quantity < 64):
                self.slots[slot], self._slots_json = ("log", metadata, quantity + 1), None
                break
        self._logs += 1
        for amount, reward, sparse in self.mission.log_rewards:
            if self._logs == amount if sparse else self._logs % amount == 0:
                self.reward += reward

    def frame(self) -> bytes:
        """The picture, bottom row first."""
        return self.painter.draw(self.yaw, self.pitch, [self._bearing_and_distance(tree) for tree in self.trees])

    def info(self) -> str:
        """The observations that the mission asks for, as JSON in the form of Malmo's Java code.

        Every slot is listed, an empty one as air, and the equipment has ``currentDamage`` (minerl's client looks for
        ``damage``, does not find it, and shows 0).
        """
        asked = self.mission.observations
        if self._slots_json is None:
            stacks = [
                {"type": kind, "metadata": metadata, "quantity": quantity, "index": i, "inventory": "inventory"}
                for i, (kind, metadata, quantity) in enumerate(self.slots)
            ]
            members: dict[str, object] = {}
            if "ObservationFromFullInventory" in asked:
                sizes = [{"name": "inventory", "size": SLOTS}]
                members |= {"inventory": stacks, "inventories_available": sizes, "current_item_index": 0}
            if "ObservationFromEquippedItem" in asked:
                held = {name: stacks[slot] for name, slot in EQUIPMENT.items()}
                members["equipped_items"] = {
                    name: {**stack, "currentDamage": 0, "maxDamage": -1} if stack["quantity"] else {}
                    for name, stack in held.items()
                }
            if "ObservationFromDamage" in asked:
                members |= {"is_dead": False, "living_death_event_fired": False, "damage_source": {}}
            self._slots_json = json.dumps(members)
        if "ObservationFromCompass" not in asked:
            return self._slots_json
        compass = {"compassAngle": -self.yaw, "hasCompass": True, "distanceToCompassTarget": 64.0}
        return json.dumps({**json.loads(self._slots_json), **compass})
