"""Errors of edges and scales against loops in numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vae_training.structure_terms import edge_error, scale_error

QUICK = settings(max_examples=40, deadline=None)
sizes = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 12), st.integers(1, 12))


def pair(shape: tuple[int, ...], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.random(shape)), torch.from_numpy(rng.random(shape))


def edge_loop(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    total = 0.0
    for n, c, i, j in np.ndindex(*x.shape):
        for k, m in ((i + 1, j), (i, j + 1)):
            if k < x.shape[2] and m < x.shape[3]:
                total += ((x[n, c, k, m] - x[n, c, i, j]) - (y[n, c, k, m] - y[n, c, i, j])) ** 2
    return float(total) / 2 / len(x)


def scale_loop(x: NDArray[np.float64], y: NDArray[np.float64], scales: tuple[int, ...]) -> float:
    errors: list[float] = []
    for s in scales:
        if s <= min(x.shape[2:]):
            total = 0.0
            for i in range(x.shape[2] // s):
                for j in range(x.shape[3] // s):
                    cut = (..., slice(i * s, i * s + s), slice(j * s, j * s + s))
                    total += ((x[cut].mean((2, 3)) - y[cut].mean((2, 3))) ** 2).sum() * s * s
            errors.append(float(total / len(x)))
    return sum(errors) / len(errors) if errors else 0.0


@given(shape=sizes, seed=st.integers(0, 999))
@QUICK
def test_edges_are_the_loops(shape: tuple[int, ...], seed: int):
    x, y = pair(shape, seed)
    assert float(edge_error(x, y)) == pytest.approx(edge_loop(x.numpy(), y.numpy()))
    assert float(edge_error(x + 0.7, x)) == pytest.approx(0, abs=1e-12)  # another brightness is no edge


@given(shape=sizes, seed=st.integers(0, 999), scales=st.sets(st.integers(1, 8), max_size=3))
@QUICK
def test_scales_are_the_loops(shape: tuple[int, ...], seed: int, scales: set[int]):
    x, y = pair(shape, seed)
    chosen = tuple(sorted(scales))
    assert float(scale_error(x, y, chosen)) == pytest.approx(scale_loop(x.numpy(), y.numpy(), chosen))
    assert float(scale_error(x, y)) == pytest.approx(scale_loop(x.numpy(), y.numpy(), (2, 4, 8)))


def test_a_coarse_error_counts_at_every_scale_and_a_fine_one_at_none():
    image = torch.zeros(2, 3, 16, 16)
    board = torch.ones(16, 16)
    board[::2, ::2] = board[1::2, 1::2] = -1.0
    assert float(scale_error(image + board, image)) == 0.0
    assert float(scale_error(image + 0.5, image)) == pytest.approx(float((image + 0.5).square().sum() / 2))
    assert float(edge_error(image + board, image)) == pytest.approx(3 * 16 * 15 * 4)


def test_both_have_gradients_also_where_no_scale_fits():
    x = torch.rand(2, 3, 1, 1, requires_grad=True)
    (scale_error(x, torch.zeros_like(x)) + edge_error(x, torch.zeros_like(x))).backward()
    assert x.grad is not None
    assert not x.grad.any()
