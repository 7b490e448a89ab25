"""Record frames of any Gymnasium environment as `.npy` files, one recording each.

    images/
    ├── VizdoomBasic-v1_000.npy         uint8 (N, H, W, C); whole episodes and the beginning of one
    ├── VizdoomBasic-v1_000.rows.npz    actions, rewards and game state of each frame (see vae_training.data.rows)
    ├── VizdoomBasic-v1_001.npy         begins with a reset of its own, so that no episode is in two files
    ├── VizdoomBasic-v1_001.rows.npz
    └── recording.json                  environment, policy and seed of each file, package versions

Safe to interrupt and to start again: files are numbered on, and file k is recorded with seed `seed + k`. A file has its
rows when it is finished, after a Ctrl-C as well; one that is recovered after a `kill -9` has none.
"""

import dataclasses
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from latent_obs.encoder.folder import package_versions
from latent_obs.envs.factory import adapt, find_spec, make_pixel_env
from latent_obs.envs.faults import check_reward
from latent_obs.pixels import PixelContract, brief, find_pixel_key, part_at, parts_of, way_out
from latent_obs.util.atomic import GracefulStop, own_folder, write_json
from latent_obs.util.device import torch_threads
from latent_obs.util.errors import InputError, LatentObsError, parse_json
from latent_obs.util.progress import ProgressBar, print_now
from vae_training.data.frames import RECORDED, Frames, explain_disk_full, get_datasets
from vae_training.data.npy_writer import NpyWriter, recover_parts
from vae_training.data.rows import load_rows, rows_file_of
from vae_training.recording.config import RecordConfig
from vae_training.recording.policy import Policy, RandomPolicy
from vae_training.recording.state import RowsTable, StateReader

_FORMAT_VERSION = 1


def record(
    config: RecordConfig,
    *,
    policy: Policy | None = None,
    env: gym.Env[Any, Any] | None = None,
    progress_bar: bool | None = None,
    say: Callable[[str], object] = print_now,
) -> Path:
    """Record frames until the folder has as many as asked for.

    Ctrl-C or `kill -9` ends it early: what was recorded is kept, and the same call later goes on from there.

    Args:
        config: What to record.
        policy: Who acts, in place of the random policy; `agents.load_policy` makes one of an agent's run. It supplies
            env, its arguments, frame_skip and pixel_key where the settings do not.
        env: An environment in hand, registered or not, in place of one that is made. It stays open. `config.env` is
            then the name of the recording, and the settings that make an environment must be left out.
        progress_bar: Show it; None shows it in a terminal, and elsewhere a line now and then.
        say: Where messages go.

    Returns:
        The folder.

    Raises:
        InputError: The environment is unknown or has no pixels, the folder holds frames of another shape or is in use,
            an agent is given without its policy or does not fit, or both `env` and settings that make one are given.
        DiskFullError: The disk is full; whole frames are kept.
        MissingExtraError: The package of the environment, or of the agent, is not installed.

    Example::

        record(RecordConfig("VizdoomBasic-v1", Path("frames/doom"), frame_skip=4))
        record(RecordConfig("mine", Path("frames/mine")), env=MyEnv())
    """
    folder = config.out
    if env is not None:
        if config.make_kwargs:
            raise InputError(
                f"env is an environment in hand, and {', '.join(config.make_kwargs)} would make one; leave them out, "
                "and make the environment with them"
            )
    elif policy is not None:
        config = _with_settings_of(config, policy, say)
    if config.agent is not None and policy is None:
        raise InputError(
            f"agent {config.agent} was given without its policy; pass record(config, policy=agents.load_policy(folder))"
        )
    kept = "All whole frames are kept; free some space, and give the same command again"
    with explain_disk_full(folder, kept), own_folder(folder):
        have = _record(config, policy, env, progress_bar, say)
    if have < config.frames:
        say(f"interrupted: {have:,} of {config.frames:,} frames are kept in {folder}; the same command goes on")
    else:
        say(f"{have:,} frames of {config.env} in {folder}")
    if have:
        say(f"next: latent-obs train-vae --frames {folder}")
    return folder


def _record(
    config: RecordConfig,
    policy: Policy | None,
    own: gym.Env[Any, Any] | None,
    shown: bool | None,
    say: Callable[[str], object],
) -> int:
    """Record to a folder that is held; returns how many frames of the environment it has then."""
    folder = config.out
    for file in _recover(folder):
        say(f"recovered {file} from a recording that was killed{_lack_of_rows(file)}")
    _write_manifest(folder)
    have, first_index, present_shape = _present(config)
    if have:
        more = "; --frames is how many to have in all" if have >= config.frames else ""
        say(f"{folder} holds {have:,} frames of {config.env} already, of {config.frames:,} asked for{more}")
    if have < config.frames:
        index = first_index
        actor = policy or RandomPolicy(config.stickiness if config.policy == "sticky" else 0.0)
        try:
            with (
                GracefulStop() as stop,
                # An agent acts on one frame at a time: more threads would only wait for each other.
                torch_threads(None if policy is None else 1),
                _opened(config, own) as env,
                ProgressBar(total=config.frames, initial=have, unit="frame", desc=config.env, shown=shown) as bar,
            ):
                recorder = _Recorder(config, env, actor, present_shape, bar, stop)
                while have < config.frames and not stop.requested:
                    have += recorder.record_file(index, min(config.frames_per_file, config.frames - have))
                    index += 1
        except KeyboardInterrupt:  # a second Ctrl-C, while a game takes its time
            pass
        finally:
            _recover(folder)  # for a second Ctrl-C in the very moment when a file is opened or closed
            for file in (folder / config.file_name(i) for i in range(first_index, index + 1)):
                if file.exists() and (lack := _lack_of_rows(file)):
                    say(f"{file}{lack}")
            _write_manifest(folder)
        have = _present(config)[0]
    return have


