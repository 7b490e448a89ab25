"""Headers of `.npy` files: what numpy writes is read, and what is damaged is an error of one kind."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from latent_obs.util.npy import map_npy, read_npy, read_npy_header

ARRAYS: list[NDArray[Any]] = [
    np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    np.array(3.5),
    np.array(["a", "bc"]),
    np.zeros((0, 4), np.int16),
    np.zeros(2, [("a", "<i4"), ("b", "u1")]),
]


def saved(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize("array", ARRAYS, ids=str)
def test_what_numpy_writes_is_read(tmp_path: Path, array: NDArray[Any]):
    (tmp_path / "a.npy").write_bytes(saved(array))
    for found in (read_npy(io.BytesIO(saved(array))), map_npy(tmp_path / "a.npy")):
        assert found.dtype == array.dtype
        assert found.shape == (array.shape or found.shape)
        assert (found == array).all()


def test_any_flipped_bit_of_a_header_is_an_error_of_one_kind_or_gives_an_array(tmp_path: Path):
    """numpy's own parser raises TokenError, SyntaxError, TypeError …, or accepts negative lengths."""
    whole, file = saved(ARRAYS[0]), tmp_path / "a.npy"
    refused: list[str] = []
    for place in range(len(whole) - 24):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            file.write_bytes(damaged)
            for read in (lambda: read_npy(io.BytesIO(file.read_bytes())), lambda: map_npy(file)):
                try:
                    assert read().size >= 0
                except ValueError as error:
                    refused.append(str(error))
    assert len(refused) > len(whole)  # spaces may become tabs, and so on
    assert not any("\n" in text for text in refused)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-2, 3), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (4611686018427387904, 64), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (True, 2), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (2,), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000,), }",
        "(" * 3_000,
    ],
)
def test_headers_that_promise_what_cannot_be(tmp_path: Path, header: str):
    text = header.encode() + b"\n"
    data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(6)
    (tmp_path / "a.npy").write_bytes(data)
    for read in (lambda: read_npy(io.BytesIO(data)), lambda: map_npy(tmp_path / "a.npy")):
        with pytest.raises(ValueError):
            read()
    with pytest.raises(ValueError):
        read_npy_header(io.BytesIO(data[:7]))
