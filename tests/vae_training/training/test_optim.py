"""Learning rate and number format against torch and numpy; and freed memory that is kept."""

import ctypes
import resource
import sys

import numpy as np
import pytest
import torch

from latent_obs.util.errors import InputError
from vae_training.training.optim import (
    keep_freed_memory,
    make_scheduler,
    resolve_precision,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("step", [0, 7])
def test_the_cosine_is_that_of_torch_also_when_resumed(step: int):
    def optimizer() -> torch.optim.Optimizer:
        return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)

    theirs, ours = optimizer(), optimizer()
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, 30)
    for _ in range(step):
        theirs.step()
        cosine.step()
    scheduler = make_scheduler(ours, "cosine", total_steps=30, step=step)
    for _ in range(step, 30):
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"], abs=1e-9)
        for each, schedule in ((ours, scheduler), (theirs, cosine)):
            each.step()
            schedule.step()
    assert ours.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)
    assert make_scheduler(optimizer(), "constant", total_steps=3, step=10**6).get_last_lr() == [0.1]


def test_precision_that_a_device_lacks_is_refused():
    assert resolve_precision("float32", CPU) == torch.float32
    with pytest.raises(InputError, match="precision"):
        resolve_precision("bfloat16", torch.device("mps"))


glibc = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="a matter of glibc"
)


def pages_of_a_round() -> int:
    """Pages handed out while three arrays of 40 MB are made, written and freed, as the layers of a batch are."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.empty(40 << 20, np.uint8) for _ in range(3)]
    while arrays:
        arrays.pop()[:: resource.getpagesize()] = 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@glibc
def test_freed_memory_is_kept_inside_and_returned_after():
    all_pages = 3 * (40 << 20) // resource.getpagesize()
    with keep_freed_memory():
        pages_of_a_round()
        # The kernel may hand out several pages at once (transparent huge pages), so only the second round is certain.
        assert pages_of_a_round() < all_pages / 100
        inside = resident()
    assert inside - resident() > 100 << 20
    assert min(pages_of_a_round() for _ in range(2)) > all_pages / 1000  # freed, and fetched again
