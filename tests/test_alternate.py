"""Alternating training: rounds, what they leave, the numbers they tell, and going on wherever it was stopped."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

from conftest import random_frames, tiny_cvae
from side_env import SIDE, tiny
from training_runs import TINY

from agents.config import AgentConfig
from agents.evaluate import evaluate_agent
from agents.store import load_agent
from agents.train import train_agent
from latent_obs.align import Alignment, AlignmentQuality
from latent_obs.errors import InputError
from latent_obs.folder import read_encoder_folder
from latent_obs.frozen import FrozenEncoder
from latent_obs.statistics import reconstruction_errors
from latent_obs_cli.alternate import AlternateConfig, AlternateResult, alternate, table
from latent_obs_cli.alternate_round import Round, _play
from latent_obs_cli.main import main
from vae_training.checkpoint import read_about
from vae_training.config import TrainConfig
from vae_training.datasets import get_datasets
from vae_training.export import export_encoder
from vae_training.record import record
from vae_training.record_config import RecordConfig
from vae_training.train import train

ROUNDS = AlternateConfig(every=32, add_frames=50, vae_epochs=2, swap_episodes=2)
STAGES = ("began", "recorded", "fine_tuned", "aligned", "judged", "swapped")


def quiet(text: str) -> None:
    """Where messages go that a test does not read."""


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def go(agent: AgentConfig, config: AlternateConfig = ROUNDS) -> AlternateResult:
    return alternate(agent, config, progress_bar=False, say=quiet)


def same_end(one: Path, other: Path) -> None:
    """Two runs ended alike: agents, encoders, recordings and numbers."""
    for name in ("last", "best"):
        a, b = (load_agent(run, name, device="cpu").policy.state_dict() for run in (one, other))
        for key in a:
            np.testing.assert_array_equal(a[key].numpy(), b[key].numpy(), key)
    for name in ("encoder.safetensors", "decoder.safetensors", "statistics.safetensors", "selfcheck.safetensors"):
        assert (one / "encoder" / name).read_bytes() == (other / "encoder" / name).read_bytes(), name
    assert [f.name for f in sorted(one.glob("encoders/*"))] == [f.name for f in sorted(other.glob("encoders/*"))]
    assert (one / "alternate" / "rounds.json").read_text() == (other / "alternate" / "rounds.json").read_text()
    frames = [files_of(run / "alternate" / "frames") for run in (one, other)]
    assert frames[0].keys() == frames[1].keys()
    assert all(frames[0][name] == frames[1][name] for name in frames[0] if name.endswith((".npy", ".npz")))


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of train-vae on three recordings of random play; one of them is held out."""
    folder = tmp_path_factory.mktemp("vae")
    record(RecordConfig(SIDE, folder / "frames", frames=120, frames_per_file=40, size=16), say=quiet)
    settings = {**TINY, "beta": 0.01, "learning_rate": 4e-3}
    train(TrainConfig(folder / "frames", folder / "run", epochs=8, **settings), progress_bar=False, say=quiet)
    return folder / "run"


@pytest.fixture(scope="module")
def settings(vae: Path) -> AgentConfig:
    return tiny(env=SIDE, encoder=vae, steps=96, eval_every=0, frame_skip=None)


@pytest.fixture(scope="module")
def finished(settings: AgentConfig, tmp_path_factory: pytest.TempPathFactory) -> AlternateResult:
    """Rounds after 32 and 64 of 96 steps; tests leave it as it is."""
    return go(dataclasses.replace(settings, out=tmp_path_factory.mktemp("finished") / "run"))


def at(settings: AgentConfig, out: Path, **changes: Any) -> AgentConfig:
    return dataclasses.replace(settings, out=out, **changes)


def test_two_rounds_leave_what_they_promise(finished: AlternateResult, vae: Path):
    run = finished.run
    assert finished.steps == 96
    assert [row["step"] for row in finished.rounds] == [32, 64]
    assert [row["frames_added"] for row in finished.rounds] == [50, 50]
    assert json.loads((run / "alternate" / "rounds.json").read_text()) == finished.rounds
    assert all(row["swapped"] for row in finished.rounds), finished.rounds
    for row in finished.rounds:
        assert row["agent_error"][1] < row["agent_error"][0], "fine-tuning helped"
        assert row["r2_median"][1] > 0.5
        assert len(row["returns"]) == 2
    assert files_of(run / "encoder") == files_of(run / "alternate" / "round_002" / "encoder")
    kept = sorted(run.glob("encoders/*"))
    assert [files_of(folder) for folder in kept] == [
        files_of(vae / "encoder"), files_of(run / "alternate" / "round_001" / "encoder"),
    ]  # fmt: skip
    FrozenEncoder.load(run / "encoder", device="cpu")  # its self-check and its checksums are its own
    evaluate_agent(run, which="last", episodes=1, device="cpu")
    text = table(finished.rounds)
    assert len(text.splitlines()) == 3
    assert f"{finished.rounds[1]['agent_error'][1]:.5f}" in text


