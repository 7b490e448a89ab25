"""`ObservationEncoder`: reads the pixels of observations, encodes, standardizes and assembles what an agent sees.

The wrappers for one environment, for Gymnasium's vectors and for Stable-Baselines3's are thin layers around it.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from latent_obs.encoder.frozen import FrozenEncoder, Latents
from latent_obs.pixels import brief
from latent_obs.util.errors import InputError, check_count
from latent_obs.wrappers.features import Slot
from latent_obs.wrappers.pixel_reader import PixelReader

if TYPE_CHECKING:
    from latent_obs.wrappers.drift import DriftMonitor

OneEncoder: TypeAlias = FrozenEncoder | str | os.PathLike[str]
#: One encoder; several that all read the same image; or for each entry of a Dict observation the encoder, or the
#: encoders, that read it.
EncoderLike: TypeAlias = OneEncoder | Sequence[OneEncoder] | Mapping[str, OneEncoder | Sequence[OneEncoder]]


class OptionsDict(TypedDict, total=False):
    """The fields of `ObservationOptions` as the keyword arguments of the wrappers."""

    device: str
    pixel_key: str | None
    latent_only: bool
    flatten: bool
    keep_pixels: bool
    standardize: bool
    history: int
    monitor: "DriftMonitor | None"


@dataclass(frozen=True)
class ObservationOptions:
    """What an agent sees: the keyword arguments that all wrappers share.

    Attributes:
        device: Where to encode if `encoder` is a folder: "auto", "cpu", "cuda", "cuda:1", "mps".
        pixel_key: Entry of a Dict observation that holds the pixels. Needed only if there are several images.
        latent_only: Drop every other entry of a Dict observation.
        flatten: Join the other entries, in the order of the Dict, to the latent: one float32 vector, as an MLP policy
            takes. They must be vectors of floats; if not, put `FeatureObservation` around the environment first.
        keep_pixels: Keep the image beside its latent: an observation of pixels becomes a Dict with "pixels" and
            "latent", and a Dict keeps the image and gets "<entry>_latent".
        standardize: Shift and scale latents by their mean and deviation over the training frames, which the encoder
            folder holds.
        history: Number of latents to show, the oldest first. The first one of an episode fills all places.
        monitor: A `DriftMonitor` that observes every frame and latent; for one encoder and one image.
    """

    device: str = "auto"
    pixel_key: str | None = None
    latent_only: bool = False
    flatten: bool = False
    keep_pixels: bool = False
    standardize: bool = False
    history: int = 1
    monitor: "DriftMonitor | None" = None

    def __post_init__(self) -> None:
        check_count("history", self.history)
        if self.keep_pixels and self.flatten:
            raise InputError("keep_pixels keeps the image, and flatten makes one vector: choose one of them")

    @property
    def joins_entries(self) -> bool:
        """Whether the other entries of a Dict are joined to the latent."""
        return self.flatten and not self.latent_only


class ObservationEncoder:
    """Turns observations with pixels into observations with mean latents.

    Args:
        space: The observation space of one environment.
        encoder: An encoder folder or a loaded `FrozenEncoder`; a list of them, which all read the same image; or a
            mapping from the entries of a Dict observation that hold images to these.
        options: What to show.
        num_envs: Number of environments whose observations come as a batch; None for one environment without a batch.
        inner_index: The `index` of a `FeatureObservation` beneath, which names the numbers of joined entries.

    Attributes:
        space: The observation space of one environment as the agent sees it.
        index: What each number is, if the observation is one vector; () if it is a Dict.
        encoders: All encoders, image by image; one that reads several images occurs as often.

    Raises:
        InputError: The space has no pixels that the encoders can read, or entries that cannot be joined.
    """

    def __init__(
        self,
        space: spaces.Space[Any],
        encoder: EncoderLike,
        options: ObservationOptions | None = None,
        num_envs: int | None = None,
        inner_index: object = (),
    ) -> None:
        self.options = options = options or ObservationOptions()
        self.num_envs = num_envs
        by_key = encoders_by_key(encoder, options.pixel_key, options.device)
        pairs = [(key, one) for key, encoders in by_key.items() for one in encoders]
        self.encoders = tuple(one for _, one in pairs)
        if options.monitor is not None and len(pairs) > 1:
            raise InputError(f"monitor watches one encoder and one image, and here are {len(pairs)} encoders")
        for one in self.encoders if options.standardize else ():
            if one.statistics is None:
                raise InputError(
                    f"standardize needs the statistics of the training frames, and {one!r} has none. Resume its "
                    "training (latent-obs train-vae … --resume), or let VecNormalize learn them during RL"
                )
        self._readers = [PixelReader(space, one.contract, key) for key, one in pairs]
        for reader in self._readers:
            reader.refuse_blur()
        #: The numbers of the readers of each image, and those of each encoder, which is called once for all of them.
        self._images: dict[str | None, list[int]] = {}
        calls: dict[int, tuple[FrozenEncoder, list[int]]] = {}
        for number, (reader, one) in enumerate(zip(self._readers, self.encoders, strict=True)):
            self._images.setdefault(reader.key, []).append(number)
            calls.setdefault(id(one), (one, []))[1].append(number)
        self._calls = list(calls.values())
        self._sizes = {key: sum(self.encoders[n].latent_dim for n in numbers) for key, numbers in self._images.items()}
        entries = space.spaces if isinstance(space, spaces.Dict) else {}
        self._from_dict = isinstance(space, spaces.Dict)
        self._is_vector = not options.keep_pixels and (options.flatten or options.latent_only or not self._from_dict)
        others = {key: entry for key, entry in entries.items() if key not in self._images}
        self._joined = {key: _vector(entry, key) for key, entry in others.items()} if options.joins_entries else {}
        self.space = self._new_space(space)
        self.index: tuple[Slot, ...] = self._new_index(inner_index) if self._is_vector else ()

        count = num_envs or 1
        self._past = {key: np.zeros((count, options.history, size), np.float32) for key, size in self._sizes.items()}
        self._starts: NDArray[np.bool_] = np.ones(count, bool)  # whose next observation is the first of an episode
        if num_envs is not None:
            for one, numbers in self._calls:
                one.warm_up([num_envs * len(numbers)])

    @property
    def latent_sizes(self) -> dict[str | None, int]:
        """How many numbers are latents, history included: by entry of a Dict, or under None the first of a vector."""
        sizes = {self._latent_name(key): size * self.options.history for key, size in self._sizes.items()}
        return {None: sum(sizes.values())} if self._is_vector else {**sizes}

    def restart(self, which: NDArray[np.bool_] | None = None) -> None:
        """Begin episodes: the next observations of these environments (None: of all) are the first ones."""
        self._starts[:] |= True if which is None else which

    def __call__(
        self, observation: Any, finals: Mapping[int, Any] | None = None, new: NDArray[np.bool_] | None = None
    ) -> tuple[Any, dict[int, Any]]:
        """Encode observations; each encoder is called once.

        Args:
            observation: Of one environment, or the batch of all `num_envs`.
            finals: Last observations of episodes that ended in this step, by the number of their environment.
            new: bool (num_envs,), whose observation is new; the history of the others stays. None: all.

        Returns:
            The observation, and the last ones, as the agent sees them, in memory of their own except for entries that
            are passed on.
        """
        finals = finals or {}
        observations = [observation, *finals.values()]
        encoded: list[Any] = [None] * len(self._readers)
        for encoder, numbers in self._calls:
            parts = []
            for reader in (self._readers[number] for number in numbers):
                for place, one in enumerate(observations):
                    pixels = np.asarray(one if reader.key is None else one[reader.key])
                    if place > 0 or self.num_envs is None:
                        pixels = pixels[None]
                    if pixels.shape[1:] != reader.shape:
                        raise reader.mismatch(pixels.shape[1:])
                    parts.append(encoder.contract.convert(pixels, reader.layout, reader.name))
            frames = parts[0] if len(parts) == 1 else np.concatenate(parts)
            latents = encoder.encode(frames)
            if self.options.monitor is not None:
                self.options.monitor.observe(latents, frames)
            if self.options.standardize and encoder.statistics is not None:
                latents = encoder.statistics.standardize(latents)
            each = len(frames) // len(numbers)
            for place, number in enumerate(numbers):
                encoded[number] = latents[place * each : (place + 1) * each]
        images: dict[str | None, Latents] = {}  # (observations, latent_dim of the image), the final ones last
        for key, numbers in self._images.items():
            parts = [encoded[number] for number in numbers]
            images[key] = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        if self.options.history > 1:
            images = self._with_history(images, list(finals), new)
        count = self.num_envs or 1
        current = {key: latents[:count] if self.num_envs else latents[0] for key, latents in images.items()}
        lasts = {
            i: self._assembled(final, {key: latents[count + n] for key, latents in images.items()})
            for n, (i, final) in enumerate(finals.items())
        }
        return self._assembled(observation, current), lasts

    def _with_history(
        self, images: Mapping[str | None, Latents], ended: list[int], new: NDArray[np.bool_] | None
    ) -> dict[str | None, Latents]:
        """The last latents of each environment, (observations, history * latent_dim); final ones end their history."""
        shown: dict[str | None, Latents] = {}
        count = len(self._starts)
        moved = ~self._starts if new is None else new & ~self._starts
        for key, latents in images.items():
            past = self._past[key]  # (environments, history, latent_dim)
            lasts = np.concatenate([past[ended, 1:], latents[count:, None]], axis=1)
            past[moved, :-1] = past[moved, 1:]
            past[moved, -1] = latents[:count][moved]
            past[self._starts] = latents[:count][self._starts, None]
            shown[key] = np.concatenate([past, lasts]).reshape(len(latents), -1)
        self._starts[:] = False
        return shown

    def _assembled(self, observation: Any, latents: Mapping[str | None, Latents]) -> Any:
        """The observation with latents (..., history * latent_dim) for the pixels; one, or a batch."""
        if not self._is_vector:
            return self._entries(observation, latents)
        parts = list(latents.values())
        if len(parts) == 1 and not self._joined:
            return parts[0]
        for name, box in self._joined.items():
            part = np.asarray(observation[name])
            if part.shape != (*parts[0].shape[:-1], *box.shape):
                raise InputError(f"observation[{name!r}] has shape {part.shape}, its space declares {box.shape}")
            parts.append(part)
        return np.concatenate(parts, axis=-1, dtype=np.float32)

    def _entries(self, values: Any, latents: Mapping[str | None, Any]) -> dict[str, Any]:
        """The entries of an observation, or of its space, with latents for the pixels or beside them."""
        if not self._from_dict:
            return {"pixels": values, "latent": latents[None]}
        entries: dict[str, Any] = {}
        for key, value in values.items():
            if self.options.keep_pixels if key in latents else not self.options.latent_only:
                entries[key] = value
            if key in latents:
                entries[self._latent_name(key)] = latents[key]
        return entries

    def _latent_name(self, key: str | None) -> str:
        """The entry that holds the latent of an image."""
        if key is None:
            return "latent"
        return f"{key}_latent" if self.options.keep_pixels else key

    def _new_space(self, space: spaces.Space[Any]) -> spaces.Space[Any]:
        sizes = {key: size * self.options.history for key, size in self._sizes.items()}
        boxes = {key: spaces.Box(-np.inf, np.inf, (size,), np.float32) for key, size in sizes.items()}
        if self._is_vector:
            parts = [*boxes.values(), *self._joined.values()]
            low, high = (np.concatenate(bounds) for bounds in zip(*((b.low, b.high) for b in parts), strict=True))
            return spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
        if isinstance(space, spaces.Dict):
            for name in map(self._latent_name, boxes):
                if self.options.keep_pixels and name in space.spaces:
                    raise InputError(f"keep_pixels adds a latent {name!r}, but the observation has such an entry")
        return spaces.Dict(self._entries(space.spaces if isinstance(space, spaces.Dict) else space, boxes))

    def _new_index(self, inner: object) -> tuple[Slot, ...]:
        """What each number of the vector is: latents, then the slots of a `FeatureObservation`, or whole entries."""
        slots: list[Slot] = []
        for key, numbers in self._images.items():
            image = "latent" if len(self._images) == 1 else f"latent/{key}"
            for back in range(self.options.history - 1, -1, -1):
                for place, number in enumerate(numbers):
                    name = f"{image}#{place}" if len(numbers) > 1 else image
                    name += f"[{-back}]" if self.options.history > 1 else ""
                    start = slots[-1].stop if slots else 0
                    slots.append(Slot(name, start, start + self.encoders[number].latent_dim, "mean of the encoder"))
        known = inner if isinstance(inner, Sequence) and all(isinstance(slot, Slot) for slot in inner) else ()
        for name, box in self._joined.items():
            start, size = slots[-1].stop, box.shape[0]
            within = [slot for slot in known if slot.entry == name]
            # Another wrapper may have changed the entry since.
            if within and within[-1].stop - within[0].start == size:
                slots += [slot.shifted(start - within[0].start) for slot in within]
            else:
                slots.append(Slot(name, start, start + size, "unchanged"))
        return tuple(slots)


def encoders_by_key(
    encoder: EncoderLike, pixel_key: str | None, device: str
) -> dict[str | None, tuple[FrozenEncoder, ...]]:
    """Load the encoders of each image; a folder that is named twice is loaded once."""
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
        return tuple(load(one) for one in several)

    if isinstance(encoder, Mapping) and pixel_key is not None:
        raise InputError(f"pixel_key is {pixel_key!r}, but encoder names the entries with pixels: {sorted(encoder)}")
    images: Mapping[Any, Any] = encoder if isinstance(encoder, Mapping) else {pixel_key: encoder}
    by_key = {key: load_all(what) for key, what in images.items()}
    if not by_key or not all(by_key.values()):
        raise InputError(f"encoder is empty, {encoder!r}; give one encoder or more")
    return by_key


def _vector(space: spaces.Space[Any], key: str) -> spaces.Box:
    """The space of an entry that can be joined to the latent."""
    if isinstance(space, spaces.Box) and space.dtype.kind == "f" and len(space.shape) == 1:
        return space
    if isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) > 1:
        advice = "drop it (Gymnasium's FilterObservation does)"
    else:
        advice = "put FeatureObservation(env) around the environment first"
    raise InputError(
        f"flatten joins vectors of floats to the latent, but observation[{key!r}] is {brief(space)}: {advice}, or "
        "leave flatten out"
    )
