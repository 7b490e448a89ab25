"""Small recordings of every kind for the tests of their readers, made from frames that show their own number."""

import json
import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support import CLIPS
from vae_training.data.frames import Frames
from vae_training.extraction.readers.base import DamagedRecordingError, Recording

CLIP = CLIPS / "combat_spider_64.mp4"
CLIP_FRAMES = 90


def numbered(count: int, height: int = 48, width: int = 64) -> Frames:
    """Grey frames (n, H, W, 3) that show their number whatever the codec does: tens (up to 10) left, ones right."""
    n = np.arange(count)[:, None, None, None]
    halves = np.where(np.arange(width)[None, None, :, None] < width // 2, n // 10, n % 10)
    return np.ascontiguousarray(np.broadcast_to(20 + 20 * halves, (count, height, width, 3)), np.uint8)


def numbers(frames: Frames) -> list[int]:
    """The numbers of such frames."""
    width = frames.shape[2]
    tens, ones = frames[:, :, 4 : width // 2 - 4], frames[:, :, width // 2 + 4 : width - 4]
    digits = [np.round((half.mean(axis=(1, 2, 3)) - 20) / 20).astype(int) for half in (tens, ones)]
    return (10 * digits[0] + digits[1]).tolist()


def write_video(
    file: Path,
    frames: Sequence[NDArray[Any]] | Frames,
    codec: str = "libx264",
    *,
    pix_fmt: str = "yuv420p",
    rate: int = 20,
    container_options: Mapping[str, str] | None = None,
    rotation: tuple[float, bool] | None = None,
    aspect: Fraction | None = None,
    **options: str,
) -> Path:
    """Encode frames; h264 comes with B-frames, stored in another order than shown.

    `rotation` is how a player turns them, in degrees counter-clockwise and whether mirrored after that; `aspect` is how
    wide it shows a pixel of height 1.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w", options=dict(container_options or {})) as container:
        stream: Any = container.add_stream(
            codec, rate=rate, options={"crf": "1", **options} if codec == "libx264" else options
        )
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pix_fmt
        stream.time_base = Fraction(1, rate)
        if rotation is not None:
            stream.set_display_rotation(rotation[0], hflip=rotation[1])
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file


def write_empty_video(file: Path) -> None:
    """A whole `.mp4` with a video stream, and no frame in it."""
    with av.open(str(file), "w", options={"movflags": "frag_keyframe+empty_moov"}) as container:
        stream: Any = container.add_stream("libx264", rate=20)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        container.start_encoding()


def write_minerl_stream(
    folder: Path,
    video: bytes,
    actions: int,
    true_video_frame_count: int,
    more: Mapping[str, Any] | None = None,
) -> Path:
    """A stream of the MineRL dataset around a video; `more` replaces or adds arrays, None takes one away."""
    folder.mkdir(parents=True)
    (folder / "recording.mp4").write_bytes(video)
    rng = np.random.default_rng(actions)
    arrays: dict[str, Any] = {
        "action$attack": rng.integers(0, 2, actions),
        "action$camera": rng.normal(size=(actions, 2)).astype(np.float32),
        "action$craft": np.array(["none", "planks"])[rng.integers(0, 2, actions)],
        "observation$inventory$log": rng.integers(0, 9, actions + 1),
        "observation$equipped_items$mainhand$type": np.array(["air", "iron_axe"])[rng.integers(0, 2, actions + 1)],
        "reward": rng.normal(size=actions),
    }
    arrays.update(more or {})
    np.savez(folder / "rendered.npz", **{name: array for name, array in arrays.items() if array is not None})
    (folder / "metadata.json").write_text(
        json.dumps({"true_video_frame_count": true_video_frame_count, "success": True})
    )
    return folder


def vpt_line(**changed: Any) -> dict[str, Any]:
    """A line of a VPT recording in which nothing happens but what is given: keys, buttons, dx, isGuiOpen, ..."""
    line: dict[str, Any] = {
        "mouse": {
            **{"x": 640.0, "y": 360.0, "dx": 0.0, "dy": 0.0, "scaledX": 0.0, "scaledY": 0.0, "dwheel": 0.0},
            **{"buttons": [], "newButtons": []},
        },
        "keyboard": {"keys": [], "newKeys": [], "chars": ""},
        **{"isGuiOpen": False, "isGuiInventory": False, "hotbar": 0, "yaw": 0.0, "pitch": 0.0, "tick": 0},
    }
    for name, value in changed.items():
        home = line["mouse"] if name in line["mouse"] else line["keyboard"] if name in line["keyboard"] else line
        home[name] = value
    return line


def write_vpt(file: Path, frames: Frames, lines: Sequence[Mapping[str, Any]]) -> Path:
    """A VPT recording, the `.mp4` and the `.jsonl` beside it."""
    write_video(file, frames)
    file.with_suffix(".jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


class Evil:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def read(recording: Recording) -> Frames:
    """All frames of a recording; its chunks are checked to be arrays of their own."""
    chunks = list(recording.chunks())
    for chunk in chunks:
        assert (chunk.dtype, chunk.ndim, chunk.shape[3]) == (np.uint8, 4, 3)
        assert len(chunk) > 0
    assert not any(np.shares_memory(a, b) for a, b in pairwise(chunks))
    return np.concatenate(chunks)


def read_until_damage(recording: Recording, match: str) -> Frames | None:
    """The good frames of a damaged recording, None where there are none; the error has to match."""
    good: list[Frames] = []
    with pytest.raises(DamagedRecordingError, match=match):
        good.extend(recording.chunks())  # list.extend keeps what came before the error
    return np.concatenate(good) if good else None
