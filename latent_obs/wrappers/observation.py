"""What an agent sees in place of pixels: which encoder reads which image, and how observations are put together.

The wrappers for one environment, for Gymnasium's vectors and for Stable-Baselines3's share it, so that all three show
the same.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from latent_obs.encoder.frozen import FrozenEncoder, Latents
from latent_obs.pixels import Frames
from latent_obs.util.errors import InputError
from latent_obs.wrappers.features import Slot
from latent_obs.wrappers.pixel_reader import PixelReader

if TYPE_CHECKING:
    from latent_obs.encoder.statistics import LatentStatistics
    from latent_obs.wrappers.drift import DriftMonitor

OneEncoder: TypeAlias = FrozenEncoder | str | os.PathLike[str]
#: One encoder; several that all read the same image; or for each entry of a Dict observation the one, or those, that
#: read it.
EncoderLike: TypeAlias = OneEncoder | Sequence[OneEncoder] | Mapping[str, OneEncoder | Sequence[OneEncoder]]


@dataclass(frozen=True)
class Camera:
    """One image of the observation, and the encoders that read it.

    Attributes:
        key: The entry of the Dict that holds the image; None where the observation is the image.
        readers: How each encoder finds its frames in an observation.
        encoders: As many; their latents are joined in this order.
        statistics: By which each encoder's latents are standardized; None leaves them as they are.
    """

    key: str | None
    readers: tuple[PixelReader, ...]
    encoders: tuple[FrozenEncoder, ...]
    statistics: "tuple[LatentStatistics | None, ...]"

    @property
    def latent_dim(self) -> int:
        """Values of one latent, of all encoders together."""
        return sum(encoder.latent_dim for encoder in self.encoders)


def encoders_by_key(
    encoder: EncoderLike, pixel_key: str | None, device: str
) -> dict[str | None, tuple[FrozenEncoder, ...]]:
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
        raise InputError(
            f"pixel_key {pixel_key!r} was given, and encoder says which entries hold pixels: {sorted(encoder)}"
        )
    if not encoder:
        raise InputError("encoder is an empty mapping; give an encoder for one entry or more")
    return {key: load_all(what) for key, what in encoder.items()}


def find_camera(
    space: spaces.Space[Any], key: str | None, encoders: tuple[FrozenEncoder, ...], standardize: bool
) -> Camera:
    """The image of a space that encoders read.

    Args:
        space: The observation space of one environment.
        key: The entry of a Dict that holds the image; None finds it.
        encoders: They all read it.
        standardize: Standardize their latents.

    Raises:
        InputError: There is no such image, or an encoder without statistics.
    """
    readers = tuple(PixelReader(space, encoder.contract, key) for encoder in encoders)
    for reader in readers:
        reader.refuse_blur()
    statistics: list[LatentStatistics | None] = [encoder.statistics if standardize else None for encoder in encoders]
    for encoder, known in zip(encoders, statistics, strict=True):
        if standardize and known is None:
            raise InputError(
                f"standardize needs the statistics of the training frames, and {encoder!r} has none. Train it, or go on "
                "training it, with this version (latent-obs train-vae … --resume), or let VecNormalize learn them during RL"
            )
    return Camera(readers[0].key, readers, encoders, tuple(statistics))


Latents = NDArray[np.float32]


class LatentHistory:
    """The last latents of each of `count` environments, per camera.

    Args:
        length: Latents to show, the oldest first.
        dims: Values of each camera's latent.
        count: Number of environments.

    Example:
        >>> history = LatentHistory(3, dims=(1,), count=1)
        >>> for value in (1.0, 2.0):
        ...     [shown] = history.push([np.full((1, 1), value, np.float32)])
        >>> shown.tolist()  # the first one of the episode fills the places before it
        [[1.0, 1.0, 2.0]]
    """

    def __init__(self, length: int, dims: Sequence[int], count: int) -> None:
        self.length = length
        self._last = [np.zeros((count, length, dim), np.float32) for dim in dims]
        self._fresh: NDArray[np.bool_] = np.ones(count, bool)  # whose next latent is the first of an episode

    def restart(self, which: NDArray[np.bool_] | None = None) -> None:
        """The next latents of these environments (None: of all) are the first of their episodes."""
        self._fresh[:] |= True if which is None else which

    def push(self, latents: Sequence[Latents], which: NDArray[np.bool_] | None = None) -> list[Latents]:
        """Take in the newest latents, for each camera (count, d), and give what to show, (count, length * d).

        Args:
            latents: Of all environments.
            which: Whose latents are new; the others' history stays as it is. None: all.
        """
        if self.length == 1:
            return list(latents)
        shown = []
        for last, new in zip(self._last, latents, strict=True):
            moved = ~self._fresh if which is None else which & ~self._fresh
            last[moved, :-1] = last[moved, 1:]
            last[moved, -1] = new[moved]
            last[self._fresh] = new[self._fresh, None]
            shown.append(last.reshape(len(last), -1).copy())
        self._fresh[:] = False
        return shown

    def ending(self, latents: Sequence[Latents], which: Sequence[int]) -> list[Latents]:
        """What to show of the last observations of episodes: for each camera (len(which), length * d); nothing is taken
        in.
        """
        if self.length == 1:
            return list(latents)
        return [
            np.concatenate([last[which, 1:], new[:, None]], axis=1).reshape(len(which), -1)
            for last, new in zip(self._last, latents, strict=True)
        ]


class LatentView:
    """Turns observations with pixels into observations with mean latents.

    Args:
        space: The observation space of one environment.
        encoder: An encoder folder or a loaded `FrozenEncoder`; a list of them, which all read the same image; or a
            mapping from entries of a Dict observation (cameras) to such.
        device: Where to encode what is given as a folder.
        pixel_key: Entry of a Dict that holds the pixels; found by itself when only one fits.
        latent_only: Drop the other entries of a Dict.
        flatten: Join the other entries of a Dict, vectors of floats, to the latents: one float32 vector.
        keep_pixels: Keep the image beside its latent: entries "pixels" and "latent" where the observation is the image,
            else the entry that it was and "<entry>_latent".
        standardize: Shift and scale latents by their mean and deviation over the training frames, from the encoder
            folder.
        history: How many latents to show, the oldest first; at the start of an episode the first one fills all places.
        inner_index: What the numbers of joined entries are, from a `FeatureObservation` beneath.
        monitor: Told of every latent, to say when they are unlike those of training. For one encoder and one image.

    Attributes:
        space: The observation space of one environment as the agent sees it.
        index: What each number is, where the observation is one vector; () where it is a Dict.
        cameras: The images that are read.

    Raises:
        InputError: The space has no pixels that the encoders can eat, entries that cannot be joined, or options
            contradict.

    Example:
        >>> from latent_obs.encoder.architecture import Architecture
        >>> encoder = FrozenEncoder.random(Architecture((32, 32, 3), latent_dim=8), device="cpu")
        >>> image = spaces.Box(0, 255, (48, 64, 3), np.uint8)
        >>> view = LatentView(spaces.Dict(left=image, right=image), {"left": encoder, "right": encoder}, history=2)
        >>> view.space
        Dict('left': Box(-inf, inf, (16,), float32), 'right': Box(-inf, inf, (16,), float32))
    """

    def __init__(
        self,
        space: spaces.Space[Any],
        encoder: EncoderLike,
        *,
        device: str = "auto",
        pixel_key: str | None = None,
        latent_only: bool = False,
        flatten: bool = False,
        keep_pixels: bool = False,
        standardize: bool = False,
        history: int = 1,
        inner_index: object = (),
        monitor: "DriftMonitor | None" = None,
    ) -> None:
        if isinstance(history, bool) or not isinstance(history, int) or history < 1:
            raise InputError(f"history must be the number of latents to show, 1 or more, got {history!r}")
        if keep_pixels and flatten:
            raise InputError(
                "flatten makes one vector, and keep_pixels keeps the picture beside it: choose one of them"
            )
        self.history, self.keep_pixels, self.latent_only = history, keep_pixels, latent_only
        by_key = encoders_by_key(encoder, pixel_key, device)
        self.cameras = tuple(find_camera(space, key, encoders, standardize) for key, encoders in by_key.items())
        self.monitor = monitor
        if monitor is not None and len(self.encoders) > 1:
            raise InputError(f"a monitor watches one encoder and one image, and here are {len(self.encoders)} encoders")
        self._keys = {camera.key for camera in self.cameras}
        others = space.spaces if isinstance(space, spaces.Dict) else {}
        others = {key: entry for key, entry in others.items() if key not in self._keys}
        self._is_dict = isinstance(space, spaces.Dict)
        joins = flatten or (latent_only and not keep_pixels)
        self._joined = (
            {} if latent_only or not flatten else {k: _vector(s, f"observation[{k!r}]") for k, s in others.items()}
        )
        #: Whether the observation is one vector.
        self.is_vector = (joins or not self._is_dict) and not keep_pixels
        self._named = {camera.key: self._latent_name(camera.key) for camera in self.cameras}
        self.space = self._replaced(space)
        self.index: tuple[Slot, ...] = self._index(inner_index) if self.is_vector else ()

    @property
    def encoder(self) -> FrozenEncoder:
        """The first encoder, mostly the only one."""
        return self.cameras[0].encoders[0]

    @property
    def encoders(self) -> tuple[FrozenEncoder, ...]:
        """All encoders, camera by camera; one that reads several images is there as often."""
        return tuple(encoder for camera in self.cameras for encoder in camera.encoders)

    @property
    def latent_sizes(self) -> dict[str | None, int]:
        """How many numbers of an observation are latents, whole history and all: by entry, or under None where it is a
        vector.

        In a vector they are the first ones.
        """
        sizes: dict[str | None, int] = {
            self._named[camera.key]: camera.latent_dim * self.history for camera in self.cameras
        }
        return {None: sum(sizes.values())} if self.is_vector else sizes

    def batch(self, num_envs: int) -> "LatentBatch":
        """For the observations of so many environments."""
        return LatentBatch(self, num_envs)

    def new_history(self, count: int) -> LatentHistory:
        """For the latents of so many environments."""
        return LatentHistory(self.history, [camera.latent_dim for camera in self.cameras], count)

    def latents(self, batched: Any = None, singles: Sequence[Any] = ()) -> list[Latents]:
        """Mean latents of observations, each encoder called once.

        Args:
            batched: Observations of N environments, as vector environments give them; None for none.
            singles: More observations, each by itself.

        Returns:
            For each camera float32 (N + len(singles), its latent_dim).

        Raises:
            InputError: An array is not what the space declared.
        """
        work: dict[int, list[tuple[int, int, Frames]]] = {}  # of each encoder: camera, place in it, frames
        for i, camera in enumerate(self.cameras):
            for j, (reader, encoder) in enumerate(zip(camera.readers, camera.encoders, strict=True)):
                parts = [] if batched is None else [reader.frames(batched, batched=True)]
                parts += [reader.frames(single) for single in singles]
                work.setdefault(id(encoder), []).append((i, j, parts[0] if len(parts) == 1 else np.concatenate(parts)))
        found: list[list[Any]] = [[None] * len(camera.encoders) for camera in self.cameras]
        by_id = {id(encoder): encoder for encoder in self.encoders}
        for which, pieces in work.items():
            frames = pieces[0][2] if len(pieces) == 1 else np.concatenate([piece[2] for piece in pieces])
            latents = by_id[which].encode(frames)
            if self.monitor is not None:
                self.monitor.observe(latents, frames)
            start = 0
            for i, j, own in pieces:
                statistics = self.cameras[i].statistics[j]
                part = latents[start : start + len(own)]
                found[i][j] = part if statistics is None else statistics.standardize(part)
                start += len(own)
        return [parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1) for parts in found]

    def assemble(self, observation: Any, latents: Sequence[Latents]) -> Any:
        """The observation with latents where the pixels were; a batch of both, or one of each.

        Args:
            observation: As the environment gave it.
            latents: For each camera (..., history * latent_dim).

        Raises:
            InputError: An entry that is to be joined has not the shape that the space declared.
        """
        if self.is_vector:
            if len(latents) == 1 and not self._joined:
                return latents[0]
            parts = list(latents)
            for name, box in self._joined.items():
                part = np.asarray(observation[name])
                if part.shape != (*latents[0].shape[:-1], *box.shape):
                    raise InputError(
                        f"observation[{name!r}] has shape {part.shape}, but the environment declared {box.shape}"
                    )
                parts.append(part)
            return np.concatenate(parts, axis=-1, dtype=np.float32)
        by_key = dict(zip((camera.key for camera in self.cameras), latents, strict=True))
        if not self._is_dict:
            return {"pixels": observation, "latent": latents[0]}
        return self._entries(observation, by_key)

    def _entries(self, values: Mapping[str, Any], by_key: Mapping[str | None, Any]) -> dict[str, Any]:
        """The entries of a Dict observation, or of its space: pixels replaced, or kept with the latent after them."""
        entries: dict[str, Any] = {}
        for key, value in values.items():
            if key not in self._keys:
                if not self.latent_only:
                    entries[key] = value
                continue
            if self.keep_pixels:
                entries[key] = value
            entries[self._named[key]] = by_key[key]
        return entries

    def _latent_name(self, key: str | None) -> str:
        """The entry that holds a camera's latent."""
        if key is None:
            return "latent"
        return f"{key}_latent" if self.keep_pixels else key

    def _replaced(self, space: spaces.Space[Any]) -> spaces.Space[Any]:
        boxes = {camera.key: latent_space(camera.latent_dim * self.history) for camera in self.cameras}
        if self.is_vector:
            parts = [*boxes.values(), *self._joined.values()]
            if len(parts) == 1:
                return parts[0]
            low, high = np.concatenate([b.low for b in parts]), np.concatenate([b.high for b in parts])
            return spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
        if not isinstance(space, spaces.Dict):
            return spaces.Dict({"pixels": space, "latent": boxes[None]})
        taken = [self._named[key] for key in self._keys if self.keep_pixels and self._named[key] in space.spaces]
        if taken:
            raise InputError(
                f"keep_pixels would name a latent {taken[0]!r}, and the observation has an entry of this name already"
            )
        return spaces.Dict(self._entries(space.spaces, boxes))

    def _index(self, inner: object) -> tuple[Slot, ...]:
        """What each number of the vector is: latents first, then the slots of a `FeatureObservation`, or whole
        entries.
        """
        slots: list[Slot] = []
        start = 0
        for camera in self.cameras:
            for back in range(self.history - 1, -1, -1):
                for j, encoder in enumerate(camera.encoders):
                    name = "latent" if len(self.cameras) == 1 else f"latent/{camera.key}"
                    name += f"#{j}" if len(camera.encoders) > 1 else ""
                    name += f"[{-back}]" if self.history > 1 else ""
                    slots.append(Slot(name, start, start + encoder.latent_dim, "mean of the encoder"))
                    start += encoder.latent_dim
        known = inner if isinstance(inner, Sequence) and all(isinstance(slot, Slot) for slot in inner) else ()
        for name, box in self._joined.items():
            stop = start + box.shape[0]
            within = [slot for slot in known if slot.entry == name]
            # Another wrapper may have changed the entry since.
            if within and within[-1].stop - within[0].start == box.shape[0]:
                slots += [slot.shifted(start - within[0].start) for slot in within]
            else:
                slots.append(Slot(name, start, stop, "as it is"))
            start = stop
        return tuple(slots)


