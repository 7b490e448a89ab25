"""What a step's latents cost: the bare forward pass, what people write by hand, and the wrappers with each backend.

Around environments that take no time of their own, of whose steps one in a hundred ends an episode: so each step brings
a frame per environment, and now and then the last frame of an episode, which has to be encoded as well.

- bare: `Encoder.mean` of a float tensor that is ready, in the memory layout that is faster, left a tensor.
- by hand: the usual VecEnvWrapper: permute, contiguous, float, divide, `model(x)` under no_grad, last frames one by
one.
- one each: a `LatentObservation` around each environment, in a DummyVecEnv.
- torch, openvino, … : `VecLatentObservation` with that backend and precision.
- torchrl: its ToTensorImage transform, and the same network as the next one. Without last frames, which it does not
encode.
"""

import importlib.util
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper
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
from latent_obs import Architecture, FrozenEncoder, LatentObservation, VecLatentObservation
from latent_obs.encoder.architecture import Encoder
from latent_obs.encoder.fastest import Backend, Precision
from latent_obs.pixels import Frames
from latent_obs.util.device import resolve_device, torch_threads
from latent_obs.util.words import counted

NETWORKS = {
    "base": Architecture((64, 64, 3), 256, (64, 128), (4, 2), bottleneck="spatial", standardize=True),  # the default
    "small": QUICKSTART,
    "dense": CLASSIC,
}
BY_HAND, ONE_EACH, BARE = "by hand", "one each", "bare"


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    envs: tuple[int, ...] = (8,)
    """Numbers of environments to measure."""
    networks: tuple[str, ...] = ("base", "dense")
    """Which of the networks: base, small, dense."""
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


@dataclass
class Ready:
    """The frames of all environments, and which of them end an episode at which step."""

    frames: Frames
    end_share: float
    ends: Any = field(init=False)

    def __post_init__(self) -> None:
        # Decided beforehand, so that drawing random numbers is not measured.
        self.ends = np.random.default_rng(0).random((1_000, len(self.frames))) < self.end_share


class ReadyVecEnv(VecEnv):
    """A vector environment that has its frames ready and takes no time of its own."""

    def __init__(self, ready: Ready) -> None:
        frames = ready.frames
        super().__init__(len(frames), spaces.Box(0, 255, frames.shape[1:], np.uint8), spaces.Discrete(2))
        self._frames, self._ends = frames, ready.ends
        self._rewards, self._step = np.zeros(len(frames), np.float32), 0

    def reset(self) -> Frames:
        return self._frames

    def step_async(self, actions: np.ndarray) -> None:
        pass

    def step_wait(self) -> VecEnvStepReturn:
        self._step = (self._step + 1) % len(self._ends)
        dones = self._ends[self._step]
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(dones):
            infos[i]["terminal_observation"] = self._frames[i]
        return self._frames, self._rewards, dones, infos

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


