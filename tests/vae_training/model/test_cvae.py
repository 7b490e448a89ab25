"""The CVAE's losses against numpy and torch.distributions, and its step against plain PyTorch."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from latent_obs.util.errors import InputError
from tests.support.tiny import LATENT_DIM, tiny_cvae
from vae_training.model.cvae import CVAE, gaussian_kl_nats

QUICK = settings(max_examples=60, deadline=None)


def batch(count: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


@given(mean=st.floats(-20, 20, width=32), logvar=st.floats(-20, 20, width=32))
@QUICK
def test_kl_equals_torch_distributions_and_is_never_negative(mean: float, logvar: float):
    exact = kl_divergence(
        Normal(torch.tensor(mean, dtype=torch.float64), torch.tensor(math.exp(logvar / 2), dtype=torch.float64)),
        Normal(torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)),
    ).item()
    kl = gaussian_kl_nats(torch.tensor([mean]), torch.tensor([logvar])).item()
    assert kl >= 0
    assert kl == pytest.approx(exact, rel=1e-5, abs=1e-6)
    assert gaussian_kl_nats(torch.tensor([0.0, 0.0]), torch.tensor([0.0, logvar * 1e-9])).min() >= 0  # by the prior


@pytest.mark.parametrize(("beta", "scale_losses"), [(0.0, False), (3.5, False), (3.5, True)])
def test_losses_are_sums_over_a_sample_and_means_over_the_batch(beta: float, scale_losses: bool):
    model, x = tiny_cvae(beta=beta, scale_losses=scale_losses), batch()
    torch.manual_seed(7)
    losses = model.compute_loss(x)
    torch.manual_seed(7)
    with torch.no_grad():
        decoded, mean, logvar = (t.double().numpy() for t in model(x))
    error = ((decoded - x.double().numpy()) ** 2).sum(axis=(1, 2, 3)).mean()
    kl = (0.5 * (mean**2 + np.exp(logvar) - 1 - logvar)).sum(axis=1).mean()
    if scale_losses:
        error, kl = error / (16 * 16 * 3), kl / LATENT_DIM
    assert losses.reconstruction.item() == pytest.approx(error, rel=1e-5)
    assert losses.kl.item() == pytest.approx(kl, rel=1e-5)
    assert losses.total.item() == pytest.approx(error + beta * kl, rel=1e-5)
    for term in (losses.total, losses.reconstruction, losses.kl):
        assert term.shape == ()
        assert term.dtype == torch.float32


def test_a_usual_size_trains():
    torch.manual_seed(0)
    model = CVAE((64, 64, 3), 8)
    optimizer = torch.optim.Adam(model.parameters())
    x = torch.rand(2, 3, 64, 64)
    losses = model.compute_apply_gradients(x, optimizer)
    assert torch.isfinite(losses.total)
    assert model(x)[0].shape == x.shape
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in model.parameters())


def test_fixed_beta_never_changes():
    model = tiny_cvae(beta=2.5)
    assert (model.beta, model.fixed_beta) == (2.5, 2.5)
    optimizer = torch.optim.Adam(model.parameters())
    for beta in (0.0, 0.5, 100.0):
        model.beta = beta
        model.compute_apply_gradients(batch(), optimizer)
        assert (model.beta, model.fixed_beta) == (beta, 2.5)
    with pytest.raises(AttributeError):
        model.fixed_beta = 1.0  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("beta", [-1.0, float("nan"), float("inf")])
def test_beta_is_checked(beta: float):
    with pytest.raises(InputError, match="beta"):
        tiny_cvae(beta=beta)


@pytest.mark.parametrize("shape", [(5, 16, 16, 3), (3, 16, 16)])
def test_a_batch_of_another_shape_is_refused(shape: tuple[int, ...]):
    with pytest.raises(InputError, match=r"\(N, 3, 16, 16\)"):
        tiny_cvae().compute_loss(torch.zeros(shape))


def test_compute_apply_gradients_is_a_plain_pytorch_step():
    ours = tiny_cvae(beta=1.5)
    plain = copy.deepcopy(ours)
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.01) for m in (ours, plain)]
    torch.manual_seed(5)
    returned = [ours.compute_apply_gradients(batch(seed=i), optimizers[0]) for i in range(3)]
    torch.manual_seed(5)
    expected: list[tuple[float, float, float]] = []
    for i in range(3):
        x = batch(seed=i)
        mean, logvar = plain.encoder(x)
        decoded = plain.decoder(mean + torch.exp(0.5 * logvar) * torch.randn(mean.shape))
        error = (decoded - x).square().sum() / len(x)
        kl = (0.5 * (mean.square() + (torch.expm1(logvar) - logvar))).sum(1).mean()
        optimizers[1].zero_grad()
        (error + 1.5 * kl).backward()
        optimizers[1].step()
        expected.append(((error + 1.5 * kl).item(), error.item(), kl.item()))
    assert [(r.total.item(), r.reconstruction.item(), r.kl.item()) for r in returned] == expected
    for (name, a), b in zip(ours.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert not any(t.requires_grad for r in returned for t in (r.total, r.reconstruction, r.kl))


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_batch_that_is_not_finite_leaves_weights_and_optimizer(poison: float):
    model = tiny_cvae()
    optimizer = torch.optim.Adam(model.parameters())
    model.compute_apply_gradients(batch(), optimizer)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    x = batch()
    x[2, 0, 3, 3] = poison
    assert not torch.isfinite(model.compute_apply_gradients(x, optimizer).total)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[0][name]), name
    for index, state in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, before[1][index][key]) for key, value in state.items())
    # And the next good batch goes on as if nothing had been.
    assert torch.isfinite(model.compute_apply_gradients(batch(), optimizer).total)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_reparameterize_has_the_mean_and_variance_asked_for():
    model, generator = tiny_cvae(), torch.Generator().manual_seed(0)
    mean = torch.tensor([-2.0, 0.0, 3.0]).expand(20_000, 3)
    logvar = torch.tensor([-2.0, 0.0, 1.0]).expand(20_000, 3)
    z = model.reparameterize(mean, logvar, generator)
    torch.testing.assert_close(z.mean(0), mean[0], atol=0.05, rtol=0)
    torch.testing.assert_close(z.var(0), logvar[0].exp(), atol=0, rtol=0.05)
    assert (torch.corrcoef(z.T) - torch.eye(3)).abs().max() < 0.05
    assert not torch.equal(z, model.reparameterize(mean, logvar, generator))
    again = torch.Generator().manual_seed(0)
    assert torch.equal(z, model.reparameterize(mean, logvar, again))


def test_from_architecture_is_the_same_model():
    kwargs: dict[str, Any] = {"bottleneck": "spatial", "widths": (4, 8), "strides": (2, 1), "first_activation": True}
    model = CVAE((16, 16, 3), 64, 2.0, True, **kwargs)
    again = CVAE.from_architecture(model.architecture, 2.0, True)
    assert again.architecture == model.architecture
    assert (again.fixed_beta, again.scale_losses) == (2.0, True)
    again.load_state_dict(model.state_dict(), strict=True)
