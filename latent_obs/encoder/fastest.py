"""Which way of encoding is the fastest here: measured once for each kind of network, and remembered by the process."""

import contextlib
import importlib.util
import time
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from latent_obs.encoder import Backend, Precision
from latent_obs.util.errors import LatentObsError

Compute = Callable[[Tensor], Tensor]

_FRAMES = 8  # of a measurement: a common number of environments
_SECONDS = 0.015  # of calls for each way, besides the first ones
_WORTH = 0.9  # share of torch's time that another backend has to reach to be taken by itself
_SLOW = 1.25  # times the plain way, from which on a way that was asked for gets a warning


class Way(NamedTuple):
    """A backend and a number format, both decided."""

    backend: Literal["torch", "openvino"]
    precision: Literal["float32", "bfloat16"]


#: What every device has, and what others are compared with.
PLAIN = Way("torch", "float32")
_measured: dict[Hashable, dict[Way, float]] = {}


def candidates(backend: Backend, precision: Precision, device: torch.device) -> list[Way]:
    """The ways that a request allows here, the plain one first.

    "auto" does not take bfloat16: its latents differ from those of the self-check by more than the self-check allows.
    """
    one: Any = "float32" if precision == "auto" else precision
    if backend != "auto":
        return [Way(backend, one)]
    others = [Way("openvino", one)] if device.type == "cpu" and importlib.util.find_spec("openvino") else []
    return [Way("torch", one), *others]


def choose(
    build: Callable[[Way], Compute], requested: list[Way], shape: Sequence[int], kind: Hashable
) -> tuple[Way, Compute]:
    """Build the fastest of the requested ways, on the CPU.

    Args:
        build: Makes the function that computes latents, of frames uint8 (N, *shape), in a way.
        requested: From `candidates`. If there are several, one that does not work here is passed over.
        shape: Height, width and channels of the frames.
        kind: What the times depend on besides the threads: networks of one kind are measured once.
    """
    if len(requested) == 1:
        return requested[0], build(requested[0])
    key = (kind, torch.get_num_threads(), *requested)
    built = {requested[0]: build(requested[0])}
    if key not in _measured:
        for way in requested[1:]:
            with contextlib.suppress(LatentObsError, ImportError, RuntimeError):
                compute = build(way)
                compute(torch.zeros((1, *shape), dtype=torch.uint8))  # OpenVINO compiles at the first call
                built[way] = compute
        _measured[key] = milliseconds(built, shape)
    chosen = best(_measured[key])
    return chosen, built.get(chosen) or build(chosen)


def best(times: Mapping[Way, float]) -> Way:
    """The fastest way, if it is clearly faster than the first one."""
    first, fastest = next(iter(times)), min(times, key=lambda way: times[way])
    return fastest if times[fastest] < _WORTH * times[first] else first


def warn_if_slow(build: Callable[[Way], Compute], asked: Way, shape: Sequence[int], kind: Hashable) -> None:
    """Warn, once for a kind of network, of a way that is slower on the CPU than the plain one; arguments as above."""
    key = (kind, torch.get_num_threads(), PLAIN, asked)
    if asked == PLAIN or key in _measured:
        return
    times = _measured[key] = milliseconds({PLAIN: build(PLAIN), asked: build(asked)}, shape)
    if times[asked] > _SLOW * times[PLAIN]:
        warnings.warn(
            f"{asked.backend} in {asked.precision} takes {times[asked]:.2g} ms for {_FRAMES} frames on this processor, "
            f"and {PLAIN.backend} in {PLAIN.precision} {times[PLAIN]:.2g} ms: leave backend and precision out",
            stacklevel=3,
        )


def milliseconds(ways: Mapping[Way, Compute], shape: Sequence[int], frames: int = _FRAMES) -> dict[Way, float]:
    """Milliseconds of the fastest call with so many frames, in each way; the calls are interleaved."""
    batch = torch.randint(0, 256, (frames, *shape), generator=torch.Generator().manual_seed(0)).byte()
    taken: dict[Way, list[float]] = {way: [] for way in ways}
    for compute in ways.values():
        for _ in range(2):  # compiles, and fetches memory
            compute(batch)
    while any(len(times) < 3 or sum(times) < _SECONDS for times in taken.values()):
        for way, compute in ways.items():
            began = time.perf_counter()
            compute(batch)
            taken[way].append(time.perf_counter() - began)
    return {way: 1000 * min(times) for way, times in taken.items()}
