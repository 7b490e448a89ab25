"""The player's inventory: Minecraft's 41 slots, and the JSON that Malmo's Java code sends of them.

Every slot is listed, an empty one as air, and the equipment has ``currentDamage`` (minerl's client looks for
``damage``, does not find it, and shows 0).
"""

import json

SLOTS = 41  # 36 of the main inventory, 4 of armour, the off hand
STACK = 64
#: Which slot Malmo shows as which piece of equipment.
EQUIPMENT = {"mainhand": 0, "offhand": 5, "feet": 1, "legs": 2, "chest": 3, "head": 4}
DURABILITY = {"wooden": 59, "stone": 131, "iron": 250, "golden": 32, "diamond": 1561}
TOOLS = ("axe", "pickaxe", "shovel", "hoe", "sword")


class Inventory:
    """Slots of (type, metadata, quantity); None is an empty one."""

    def __init__(self, items: tuple[tuple[int, str, int, int], ...]) -> None:
        self.slots: list[tuple[str, int, int] | None] = [None] * SLOTS
        for slot, item, metadata, quantity in items:
            self.slots[slot] = (item, metadata, quantity)
        self._json: str | None = None

    def add(self, item: str) -> None:
        """Put an item into the first slot that holds fewer than 64 of it, or none."""
        self._json = None
        for slot, held in enumerate(self.slots):
            if held is None or (held[0] == item and held[2] < STACK):
                self.slots[slot] = (item, 0, 1 if held is None else held[2] + 1)
                return

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
                item, metadata, quantity = held or ("air", 0, 0)
                stack = {"type": item, "metadata": metadata, "quantity": quantity, "index": index}
                stacks.append({**stack, "inventory": "inventory"})
            members.append(f'"inventory": {json.dumps(stacks)}')
            members.append(f'"inventories_available": [{{"name": "inventory", "size": {SLOTS}}}]')
            members.append('"current_item_index": 0')
        if equipment:
            worn: dict[str, dict[str, str | int]] = {name: {} for name in EQUIPMENT}
            for name, slot in EQUIPMENT.items():
                held = self.slots[slot]
                if held is not None:
                    material, _, kind = held[0].partition("_")
                    most = DURABILITY.get(material, -1) if kind in TOOLS else -1
                    worn[name] = {"type": held[0], "metadata": held[1], "quantity": held[2]}
                    worn[name] |= {"currentDamage": 0 if most >= 0 else -1, "maxDamage": most}
            members.append(f'"equipped_items": {json.dumps(worn)}')
        return members
