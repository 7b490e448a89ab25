"""Checkpoints of a training run: one safetensors file each, written atomically, without pickle.

    checkpoints/
    ├── latest.safetensors   where --resume continues
    └── best.safetensors     lowest held-out loss at the wanted beta, among comparable moments

Tensors are named "model/…", "optimizer/<parameter>/…" and "rng/…"; the file's metadata holds the rest as JSON.
Schedules and sampler follow from the settings and the step.
"""

import contextlib
import hashlib
import json
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from latent_obs.util.atomic import atomic_write
from latent_obs.util.errors import InputError, check_types, one_line, parse_json
from vae_training.model.cvae import CVAE

_FORMAT = "latent-obs-checkpoint-2"
_WITHOUT_CHECKSUM = "latent-obs-checkpoint-1"  # of earlier versions
_MODEL = "model/"
_AVERAGE = "ema/module."  # of earlier versions: an average of the weights, which was exported in their place


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0  # gradient steps taken
    best_loss: float = float("inf")  # lowest held-out loss at the wanted beta, among comparable moments
    best_step: int = -1  # that of the lowest loss; -1 before the first comparable moment
    seconds: float = 0.0  # spent training, over all resumes
    super_batch: int = 0  # frames of an epoch
    ranks: int = 1  # in runs of earlier versions the processes, each with a batch of batch_size; otherwise 1
    since_best: int = 0  # comparable moments since the best one

    def __post_init__(self) -> None:
        check_types(self)


def save_checkpoint(
    path: Path,
    model: CVAE,
    optimizer: Optimizer,
    progress: Progress,
    *,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write model, optimizer, random state and progress into one file.

    Args:
        path: The file; an existing one is kept until the new one is complete.
        model: The model.
        optimizer: Its optimizer.
        progress: How far the run has come.
        about: Further JSON: the frames that the run is trained on.
    """
    tensors = {f"{_MODEL}{k}": v for k, v in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{k}": torch.as_tensor(v) for k, v in state.items()}
    tensors["rng/cpu"] = torch.get_rng_state()
    device = next(model.parameters()).device
    if device.type == "cuda":
        tensors["rng/cuda"] = torch.cuda.get_rng_state(device)
    metadata = {"format": _FORMAT, "progress": json.dumps(asdict(progress))}
    if about is not None:
        metadata["about"] = json.dumps(about)
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    metadata["sha256"] = _checksum(tensors, metadata)
    with atomic_write(path) as aside:
        save_file(tensors, str(aside), metadata)


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps([metadata.get("progress"), metadata.get("about")]).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_about(path: Path, kind: Any) -> Any:
    """What `save_checkpoint` was given as `about`, of this type, without reading the tensors; None where there is none.

    An `InputError` if it is of another type.
    """
    if not path.exists():
        return None
    with _open(path) as file:
        about = (file.metadata() or {}).get("about", "null")
    return None if about == "null" else parse_json(about, kind, f"{path}, metadata about")


@contextlib.contextmanager
def _open(path: Path) -> Generator[Any]:
    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise _damaged(path, str(error)) from None


def _damaged(path: Path, what: str) -> InputError:
    return InputError(f"{path} is damaged: {what}. If best.safetensors is intact, rename it to latest.safetensors")


def load_checkpoint(path: Path, model: CVAE, optimizer: Optimizer | None = None) -> Progress:
    """Restore weights, optimizer state and random state from a checkpoint.

    Args:
        path: The file.
        model: A model of the same architecture, changed in place.
        optimizer: Its optimizer, changed in place; without it the random state is not restored either.

    Raises:
        InputError: The file is missing, damaged, or of another architecture.
    """
    if not path.exists():
        raise InputError(f"there is no checkpoint {path}; start the run without --resume")
    with _open(path) as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    if metadata.get("format") not in (_FORMAT, _WITHOUT_CHECKSUM):
        raise InputError(f"{path} has the checkpoint format {metadata.get('format')!r}, expected {_FORMAT!r}")
    if metadata["format"] == _FORMAT and metadata.get("sha256") != _checksum(tensors, metadata):
        raise _damaged(path, "its content is not what its checksum promises")
    try:
        progress = Progress(**parse_json(metadata.get("progress", "null"), dict[str, Any], "progress"))
    except (InputError, TypeError) as error:
        raise _damaged(path, one_line(error)) from None
    for name in [name for name in tensors if name.startswith(_AVERAGE)]:
        tensors[name.replace(_AVERAGE, _MODEL)] = tensors.pop(name)
    weights = {name.removeprefix(_MODEL): value for name, value in tensors.items() if name.startswith(_MODEL)}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"{path} is of another architecture than this run: {one_line(error)}") from None
    if optimizer is not None:
        states: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer/"):
                _, index, key = name.split("/")
                states.setdefault(int(index), {})[key] = tensor.clone()  # else it would remain mapped from the file
        optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
        torch.set_rng_state(tensors["rng/cpu"])
        device = next(model.parameters()).device
        if device.type == "cuda" and "rng/cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rng/cuda"], device)
    return progress
