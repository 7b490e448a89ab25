"""Record frames of any Gymnasium environment as `.npy` files, one recording each.

    images/
    ├── VizdoomBasic-v1_000.npy     uint8 (N, H, W, C); whole episodes and the beginning of one
    ├── VizdoomBasic-v1_001.npy     begins with a reset of its own, so that no episode is in two files
    └── recording.json              environment, policy and seed of each file, package versions

Safe to interrupt and to start again: files are numbered on, and file k is recorded with seed `seed + k`.
"""

import contextlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from tqdm import tqdm

from latent_obs.atomic import write_json
from latent_obs.environments import make_pixel_env
from latent_obs.errors import InputError, require
from latent_obs.folder import package_versions
from latent_obs.interrupt import GracefulStop
from latent_obs.pixels import PixelContract, find_pixel_key
from vae_training.datasets import get_datasets
from vae_training.npy_writer import NpyWriter, recover_parts
from vae_training.record_config import RecordConfig

Frames = NDArray[np.uint8]
Act = Callable[[Any, Frames, Frames], Any]  # (observation, its pixels, the recorded frame) -> action

_MANIFEST = "recording.json"
_FORMAT_VERSION = 1


def record(config: RecordConfig, *, say: Callable[[str], object] = print) -> Path:
    """Record frames until the folder has as many as asked for.

    Ctrl-C ends it early: what was recorded is kept as valid files, and the same call later goes on from there. After a
    `kill -9` the next call first makes valid files of what is left.

    Args:
        config: What to record.
        say: Where messages go.

    Returns:
        The folder.

    Raises:
        InputError: The environment is unknown or has no pixels, the folder holds frames of another shape, the agent
            does not fit, or the disk is full (whole frames are kept).
        MissingExtraError: The package of the environment, or of the agent, is not installed.
    """
    folder = config.out
    if config.agent is not None and not config.agent.is_file():
        raise InputError(f"there is no agent file {config.agent}; expected the .zip that Stable-Baselines3's save() wrote")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"out {folder} is a file, expected a folder")
    for file in recover_parts(folder):
        say(f"recovered {file} from a recording that was killed")
    have, next_index, present_shape = _present(config)
    if have:
        say(f"{folder} holds {have:,} frames of {config.env} already, of {config.frames:,} asked for")
    interrupted = False
    if have < config.frames:
        try:
            with GracefulStop() as stop, contextlib.closing(make_pixel_env(config.env, **config.make_kwargs)) as env:
                camera = _Camera(env, config, present_shape)
                with tqdm(total=config.frames, initial=have, unit="frame", desc=config.env, disable=None) as bar:
                    while have < config.frames and not stop.requested:
                        wanted = min(config.frames_per_file, config.frames - have)
                        have += _record_file(camera, config, next_index, wanted, bar, stop)
                        next_index += 1
            interrupted = have < config.frames
        except KeyboardInterrupt:  # a second Ctrl-C, while a game takes its time
            interrupted = True
        finally:
            recover_parts(folder)  # for a second Ctrl-C in the very moment when a file is opened or closed
            if (folder / _MANIFEST).exists():
                _write_manifest(folder)
        have = _present(config)[0]
    if interrupted:
        say(f"interrupted: {have:,} of {config.frames:,} frames are kept in {folder}; the same command goes on")
    else:
        say(f"{have:,} frames of {config.env} in {folder}")
    if have:
        say(f"next: latent-obs train-vae --frames {folder}")
    return folder