def _opened(config: RecordConfig, own: gym.Env[Any, Any] | None) -> AbstractContextManager[gym.Env[Any, Any]]:
    """The environment to record: made, and closed in the end, or in hand."""
    return nullcontext(adapt(own)) if own is not None else closing(make_pixel_env(config.env, **config.make_kwargs))


def _with_settings_of(config: RecordConfig, policy: Policy, say: Callable[[str], object]) -> RecordConfig:
    """Fill in what was not given from the environment that the policy was made for."""
    known = policy.settings
    trained, own = known.get("env"), known.get("frame_skip")
    if not config.env and not trained:
        raise InputError("env must be given: the settings of this agent do not name its environment")
    if not known:
        return config
    if config.make_kwargs.get("frame_skip") not in (None, own):
        raise InputError(
            f"frame_skip is {config.make_kwargs['frame_skip']} here, and was {own} when the agent was trained: it "
            "would see and do other things. Leave frame_skip out, and the agent's is taken"
        )
    if config.env and not _is_same(config.env, trained):
        say(f"the agent was trained in {trained}, and acts in {config.env} here")
        return dataclasses.replace(config, frame_skip=own)
    return dataclasses.replace(
        config,
        env=str(trained),
        frame_skip=own,
        env_kwargs={**(known.get("env_kwargs") or {}), **config.env_kwargs},
        pixel_key=config.pixel_key or known.get("pixel_key"),
    )


def _is_same(env_id: str, other: str | None) -> bool:
    """Whether two ids, perhaps with a module before them, name the same environment."""
    try:
        return env_id == other or find_spec(env_id) == find_spec(str(other))
    except LatentObsError:  # the other one is not installed here
        return False


@dataclass
class _Recorder:
    """Records one file after the other."""

    config: RecordConfig
    env: gym.Env[Any, Any]
    policy: Policy
    present_shape: tuple[int, ...] | None  # of frames that the folder has already
    bar: ProgressBar
    stop: GracefulStop
    contract: PixelContract | None = None  # how frames are recorded

    def __post_init__(self) -> None:
        space = self.env.observation_space
        key, self.channels = find_pixels(space, self.config.pixel_key)
        self.path = () if key is None else parts_of(space)[key][0]
        self.state = StateReader(self.env, key) if self.config.state else None
        self.policy.begin(self.env)

    def record_file(self, index: int, wanted: int) -> int:
        """Record a file of at most so many frames, from a reset on, with its rows; return how many it has."""
        config = self.config
        path, seed = config.out / config.file_name(index), config.seed + index
        self.env.action_space.seed(seed)
        observation = self._reset(seed)
        entry: dict[str, Any] = {**config.to_json(), "seed": seed}
        if not isinstance(self.policy, RandomPolicy):
            torch.manual_seed(seed)  # its actions are drawn from torch's generator
            del entry["deterministic"]  # the policy's own notes have it
            entry |= {"agent_notes": dict(self.policy.notes), "policy": "agent"}
        if self.contract is None:  # of the first observation, as some spaces declare another order of axes
            found = self._pixels(observation).shape
            layout = PixelContract(1, 1, self.channels).layout_of(found, f"a frame of {config.env}")
            height, width = found[1:] if layout == "CHW" else found[:2]
            self.contract = PixelContract(config.size or height, config.size or width, self.channels)
        if self.present_shape not in (None, self.contract.shape):
            raise InputError(
                f"out {config.out} holds frames of shape {self.present_shape}, and these would be "
                f"{self.contract.shape}. Choose another folder, or another size"
            )
        # Before the first frame, so that a recording that is killed is documented as well.
        _write_manifest(path.parent, {path.name: entry})
        with NpyWriter(path, self.contract.shape) as writer:
            rows_file_of(path).unlink(missing_ok=True)  # of a file that was removed, and had this name
            rows = RowsTable(self.env.action_space)
            try:
                self._play(observation, self.contract, writer, rows, wanted)
            finally:
                # Before the frames get their final name: whoever sees them sees their rows. On a full disk the file has
                # no rows; the error of the frames is the one to show.
                with suppress(OSError):
                    rows.save(path, writer.frames)
            return writer.frames

    def _play(self, observation: Any, contract: PixelContract, writer: NpyWriter, rows: RowsTable, wanted: int) -> None:
        def keep(*, first: bool) -> None:
            rows.begin({} if self.state is None else self.state(observation), first=first)
            writer.append(contract.convert(pixels[None], what=f"a frame of {self.config.env}"))
            self.bar.update()

        pixels = self._pixels(observation)
        keep(first=True)
        while writer.frames < wanted and not self.stop.requested:
            action = self.policy(observation)
            observation, reward, terminated, truncated, info = self.env.step(action)
            check_reward(reward, f"{self.config.env}, the step after frame {writer.frames - 1} of its file")
            rows.end_step(action, reward, terminated=terminated, truncated=truncated)
            before, pixels = pixels, self._pixels(observation)
            over = terminated or truncated
            # The last observation may show nothing new: black, the one before again, or of a lost game.
            if not over or (pixels.any() and "error" not in info and not np.array_equal(pixels, before)):
                keep(first=False)
            if over and writer.frames < wanted:
                observation = self._reset()
                pixels = self._pixels(observation)
                keep(first=True)

    def _reset(self, seed: int | None = None) -> Any:
        observation, _ = self.env.reset(seed=seed)
        self.policy.reset(seed)
        return observation

    def _pixels(self, observation: Any) -> Frames:
        """The picture in an observation, as the environment gave it."""
        return np.asarray(part_at(observation, self.path))


