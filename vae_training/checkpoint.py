"""Checkpoints of a training run: one safetensors file each, written aside and renamed, no pickle.

    checkpoints/
    ├── latest.safetensors   where --resume goes on
    └── best.safetensors     lowest held-out loss at the wanted beta, among the ends of cycles

Tensors are named "model/…", "optimizer/<parameter>/…" and "rng/…"; the rest is JSON in the file's metadata.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from latent_obs.atomic import written_aside
from latent_obs.errors import InputError
from vae_training.cvae import CVAE

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
    """

    step: int = 0
    best_loss: float = float("inf")
    best_step: int = -1
    seconds: float = 0.0
    super_batch: int = 0


def save_checkpoint(path: Path, model: CVAE, optimizer: Optimizer, progress: Progress) -> None:
    """Write model, optimizer, random state and progress into one file."""
    tensors: dict[str, Tensor] = {f"model/{k}": v for k, v in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{k}": torch.as_tensor(v) for k, v in state.items()}
    tensors["rng/cpu"] = torch.get_rng_state()
    device = next(model.parameters()).device
    if device.type == "cuda":
        tensors["rng/cuda"] = torch.cuda.get_rng_state(device)
    metadata = {"format": _FORMAT, "progress": json.dumps(asdict(progress))}
    with written_aside(path) as aside:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, str(aside), metadata)


def load_checkpoint(path: Path, model: CVAE, optimizer: Optimizer | None = None) -> Progress:
    """Put a checkpoint's weights, optimizer state and random state back.

    Args:
        path: The file.
        model: A model of the same architecture, changed in place.
        optimizer: Its optimizer, changed in place; None leaves it and the random state alone.

    Returns:
        How far the run had come.

    Raises:
        InputError: The file is missing, damaged, or of another architecture.
    """
    if not path.exists():
        raise InputError(f"there is no checkpoint {path}; start the run without --resume")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(f"{path} is damaged: {error}. If best.safetensors is whole, rename it to latest.safetensors") from None
    if metadata.get("format") != _FORMAT:
        raise InputError(f"{path} is no checkpoint of this format: found {metadata.get('format')!r}, expected {_FORMAT!r}")
    try:
        model.load_state_dict({k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")})
    except RuntimeError as error:
        raise InputError(f"{path} does not fit this run's architecture: {error}") from None
    if optimizer is not None:
        _restore(optimizer, model, tensors)
    return Progress(**json.loads(metadata["progress"]))


def _restore(optimizer: Optimizer, model: CVAE, tensors: dict[str, Tensor]) -> None:
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            _, index, key = name.split("/")
            states.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
    torch.set_rng_state(tensors["rng/cpu"])
    device = next(model.parameters()).device
    if device.type == "cuda" and "rng/cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng/cuda"], device)