def test_nothing_of_the_users_is_touched_or_copied(finished: AlternateResult, vae: Path):
    frames, mixed = finished.run / "alternate" / "frames", finished.run / "alternate" / "round_002" / "mixed"
    old = sorted((vae.parent / "frames").glob("*.npy"))
    assert [f.resolve() for f in sorted(frames.glob("*.npy")) if f.is_symlink()] == [f.resolve() for f in old]
    new = [f for f in sorted(frames.glob("*.npy")) if not f.is_symlink()]
    assert len(new) == 10
    assert all(f.is_symlink() for f in mixed.iterdir())
    assert {f.resolve() for f in mixed.iterdir()} == {f.resolve() for f in (*old, *new)}
    assert {f.name for f in (vae.parent / "frames").iterdir()} == {
        "recording.json", *(f.name for f in old), *(f"{f.stem}.rows.npz" for f in old),
    }  # fmt: skip
    manifest = json.loads((frames / "recording.json").read_text())["files"]
    assert {name: entry["agent_notes"]["steps"] for name, entry in manifest.items()} == {
        f.name: 32 if i < 5 else 64 for i, f in enumerate(new)
    }
    seeds = [entry["seed"] for entry in manifest.values()]
    assert len(set(seeds)) == 10


def test_held_out_recordings_stay_so(finished: AlternateResult, vae: Path):
    first, second = (
        read_about(finished.run / "alternate" / name / "vae" / "checkpoints" / "latest.safetensors")
        for name in ("round_001", "round_002")
    )
    before = read_about(vae / "checkpoints" / "latest.safetensors")
    assert first is not None and second is not None and before is not None  # noqa: PT018
    out = [{entry["file"] for entry in about["frames"]["held_out"]} for about in (before, first, second)]
    trained = [{entry["file"] for entry in about["frames"]["training"]} for about in (before, first, second)]
    assert out[0] < out[1] < out[2]
    assert trained[0] < trained[1] < trained[2]
    assert not out[2] & trained[2]
    assert [len(names) for names in out] == [1, 2, 3]


def test_the_numbers_are_those_of_the_encoders(finished: AlternateResult):
    folder = finished.run / "alternate" / "round_001"
    notes = json.loads((folder / "round.json").read_text())
    old = FrozenEncoder.load(sorted(finished.run.glob("encoders/*"))[0], device="cpu")
    plain, new = (FrozenEncoder.load(folder / part, device="cpu") for part in ("vae", "encoder"))
    held_out = np.concatenate([np.load(finished.run / "alternate" / "frames" / f) for f in notes["recorded"]["held_out"]])
    for encoder, error in zip((old, new), notes["aligned"]["agent_error"], strict=True):
        measured = reconstruction_errors(held_out, encoder.decode(encoder(held_out))).mean()
        assert error == pytest.approx(measured, rel=1e-6)
    told = new.provenance["aligned_to"]
    alignment = Alignment(np.array(told["matrix"]), np.array(told["offset"]))
    np.testing.assert_allclose(new(held_out), alignment.apply(plain(held_out)), atol=1e-4 * np.abs(new(held_out)).max())
    np.testing.assert_allclose(
        new.decode(new(held_out)).astype(int), plain.decode(plain(held_out)).astype(int), atol=1
    )  # the picture is the same
    tested = get_datasets(folder / "mixed")[-2:]
    frames = np.concatenate([np.asarray(d) for d in tested])
    quality = AlignmentQuality.measure(old(frames), plain(frames), new(frames)).to_json()
    for name in ("worst_before", "worst_after", "median_before", "median_after"):
        assert told[name] == notes["aligned"][name] == pytest.approx(quality[name], abs=2e-3)
    assert told["median_after"] > told["median_before"]
    statistics = new.statistics
    assert statistics is not None
    trained = np.concatenate([np.asarray(d) for d in get_datasets(folder / "mixed")[:-2]])
    np.testing.assert_allclose(statistics.mean, new(trained).mean(0), atol=1e-3)


