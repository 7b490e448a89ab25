"""Encoders shared by threads, in forked and spawned processes, and over a very long run."""

import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import get_args

import numpy as np
import psutil
import pytest

from latent_obs.encoder.architecture import Architecture
from latent_obs.encoder.frozen import Backend, FrozenEncoder, Precision
from tests.support import ROOT
from tests.support.tiny import random_frames, tiny_architecture

ENGINES: list[tuple[Backend, Precision]] = [(b, p) for b in get_args(Backend) for p in get_args(Precision)]


@pytest.mark.parametrize("backend", get_args(Backend))
def test_threads_may_share_an_encoder(backend: Backend):
    encoder = FrozenEncoder.random(tiny_architecture(), device="cpu", backend=backend)
    wrong: list[int] = []

    def work(number: int) -> None:
        frames = random_frames(3, seed=number)
        expected = encoder.encode(frames)
        for _ in range(100):
            if not np.allclose(encoder.encode(frames), expected, atol=1e-5):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


#: Calls that are not looked at. In a fresh process OpenVINO grows by 1.2 MB in each of the first three or four
#: thousand, and then by nothing.
_FIRST_CALLS: dict[str, int] = {"torch": 1_000, "openvino": 8_000}


def grown_bytes(encoder: FrozenEncoder, calls: int) -> int:
    """By how much the process grows over so many calls of changing sizes: what a leak would add to each stretch of
    them.

    Other tests have run in this process, and an allocator takes a page or a thread's arena when it likes; calls that
    keep something make it grow in every stretch.
    """
    batches, process = [random_frames(count) for count in (1, 8, 9, 10, 3)], psutil.Process()
    sizes: list[int] = []
    for stretch in (_FIRST_CALLS[encoder.backend], *[calls // 2] * 4):
        for call in range(stretch):
            encoder.encode(batches[call % len(batches)])
        sizes.append(process.memory_info().rss)
    return min(int(n) for n in np.diff(sizes))


@pytest.mark.parametrize(("backend", "precision"), ENGINES)
def test_memory_stays_flat(backend: Backend, precision: Precision):
    encoder = FrozenEncoder.random(tiny_architecture(), device="cpu", backend=backend, precision=precision)
    assert grown_bytes(encoder, 2_000) < 1 << 19  # 500 bytes a call would show


@pytest.mark.slow
@pytest.mark.parametrize("backend", get_args(Backend))
def test_memory_stays_flat_over_a_million_calls(backend: Backend):
    encoder = FrozenEncoder.random(tiny_architecture(), device="cpu", backend=backend)
    assert grown_bytes(encoder, 1_000_000) < 4 << 20


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
        signal.alarm(60)
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
    np.testing.assert_allclose(results.get(timeout=60), expected[0], atol=1e-6)
    process.join()
"""


def test_forked_and_spawned_processes_encode(tmp_path: Path):
    architecture = Architecture((64, 64, 3), latent_dim=32)  # large enough for torch to use its threads
    encoders = [FrozenEncoder.random(architecture, device="cpu", backend=b, precision=p) for b, p in ENGINES]
    (tmp_path / "work.pickle").write_bytes(pickle.dumps((encoders, random_frames(11, (64, 64, 3)))))
    script = tmp_path / "processes.py"
    script.write_text(PROCESSES)
    command = [sys.executable, str(script), str(tmp_path / "work.pickle")]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
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


def test_a_signal_after_openvino_has_gone_does_not_crash():
    """Each of its cores would leave a stack for signals that is not there any more."""
    done = subprocess.run([sys.executable, "-c", SIGNALLED], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
