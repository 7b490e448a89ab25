"""``python -m tests.support.minerl_server``: a stand-in in a process of its own, as MineRL's launcher expects the game.

MineRL starts a script that writes ``malmomodCLIENT.cfg`` and runs ``java``, and then reads the output until the two
lines that are printed here. With ``--config config/malmomodCLIENT.cfg`` this can be that ``java``. The process ends
after ``<Exit>``.
"""

import argparse
import re
from pathlib import Path

from .server import StandInGame
from .world import WorldSettings

parser = argparse.ArgumentParser(description="A stand-in for MineRL's Minecraft process; not Minecraft.")
where = parser.add_mutually_exclusive_group()
where.add_argument("--port", type=int, default=0, help="0, the default, takes a free one")
where.add_argument("--config", type=Path, help="Malmo's malmomodCLIENT.cfg, for the port in it")
parser.add_argument("--easy", action="store_true", help="the world that an agent learns within minutes")
given = parser.parse_args()
port = given.port
if given.config:
    found = re.search(r"^\s*I:portOverride=(\d+)", given.config.read_text(encoding="utf-8"), re.MULTILINE)
    port = int(found[1]) if found else 0
with StandInGame(port, WorldSettings.easy() if given.easy else None) as game:
    print(f"***** Start MalmoEnvServer on port {game.port}", flush=True)
    print("CLIENT enter state: DORMANT", flush=True)
    game.exited.wait()