def find_pixels(space: spaces.Space[Any], key: str | None) -> tuple[str | None, int]:
    """Find the pixels, by the name of `parts_of` (None where the observation is the picture), and their channels."""
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        if not isinstance(space, spaces.Box) or len(space.shape) not in (2, 3):
            raise InputError(
                f"the observation is no picture but {brief(space)}, expected a uint8 Box (height, width, channels), or "
                f"a Dict with one. {way_out(space)}"
            )
        channels = _channels(space.shape)
        PixelContract(1, 1, channels).check_space(space)
        return None, channels
    parts = {name: part for name, (_, part) in parts_of(space).items()}
    found = {
        name: _channels(entry.shape)
        for name, entry in parts.items()
        if isinstance(entry, spaces.Box) and entry.dtype == np.uint8
        if len(entry.shape) == 3 or (name == key and len(entry.shape) == 2)
    }
    # Color before gray: a depth map beside the picture is not the picture.
    likely = min(found.values(), key=lambda channels: (channels != 3, channels != 1), default=3)
    channels = found.get(key or "", likely)
    return find_pixel_key(spaces.Dict(parts), PixelContract(1, 1, channels), key), channels


def _channels(shape: tuple[int, ...]) -> int:
    """Entries of the channel axis, the shorter one of the first and the last."""
    return 1 if len(shape) == 2 else min(shape[-1], shape[0])


def _recover(folder: Path) -> list[Path]:
    """Finish what was killed; rows that it may have are kept where they agree with it, half-written ones never."""
    for half in folder.glob(".*.rows.part.npz"):
        with suppress(OSError):
            half.unlink()
    recovered = recover_parts(folder)
    for file in recovered:
        try:
            load_rows(file)
        except InputError:
            rows_file_of(file).unlink(missing_ok=True)
    return recovered


def _lack_of_rows(file: Path) -> str:
    return "" if rows_file_of(file).exists() else " has no rows beside it: what was done in it is not known"


def _present(config: RecordConfig) -> tuple[int, int, tuple[int, ...] | None]:
    """Frames of this environment in the folder, the next free number, and the shape of any frame there."""
    pattern = re.compile(re.escape(config.slug) + r"_(\d{3,})\.npy")
    datasets = _datasets_in(config.out)
    own = {int(match[1]): dataset for name, dataset in datasets.items() if (match := pattern.fullmatch(name))}
    shape = next((dataset.shape[1:] for dataset in datasets.values()), None)
    return sum(map(len, own.values())), max(own, default=-1) + 1, shape


def _datasets_in(folder: Path) -> dict[str, Frames]:
    """The frame files of a folder by name; none is no error here."""
    if not any(not file.name.startswith(".") for file in folder.glob("*.npy")):
        return {}
    return {Path(str(dataset.filename)).name: dataset for dataset in get_datasets(folder)}


def _write_manifest(folder: Path, begun: dict[str, dict[str, Any]] | None = None) -> None:
    """Bring `recording.json` up to date, with entries of files that are begun; frame counts are those of the files.

    It is written only where its files are not as they were, and made only for files that are begun.
    """
    path, begun = folder / RECORDED, begun or {}
    try:
        found = parse_json(path.read_bytes(), dict[str, Any], path.name)["files"]
        known = {name: dict(entry) for name, entry in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        known = {}
    counts = {**dict.fromkeys(begun, 0), **{name: len(dataset) for name, dataset in _datasets_in(folder).items()}}
    entries = sorted({**known, **begun}.items())
    files = {name: {**entry, "frames": counts[name]} for name, entry in entries if name in counts}
    if files == known:
        return
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
