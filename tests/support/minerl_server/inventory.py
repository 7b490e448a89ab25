"""The player's inventory: Minecraft's 41 slots, the recipes the missions need, and the JSON that the game sends.

The JSON is what Malmo's Java code writes, not what one would guess from the Python client: every slot is listed, an
empty one as air, and the equipment says ``currentDamage`` (upstream's client looks for ``damage``, does not find it,
and says 0).
"""

from __future__ import annotations

import json

SLOTS = 41  # 36 of the main inventory, 4 of armour, the off hand
MAIN_SLOTS = 36
#: Which slot Malmo shows as which piece of equipment; it takes slot numbers of the equipment for those of the
#: inventory.
EQUIPMENT = {"mainhand": 0, "offhand": 5, "feet": 1, "legs": 2, "chest": 3, "head": 4}

STACK_SIZE = {"snowball": 16, "water_bucket": 1, "bucket": 16, "compass": 64}
DURABILITY = {"wooden": 59, "stone": 131, "iron": 250, "golden": 32, "diamond": 1561}
TOOLS = ("axe", "pickaxe", "shovel", "hoe", "sword")

#: item: (how many, ingredients). "craft" needs nothing but the ingredients.
BY_HAND: dict[str, tuple[int, dict[str, int]]] = {
    "planks": (4, {"log": 1}),
    "stick": (4, {"planks": 2}),
    "crafting_table": (1, {"planks": 4}),
    "torch": (4, {"coal": 1, "stick": 1}),
}
#: "craftNearby"; the game wants a crafting table in view, the stand-in does not.
AT_TABLE: dict[str, tuple[int, dict[str, int]]] = {
    "furnace": (1, {"cobblestone": 8}),
    "wooden_axe": (1, {"planks": 3, "stick": 2}),
    "wooden_pickaxe": (1, {"planks": 3, "stick": 2}),
    "stone_axe": (1, {"cobblestone": 3, "stick": 2}),
    "stone_pickaxe": (1, {"cobblestone": 3, "stick": 2}),
    "iron_axe": (1, {"iron_ingot": 3, "stick": 2}),
    "iron_pickaxe": (1, {"iron_ingot": 3, "stick": 2}),
}
#: "smeltNearby"; fuel is left out, and so is the furnace.
SMELT: dict[str, tuple[int, dict[str, int]]] = {"iron_ingot": (1, {"iron_ore": 1}), "coal": (1, {"log": 1})}
RECIPES = {"craft": BY_HAND, "craftNearby": AT_TABLE, "smeltNearby": SMELT}


def durability(item: str) -> int:
    """How much wear a tool bears; -1 for what is no tool, as Malmo says it."""
    material, _, kind = item.partition("_")
    return DURABILITY.get(material, -1) if kind in TOOLS else -1


def stack_size(item: str) -> int:
    """How many of an item share a slot."""
    return 1 if durability(item) >= 0 else STACK_SIZE.get(item, 64)


class Inventory:
    """Slots of (type, metadata, quantity); None is an empty one."""

    def __init__(self) -> None:
        self.slots: list[tuple[str, int, int] | None] = [None] * SLOTS
        self.current = 0
        self._json: str | None = None

    def _set(self, slot: int, item: str, metadata: int, quantity: int) -> None:
        self.slots[slot] = (item, metadata, quantity) if quantity > 0 else None
        self._json = None

    def put(self, slot: int, item: str, metadata: int, quantity: int) -> None:
        """Fills a slot, whatever it held."""
        self._set(slot, item, metadata, quantity)

    def add(self, item: str, quantity: int, metadata: int = 0) -> None:
        """Puts items where there is room; what finds none is lost, as on the ground."""
        room = stack_size(item)
        for slot in range(MAIN_SLOTS):
            held = self.slots[slot]
            if quantity and held is not None and held[:2] == (item, metadata) and held[2] < room:
                taken = min(quantity, room - held[2])
                self._set(slot, item, metadata, held[2] + taken)
                quantity -= taken
        for slot in range(MAIN_SLOTS):
            if quantity and self.slots[slot] is None:
                taken = min(quantity, room)
                self._set(slot, item, metadata, taken)
                quantity -= taken

    def count(self, item: str) -> int:
        """How many of an item there are, of all its variants."""
        return sum(held[2] for held in self.slots if held is not None and held[0] == item)

    def remove(self, item: str, quantity: int = 1) -> bool:
        """Takes items out; False, and nothing taken, where there are too few."""
        if self.count(item) < quantity:
            return False
        for slot, held in enumerate(self.slots):
            if quantity and held is not None and held[0] == item:
                taken = min(quantity, held[2])
                self._set(slot, item, held[1], held[2] - taken)
                quantity -= taken
        return True

    def make(self, verb: str, item: str) -> int:
        """Crafts or smelts; returns how many came of it, 0 where there is no such recipe or too little of something."""
        made, needs = RECIPES[verb].get(item, (0, {}))
        if not made or any(self.count(part) < number for part, number in needs.items()):
            return 0
        for part, number in needs.items():
            self.remove(part, number)
        self.add(item, made, metadata=1 if (verb, item) == ("smeltNearby", "coal") else 0)
        return made

    def equip(self, wanted: str) -> None:
        """Swaps the current slot with the first that holds the item: ``iron_axe``, ``planks#2`` or ``air``."""
        item, _, variant = wanted.partition("#")
        for slot, held in enumerate(self.slots):
            kind, metadata = ("air", 0) if held is None else held[:2]
            if kind == item and (not variant.isdigit() or metadata == int(variant)):
                self.slots[slot], self.slots[self.current] = self.slots[self.current], held
                self._json = None
                return

    @property
    def in_hand(self) -> str:
        """The type of what the player holds."""
        held = self.slots[self.current]
        return "air" if held is None else held[0]

    def json(self, inventory: bool, equipment: bool) -> str:
        """The members for the info's JSON object, without braces; kept until something changes."""
        if self._json is None:
            self._json = ", ".join(self._members(inventory, equipment))
        return self._json

    def _members(self, inventory: bool, equipment: bool) -> list[str]:
        members = []
        if inventory:
            stacks = []
            for index, held in enumerate(self.slots):
                item, metadata, quantity = held if held is not None else ("air", 0, 0)
                stack = {
                    "type": item,
                    "metadata": metadata,
                    "quantity": quantity,
                    "index": index,
                    "inventory": "inventory",
                }
                stacks.append(stack)
            members.append(f'"inventory": {json.dumps(stacks)}')
            members.append(f'"inventories_available": [{{"name": "inventory", "size": {SLOTS}}}]')
            members.append(f'"current_item_index": {self.current}')
        if equipment:
            worn: dict[str, dict[str, str | int]] = {}
            for name, slot in EQUIPMENT.items():
                held = self.slots[slot]
                worn[name] = {}
                if held is not None:
                    most = durability(held[0])
                    wear = 0 if most >= 0 else -1
                    worn[name] = {"type": held[0], "metadata": held[1], "quantity": held[2]}
                    worn[name] |= {"currentDamage": wear, "maxDamage": most}
            members.append(f'"equipped_items": {json.dumps(worn)}')
        return members
