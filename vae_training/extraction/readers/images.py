"""A folder of pictures as a recording: screenshots, or frames that another program has written."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from vae_training.extraction.readers.base import (
    DamagedRecordingError,
    Frames,
    Recording,
    fingerprint_of,
    in_chunks,
    is_passed_over,
    natural_key,
)

PICTURE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp"))
_BROKEN = (OSError, ValueError, SyntaxError, EOFError)  # what Pillow raises on a damaged file


@dataclass(frozen=True)
class PicturesRecording(Recording):
    """The pictures of a folder (not of folders in it) in the order of their names, 2 before 10; all of one size.

    Pixels are taken as they are stored: a rotation noted beside them (EXIF) is not carried out, transparency is
    dropped, grey is turned to RGB.
    """

    kind: ClassVar[str] = "pictures"

    def chunks(self) -> Iterator[Frames]:
        """As of a recording: a frame for each picture."""
        return in_chunks(self._pictures())

    @property
    def files(self) -> list[Path]:
        """The pictures, in natural order of their names."""
        found = [
            f for f in self.source.iterdir() if f.suffix.lower() in PICTURE_SUFFIXES and not is_passed_over(f.name)
        ]
        return sorted((f for f in found if f.is_file()), key=lambda f: natural_key(f.name))

    def _stated_frames(self) -> int | None:
        return len(self.files)

    def fingerprint(self) -> str:
        """As of a recording, of its pictures."""
        return fingerprint_of(self.files)

    def _pictures(self) -> Iterator[Frames]:
        files = self.files
        if not files:
            raise DamagedRecordingError(f"{self.source} has no pictures any more")
        first: Frames | None = None
        for file in files:
            pixels = _read(file)
            first = pixels if first is None else first
            if pixels.shape != first.shape:
                raise DamagedRecordingError(
                    f"{file} is {pixels.shape[1]}x{pixels.shape[0]}, and {files[0].name} "
                    f"{first.shape[1]}x{first.shape[0]}; the pictures of a recording have one size"
                )
            yield pixels


def _read(file: Path) -> Frames:
    """A picture as uint8 (H, W, 3)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                if getattr(image, "n_frames", 1) > 1:
                    raise ValueError("it is an animation, expected a single picture; make it a video")
                if image.mode.startswith(("I", "F")):  # Pillow would clip, not scale, what is above 255
                    raise ValueError(f"it has values of more than 8 bits, mode {image.mode}; save it with 8")
                return np.asarray(image.convert("RGB"))
    except (*_BROKEN, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DamagedRecordingError(f"{file} cannot be read as a picture ({error})") from None
