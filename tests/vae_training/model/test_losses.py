"""The loss is the sum of its parts, each of which is what numpy or its own function gives."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.support.tiny import LATENT_DIM, tiny_cvae
from vae_training.data.loader import Batch, Share, make_batch
from vae_training.model.augmentation import CHANGES, augment, images_to_tensor
from vae_training.model.losses import CAP, Background, VAELoss
from vae_training.model.transition_heads import TransitionHeads

QUICK = settings(max_examples=40, deadline=None)
HEADS = ("inverse_dynamics", "next_latent", "reward")
ALL = {"salience": 0.5, "inverse_dynamics": 0.75, "next_latent": 1.0, "reward": 1.25}
CPU = torch.device("cpu")


def batch_of(count: int = 7, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    rows = {
        **{name: rng.integers(0, 256, (count, 16, 16, 3), np.uint8) for name in ("frames", "after")},
        "follows": rng.random(count) < 0.7,
        "acted": rng.random(count) < 0.9,
        "action": rng.integers(0, 3, count),
        "reward": rng.standard_normal(count).astype(np.float32),
    }
    rows["follows"][:2], rows["follows"][3:5] = True, False
    rows["acted"][3:5] = False, True  # no step; and the last step of an episode, after which no image came
    rows["acted"] |= rows["follows"]
    return make_batch(rows, CPU)


def loss_of(weights: dict[str, float], seed: int = 0, model: dict[str, Any] | None = None, **kwargs: Any) -> VAELoss:
    torch.manual_seed(seed)
    weights = dict(weights)
    salience = weights.pop("salience", 0.0)
    heads = TransitionHeads(weights, LATENT_DIM, "discrete", 3) if weights else None
    loss = VAELoss(tiny_cvae(seed, **(model or {})), salience=salience, heads=heads, **kwargs)
    if loss.background is not None:
        loss.background.fit(batch_of(40, seed=9).images)
    if heads is not None:
        heads.fit(torch.tensor([0, 1, 2]), torch.randn(30))
    return loss


def losses_of(loss: VAELoss, batch: Batch, seed: int = 4) -> Any:
    torch.manual_seed(seed)
    return loss(batch.images, batch.noise, batch.more)


@given(
    on=st.sets(st.sampled_from(list(ALL))),
    seed=st.integers(0, 99),
    scaled=st.booleans(),
)
@QUICK
def test_the_total_is_the_sum_of_its_parts(on: set[str], seed: int, scaled: bool):
    weights = {name: ALL[name] for name in on}
    loss = loss_of(weights, seed, {"scale_losses": scaled, "beta": 2.0})
    batch = batch_of(seed=seed)
    losses = losses_of(loss, batch)
    plain = losses_of(VAELoss(loss.model), batch)
    assert torch.equal(losses.reconstruction, plain.reconstruction)  # stays unweighted
    assert torch.equal(losses.kl, plain.kl)
    terms = dict(losses.terms)
    total = terms.pop("weighted_reconstruction", plain.reconstruction) + plain.total - plain.reconstruction
    assert terms.keys() == on & set(HEADS)
    assert ("weighted_reconstruction" in losses.terms) is ("salience" in on)
    torch.testing.assert_close(losses.total, total + sum(weights[name] * value for name, value in terms.items()))


@pytest.mark.parametrize("scaled", [False, True])
def test_each_term_is_what_its_own_function_says(scaled: bool):
    loss, batch = loss_of(ALL, model={"scale_losses": scaled}), batch_of()
    terms = {name: value.detach() for name, value in losses_of(loss, batch).terms.items()}
    torch.manual_seed(4)
    assert loss.background is not None
    assert loss.heads is not None
    with torch.no_grad():
        mean, logvar = loss.model.encoder(batch.images)
        decoded = loss.model.decoder(mean + torch.exp(0.5 * logvar) * torch.randn(7, 6))
        later = loss.model.encoder(images_to_tensor(batch.more["after"]))[0]
        weights = loss.background(batch.images)
        step = batch.more["action"], batch.more["follows"]
        oracle = {
            "weighted_reconstruction": (weights * (decoded - batch.images).square()).sum() / 7 / (768 if scaled else 1),
            "inverse_dynamics": loss.heads["inverse_dynamics"](mean, later, *step),
            "next_latent": loss.heads["next_latent"](mean, later, *step),
            "reward": loss.heads["reward"](mean, later, step[0], batch.more["reward"], batch.more["acted"]),
        }
    assert terms.keys() == oracle.keys()
    for name, value in terms.items():
        torch.testing.assert_close(value, oracle[name], msg=name, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", list(ALL))
def test_each_term_alone_moves_the_encoder_and_its_head(name: str):
    loss = loss_of({name: 1.0})
    if loss.heads is not None and name == "next_latent":
        for parameter in list(loss.heads[name].parameters())[-2:]:  # it begins as "nothing changes"
            torch.nn.init.normal_(parameter, std=0.1)
    losses_of(loss, batch_of()).terms["weighted_reconstruction" if name == "salience" else name].backward()
    gradients = {n: p.grad for n, p in loss.named_parameters()}
    moved = {n for n, g in gradients.items() if g is not None and bool(g.any())}
    assert {n for n in gradients if n.startswith(("model.encoder.convolutions", "model.encoder.mean_head"))} <= moved
    assert {n for n in gradients if n.startswith("heads.")} <= moved
    assert any(n.startswith("model.decoder") for n in moved) is (name == "salience")  # heads see means, not images


def test_a_shard_of_a_batch_has_the_noise_of_its_rows():
    """As under torchrun: the losses of both shards are those of their rows, whatever process they are in."""
    loss, batch = loss_of(ALL, augment=0.5), batch_of(6)
    whole = losses_of(loss, batch).reconstruction
    shards = []
    for start, count in ((0, 4), (4, 2)):
        rows = slice(start, start + count)
        shard = Batch(batch.images[rows], {n: v[rows] for n, v in batch.more.items()}, Share(6, start, count))
        shards.append(losses_of(loss, shard).reconstruction * count)
    torch.testing.assert_close(sum(shards) / 6, whole)


def test_images_and_what_follows_them_are_changed_alike_and_are_the_target():
    loss, batch = loss_of({"next_latent": 1.0}, augment=1.0), batch_of()
    still = Batch(batch.images, {**batch.more, "after": batch.images.permute(0, 2, 3, 1).mul(255).round().byte()})
    losses = losses_of(loss, still)
    assert losses.terms["next_latent"] < 1e-9  # nothing has moved, and the head begins as "nothing changes"
    assert losses_of(loss, batch).terms["next_latent"] > 1e-3
    torch.manual_seed(4)
    changed = augment(batch.images, 1.0, torch.randn(7, CHANGES))
    with torch.no_grad():
        mean, logvar = loss.model.encoder(changed)
        decoded = loss.model.decoder(mean + torch.exp(0.5 * logvar) * torch.randn(7, 6))
    torch.testing.assert_close(losses.reconstruction, (decoded - changed).square().sum() / 7)


def test_bfloat16_layers_give_nearly_the_same_losses_in_float32():
    seen, results = [], []
    for dtype in (torch.float32, torch.bfloat16):
        loss = loss_of(ALL, dtype=dtype)
        loss.model.encoder.convolutions.register_forward_hook(lambda *a: seen.append(a[2].dtype))
        losses = losses_of(loss, batch_of())
        terms = {"total": losses.total, "error": losses.reconstruction, "kl": losses.kl, **losses.terms}
        assert all(term.dtype == torch.float32 for term in terms.values())
        results.append({name: term.item() for name, term in terms.items()})
    assert seen == [torch.float32] * 2 + [torch.bfloat16] * 2  # of the images, and of those after them
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
    compiled = losses_of(loss_of({}, compile=True, say=said.append), batch_of())
    assert compiled.total == losses_of(loss_of({}), batch_of()).total
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
