"""The cost of the MineRL adapter: a step through it against a bare step of minerl's client, on one stand-in game.

The stand-in (`tests/support/minerl_server`) is not Minecraft: it answers at once, so that what is measured is the
client. A step of the real game takes some 10 ms and more. Each arm has a stand-in in a process of its own, which
rests while another arm is measured.
"""

import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import tyro

from benchmarks.common import interleaved, machine_line, markdown_table
from latent_obs.minerl.client import make_client
from latent_obs.minerl.env import MineRLEnv, make_minerl
from latent_obs.wrappers.features import FeatureObservation

ROOT = Path(__file__).resolve().parents[1]
MICROSECONDS = 1e6


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    envs: tuple[str, ...] = (
        "MineRLTreechop-v0",
        "MineRLNavigateDense-v0",
        "MineRLObtainDiamond-v0",
        "MineRLTreechopVectorObf-v0",
    )
    """Environments to measure."""
    steps: int = 400
    """Steps of one measurement."""
    rounds: int = 21
    """Interleaved repeats of each measurement."""


@contextlib.contextmanager
def stand_in() -> Iterator[int]:
    """A stand-in game in a process of its own; gives its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.minerl_server", "--port", "0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "MalmoEnvServer on port" in line:
                yield int(line.split()[-1])
                return
        raise RuntimeError("the stand-in ended before it said its port")
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def bare_client(env_id: str, port: int) -> Any:
    """The client as it is, with its own sockets, attached to a running game as its users do it."""
    client = make_client(env_id)
    from minerl.env import malmo

    manager: Any = malmo.InstanceManager
    instance = manager.add_existing_instance(port)
    instance.launch()
    instance.had_to_clean = False
    client.unwrapped.instances = [instance]
    return client


def timed(step: Callable[[], bool], reset: Callable[[], object], steps: int) -> Callable[[], float]:
    """A measurement: mean seconds of a step, resets not counted."""

    def measure() -> float:
        seconds = 0.0
        for _ in range(steps):
            began = time.perf_counter()
            ended = step()
            seconds += time.perf_counter() - began
            if ended:
                reset()
        return seconds / steps

    return measure


def arms_for(env_id: str, ports: list[int], steps: int) -> dict[str, Callable[[], float]]:
    """The bare client, and the adapter with more and more on top of it; all play the no-op."""
    bare = bare_client(env_id, ports[0])
    bare.reset()
    adapter = MineRLEnv(make_client(env_id), port=ports[1])
    old_noop = adapter._action.to_old(adapter.noop)
    ready = make_minerl(env_id, port=ports[2])
    featured = FeatureObservation(make_minerl(env_id, port=ports[3]), grouped=True)

    def ends(env: gym.Env[Any, Any], action: Any) -> Callable[[], bool]:
        env.reset()

        def step() -> bool:
            _, _, terminated, truncated, _ = env.step(action)
            return terminated or truncated

        return step

    return {
        "bare client": timed(lambda: bool(bare.step(old_noop)[2]), bare.reset, steps),
        "adapter": timed(ends(adapter, adapter.noop), adapter.reset, steps),
        "+ faults, actions": timed(ends(ready, _noop(ready)), ready.reset, steps),
        "+ features": timed(ends(featured, _noop(featured)), featured.reset, steps),
    }


def _noop(env: gym.Env[Any, Any]) -> Any:
    return env.get_wrapper_attr("noop")


def main(options: Options) -> None:
    """Measure, and print a table."""
    print(machine_line())
    rows: list[list[str]] = []
    for env_id in options.envs:
        with contextlib.ExitStack() as stack:
            ports = [stack.enter_context(stand_in()) for _ in range(4)]
            measured = interleaved(arms_for(env_id, ports, options.steps), options.rounds)
        bare = measured["bare client"]
        for name, seconds in measured.items():
            # Of the rounds' differences, as what else the machine does falls on all arms of a round alike.
            more = statistics.median((a - b) * MICROSECONDS for a, b in zip(seconds, bare, strict=True))
            least, most = min(seconds) * MICROSECONDS, max(seconds) * MICROSECONDS
            rows.append(
                [
                    f"{env_id}: {name}",
                    f"{statistics.median(seconds) * MICROSECONDS:.0f}",
                    f"{least:.0f} - {most:.0f}",
                    f"{more:+.0f}",
                ]
            )
    print(markdown_table(["a step", "median us", "range", "more than bare"], rows))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
