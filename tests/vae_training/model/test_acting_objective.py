"""The objective that keeps what acting needs: the sum of its parts, and classic where nothing is on."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_obs.util.errors import InputError
from tests.support.tiny import tiny_cvae
from tests.support.training_runs import config_for
from vae_training.data.loader import Batch, Share, make_batch
from vae_training.data.transitions import ActionKind, SuperBatch
from vae_training.model.augmentation import augment
from vae_training.model.cvae import images_to_tensor
from vae_training.model.losses import ActingObjective, ClassicObjective, weights_of
from vae_training.model.terms import Terms
from vae_training.model.transition_heads import ActionCode
from vae_training.training.trainer import make_objective

NAMES = [field.name for field in fields(Terms)]
HEADS = ("inverse_dynamics", "next_latent", "reward")
WEIGHTED = ("salience",)
ALL = {name: 0.5 + 0.25 * i for i, name in enumerate(NAMES)}
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
    rows["acted"][3:5] = False, True  # no step; and the last of an episode, after which no picture came
    rows["acted"] |= rows["follows"]
    return make_batch(rows, CPU)


def objective_of(terms: Terms, seed: int = 0, model: dict[str, Any] | None = None, **kwargs: Any) -> ActingObjective:
    torch.manual_seed(seed)
    objective = ActingObjective(tiny_cvae(seed, **(model or {})), terms, actions=ActionKind("discrete", 3), **kwargs)
    objective.fit(batch_of(40, seed=9).images, torch.tensor([0, 1, 2]), torch.randn(30))
    return objective


def losses_of(objective: torch.nn.Module, batch: Batch, seed: int = 4) -> Any:
    torch.manual_seed(seed)
    return objective(batch)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("free_bits", [0.0, 0.3])
def test_without_terms_it_is_the_classic_objective_exactly(scaled: bool, free_bits: float):
    losses, gradients = [], []
    for kind in ("acting", "classic"):
        model = tiny_cvae(scale_losses=scaled, beta=0.7)
        acting, classic = (
            ActingObjective(model, Terms(), free_bits=free_bits),
            ClassicObjective(model, free_bits=free_bits),
        )
        objective = acting if kind == "acting" else classic
        losses.append(losses_of(objective, batch_of()))
        losses[-1].total.backward()
        gradients.append([p.grad for p in objective.parameters()])
    for name in ("total", "reconstruction", "kl"):
        assert torch.equal(getattr(losses[0], name), getattr(losses[1], name)), name
    assert not losses[0].terms
    assert len(gradients[0]) == len(gradients[1])
    for one, other in zip(*gradients, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


@given(
    on=st.sets(st.sampled_from(NAMES)),
    seed=st.integers(0, 99),
    scaled=st.booleans(),
    free_bits=st.sampled_from([0.0, 0.5]),
)
@settings(max_examples=40, deadline=None)
def test_the_total_is_the_sum_of_its_parts(on: set[str], seed: int, scaled: bool, free_bits: float):
    weights = {name: ALL[name] for name in on}
    objective = objective_of(Terms(**weights), seed, {"scale_losses": scaled, "beta": 2.0}, free_bits=free_bits)
    batch = batch_of(seed=seed)
    losses = losses_of(objective, batch)
    classic = losses_of(ClassicObjective(objective.model, free_bits=free_bits), batch)
    assert torch.equal(losses.reconstruction, classic.reconstruction)  # stays the plain one, whatever is descended
    assert torch.equal(losses.kl, classic.kl)
    total = losses.terms["weighted_reconstruction"] if on & set(WEIGHTED) else losses.reconstruction
    total = total + classic.total - classic.reconstruction
    total = total + sum(weights[name] * losses.terms[name] for name in on - set(WEIGHTED))
    torch.testing.assert_close(losses.total, total)
    named = (on - set(WEIGHTED)) | ({"weighted_reconstruction"} if on & set(WEIGHTED) else set())
    assert set(losses.terms) == named


@pytest.mark.parametrize("scaled", [False, True])
def test_each_term_is_what_its_own_function_says(scaled: bool):
    objective = objective_of(Terms(**ALL), model={"scale_losses": scaled})
    model, batch = objective.model, batch_of()
    after = images_to_tensor(batch.more["after"])
    terms = {name: value.detach() for name, value in losses_of(objective, batch).terms.items()}
    torch.manual_seed(4)
    with torch.no_grad():
        mean, logvar = model.encode(batch.images)
        decoded = model.decode(mean + torch.exp(0.5 * logvar) * torch.randn(7, 6))
        later = model.encode(after)[0]
        squared = (decoded - batch.images).square()
        weights = weights_of(ALL["salience"], objective.heads["background"](batch.images))
        values = 768 if scaled else 1
        told = batch.more["action"], batch.more["follows"]
        oracle = {
            "weighted_reconstruction": (weights * squared).sum() / 7 / values,
            "inverse_dynamics": objective.heads["inverse_dynamics"](mean, later, *told),
            "next_latent": objective.heads["next_latent"](mean, later, *told),
            "reward": objective.heads["reward"](mean, later, told[0], batch.more["reward"], batch.more["acted"]),
        }
    assert terms.keys() == oracle.keys()
    for name, value in terms.items():
        torch.testing.assert_close(value, oracle[name], msg=name, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_each_term_alone_moves_the_encoder_and_its_head(name: str):
    objective = objective_of(Terms(**{name: 1.0}))
    if name == "next_latent":
        for parameter in list(objective.heads[name].parameters())[-2:]:  # it begins as "nothing changes"
            torch.nn.init.normal_(parameter, std=0.1)
    losses = losses_of(objective, batch_of())
    losses.terms["weighted_reconstruction" if name in WEIGHTED else name].backward()
    gradients = {n: p.grad for n, p in objective.named_parameters()}
    moved = {n for n, g in gradients.items() if g is not None and bool(g.any())}
    assert {n for n in gradients if n.startswith(("model.encoder.convolutions", "model.encoder.mean_head"))} <= moved
    assert {n for n in gradients if n.startswith("heads.")} <= moved
    assert any(n.startswith("model.decoder") for n in moved) is (name not in HEADS)  # heads see means, never pictures
    assert set(objective.heads) == ({"background"} if name == "salience" else {name} & set(HEADS))
    if name in HEADS:
        assert not any(n.startswith("model.encoder.logvar") for n in moved)


def test_rows_that_no_step_was_taken_at_do_not_count():
    objective, batch = objective_of(Terms(inverse_dynamics=1.0, next_latent=1.0, reward=1.0)), batch_of(20)
    more = dict(batch.more)
    more["action"], more["reward"] = more["action"].clone(), more["reward"].clone()
    before = losses_of(objective, batch).terms
    more["action"][~more["follows"] & ~more["acted"]] = 77
    more["reward"][~more["acted"]] = 1e20
    assert bool((~more["acted"]).any())
    after = losses_of(objective, Batch(batch.images, more)).terms
    assert {n: v.item() for n, v in before.items()} == {n: v.item() for n, v in after.items()}
    ends = more["acted"] & ~more["follows"]
    assert bool(ends.any())
    more["reward"] = torch.where(ends, 9.0, more["reward"])  # the reward of a step that ends an episode does count
    assert losses_of(objective, Batch(batch.images, more)).terms["reward"].item() > after["reward"].item()


@pytest.mark.parametrize("name", [*NAMES, "all"])
def test_a_part_of_a_batch_has_the_noise_of_its_rows(name: str):
    """With shares, as under torchrun: both parts' losses are those of their rows, whatever process they are in."""
    objective = objective_of(Terms(**(ALL if name == "all" else {name: 1.0})), augment=0.5)
    batch = batch_of(6)
    plain = losses_of(objective, batch).reconstruction
    parts = []
    for start, count in ((0, 4), (4, 2)):
        rows = slice(start, start + count)
        part = Batch(batch.images[rows], {n: v[rows] for n, v in batch.more.items()}, Share(6, start, count))
        parts.append(losses_of(objective, part).reconstruction * count)
    torch.testing.assert_close(sum(parts) / 6, plain)


