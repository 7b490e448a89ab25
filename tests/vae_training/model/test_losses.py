"""The loss is the sum of its parts, each of which is what numpy or its own function gives."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.tiny import LATENT_DIM, tiny_cvae
from vae_training.data.loader import Batch, Share
from vae_training.model.augmentation import CHANGES, augment, images_to_tensor
from vae_training.model.losses import VAELoss, gaussian_kl_nats

QUICK = settings(max_examples=40, deadline=None)


def batch_of(count: int = 7, seed: int = 0) -> Batch:
    frames = np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), np.uint8)
    return Batch(images_to_tensor(torch.from_numpy(frames)))


def loss_of(seed: int = 0, model: dict[str, Any] | None = None, **kwargs: Any) -> VAELoss:
    return VAELoss(tiny_cvae(seed, **(model or {})), **kwargs)


def losses_of(loss: VAELoss, batch: Batch, seed: int = 4) -> Any:
    torch.manual_seed(seed)
    return loss(batch.images, batch.noise)


@given(seed=st.integers(0, 99), scaled=st.booleans())
@QUICK
def test_the_loss_is_what_its_definition_says(seed: int, scaled: bool):
    loss, batch = loss_of(seed, {"scale_losses": scaled, "beta": 2.0}), batch_of(seed=seed)
    losses = losses_of(loss, batch)
    torch.manual_seed(4)
    with torch.no_grad():
        mean, logvar = loss.model.encoder(batch.images)
        decoded = loss.model.decoder(mean + torch.exp(0.5 * logvar) * torch.randn(7, LATENT_DIM))
    error = (decoded - batch.images).square().sum() / 7 / (768 if scaled else 1)
    kl = gaussian_kl_nats(mean, logvar).sum() / 7 / (LATENT_DIM if scaled else 1)
    for found, wanted in ((losses.reconstruction, error), (losses.kl, kl), (losses.total, error + 2.0 * kl)):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_a_shard_of_a_batch_has_the_noise_of_its_rows():
    """As under torchrun: the losses of both shards are those of their rows, whatever process they are in."""
    loss, batch = loss_of(augment=0.5), batch_of(6)
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
        loss = loss_of(dtype=dtype)
        loss.model.encoder.convolutions.register_forward_hook(lambda *a: seen.append(a[2].dtype))
        losses = losses_of(loss, batch_of())
        terms = {"total": losses.total, "error": losses.reconstruction, "kl": losses.kl}
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
