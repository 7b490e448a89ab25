"""Checkpoints of a training run: one safetensors file each, written aside and renamed, no pickle.

    checkpoints/
    ├── latest.safetensors   where --resume goes on
    └── best.safetensors     lowest held-out loss at the wanted beta, among the ends of cycles

Tensors are named "model/…", "optimizer/<parameter>/…" and "rng/…", and "<part>/…" for other parts of a run, such as
"ema"; the rest is JSON in the file's metadata. All that a run has besides follows from its settings and the step:
schedules, sampler.
"""

import contextlib
import json
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from latent_obs.util.atomic import atomic_write
from latent_obs.util.errors import InputError
from vae_training.data.frames import explain_disk_full
from vae_training.model.cvae import CVAE

_FORMAT = "latent-obs-checkpoint-1"


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        step: Gradient steps taken.
        best_loss: Lowest held-out loss at the wanted beta at the end of a cycle; infinity before the first.
        best_step: The step it belongs to; -1 before the first.
        seconds: Wall-clock seconds spent training, over all resumes.
        super_batch: Frames of an epoch; kept over resumes, so that files which were added do not shift the schedule.
        ranks: Processes that train together; their number decides what a step is.
        since_best: Comparable moments since the best one, for early stopping.
    """

    step: int = 0
    best_loss: float = float("inf")
    best_step: int = -1
    seconds: float = 0.0
    super_batch: int = 0
    ranks: int = 1
    since_best: int = 0


def save_checkpoint(
    path: Path,
    model: CVAE,
    optimizer: Optimizer,
    progress: Progress,
    *,
    parts: Mapping[str, nn.Module] | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write model, optimizer, random state and progress into one file.

    Args:
        path: The file; the one that is there stays until the new one is whole.
        model: The model.
        optimizer: Its optimizer.
        progress: How far the run has come.
        parts: Other modules of the run by name, such as the average of the weights, or heads.
        about: What else to keep, as JSON: the frames that the run is trained on.

    Raises:
        DiskFullError: (an OSError) the disk is full; the file that was there is whole.
    """
    tensors: dict[str, Tensor] = {f"model/{k}": v for k, v in model.state_dict().items()}
    for part, module in (parts or {}).items():
        tensors |= {f"{part}/{k}": v for k, v in module.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{k}": torch.as_tensor(v) for k, v in state.items()}
    tensors["rng/cpu"] = torch.get_rng_state()
    device = next(model.parameters()).device
    if device.type == "cuda":
        tensors["rng/cuda"] = torch.cuda.get_rng_state(device)
    metadata = {"format": _FORMAT, "progress": json.dumps(asdict(progress))}
    if about is not None:
        metadata["about"] = json.dumps(about)
    kept = "The last good checkpoint is kept; free some space, and go on with --resume"
    with explain_disk_full(path, kept), atomic_write(path) as aside:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, str(aside), metadata)


def read_about(path: Path) -> dict[str, Any] | None:
    """What `save_checkpoint` was given as `about`; None where it was given nothing, or there is no such file.

    Raises:
        InputError: The file is damaged.
    """
    if not path.exists():
        return None
    with _opened(path) as file:
        text = (file.metadata() or {}).get("about")
    return None if text is None else json.loads(text)


@contextlib.contextmanager
def _opened(path: Path) -> Generator[Any]:
    """The open file, of which only what is asked for is read."""
    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise InputError(
            f"{path} is damaged: {error}. If best.safetensors is whole, rename it to latest.safetensors"
        ) from None


def load_checkpoint(
    path: Path, model: CVAE, optimizer: Optimizer | None = None, *, parts: Mapping[str, nn.Module] | None = None
) -> Progress:
    """Put a checkpoint's weights, optimizer state and random state back.

    Args:
        path: The file.
        model: A model of the same architecture, changed in place.
        optimizer: Its optimizer, changed in place; None leaves it and the random state alone.
        parts: Other modules that were saved with it, changed in place.

    Returns:
        How far the run had come.

    Raises:
        InputError: The file is missing, damaged, or of another architecture.
    """
    if not path.exists():
        raise InputError(f"there is no checkpoint {path}; start the run without --resume")
    with _opened(path) as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if metadata.get("format") != _FORMAT:
        raise InputError(
            f"{path} is no checkpoint of this format: found {metadata.get('format')!r}, expected {_FORMAT!r}"
        )
    for part, module in {"model": model, **(parts or {})}.items():
        prefix = f"{part}/"
        try:
            module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        except RuntimeError as error:
            raise InputError(
                f"{path} does not fit this run's architecture: {error}. Give the settings it was made with, or "
                "choose another --out"
            ) from None
    if optimizer is not None:
        _restore(optimizer, model, tensors)
    return Progress(**json.loads(metadata["progress"]))


def _restore(optimizer: Optimizer, model: CVAE, tensors: dict[str, Tensor]) -> None:
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            _, index, key = name.split("/")
            states.setdefault(int(index), {})[key] = tensor.clone()  # else it would stay a part of the file, mapped
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
    torch.set_rng_state(tensors["rng/cpu"])
    device = next(model.parameters()).device
    if device.type == "cuda" and "rng/cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng/cuda"], device)
