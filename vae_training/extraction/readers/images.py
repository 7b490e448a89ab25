"""A folder of pictures as a recording: screenshots, or frames that another program has written."""

import contextlib
import warnings
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, ClassVar

import numpy as np
from PIL import Image, ImageOps

from latent_obs.util.words import counted
from vae_training.data.frames import Frames
from vae_training.extraction.readers.base import (
    DamagedRecordingError,
    Recording,
    in_chunks,
    is_passed_over,
    natural_key,
    reading,
)

PICTURE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp"))
#: Pillow goes by what is in a file, and would run Ghostscript on a PostScript that is called .png.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")


@dataclass(frozen=True)
class PicturesRecording(Recording):
    """The pictures of a folder (not of folders in it) in the order of their names, 2 before 10; all of one size.

    They are turned and mirrored as a viewer shows them (EXIF), transparency is dropped, grey is turned to RGB.
    """

    kind: ClassVar[str] = "pictures"

    def chunks(self) -> Generator[Frames]:
        """As of a recording: a frame for each picture."""
        with reading(self.source):
            files = self.files
            if not files:
                raise ValueError("there are no pictures in it any more")
        yield from decode_pictures((file, file) for file in files)

    @property
    def files(self) -> list[Path]:
        """The pictures, in natural order of their names."""
        pictures = (file for file in self.source.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES)
        found = [file for file in pictures if not is_passed_over(file.name) and file.is_file()]
        return sorted(found, key=lambda file: natural_key(file.name))

    @property
    def notes(self) -> list[str]:
        """Names how many pictures have transparency, which is dropped."""
        transparent = 0
        for file in self.files:
            with _opened(file, file) as image:
                transparent += image.has_transparency_data
        what = f"{self.source}: the transparency of {counted(transparent, 'picture')} is dropped"
        return [f"{what}: what is stored beneath is taken"] if transparent else []

    def _stated_frames(self) -> int | None:
        return len(self.files)


def decode_pictures(pictures: Iterable[tuple[object, Path | IO[bytes]]]) -> Generator[Frames]:
    """The frames of encoded pictures of one size, some at a time.

    Args:
        pictures: What to call each in errors, and its file, or its content.

    Raises:
        DamagedRecordingError: One cannot be read, or has another size; what was good before has been given.
    """
    return in_chunks(_of_one_size(pictures))


def _of_one_size(pictures: Iterable[tuple[object, Path | IO[bytes]]]) -> Iterator[Frames]:
    size = None
    for name, content in pictures:
        pixels = _pixels(name, content)
        size = size or pixels.shape
        if pixels.shape != size:
            raise DamagedRecordingError(f"{name} has shape {pixels.shape}, expected {size} like the pictures before it")
        yield pixels


@contextlib.contextmanager
def _opened(name: object, content: Path | IO[bytes]) -> Iterator[Image.Image]:
    """A picture of which only the header was read; any error in the block means that it is damaged."""
    with reading(name), warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(content, formats=_FORMATS) as image:
            yield image


def _pixels(name: object, content: Path | IO[bytes]) -> Frames:
    """A picture as uint8 (H, W, 3)."""
    with _opened(name, content) as image:
        # A phone's picture may have others behind it (MPO): a preview, or one of depth.
        if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
            raise ValueError("it is an animation, expected a single picture; make it a video")
        if image.mode.startswith(("I", "F")):  # Pillow would clip, not scale, what is above 255
            raise ValueError(f"it has values of more than 8 bits, mode {image.mode}; save it with 8")
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