def latent_space(latent_dim: int) -> spaces.Box:
    """The space of a latent: float32 (latent_dim,), unbounded as the Gaussian it is the mean of.

    Example:
        >>> latent_space(32)
        Box(-inf, inf, (32,), float32)
    """
    return spaces.Box(-np.inf, np.inf, (latent_dim,), np.float32)


def _vector(space: spaces.Space[Any], what: str) -> spaces.Box:
    """The space of an entry that can be joined to the latent."""
    if isinstance(space, spaces.Box) and space.dtype.kind == "f" and len(space.shape) == 1:
        return space
    described = f"{type(space).__name__}{space.shape or ''} {space.dtype or ''}".strip()
    if isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) > 1:
        advice = "drop it (Gymnasium's FilterObservation does), or leave flatten out"
    else:
        advice = "put FeatureObservation(env) around the environment first, or leave flatten out"
    raise InputError(f"flatten joins the latent with vectors of floats, and {what} is {described}: {advice}")


class LatentBatch:
    """The observations of several environments, each step encoded in one call.

    Args:
        view: What an agent sees of one of them.
        num_envs: How many they are.
    """

    def __init__(self, view: LatentView, num_envs: int) -> None:
        self.view, self.num_envs = view, num_envs
        self._history = view.new_history(num_envs)
        for encoder in set(view.encoders):  # one that reads several images gets the frames of all of them in one call
            encoder.warm_up([num_envs * sum(one is encoder for one in view.encoders)])

    def reset(self, observation: Any, mask: NDArray[np.bool_] | None = None) -> Any:
        """First observations of episodes.

        Args:
            observation: Of all environments.
            mask: Which of them were reset; None: all. The others' histories stay as they are.
        """
        self._history.restart(mask)
        return self.view.assemble(observation, self._history.push(self.view.latents(observation), mask))

    def step(
        self, observation: Any, finals: Mapping[int, Any] | None = None, restarted: NDArray[np.bool_] | None = None
    ) -> tuple[Any, dict[int, Any]]:
        """Observations of a step.

        Args:
            observation: Of all environments.
            finals: For environments that were reset within the step, the last observation of the episode before.
            restarted: Of which environments `observation` is the first of an episode; those in `finals` in any case.

        Returns:
            The observations, and the last ones, as the agent sees them.
        """
        ended = list(finals or ())
        latents = self.view.latents(observation, [(finals or {})[i] for i in ended])
        lasts = self._history.ending([part[self.num_envs :] for part in latents], ended) if ended else []
        if restarted is not None:
            self._history.restart(np.asarray(restarted, bool))
        if ended:
            self._history.restart(np.isin(np.arange(self.num_envs), ended))
        shown = self._history.push([part[: self.num_envs] for part in latents])
        seen = {i: self.view.assemble((finals or {})[i], [last[n] for last in lasts]) for n, i in enumerate(ended)}
        return self.view.assemble(observation, shown), seen
