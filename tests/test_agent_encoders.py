"""Which encoder an agent was trained with: known by its weights, found among those that a run had, and swapped safely."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

from conftest import random_frames, tiny_cvae
from side_env import tiny

import agents.encoders as encoders_module
from agents.config import AgentConfig
from agents.encoders import check_encoder, encoder_of, fingerprint, swap_encoder
from agents.store import agent_state, load_agent
from agents.train import train_agent
from latent_obs.errors import EncoderFolderError, InputError
from latent_obs.frozen import FrozenEncoder
from vae_training.export import export_encoder


def train(config: AgentConfig, **kwargs: Any) -> None:
    train_agent(config, say=lambda _: None, progress_bar=False, **kwargs)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Encoder folders: of the same shape with other weights, and with another number of latents."""
    place = tmp_path_factory.mktemp("others")
    same = export_encoder(place / "same", tiny_cvae(seed=5), random_frames(6), provenance={})
    bigger = tiny_cvae()
    bigger = type(bigger)((16, 16, 3), 9, widths=(4, 8), strides=(2, 2))
    return {"same": same, "bigger": export_encoder(place / "bigger", bigger, random_frames(6), provenance={})}


@pytest.fixture
def run(encoder_folder: Path, tmp_path: Path) -> Path:
    train(tiny(encoder=encoder_folder, out=tmp_path / "run", steps=32, eval_every=0))
    return tmp_path / "run"


def test_a_fingerprint_is_of_weights_and_frames(encoder_folder: Path, others: dict[str, Path]):
    one, again, other = (FrozenEncoder.load(f, device="cpu") for f in (encoder_folder, encoder_folder, others["same"]))
    assert fingerprint(one) == fingerprint(again) != fingerprint(other)
    assert fingerprint(None) is None
    assert fingerprint(FrozenEncoder.load(encoder_folder, device="cpu", precision="bfloat16")) == fingerprint(one)


def test_after_a_swap_each_agent_finds_its_encoder(run: Path, others: dict[str, Path]):
    old = FrozenEncoder.load(run / "encoder", device="cpu")
    replay_free = (run / "last.zip").stat().st_size
    swap_encoder(run, others["same"])
    assert encoder_of(run, "best") == run / "encoders" / "step_000000032"
    assert encoder_of(run, "last") == run / "encoder"
    check_encoder(run, "best", old)
    check_encoder(run, "last", FrozenEncoder.load(others["same"], device="cpu"))
    with pytest.raises(InputError, match="was trained with an encoder whose fingerprint"):
        check_encoder(run, "last", old)
    assert abs((run / "last.zip").stat().st_size - replay_free) < 1_000
    train(AgentConfig(out=run, steps=64), resume=True)
    assert load_agent(run, "last").num_timesteps == 64
    swap_encoder(run, others["same"])
    assert sorted(f.name for f in (run / "encoders").iterdir()) == ["step_000000032", "step_000000064"]


def test_the_policy_is_left_as_it_was(run: Path, others: dict[str, Path]):
    before, state = load_agent(run, "last").policy.state_dict(), agent_state(run, "last")
    swap_encoder(run, others["same"])
    after = load_agent(run, "last").policy.state_dict()
    for name, weights in before.items():
        np.testing.assert_array_equal(weights.numpy(), after[name].numpy())
    changed = agent_state(run, "last")
    assert {k for k in state if state[k] != changed[k]} == {"encoder"}


@pytest.mark.parametrize("step", ["copied", "noted"])
def test_a_swap_that_was_killed_can_be_done_again(
    run: Path, others: dict[str, Path], step: str, monkeypatch: pytest.MonkeyPatch
):
    def die(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(encoders_module, "keep_file" if step == "copied" else "change_state", die)
        with pytest.raises(KeyboardInterrupt):
            swap_encoder(run, others["same"])
    swap_encoder(run, others["same"])
    assert encoder_of(run, "best") == run / "encoders" / "step_000000032"
    assert encoder_of(run, "last") == run / "encoder"
    assert fingerprint(FrozenEncoder.load(run / "encoder")) == agent_state(run, "last")["encoder"]


def test_an_encoder_that_does_not_fit_changes_nothing(run: Path, others: dict[str, Path], tmp_path: Path):
    before = sorted(f for f in run.rglob("*"))
    with pytest.raises(InputError, match="its number of latents is 9, expected 6"):
        swap_encoder(run, others["bigger"])
    with pytest.raises(EncoderFolderError):
        swap_encoder(run, tmp_path / "nowhere")
    assert sorted(f for f in run.rglob("*")) == before


def test_an_agent_of_none_of_the_encoders(run: Path, others: dict[str, Path]):
    swap_encoder(run, others["same"])
    shutil.rmtree(run / "encoders" / "step_000000032")
    shutil.copytree(others["bigger"], run / "encoders" / "step_000000032")
    with pytest.raises(InputError, match="was trained with none of the encoders"):
        encoder_of(run, "best")