class ReadyEnv(gym.Env[Any, Any]):
    """One environment of the same kind, for a wrapper around each."""

    action_space = spaces.Discrete(2)

    def __init__(self, ready: Ready, number: int) -> None:
        self._frame, self._ends, self._step = ready.frames[number], ready.ends[:, number].tolist(), 0
        self.observation_space = spaces.Box(0, 255, self._frame.shape, np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self._frame, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._step = (self._step + 1) % len(self._ends)
        return self._frame, 0.0, self._ends[self._step], False, {}


class ByHand(VecEnvWrapper):
    """The wrapper that tutorials show: right, and without a thought for speed."""

    def __init__(self, venv: VecEnv, model: Encoder, latent_dim: int, device: torch.device) -> None:
        super().__init__(venv, observation_space=spaces.Box(-np.inf, np.inf, (latent_dim,), np.float32))
        self.model, self.device = model, device

    def encode(self, frames: Any) -> Any:
        with torch.no_grad():
            x = torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous().to(self.device).float() / 255.0
            mean, _ = self.model(x)
            return mean.cpu().numpy()

    def reset(self) -> Any:
        return self.encode(self.venv.reset())

    def step_wait(self) -> VecEnvStepReturn:
        observation, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            if "terminal_observation" in info:
                info["terminal_observation"] = self.encode(info["terminal_observation"][None])[0]
        return self.encode(observation), rewards, dones, infos


def torchrl_step(model: Encoder, frames: Frames, device: torch.device) -> Callable[[], object] | None:
    """A step's transform by TorchRL; None where it is not installed."""
    if importlib.util.find_spec("torchrl") is None:
        return None
    from tensordict import TensorDict  # pyright: ignore[reportMissingImports]
    from torchrl.envs.transforms import (  # pyright: ignore[reportMissingImports]
        Compose,
        ObservationTransform,
        ToTensorImage,
    )

    class Encoding(ObservationTransform):
        def _apply_transform(self, obs: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                return model(obs.to(device))[0]

    transform = Compose(ToTensorImage(in_keys=["pixels"]), Encoding(in_keys=["pixels"], out_keys=["latent"]))

    def step() -> object:
        data = TensorDict({"pixels": torch.from_numpy(frames)}, batch_size=[len(frames)])
        return transform(data)["latent"].cpu().numpy()

    return step


def backends(device: torch.device) -> dict[str, tuple[Backend, Precision]]:
    """What the wrapper is measured with: what is installed and computes on this device."""
    found: dict[str, tuple[Backend, Precision]] = {"torch": ("torch", "float32"), "torch bf16": ("torch", "bfloat16")}
    if device.type == "cpu" and importlib.util.find_spec("openvino") is not None:
        found |= {"openvino": ("openvino", "float32"), "openvino bf16": ("openvino", "bfloat16")}
    return found


def steps(architecture: Architecture, envs: int, options: Options) -> dict[str, Callable[[], object]]:
    """What is measured: a function per arm that does one step."""
    device = resolve_device(options.device)
    shared = FrozenEncoder.random(architecture, device=device)
    ready = Ready(
        np.random.default_rng(1).integers(0, 256, (envs, *architecture.img_shape), np.uint8), options.end_share
    )
    with torch.random.fork_rng(devices=[]):
        model = Encoder(architecture)
    model.load_state_dict(shared._network.state_dict())
    model.to(device).eval()
    # .float() keeps the strides: channels last in memory.
    x = torch.from_numpy(ready.frames).to(device).permute(0, 3, 1, 2).float().div_(255)
    x_plain = x.contiguous()

    def bare(network: Encoder, batch: torch.Tensor) -> Callable[[], object]:
        def call() -> None:
            with torch.inference_mode():
                network.mean(batch)
            synchronize(device)

        return call

    def one_each() -> VecEnv:
        return DummyVecEnv(
            [lambda number=number: LatentObservation(ReadyEnv(ready, number), shared) for number in range(envs)]
        )

    each, actions = one_each(), np.zeros(envs, np.int64)
    each.reset()
    by_hand = ByHand(ReadyVecEnv(ready), model, architecture.latent_dim, device)
    arms: dict[str, Callable[[], object]] = {
        f"{BARE}, channels last": bare(shared._network, x),
        f"{BARE}, channels first": bare(model, x_plain),
        BY_HAND: by_hand.step_wait,
        ONE_EACH: lambda: each.step(actions),
    }
    step = torchrl_step(model, ready.frames, device)
    if step is not None:
        arms["torchrl"] = step
    expected = by_hand.reset()
    for name, (backend, precision) in backends(device).items():
        encoder = FrozenEncoder.random(architecture, device=device, backend=backend, precision=precision)
        encoder.warm_up([envs, envs + 1])
        venv = VecLatentObservation(ReadyVecEnv(ready), encoder)
        latents: Any = venv.reset()
        np.testing.assert_allclose(latents, expected, atol=0.02 * np.abs(expected).max())
        arms[name] = venv.step_wait
    return arms


def measure(architecture: Architecture, envs: int, options: Options) -> dict[str, list[float]]:
    """Seconds per step of each arm, by round, and the GFLOP/s of the arms of `limits`."""

    def timed(call: Callable[[], object]) -> Callable[[], float]:
        calls = calls_within(call, options.seconds)
        return lambda: seconds_per_call(call, calls)

    arms = {name: timed(call) for name, call in steps(architecture, envs, options).items()}
    return interleaved({**arms, **limits(resolve_device(options.device))}, options.rounds)


def table(name: str, envs: int, threads: int, options: Options) -> str:
    """A measurement as a table."""
    architecture = NETWORKS[name]
    measured = measure(architecture, envs, options)
    large = {limit: statistics.median(measured.pop(limit)) for limit in ("matmul", "convolution")}
    rows = []
    for arm, seconds in measured.items():
        median = statistics.median(seconds)
        # Bare steps have no last frames of episodes, and neither has TorchRL's transform.
        frames = envs * (1.0 if arm.startswith(BARE) or arm == "torchrl" else 1.0 + options.end_share)
        gflops = frames * encode_flops(architecture) / median / 1e9
        rows.append(
            [
                arm,
                f"{median * 1e6:,.0f}",
                f"{envs / median:,.0f}",
                f"{ratio(measured[BY_HAND], seconds):.2f}",
                f"{ratio(measured[ONE_EACH], seconds):.2f}",
                f"{gflops:.0f}",
                f"{gflops / large['convolution']:.0%}",
            ]
        )
    header = ["step", "µs", "frames/s", "× by hand", "× one each", "GFLOP/s", "of large conv."]
    return (
        f"\n{name} ({encode_flops(architecture) / 1e6:.1f} MFLOP a frame), {envs} environments, "
        f"{counted(threads, 'thread')}; a large "
        f"convolution has {large['convolution']:.0f} GFLOP/s, a large product {large['matmul']:.0f}, in float32:\n\n"
        + markdown_table(header, rows)
    )


def main(options: Options) -> None:
    """Measure and print."""
    print(machine_line(options.device), flush=True)
    for package in ("torchrl", "openvino"):
        if importlib.util.find_spec(package) is None:
            print(f"{package} is not installed, and left out.")
    for count in options.threads or sorted({1, torch.get_num_threads()}):
        with torch_threads(count):
            for name in options.networks:
                for envs in options.envs:
                    print(table(name, envs, count, options), flush=True)
    print(f"\nMedians of {options.rounds} interleaved rounds; ratios are medians of the rounds' own.")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
