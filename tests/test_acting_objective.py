"""The objective that keeps what acting needs: the sum of its parts, classic where nothing is on, and exact over a resume."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import picture, tiny_cvae
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from training_runs import TRAIN, config_for, run, same_run, same_tensors

from latent_obs.errors import InputError
from latent_obs.frozen import FrozenEncoder
from vae_training.acting_objective import ActingObjective
from vae_training.augment import augment
from vae_training.batch import Batch, Share, make_batch
from vae_training.config import TrainConfig
from vae_training.cvae import CVAE, images_to_tensor
from vae_training.datasets import get_datasets
from vae_training.logs import read_log
from vae_training.make_objective import make_objective, start_from_data
from vae_training.objective import ClassicObjective
from vae_training.pixel_weights import hard_pixels, mix, moving_pixels
from vae_training.rows import save_rows
from vae_training.structure_terms import edge_error, scale_error
from vae_training.terms import Terms
from vae_training.train_run import Run
from vae_training.transition_heads import ActionCode
from vae_training.transitions import ActionKind, SuperBatch, Transitions

NAMES = [field.name for field in fields(Terms)]
HEADS = ("inverse_dynamics", "next_latent", "reward")
WEIGHTED = ("salience", "motion", "hard_pixels")
ALL = {name: 0.5 + 0.25 * i for i, name in enumerate(NAMES)}
CPU = torch.device("cpu")


def batch_of(count: int = 7, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    rows = {
        **{name: rng.integers(0, 256, (count, 16, 16, 3), np.uint8) for name in ("frames", "after")},
        "follows": rng.random(count) < 0.7, "acted": rng.random(count) < 0.9,
        "action": rng.integers(0, 3, count), "reward": rng.standard_normal(count).astype(np.float32),
    }  # fmt: skip
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
        acting, classic = ActingObjective(model, Terms(), free_bits=free_bits), ClassicObjective(model, free_bits=free_bits)
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


@given(on=st.sets(st.sampled_from(NAMES)), seed=st.integers(0, 99), scaled=st.booleans(), free_bits=st.sampled_from([0.0, 0.5]))
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
        maps = {
            "salience": objective.heads["background"](batch.images), "motion": moving_pixels(batch.images, after),
            "hard_pixels": hard_pixels(squared),
        }  # fmt: skip
        weights = mix({name: (ALL[name], marked) for name, marked in maps.items()})
        values = 768 if scaled else 1
        told = batch.more["action"], batch.more["follows"]
        oracle = {
            "weighted_reconstruction": (weights * squared).sum() / 7 / values,
            "edges": edge_error(decoded, batch.images) / values, "scales": scale_error(decoded, batch.images) / values,
            "inverse_dynamics": objective.heads["inverse_dynamics"](mean, later, *told),
            "next_latent": objective.heads["next_latent"](mean, later, *told),
            "reward": objective.heads["reward"](mean, later, told[0], batch.more["reward"], batch.more["acted"]),
        }  # fmt: skip
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
    objective, batch = objective_of(Terms(motion=1.0), augment=1.0), batch_of()
    still = Batch(batch.images, {**batch.more, "after": batch.images.permute(0, 2, 3, 1).mul(255).round().byte()})
    losses = losses_of(objective, still)
    torch.testing.assert_close(losses.terms["weighted_reconstruction"], losses.reconstruction)  # nothing has moved
    torch.manual_seed(4)
    changed = augment(batch.images, 1.0, torch.randn(7, 10))
    with torch.no_grad():
        mean, logvar = objective.model.encode(changed)
        decoded = objective.model.decode(mean + torch.exp(0.5 * logvar) * torch.randn(7, 6))
    torch.testing.assert_close(losses.reconstruction, (decoded - changed).square().sum() / 7)  # and the target changed along


def test_bfloat16_layers_give_nearly_the_same_losses():
    one, two = (losses_of(objective_of(Terms(**ALL), dtype=dtype), batch_of()) for dtype in (torch.float32, torch.bfloat16))
    assert one.terms.keys() == two.terms.keys()
    for name, value in one.terms.items():
        assert two.terms[name].dtype == torch.float32
        assert two.terms[name].item() == pytest.approx(value.item(), rel=0.05, abs=0.02), name


def transitions_folder(folder: Path, files: int = 3, length: int = 24, side: int = 16) -> Path:
    """Recordings in which the action tells how the picture changes, and the reward which it was."""
    folder.mkdir(parents=True)
    for number in range(files):
        rng = np.random.default_rng(number)
        action = rng.integers(0, 3, length)
        place = np.cumsum(np.concatenate([[0], action[:-1]]))
        np.save(folder / f"{number}.npy", np.stack([picture(number, int(step), side, side) for step in place]))
        first, acted = np.arange(length) % 10 == 0, np.arange(length) % 10 != 9
        acted[-1] = False
        save_rows(folder / f"{number}.rows.npz", {
            "action": np.where(acted, action, 0), "reward": (acted & (action == 2)).astype(np.float32), "acted": acted,
            "first": first,
        })  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return transitions_folder(tmp_path_factory.mktemp("acting") / "frames")


@pytest.fixture
def _every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TRAIN, "_LOG_EVERY_STEPS", 1)


SETTINGS: dict[str, dict[str, Any]] = {
    "heads": {"salience": 2.0, "inverse_dynamics": 1.0, "reward": 0.5},
    "all": {**ALL, "augment": 0.5, "linear_path": True, "ema": 0.9, "free_bits": 0.1},
}


@pytest.mark.usefixtures("_every_step")
@pytest.mark.parametrize(("settings", "stop"), [("heads", 4), ("all", 1), ("all", 5)])
def test_stopped_and_resumed_is_the_same(
    recordings: Path, tmp_path: Path, settings: str, stop: int, monkeypatch: pytest.MonkeyPatch
):
    more = SETTINGS[settings]
    run(config_for(recordings, tmp_path / "whole", epochs=3, **more))
    step, calls = Run.step, [0]

    def watched(self: Run, batch: Batch) -> Any:
        calls[0] += 1
        if calls[0] == stop + 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch)

    monkeypatch.setattr(Run, "step", watched)
    out = tmp_path / "out"
    assert run(config_for(recordings, out, epochs=3, **more)).interrupted
    torch.manual_seed(1234)
    assert run(TrainConfig(out=out), resume=True).steps == 9
    same_run(out, tmp_path / "whole")
    saved = load_file(out / "checkpoints" / "latest.safetensors")
    assert "heads/background.basis" in saved
    assert any(name.startswith("heads/inverse_dynamics.head") for name in saved)
    wanted = {f"loss/{n}" for n in ("weighted_reconstruction", "inverse_dynamics", "reward")}
    assert all(wanted <= row.keys() for row in read_log(out) if "loss/total" in row)
    encoder = load_file(out / "encoder" / "encoder.safetensors")
    architecture = FrozenEncoder.load(out).architecture
    assert architecture is not None
    assert encoder.keys() == CVAE.from_architecture(architecture).encoder.state_dict().keys()


class Killed(BaseException):
    """The end of a process, as far as the disk can tell: nothing is written any more."""


def test_a_killed_run_goes_on_as_it_would_have(recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    more = {**SETTINGS["all"], "checkpoint_steps": 1, "epochs": 3}
    run(config_for(recordings, tmp_path / "whole", **more))
    step = Run.step

    def dying(self: Run, batch: Batch) -> Any:
        if self.progress.step == 5:
            raise Killed
        return step(self, batch)

    config = config_for(recordings, tmp_path / "killed", **more)
    monkeypatch.setattr(Run, "step", dying)
    with pytest.raises(Killed):
        run(config)
    monkeypatch.setattr(Run, "step", step)
    run(TrainConfig(out=config.out), resume=True)
    for name in ("checkpoints/latest.safetensors", "encoder/encoder.safetensors"):
        same_tensors(config.out / name, tmp_path / "whole" / name)


RANKS = """
import hashlib, importlib, json, os, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from vae_training.config import TrainConfig
t = importlib.import_module("vae_training.train")
t._LOG_EVERY_STEPS = 1
step = t.Run.step
def watched(self, batch):
    global objective
    objective = self.setup.objective
    return step(self, batch)
