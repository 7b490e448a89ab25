"""What runs before an agent: recordings, the CVAE, and its training with cyclical annealing of beta.

record(RecordConfig(env="VizdoomBasic-v1", out=Path("frames")))
train(TrainConfig(frames=Path("frames"), out=Path("runs/doom")))
"""

from vae_training.config import TrainConfig
from vae_training.cvae import CVAE, Losses, gaussian_kl_nats, images_to_tensor
from vae_training.datasets import describe_datasets, get_datasets, split_held_out
from vae_training.evaluate import HeldOut, evaluate
from vae_training.export import export_encoder
from vae_training.logs import read_log
from vae_training.pictures import reconstruct, reconstruction_sheet, traversal_sheet
from vae_training.record import record
from vae_training.record_config import RecordConfig
from vae_training.sampling import get_random_samples
from vae_training.schedule import CyclicalBeta
from vae_training.superbatch import SuperBatches
from vae_training.train import TrainResult, schedule_of, train

__all__ = [
    "CVAE",
    "CyclicalBeta",
    "HeldOut",
    "Losses",
    "RecordConfig",
    "SuperBatches",
    "TrainConfig",
    "TrainResult",
    "describe_datasets",
    "evaluate",
    "export_encoder",
    "gaussian_kl_nats",
    "get_datasets",
    "get_random_samples",
    "images_to_tensor",
    "read_log",
    "reconstruct",
    "reconstruction_sheet",
    "record",
    "schedule_of",
    "split_held_out",
    "train",
    "traversal_sheet",
]
