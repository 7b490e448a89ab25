"""Videos of an agent at play: the game, what the agent sees, its latent and its decisions."""

import contextlib
import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np

from agents.play.show import Picture, Show
from latent_obs.util.atomic import atomic_write
from latent_obs.util.device import torch_threads
from latent_obs.util.errors import InputError, check_count, require

_MOST_SECONDS = 60


def film(
    run: str | Path,
    video: str | Path | None = None,
    *,
    episodes: int = 3,
    seconds: float = 15.0,
    which: str = "best",
    seed: int = 2_000_003,
    device: str = "auto",
) -> tuple[Path, list[float]]:
    """Play an agent for some episodes and write an MP4 of the pictures of `Show.picture`.

    Args:
        run: The run folder.
        video: The file to write; `run / "agent.mp4"` by default.
        episodes: Whole episodes to film at least, but never more than a minute.
        seconds: Length to film at least: short episodes are followed by more of them.
        which: "best", "last" or the step of a kept checkpoint.
        seed: Seed of the environment.
        device: Where to encode.

    Returns:
        The file, and the return of each episode that was filmed to its end.

    Raises:
        InputError: There is no such agent, its environment cannot draw itself, or the file cannot be written; raised
            before anything is played.
        MissingExtraError: PyAV is not installed.
    """
    require("av", extra="video", purpose="write a video")
    check_count("episodes", episodes)
    target = check_writable(Path(video) if video is not None else Path(run) / "agent.mp4")
    frames: list[Picture] = []
    # One frame at a time: more threads would only wait for each other.
    with torch_threads(1), contextlib.closing(Show(run, which=which, seed=seed, device=device)) as show:
        least, most = show.frames_per_second * seconds, show.frames_per_second * _MOST_SECONDS
        while (len(show.ended) < episodes or len(frames) < least) and len(frames) < most:
            frames.append(show.picture())
            show.step()
    write_video(target, frames, frames_per_second=show.frames_per_second)
    return target, [end.total for end in show.ended]


def check_writable(path: Path) -> Path:
    """Raise `InputError` if a file cannot be written, before the work whose result goes into it."""
    there = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir() or not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{path} cannot be written: it must name a file in a folder with permission to write")
    return path


def write_video(path: Path, frames: Iterable[Picture], *, frames_per_second: float) -> Path:
    """Write uint8 (H, W, 3) frames, of even height and width, as an H.264 MP4 that browsers play.

    Args:
        path: The file; it appears whole or not at all.
        frames: The pictures, all of one size.
        frames_per_second: Speed of play.

    Raises:
        MissingExtraError: PyAV is not installed.
    """
    av = require("av", extra="video", purpose="write a video")
    with atomic_write(path) as aside, av.open(str(aside), "w") as container:
        stream = None
        for frame in frames:
            if stream is None:
                stream = container.add_stream("libx264", rate=Fraction(frames_per_second).limit_denominator(1000))
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = "yuv420p"
                stream.options = {"crf": "23", "preset": "veryfast"}
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        if stream is None:
            raise InputError(f"no frames to write to {path}")
        container.mux(stream.encode())
    return path
