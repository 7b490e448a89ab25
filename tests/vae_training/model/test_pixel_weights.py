"""Weights of pixels: mean 1, never negative, capped; what is small or moves stands out from a drifting background."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from latent_obs.encoder.pca import LEAST_SPREAD, principal_components
from vae_training.model.losses import CAP, Background, weights_of

QUICK = settings(max_examples=40, deadline=None)


def images(seed: int, count: int = 3, size: int = 8, spread: float = 1.0) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * spread


@given(seed=st.integers(0, 999), weight=st.floats(0, 100))
@QUICK
def test_weights_have_mean_1_and_are_what_numpy_says(seed: int, weight: float):
    background = Background(3 * 8 * 8, rank=4)
    background.fit(images(seed, count=9))
    new = images(seed + 1000)
    weights = weights_of(weight, background(new)).numpy()
    mean, basis = background.mean.double().numpy(), background.basis.double().numpy()
    centred = new.double().flatten(1).numpy() - mean
    by_pixel = ((centred - centred @ basis @ basis.T) ** 2).reshape(3, 3, 8, 8).mean(1, keepdims=True)
    oracle = 1 + weight * np.minimum(by_pixel / (by_pixel.mean() + 1e-12), CAP)
    np.testing.assert_allclose(weights, oracle / oracle.mean(), rtol=1e-3, atol=1e-5)
    assert weights.mean() == pytest.approx(1, rel=1e-4)
    assert weights.min() >= 0


@given(seed=st.integers(0, 999), flashes=st.integers(1, 3))
@QUICK
def test_one_flash_is_not_the_whole_loss(seed: int, flashes: int):
    background = Background(3 * 32 * 32)  # not fitted: it explains nothing
    frames = images(seed, size=32, spread=1e-3)
    frames.view(3, 3, -1)[:, :, :flashes] += 1.0
    marked = background(frames)
    assert marked.max() == CAP
    assert weights_of(4.0, marked).max() <= 1 + 4.0 * CAP


def test_weights_carry_no_gradient():
    decoded = images(0).requires_grad_()
    assert not weights_of(1.0, decoded.square()).requires_grad
    background = Background(3 * 8 * 8, rank=4)
    background.fit(images(2, count=9))
    assert not background(decoded).requires_grad
    assert not list(background.parameters())


@pytest.mark.parametrize("shade", [0.0, 0.5, 1.0])
def test_a_still_batch_weighs_all_pixels_alike(shade: float):
    still = torch.full((4, 3, 8, 8), shade)
    background = Background(3 * 8 * 8)
    background.fit(still)
    assert torch.equal(weights_of(5.0, background(still)), torch.ones(4, 1, 8, 8))


def drifting_scene(count: int, seed: int = 0) -> tuple[torch.Tensor, NDArray[np.bool_]]:
    """A panorama of three waves that drift, and a 3x3 square a little brighter than what it is in front of; and where
    it is."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:24, 0:24] / 24
    shift = rng.uniform(0, 2 * np.pi, (count, 1, 1))
    scene = (
        0.5 + 0.15 * np.sin(6 * x + shift) + 0.15 * np.cos(9 * y - 2 * shift) + 0.1 * rng.uniform(-1, 1, (count, 1, 1))
    )
    square = np.zeros((count, 24, 24), bool)
    for i, (row, column) in enumerate(rng.integers(0, 22, (count, 2))):
        square[i, row : row + 3, column : column + 3] = True
    frames = np.repeat((scene + 0.2 * square)[:, None], 3, 1)
    return torch.from_numpy(frames.astype(np.float32)), square


def test_background_marks_a_small_square_that_moves():
    training, _ = drifting_scene(400)
    background = Background(3 * 24 * 24, rank=8)
    background.fit(training)
    new, square = drifting_scene(50, seed=1)
    salient = background(new).numpy()[:, 0]
    assert salient[square].mean() > 20 * salient[~square].mean()
    plain = ((new - new.mean(0)) ** 2).mean(1).numpy()  # the distance from the mean frame does not see it
    assert plain[square].mean() < 5 * plain[~square].mean()


@given(seed=st.integers(0, 99), rank=st.integers(1, 5))
@QUICK
def test_background_explains_what_is_of_its_rank(seed: int, rank: int):
    rng = np.random.default_rng(seed)
    basis, mean = rng.uniform(-0.2, 0.2, (rank, 1, 8, 8)), rng.uniform(0.3, 0.7, (1, 8, 8))
    frames = torch.from_numpy((mean + np.tensordot(rng.standard_normal((40, rank)), basis, 1)).astype(np.float32))
    background = Background(64, rank=rank)
    background.fit(frames)
    frames[0, 0, 3, 3] += 0.5
    assert int(background(frames).argmax()) == 3 * 8 + 3
    assert background(frames)[1:].max() < 1e-4  # in other frames next to nothing is left to mark


def test_fitting_is_repeatable_and_leaves_the_random_state_alone():
    training, _ = drifting_scene(60)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, two = Background(3 * 24 * 24), Background(3 * 24 * 24)
    one.fit(training)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    two.fit(training)
    assert torch.equal(one.basis, two.basis)
    assert torch.equal(one.mean, two.mean)
    two.fit(drifting_scene(60, seed=3)[0][:4])  # a second fit leaves nothing of the first
    assert (two.basis.norm(dim=0) > 0.5).sum() <= 3


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_or_equal_frames_have_few_components(count: int):
    background = Background(3 * 8 * 8)
    background.fit(images(0, count=count))
    assert torch.isfinite(background.basis).all()
    assert (background.basis.norm(dim=0) > 0.5).sum() == count - 1
    background.fit(images(0, count=1).expand(7, -1, -1, -1))
    assert not background.basis.any()


@given(seed=st.integers(0, 99), rank=st.integers(1, 6), wanted=st.integers(1, 10))
@QUICK
def test_components_are_those_of_numpys_svd(seed: int, rank: int, wanted: int):
    rng = np.random.default_rng(seed)
    flat = (
        rng.standard_normal((50, rank)) * np.linspace(1, 3, rank) @ np.linalg.qr(rng.standard_normal((40, rank)))[0].T
        + 0.3
    )
    centre, spread, components = (
        part.numpy() for part in principal_components(torch.from_numpy(flat.astype(np.float32)), wanted)
    )
    _, sizes, directions = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    k = min(rank, wanted)
    assert (len(spread), components.shape) == (k, (40, k))
    np.testing.assert_allclose(centre, flat.mean(0), atol=1e-5)
    np.testing.assert_allclose(spread, sizes[:k] / np.sqrt(50), rtol=1e-3)
    np.testing.assert_allclose(components.T @ components, np.eye(k), atol=1e-4)
    np.testing.assert_allclose(components @ components.T, directions[:k].T @ directions[:k], atol=2e-2)
    assert (spread > LEAST_SPREAD).all()
