"""Stages that `latent-obs fit` and `latent-obs quickstart` share, planned for the machine and the minutes."""

import contextlib
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latent_obs.encoder.architecture import Architecture
from latent_obs.pixels import parts_of
from latent_obs.util.atomic import is_unused, write_json
from latent_obs.util.device import resolve_device, torch_threads
from latent_obs.util.errors import InputError, LatentObsError, parse_json
from latent_obs.util.progress import Stages, print_now
from latent_obs_cli.plan import BATCH, RECORD, TRAIN, Sizes, Speeds, choose, stage_seconds
from vae_training import (
    RecordConfig,
    TrainConfig,
    frame_stats,
    get_datasets,
    record,
    split_held_out,
    train,
    write_contact_sheet,
)
from vae_training.recording.policy import RandomPolicy
from vae_training.recording.recorder import find_pixels
from vae_training.report.metrics.baselines import Pca
from vae_training.training.config import LAYERS
from vae_training.training.trainer import seconds_per_step

_MEASURED_S, _LEAST_FRAMES = 2.0, 16
_SIDE, _SMALLEST_RESIZED = 64, 43  # pixels; an encoder of enlarged frames would not take the environment's own ones
_SHEET_FRAMES = 400  # that are looked at for the contact sheet
_DISK = 300e6  # bytes for checkpoints, pictures and logs


class Walk:
    """One command of several stages in a folder: its settings, its plan, and the time that each stage has taken.

    They are in a JSON file, so that the same command goes on with the same plan, also after it was killed. Use it in a
    `with` block: then every progress bar shows the time left of the whole.

    Attributes:
        sizes: The plan.
        frame_side: Side of recorded frames in pixels; None for frames so small that the environment's own size is kept.
        seconds: What each stage has taken, earlier calls included.
    """

    def __init__(self, file: Path, settings: dict[str, Any], saved: dict[str, Any]) -> None:
        self.file, self._settings = file, settings
        self.sizes = Sizes(**saved["plan"])
        self.frame_side: int | None = saved["frame_side"]
        self.speeds = Speeds(**saved["speeds"]) if saved["speeds"] else None
        self.estimates: dict[str, float] = saved["estimates"]
        self.seconds: dict[str, float] = saved["seconds"]
        self._names = list(self.estimates)
        left = {name: max(1.0, time - self.seconds.get(name, 0.0)) for name, time in self.estimates.items()}
        self._said = Stages(left)

    @property
    def threads(self) -> int | None:
        """Threads of torch with which training was the fastest; None for torch's own choice."""
        return None if self.speeds is None else self.speeds.threads

    def save(self) -> None:
        """Write everything to the file."""
        speeds = None if self.speeds is None else asdict(self.speeds)
        plan = {"plan": asdict(self.sizes), "frame_side": self.frame_side, "speeds": speeds}
        times = {"estimates": self.estimates, "seconds": self.seconds}
        write_json(self.file, {**self._settings, **plan, **times})

    def plan_again(self, sizes: Sizes, estimates: dict[str, float]) -> None:
        """Change what later stages do; `estimates` has the time of each of them."""
        self.sizes = sizes
        self.estimates |= estimates
        self._said.seconds |= estimates
        self.save()

    @contextlib.contextmanager
    def stage(self, name: str, text: str) -> Iterator[None]:
        """Announce a stage, and note its seconds at the end, whatever ends it."""
        print_now(f"\n[{self._names.index(name) + 1}/{len(self._names)}] {name}: {text}")
        began = time.perf_counter()
        try:
            with self._said.stage(name):
                yield
        finally:
            taken = time.perf_counter() - began
            self.seconds[name] = self.seconds.get(name, 0.0) + taken
            with contextlib.suppress(OSError):  # a full disk: the error of the stage is the one to show
                self.save()
        print_now(f"      {taken:.0f} s")

    def __enter__(self) -> "Walk":
        self._said.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._said.__exit__(*error)


