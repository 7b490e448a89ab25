"""Several processes on one model, started by torchrun: the run of one process, on one machine or more."""

import contextlib
import functools
import json
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_obs.util.atomic import folder_lock
from latent_obs.util.errors import InputError
from tests.support.tiny import picture
from tests.support.training_runs import (
    EVERYTHING,
    PREAMBLE,
    TRAIN,
    config_for,
    log_every_step,
    run,
    same_tensors,
    same_up_to_rounding,
    story,
    torchrun,
)
from vae_training.data.loader import BatchParts
from vae_training.training.checkpoint import Progress
from vae_training.training.config import TrainConfig
from vae_training.training.distributed import Ranks, process_group
from vae_training.training.trainer import Trainer

SCRIPT = f"""{PREAMBLE}
from latent_obs.util.errors import LatentObsError
settings, resume, die_at, with_agent = json.loads(sys.argv[1])
t._SAVE_EVERY_SECONDS = 0.0
step, env = t.Trainer.step, os.environ
while env["WORLD_SIZE"] == "1" and env["TORCHELASTIC_RESTART_COUNT"] == "0":
    time.sleep(0.1)  # until the other machine joins
if env["TORCHELASTIC_RESTART_COUNT"] == "1" and env["RANK"] == "1":
    time.sleep(2)  # the other process must not find the address that this one had before
is_last_here = int(env["LOCAL_RANK"]) == int(env["LOCAL_WORLD_SIZE"]) - 1
def watched(self, batch):
    global loss
    loss = self.loss
    if is_last_here and env["TORCHELASTIC_RESTART_COUNT"] == "0" and self.progress.step == die_at:
        if with_agent:
            os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch)
t.Trainer.step = watched
try:
    t.train(TrainConfig.from_json(settings), resume=resume, progress_bar=False)
except LatentObsError as error:
    time.sleep(1)  # torchrun terminates the others 0.1 s after it has seen one end
    print(type(error).__name__, error, flush=True)
    os._exit(2)
state = torch.cat([v.detach().double().flatten() for v in loss.state_dict().values()])
digest = hashlib.sha256(state.numpy().tobytes()).hexdigest()
Path(settings["out"]).with_name(f"state_{{env['RANK']}}.txt").write_text(digest)
sys.stdout.flush()
os._exit(0)  # gloo's threads at times abort an interpreter that ends by itself
"""
#: Two epochs of 67 frames in batches of 16, each process 8; of the last one of an epoch they get two and one.
PAIR: dict[str, Any] = {**EVERYTHING, "epochs": 2, "batch_size": 16, "super_batch": 67, "scale_losses": True}


@dataclass
class Ended:
    code: int
    output: str
    errors: str


def ended(process: subprocess.Popen[str]) -> Ended:
    try:
        output, errors = process.communicate(timeout=900)
    finally:
        process.terminate()  # after that time; torchrun then ends what it has started
    return Ended(process.returncode, output, errors)


@pytest.fixture(scope="module")
def many_frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many") / "frames"
    folder.mkdir()
    for number in range(3):
        np.save(folder / f"{number}.npy", np.stack([picture(number, step, 16, 16) for step in range(34)]))
    return folder


def begin(
    config: TrainConfig, *, resume: bool = False, die_at: int = -1, with_agent: bool = False, **kwargs: Any
) -> subprocess.Popen[str]:
    script = config.out.with_name("script.py")
    script.write_text(SCRIPT)
    return torchrun(script, json.dumps([config.to_json(), resume, die_at, with_agent]), **kwargs)


def train_together(config: TrainConfig, **kwargs: Any) -> Ended:
    return ended(begin(config, **kwargs))


def states(out: Path) -> set[str]:
    """Checksums of the weights that the processes end with."""
    return {file.read_text() for file in out.parent.glob("state_*.txt")}


def assert_the_same(one: Path, other: Path) -> None:
    """Two runs ended with the same checkpoint, bit by bit."""
    same_tensors(*(out / "checkpoints" / "latest.safetensors" for out in (one, other)))


