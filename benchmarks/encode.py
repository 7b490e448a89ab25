"""What the wrapper costs: encoding a step's frames against the bare forward pass of the same network.

The bare pass gets its input as a float tensor already, in whichever memory layout is faster, and leaves its result a tensor.
`FrozenEncoder.encode` starts from uint8 frames and gives a numpy array; `LatentVecEnv.step_wait` is all that an agent waits
for beside the game itself, with the last frames of the episodes that end encoded as well.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import tyro
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from benchmarks.common import (
    CLASSIC,
    QUICKSTART,
    calls_within,
    encode_flops,
    interleaved,
    limits,
    machine_line,
    markdown_table,
    ratio,
    seconds_per_call,
    synchronize,
)
from latent_obs import Architecture, FrozenEncoder, LatentVecEnv
from latent_obs.device import resolve_device
from latent_obs.pixels import Frames
from latent_obs.torch_threads import torch_threads


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    envs: tuple[int, ...] = (1, 8, 32)
    """Numbers of environments to measure."""
    threads: tuple[int, ...] = ()
    """Torch's threads to measure with. By default 1, as train-agent sets it, and as many as torch takes by itself."""
    rounds: int = 21
    """Interleaved repeats of each measurement."""
    seconds: float = 0.05
    """Length of one measurement; many short ones cope best with a noisy machine."""
    end_share: float = 0.01
    """Share of environment steps that end an episode, whose last frame has to be encoded too."""
    device: str = "cpu"
    """Where to encode."""


class PreparedVecEnv(VecEnv):
    """A vector environment that has its frames ready and takes no time of its own.

    Args:
        frames: uint8 (n, H, W, C), the observation of every step.
        end_share: Share of environment steps that end an episode.
    """

    def __init__(self, frames: Frames, end_share: float) -> None:
        super().__init__(len(frames), spaces.Box(0, 255, frames.shape[1:], np.uint8), spaces.Discrete(2))
        self._frames = frames
        # Decided beforehand, so that drawing random numbers is not measured.
        self._ends = [np.flatnonzero(row) for row in np.random.default_rng(0).random((1_000, len(frames))) < end_share]
        self._rewards, self._dones = np.zeros(len(frames), np.float32), np.zeros(len(frames), bool)
        self._step = 0

    def reset(self) -> Frames:
        return self._frames

    def step_async(self, actions: np.ndarray) -> None:
        pass

    def step_wait(self) -> VecEnvStepReturn:
        self._step = (self._step + 1) % len(self._ends)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in self._ends[self._step]:
            infos[i]["terminal_observation"] = self._frames[i]
        return self._frames, self._rewards, self._dones, infos

    def close(self) -> None:
        pass

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        pass

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        return [None] * self.num_envs

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


def measure(architecture: Architecture, envs: int, options: Options) -> dict[str, list[float]]:
    """Seconds per step of each arm, by round, and the GFLOP/s of the arms of `limits`."""
    device = resolve_device(options.device)
    encoder = FrozenEncoder.random(architecture, device=options.device)
    frames = np.random.default_rng(1).integers(0, 256, (envs, *architecture.img_shape), np.uint8)
    venv = LatentVecEnv(PreparedVecEnv(frames, options.end_share), encoder)
    as_trained = encoder._network
    plain = FrozenEncoder.random(architecture, device=options.device)._network.to(memory_format=torch.contiguous_format)
    # .float() keeps the strides: channels last in memory.
    x = torch.from_numpy(frames).to(device).permute(0, 3, 1, 2).float().div_(255)
    x_plain = x.contiguous()
    assert np.allclose(encoder.encode(frames), as_trained.mean(x).cpu().numpy(), atol=1e-5)

    def bare(network: Any, batch: torch.Tensor) -> Callable[[], None]:
        def call() -> None:
            network.mean(batch)
            synchronize(device)

        return call

    def timed(call: Callable[[], object]) -> Callable[[], float]:
        with torch.inference_mode():
            calls = calls_within(call, options.seconds)

        def measured() -> float:
            with torch.inference_mode():
                return seconds_per_call(call, calls)

        return measured

    arms = {
        "bare, channels last": timed(bare(as_trained, x)),
        "bare, channels first": timed(bare(plain, x_plain)),
        "encode": timed(lambda: encoder.encode(frames)),
        "step_wait": timed(venv.step_wait),
        **limits(device),
    }
    return interleaved(arms, options.rounds)


def row(name: str, architecture: Architecture, envs: int, threads: int, measured: dict[str, list[float]]) -> list[str]:
    """The table's row of one measurement."""
    bare = min((measured["bare, channels last"], measured["bare, channels first"]), key=statistics.median)
    seconds = statistics.median(bare)
    achieved = envs * encode_flops(architecture) / seconds / 1e9
    cells: Sequence[float] = [statistics.median(measured[arm]) * 1e6 for arm in ("encode", "step_wait")]
    return [
        name,
        str(envs),
        str(threads),
        f"{seconds * 1e6:,.0f}",
        *(f"{microseconds:,.0f}" for microseconds in cells),
        f"{ratio(measured['encode'], bare):.3f}",
        f"{ratio(measured['step_wait'], bare):.3f}",
        f"{achieved:.0f}",
        *(f"{achieved / statistics.median(measured[limit]):.0%}" for limit in ("matmul", "convolution")),
    ]


def main(options: Options) -> None:
    """Measure and print."""
    print(machine_line(options.device), flush=True)
    networks = {"dense 32-64-128-256, latent 32": CLASSIC, "spatial 16-32-64, latent 256": QUICKSTART}
    for name, architecture in networks.items():
        print(f"{name}: {encode_flops(architecture) / 1e6:.1f} MFLOP a frame")
    rows = []
    for count in options.threads or sorted({1, torch.get_num_threads()}):
        with torch_threads(count):
            for name, architecture in networks.items():
                for envs in options.envs:
                    rows.append(row(name, architecture, envs, count, measure(architecture, envs, options)))
    header = ["network", "envs", "threads", "bare µs", "encode µs", "step_wait µs", "encode / bare", "step_wait / bare",
              "bare GFLOP/s", "of matmul", "of large conv."]  # fmt: skip
    print(f"\n{markdown_table(header, rows)}\n")
    print(f"Medians of {options.rounds} interleaved rounds; ratios are medians of the rounds' own. Target: ≤ 1.15 at 8.")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
