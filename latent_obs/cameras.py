"""Which encoders read which image of an observation."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from gymnasium import spaces

from latent_obs.errors import InputError
from latent_obs.frozen import FrozenEncoder
from latent_obs.reader import PixelReader

if TYPE_CHECKING:
    from latent_obs.statistics import LatentStatistics

OneEncoder: TypeAlias = FrozenEncoder | str | os.PathLike[str]
#: One encoder; several that all read the same image; or for each entry of a Dict observation the one, or those, that read it.
EncoderLike: TypeAlias = OneEncoder | Sequence[OneEncoder] | Mapping[str, OneEncoder | Sequence[OneEncoder]]


@dataclass(frozen=True)
class Camera:
    """One image of the observation, and the encoders that read it.

    Attributes:
        key: The entry of the Dict that holds the image; None where the observation is the image.
        readers: How each encoder finds its frames in an observation.
        encoders: As many; their latents are joined in this order.
        statistics: By which each encoder's latents are standardised; None leaves them as they are.
    """

    key: str | None
    readers: tuple[PixelReader, ...]
    encoders: tuple[FrozenEncoder, ...]
    statistics: "tuple[LatentStatistics | None, ...]"

    @property
    def latent_dim(self) -> int:
        """Values of one latent, of all encoders together."""
        return sum(encoder.latent_dim for encoder in self.encoders)


def encoders_by_key(encoder: EncoderLike, pixel_key: str | None, device: str) -> dict[str | None, tuple[FrozenEncoder, ...]]:
    """The encoders of each camera; a folder named twice is loaded once."""
    loaded: dict[str, FrozenEncoder] = {}

    def load(one: Any) -> FrozenEncoder:
        if isinstance(one, FrozenEncoder):
            return one
        if not isinstance(one, str | os.PathLike):
            raise InputError(f"encoder must be an encoder folder or a FrozenEncoder, got {type(one).__name__}")
        name = os.fspath(one)
        if name not in loaded:
            loaded[name] = FrozenEncoder.load(name, device=device)
        return loaded[name]

    def load_all(what: Any) -> tuple[FrozenEncoder, ...]:
        several: Iterable[Any] = what if isinstance(what, list | tuple) else (what,)
        encoders = tuple(load(one) for one in several)
        if not encoders:
            raise InputError("encoder is an empty list; give one encoder or more")
        return encoders

    if not isinstance(encoder, Mapping):
        return {pixel_key: load_all(encoder)}
    if pixel_key is not None:
        raise InputError(f"pixel_key {pixel_key!r} was given, and encoder says which entries hold pixels: {sorted(encoder)}")
    if not encoder:
        raise InputError("encoder is an empty mapping; give an encoder for one entry or more")
    return {key: load_all(what) for key, what in encoder.items()}


def find_camera(space: spaces.Space[Any], key: str | None, encoders: tuple[FrozenEncoder, ...], standardise: bool) -> Camera:
    """The image of a space that encoders read.

    Args:
        space: The observation space of one environment.
        key: The entry of a Dict that holds the image; None finds it.
        encoders: They all read it.
        standardise: Standardise their latents.

    Raises:
        InputError: There is no such image, or an encoder without statistics.
    """
    readers = tuple(PixelReader(space, encoder.contract, key) for encoder in encoders)
    for reader in readers:
        reader.refuse_blur()
    statistics: list[LatentStatistics | None] = [encoder.statistics if standardise else None for encoder in encoders]
    for encoder, known in zip(encoders, statistics, strict=True):
        if standardise and known is None:
            raise InputError(
                f"standardise needs the statistics of the training frames, and {encoder!r} has none. Train it, or go on "
                "training it, with this version (latent-obs train-vae … --resume), or let VecNormalize learn them during RL"
            )
    return Camera(readers[0].key, readers, encoders, tuple(statistics))
