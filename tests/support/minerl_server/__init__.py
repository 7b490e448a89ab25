"""A stand-in for the Minecraft process that MineRL 0.4.4 talks to, for tests and benchmarks.

It speaks the socket protocol of Malmo's ``MalmoEnvServer`` so that the real client - ``gym.make("MineRLTreechop-v0")``,
its specifications, its encoding of actions and observations - runs without Java, a display or a download. Behind the
protocol is a flat toy world of trunks and rectangles. It is **not** Minecraft, and nothing that an agent or an encoder
learns here, and no speed measured here, says anything of Minecraft.
"""

from .faults import FAULTS, Fault
from .mission import Mission
from .server import StandInGame
from .world import World, WorldSettings

__all__ = ["FAULTS", "Fault", "Mission", "StandInGame", "World", "WorldSettings"]