@pytest.fixture(scope="module")
def pair(many_frames: Path) -> tuple[Path, str]:
    """Two processes, and what they print."""
    out = many_frames.parent / "pair"
    done = train_together(config_for(many_frames, out, **PAIR))
    assert done.code == 0, done.errors
    return out, done.output


@pytest.mark.integration
@pytest.mark.usefixtures("log_every_step")
def test_two_processes_are_one(many_frames: Path, pair: tuple[Path, str], tmp_path: Path):
    run(config_for(many_frames, tmp_path / "single", **PAIR))
    same_up_to_rounding(tmp_path / "single", pair[0])
    assert len(states(pair[0])) == 1
    assert pair[1].count("Training on 2 files") == 1  # process 0 alone prints
    assert pair[1].count("Encoder:") == 1


@pytest.mark.integration
@pytest.mark.usefixtures("log_every_step")
def test_a_killed_process_ends_the_run_which_any_number_resumes(
    many_frames: Path, pair: tuple[Path, str], tmp_path: Path
):
    config = config_for(many_frames, tmp_path / "killed", **PAIR)
    killed = train_together(config, die_at=7)
    assert killed.code != 0
    assert "RankLostError" in killed.output
    assert "--resume" in killed.output
    script = str(config.out.with_name("script.py"))
    assert not [p for p in psutil.process_iter(["cmdline"]) if script in (p.info["cmdline"] or [])]
    shutil.copytree(config.out, tmp_path / "by one")
    run(TrainConfig(out=tmp_path / "by one"), resume=True)
    same_up_to_rounding(tmp_path / "by one", pair[0])
    resumed = train_together(TrainConfig(out=config.out), resume=True, processes=3)
    assert resumed.code == 0, resumed.errors
    assert len(states(config.out)) == 1
    same_up_to_rounding(config.out, pair[0])


@pytest.mark.integration
def test_torchrun_restarts_the_run(many_frames: Path, pair: tuple[Path, str], tmp_path: Path):
    config = config_for(many_frames, tmp_path / "run", **PAIR)
    done = train_together(config, die_at=7, options=["--standalone", "--max-restarts", "1"])
    assert done.code == 0, done.errors
    assert "from step 7 on" in done.output
    assert_the_same(config.out, pair[0])


@pytest.fixture
def machines() -> Iterator[list[tuple[str, str]]]:
    """Of two machines, the words that start a command on each, and its address.

    They are network namespaces with a cable between them or, if the system allows none, this machine twice.
    """
    with contextlib.ExitStack() as held:
        try:
            made = two_networks(held)
        except (OSError, subprocess.CalledProcessError):
            made = [("", "127.0.0.1")] * 2
        yield made