class _Camera:
    """An environment, the way its pixels become frames, and the agent that acts in it, if any."""

    contract: PixelContract
    choose: Act | None = None

    def __init__(self, env: gym.Env[Any, Any], config: RecordConfig, present_shape: tuple[int, ...] | None) -> None:
        self.env = env
        self._config = config
        self._present_shape = present_shape
        self._key, self._channels = _find_pixels(env.observation_space, config.pixel_key)
        self._ready = False

    def start(self, seed: int) -> Any:
        """Reset the environment; the first time (a reset may take minutes), look at what it gives as well."""
        observation, _ = self.env.reset(seed=seed)
        if not self._ready:
            self._look(observation)
        return observation

    def _look(self, observation: Any) -> None:
        """Settle what a frame is, from the array: there are environments whose spaces declare another order of axes."""
        config, pixels = self._config, self.pixels(observation)
        layout = PixelContract(1, 1, self._channels).layout_of(pixels.shape, f"a frame of {config.env}")
        height, width = pixels.shape[1:] if layout == "CHW" else pixels.shape[:2]
        self.contract = PixelContract(config.size or height, config.size or width, self._channels)
        if self._present_shape not in (None, self.contract.shape):
            raise InputError(
                f"{config.out} holds frames of shape {self._present_shape}, and these would be {self.contract.shape}; "
                "a dataset needs one shape. Choose another folder, or another size"
            )
        if config.agent is not None:
            self.choose = _load_agent(config, self.env, pixels, self.contract)
        self._ready = True

    def pixels(self, observation: Any) -> Frames:
        """The picture in an observation, as the environment gave it."""
        return np.asarray(observation if self._key is None else observation[self._key])

    def frame(self, pixels: Frames) -> Frames:
        """The picture as it is recorded, (H, W, C)."""
        return self.contract.convert(pixels[None], what=f"a frame of {self._config.env}")[0]


def _record_file(
    camera: _Camera, config: RecordConfig, index: int, wanted: int, bar: "tqdm[Any]", stop: GracefulStop
) -> int:  # fmt: skip
    """Record one file; the number of frames in it."""
    env, seed = camera.env, config.seed + index
    rng = np.random.default_rng(seed)
    env.action_space.seed(seed)
    observation, action = camera.start(seed), None
    if camera.choose is not None:
        torch.manual_seed(seed)  # its actions are drawn from torch's generator
    path = config.out / config.file_name(index)
    # Before the first frame, so that a recording that is killed is documented as well.
    _write_manifest(config.out, {path.name: {**config.to_json(), "seed": seed}})
    with NpyWriter(path, camera.contract.shape) as writer:

        def keep(pixels: Frames) -> Frames:
            frame = camera.frame(pixels)
            writer.append(frame)
            bar.update()
            return frame

        pixels = camera.pixels(observation)
        frame = keep(pixels)
        while writer.frames < wanted and not stop.requested:
            if camera.choose is not None:
                action = camera.choose(observation, pixels, frame)
            elif action is None or config.policy == "random" or rng.random() >= config.stickiness:
                action = env.action_space.sample()
            observation, _, terminated, truncated, info = env.step(action)
            before, pixels = pixels, camera.pixels(observation)
            over = terminated or truncated
            if not (over and _is_no_picture(pixels, before, info)):
                frame = keep(pixels)
            if over and writer.frames < wanted:
                observation, action = env.reset()[0], None
                pixels = camera.pixels(observation)
                frame = keep(pixels)
        return writer.frames


def _is_no_picture(pixels: Frames, before: Frames, info: dict[str, Any]) -> bool:
    """Whether the last observation of an episode shows nothing new.

    ViZDoom gives a black frame there (or, mended by a wrapper, the one before once more), and an environment that lost
    its game reports an error along with whatever its space allows.
    """
    return not pixels.any() or "error" in info or np.array_equal(pixels, before)


def _find_pixels(space: spaces.Space[Any], key: str | None) -> tuple[str | None, int]:
    """Key of the pixels (None where the observation is the picture) and their number of channels."""
    if not isinstance(space, spaces.Dict):
        if not isinstance(space, spaces.Box) or len(space.shape) not in (2, 3):
            raise InputError(
                f"the observation is no picture but {type(space).__name__}{space.shape or ''}; expected a uint8 Box "
                "(height, width, channels), or a Dict with one. Gymnasium's AddRenderObservation turns what an "
                "environment renders into its observation"
            )
        channels = _channels(space.shape)
        PixelContract(1, 1, channels).check_space(space)
        return None, channels
    boxes = {k: s.shape for k, s in space.spaces.items() if isinstance(s, spaces.Box) and s.dtype == np.uint8}
    found = {k: _channels(shape) for k, shape in boxes.items() if len(shape) == 3 or (k == key and len(shape) == 2)}
    if key is not None and key in found:
        channels = found[key]
    else:  # colour before grey: a depth map beside the picture is not the picture
        channels = next((n for n in (3, 1) if n in found.values()), next(iter(found.values()), 3))
    return find_pixel_key(space, PixelContract(1, 1, channels), key), channels


