"""What the stand-in takes from the mission that the real client sends: sizes, inventory, rewards and ends.

The client describes each episode in Malmo's mission XML. Reading it, rather than being told the task's name, keeps the
stand-in honest: a changed environment specification changes the stand-in's episode as it would change the game's.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ItemReward:
    """A reward for coming to possess an item; ``amount`` is how many make one reward."""

    type: str
    amount: int
    reward: float
    #: Only the first time that the amount is reached, instead of each time.
    sparse: bool


@dataclass(frozen=True)
class Mission:
    """One episode's description, as far as the stand-in plays it."""

    width: int = 64
    height: int = 64
    #: Four when the mission asks for depth; the stand-in's depth is a constant.
    channels: int = 3
    #: Ticks until the server quits; None for an episode without an end.
    time_limit_ticks: int | None = None
    #: (slot, type, metadata, quantity) of what the player starts with.
    inventory: tuple[tuple[int, str, int, int], ...] = ()
    item_rewards: tuple[ItemReward, ...] = ()
    touch_rewards: dict[str, float] = field(default_factory=dict)
    reward_per_block: float = 0.0
    quit_possessing: dict[str, int] = field(default_factory=dict)
    quit_crafting: frozenset[str] = frozenset()
    quit_touching: frozenset[str] = frozenset()
    #: The block that a navigation mission hides, and how far away.
    goal_block: str | None = None
    goal_distance: float = 64.0
    #: The observations asked for, by the handler's name in the XML.
    observations: frozenset[str] = frozenset()

    @classmethod
    def from_xml(cls, xml: str) -> Mission:
        """Reads a ``<MissionInit>`` or ``<Mission>`` document.

        Raises:
            ValueError: If the document is not XML, or has no picture size.
        """
        try:
            root = ET.fromstring(xml)
        except ET.ParseError as error:
            raise ValueError(f"the mission is not XML: {error}") from error
        for element in root.iter():  # the namespace says nothing here
            element.tag = element.tag.rpartition("}")[2]
        video = root.find(".//VideoProducer")
        if video is None:
            raise ValueError("the mission asks for no picture (no VideoProducer)")
        ms_per_tick = int(root.findtext(".//MsPerTick", "50"))
        time_up = root.find(".//ServerQuitFromTimeUp")
        random_place = root.find(".//randomPlacementProperties")
        distance = root.find(".//RewardForDistanceTraveledToCompassTarget")
        goal = None if random_place is None else (random_place.findtext("block") or "").strip() or None
        radius = "64" if random_place is None else random_place.findtext("maxRandomizedRadius", "64")
        return cls(
            width=int(video.findtext("Width", "64")),
            height=int(video.findtext("Height", "64")),
            channels=4 if video.get("want_depth") == "true" else 3,
            time_limit_ticks=None if time_up is None else int(float(time_up.get("timeLimitMs", "0"))) // ms_per_tick,
            inventory=tuple(
                (int(i.get("slot", "0")), i.get("type", ""), int(i.get("metadata", "0")), int(i.get("quantity", "1")))
                for i in root.findall(".//AgentStart/Inventory/InventoryObject")
            ),
            item_rewards=tuple(
                ItemReward(i.get("type", ""), int(i.get("amount", "1")), float(i.get("reward", "0")), sparse)
                for sparse, i in _reward_items(root)
            ),
            touch_rewards={
                b.get("type", ""): float(b.get("reward", "0"))
                for b in root.findall(".//RewardForTouchingBlockType/Block")
            },
            reward_per_block=0.0 if distance is None else float(distance.get("rewardPerBlock", "0")),
            quit_possessing={
                i.get("type", ""): int(i.get("amount", "1"))
                for i in root.findall(".//AgentQuitFromPossessingItem/Item")
            },
            quit_crafting=frozenset(i.get("type", "") for i in root.findall(".//AgentQuitFromCraftingItem/Item")),
            quit_touching=frozenset(b.get("type", "") for b in root.findall(".//AgentQuitFromTouchingBlockType/Block")),
            goal_block=goal,
            goal_distance=float(radius),
            observations=frozenset(e.tag for e in root.iter() if e.tag.startswith("ObservationFrom")),
        )


def _reward_items(root: ET.Element) -> Iterator[tuple[bool, ET.Element]]:
    """Each rewarded item with whether its handler is sparse."""
    for handler in root.iter("RewardForPossessingItem"):
        sparse = handler.get("sparse") == "true"
        for item in handler.iter("Item"):
            yield sparse, item
    for handler in root.iter("RewardForCollectingItem"):
        for item in handler.iter("Item"):
            yield False, item
