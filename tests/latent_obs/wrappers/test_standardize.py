"""`standardize`: the wrappers show latents minus their training mean, all over one number; numpy is the oracle."""

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv

from agents.normalization import LatentNormalize
from latent_obs import PCA, FrozenEncoder, LatentObservation, VecLatentObservation, VectorLatentObservation
from tests.support.tiny import limited, picture, random_frames

FRAMES = random_frames(200)


@pytest.fixture(params=["encoder", "pca", "pca file", "module"])
def given(request: pytest.FixtureRequest, encoder: FrozenEncoder, tmp_path: Path) -> tuple[Any, FrozenEncoder]:
    """An encoder with statistics of `FRAMES`, as a wrapper takes it and loaded."""
    if request.param.startswith("pca"):
        pca = PCA.fit(FRAMES, 4)
        file = pca.save(tmp_path / "pca.safetensors")
        return (pca if request.param == "pca" else file), pca.encoder(device="cpu")
    if request.param == "module":
        module = encoder._network.convolutions
        folder = FrozenEncoder.from_module(module, encoder.contract, device="cpu").save(tmp_path / "module", FRAMES)
        loaded = FrozenEncoder.load(folder, "cpu", module=module)
        return loaded, loaded
    folder = encoder.save(tmp_path / "encoder", FRAMES)
    return folder, FrozenEncoder.load(folder, device="cpu")


def test_the_wrappers_agree(given: tuple[Any, FrozenEncoder]):
    like, encoder = given
    trained = encoder.encode(FRAMES).astype(np.float64)
    common = np.sqrt(trained.var(0).mean())

    def expected(*frames: Any) -> Any:
        latents = np.concatenate([encoder(picture(*frame))[None] for frame in frames])
        return (latents - trained.mean(0)) / common / 2

    single = LatentObservation(limited(), like, standardize=True)
    for shown, step in ((single.reset()[0], 0), (single.step(0)[0], 1)):
        np.testing.assert_allclose(shown, expected((0, step))[0], rtol=0, atol=1e-4)
    makers: list[Any] = [partial(limited, "box", first) for first in (0, 5)]
    vector = VectorLatentObservation(gym.vector.SyncVectorEnv(makers), like, standardize=True)
    sb3 = VecLatentObservation(DummyVecEnv(makers), like, standardize=True)
    plain = LatentNormalize(VecLatentObservation(DummyVecEnv(makers), like), training=False)
    running = RunningMeanStd(shape=(encoder.latent_dim,))
    running.mean, running.var = trained.mean(0), trained.var(0)
    plain.obs_rms = running
    shown: Any
    for shown in (vector.reset()[0], sb3.reset(), plain.reset()):
        np.testing.assert_allclose(shown, expected((0, 0), (5, 0)), rtol=0, atol=1e-4)
    *_, (_, _, dones, infos) = [sb3.step(np.zeros(2, int)) for _ in range(3)]
    assert all(dones)
    ends = [info["terminal_observation"] for info in infos]
    np.testing.assert_allclose(ends, expected((0, 3), (5, 3)), rtol=0, atol=1e-4)


def test_the_common_deviation_over_the_training_frames_is_a_half(given: tuple[Any, FrozenEncoder]):
    _, encoder = given
    assert encoder.statistics is not None
    seen = encoder.statistics.standardize(encoder.encode(FRAMES))
    assert np.sqrt(seen.astype(np.float64).var(0).mean()) == pytest.approx(0.5, rel=1e-3)
    np.testing.assert_allclose(seen.mean(0), 0, atol=1e-3)
