"""The running normalization of observations, with numpy as the oracle."""

import contextlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecNormalize

import latent_obs
from agents.config import AgentConfig
from agents.envs import make_vec_env, with_normalization
from agents.normalization import LatentNormalize
from agents.play.show import Show
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.util.errors import InputError
from tests.support.agent_runs import train
from tests.support.side_env import tiny
from tests.support.tiny import LATENT_DIM

NOTHING = np.zeros(2, np.int64)
VIEWS: dict[str, dict[str, Any]] = {
    "latent": {},
    "vector with history": {"env_kwargs": {"kind": "dict"}, "flatten": True, "history": 2},
    "Dict": {"env_kwargs": {"kind": "dict"}},
}


def seen(
    config: AgentConfig, encoder: FrozenEncoder | None, steps: int = 25
) -> tuple[VecNormalize, list[Any], list[Any]]:
    """The environments, raw observations, and the normalized ones, over several episodes."""
    venv = with_normalization(config, make_vec_env(config, encoder), training=True)
    shown: list[Any] = [venv.reset()]
    raw: list[Any] = [venv.get_original_obs()]
    for _ in range(steps):
        shown.append(venv.step(NOTHING)[0])
        raw.append(venv.get_original_obs())
    return venv, raw, shown


def latents_of(value: Any, config: AgentConfig) -> NDArray[Any]:
    """The part of an observation that is latents."""
    return value["pov"] if isinstance(value, dict) else value[..., : config.history * LATENT_DIM]


def others_of(value: Any, config: AgentConfig) -> NDArray[Any]:
    """The other numbers of an observation."""
    return value["clock"] if isinstance(value, dict) else value[..., config.history * LATENT_DIM :]


def running(values: list[NDArray[Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and variance, with the 1e-4 samples (mean 0, variance 1) that VecNormalize begins with."""
    x, start = np.concatenate(values).astype(np.float64), 1e-4
    total = len(x) + start
    return x.sum(0) / total, (len(x) * x.var(0) + start + x.mean(0) ** 2 * len(x) * start / total) / total


@pytest.mark.parametrize("view", VIEWS)
def test_latents_share_a_deviation_and_other_numbers_have_their_own(encoder: FrozenEncoder, view: str):
    config = tiny(**VIEWS[view])
    venv, raw, shown = seen(config, encoder)
    mean, variance = running([latents_of(value, config) for value in raw])
    expected = (latents_of(raw[-1], config) - mean) / np.sqrt(variance.mean() + 1e-8) * 0.5  # PPO's own
    np.testing.assert_allclose(latents_of(shown[-1], config), expected, rtol=1e-4, atol=1e-5)
    back = venv.unnormalize_obs(shown[-1])
    np.testing.assert_allclose(latents_of(back, config), latents_of(raw[-1], config), atol=1e-4)
    if view == "latent":
        return
    np.testing.assert_allclose(others_of(back, config), others_of(raw[-1], config), atol=1e-4)
    own_mean, own_variance = running([others_of(value, config) for value in raw])
    expected = (others_of(raw[-1], config) - own_mean) / np.sqrt(own_variance + 1e-8)
    np.testing.assert_allclose(others_of(shown[-1], config), expected, rtol=1e-4, atol=1e-5)
    assert not np.isclose(own_variance[0], variance.mean(), rtol=0.2), "else the test could not distinguish them"


@pytest.mark.parametrize("view", ["vector with history", "Dict"])
def test_each_number_by_itself_is_what_stable_baselines_does(encoder: FrozenEncoder, view: str):
    config = tiny(normalize_observation="each", **VIEWS[view])
    venv, raw, shown = seen(config, encoder)
    assert venv.venv is not None
    plain = VecNormalize(venv.venv, norm_obs_keys=venv.norm_obs_keys)
    plain.obs_rms = venv.obs_rms
    np.testing.assert_equal(shown[-1], plain.normalize_obs(raw[-1]))


@pytest.mark.parametrize(("given", "becomes"), [({}, 0.5), ({"latent_deviation": 0.25}, 0.25)])
def test_a_latents_values_have_the_requested_deviation(encoder: FrozenEncoder, given: dict[str, Any], becomes: float):
    venv, raw, _ = seen(tiny(**given), encoder, steps=100)
    after = venv.normalize_obs(np.concatenate(raw))
    assert isinstance(after, np.ndarray)
    assert np.sqrt(after.var(0).mean()) == pytest.approx(becomes, rel=0.02)


def test_an_evaluation_sees_what_training_saw(encoder_folder: Path, encoder: FrozenEncoder, tmp_path: Path):
    config = tiny(
        encoder=encoder_folder, out=tmp_path / "run", env_kwargs={"kind": "dict"}, flatten=True, latent_deviation=0.3
    )
    train(config)
    with contextlib.closing(Show(config.out, which="last", seed=3, device="cpu")) as show:
        venv = show._venv
        statistics: Any = venv.obs_rms
        raw = venv.get_original_obs()
        of_latents = statistics.var[:LATENT_DIM].mean() / 0.3**2
        deviation = np.sqrt(np.r_[np.full(LATENT_DIM, of_latents), statistics.var[LATENT_DIM:]])
        assert isinstance(raw, np.ndarray)
        np.testing.assert_allclose(show._observation, (raw - statistics.mean) / deviation, atol=1e-4)
        assert statistics.count > 60


@pytest.mark.parametrize("kind", ["box", "dict"])
def test_it_goes_where_vec_normalize_would(encoder: FrozenEncoder, kind: str):
    config = tiny(env_kwargs={"kind": kind})
    venv = LatentNormalize(make_vec_env(config, encoder), norm_reward=False)
    expected, raw, _ = seen(config, encoder, steps=0)
    np.testing.assert_array_equal(latents_of(venv.reset(), config), latents_of(expected.normalize_obs(raw[0]), config))
    again = pickle.loads(pickle.dumps(venv))
    assert again.latents == venv.latents == {("pov" if kind == "dict" else None): LATENT_DIM}
    for value in (0.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="deviation"):
            LatentNormalize(make_vec_env(config, encoder), deviation=value)
    with pytest.raises(InputError, match="latents"):
        LatentNormalize(make_vec_env(tiny(observation="pixels"), None))


def test_by_hand_it_finds_the_latents_and_an_agent_learns_through_it(encoder_folder: Path):
    venv = latent_obs.make("Side-v0", encoder_folder, num_envs=2, vectorization="sb3-sync")
    model = PPO("MlpPolicy", LatentNormalize(venv), n_steps=8, batch_size=8, n_epochs=1, device="cpu").learn(64)
    normalize = model.get_vec_normalize_env()
    assert isinstance(normalize, LatentNormalize)
    assert normalize.latents == {None: LATENT_DIM}
    assert normalize.deviation == 0.5
    venv.close()