def test_the_exchange_is_judged_on_the_same_episodes(finished: AlternateResult):
    notes = json.loads((finished.run / "alternate" / "round_002" / "round.json").read_text())
    assert [len(part["returns"]) for part in notes["judged"]] == [2, 2]
    assert finished.rounds[1]["returns"] == [np.mean(part["returns"]) for part in notes["judged"]]
    played = [_play(finished.run, finished.run / "encoder", 2, "cpu").returns for _ in range(2)]
    assert played[0] == played[1]


def test_stopped_at_every_boundary_it_ends_the_same(
    finished: AlternateResult, settings: AgentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Each stage of each round is lost once: done, and killed before that was noted."""
    lost: set[tuple[str, str]] = set()
    note = Round._note

    def noted(self: Round, **values: Any) -> None:
        mark = (self.folder.name, *values)
        if mark not in lost:
            lost.add(mark)  # pyright: ignore[reportArgumentType]
            raise KeyboardInterrupt
        note(self, **values)

    monkeypatch.setattr(Round, "_note", noted)
    agent = at(settings, tmp_path / "run")
    for _ in range(2 * len(STAGES)):
        with pytest.raises(KeyboardInterrupt):
            go(agent)
    result = go(agent)
    assert lost == {(name, stage) for name in ("round_001", "round_002") for stage in STAGES}
    assert result.rounds == finished.rounds
    same_end(result.run, finished.run)
    assert go(agent) == result, "and there is nothing left to do"
    same_end(result.run, finished.run)


KILLED = """
import os, signal, sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
import latent_obs_cli.alternate
from latent_obs_cli.main import main
import vae_training.checkpoint as checkpoint, vae_training.npy_writer as writer, agents.encoders as encoders

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def after(module, name, count):
    original, calls = getattr(module, name), [0]
    def wrapped(*args, **kwargs):
        calls[0] += 1
        if calls[0] == count:
            die()
        return original(*args, **kwargs)
    setattr(module, name, wrapped)

for where in sys.argv[3:]:
    child, code = os.fork(), 99
    if not child:
        try:
            if where == "recording":
                after(writer.NpyWriter, "append", 17)
            elif where == "fine-tuning":
                after(checkpoint, "save_file", 2)
            elif where == "exchange":  # the old encoder is away, the new one not there yet
                after(encoders, "keep_file", 1)
            code = main(["alternate", *sys.argv[2].split()])
        finally:
            os._exit(code)
    print("ended", where, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_killed_in_recording_in_fine_tuning_and_in_the_exchange(settings: AgentConfig, tmp_path: Path):
    """By SIGKILL, with the command line; the same command goes on."""
    run = tmp_path / "run"
    words = (
        f"--env {SIDE} --encoder {settings.encoder} --out {run} --workers serial --envs 2 --n-steps 16 --batch-size 32 "
        "--n-epochs 1 --net-arch 16 --steps 64 --eval-every 0 --device cpu --every 32 --add-frames 50 --vae-epochs 2 "
        "--swap-episodes 2"
    )
    where = ["recording", "fine-tuning", "exchange", "nowhere"]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(Path(__file__).parent), words, *where], capture_output=True, text=True, timeout=240
    )
    ends = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("ended")]
    assert ends == [["recording", "-9"], ["fine-tuning", "-9"], ["exchange", "-9"], ["nowhere", "0"]], (
        done.stdout,
        done.stderr,
    )
    assert "error, agent's frames" in done.stdout
    (row,) = json.loads((run / "alternate" / "rounds.json").read_text())
    assert (row["step"], row["frames_added"], row["swapped"]) == (32, 50, True)
    assert files_of(run / "encoder") == files_of(run / "alternate" / "round_001" / "encoder")
    FrozenEncoder.load(run / "encoder", device="cpu")
    evaluate_agent(run, which="last", episodes=1, device="cpu")


