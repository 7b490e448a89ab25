"""The `.npy` format: the one place where headers are parsed, so that a damaged one is an error of its file."""

import math
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from latent_obs.util.errors import one_line

_CHUNK = 16 << 20


class NpyHeader(NamedTuple):
    """What the first bytes of a `.npy` file say."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of the array that follows."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_npy_header(handle: IO[bytes]) -> NpyHeader:
    """Read the header of a `.npy` file and leave the file at its first value; a `ValueError` if it is damaged.

    numpy's parser raises errors of a dozen kinds for damaged headers, and accepts negative lengths.
    """
    try:
        version = np.lib.format.read_magic(handle)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"format version {version[0]}.{version[1]} is unknown")
        header = NpyHeader(*readers[version](handle))
        if any(isinstance(length, bool) or length < 0 for length in header.shape) or header.nbytes >= 2**63:
            raise ValueError(f"the shape {header.shape} is impossible")
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"damaged, or no .npy file: {one_line(error)}") from None
    return header


def read_npy(handle: IO[bytes]) -> NDArray[Any]:
    """Read the array of a `.npy` file or of a member of an archive; a `ValueError` if it is damaged or holds objects.

    Memory is taken for what is there, not for what a damaged header promises.
    """
    header = read_npy_header(handle)
    if header.dtype.hasobject:
        raise ValueError("it holds Python objects, which are never loaded, as that can run code")
    data = bytearray()
    while chunk := handle.read(min(_CHUNK, header.nbytes - len(data))):
        data += chunk
    if len(data) != header.nbytes:
        raise ValueError(f"{header.nbytes:,} bytes of numbers expected, {len(data):,} found")
    order = "F" if header.fortran_order else "C"
    return np.frombuffer(data, header.dtype).reshape(header.shape, order=order)


def map_npy(file: Path) -> np.memmap:
    """Map the array of a `.npy` file, read-only.

    Raises:
        ValueError: It is damaged, is not exactly as long as its header says, or holds objects.
        OSError: It cannot be read.
    """
    with file.open("rb") as handle:
        header, offset = read_npy_header(handle), handle.tell()
        size = handle.seek(0, 2)
    if header.dtype.hasobject:
        raise ValueError("it holds Python objects, which are never loaded, as that can run code")
    if size != offset + header.nbytes:
        raise ValueError(f"{offset + header.nbytes:,} bytes expected, {size:,} found")
    order = "F" if header.fortran_order else "C"
    return np.memmap(file, header.dtype, "r", offset, header.shape, order)
