"""The report: whether the latents of an encoder are any good, measured on held-out recordings.

report(ReportConfig(Path("runs/doom")))

Names are imported when they are asked for, so that `latent-obs --help` starts without torch.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vae_training.report.baselines import EncoderMeans, MeanImage, Pca, Representation, random_encoder
    from vae_training.report.config import ReportConfig
    from vae_training.report.disentanglement import DisentanglementScores, score
    from vae_training.report.factor_scenes import FactorScenes
    from vae_training.report.finding import Finding
    from vae_training.report.latents import Latents, describe
    from vae_training.report.probes import ProbeTable, probe
    from vae_training.report.reconstruction import Reconstruction
    from vae_training.report.run import ReportResult, report
    from vae_training.report.stability import Stability, measure_stability
    from vae_training.report.verdict import Numbers, verdict

_HOMES = {  # name: the module it lives in
    "DisentanglementScores": "disentanglement",
    "EncoderMeans": "baselines",
    "FactorScenes": "factor_scenes",
    "Finding": "finding",
    "Latents": "latents",
    "MeanImage": "baselines",
    "Numbers": "verdict",
    "Pca": "baselines",
    "ProbeTable": "probes",
    "Reconstruction": "reconstruction",
    "ReportConfig": "config",
    "ReportResult": "run",
    "Representation": "baselines",
    "Stability": "stability",
    "describe": "latents",
    "measure_stability": "stability",
    "probe": "probes",
    "random_encoder": "baselines",
    "report": "run",
    "score": "disentanglement",
    "verdict": "verdict",
}

__all__ = [
    "DisentanglementScores",
    "EncoderMeans",
    "FactorScenes",
    "Finding",
    "Latents",
    "MeanImage",
    "Numbers",
    "Pca",
    "ProbeTable",
    "Reconstruction",
    "ReportConfig",
    "ReportResult",
    "Representation",
    "Stability",
    "describe",
    "measure_stability",
    "probe",
    "random_encoder",
    "report",
    "score",
    "verdict",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vae_training.report' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"vae_training.report.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


class _Package(ModuleType):
    """The import system names each submodule in its package; `verdict` is the function here."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and name in _HOMES):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
