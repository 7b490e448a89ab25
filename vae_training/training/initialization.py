"""How the weights of a run begin: from measurements of its frames, or from a trained CVAE."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from latent_obs.encoder.folder import read_encoder_folder
from latent_obs.pixels import PixelContract
from latent_obs.util.errors import InputError
from vae_training.data.loader import get_random_samples
from vae_training.model.augmentation import CHANGES, augment
from vae_training.model.cvae import CVAE
from vae_training.training.checkpoint import load_checkpoint
from vae_training.training.config import LAYERS, TrainConfig
from vae_training.training.logs import to_images

_SAMPLE_FRAMES = 10_000  # for principal components: many times their number
_SAMPLE_BYTES = 256 << 20  # as float32; fewer frames if they are large


def start_from_data(config: TrainConfig, model: CVAE, training: Sequence[NDArray[np.uint8]]) -> None:
    """Set what is measured on the frames: principal components, mean image and spread.

    A function of the frames and the seed alone, so that all processes of a run begin with the same weights.
    """
    assert config.augment is not None  # the trainer has chosen it
    if model.encoder.standard is not None:
        values = int(np.prod(model.architecture.img_shape))
        frames = get_random_samples(
            training,
            min(_SAMPLE_FRAMES, sum(len(d) for d in training), max(256, _SAMPLE_BYTES // (4 * values))),
            list(config.dataset_weights) or None,
            normalize=False,
            seed=np.random.default_rng([config.seed, 2]),
            replace_small=True,
        )
        images = to_images(model, frames)
        noise = np.random.default_rng([config.seed, 3]).standard_normal((len(images), CHANGES), np.float32)
        # As training sees them, and components of changed frames show unseen recordings better.
        model.measure(augment(images, config.augment, torch.from_numpy(noise).to(images.device)))


def with_layers_of(config: TrainConfig, source: Path) -> TrainConfig:
    """The settings, with the layers of the encoder (or run) folder that training starts from.

    Raises:
        InputError: Other layers were given, or the encoder has another pixel contract than train-vae writes.
    """
    folder = read_encoder_folder(source)
    architecture, default = folder.architecture, TrainConfig()
    if folder.contract != PixelContract(*architecture.img_shape):
        raise InputError(
            f"start_from {folder.path} has a pixel contract that train-vae cannot write: {folder.contract}"
        )
    layers = {name: getattr(architecture, name) for name in LAYERS}
    for name, value in layers.items():
        if getattr(config, name) not in (value, getattr(default, name)):
            raise InputError(f"{name} is {value!r} in {source}, and {getattr(config, name)!r} was given; leave it out")
    return replace(config, **layers)


def put_weights(source: Path, model: CVAE) -> None:
    """Load the weights of an encoder (or run) folder into a model; without a decoder, those of its checkpoint.

    Raises:
        InputError: The layers or frames differ, or there is neither decoder nor checkpoint.
    """
    folder = read_encoder_folder(source)
    theirs, ours = folder.architecture, model.architecture
    if theirs != ours:
        raise InputError(f"start_from {source} is of other layers or frame size than this run: {theirs}, and {ours}")
    if folder.has_decoder:
        model.encoder.load_state_dict(folder.encoder)
        model.decoder.load_state_dict(folder.decoder())
        return
    checkpoints = folder.path.parent / "checkpoints"
    found = [name for name in ("best", "latest") if (checkpoints / f"{name}.safetensors").exists()]
    if not found:
        raise InputError(
            f"start_from {source} has neither decoder.safetensors nor checkpoints beside it; give a run of train-vae"
        )
    load_checkpoint(checkpoints / f"{found[0]}.safetensors", model)
