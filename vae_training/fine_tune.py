"""`train-vae --start-from`: training begins with the weights, and the layers, of a trained encoder."""

import dataclasses
from pathlib import Path

from latent_obs.errors import InputError
from latent_obs.folder import EncoderFolder, read_encoder_folder
from latent_obs.pixels import PixelContract
from vae_training.checkpoint import load_checkpoint
from vae_training.config import TrainConfig
from vae_training.cvae import CVAE

_LAYERS = ("latent_dim", "bottleneck", "widths", "strides", "first_activation", "linear_path", "standardise")


def with_layers_of(config: TrainConfig, source: Path) -> TrainConfig:
    """Settings with the layers of the encoder that training starts from.

    Args:
        config: Settings as given; layers at their defaults count as not given.
        source: The encoder folder, or the run folder that it is in.

    Raises:
        InputError: Other layers were given, or frames came to the encoder by another resize rule than that of train-vae.
        EncoderFolderError: There is no such encoder folder, or it is damaged.
    """
    folder = read_encoder_folder(source)
    architecture, default = folder.architecture, TrainConfig()
    if folder.contract != PixelContract(*architecture.img_shape):
        raise InputError(
            f"{folder.path} has a pixel contract of its own ({folder.contract}), and train-vae writes encoders of the usual "
            "one: frames would be resized in another way than before. Train an encoder anew instead"
        )
    has = {name: getattr(architecture, name) for name in _LAYERS}
    for name, value in has.items():
        if getattr(config, name) not in (value, getattr(default, name)):
            raise InputError(f"{name} is {value!r} in {source}, and {getattr(config, name)!r} was given; leave it out")
    if config.preset is not None:
        raise InputError(f"the layers are those of {source}: leave --preset out")
    return dataclasses.replace(config, **has)


def put_weights(source: Path, model: CVAE) -> None:
    """Put the weights of a trained CVAE into a model.

    Args:
        source: Its encoder folder with the decoder; or its run folder, whose checkpoint is taken where there is no decoder.
        model: Changed in place.

    Raises:
        InputError: They are of other layers or frames, or there is neither decoder nor checkpoint.
        EncoderFolderError: The folder is missing or damaged.
    """
    folder = read_encoder_folder(source)
    if folder.architecture != model.architecture:
        raise InputError(
            f"{source} is an encoder of frames {folder.architecture.img_shape}, and these are of "
            f"{model.architecture.img_shape}: record or extract frames of its size"
            if folder.architecture.img_shape != model.architecture.img_shape
            else f"{source} has other layers than this run: {folder.architecture}, and {model.architecture}"
        )
    if folder.has_decoder:
        model.encoder.load_state_dict(folder.encoder)
        model.decoder.load_state_dict(folder.decoder())
    else:
        load_checkpoint(_checkpoint_of(source, folder), model)


def _checkpoint_of(source: Path, folder: EncoderFolder) -> Path:
    for name in ("best", "latest"):
        file = folder.path.parent / "checkpoints" / f"{name}.safetensors"
        if file.exists():
            return file
    raise InputError(
        f"{source} has no decoder.safetensors and no checkpoints beside it; training on needs the whole CVAE. Give the run "
        "folder of train-vae, or an encoder folder that was exported with its decoder"
    )
