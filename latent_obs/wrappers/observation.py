"""`ObservationEncoder`: reads the pixels of observations, encodes, standardizes and assembles what an agent sees.

The wrappers for one environment, for Gymnasium's vectors and for Stable-Baselines3's are thin layers around it.
`ContractObservation` only resizes, in worker processes: this module needs no torch until an encoder is loaded.
"""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from latent_obs.envs.border import own
from latent_obs.envs.faults import check_reward
from latent_obs.pixels import Frames, Layout, PixelContract, brief, find_pixel_key, is_nested
from latent_obs.util.errors import InputError, check_count
from latent_obs.wrappers.features import Slot, lay_out

if TYPE_CHECKING:
    from latent_obs.encoder.frozen import FrozenEncoder
    from latent_obs.encoder.pca import PCA
    from latent_obs.wrappers.drift import DriftMonitor

_DOUBTS = 8  # times in a row that something is seen before it is warned of
_OVERWRITTEN = (
    "the last picture of every episode is also the first one of the next, as if the environment wrote all pictures "
    "into one array, in a worker process that resets it before it sends the last one. Put ContractObservation around "
    "each environment in its worker, or make the vector by latent_obs.make or ProcessVecEnv"
)
_BLACK = (
    "no value is above 1, though the space goes up to 255: to the encoder such pictures are black. Were floats of 0 to "
    "1 made uint8? Multiply them by 255 before"
)

Latents = NDArray[np.float32]
OneEncoder: TypeAlias = "FrozenEncoder | PCA | str | os.PathLike[str]"
#: One encoder: loaded, an encoder folder, or principal components or their file; several that all read the same image;
#: or for each entry of a Dict observation the encoder, or the encoders, that read it.
EncoderLike: TypeAlias = "OneEncoder | Sequence[OneEncoder] | Mapping[str, OneEncoder | Sequence[OneEncoder]]"


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
        standardize: Shift each value of a latent by its mean over the training frames, and divide all values by one
            number, which makes their common deviation 0.5. The encoder has the statistics; `agents.LatentNormalize`
            does the same with running ones.
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


class PixelReader:
    """Finds the pixels in an observation space; an `InputError` if it holds none that the encoder can read.

    Attributes:
        key: The entry of a Dict that holds the pixels; None if the observation is the pixels.
        shape: Shape of a frame.
        layout: Its layout.
        name: What to call the pixels in a message.
    """

    def __init__(self, space: spaces.Space[Any], contract: PixelContract, pixel_key: str | None = None) -> None:
        self.contract, self.key, self.name = contract, None, "observation"
        within = space if isinstance(space, spaces.Dict) else None
        if within is not None:
            self.key = find_pixel_key(within, contract, pixel_key)
            self.name, space = f"observation[{self.key!r}]", within.spaces[self.key]
        elif pixel_key is not None and not is_nested(space):
            raise InputError(f"pixel_key is {pixel_key!r}, but the observation is no Dict: {type(space).__name__}")
        self.layout: Layout = contract.check_space(space, self.name, within)
        self.shape = space.shape or ()

    def refuse_blur(self) -> None:
        """Raise an InputError if frames are far smaller than those that the encoder takes."""
        self.contract.refuse_blur(self.shape, self.layout, self.name)

    def mismatch(self, shape: tuple[int, ...]) -> InputError:
        """The error for pixels of another shape than the space declared; some environments swap height and width."""
        return InputError(
            f"{self.name} has shape {shape}, but the environment declared {self.shape}. Correct its observation_space"
        )


class ContractObservation(gym.ObservationWrapper[Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Resize an environment's pixels to what an encoder takes, without encoding them.

    For worker processes: they send a small frame to the parent, which encodes the frames of all of them in one batch.

    Args:
        env: The environment.
        contract: What the encoder takes.
        pixel_key: Entry of a Dict observation that holds the pixels; found if only one fits.
        latent_only: Drop every other entry of a Dict observation.

    Attributes:
        reader: Where the pixels are.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        contract: PixelContract,
        *,
        pixel_key: str | None = None,
        latent_only: bool = False,
    ) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, contract=contract, pixel_key=pixel_key, latent_only=latent_only)
        gym.ObservationWrapper.__init__(self, own(env))
        self.reader = PixelReader(env.observation_space, contract, pixel_key)
        self.observation_space = spaces.Box(0, 255, contract.shape, np.uint8)
        self._keeps_entries = self.reader.key is not None and not latent_only
        if isinstance(env.observation_space, spaces.Dict) and self._keeps_entries:
            resized = {**env.observation_space.spaces, str(self.reader.key): self.observation_space}
            self.observation_space = spaces.Dict(resized)

    def observation(self, observation: Any) -> Any:
        """The observation with its pixels resized to uint8 (height, width, channels)."""
        reader = self.reader
        pixels = np.asarray(observation if reader.key is None else observation[reader.key])
        if pixels.shape != reader.shape:
            raise reader.mismatch(pixels.shape)
        frame = reader.contract.convert(pixels[None], reader.layout, reader.name)[0]
        return {**observation, reader.key: frame} if self._keeps_entries else frame


