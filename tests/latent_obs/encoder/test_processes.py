"""Encoders, and wrappers that hold one, in threads and in forked and spawned processes; and memory over a long run."""

import copy
import pickle
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import pytest
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from latent_obs.encoder.architecture import Architecture
from latent_obs.encoder.fastest import Backend
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.wrappers.sb3 import VecLatentObservation
from latent_obs.wrappers.single import LatentObservation
from latent_obs.wrappers.vector import VectorLatentObservation
from tests.latent_obs.encoder.test_backends import BACKENDS, KINDS
from tests.support import ROOT
from tests.support.tiny import limited, random_frames, tiny_architecture


@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_may_share_an_encoder(backend: Backend):
    encoder = FrozenEncoder.random(tiny_architecture(), device="cpu", backend=backend)
    wrong: list[int] = []

    def work(number: int) -> None:
        frames = random_frames(3, seed=number)
        expected = encoder.encode(frames)
        for _ in range(30):
            if not np.allclose(encoder.encode(frames), expected, atol=1e-5):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def grown_bytes(encoder: FrozenEncoder, calls: int) -> int:
    """By how much the process grows over so many calls of changing sizes: what a leak adds to each stretch of them.

    An allocator takes a page or a thread's arena at any time; calls that keep something grow it in every stretch.
    """
    batches, process = [random_frames(count) for count in (1, 8, 9, 10, 3)], psutil.Process()
    sizes: list[int] = []
    for _ in range(5):
        for call in range(calls):
            encoder.encode(batches[call % len(batches)])
        sizes.append(process.memory_info().rss)
    return min(int(n) for n in np.diff(sizes))


@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_stays_flat(backend: Backend):
    encoder = FrozenEncoder.random(tiny_architecture(), device="cpu", backend=backend)
    assert grown_bytes(encoder, 500) < 1 << 18  # 2 KB a call would show


PROCESSES = """
import multiprocessing, os, pickle, signal, sys
import numpy as np, torch

def encode(pickled, frames, results):
    results.put(pickle.loads(pickled).encode(frames))

if __name__ == "__main__":
    torch.set_num_threads(2)
    with open(sys.argv[1], "rb") as file:
        encoders, frames = pickle.load(file)
    expected = [encoder.encode(frames[:8]) for encoder in encoders]
    child = os.fork()
    if child == 0:
        signal.alarm(600)
        for encoder, latents in zip(encoders, expected):
            np.testing.assert_allclose(encoder.encode(frames[:8]), latents, atol=2e-2)
            encoder.encode(frames)  # of a size that is new
        assert torch.get_num_threads() == 2
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, "forked"
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=encode, args=(pickle.dumps(encoders[0]), frames[:8], results))
    process.start()
    np.testing.assert_allclose(results.get(timeout=600), expected[0], atol=1e-6)
    process.join()
"""


@pytest.mark.integration
def test_forked_and_spawned_processes_encode(tmp_path: Path):
    architecture = Architecture((64, 64, 3), latent_dim=32)  # large enough for torch to use its threads
    encoders = [FrozenEncoder.random(architecture, device="cpu", backend=b, precision=p) for b, p in KINDS]
    (tmp_path / "work.pickle").write_bytes(pickle.dumps((encoders, random_frames(11, (64, 64, 3)))))
    script = tmp_path / "processes.py"
    script.write_text(PROCESSES)
    command = [sys.executable, str(script), str(tmp_path / "work.pickle")]
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr


SIGNALLED = """
import gc, signal
import numpy as np
from latent_obs import Architecture, FrozenEncoder

encoders = [FrozenEncoder.random(Architecture((16, 16, 3), 8), device="cpu", backend="openvino") for _ in range(3)]
for encoder in encoders:
    encoder.encode(np.zeros((2, 16, 16, 3), np.uint8))
del encoder
while encoders:
    encoders.pop(0)
    gc.collect()
seen = []
signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.01)
while not seen:
    pass
"""


@pytest.mark.integration
def test_a_signal_after_openvino_has_gone_does_not_crash():
    """Each of its cores would leave a stack for signals that is freed already."""
    done = subprocess.run([sys.executable, "-c", SIGNALLED], capture_output=True, text=True, timeout=900, cwd=ROOT)
    assert done.returncode == 0, done.stderr


# Wrappers that hold an encoder

MAKERS: list[Any] = [partial(limited, "box", 10 * i, 3) for i in range(2)]


def wrapped(encoder: FrozenEncoder) -> gym.Env[Any, Any]:
    return LatentObservation(MAKERS[0](), encoder, history=2)


HOLDERS: dict[str, Any] = {
    "LatentObservation": wrapped,
    "VectorLatentObservation": lambda encoder: VectorLatentObservation(SyncVectorEnv(MAKERS), encoder, history=2),
    "VecLatentObservation": lambda encoder: VecLatentObservation(DummyVecEnv(MAKERS), encoder, history=2),
}


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_copy_goes_on_as_the_original_would(encoder: FrozenEncoder, holder: str, way: str):
    original, action = HOLDERS[holder](encoder), 1 if holder == "LatentObservation" else np.ones(2, int)
    original.reset()
    original.step(action)
    other = copy.deepcopy(original) if way == "deepcopy" else pickle.loads(pickle.dumps(original))
    held_by_other = other.observation_encoder.encoders[0]
    assert (held_by_other is encoder) is (way == "deepcopy")  # weights are shared in a process, and carried to another
    for _ in range(4):  # over the end of an episode; each has a history of its own
        np.testing.assert_allclose(other.step(action)[0], original.step(action)[0], atol=1e-6)


@pytest.mark.integration
@pytest.mark.parametrize(("kind", "method"), [("gymnasium", "fork"), ("sb3", "forkserver")])
def test_wrappers_work_inside_worker_processes(encoder: FrozenEncoder, kind: str, method: str):
    here = wrapped(encoder)
    if kind == "gymnasium":
        there: Any = AsyncVectorEnv([partial(wrapped, encoder)], context=method)
    else:
        there = SubprocVecEnv([partial(wrapped, encoder)], start_method=method)
    try:
        first = there.reset()[0] if kind == "gymnasium" else there.reset()
        np.testing.assert_allclose(first, [here.reset()[0]], atol=1e-6)
        np.testing.assert_allclose(there.step(np.ones(1, int))[0], [here.step(1)[0]], atol=1e-6)
    finally:
        there.close()
