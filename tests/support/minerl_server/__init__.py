"""A stand-in for the Minecraft process that MineRL 0.4.4 talks to, for tests and benchmarks.

It speaks the socket protocol of Malmo's ``MalmoEnvServer``, so that the real client runs without Java, a display or a
download. Behind the protocol is a flat toy world of trunks. It is **not** Minecraft: what an agent or an encoder learns
here, and any speed measured here, does not carry over to Minecraft.
"""

from .server import Fault, StandInGame
from .world import World, WorldSettings

__all__ = ["Fault", "StandInGame", "World", "WorldSettings"]
