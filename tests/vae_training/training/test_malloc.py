"""Freed memory that is kept: counted in pages that the system had to hand out."""

import ctypes
import resource
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from vae_training.training.optim import kept_memory

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="a matter of glibc"
)


def pages_of_a_round() -> int:
    """Pages handed out while three arrays of 40 MB are made, written and freed, as the layers of a batch are."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.empty(40 << 20, np.uint8) for _ in range(3)]
    while arrays:
        arrays.pop()[:: resource.getpagesize()] = 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_memory_is_fetched_once_inside_and_each_time_outside():
    all_pages = 3 * (40 << 20) // resource.getpagesize()
    with kept_memory() as kept:
        assert kept
        pages_of_a_round()
        # The kernel may hand out several pages at once (transparent huge pages), so only the second round is certain.
        assert pages_of_a_round() < all_pages / 100
    outside = [pages_of_a_round() for _ in range(2)]
    assert min(outside) > all_pages / 1000  # freed, and fetched again


def test_memory_is_given_back_after_the_block():
    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()

    with kept_memory():
        pages_of_a_round()
        inside = resident()
    assert inside - resident() > 100 << 20


def test_an_error_inside_is_passed_on_and_the_setting_taken_back():
    def blocks() -> Iterator[None]:
        with kept_memory():
            yield
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        list(blocks())
    pages_of_a_round()
    assert pages_of_a_round() > 0
