"""``python -m stand_in``: a stand-in in a process of its own, as MineRL's launcher expects the game.

MineRL starts a script that writes ``malmomodCLIENT.cfg`` and runs ``java``, and then reads the output until the two
lines that are printed here. With ``--config config/malmomodCLIENT.cfg`` this can be that ``java``. The process ends
when the game
does: with 0 after ``<Exit>``, with 1 after a crash.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import replace
from pathlib import Path

from .server import StandInGame
from .world import WorldSettings


def port_of(config: Path) -> int:
    """The port in Malmo's configuration file; 0, for any, where it names none."""
    found = re.search(r"^\s*I:portOverride=(\d+)", config.read_text(encoding="utf-8"), re.MULTILINE)
    return int(found[1]) if found else 0


def main(arguments: list[str] | None = None) -> int:
    """Serves until killed, crashed or told to exit; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="stand_in", description="A stand-in for MineRL's Minecraft process; not Minecraft."
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--port", type=int, default=0, help="0, the default, takes a free one")
    where.add_argument("--config", type=Path, help="Malmo's malmomodCLIENT.cfg, for the port in it")
    parser.add_argument("--easy", action="store_true", help="the world that an agent learns within minutes")
    parser.add_argument("--time-limit", type=int, metavar="TICKS", help="instead of the mission's")
    parser.add_argument("--crash-every", type=int, metavar="STEPS", help="die at this step")
    given = parser.parse_args(arguments)
    settings = WorldSettings.easy() if given.easy else WorldSettings()
    if given.time_limit:
        settings = replace(settings, time_limit_ticks=given.time_limit)
    port = port_of(given.config) if given.config else given.port
    with StandInGame(port, settings, crash_every=given.crash_every) as game:
        print(f"***** Start MalmoEnvServer on port {game.port}", flush=True)
        print("CLIENT enter state: DORMANT", flush=True)
        while game.alive:
            game.exited.wait(0.1)
        return 0 if game.exited.is_set() else 1


if __name__ == "__main__":
    sys.exit(main())