def test_pictures_and_what_follows_them_are_changed_alike():
    objective, batch = objective_of(Terms(next_latent=1.0), augment=1.0), batch_of()
    still = Batch(batch.images, {**batch.more, "after": batch.images.permute(0, 2, 3, 1).mul(255).round().byte()})
    losses = losses_of(objective, still)
    assert losses.terms["next_latent"] < 1e-9  # nothing has moved, and the head begins as "nothing changes"
    assert losses_of(objective, batch).terms["next_latent"] > 1e-3
    torch.manual_seed(4)
    changed = augment(batch.images, 1.0, torch.randn(7, 10))
    with torch.no_grad():
        mean, logvar = objective.model.encode(changed)
        decoded = objective.model.decode(mean + torch.exp(0.5 * logvar) * torch.randn(7, 6))
    torch.testing.assert_close(
        losses.reconstruction, (decoded - changed).square().sum() / 7
    )  # and the target changed along


def test_bfloat16_layers_give_nearly_the_same_losses():
    one, two = (
        losses_of(objective_of(Terms(**ALL), dtype=dtype), batch_of()) for dtype in (torch.float32, torch.bfloat16)
    )
    assert one.terms.keys() == two.terms.keys()
    for name, value in one.terms.items():
        assert two.terms[name].dtype == torch.float32
        assert two.terms[name].item() == pytest.approx(value.item(), rel=0.05, abs=0.02), name


