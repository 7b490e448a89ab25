"""What runs before an agent: recordings, the CVAE, and its training with cyclical annealing of beta.

record(RecordConfig(env="VizdoomBasic-v1", out=Path("frames")))
extract(ExtractConfig((Path("videos"),), out=Path("frames")))
train(TrainConfig(frames=Path("frames"), out=Path("runs/doom")))

Names are imported when they are asked for, so that worker processes start without torch.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vae_training.config import TrainConfig
    from vae_training.contact_sheet import find_warnings, stats_table, write_contact_sheet, write_mean_sheet
    from vae_training.cvae import CVAE, Losses, gaussian_kl_nats, images_to_tensor
    from vae_training.datasets import describe_datasets, get_datasets
    from vae_training.evaluate import HeldOut, evaluate
    from vae_training.export import export_encoder
    from vae_training.extract import ExtractResult, extract
    from vae_training.extract_config import ExtractConfig
    from vae_training.frame_stats import FolderStats, frame_stats
    from vae_training.logs import read_log
    from vae_training.pictures import reconstruct, reconstruction_sheet, traversal_sheet
    from vae_training.record import record
    from vae_training.record_config import RecordConfig
    from vae_training.rows import load_rows, targets_of, transitions_of
    from vae_training.sampling import get_random_samples
    from vae_training.schedule import CyclicalBeta
    from vae_training.split import split_held_out
    from vae_training.superbatch import SuperBatches
    from vae_training.train import TrainResult, schedule_of, train

_HOMES = {  # name: the module it lives in
    "CVAE": "cvae",
    "CyclicalBeta": "schedule",
    "ExtractConfig": "extract_config",
    "ExtractResult": "extract",
    "FolderStats": "frame_stats",
    "HeldOut": "evaluate",
    "Losses": "cvae",
    "RecordConfig": "record_config",
    "SuperBatches": "superbatch",
    "TrainConfig": "config",
    "TrainResult": "train",
    "describe_datasets": "datasets",
    "evaluate": "evaluate",
    "export_encoder": "export",
    "extract": "extract",
    "find_warnings": "contact_sheet",
    "frame_stats": "frame_stats",
    "gaussian_kl_nats": "cvae",
    "get_datasets": "datasets",
    "get_random_samples": "sampling",
    "load_rows": "rows",
    "targets_of": "rows",
    "transitions_of": "rows",
    "images_to_tensor": "cvae",
    "read_log": "logs",
    "reconstruct": "pictures",
    "reconstruction_sheet": "pictures",
    "record": "record",
    "schedule_of": "train",
    "split_held_out": "split",
    "stats_table": "contact_sheet",
    "train": "train",
    "traversal_sheet": "pictures",
    "write_contact_sheet": "contact_sheet",
    "write_mean_sheet": "contact_sheet",
}

__all__ = [
    "CVAE",
    "CyclicalBeta",
    "ExtractConfig",
    "ExtractResult",
    "FolderStats",
    "HeldOut",
    "Losses",
    "RecordConfig",
    "SuperBatches",
    "TrainConfig",
    "TrainResult",
    "describe_datasets",
    "evaluate",
    "export_encoder",
    "extract",
    "find_warnings",
    "frame_stats",
    "gaussian_kl_nats",
    "get_datasets",
    "get_random_samples",
    "images_to_tensor",
    "load_rows",
    "read_log",
    "reconstruct",
    "reconstruction_sheet",
    "record",
    "schedule_of",
    "split_held_out",
    "stats_table",
    "targets_of",
    "train",
    "transitions_of",
    "traversal_sheet",
    "write_contact_sheet",
    "write_mean_sheet",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vae_training' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"vae_training.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


class _Package(ModuleType):
    """The import system names each submodule in its package; `train`, `record` and others are the functions here."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and name in _HOMES):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
