"""What the stand-in takes from the mission that the real client sends: sizes, inventory, rewards and the time limit.

Reading the mission's XML, instead of knowing the task's name, keeps the stand-in honest: a changed environment
specification changes the stand-in's episode as it would change the game's.
"""

import xml.etree.ElementTree as ET
from dataclasses import dataclass


@dataclass(frozen=True)
class ItemReward:
    """A reward for each `amount` of an item; a sparse one only the first time."""

    type: str
    amount: int
    reward: float
    sparse: bool


@dataclass(frozen=True)
class Mission:
    """One episode's description, as far as the stand-in plays it."""

    width: int
    height: int
    #: Ticks until the server quits; None for an episode without an end.
    time_limit_ticks: int | None
    #: (slot, type, metadata, quantity) of what the player starts with.
    inventory: tuple[tuple[int, str, int, int], ...]
    item_rewards: tuple[ItemReward, ...]
    #: The observations asked for, by the handler's name in the XML.
    observations: frozenset[str]

    @classmethod
    def from_xml(cls, xml: str) -> "Mission":
        """Read a ``<MissionInit>`` or ``<Mission>`` document; a ValueError if it is not XML, or has no picture size."""
        try:
            root = ET.fromstring(xml)
        except ET.ParseError as error:
            raise ValueError(f"the mission is not XML: {error}") from error
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]  # without the namespace
        video = root.find(".//VideoProducer")
        if video is None:
            raise ValueError("the mission asks for no picture (no VideoProducer)")
        time_up = root.find(".//ServerQuitFromTimeUp")
        ms_per_tick = int(root.findtext(".//MsPerTick", "50"))
        rewards = [
            ItemReward(
                item.get("type", ""),
                int(item.get("amount", "1")),
                float(item.get("reward", "0")),
                handler.get("sparse") == "true",
            )
            for kind in ("RewardForPossessingItem", "RewardForCollectingItem")
            for handler in root.iter(kind)
            for item in handler.iter("Item")
        ]
        return cls(
            width=int(video.findtext("Width", "64")),
            height=int(video.findtext("Height", "64")),
            time_limit_ticks=None if time_up is None else int(float(time_up.get("timeLimitMs", "0"))) // ms_per_tick,
            inventory=tuple(
                (int(i.get("slot", "0")), i.get("type", ""), int(i.get("metadata", "0")), int(i.get("quantity", "1")))
                for i in root.findall(".//AgentStart/Inventory/InventoryObject")
            ),
            item_rewards=tuple(rewards),
            observations=frozenset(e.tag for e in root.iter() if e.tag.startswith("ObservationFrom")),
        )