def begin(
    file: Path,
    settings: dict[str, Any],
    *,
    recording: RecordConfig | None,
    vae: TrainConfig,
    knots: Sequence[Sizes],
    sizes: Sizes | None = None,
) -> Walk:
    """Go on with the plan in a folder, or measure the machine and make a plan.

    Args:
        file: The file of the plan, in the folder of the command, which is held.
        settings: All settings; a folder with other ones is refused. "minutes" is the time for everything.
        recording: What to record, or None if `vae.frames` is there already.
        vae: The settings of training.
        knots: Sizes from the least to the full ones.
        sizes: These sizes instead of a plan.

    Raises:
        InputError: The folder holds something else, the minutes are too few, the disk is too full, or the environment
            or the frames cannot be used.
    """
    began = time.perf_counter()
    settings = {name: str(v.absolute()) if isinstance(v, Path) else v for name, v in settings.items()}
    if (saved := _saved(file, settings)) is not None:
        walk = Walk(file, settings, saved)
        print_now(f"Going on with the plan in {file}: {walk.sizes}.")
        return walk
    recorded = None if recording is not None else sum(map(len, get_datasets(vae.frames)))
    speeds, about, side = None, Speeds(1.0, 0.002, 100.0, 0.05), _SIDE
    if sizes is None:
        print_now("Measuring this machine …")
        measured, side = measure(file.parent / ".measured", recording, vae)
        speeds = about = replace(measured, measuring=time.perf_counter() - began)
        seconds = 60 * settings["minutes"] - speeds.measuring
        sizes = choose(seconds, knots, lambda some: sum(stage_seconds(about, some, recorded=recorded).values()))
        if sizes is None:
            parts = stage_seconds(about, knots[0], recorded=recorded)
            least = (sum(parts.values()) + speeds.measuring) / 60
            raise InputError(
                f"minutes must be at least {math.ceil(10 * least) / 10:.1f} on this machine, got "
                f"{settings['minutes']:g}: the least that is of use ({_in_words(knots[0], recorded)}) takes "
                + ", ".join(f"{parts[name]:.0f} s to {name[0].lower()}{name[1:]}" for name in parts)
            )
    needed = _DISK + (0.0 if recording is None else 3.0 * _SIDE**2 * sizes.frames)
    if (free := shutil.disk_usage(file.parent).free) < needed:
        raise InputError(
            f"out: {file.parent} needs about {needed / 1e6:,.0f} MB, and its disk has {free / 1e6:,.0f} MB free; free "
            "some space, or name a folder on another disk"
        )
    estimates = stage_seconds(about, sizes, recorded=recorded)
    saved = {"plan": asdict(sizes), "frame_side": side, "speeds": speeds and asdict(speeds)}
    saved |= {"estimates": estimates, "seconds": {}}
    walk = Walk(file, settings, saved)
    walk.save()
    if speeds is not None:
        _print_plan(settings["minutes"], walk, knots[-1], recorded)
    return walk


