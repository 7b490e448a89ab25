"""Record frames of any Gymnasium environment as `.npy` files, one recording each.

    images/
    ├── VizdoomBasic-v1_000.npy         uint8 (N, H, W, C); whole episodes and the beginning of one
    ├── VizdoomBasic-v1_000.rows.npz    what was done at each frame, and the state of the game (see
    vae_training.data.rows) ├── VizdoomBasic-v1_001.npy         begins with a reset of its own, so that no episode is in
    two files ├── VizdoomBasic-v1_001.rows.npz
    └── recording.json                  environment, policy and seed of each file, package versions

Safe to interrupt and to start again: files are numbered on, and file k is recorded with seed `seed + k`. A file has its
rows when it is finished, after a Ctrl-C as well; one that is recovered after a `kill -9` has none.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from latent_obs.encoder.folder import package_versions
from latent_obs.envs.pixel_envs import make_pixel_env
from latent_obs.util.atomic import write_json
from latent_obs.util.device import torch_threads
from latent_obs.util.errors import InputError
from latent_obs.util.interrupt import GracefulStop
from vae_training.data.frames import get_datasets
from vae_training.data.npy_writer import NpyWriter, recover_parts
from vae_training.data.rows import load_rows, rows_file_of
from vae_training.recording.camera import Camera, Frames, is_no_picture
from vae_training.recording.config import RecordConfig
from vae_training.recording.policy import Policy, for_policy
from vae_training.recording.state import RowsTable

_MANIFEST = "recording.json"
_FORMAT_VERSION = 1


def record(config: RecordConfig, *, policy: Policy | None = None, say: Callable[[str], object] = print) -> Path:
    """Record frames until the folder has as many as asked for.

    Ctrl-C ends it early: what was recorded is kept as valid files, and the same call later goes on from there. After a
    `kill -9` the next call first makes valid files of what is left.

    Args:
        config: What to record.
        policy: Who acts, in place of the random policy; `agents.load_policy` makes one of an agent's run,
            on latents as well. What the settings leave out of env, its arguments, frame_skip and pixel_key is as it has
            them.
        say: Where messages go.

    Returns:
        The folder.

    Raises:
        InputError: The environment is unknown or has no pixels, the folder holds frames of another shape, an agent is
            given without its policy or does not fit, or the disk is full (whole frames are kept).
        MissingExtraError: The package of the environment, or of the agent, is not installed.
    """
    folder = config.out
    if policy is not None:
        config = for_policy(config, policy, say)
    elif config.agent is not None:
        raise InputError(
            f"agent {config.agent} was given without its policy: give the run folder of latent-obs train-agent on the command "
            "line, or from Python record(config, policy=...), where agents.load_policy makes the policy of such a folder"
        )
    if folder.exists() and not folder.is_dir():
        raise InputError(f"out {folder} is a file, expected a folder")
    for file in _recover(folder):
        say(f"recovered {file} from a recording that was killed{_lack_of_rows(file)}")
    have, next_index, present_shape = _present(config)
    if have:
        more = "; --frames is how many to have in all" if have >= config.frames else ""
        say(f"{folder} holds {have:,} frames of {config.env} already, of {config.frames:,} asked for{more}")
    first_index, interrupted = next_index, False
    if have < config.frames:
        try:
            with (
                GracefulStop() as stop,
                torch_threads(
                    None if policy is None else 1
                ),  # one frame at a time: more would only wait for each other
                contextlib.closing(make_pixel_env(config.env, **config.make_kwargs)) as env,
            ):
                camera = Camera(env, config, present_shape, policy)
                with tqdm(total=config.frames, initial=have, unit="frame", desc=config.env, disable=None) as bar:
                    while have < config.frames and not stop.requested:
                        wanted = min(config.frames_per_file, config.frames - have)
                        have += _record_file(camera, config, policy, next_index, wanted, bar, stop)
                        next_index += 1
            interrupted = have < config.frames
        except KeyboardInterrupt:  # a second Ctrl-C, while a game takes its time
            interrupted = True
        finally:
            _recover(folder)  # for a second Ctrl-C in the very moment when a file is opened or closed
            _name_those_without_rows((folder / config.file_name(i) for i in range(first_index, next_index + 1)), say)
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


def _record_file(
    camera: Camera,
    config: RecordConfig,
    policy: Policy | None,
    index: int,
    wanted: int,
    bar: "tqdm[Any]",
    stop: GracefulStop,
) -> int:
    """Record one file; the number of frames in it."""
    env, seed = camera.env, config.seed + index
    rng = np.random.default_rng(seed)
    env.action_space.seed(seed)
    observation, action = camera.start(seed), None
    if policy is not None:
        torch.manual_seed(seed)  # its actions are drawn from torch's generator
    path = config.out / config.file_name(index)
    # Before the first frame, so that a recording that is killed is documented as well.
    _write_manifest(config.out, {path.name: {**_who_acts(config, policy), "seed": seed}})
    with NpyWriter(path, camera.contract.shape) as writer:
        rows_file_of(path).unlink(missing_ok=True)  # of a file that was removed, and had this name
        rows = RowsTable(env.action_space)

        def keep(observation: Any, pixels: Frames, first: bool) -> None:
            rows.begin(camera.state(observation), first=first)
            writer.append(camera.frame(pixels))
            bar.update()

        try:
            pixels = camera.pixels(observation)
            keep(observation, pixels, first=True)
            while writer.frames < wanted and not stop.requested:
                if policy is not None:
                    action = policy(observation)
                elif action is None or config.policy == "random" or rng.random() >= config.stickiness:
                    action = env.action_space.sample()
                observation, reward, terminated, truncated, info = env.step(action)
                rows.end_step(action, reward, terminated=terminated, truncated=truncated)
                before, pixels = pixels, camera.pixels(observation)
                over = terminated or truncated
                if not (over and is_no_picture(pixels, before, info)):
                    keep(observation, pixels, first=False)
                if over and writer.frames < wanted:
                    observation, action = camera.start(), None
                    pixels = camera.pixels(observation)
                    keep(observation, pixels, first=True)
        finally:
            # Before the frames get their final name: whoever sees them sees their rows. On a full disk they have it
            # already.
            _save_rows(rows, path, writer.frames)
        return writer.frames


def _who_acts(config: RecordConfig, policy: Policy | None) -> dict[str, Any]:
    """The settings for `recording.json`; a policy tells of itself."""
    values = config.to_json()
    if policy is None:
        return values
    del values["deterministic"]
    return {**values, "agent_notes": dict(policy.notes), "policy": "agent"}


def _save_rows(rows: RowsTable, path: Path, frames: int) -> None:
    """Write the rows of a file, or leave the file without any on a full disk, of which the frames' own error tells."""
    with contextlib.suppress(OSError):
        rows.save(path, frames)


def _recover(folder: Path) -> list[Path]:
    """Finish what was killed; rows that it may have are kept where they agree with it."""
    recovered = recover_parts(folder)
    for file in recovered:
        try:
            load_rows(file)
        except InputError:
            rows_file_of(file).unlink(missing_ok=True)
    return recovered


def _name_those_without_rows(files: Iterable[Path], say: Callable[[str], object]) -> None:
    for file in files:
        if file.exists() and (lack := _lack_of_rows(file)):
            say(f"{file}{lack}")


def _lack_of_rows(file: Path) -> str:
    return "" if rows_file_of(file).exists() else " has no rows beside it: what was done in it is not known"


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
