"""Contractor demonstrations in the form of OpenAI's Video PreTraining (VPT), which BASALT 2022 uses as well.

    <name>.mp4       the screen at 20 frames a second, 640x360
    <name>.jsonl     a JSON object per frame: keyboard, mouse, isGuiOpen, hotbar, ...

Actions have MineRL's names, following the data loader published with VPT
(github.com/openai/Video-Pre-Training, `data_loader.py`), as are its repairs: an attack button that hangs from the first
line on is released until it is pressed again, and the scroll wheel, which nothing records, is seen from the hotbar's
selection.
"""

import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vae_training.data.frames import Frames
from vae_training.extraction.config import Gui
from vae_training.extraction.readers.base import DamagedRecordingError, Recording, reading
from vae_training.extraction.readers.video import count_frames, decode, stated_frames

DEGREES_PER_MOUSE_UNIT = 360 / 2400  # as in the game's own code
_MAY_DIFFER = 5  # lines and frames; beyond that it is unknown which belong together

_KEYS = {
    "key.keyboard.escape": "ESC",
    "key.keyboard.w": "forward",
    "key.keyboard.s": "back",
    "key.keyboard.a": "left",
    "key.keyboard.d": "right",
    "key.keyboard.q": "drop",
    "key.keyboard.e": "inventory",
    "key.keyboard.f": "swapHands",
    "key.keyboard.space": "jump",
    "key.keyboard.left.shift": "sneak",
    "key.keyboard.left.control": "sprint",
    **{f"key.keyboard.{n}": f"hotbar.{n}" for n in range(1, 10)},
}
_MOUSE_BUTTONS = {0: "attack", 1: "use", 2: "pickItem"}
BUTTONS = (*_KEYS.values(), *_MOUSE_BUTTONS.values())


@dataclass(frozen=True)
class VptOptions:
    """Which frames of a VPT recording to take."""

    drop_null_actions: bool = False
    """Leave frames out in which no known key or mouse button is down and the mouse rests, as VPT does."""
    gui: Gui = "keep"
    """Whether to keep or to drop a frame that shows an open menu; the recording has no mouse cursor in it."""


@dataclass(frozen=True)
class VptRecording(Recording):
    """An `.mp4` with a `.jsonl` of the same name beside it."""

    kind: ClassVar[str] = "vpt"
    options: VptOptions = field(default_factory=VptOptions)

    def chunks(self) -> Generator[Frames]:
        """As of a recording: the frames that the options ask for."""
        kept, at = self._rows()[1], 0
        for chunk in decode(self.source, self.threads, count=len(kept)):
            here = kept[at : at + len(chunk)]
            at += len(chunk)
            if here.any():
                yield chunk if here.all() else chunk[here]
        if at < len(kept) or not at:
            raise DamagedRecordingError(f"{self.source} promises {len(kept)} frames or more, and {at} are there")

    def rows(self) -> Mapping[str, NDArray[Any]]:
        """What the player did in each frame that the options ask for.

        Returns:
            `action$<button>` (int64, 0 or 1), `action$camera` (float32 (n, 2): pitch and yaw in degrees), `null_action`
            and `is_gui_open` (bool), `mouse` (float32 (n, 2): x and y in the window), `video_frame` (int64: its number
            in the video).
        """
        rows, kept = self._rows()
        return {name: array[kept] for name, array in rows.items()}

    @property
    def files(self) -> list[Path]:
        """The `.mp4` and the `.jsonl`."""
        return [self.source, self.source.with_suffix(".jsonl")]

    @property
    def notes(self) -> list[str]:
        """Names the lengths of video and actions where they differ."""
        lines, frames = len(read_actions(self.files[1])["null_action"]), count_frames(self.source)
        if lines == frames:
            return []
        what = f"{self.source} has {frames} frames, and {self.files[1].name} {lines} lines"
        return [f"{what}; the first {min(lines, frames)} of both are paired, the rest is left out"]

    def _stated_frames(self) -> int | None:
        if self.options == VptOptions():  # all frames: the actions need not be read
            return stated_frames(self.source)
        return int(self._rows()[1].sum())

    def fingerprint(self) -> str:
        """As of a recording; other options are another recording."""
        return f"{super().fingerprint()};{self.options}"

    def _rows(self) -> tuple[dict[str, NDArray[Any]], NDArray[np.bool_]]:
        """What is known of each frame that has a line, and whether the options ask for it."""
        rows, frames = read_actions(self.files[1]), count_frames(self.source)
        lines = len(rows["null_action"])
        if abs(lines - frames) > _MAY_DIFFER:
            raise DamagedRecordingError(
                f"{self.source} has {frames} frames, and {self.files[1].name} {lines} lines: they do not belong "
                "together, or one of them is cut short"
            )
        rows = {name: array[: min(lines, frames)] for name, array in rows.items()}
        dropped = rows["null_action"] & self.options.drop_null_actions
        dropped |= rows["is_gui_open"] & (self.options.gui == "drop")
        return rows, ~dropped


def read_actions(file: Path) -> dict[str, NDArray[Any]]:
    """Read a `.jsonl` of VPT, as `VptRecording.rows` returns it, for all its lines; empty lines are passed over."""
    lines: list[tuple[list[bool], tuple[float, float], bool, bool, tuple[float, float]]] = []
    attack_hangs, hotbar = False, 0
    with reading(file):
        content = file.read_bytes().split(b"\n")
    for number, text in enumerate(content, 1):
        if not text.strip():
            continue
        with reading(f"{file}, line {number},"):
            line = json.loads(text)
            mouse = line["mouse"]
            buttons, new = set(mouse["buttons"]), list(mouse["newButtons"])
            attack_hangs = new == [0] if not lines else attack_hangs and 0 not in new
            if attack_hangs:
                buttons.discard(0)
            down = {_KEYS.get(key) for key in line["keyboard"]["keys"]} | {_MOUSE_BUTTONS.get(each) for each in buttons}
            dx, dy = float(mouse["dx"]), float(mouse["dy"])
            null = not down - {None} and dx == 0 and dy == 0
            selected = int(line.get("hotbar", hotbar))  # recorders before 6.11 do not write it
            if selected != hotbar:
                down.add(f"hotbar.{selected + 1}")
            hotbar = selected
            pressed = [button in down for button in BUTTONS]
            camera = (dy * DEGREES_PER_MOUSE_UNIT, dx * DEGREES_PER_MOUSE_UNIT)
            lines.append((pressed, camera, null, bool(line["isGuiOpen"]), (float(mouse["x"]), float(mouse["y"]))))
    if not lines:
        raise DamagedRecordingError(f"{file} has no lines")
    table, moved, nulls, menus, places = zip(*lines, strict=True)
    return {
        **dict(zip((f"action${name}" for name in BUTTONS), np.array(table, np.int64).T, strict=True)),
        "action$camera": np.array(moved, np.float32),
        "null_action": np.array(nulls),
        "is_gui_open": np.array(menus),
        "mouse": np.array(places, np.float32),
        "video_frame": np.arange(len(lines)),
    }
