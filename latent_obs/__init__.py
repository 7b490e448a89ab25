"""What runs beside an agent: the frozen encoder and the wrappers that turn pixels into mean latent vectors.

    env = latent_obs.make("VizdoomHealthGathering-v1", encoder="runs/doom/encoder")

Names are imported at first use, so that worker processes which only resize frames never import torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latent_obs.architecture import Architecture
    from latent_obs.drift import DriftMonitor, DriftReport, DriftWarning
    from latent_obs.environments import make_pixel_env
    from latent_obs.errors import (
        DeviceError,
        EncoderFolderError,
        GameFaultError,
        GameLostError,
        InputError,
        LatentObsError,
        MissingExtraError,
        TrainingDivergedError,
    )
    from latent_obs.faults import RestartOnFault
    from latent_obs.features import FeatureObservation
    from latent_obs.frozen import FrozenEncoder
    from latent_obs.gym_vector import VectorLatentObservation
    from latent_obs.last_frame import LastRealFrame
    from latent_obs.minerl_game.env import MineRLEnv
    from latent_obs.minerl_game.make import make_minerl, register_minerl
    from latent_obs.old_gym.adapter import OldGymEnv
    from latent_obs.one_line import make, wrap
    from latent_obs.pca import PCA, fit_pca, load_pca, save_pca
    from latent_obs.pixels import PixelContract
    from latent_obs.process_vec_env import ProcessVecEnv
    from latent_obs.reader import ContractObservation
    from latent_obs.sb3 import VecLatentObservation
    from latent_obs.sb3_bridge import GymnasiumVecEnv
    from latent_obs.statistics import LatentStatistics
    from latent_obs.vectorize import make_many
    from latent_obs.wrapper import LatentObservation

_HOMES = {
    "Architecture": "architecture",
    "ContractObservation": "reader",
    "DeviceError": "errors",
    "DriftMonitor": "drift",
    "DriftReport": "drift",
    "DriftWarning": "drift",
    "EncoderFolderError": "errors",
    "FeatureObservation": "features",
    "FrozenEncoder": "frozen",
    "GameFaultError": "errors",
    "GameLostError": "errors",
    "GymnasiumVecEnv": "sb3_bridge",
    "InputError": "errors",
    "LastRealFrame": "last_frame",
    "LatentObsError": "errors",
    "LatentObservation": "wrapper",
    "LatentStatistics": "statistics",
    "MineRLEnv": "minerl_game.env",
    "MissingExtraError": "errors",
    "OldGymEnv": "old_gym.adapter",
    "PCA": "pca",
    "PixelContract": "pixels",
    "ProcessVecEnv": "process_vec_env",
    "RestartOnFault": "faults",
    "TrainingDivergedError": "errors",
    "VecLatentObservation": "sb3",
    "VectorLatentObservation": "gym_vector",
    "fit_pca": "pca",
    "load_pca": "pca",
    "make": "one_line",
    "make_many": "vectorize",
    "make_minerl": "minerl_game.make",
    "make_pixel_env": "environments",
    "register_minerl": "minerl_game.make",
    "save_pca": "pca",
    "wrap": "one_line",
}

__all__ = [
    "PCA",
    "Architecture",
    "ContractObservation",
    "DeviceError",
    "DriftMonitor",
    "DriftReport",
    "DriftWarning",
    "EncoderFolderError",
    "FeatureObservation",
    "FrozenEncoder",
    "GameFaultError",
    "GameLostError",
    "GymnasiumVecEnv",
    "InputError",
    "LastRealFrame",
    "LatentObsError",
    "LatentObservation",
    "LatentStatistics",
    "MineRLEnv",
    "MissingExtraError",
    "OldGymEnv",
    "PixelContract",
    "ProcessVecEnv",
    "RestartOnFault",
    "TrainingDivergedError",
    "VecLatentObservation",
    "VectorLatentObservation",
    "fit_pca",
    "load_pca",
    "make",
    "make_many",
    "make_minerl",
    "make_pixel_env",
    "register_minerl",
    "save_pca",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'latent_obs' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"latent_obs.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
