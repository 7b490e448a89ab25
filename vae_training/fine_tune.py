"""Training on from an encoder that is there already: on other frames, with smaller steps.

Which frames: the old ones, so that nothing is forgotten, and new ones. `mix_frames` makes a folder of links to both, in which
what is held out comes last, as `train` wants it; nothing is copied.

    mixed/
    ├── 0_train_000_<old file>.npy, 0_train_001_<new file>.npy …
    └── 1_held_out_000_<old file>.npy …
"""

import dataclasses
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from latent_obs.architecture import Architecture
from latent_obs.errors import InputError
from latent_obs.folder import EncoderFolder, read_encoder_folder
from latent_obs.pixels import PixelContract
from vae_training.checkpoint import load_checkpoint
from vae_training.config import TrainConfig
from vae_training.cvae import CVAE

_LAYERS = ("latent_dim", "bottleneck", "widths", "strides", "first_activation", "linear_path", "standardise")
_SHORTER_STEPS = 4  # a new Adam at the old learning rate would first undo what the weights know


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


def check_can_start_from(source: Path) -> None:
    """Refuse, before anything else is done, an encoder that training cannot start from.

    Raises:
        InputError: It has neither decoder nor checkpoint, or a pixel contract of its own.
        EncoderFolderError: It is missing or damaged.
    """
    with_layers_of(TrainConfig(), source)
    folder = read_encoder_folder(source)
    if not folder.has_decoder:
        _checkpoint_of(source, folder)


def _checkpoint_of(source: Path, folder: EncoderFolder) -> Path:
    for name in ("best", "latest"):
        file = folder.path.parent / "checkpoints" / f"{name}.safetensors"
        if file.exists():
            return file
    raise InputError(
        f"{source} has no decoder.safetensors and no checkpoints beside it; training on needs the whole CVAE. Give the run "
        "folder of train-vae, or an encoder folder that was exported with its decoder"
    )


def settings_of(folder: EncoderFolder) -> TrainConfig:
    """The settings that an encoder was trained with, from its provenance; the defaults with its layers where it tells none.

    Raises:
        InputError: They are of a newer version.
    """
    saved = folder.provenance.get("settings")
    if isinstance(saved, dict):
        return TrainConfig.from_json(saved)
    architecture: Architecture = folder.architecture
    return TrainConfig(**{name: getattr(architecture, name) for name in _LAYERS})


@dataclass(frozen=True)
class MixedFrames:
    """A folder of links to old and new frame files.

    Attributes:
        folder: For `TrainConfig.frames`.
        held_out: Files held out, the last ones by name.
        weights: Share of each of the others in a super-batch.
    """

    folder: Path
    held_out: int
    weights: tuple[float, ...]


def mix_frames(
    folder: Path,
    old: Sequence[Path],
    new: Sequence[Path],
    held_out: Sequence[Path],
    *,
    new_share: float = 0.5,
) -> MixedFrames:
    """Make a folder of links to frame files; the same files give the same folder, and one that is there is kept.

    Args:
        folder: To make; it appears whole or not at all.
        old: Files to train on that the encoder knows.
        new: Files to train on that it does not.
        held_out: Files not to train on, old and new.
        new_share: How much of each super-batch is from the new files, equally from each; above 0, at most 1.

    Raises:
        InputError: A share out of range, no file, or two files of one name: checkpoints tell them apart by it.
    """
    if not 0 < new_share <= 1:
        raise InputError(f"the share of new frames must be above 0 and at most 1, got {new_share}")
    names = [file.name for file in (*old, *new, *held_out)]
    if not new or not held_out or len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise InputError(
            f"frames to mix need new files to train on, files to hold out, and names that differ: {len(new)} new, "
            f"{len(held_out)} held out, twice: {twice}"
        )
    if new_share == 1:
        old = []
    links = {f"0_train_{i:03d}_{file.name}": file for i, file in enumerate((*old, *new))}
    links |= {f"1_held_out_{i:03d}_{file.name}": file for i, file in enumerate(held_out)}
    if not folder.exists():
        link_files(folder, links)
    weights = [(1 - new_share) / len(old) if i < len(old) else new_share / len(new) for i in range(len(old) + len(new))]
    return MixedFrames(folder, len(held_out), tuple(weights) if old else ())


def link_files(folder: Path, links: dict[str, Path]) -> None:
    """Make a folder of symbolic links by name; it appears whole or not at all.

    The rows beside a frame file are found where the file itself is.
    """
    aside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed; links, not what they lead to
    aside.mkdir(parents=True)
    for name, file in links.items():
        (aside / name).symlink_to(file.resolve())
    aside.rename(folder)


def fine_tune_settings(
    base: TrainConfig, mixed: MixedFrames, start_from: Path, out: Path, *, epochs: int, learning_rate: float | None = None,
    device: str = "auto", seed: int = 0,
) -> TrainConfig:  # fmt: skip
    """Settings of a short training run that starts from an encoder.

    Beta stays at its wanted value (a cycle would let go of the latents first, and align them anew after), and the learning
    rate falls to 0 by half a cosine, so that the run ends settled however short it is.

    Args:
        base: What the encoder was trained with; its objective and network are kept.
        mixed: From `mix_frames`.
        start_from: The encoder folder or run folder.
        out: Run folder to make.
        epochs: Super-batches to train on.
        learning_rate: At the start; a quarter of the base's by default.
        device: Where to train.
        seed: Of samples and noise.
    """
    return dataclasses.replace(
        base, frames=mixed.folder, out=out, start_from=start_from, preset=None, epochs=epochs, schedule="constant",
        batch_freeze=0, learning_rate=base.learning_rate / _SHORTER_STEPS if learning_rate is None else learning_rate,
        learning_rate_schedule="cosine", warm_up_steps=0, patience=None, super_batch=None, held_out=mixed.held_out,
        dataset_weights=mixed.weights, allow_added_files=False, device=device, seed=seed,
    )  # fmt: skip