def two_networks(held: contextlib.ExitStack) -> list[tuple[str, str]]:
    inside: list[str] = []
    for unshare in ("unshare --user --map-root-user --net", "unshare --net"):
        command = [*" ".join([*inside, unshare]).split(), "sleep", "900"]
        process = held.enter_context(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        held.callback(process.kill)
        while Path(f"/proc/{process.pid}/comm").read_text() != "sleep\n":  # OSError if it has ended
            process.poll()
            time.sleep(0.05)
        inside.append(f"nsenter --user --net --preserve-credentials --target {process.pid}")
    addresses = "10.0.0.1", "10.0.0.2"
    ip = [f"{inside[0]} ip link add cable type veth peer name cable netns {process.pid}"]
    for command, address in zip(inside, addresses, strict=True):
        ip += [f"{command} ip {what}" for what in ("link set lo up", f"address add {address}/24 dev cable")]
        ip += [f"{command} ip link set cable up"]
    for command in ip:
        subprocess.run(command.split(), check=True, capture_output=True)
    return [
        (f"{command} env GLOO_SOCKET_IFNAME=cable", address) for command, address in zip(inside, addresses, strict=True)
    ]


@pytest.mark.integration
def test_a_machine_is_lost_and_the_other_goes_on(
    many_frames: Path, pair: tuple[Path, str], machines: list[tuple[str, str]], tmp_path: Path
):
    config = config_for(many_frames, tmp_path / "run", **PAIR)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"{machines[0][1]}:{free.getsockname()[1]}"
    agents: list[subprocess.Popen[str]] = []
    for number, (before, address) in enumerate(machines):
        # A lost machine is given up after 2 s, and a missing one is waited for no longer than 3 s.
        rendezvous = f"is_host={number == 0},keep_alive_interval=1,keep_alive_max_attempt=2,last_call_timeout=3"
        options = ["--nnodes=1:2", "--max-restarts=3", "--rdzv-id=tests", "--rdzv-backend=c10d"]
        options += [f"--rdzv-endpoint={endpoint}", f"--rdzv-conf={rendezvous}", f"--local-addr={address}"]
        die_at = 7 if number else -1
        agents += [begin(config, processes=1, options=options, before=before, die_at=die_at, with_agent=True)]
    done, lost = map(ended, agents)
    assert lost.code == -signal.SIGKILL, lost.errors
    assert done.code == 0, done.errors
    assert "by 2 processes" in done.output
    assert re.search("by 1 process;.* from step 7 on", done.output)
    same_up_to_rounding(config.out, pair[0])


@pytest.mark.integration
def test_a_mistake_is_reported_once(many_frames: Path, tmp_path: Path):
    done = train_together(config_for(many_frames, tmp_path / "out", super_batch=10_000))
    assert done.code != 0
    assert done.output.count("InputError super_batch") == 1
    assert not (tmp_path / "out").exists()


def test_an_address_that_is_in_use(monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        started = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in started.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(InputError, match=port), process_group("cpu"):
            pass


@pytest.mark.integration
def test_a_run_in_use_is_not_resumed(pair: tuple[Path, str], tmp_path: Path):
    shutil.copytree(pair[0], tmp_path / "run")
    with folder_lock(tmp_path / "run"):
        done = train_together(TrainConfig(out=tmp_path / "run"), resume=True)
    assert done.code != 0
    assert done.output.count("Error") == done.output.count("InputError") == 1, done.output


class OtherRanks(Ranks):
    """Two processes, the other of which always has another number."""

    def any(self, flag: bool) -> bool:
        return flag

    def broadcast(self, numbers: list[float]) -> list[float]:
        return [-1.0 for _ in numbers]


def test_processes_with_other_frames_do_not_train_together(many_frames: Path, tmp_path: Path):
    config, ranks = config_for(many_frames, tmp_path / "run"), OtherRanks(0, 2, torch.device("cpu"))
    with pytest.raises(InputError, match=str(many_frames)):
        Trainer(config, ranks, resume=False, say=print).join()


@pytest.mark.usefixtures("log_every_step")
def test_a_run_of_an_earlier_version_keeps_its_batches(
    many_frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """In it, each of two processes had a batch of `batch_size`."""
    with monkeypatch.context() as patch:
        patch.setattr(TRAIN, "Progress", functools.partial(Progress, ranks=2))
        run(config_for(many_frames, tmp_path / "old", **{**PAIR, "batch_size": 8, "epochs": 1}))
    run(TrainConfig(out=tmp_path / "old", epochs=2), resume=True)
    run(config_for(many_frames, tmp_path / "new", **PAIR))
    assert story(tmp_path / "old") == story(tmp_path / "new")


@given(size=st.integers(1, 60), batch=st.integers(1, 20), ranks=st.integers(1, 5))
@settings(max_examples=80, deadline=None)
def test_shards_make_up_each_batch(size: int, batch: int, ranks: int):
    parts = [BatchParts(size, batch, rank, ranks) for rank in range(ranks)]
    assert {len(p) for p in parts} == {-(-size // batch)}
    for number in range(len(parts[0])):
        first, total = number * batch, min(batch, size - number * batch)
        seen: list[int] = []
        for part in parts:
            share, places = part.shares[number], part.places[part.rows[number]].tolist()
            assert share.total == total
            assert places == list(range(first + share.start, first + share.start + share.count))
            assert share.weight == pytest.approx((share.count if share.weight else 0) * ranks / total)
            seen += places if share.weight else []
        assert seen == list(range(first, first + total))
        assert sum(p.shares[number].weight for p in parts) == pytest.approx(ranks)
