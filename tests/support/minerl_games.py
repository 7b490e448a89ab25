"""What the tests of MineRL's environments share; importing it skips a test module where minerl is not installed."""

import hashlib
import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
import pytest
from numpy.typing import NDArray

from latent_obs.minerl.client import minerl_specs
from latent_obs.minerl.installation import minerl_version
from tests.support.minerl_server import World

if minerl_version() is None:
    pytest.skip("minerl is not installed", allow_module_level=True)

#: Minerl's specifications by id, and the ids: 64 x 64 pixels, and 1024 x 1024.
SPECS = minerl_specs()
HIGH_RES = tuple(env_id for env_id in SPECS if "HighRes" in env_id)
LOW_RES = tuple(env_id for env_id in SPECS if env_id not in HIGH_RES)
#: One task of each kind of observation, action and wrapper.
ONE_OF_EACH = (
    "MineRLTreechop-v0",
    "MineRLNavigateDense-v0",
    "MineRLObtainDiamond-v0",
    "MineRLObtainDiamondVectorObf-v0",
    "MineRLObtainTestVector-v0",
    "MineRLBasaltFindCave-v0",
)
Kind = TypeVar("Kind")


def upstream(module: str) -> Any:
    """A module of gym or minerl; `SPECS` has imported both, without their deprecation warnings."""
    return importlib.import_module(module)


def noop_command(task: Any) -> str:
    """The commands that minerl sends for its own no-op."""
    while hasattr(task, "env_to_wrap"):
        task = task.env_to_wrap
    noop = task.action_space.no_op()
    return "\n".join(handler.to_hero(noop[handler.to_string()]) for handler in task.actionables)


def find(env: gym.Env[Any, Any], kind: type[Kind]) -> Kind:
    """The wrapper of this kind."""
    layer: Any = env
    while not isinstance(layer, kind):
        layer = layer.env
    return layer


def picture_of(world: World | None) -> NDArray[np.uint8]:
    """What a world looks like now, top row first."""
    assert world is not None
    return np.frombuffer(world.frame(), np.uint8).reshape(world.mission.height, world.mission.width, 3)[::-1]


def fingerprint(picture: Any) -> bytes:
    """A picture's content, top row first, in 16 bytes."""
    return hashlib.blake2b(np.ascontiguousarray(picture, np.uint8).tobytes(), digest_size=16).digest()


def record_pictures(monkeypatch: pytest.MonkeyPatch) -> set[bytes]:
    """The fingerprints of all pictures that stand-ins draw from now on."""
    drawn: set[bytes] = set()
    draw = World.frame

    def frame(world: World) -> bytes:
        picture = draw(world)
        shape = world.mission.height, world.mission.width, 3
        drawn.add(fingerprint(np.frombuffer(picture, np.uint8).reshape(shape)[::-1]))
        return picture

    monkeypatch.setattr(World, "frame", frame)
    return drawn


@contextmanager
def connected(env_id: str, port: int) -> Iterator[Any]:
    """Minerl's own environment as its users have it, connected to a game that runs already."""
    manager = upstream("minerl.env.malmo").InstanceManager
    client = upstream("gym").make(env_id)
    instance = manager.add_existing_instance(port)
    try:
        instance.launch()  # which starts none
        client.unwrapped.instances.append(instance)
        yield client
    finally:
        manager._instance_pool.remove(instance)
        if instance.client_socket is not None:
            instance.client_socket_close()


@contextmanager
def allowing(*messages: str) -> Iterator[None]:
    """Let warnings pass that begin like this (regular expressions)."""
    with warnings.catch_warnings():
        for message in messages:
            warnings.filterwarnings("ignore", message=message)
        yield
