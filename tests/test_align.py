"""Aligning an encoder to another: the map that is found, and what folding it into weights gives, to the number."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import IMG_SHAPE, random_frames
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import r2_score

from latent_obs.align import LARGEST_CONDITION, Alignment, AlignmentQuality, fit_alignment, fold_alignment
from latent_obs.architecture import Architecture
from latent_obs.errors import InputError
from vae_training.cvae import CVAE, images_to_tensor

DIM, AREA = 48, 16  # of a spatial latent: three channels of 4x4 positions
Kind = Any
KINDS = [
    pytest.param({"bottleneck": b, "linear_path": p, "standardise": p}, id=f"{b}{'-linear' if p else ''}")
    for b in ("dense", "spatial")
    for p in (False, True)
]


def model_of(kind: Kind, seed: int = 0) -> CVAE:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dim = DIM if kind["bottleneck"] == "spatial" else 5
        return CVAE(IMG_SHAPE, dim, widths=(4, 8), strides=(2, 2), **kind).eval()


def frames(count: int = 40, seed: int = 0) -> torch.Tensor:
    return images_to_tensor(torch.from_numpy(random_frames(count, seed=seed)))


def alignment_of(architecture: Architecture, seed: int) -> Alignment:
    """A rotation, then scales from 1/4 to 4; in a dense latent a shift as well."""
    rng = np.random.default_rng(seed)
    spatial = architecture.bottleneck == "spatial"
    k = architecture.latent_dim // AREA if spatial else architecture.latent_dim
    rotation, _ = np.linalg.qr(rng.normal(size=(k, k)))
    return Alignment(
        np.diag(4 ** rng.uniform(-1, 1, k)) @ rotation, np.zeros(k) if spatial else rng.normal(size=k), AREA if spatial else 1
    )


def folded(model: CVAE, alignment: Alignment, **kwargs: Any) -> CVAE:
    inner, outer = fold_alignment(
        model.architecture, alignment, model.encoder.state_dict(), model.decoder.state_dict(), **kwargs
    )
    other = CVAE.from_architecture(model.architecture).eval()
    other.encoder.load_state_dict(inner)
    assert outer is not None
    other.decoder.load_state_dict(outer)
    return other


@torch.no_grad()
def means(model: CVAE, x: torch.Tensor) -> NDArray[np.float32]:
    return model.encoder.mean(x).numpy()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_folding_is_exact(kind: Kind, seed: int):
    model, x = model_of(kind, seed), frames(seed=seed)
    alignment = alignment_of(model.architecture, seed)
    other = folded(model, alignment)
    with torch.no_grad():
        before, after = model.encoder.mean(x), other.encoder.mean(x)
        # A spatial latent's channels are mixed at each position alike: numpy, one position at a time, is the oracle.
        wanted = np.empty(before.shape)
        k = len(alignment.offset)
        for position in range(alignment.area):
            column = before.numpy()[:, position :: alignment.area]
            assert column.shape[1] == k
            wanted[:, position :: alignment.area] = column @ alignment.matrix.T + alignment.offset
        np.testing.assert_allclose(after, wanted, atol=1e-4 * max(1, np.abs(wanted).max()))
        np.testing.assert_allclose(alignment.apply(before.numpy()), wanted, atol=1e-6 * np.abs(wanted).max())
        np.testing.assert_allclose(alignment.undo(wanted), before, atol=1e-6 * max(1, np.abs(wanted).max()) * 20)
        pictures = model.decode(before)
        np.testing.assert_allclose(other.decode(after), pictures, atol=1e-4 * max(1, float(pictures.abs().max())))
        # For any latent, and not only for those that frames have.
        z = torch.randn(20, model.latent_dim)
        moved = torch.from_numpy(alignment.apply(z.numpy())).float()
        np.testing.assert_allclose(other.decode(moved), model.decode(z), atol=1e-4 * max(1, float(model.decode(z).abs().max())))


@pytest.mark.parametrize("kind", KINDS)
def test_folding_leaves_what_it_was_given(kind: Kind):
    model = model_of(kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded(model, alignment_of(model.architecture, 1))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_known_change_is_undone(kind: Kind, seed: int):
    old = model_of(kind, seed)
    changed = folded(old, alignment_of(old.architecture, seed))
    x, other = frames(300, seed=1), frames(100, seed=2)
    found = fit_alignment(means(changed, x), means(old, x), old.architecture, ridge=1e-7)
    back = folded(changed, found)
    wanted = means(old, other)
    np.testing.assert_allclose(means(back, other), wanted, atol=2e-3 * np.abs(wanted).max())
    with torch.no_grad():
        pictures, again = old.decode(torch.from_numpy(wanted)), back.decode(torch.from_numpy(means(back, other)))
    np.testing.assert_allclose(again, pictures, atol=5e-3 * max(1, float(pictures.abs().max())))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1_000), ridge=st.sampled_from([0.0, 1e-3, 1.0]), dead=st.booleans())
def test_an_encoder_aligned_to_itself_is_left_alone(kind: Kind, seed: int, ridge: float, dead: bool):
    model = model_of(kind, seed)
    z = means(model, frames(200, seed)).astype(np.float64)
    if dead and ridge:  # a value that never changes
        z.reshape(len(z), -1, AREA if kind["bottleneck"] == "spatial" else 1)[:, 0] = 0.0
    found = fit_alignment(z, z, model.architecture, ridge=ridge)
    np.testing.assert_allclose(found.matrix, np.eye(len(found.matrix)), atol=1e-9)
    np.testing.assert_allclose(found.offset, 0, atol=1e-9)
    assert found.condition == pytest.approx(1)


@given(
    scale=st.floats(1e-3, 1e3), seed=st.integers(0, 1_000), rest=st.floats(0.01, 0.5)
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_the_fit_is_that_of_least_squares_at_any_scale(scale: float, seed: int, rest: float):
    rng = np.random.default_rng(seed)
    new = rng.normal(size=(400, 4)) * scale + scale
    old = scale * (rng.normal(size=(400, 4)) * rest + new @ rng.normal(size=(4, 4)) / scale + 3.0)
    architecture = Architecture((32, 32, 3), 4)
    try:
        found = fit_alignment(new, old, architecture, ridge=1e-9)
    except InputError:
        return  # the random matrix has no inverse worth the name
    solution, *_ = np.linalg.lstsq(np.c_[new, np.ones(len(new))], old, rcond=None)
    np.testing.assert_allclose(found.apply(new), np.c_[new, np.ones(len(new))] @ solution, atol=1e-4 * np.abs(old).max())


def test_positions_that_vary_little_count_as_much():
    """Half of the positions, of a tenth of the size, are mapped in one way, the others in another: neither side wins."""
    architecture = model_of(KINDS[2].values[0]).architecture
    rng = np.random.default_rng(0)
    size = np.where(np.arange(AREA) < AREA // 2, 1.0, 0.2)
    new = rng.normal(size=(500, 3, AREA)) * size
    old = new * np.where(size == 1.0, 1.5, 1.0)
    found = fit_alignment(new.reshape(500, -1), old.reshape(500, -1), architecture, ridge=0.0)
    # Weights 1 / 1.5² and 1 / 0.2² of squares that are 1 and 0.2² as large.
    wanted = (1.5 / 1.5**2 + 1.0) / (1 / 1.5**2 + 1.0)
    np.testing.assert_allclose(found.matrix, wanted * np.eye(3), atol=0.03)


def test_the_ridge_presses_towards_the_identity():
    rng = np.random.default_rng(0)
    new = rng.normal(size=(300, 3))
    architecture = Architecture((32, 32, 3), 3)
    off = [
        np.abs(fit_alignment(new, new * [2.0, 0.5, 3.0], architecture, ridge=ridge).matrix - np.eye(3)).max()
        for ridge in (0.0, 1.0, 10.0, 1e6)
    ]
    assert off[0] == pytest.approx(2)
    assert off[1] == pytest.approx(1, rel=0.1)  # half-way: ridge and data weigh the same
    assert off[0] > off[1] > off[2] > off[3]
    assert off[3] < 1e-4


def test_what_hardly_varies_stays_as_it_is():
    rng = np.random.default_rng(0)
    new = rng.normal(size=(2_000, 3)) * [1.0, 1.0, 1e-5]
    old = new @ np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    old[:, 2] = old[:, 0]  # so that least squares alone would make something of noise
    found = fit_alignment(new, old, Architecture((32, 32, 3), 3))
    assert found.matrix[:2, :2] == pytest.approx(np.array([[0, 1], [1, 0]]), abs=0.01)
    assert np.abs(found.matrix[:, 2] - [0, 0, 1]).max() < 0.05


def test_a_spatial_alignment_has_no_offset():
    architecture = model_of(KINDS[2].values[0]).architecture
    rng = np.random.default_rng(0)
    new = rng.normal(size=(50, DIM))
    found = fit_alignment(new, new + 0.1, architecture)
    assert not found.offset.any()
    assert found.area == AREA
    assert found.matrix.shape == (3, 3)


def test_a_shifted_spatial_latent_is_refused_with_a_decoder():
    model = model_of(KINDS[2].values[0])
    shifted = Alignment(np.eye(3), np.ones(3), AREA)
    with pytest.raises(InputError, match="pads with zeros"):
        fold_alignment(model.architecture, shifted, model.encoder.state_dict(), model.decoder.state_dict())
    inner, outer = fold_alignment(model.architecture, shifted, model.encoder.state_dict())  # an encoder alone can be shifted
    other = CVAE.from_architecture(model.architecture).eval()
    other.encoder.load_state_dict(inner)
    np.testing.assert_allclose(means(other, frames()), means(model, frames()) + 1, atol=1e-5)
    assert outer is None


@pytest.mark.parametrize("kind", KINDS)
def test_log_variances_of_permuted_and_scaled_latents_are_exact(kind: Kind):
    model = model_of(kind)
    k = DIM // AREA if kind["bottleneck"] == "spatial" else 5
    order, scales = np.roll(np.arange(k), 1), np.linspace(0.5, 2, k)
    alignment = Alignment(np.diag(scales)[:, order], np.zeros(k), AREA if kind["bottleneck"] == "spatial" else 1)
    other = folded(model, alignment, mean_logvar=np.zeros(model.latent_dim))
    with torch.no_grad():
        before, after = (m.encode(frames())[1].numpy().reshape(40, k, -1) for m in (model, other))
    columns = np.abs(alignment.matrix).argmax(1)
    wanted = before[:, columns] + 2 * np.log(alignment.matrix.max(1))[:, None]
    np.testing.assert_allclose(after, wanted, atol=1e-4)


def test_log_variances_are_right_at_the_mean_and_near_it():
    model = model_of(KINDS[0].values[0])
    with torch.no_grad():
        logvar = model.encode(frames())[1].numpy().astype(np.float64)
    alignment = alignment_of(model.architecture, 3)
    mean = logvar.mean(0)
    other = folded(model, alignment, mean_logvar=mean)
    with torch.no_grad():
        after = other.encode(frames())[1].numpy()
    # The head is linear: its mean over frames is what it gives at the mean, and there it is exact.
    exact = np.log(alignment.matrix**2 @ np.exp(mean))
    np.testing.assert_allclose(after.mean(0), exact, atol=1e-4)
    truth = np.log(np.exp(logvar) @ (alignment.matrix**2).T)
    assert np.abs(after - truth).max() < 0.1 * np.abs(truth).max()


def test_r2_is_scikit_learns():
    rng = np.random.default_rng(0)
    old = rng.normal(size=(200, 4)) + np.arange(4)
    new, aligned = old + rng.normal(size=old.shape), old + 0.1 * rng.normal(size=old.shape)
    quality = AlignmentQuality.measure(old, new, aligned)
    np.testing.assert_allclose(quality.before, r2_score(old, new, multioutput="raw_values"), atol=1e-9)
    np.testing.assert_allclose(quality.after, r2_score(old, aligned, multioutput="raw_values"), atol=1e-9)
    values = quality.to_json()
    assert values["worst_after"] == pytest.approx(quality.after.min(), abs=1e-4)
    assert values["median_before"] == pytest.approx(np.median(quality.before), abs=1e-4)
    assert values["quiet"] == 0


def test_values_that_hardly_vary_are_not_judged():
    rng = np.random.default_rng(0)
    old = rng.normal(size=(200, 3)) * [1.0, 0.01, 0.0]
    quality = AlignmentQuality.measure(old, old + 1, old)
    assert np.isnan(quality.after).tolist() == [False, True, True]
    assert quality.to_json()["quiet"] == 2
    assert quality.to_json()["r2_after"] == [1.0, None, None]


def test_a_map_without_an_inverse_is_refused_with_advice():
    rng = np.random.default_rng(0)
    new = rng.normal(size=(500, 3))
    old = new[:, [0, 0, 2]]  # the old ones said one thing twice, and of the new second one nothing
    with pytest.raises(InputError, match=r"cannot be undone.*larger ridge") as error:
        fit_alignment(new, old, Architecture((32, 32, 3), 3), ridge=0.0)
    assert "fine-tune less" in str(error.value)
    pressed = fit_alignment(new, old, Architecture((32, 32, 3), 3), ridge=0.1)  # what the advice says helps
    assert pressed.condition < LARGEST_CONDITION
    with pytest.raises(InputError, match="without a ridge"):
        fit_alignment(np.c_[new[:, :2], 0 * new[:, 2]], old, Architecture((32, 32, 3), 3), ridge=0.0)


@pytest.mark.parametrize("matrix", [np.zeros((2, 2)), np.diag([1.0, 1e-5]), np.ones((2, 2))])
def test_a_singular_matrix_is_no_alignment(matrix: NDArray[np.float64]):
    with pytest.raises(InputError, match="cannot be undone"):
        Alignment(matrix, np.zeros(2))


def test_what_cannot_be_fitted_is_told():
    architecture, z = Architecture((32, 32, 3), 3), np.random.default_rng(0).normal(size=(9, 3))
    for new, old, told in (
        (z[:, :2], z, r"new latents must be \(frames, 3\)"),
        (z[:5], z, "of the same two or more frames"),
        (z[:1], z[:1], "two or more"),
        (z, np.where(z > 0, np.nan, z), "old latents are not finite"),
    ):
        with pytest.raises(InputError, match=told):
            fit_alignment(new, old, architecture)
    with pytest.raises(InputError, match="ridge must be"):
        fit_alignment(z, z, architecture, ridge=-1.0)
    with pytest.raises(InputError, match="finite"):
        Alignment(np.array([[math.nan]]), np.zeros(1))
    with pytest.raises(InputError, match="matrix"):
        Alignment(np.eye(2), np.zeros(3))
    with pytest.raises(InputError, match="this alignment is of 2 values"):
        fold_alignment(architecture, Alignment(np.eye(2), np.zeros(2)), {})
    with pytest.raises(InputError, match="same two or more frames"):
        AlignmentQuality.measure(z, z[:4], z[:4])
