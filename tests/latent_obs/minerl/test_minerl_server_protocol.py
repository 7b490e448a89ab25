"""The stand-in's side of the protocol, its faults and its process, without MineRL's client."""

import json
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.minerl_server import StandInGame

#: A mission as short as one can be; the real ones come from the real client.
MISSION = """<MissionInit xmlns="http://ProjectMalmo.microsoft.com"><Mission>
<ModSettings><MsPerTick>50</MsPerTick></ModSettings>
<ServerQuitFromTimeUp timeLimitMs="500"/><AgentSection><AgentStart><Inventory>
<InventoryObject slot="0" type="iron_axe"/></Inventory></AgentStart><AgentHandlers>
<ObservationFromFullInventory flat="false"/><VideoProducer want_depth="false"><Width>32 </Width>
<Height>24</Height></VideoProducer></AgentHandlers></AgentSection></Mission></MissionInit>"""
ONE, ZERO = struct.pack("!I", 1), struct.pack("!I", 0)


class Raw:
    """The protocol with nothing around it."""

    def __init__(self, game: StandInGame) -> None:
        self.socket = socket.create_connection(game.address, timeout=60)
        self.file = self.socket.makefile("rb")
        self.send(b"<MalmoEnv0.37.0/>")

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.socket.close()

    def send(self, *messages: bytes) -> None:
        for message in messages:
            self.socket.sendall(struct.pack("!I", len(message)) + message)

    def receive(self) -> bytes | None:
        """A message; None if the game hung up."""
        try:
            header = self.file.read(4)
        except ConnectionResetError:
            return None
        return self.file.read(struct.unpack("!I", header)[0]) if len(header) == 4 else None

    def ask(self, *messages: bytes) -> bytes | None:
        self.send(*messages)
        return self.receive()

    def begin(self, mission: str, token: str = "uid:0:0:1:true:7") -> bytes | None:
        """Send a mission; the token is experiment, role, reset, agents, synchronous and, if given, the seed."""
        return self.ask(mission.encode(), token.encode())

    def step(self, commands: str = "", option: int = 0) -> tuple[bytes | None, tuple[float, int, int], bytes | None]:
        """Take a step; return frame, (reward, done, sent) and, with an option that asks for it, the info."""
        frame = self.ask(f"<StepClient{option}>{commands}</StepClient{option} >".encode())
        numbers = struct.unpack("!dbb", self.receive() or b"")
        return frame, numbers, self.receive() if option in (0, 2) else None


@pytest.fixture
def game() -> Iterator[StandInGame]:
    with StandInGame() as it:
        yield it


def test_the_replies_have_malmos_form(game: StandInGame) -> None:
    with Raw(game) as raw:
        assert raw.ask(b"<Quit/>") == ONE
        assert raw.begin(MISSION) == ONE
        raw.send(b"<Peek/>")
        frame, info, done = raw.receive(), raw.receive(), raw.receive()
        assert (len(frame or b""), done) == (24 * 32 * 3, b"\0")
        slots = json.loads(info or b"")["inventory"]
        assert len(slots) == 41
        assert slots[0] == {"type": "iron_axe", "metadata": 0, "quantity": 1, "index": 0, "inventory": "inventory"}
        assert slots[1]["type"] == "air"
        raw.send(b"<StepServer></StepServer>")  # gets no reply, so the next one is the step's
        assert raw.step("camera 0.0 10.0\nattack 1")[1] == (0.0, 0, 1)
        assert raw.step(option=1)[2] is None
        assert [raw.step()[1][1] for _ in range(8)] == [0] * 7 + [1]  # half a second's time limit: 10 ticks
        assert raw.ask(b"<StepClient0></StepClient0 >") is None  # Malmo has no frame left, fails and hangs up
    assert list(game.commands)[:2] == ["camera 0.0 10.0\nattack 1", ""]
    assert (game.steps, game.episodes, game.seeds, game.tokens) == (11, 1, [7], ["uid:0:0:1:true:7"])


def test_a_mission_goes_on_until_it_is_quit_and_there_is_only_one(game: StandInGame) -> None:
    with Raw(game) as first:
        assert first.begin(MISSION) == ONE
        with Raw(game) as second:
            assert second.begin(MISSION, "other:0:0:1:true") == ZERO  # busy, and the first mission is ended
            assert first.step()[1] == (0.0, 1, 1)
            assert second.begin(MISSION, "other:0:0:1:true") == ONE
    with Raw(game) as third:
        assert third.ask(b"<Quit/>") == ONE
        assert third.begin(MISSION, "third:0:0:1:true") == ONE
        assert third.ask(b"<MissionInit>no XML", b"x:0:0:1:true") == ZERO


def test_faults_strike_when_planned_and_the_game_comes_back() -> None:
    with StandInGame(crash_every=5, revive_after_s=0.1) as game:
        game.schedule("busy", at_step=2)
        game.fail_next("short")
        with Raw(game) as raw:
            raw.begin(MISSION)
            assert [len(raw.step()[0] or b"") for _ in range(4)] == [1152, 2304, 2304, 2304]
            assert raw.ask(b"<StepClient0></StepClient0 >") is None
        until = time.monotonic() + 60
        while not game.alive and time.monotonic() < until:
            time.sleep(0.02)
        with Raw(game) as raw:
            assert [raw.begin(MISSION), raw.begin(MISSION)] == [ZERO, ONE]
    game.revive()
    assert not game.alive  # closed is closed


@pytest.mark.integration
@pytest.mark.parametrize(
    ("arguments", "last", "code"), [((), b"<Exit>NOW</Exit>", 0), (("--crash-every", "1"), b"", 1)]
)
def test_a_process_of_its_own(tmp_path: Path, arguments: tuple[str, ...], last: bytes, code: int) -> None:
    config = tmp_path / "malmomodCLIENT.cfg"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config.write_text(f"malmoports {{\n  I:portOverride={port}\n}}\n")
    command = [sys.executable, "-m", "tests.support.minerl_server", "--config", str(config), "--easy", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == f"***** Start MalmoEnvServer on port {port}\n"
            assert process.stdout.readline() == "CLIENT enter state: DORMANT\n"
            with socket.create_connection(("127.0.0.1", port), timeout=60) as line:
                for message in (b"<MalmoEnv0.37.0/>", last or b"<StepClient0></StepClient0 >"):
                    line.sendall(struct.pack("!I", len(message)) + message)
                assert line.recv(8) == (struct.pack("!I", 4) + ONE if code == 0 else b"")
            assert process.wait(60) == code
        finally:
            process.kill()
