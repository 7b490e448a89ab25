"""What the first version wrote still loads, continues and gives the same numbers: see tests/artefacts/README.md."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latent_obs import PCA, FrozenEncoder
from latent_obs.encoder.folder import read_encoder_folder
from latent_obs.util.errors import InputError
from tests.support import ROOT
from vae_training import CVAE, TrainConfig, get_datasets, load_rows, train
from vae_training.training.checkpoint import load_checkpoint

FIRST = ROOT / "tests" / "artefacts" / "first"


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """A copy of the first version's folders, which tests may change."""
    return shutil.copytree(FIRST, tmp_path / "first")


def test_frames_and_their_rows():
    datasets = get_datasets(FIRST / "recorded")
    assert [len(data) for data in datasets] == [24, 24]
    rows = load_rows(FIRST / "recorded" / "VizdoomBasic-v1_000.npy")
    assert rows is not None
    assert all(len(values) == 24 for values in rows.values())


@pytest.mark.parametrize("kind", ["encoder", "pca"])
def test_an_encoder_gives_the_latents_that_it_gave(kind: str):
    saved = np.load(FIRST / "latents.npz")
    encoder = (
        FrozenEncoder.load(FIRST / "vae" / "encoder", device="cpu")
        if kind == "encoder"
        else PCA.load(FIRST / "pca.safetensors").encoder(device="cpu")
    )
    np.testing.assert_allclose(encoder(saved["frames"]), saved[kind], atol=1e-5)


def test_a_training_run_with_another_loss_is_not_resumed_and_a_new_one_starts_from_its_weights(first: Path):
    with pytest.raises(InputError, match="salience"):
        train(TrainConfig(frames=first / "recorded", out=first / "vae", epochs=3), resume=True)
    given: dict[str, Any] = {"start_from": first / "vae", "epochs": 1, "batch_size": 8, "super_batch": 16}
    result = train(TrainConfig(first / "recorded", first / "again", device="cpu", learning_rate=1e-12, **given))
    frames = np.load(FIRST / "latents.npz")["frames"]
    one, other = (FrozenEncoder.load(run, device="cpu")(frames) for run in (result.run, first / "vae"))
    np.testing.assert_allclose(one, other, atol=1e-4)


def test_a_training_run_is_resumed(first: Path):
    config = json.loads((first / "vae" / "config.json").read_text())
    (first / "vae" / "config.json").write_text(json.dumps({**config, "salience": 0.0}))
    assert (TrainConfig.load(first / "vae").latent_dim, TrainConfig.load(first / "vae").components) == (16, 0)
    result = train(TrainConfig(frames=first / "recorded", out=first / "vae", epochs=3), resume=True)
    assert result.steps == 9
    assert FrozenEncoder.load(first / "vae" / "encoder", device="cpu").latent_dim == 16


def test_an_average_of_weights_is_loaded_in_their_place():
    """It is what the run exported."""
    folder = read_encoder_folder(FIRST / "vae")
    model = CVAE.from_architecture(folder.architecture)
    load_checkpoint(FIRST / "vae" / "checkpoints" / "latest.safetensors", model)
    for ours, saved in ((model.encoder.state_dict(), folder.encoder), (model.decoder.state_dict(), folder.decoder())):
        assert all(torch.equal(saved[name], value) for name, value in ours.items())


def test_an_agent_plays_and_is_trained_on(first: Path):
    pytest.importorskip("vizdoom")
    from agents import AgentConfig, evaluate_agent, train_agent

    config = AgentConfig.load(first / "agent")
    assert (config.frame_skip, config.latent_only, config.hyperparameters["n_steps"]) == (4, True, 16)
    assert len(evaluate_agent(first / "agent", episodes=2, device="cpu").returns) == 2
    result = train_agent(AgentConfig(out=first / "agent", steps=96), resume=True)
    assert result.steps == 96