def _saved(file: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """What an earlier call wrote; None if there was none, and an `InputError` if it had other settings."""
    folder = file.parent
    if is_unused(folder) or [entry.name for entry in folder.iterdir() if entry.name != ".lock"] == [".measured"]:
        return None
    try:
        saved = parse_json(file.read_bytes(), dict[str, Any], file)
    except (OSError, LatentObsError):
        saved = {}
    changed = [name for name, value in settings.items() if name not in saved or saved[name] != value]
    if changed:
        raise InputError(
            f"out: {folder} is not empty, and holds no {file.stem} with these settings ({', '.join(changed)}); choose "
            "another --out"
        )
    return saved


def _in_words(sizes: Sizes, recorded: int | None) -> str:
    return str(sizes) if recorded is None else str(sizes).partition(", ")[2]


def _print_plan(minutes: float, walk: Walk, full: Sizes, recorded: int | None) -> None:
    speeds = walk.speeds
    assert speeds is not None
    parts = "".join(f"\n  {name:<26}{seconds:5.0f} s" for name, seconds in walk.estimates.items())
    frame = f"a frame is recorded in {1e3 * speeds.frame:.1f} ms, " if recorded is None else ""
    print_now(
        f"Here {frame}a gradient step takes {1e3 * speeds.gradient_step:.0f} ms. The plan for {minutes:g} minutes: "
        f"{_in_words(walk.sizes, recorded)}.{parts}"
    )
    if left_out := left_out_of(walk.sizes, full, recorded):
        print_now(left_out)


def left_out_of(sizes: Sizes, full: Sizes, recorded: int | None = None) -> str:
    """A sentence about what a plan leaves out, or nothing."""
    names = [name for name in vars(full) if not (name == "frames" and recorded is not None)]
    less = [
        f"{getattr(sizes, name):,} {name} instead of {getattr(full, name):,}"
        for name in names
        if getattr(sizes, name) < getattr(full, name)
    ]
    if not less:
        return ""
    return f"The time is too short for everything: {', '.join(less)}. Give more with --minutes and another --out."


class _Timed(RandomPolicy):
    """Random actions, the time at each of them, and the end of the recording after some seconds."""

    def __init__(self, recording: RecordConfig) -> None:
        super().__init__(recording.stickiness if recording.policy == "sticky" else 0.0)
        self.pixel_key = recording.pixel_key
        self.times: list[float] = []
        self.episodes, self.is_over = 0, False

    def begin(self, env: Any) -> None:
        super().begin(env)
        space = env.observation_space
        key, _ = find_pixels(space, self.pixel_key)
        shape = (space if key is None else parts_of(space)[key][1]).shape
        self.frame_side = _SIDE if sorted(shape)[-2] >= _SMALLEST_RESIZED else None

    def reset(self, seed: int | None) -> None:
        super().reset(seed)
        self.episodes += 1

    def __call__(self, observation: Any) -> Any:
        self.times.append(time.perf_counter())
        if self.times[-1] - self.times[0] > _MEASURED_S and len(self.times) > _LEAST_FRAMES:
            self.is_over = True
            raise KeyboardInterrupt  # which ends a recording, and keeps what there is
        return super().__call__(observation)


def measure(folder: Path, recording: RecordConfig | None, vae: TrainConfig) -> tuple[Speeds, int | None]:
    """Record for two seconds and take some gradient steps, in a folder that is removed again.

    Returns the times, and the side of frames to record.
    """
    shutil.rmtree(folder, ignore_errors=True)
    start = frame = episode = 0.0
    side: int | None = _SIDE
    try:
        if recording is not None:
            timed, began = _Timed(recording), time.perf_counter()
            few = replace(recording, out=folder, size=_SIDE, frames=50_000, frames_per_file=50_000)
            record(few, policy=timed, progress_bar=False, say=lambda _: None)
            if not timed.is_over and len(timed.times) < few.frames // 2:
                raise KeyboardInterrupt  # the user's
            start = timed.times[0] - began
            frame = (timed.times[-1] - timed.times[0]) / (len(timed.times) - 1)
            episode, side = len(timed.times) / timed.episodes, timed.frame_side
        shape = get_datasets(folder if recording is not None else vae.frames)[0].shape[1:]
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        np.save(folder / "noise.npy", np.random.default_rng(0).integers(0, 256, (12 * BATCH, *shape), np.uint8))
        # Beside other work on the same cores, several threads of torch wait for each other and are slower than one.
        steps, counts = dict[int, float](), {torch.get_num_threads()}
        if resolve_device(vae.device).type == "cpu":
            counts.add(1)
        for count in counts:
            with torch_threads(count):
                steps[count] = seconds_per_step(replace(vae, frames=folder, epochs=1))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    threads = min(steps, key=lambda count: steps[count])
    return Speeds(start, frame, episode, steps[threads], threads), side


def record_all(recording: RecordConfig, say: Callable[[str], object]) -> None:
    """Record all frames; a `KeyboardInterrupt` if Ctrl-C has ended the recording, after which `record` returns."""
    folder = record(recording, say=say)
    if not any(folder.glob("*.npy")) or sum(map(len, get_datasets(folder))) < recording.frames:
        raise KeyboardInterrupt


def record_frames(walk: Walk, recording: RecordConfig, sheet: Path) -> None:
    """Record, and draw a contact sheet of what was recorded."""
    with walk.stage(RECORD, f"{recording.frames:,} frames of {recording.env}, random actions"):
        record_all(recording, _without_next)
        print_now(f"Look at them: {write_contact_sheet(sheet, frame_stats(recording.out, _SHEET_FRAMES))}")


def fit_components(vae: TrainConfig, file: Path) -> None:
    """Fit as many principal components as the CVAE will have latents, to the frames that it will be trained on."""
    began = time.perf_counter()
    training, _ = split_held_out(get_datasets(vae.frames), vae.held_out)
    layers: dict[str, Any] = {name: getattr(vae, name) for name in LAYERS}
    architecture = Architecture.for_frames(training[0].shape[1:], **layers)
    pca = Pca.fit(training, architecture.latent_dim).pca
    print_now(f"\nPrincipal components first: {pca}, in {time.perf_counter() - began:.0f} s: {pca.save(file)}")


def train_cvae(walk: Walk, vae: TrainConfig) -> None:
    """Train the CVAE, or go on with its training."""
    with walk.stage(TRAIN, "it learns to describe a frame by few numbers"), torch_threads(walk.threads):
        if train(vae, resume=(vae.out / "config.json").exists(), say=_without_next).interrupted:
            raise KeyboardInterrupt


def _without_next(text: str) -> None:
    """Print a message of a stage, but for its advice on the next command, which this one is."""
    if not text.startswith("next:"):
        print_now(text)