def test_which_objective_the_settings_ask_for():
    def made(**kwargs: Any) -> Any:
        return make_objective(config_for(Path("f"), Path("o"), **kwargs), tiny_cvae())

    assert type(made()) is ClassicObjective
    assert type(made(linear_path=True)) is ClassicObjective
    assert type(made(salience=0.1)) is ActingObjective
    objective = made(augment=0.5, free_bits=0.2)
    assert (objective.augment, objective.free_bits, objective.terms) == (0.5, 0.2, Terms())


@given(on=st.sets(st.sampled_from(NAMES)))
@settings(max_examples=20, deadline=None)
def test_terms_tell_what_they_need(on: set[str]):
    terms = Terms(**dict.fromkeys(on, 0.1))
    assert terms.are_any is bool(on)
    assert terms.need_actions is bool(on & set(HEADS))
    assert config_for(Path(), Path(), **dict.fromkeys(on, 0.1)).terms == terms


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_weights_that_are_no_weights_are_refused(name: str, value: float):
    with pytest.raises(InputError, match=f"{name} must be a finite number, 0 or more"):
        config_for(Path(), Path(), **{name: value})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--salience", "-1"], "salience must be a finite number, 0 or more, got -1"),
        (["--augment", "2"], "augment must be from 0 (off) to 1, got 2"),
        (["--inverse-dynamics", "1"], "0.npy has no actions and rewards beside it"),
    ],
)
def test_the_command_line_tells_it(
    frames_folder: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    from latent_obs_cli.main import main

    try:
        code = main(
            [
                "train-vae",
                "--frames",
                str(frames_folder),
                "--out",
                str(tmp_path / "out"),
                "--device",
                "cpu",
                "--widths",
                "4",
                "8",
                "--strides",
                "2",
                "2",
                *arguments,
            ]
        )
    except SystemExit as left:
        code = left.code
    assert code == 2
    errors = capsys.readouterr().err.strip()
    assert any(message in line for line in errors.splitlines())  # in one line, though the parser draws a frame around
    assert "Traceback" not in errors
    assert not (tmp_path / "out").exists()


def test_a_head_has_an_action_code_of_its_own():
    objective = objective_of(Terms(inverse_dynamics=1.0, reward=1.0))
    codes = [head.actions for head in objective.heads.values()]
    assert all(isinstance(code, ActionCode) for code in codes)
    pointers = [tensor.data_ptr() for tensor in objective.state_dict().values()]
    assert len(set(pointers)) == len(pointers)  # safetensors refuses a tensor that has two names


def test_a_super_batch_becomes_a_batch():
    white = np.full((4, 2, 2, 3), 255, np.uint8)
    rows = SuperBatch(frames=white, after=0 * white, follows=np.ones(4, bool))
    batch = make_batch(rows.cut(slice(1, 3)), CPU)
    assert torch.equal(batch.images, torch.ones(2, 3, 2, 2))
    assert batch.more.keys() == {"after", "follows"}
    assert batch.more["follows"].dtype == torch.bool