def _channels(shape: tuple[int, ...]) -> int:
    """Entries of the channel axis, the shorter one of the first and the last."""
    return 1 if len(shape) == 2 else min(shape[-1], shape[0])


def _load_agent(config: RecordConfig, env: gym.Env[Any, Any], pixels: Frames, contract: PixelContract) -> Act:
    """A function that asks a saved agent for its action, given what it was trained to see."""
    sb3 = require("stable_baselines3", extra="agents", purpose="let an agent play while frames are recorded")
    try:
        agent = sb3.PPO.load(config.agent, device="cpu")
    except Exception as error:  # zipfile, pickle and torch each have their own
        raise InputError(f"agent {config.agent} is not a PPO agent that Stable-Baselines3 can load: {error}") from error

    def ask(seen: Any) -> Any:
        action = np.asarray(agent.predict(seen, deterministic=False)[0])
        return action.item() if action.ndim == 0 else action

    space, whole = agent.observation_space, env.observation_space
    if agent.action_space == env.action_space:
        if isinstance(space, spaces.Dict) and isinstance(whole, spaces.Dict) and set(space) <= set(whole):
            return lambda observation, pixels, frame: ask({key: observation[key] for key in space})
        if _fits(space, pixels.shape):
            return lambda observation, pixels, frame: ask(np.array(pixels))  # a copy: it may be a read-only view
        if _fits(space, contract.shape):
            return lambda observation, pixels, frame: ask(frame)
    raise InputError(
        f"agent {config.agent} was trained on {_brief(space)} with actions {agent.action_space}; {config.env} gives "
        f"{_brief(whole)} with actions {env.action_space}. Give one that was trained on the pixels of this environment"
    )


def _fits(space: spaces.Space[Any], shape: tuple[int, ...]) -> bool:
    """Whether an agent's space is that of these pixels; Stable-Baselines3 saves the channel-first twin of it."""
    return space.shape in (shape, (shape[-1], *shape[:-1]))


def _brief(space: spaces.Space[Any]) -> str:
    entries = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    return ", ".join(f"{k} {type(s).__name__}{s.shape}".strip() for k, s in entries.items())


def _present(config: RecordConfig) -> tuple[int, int, tuple[int, ...] | None]:
    """Frames of this environment in the folder, the next free number, and the shape of any frame there."""
    pattern = re.compile(re.escape(config.slug) + r"_(\d{3,})\.npy")
    have, next_index = 0, 0
    datasets = _frame_files(config.out)
    for name, dataset in datasets.items():
        match = pattern.fullmatch(name)
        if match:
            have += len(dataset)
            next_index = max(next_index, int(match[1]) + 1)
    return have, next_index, next((dataset.shape[1:] for dataset in datasets.values()), None)


def _frame_files(folder: Path) -> dict[str, np.memmap]:
    """The frame files of a folder by name; none is no error here."""
    if not any(not file.name.startswith(".") for file in folder.glob("*.npy")):
        return {}
    return {Path(str(dataset.filename)).name: dataset for dataset in get_datasets(folder)}


def _write_manifest(folder: Path, begun: dict[str, dict[str, Any]] | None = None) -> None:
    """Bring `recording.json` up to date, written aside and renamed; frame counts are those of the files themselves."""
    path = folder / _MANIFEST
    folder.mkdir(parents=True, exist_ok=True)
    try:
        known = json.loads(path.read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        known = {}
    entries = {**known, **(begun or {})}
    counts = {name: len(dataset) for name, dataset in _frame_files(folder).items()}
    files = {
        name: {**entry, "frames": counts.get(name, 0)}
        for name, entry in sorted(entries.items())
        if name in counts or name in (begun or {})
    }
    manifest = {
        "format_version": _FORMAT_VERSION,
        "frames": sum(entry["frames"] for entry in files.values()),
        "files": files,
        "versions": package_versions(),
    }
    try:
        write_json(path, manifest)
    except OSError as error:  # a full disk: the frames count, and their own error is the one to show
        print(f"{path} could not be written: {error.strerror}")
