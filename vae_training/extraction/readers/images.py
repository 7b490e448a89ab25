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
    frames_per_chunk,
    is_passed_over,
    natural_key,
)

PICTURE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp"))


@dataclass(frozen=True)
class PicturesRecording(Recording):
    """The pictures of a folder (not of folders in it) in the order of their names, 2 before 10; all of one size.

    Pixels are taken as they are stored: a rotation noted beside them (EXIF) is not carried out, transparency is
    dropped, grey is turned to RGB.
    """

    kind: ClassVar[str] = "pictures"

    def chunks(self) -> Iterator[Frames]:
        """As of a recording: a frame for each picture."""
        files = self.files
        if not files:
            raise DamagedRecordingError(f"{self.source} has no pictures any more")
        chunk: Frames | None = None
        filled = 0
        for good, file in enumerate(files):
            try:
                pixels = _read(file)
                if chunk is not None and pixels.shape != chunk.shape[1:]:
                    raise DamagedRecordingError(
                        f"{file} is {pixels.shape[1]}x{pixels.shape[0]}, and {files[0].name} "
                        f"{chunk.shape[2]}x{chunk.shape[1]}; the pictures of a recording have one size"
                    )
            except DamagedRecordingError as error:
                if chunk is not None and filled:
                    yield chunk[:filled]
                raise DamagedRecordingError(f"{error} ({good} picture(s) before it are good)") from None
            if chunk is None:
                chunk = np.empty((min(len(files), frames_per_chunk(pixels.nbytes)), *pixels.shape), np.uint8)
            chunk[filled] = pixels
            filled += 1
            if filled == len(chunk):
                yield chunk
                chunk, filled = np.empty_like(chunk), 0
        if chunk is not None and filled:
            yield chunk[:filled]

    @property
    def files(self) -> list[Path]:
        """The pictures, in order."""
        return pictures_in(self.source)

    @property
    def expected_frames(self) -> int | None:
        """Number of pictures."""
        return len(self.files)

    def fingerprint(self) -> str:
        """As of a recording, of its pictures."""
        return fingerprint_of(self.files)


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder, in natural order of their names."""
    found = [f for f in folder.iterdir() if f.suffix.lower() in PICTURE_SUFFIXES and not is_passed_over(f.name)]
    return sorted((f for f in found if f.is_file()), key=lambda f: natural_key(f.name))


def _read(file: Path) -> Frames:
    """A picture as uint8 (H, W, 3)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                if getattr(image, "n_frames", 1) > 1:
                    raise DamagedRecordingError(f"{file} is an animation, expected a single picture; make it a video")
                if image.mode.startswith(("I", "F")):  # Pillow would clip, not scale, what is above 255
                    raise DamagedRecordingError(
                        f"{file} has values of more than 8 bits (mode {image.mode}); save it with 8"
                    )
                return np.asarray(image.convert("RGB"))
    except DamagedRecordingError:
        raise
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        Image.DecompressionBombWarning,
        Image.DecompressionBombError,
    ) as error:
        raise DamagedRecordingError(f"{file} cannot be read as a picture ({error})") from None