class ObservationEncoder:
    """Turns observations with pixels into observations with mean latents.

    Args:
        space: The observation space of one environment.
        encoder: An encoder folder or a loaded `FrozenEncoder`; a list of them, which all read the same image; or a
            mapping from the entries of a Dict observation that hold images to these.
        options: What to show.
        num_envs: Number of environments whose observations come as a batch; None for one environment without a batch.
        inner_index: Gives the `index` of a `FeatureObservation` beneath, which names the numbers of joined entries.

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
        inner_index: Callable[[], object] = tuple,
    ) -> None:
        self.options = options = options or ObservationOptions()
        self.num_envs = num_envs
        by_key = encoders_by_key(encoder, options.pixel_key, options.device)
        pairs = [(key, one) for key, encoders in by_key.items() for one in encoders]
        self.encoders = tuple(one for _, one in pairs)
        if options.monitor is not None and len(pairs) > 1:
            raise InputError(f"monitor watches one encoder and one image, and here are {len(pairs)} encoders")
        for one in self.encoders:
            if options.standardize and one.statistics is None:
                raise InputError(
                    f"standardize needs the statistics of the training frames, and {one!r} has none. Resume its "
                    "training (latent-obs train-vae … --resume), save it with frames (FrozenEncoder.save), or use "
                    "agents.LatentNormalize, which learns them from the agent's frames"
                )
        self._readers = [PixelReader(space, one.contract, key) for key, one in pairs]
        for reader in self._readers:
            reader.refuse_blur()
        # The numbers of the readers of each image, and of those of each encoder, which is called once for all of them.
        keys = [reader.key for reader in self._readers]
        self._images = {key: [n for n, k in enumerate(keys) if k == key] for key in dict.fromkeys(keys)}
        self._calls = [
            (one, [n for n, e in enumerate(self.encoders) if e is one]) for one in dict.fromkeys(self.encoders)
        ]
        self._sizes = {key: sum(self.encoders[n].latent_dim for n in ns) for key, ns in self._images.items()}
        entries = space.spaces if isinstance(space, spaces.Dict) else {}
        self._from_dict = isinstance(space, spaces.Dict)
        self._is_vector = not options.keep_pixels and (options.flatten or options.latent_only or not self._from_dict)
        others = {key: entry for key, entry in entries.items() if key not in self._images}
        joins = options.flatten and not options.latent_only
        self._joined = {key: _vector(entry, key) for key, entry in others.items()} if joins else {}

        latents = {k: spaces.Box(-np.inf, np.inf, (n * options.history,), np.float32) for k, n in self._sizes.items()}
        if self._is_vector:
            boxes = [*latents.values(), *self._joined.values()]
            low, high = np.concatenate([(box.low, box.high) for box in boxes], axis=-1, dtype=np.float32)
            self.space: spaces.Space[Any] = spaces.Box(low, high, dtype=np.float32)
        else:
            if taken := [name for name in map(self._latent_name, latents) if options.keep_pixels and name in entries]:
                raise InputError(f"keep_pixels adds the latents {taken}, but the observation has such entries already")
            self.space = spaces.Dict(self._entries(entries or space, latents))
        self.index: tuple[Slot, ...] = self._new_index(inner_index() if self._joined else ()) if self._is_vector else ()

        count = num_envs or 1
        self._past = {key: np.zeros((count, options.history, size), np.float32) for key, size in self._sizes.items()}
        self._steps = 0
        self._starts: NDArray[np.bool_] = np.ones(count, bool)  # whose next observation is the first of an episode
        self._doubts = {_OVERWRITTEN: 0, _BLACK: 0}  # how often what a warning is about was seen, in a row
        if num_envs is not None:
            for one, numbers in self._calls:
                one.warm_up([num_envs * len(numbers)])

    @property
    def latent_sizes(self) -> dict[str | None, int]:
        """How many numbers are latents, history included: by entry of a Dict, or under None the first of a vector."""
        sizes = {self._latent_name(key): size * self.options.history for key, size in self._sizes.items()}
        return {None: sum(sizes.values())} if self._is_vector else {**sizes}

    def check_rewards(self, rewards: Any) -> None:
        """Check the rewards of a step (num_envs,); an `InputError` names the environment and the step."""
        self._steps += 1
        if not np.isfinite(rewards).all():
            for i, reward in enumerate(rewards):
                check_reward(reward, f"environment {i}, step {self._steps} of this vector")

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
        count = self.num_envs or 1
        encoded: dict[int, Latents] = {}
        for encoder, numbers in self._calls:
            parts = []
            for reader in (self._readers[number] for number in numbers):
                for place, one in enumerate(observations):
                    pixels = np.asarray(one if reader.key is None else one[reader.key])
                    if place > 0 or self.num_envs is None:
                        pixels = pixels[None]
                    if pixels.shape[1:] != reader.shape:
                        raise reader.mismatch(pixels.shape[1:])
                    parts.append(reader.contract.convert(pixels, reader.layout, reader.name))
            frames = parts[0] if len(parts) == 1 else np.concatenate(parts)
            if self._doubts:
                self._doubt(frames[: self.num_envs], dict(zip(finals, frames[count:], strict=False)))
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

        shown: list[Any] = []
        for place, one in enumerate(observations):
            rows = slice(count) if self.num_envs is not None and place == 0 else count - 1 + place
            latents_of = {key: latents[rows] for key, latents in images.items()}
            if not self._is_vector:
                shown.append(self._entries(one, latents_of))
                continue
            parts = list(latents_of.values())
            for name, box in self._joined.items():
                parts.append(np.asarray(one[name]))
                if parts[-1].shape != (*parts[0].shape[:-1], *box.shape):
                    found = parts[-1].shape
                    raise InputError(f"observation[{name!r}] has shape {found}, its space declares {box.shape}")
            shown.append(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1, dtype=np.float32))
        return shown[0], dict(zip(finals, shown[1:], strict=True))

    def _doubt(self, frames: Frames, lasts: Mapping[int, Frames]) -> None:
        """Warn once if frames seem not to be what the game shows, until they have shown that they are."""
        seen = {_BLACK: int(frames.max()) <= 1 if frames.any() else None}
        if lasts:
            seen[_OVERWRITTEN] = all(np.array_equal(frames[i], last) for i, last in lasts.items())
        for doubt in [doubt for doubt, is_seen in seen.items() if is_seen is not None and doubt in self._doubts]:
            self._doubts[doubt] += 1
            if not seen[doubt] or self._doubts[doubt] == _DOUBTS:
                del self._doubts[doubt]
                if seen[doubt]:
                    warnings.warn(f"{self._readers[0].name}: {doubt}", UserWarning, stacklevel=2)

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

    def _new_index(self, inner: object) -> tuple[Slot, ...]:
        """What each number of the vector is: latents, then the slots of a `FeatureObservation`, or whole entries."""
        parts: list[tuple[str, int, str, str]] = []
        for key, numbers in self._images.items():
            image = "latent" if len(self._images) == 1 else f"latent/{key}"
            for back in range(self.options.history - 1, -1, -1):
                for place, number in enumerate(numbers):
                    name = f"{image}#{place}" if len(numbers) > 1 else image
                    name += f"[{-back}]" if self.options.history > 1 else ""
                    parts.append((name, self.encoders[number].latent_dim, "mean of the encoder", ""))
        known = inner if isinstance(inner, Sequence) and all(isinstance(slot, Slot) for slot in inner) else ()
        for key, box in self._joined.items():
            within = [(s.name, s.stop - s.start, s.meaning, s.entry) for s in known if s.entry == key]
            # Another wrapper may have changed the entry since.
            fits = sum(width for _, width, _, _ in within) == box.shape[0]
            parts += within if within and fits else [(key, box.shape[0], "unchanged", "")]
        return lay_out(parts)


def encoders_by_key(
    encoder: EncoderLike, pixel_key: str | None, device: str
) -> dict[str | None, tuple["FrozenEncoder", ...]]:
    """Load the encoders of each image; a folder or file that is named twice is loaded once."""
    from latent_obs.encoder.frozen import FrozenEncoder
    from latent_obs.encoder.pca import PCA

    @cache
    def load_path(path: str) -> FrozenEncoder:
        is_file = Path(path).is_file()
        return PCA.load(path).encoder(device=device) if is_file else FrozenEncoder.load(path, device=device)

    def load(one: Any) -> FrozenEncoder:
        if not isinstance(one, FrozenEncoder | PCA | str | os.PathLike):
            raise InputError(f"encoder must be an encoder folder, a FrozenEncoder or a PCA, got {type(one).__name__}")
        if isinstance(one, PCA):
            return one.encoder(device=device)
        return one if isinstance(one, FrozenEncoder) else load_path(os.fspath(one))

    if isinstance(encoder, Mapping) and pixel_key is not None:
        raise InputError(f"pixel_key is {pixel_key!r}, but encoder names the entries with pixels: {sorted(encoder)}")
    images: Mapping[Any, Any] = encoder if isinstance(encoder, Mapping) else {pixel_key: encoder}
    by_key = {
        key: tuple(map(load, several if isinstance(several, list | tuple) else [several]))
        for key, several in images.items()
    }
    if not by_key or not all(by_key.values()):
        raise InputError(f"encoder is empty, {encoder!r}; give one encoder or more")
    return by_key


def _vector(space: spaces.Space[Any], key: str) -> spaces.Box:
    """The space of an entry that can be joined to the latent."""
    if isinstance(space, spaces.Box) and space.dtype.kind == "f" and len(space.shape) == 1:
        return space
    raise InputError(
        f"flatten joins vectors of floats to the latent, but observation[{key!r}] is {brief(space)}: drop it "
        "(Gymnasium's FilterObservation does), put FeatureObservation(env) around the environment first, or leave "
        "flatten out"
    )