def test_ctrl_c_in_a_recording(settings: AgentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import vae_training.npy_writer as writer

    append, calls = writer.NpyWriter.append, [0]

    def counted(self: Any, frame: Any) -> None:
        calls[0] += 1
        if calls[0] == 17:
            os.kill(os.getpid(), signal.SIGINT)
        append(self, frame)

    monkeypatch.setattr(writer.NpyWriter, "append", counted)
    agent = at(settings, tmp_path / "run", steps=64)
    with pytest.raises(KeyboardInterrupt):
        go(agent)
    assert "recorded" not in json.loads((agent.out / "alternate" / "round_001" / "round.json").read_text())
    row = go(agent).rounds[0]
    assert row["frames_added"] == 50
    notes = json.loads((agent.out / "alternate" / "round_001" / "round.json").read_text())
    lengths = [len(np.load(agent.out / "alternate" / "frames" / name)) for name in notes["recorded"]["files"]]
    assert sum(lengths) == 50
    assert len(lengths) == 6


def test_an_encoder_that_got_worse_is_not_taken(settings: AgentConfig, tmp_path: Path, vae: Path):
    config = dataclasses.replace(ROUNDS, vae_epochs=1, vae_learning_rate=0.05, ridge=10.0)
    said: list[str] = []
    result = alternate(at(settings, tmp_path / "run", steps=64), config, progress_bar=False, say=said.append)
    (row,) = result.rounds
    assert row["agent_error"][1] >= row["agent_error"][0]
    assert row["swapped"] is False
    assert row["returns"] is None
    assert files_of(result.run / "encoder") == files_of(vae / "encoder")
    assert not (result.run / "encoders").exists()
    assert "the old encoder was kept" in said[-1]
    assert any(text.startswith("Stopped at step") for text in said)
    assert not any("Go on from step" in text for text in said), "it is not train-agent that goes on"
    assert result.steps == 64


def test_a_run_of_train_agent_is_taken_up(settings: AgentConfig, tmp_path: Path):
    agent = at(settings, tmp_path / "run")
    train_agent(agent, until=40, progress_bar=False, say=quiet)
    result = go(AgentConfig(out=agent.out))
    assert [row["step"] for row in result.rounds] == [64], "missed rounds are not made up for one after the other"
    assert result.steps == 96


def test_only_so_many_rounds_and_standardised_latents_keep_their_scale(settings: AgentConfig, tmp_path: Path, vae: Path):
    config = dataclasses.replace(ROUNDS, rounds=1, swap_episodes=0)
    result = go(at(settings, tmp_path / "run", standardise=True), config)
    assert [row["step"] for row in result.rounds] == [32]
    assert result.rounds[0]["returns"] is None
    assert result.steps == 96
    old, new = read_encoder_folder(vae).statistics, read_encoder_folder(result.run / "encoder").statistics
    assert old is not None and new is not None  # noqa: PT018
    np.testing.assert_array_equal(old.mean, new.mean)
    np.testing.assert_array_equal(old.scale, new.scale)
    assert not np.array_equal(old.quantiles, new.quantiles)


def test_what_cannot_begin_is_refused_before_anything_is_trained(settings: AgentConfig, tmp_path: Path, vae: Path):
    model, frames = tiny_cvae(), random_frames(6)
    bare = export_encoder(tmp_path / "bare", model, frames)
    no_decoder = export_encoder(tmp_path / "no_decoder", model, frames, with_decoder=False)
    larger = tmp_path / "larger"
    larger.mkdir()
    np.save(larger / "a.npy", np.zeros((20, 32, 32, 3), np.uint8))
    moved = tmp_path / "moved"
    shutil.copytree(vae / "encoder", moved)
    out = tmp_path / "run"
    for changes, config, told in (
        ({"observation": "pixels"}, ROUNDS, "for agents on latents"),
        ({"encoder": None}, ROUNDS, "needs an encoder folder"),
        ({"encoder": bare}, ROUNDS, "name their folder: --frames"),
        ({"encoder": no_decoder}, AlternateConfig(frames=vae.parent / "frames"), "no decoder.safetensors"),
        ({"encoder": bare}, AlternateConfig(frames=larger), r"takes \(16, 16, 3\)"),
        ({"encoder": bare}, AlternateConfig(frames=tmp_path / "nowhere"), "there is no folder"),
    ):
        with pytest.raises(InputError, match=told):
            go(at(settings, out, **changes), config)
        assert not out.exists()


@pytest.mark.parametrize(
    "change", [{"every": 0}, {"add_frames": 9}, {"vae_epochs": 0}, {"rounds": 0}, {"new_share": 0.0}, {"swap_episodes": -1}]
)
def test_settings_out_of_range(change: dict[str, Any]):
    (name,) = change
    with pytest.raises(InputError, match=name):
        AlternateConfig(**change)


def test_the_command_line_tells_of_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["alternate", "--observation", "pixels", "--out", str(tmp_path / "run")]) == 2
    assert "for agents on latents" in capsys.readouterr().err
