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
    from vae_training.acting_objective import ActingObjective
    from vae_training.batch import Batch
    from vae_training.config import TrainConfig
    from vae_training.contact_sheet import find_warnings, stats_table, write_contact_sheet, write_mean_sheet
    from vae_training.cvae import CVAE, Losses, gaussian_kl_nats, images_to_tensor
    from vae_training.datasets import describe_datasets, get_datasets
    from vae_training.evaluate import HeldOut, evaluate
    from vae_training.export import export_encoder, measure_latents
    from vae_training.extract import ExtractResult, extract
    from vae_training.extract_config import ExtractConfig
    from vae_training.frame_stats import FolderStats, frame_stats
    from vae_training.logs import read_log
    from vae_training.objective import ClassicObjective, Objective
    from vae_training.pictures import reconstruct, reconstruction_sheet, traversal_sheet
    from vae_training.presets import PRESETS, encoder_flops, encoder_parameters
    from vae_training.record import record
    from vae_training.record_config import RecordConfig
    from vae_training.record_policy import Policy
    from vae_training.report.config import ReportConfig
    from vae_training.report.factor_scenes import FactorScenes
    from vae_training.report.run import ReportResult
    from vae_training.rows import load_rows, targets_of, transitions_of
    from vae_training.sampling import get_random_samples
    from vae_training.schedule import ConstantBeta, CyclicalBeta, MonotonicBeta, make_schedule
    from vae_training.split import split_held_out
    from vae_training.superbatch import SuperBatches
    from vae_training.terms import Terms
    from vae_training.train import TrainResult, schedule_of, train

_HOMES = {  # name: the module it lives in
    "CVAE": "cvae",
    "PRESETS": "presets",
    "ActingObjective": "acting_objective",
    "Batch": "batch",
    "ClassicObjective": "objective",
    "ConstantBeta": "schedule",
    "CyclicalBeta": "schedule",
    "ExtractConfig": "extract_config",
    "ExtractResult": "extract",
    "FactorScenes": "report.factor_scenes",
    "FolderStats": "frame_stats",
    "HeldOut": "evaluate",
    "Losses": "cvae",
    "MonotonicBeta": "schedule",
    "Objective": "objective",
    "Policy": "record_policy",
    "RecordConfig": "record_config",
    "ReportConfig": "report.config",
    "ReportResult": "report.run",
    "SuperBatches": "superbatch",
    "Terms": "terms",
    "TrainConfig": "config",
    "TrainResult": "train",
    "describe_datasets": "datasets",
    "encoder_flops": "presets",
    "encoder_parameters": "presets",
    "evaluate": "evaluate",
    "export_encoder": "export",
    "extract": "extract",
    "find_warnings": "contact_sheet",
    "frame_stats": "frame_stats",
    "gaussian_kl_nats": "cvae",
    "get_datasets": "datasets",
    "get_random_samples": "sampling",
    "images_to_tensor": "cvae",
    "load_rows": "rows",
    "make_schedule": "schedule",
    "measure_latents": "export",
    "read_log": "logs",
    "reconstruct": "pictures",
    "reconstruction_sheet": "pictures",
    "record": "record",
    "schedule_of": "train",
    "split_held_out": "split",
    "stats_table": "contact_sheet",
    "targets_of": "rows",
    "train": "train",
    "transitions_of": "rows",
    "traversal_sheet": "pictures",
    "write_contact_sheet": "contact_sheet",
    "write_mean_sheet": "contact_sheet",
}

__all__ = [
    "CVAE",
    "PRESETS",
    "ActingObjective",
    "Batch",
    "ClassicObjective",
    "ConstantBeta",
    "CyclicalBeta",
    "ExtractConfig",
    "ExtractResult",
    "FactorScenes",
    "FolderStats",
    "HeldOut",
    "Losses",
    "MonotonicBeta",
    "Objective",
    "Policy",
    "RecordConfig",
    "ReportConfig",
    "ReportResult",
    "SuperBatches",
    "Terms",
    "TrainConfig",
    "TrainResult",
    "describe_datasets",
    "encoder_flops",
    "encoder_parameters",
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
    "make_schedule",
    "measure_latents",
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
