"""The agents in a run folder: damaged ones, statistics, replay buffers, and which encoder each was trained with."""

import dataclasses
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from agents.config import ALGORITHMS, AgentConfig
from agents.envs import load_encoder, make_vec_env, with_normalization
from agents.evaluation import evaluate_agent
from agents.play.policy import load_policy
from agents.play.show import Show
from agents.store import (
    agent_file,
    check_encoder,
    encoder_of,
    fingerprint,
    load_agent,
    restore_replay,
    restore_statistics,
    save_agent,
)
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.util.errors import InputError
from tests.support.agent_runs import change_state, copied, finished, train, with_state  # noqa: F401  (fixtures)
from tests.support.side_env import tiny
from tests.support.tiny import random_frames, tiny_cvae
from vae_training.training.export import export_encoder

# ruff: noqa: F811  (arguments are named like the fixtures)


@pytest.fixture(scope="module")
def other_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of the same shape with other weights."""
    folder = tmp_path_factory.mktemp("other") / "encoder"
    return export_encoder(folder, tiny_cvae(seed=5), random_frames(6), provenance={})


def test_an_agent_that_is_not_there(finished: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"missing"):
        evaluate_agent(tmp_path / "missing")
    with pytest.raises(InputError, match=r"third\.zip; .*best.*last"):
        evaluate_agent(finished, which="third")
    with pytest.raises(InputError, match=r"best\.zip"):
        load_agent(tmp_path, "best")


def test_a_checkpoint_of_an_earlier_version_is_found_by_its_step(copied: Path):
    file = copied / "checkpoints" / "step_000000064.zip"
    file.parent.mkdir()
    shutil.copy(copied / "last.zip", file)
    assert agent_file(copied, "64") == file
    assert len(evaluate_agent(copied, which="64", episodes=2, device="cpu").returns) == 2


def flipped(data: bytes) -> bytes:
    place = data.index(b"policy.pth") + 210  # in the contents of that entry
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", flipped])
def test_a_damaged_agent_is_an_input_error(copied: Path, damage: Callable[[bytes], bytes]):
    file = copied / "best.zip"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(InputError, match=r"best\.zip"):
        evaluate_agent(copied, episodes=1)


def test_one_flipped_bit_is_refused_before_anything_is_unpickled(
    encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """In each entry of an agent and of a replay buffer, by everything that reads one."""
    off_policy: dict[str, Any] = {"algorithm": "dqn", "n_steps": None, "n_epochs": None, "buffer_size": 100}
    run = tmp_path / "run"
    train(tiny(encoder=encoder_folder, out=run, eval_every=0, **off_policy))
    monkeypatch.setattr(BaseAlgorithm, "load", lambda *_, **__: unpickled.append(1))
    unpickled: list[int] = []
    reads: dict[str, Callable[[], Any]] = {
        "last": lambda: train(AgentConfig(out=run, steps=96), resume=True),
        "best": lambda: evaluate_agent(run, episodes=1),
        "best of record": lambda: load_policy(run),
        "best of watch": lambda: Show(run),
    }
    for name, read in reads.items():
        file = run / f"{name.split()[0]}.zip"
        whole = file.read_bytes()
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
        for entry in entries:
            start = entry.header_offset + 30 + len(entry.filename)  # of its data, or of what zip64 adds to its header
            for place in (start + 30, start + entry.compress_size // 2):
                damaged = bytearray(whole)
                damaged[min(place, start + entry.compress_size - 1)] ^= 4
                file.write_bytes(damaged)
                with pytest.raises(InputError, match=file.name):
                    read()
        file.write_bytes(whole)
    assert not unpickled


@pytest.mark.parametrize("text", [None, "", '{"returns": null, "observations": null}'])
def test_a_damaged_state_is_an_input_error(copied: Path, text: str | None):
    with_state(copied / "best.zip", text)
    with pytest.raises(InputError, match=r"best\.zip"):
        evaluate_agent(copied, episodes=1)


@pytest.mark.parametrize("kind", ["box", "dict"])
def test_running_statistics_come_back_exactly(encoder: FrozenEncoder, tmp_path: Path, kind: str):
    config = tiny(env_kwargs={"kind": kind})

    def normalized(config: AgentConfig) -> VecNormalize:
        return with_normalization(config, make_vec_env(config, encoder), training=True)

    venv, policy = normalized(config), "MultiInputPolicy" if kind == "dict" else "MlpPolicy"
    model = PPO(policy, venv, n_steps=16, batch_size=32, n_epochs=1, device="cpu")
    model.learn(64)
    save_agent(tmp_path, "last", model)
    again = normalized(config)
    restore_statistics(tmp_path, "last", again)

    def numbers(v: VecNormalize) -> list[Any]:
        observations: Any = v.obs_rms if isinstance(v.obs_rms, dict) else {"": v.obs_rms}
        return [(r.mean, np.shape(r.mean), r.var, r.count) for r in (v.ret_rms, *observations.values())]

    assert venv.ret_rms.count > 64
    np.testing.assert_equal(numbers(again), numbers(venv))
    with pytest.raises(InputError, match=r"last\.zip"):
        restore_statistics(tmp_path, "last", normalized(dataclasses.replace(config, history=2)))


def test_the_replay_buffer_is_plain_arrays_in_the_last_agent_only(encoder_folder: Path, tmp_path: Path):
    off_policy: dict[str, Any] = {"algorithm": "dqn", "n_steps": None, "n_epochs": None, "buffer_size": 100}
    config = tiny(encoder=encoder_folder, out=tmp_path / "run", env_kwargs={"kind": "dict"}, eval_every=0, **off_policy)
    train(config)
    with zipfile.ZipFile(config.out / "last.zip") as archive:
        names = [n for n in archive.namelist() if n.startswith("replay/")]
        stored = np.lib.format.read_array(archive.open("replay/rewards.npy"), allow_pickle=False)
    assert {"replay/observations/clock.npy", "replay/next_observations/pov.npy"} <= set(names)
    assert stored.shape == (32, 2)
    assert not any(n.startswith("replay/") for n in zipfile.ZipFile(config.out / "best.zip").namelist())
    venv = with_normalization(config, make_vec_env(config, load_encoder(config)), training=True)
    model = ALGORITHMS["dqn"].load_class()("MultiInputPolicy", venv, buffer_size=40)  # pyright: ignore[reportCallIssue]
    with pytest.raises(InputError, match=r"last\.zip.* 50 .*20"):
        restore_replay(config.out, "last", model)
    with pytest.raises(InputError, match=r"best\.zip"):
        restore_replay(config.out, "best", model)


def test_a_fingerprint_depends_on_weights_alone(encoder_folder: Path, other_encoder: Path):
    one, again, other = (FrozenEncoder.load(f, device="cpu") for f in (encoder_folder, encoder_folder, other_encoder))
    assert fingerprint(one) == fingerprint(again) != fingerprint(other)
    assert fingerprint(None) is None
    assert fingerprint(FrozenEncoder.load(encoder_folder, device="cpu", precision="bfloat16")) == fingerprint(one)


def test_another_encoder_is_rejected(copied: Path, other_encoder: Path):
    shutil.rmtree(copied / "encoder")
    shutil.copytree(other_encoder, copied / "encoder")
    with pytest.raises(InputError, match=r"encoder.*'last'"):
        train(AgentConfig(out=copied, steps=96), resume=True)
    with pytest.raises(InputError, match=r"encoder.*'best'"):
        evaluate_agent(copied, episodes=2, device="cpu")


def test_each_agent_of_a_run_with_several_encoders_finds_its_own(copied: Path, other_encoder: Path):
    """As the former command `alternate` left them: `encoder/` is of the last agent, the first one of the best."""
    old = FrozenEncoder.load(copied / "encoder", device="cpu")
    first = copied / "encoders" / "step_000000032"
    shutil.copytree(copied / "encoder", first)
    shutil.rmtree(copied / "encoder")
    shutil.copytree(other_encoder, copied / "encoder")
    change_state(copied, "last", encoder=fingerprint(FrozenEncoder.load(other_encoder, device="cpu")))
    assert encoder_of(copied, "best") == first
    assert encoder_of(copied, "last") == copied / "encoder"
    with pytest.raises(InputError, match="encoder"):
        check_encoder(copied, "last", old)
    for name in ("best", "last"):
        evaluate_agent(copied, which=name, episodes=1, device="cpu")
    assert train(AgentConfig(out=copied, steps=96), resume=True).steps == 96
    change_state(copied, "best", encoder="0" * 64)
    with pytest.raises(InputError, match="encoder"):
        encoder_of(copied, "best")
