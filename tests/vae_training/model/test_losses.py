"""The loss is the sum of its parts, each of which is what numpy or its own function gives."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.support.tiny import LATENT_DIM, tiny_cvae
from vae_training.data.loader import Batch, Share
from vae_training.model.augmentation import CHANGES, augment, images_to_tensor
from vae_training.model.losses import CAP, Background, VAELoss

QUICK = settings(max_examples=40, deadline=None)


def batch_of(count: int = 7, seed: int = 0) -> Batch:
    frames = np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), np.uint8)
    return Batch(images_to_tensor(torch.from_numpy(frames)))


def loss_of(seed: int = 0, model: dict[str, Any] | None = None, **kwargs: Any) -> VAELoss:
    loss = VAELoss(tiny_cvae(seed, **(model or {})), **kwargs)
    if loss.background is not None:
        loss.background.fit(batch_of(40, seed=9).images)
    return loss


def losses_of(loss: VAELoss, batch: Batch, seed: int = 4) -> Any:
    torch.manual_seed(seed)
    return loss(batch.images, batch.noise)


@given(salience=st.sampled_from([0.0, 0.5]), seed=st.integers(0, 99), scaled=st.booleans())
@QUICK
def test_the_total_is_the_sum_of_its_parts(salience: float, seed: int, scaled: bool):
    loss, batch = loss_of(seed, {"scale_losses": scaled, "beta": 2.0}, salience=salience), batch_of(seed=seed)
    losses = losses_of(loss, batch)
    plain = losses_of(VAELoss(loss.model), batch)
    assert torch.equal(losses.reconstruction, plain.reconstruction)  # stays unweighted
    assert torch.equal(losses.kl, plain.kl)
    assert list(losses.terms) == (["weighted_reconstruction"] if salience else [])
    descended = losses.terms.get("weighted_reconstruction", plain.reconstruction)
    torch.testing.assert_close(losses.total, descended + 2.0 * plain.kl)


@pytest.mark.parametrize("scaled", [False, True])
def test_the_weighted_error_is_what_the_weights_of_the_pixels_say(scaled: bool):
    loss, batch = loss_of(model={"scale_losses": scaled}, salience=0.5), batch_of()
    found = losses_of(loss, batch).terms["weighted_reconstruction"].detach()
    torch.manual_seed(4)
    assert loss.background is not None
    with torch.no_grad():
        mean, logvar = loss.model.encoder(batch.images)
        decoded = loss.model.decoder(mean + torch.exp(0.5 * logvar) * torch.randn(7, 6))
        weights = loss.background(batch.images)
    wanted = (weights * (decoded - batch.images).square()).sum() / 7 / (768 if scaled else 1)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_a_shard_of_a_batch_has_the_noise_of_its_rows():
    """As under torchrun: the losses of both shards are those of their rows, whatever process they are in."""
    loss, batch = loss_of(salience=0.5, augment=0.5), batch_of(6)
    whole = losses_of(loss, batch).reconstruction
    shards = []
    for start, count in ((0, 4), (4, 2)):
        shard = Batch(batch.images[start : start + count], Share(6, start, count))
        shards.append(losses_of(loss, shard).reconstruction * count)
    torch.testing.assert_close(sum(shards) / 6, whole)


def test_a_changed_image_is_the_target():
    loss, batch = loss_of(augment=1.0), batch_of()
    losses = losses_of(loss, batch)
    torch.manual_seed(4)
    changed = augment(batch.images, 1.0, torch.randn(7, CHANGES))
    with torch.no_grad():
        mean, logvar = loss.model.encoder(changed)
        decoded = loss.model.decoder(mean + torch.exp(0.5 * logvar) * torch.randn(7, 6))
    torch.testing.assert_close(losses.reconstruction, (decoded - changed).square().sum() / 7)


def test_bfloat16_layers_give_nearly_the_same_losses_in_float32():
    seen, results = [], []
    for dtype in (torch.float32, torch.bfloat16):
        loss = loss_of(salience=0.5, dtype=dtype)
        loss.model.encoder.convolutions.register_forward_hook(lambda *a: seen.append(a[2].dtype))
        losses = losses_of(loss, batch_of())
        terms = {"total": losses.total, "error": losses.reconstruction, "kl": losses.kl, **losses.terms}
        assert all(term.dtype == torch.float32 for term in terms.values())
        results.append({name: term.item() for name, term in terms.items()})
    assert seen == [torch.float32, torch.bfloat16]
    assert results[0] == pytest.approx(results[1], rel=0.05, abs=0.02)
    assert results[0] != results[1]
    with torch.no_grad():  # logvar that exp() in bfloat16 would round by 0.4%
        weights = loss.model.encoder.state_dict()
        for name in ("logvar_head.weight", "mean_head.weight", "mean_head.bias"):
            weights[name].zero_()
        weights["logvar_head.bias"].fill_(5.0)
        kl = losses_of(loss, batch_of()).kl.item()
    assert kl == pytest.approx(LATENT_DIM * 0.5 * (np.exp(5.0) - 1 - 5.0), rel=1e-6)


def test_a_loss_that_cannot_be_compiled_runs_uncompiled(monkeypatch: pytest.MonkeyPatch):
    def broken(*_: Any) -> Any:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", lambda function, **_: broken)
    said: list[str] = []
    compiled = losses_of(loss_of(compile=True, say=said.append), batch_of())
    assert compiled.total == losses_of(loss_of(), batch_of()).total
    assert len(said) == 1
    assert "no compiler" in said[0]


def images(seed: int, count: int = 3, size: int = 8, spread: float = 1.0) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * spread


@given(seed=st.integers(0, 999), salience=st.floats(0, 100))
@QUICK
def test_pixel_weights_have_mean_1_and_are_what_numpy_says(seed: int, salience: float):
    background = Background(3 * 8 * 8, salience, rank=4)
    background.fit(images(seed, count=9))
    new = images(seed + 1000)
    new[0, :, 0, 0] += 100.0  # one flash is not the whole loss
    assert not background(new.requires_grad_()).requires_grad
    new = new.detach()
    weights = background(new).numpy()
    mean, basis = background.mean.double().numpy(), background.basis.double().numpy()
    centred = new.double().flatten(1).numpy() - mean
    by_pixel = ((centred - centred @ basis @ basis.T) ** 2).reshape(3, 3, 8, 8).mean(1, keepdims=True)
    oracle = 1 + salience * np.minimum(by_pixel / (by_pixel.mean() + 1e-12), CAP)
    np.testing.assert_allclose(weights, oracle / oracle.mean(), rtol=1e-3, atol=1e-5)
    assert weights.mean() == pytest.approx(1, rel=1e-4)
    assert weights.min() >= 0


def test_a_still_batch_weighs_all_pixels_the_same():
    still = torch.full((4, 3, 8, 8), 0.5)
    background = Background(3 * 8 * 8, salience=5.0)
    background.fit(still)
    assert torch.equal(background(still), torch.ones(4, 1, 8, 8))


def drifting_scene(count: int, seed: int = 0) -> tuple[torch.Tensor, NDArray[np.bool_]]:
    """A panorama of three waves that drift behind a slightly brighter 3x3 square; and where the square is."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:24, 0:24] / 24
    shift = rng.uniform(0, 2 * np.pi, (count, 1, 1))
    light = 0.1 * rng.uniform(-1, 1, (count, 1, 1))
    scene = 0.5 + 0.15 * np.sin(6 * x + shift) + 0.15 * np.cos(9 * y - 2 * shift) + light
    square = np.zeros((count, 24, 24), bool)
    for i, (row, column) in enumerate(rng.integers(0, 22, (count, 2))):
        square[i, row : row + 3, column : column + 3] = True
    frames = np.repeat((scene + 0.2 * square)[:, None], 3, 1)
    return torch.from_numpy(frames.astype(np.float32)), square


def test_background_marks_a_small_square_that_moves():
    background = Background(3 * 24 * 24, salience=1e6, rank=8)
    background.fit(drifting_scene(400)[0])
    new, square = drifting_scene(50, seed=1)
    salient = background(new).numpy()[:, 0]
    assert salient[square].mean() > 20 * salient[~square].mean()
    plain = ((new - new.mean(0)) ** 2).mean(1).numpy()  # the distance from the mean frame does not show it
    assert plain[square].mean() < 5 * plain[~square].mean()