t.Run.step = watched
t.train(TrainConfig.from_json(json.loads(sys.argv[1])), progress_bar=False)
state = torch.cat([v.detach().double().flatten() for v in objective.state_dict().values()])
Path(sys.argv[0]).with_name(f"state_{os.environ['RANK']}.txt").write_text(hashlib.sha256(state.numpy().tobytes()).hexdigest())
"""


@pytest.mark.usefixtures("_every_step")
def test_two_processes_train_one_objective(recordings: Path, tmp_path: Path):
    more = {**SETTINGS["all"], "super_batch": 41}
    config = config_for(recordings, tmp_path / "pair", batch_size=8, **more)
    (tmp_path / "script.py").write_text(RANKS)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--standalone",
         str(tmp_path / "script.py"), json.dumps(config.to_json())],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, two = ((tmp_path / f"state_{rank}.txt").read_text() for rank in (0, 1))
    assert len(one) == len(hashlib.sha256().hexdigest())
    assert one == two
    rows = [row for row in read_log(config.out) if "loss/total" in row]
    assert len(rows) == 6
    assert all(np.isfinite(row[f"loss/{name}"]) for row in rows for name in ("weighted_reconstruction", *HEADS))
    single = config_for(recordings, tmp_path / "single", batch_size=16, **{**more, "epochs": 1})
    run(single)
    first = read_log(single.out)[0]
    for name in ("reconstruction", "kl_nats", "edges", "scales"):  # the others weigh rows among those of their own process
        assert rows[0][f"loss/{name}"] == pytest.approx(first[f"loss/{name}"], rel=1e-4), name


def test_what_begins_as_the_data_is_a_function_of_data_and_seed(recordings: Path):
    states = []
    for noise in (1, 2):
        torch.manual_seed(0)
        config = config_for(recordings, Path("out"), **SETTINGS["all"])
        model = tiny_cvae(linear_path=True)
        datasets = get_datasets(recordings)
        transitions = Transitions(datasets, acts=True)
        objective = make_objective(config, model, transitions)
        torch.manual_seed(noise)
        start_from_data(config, objective, datasets, transitions)
        states.append(objective.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    rewards = np.concatenate(list(transitions.column("reward")))
    assert states[0]["heads.reward.mean"].item() == pytest.approx(rewards.mean(), rel=1e-5)
    assert states[0]["heads.reward.scale"].item() == pytest.approx(rewards.std(), rel=1e-5)
    assert (states[0]["heads.background.basis"].norm(dim=0) > 0.5).sum() > 5
    assert model.decoder.linear is not None
    assert model.decoder.linear.bias.mean() > 0.3  # the mean picture


def test_a_sample_of_the_steps_is_drawn_by_the_seed(recordings: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vae_training.make_objective._SAMPLE_STEPS", 9)
    datasets = get_datasets(recordings)
    transitions = Transitions(datasets, acts=True)
    scales = []
    for seed in (0, 0, 1, 2, 3):
        config = config_for(recordings, Path("out"), reward=1.0, seed=seed)
        objective = make_objective(config, tiny_cvae(), transitions)
        start_from_data(config, objective, datasets, transitions)
        scales.append(float(objective.state_dict()["heads.reward.mean"]))
    assert scales[0] == scales[1]
    assert len(set(scales)) > 1


def test_continuous_actions_are_trained_on(tmp_path: Path):
    folder = transitions_folder(tmp_path / "frames")
    for file in folder.glob("*.npz"):
        columns = dict(np.load(file))
        columns["action"] = np.stack([columns["action"] - 1.0, np.zeros(24)], 1)
        save_rows(file, columns)
    result = run(config_for(folder, tmp_path / "out", epochs=2, inverse_dynamics=1.0, next_latent=1.0))
    assert np.isfinite(result.held_out.loss_at_fixed_beta)
    saved = load_file(result.run / "checkpoints" / "latest.safetensors")
    assert saved["heads/inverse_dynamics.actions.scale"].shape == (2,)
    assert saved["heads/next_latent.actions.scale"][1] == 1.0


def test_which_objective_the_settings_ask_for():
    def made(**kwargs: Any) -> tuple[Any, list[str]]:
        said: list[str] = []
        return make_objective(config_for(Path("f"), Path("o"), **kwargs), tiny_cvae(), None, said.append), said

    assert type(made()[0]) is ClassicObjective
    assert type(made(linear_path=True)[0]) is ClassicObjective
    assert type(made(edges=0.1)[0]) is ActingObjective
    objective, said = made(augment=0.5, free_bits=0.2, compile="on")
    assert (objective.augment, objective.free_bits, objective.terms) == (0.5, 0.2, Terms())
    assert len(said) == 1
    assert "--compile" in said[0]
    assert not made(edges=0.1, compile="auto")[1]


@given(on=st.sets(st.sampled_from(NAMES)))
@settings(max_examples=20, deadline=None)
def test_terms_tell_what_they_need(on: set[str]):
    terms = Terms(**dict.fromkeys(on, 0.1))
    assert terms.are_any is bool(on)
    assert terms.need_actions is bool(on & set(HEADS))
    assert terms.need_next_frames is bool(on & {*HEADS, "motion"})
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
        code = main(["train-vae", "--frames", str(frames_folder), "--out", str(tmp_path / "out"), "--device", "cpu",
                     "--widths", "4", "8", "--strides", "2", "2", *arguments])  # fmt: skip
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
