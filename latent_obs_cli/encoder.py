"""`latent-obs encoder`: the encoder folder of a pretrained network of timm."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import OmitArgPrefixes, Positional

from latent_obs.util.errors import InputError, check_types
from latent_obs.util.progress import print_now


@dataclass(frozen=True)
class EncoderConfig:
    """Settings of `latent-obs encoder`."""

    name: Positional[str]
    """timm: and the name of the network, such as timm:resnet18.a1_in1k."""
    frames: Path
    """Folder of .npy files, to fit principal components of its features to. Of train-vae's split, the training part."""
    out: Path
    """Folder to make, with the encoder folder in it."""
    pca: int = 256
    """Principal components of the features: the values of a latent."""
    layer: int = -1
    """Feature map to take: 0 is the first and largest one, -1 the last one. What comes after it is left out."""
    grid: int = 4
    """The map is averaged over grid x grid cells."""
    weights: Path | None = None
    """File of weights of the whole network, in timm's names. By default timm downloads them."""
    device: str = "auto"
    """Where to encode the frames: auto, cpu, cuda, cuda:N, mps."""

    def __post_init__(self) -> None:
        check_types(self)
        if not self.name.startswith("timm:"):
            raise InputError(f"name must be timm: and the name of a network, such as timm:resnet18, got {self.name!r}")

    @property
    def folder(self) -> Path:
        """The encoder folder."""
        return self.out / "encoder"

    def check_name(self) -> None:
        """Check that timm is installed and has a network of this name; else an error of `timm_encoder`."""
        from latent_obs.encoder.timm_module import network_name

        network_name(self.name)


def encoder(config: OmitArgPrefixes[EncoderConfig]) -> None:
    """Make an encoder of a pretrained network, to compare with one of your own: an encoder folder like any other.

    A feature map of the network is averaged over a grid, and its principal components over your frames are the latent.
    Encoding takes far longer than with an encoder of train-vae, as such networks take larger pictures.
    """
    make_encoder(config)
    print_now(f"next: latent-obs report {config.out}")


def make_encoder(config: EncoderConfig) -> None:
    """Make the encoder folder of these settings."""
    from latent_obs.encoder.pretrained import timm_encoder
    from vae_training.data.frames import describe_datasets, get_datasets, split_held_out

    if config.folder.exists():
        raise InputError(f"out: {config.folder} exists; choose another folder")
    training, _ = split_held_out(get_datasets(config.frames))
    how = {name: getattr(config, name) for name in ("pca", "layer", "grid", "weights", "device")}
    made = timm_encoder(config.name, training, **how)
    made.provenance.update(settings={"frames": str(config.frames)}, trained_on=describe_datasets(training))
    folder, share = made.save(config.folder), made.provenance["explained_variance"]
    print_now(f"Encoder: {folder}: {made.latent_dim} components, {share:.1%} of the variance of the features")
