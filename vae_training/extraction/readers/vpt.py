"""Contractor demonstrations in the form of OpenAI's Video PreTraining (VPT), which BASALT 2022 uses as well.

    <name>.mp4       the screen at 20 frames a second, 640x360
    <name>.jsonl     a JSON object per frame: keyboard, mouse, isGuiOpen, hotbar, ...

Actions have MineRL's names, following the data loader published with VPT
(github.com/openai/Video-Pre-Training, `data_loader.py`), as are its repairs: an attack button that hangs from the first
line on is released until it is pressed again, and the scroll wheel, which nothing records, is seen from the hotbar's
selection.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from vae_training.extraction.readers.base import DamagedRecordingError, Frames, Recording, fingerprint_of
from vae_training.extraction.readers.video import count_frames, decode, stated_frames

Gui = Literal["keep", "drop"]
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
    """Which frames of a VPT recording to take.

    Attributes:
        drop_null_actions: Leave frames out in which no known key or mouse button is down and the mouse rests, as VPT
            does.
        gui: Whether to keep or to drop a frame that shows an open menu; the recording has no mouse cursor in it.
    """

    drop_null_actions: bool = False
    gui: Gui = "keep"


@dataclass(frozen=True)
class VptRecording(Recording):
    """An `.mp4` with a `.jsonl` of the same name beside it."""

    kind: ClassVar[str] = "vpt"
    options: VptOptions = field(default_factory=VptOptions)

    def chunks(self) -> Iterator[Frames]:
        """As of a recording: the frames that the options ask for."""
        kept = self._rows()[1]
        paired, at = len(kept), 0
        if not paired:
            raise DamagedRecordingError(f"{self.source} cannot be read as a video: it has no frames")
        for chunk in decode(self.source, self.threads, count=paired):
            here = kept[at : at + len(chunk)]
            at += len(chunk)
            if here.any():
                yield chunk if here.all() else chunk[here]
        if at < paired:
            raise DamagedRecordingError(f"{self.source} promises {paired} frames or more, and {at} are there")

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
    def actions_file(self) -> Path:
        """The `.jsonl`."""
        return self.source.with_suffix(".jsonl")

    @property
    def notes(self) -> list[str]:
        """Says so where video and actions differ in length."""
        lines, frames = len(read_actions(self.actions_file)["null_action"]), count_frames(self.source)
        if lines == frames:
            return []
        what = f"{self.source} has {frames} frames, and {self.actions_file.name} {lines} lines"
        return [f"{what}; the first {min(lines, frames)} of both are paired, the rest is left out"]

    def _stated_frames(self) -> int | None:
        if self.options == VptOptions():  # all frames: the actions need not be read
            return stated_frames(self.source)
        return int(self._rows()[1].sum())

    def fingerprint(self) -> str:
        """As of a recording, of both files; other options are another recording."""
        return f"{fingerprint_of([self.source, self.actions_file])};{self.options}"

    def _rows(self) -> tuple[dict[str, NDArray[Any]], NDArray[np.bool_]]:
        """What is known of each frame that has a line, and whether the options ask for it."""
        rows, frames = read_actions(self.actions_file), count_frames(self.source)
        lines = len(rows["null_action"])
        if abs(lines - frames) > _MAY_DIFFER:
            raise DamagedRecordingError(
                f"{self.source} has {frames} frames, and {self.actions_file.name} {lines} lines: they do not belong "
                "together, or one of them is cut short"
            )
        rows = {name: array[: min(lines, frames)] for name, array in rows.items()}
        dropped = rows["null_action"] & self.options.drop_null_actions
        dropped |= rows["is_gui_open"] & (self.options.gui == "drop")
        return rows, ~dropped


def read_actions(file: Path) -> dict[str, NDArray[Any]]:
    """Read a `.jsonl` of VPT, as `VptRecording.rows` returns it, for all its lines; empty lines are passed over."""
    pressed: list[list[int]] = []
    moved, mouse, null, menu = list[tuple[float, float]](), list[tuple[float, float]](), list[bool](), list[bool]()
    attack_hangs, hotbar = False, 0
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise DamagedRecordingError(f"{file} cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            action = json.loads(line)
            keys, buttons = set(action["keyboard"]["keys"]), set(action["mouse"]["buttons"])
            new = list(action["mouse"]["newButtons"])
            attack_hangs = new == [0] if not pressed else attack_hangs and 0 not in new
            if attack_hangs:
                buttons.discard(0)
            down = {_KEYS[key] for key in keys if key in _KEYS}
            down |= {_MOUSE_BUTTONS[button] for button in buttons if button in _MOUSE_BUTTONS}
            dx, dy = float(action["mouse"]["dx"]), float(action["mouse"]["dy"])
            null.append(not down and dx == 0 and dy == 0)
            selected = int(action.get("hotbar", hotbar))  # recorders before 6.11 do not write it
            if selected != hotbar:
                down.add(f"hotbar.{selected + 1}")
            hotbar = selected
            pressed.append([name in down for name in BUTTONS])
            moved.append((dy * DEGREES_PER_MOUSE_UNIT, dx * DEGREES_PER_MOUSE_UNIT))
            mouse.append((float(action["mouse"]["x"]), float(action["mouse"]["y"])))
            menu.append(bool(action["isGuiOpen"]))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise DamagedRecordingError(
                f"{file}, line {number}, is not an action of VPT ({type(error).__name__}: {error})"
            ) from None
    if not pressed:
        raise DamagedRecordingError(f"{file} has no lines")
    table = np.array(pressed, np.int64)
    return {
        **{f"action${name}": table[:, i] for i, name in enumerate(BUTTONS)},
        "action$camera": np.array(moved, np.float32),
        "null_action": np.array(null),
        "is_gui_open": np.array(menu),
        "mouse": np.array(mouse, np.float32),
        "video_frame": np.arange(len(pressed)),
    }
