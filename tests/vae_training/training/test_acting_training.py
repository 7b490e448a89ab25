"""Training with the objective for acting: exact over a stop, a kill and two processes, and begun as data and seed
say."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from latent_obs.encoder.frozen import FrozenEncoder
from tests.support.tiny import picture, tiny_cvae
from tests.support.training_runs import EVERY_STEP, TRAIN, config_for, run, same_run, same_tensors
from tests.vae_training.model.test_acting_objective import ALL, HEADS
from vae_training.data.frames import get_datasets
from vae_training.data.loader import Batch
from vae_training.data.rows import save_rows
from vae_training.data.transitions import Transitions
from vae_training.model.cvae import CVAE
from vae_training.training.config import TrainConfig
from vae_training.training.logs import read_log
from vae_training.training.trainer import Run, make_objective, start_from_data


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
        save_rows(
            folder / f"{number}.rows.npz",
            {
                "action": np.where(acted, action, 0),
                "reward": (acted & (action == 2)).astype(np.float32),
                "acted": acted,
                "first": first,
            },
        )
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
    more = {**SETTINGS["all"], "checkpoint_minutes": EVERY_STEP, "epochs": 3}
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
from vae_training.training.config import TrainConfig
t = importlib.import_module("vae_training.training.trainer")
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
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            "2",
            "--master-port",
            "0",
            "--standalone",
            str(tmp_path / "script.py"),
            json.dumps(config.to_json()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
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
    for name in ("reconstruction", "kl_nats"):  # the others weigh rows among those of their own process
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
    monkeypatch.setattr("vae_training.training.trainer._SAMPLE_STEPS", 9)
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
