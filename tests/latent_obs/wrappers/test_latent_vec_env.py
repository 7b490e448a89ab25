"""VecLatentObservation: the same as wrapping each environment, last frames included; what training on it leaves
unchanged."""

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.util.errors import InputError
from latent_obs.wrappers.pixel_reader import ContractObservation
from latent_obs.wrappers.single import LatentObservation
from tests.support.tiny import LATENT_DIM, PixelEnv, PixelKind, limited, picture, tiny_architecture

pytest.importorskip("stable_baselines3")

from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecTransposeImage

from latent_obs.wrappers.sb3 import VecLatentObservation

LIMIT = 3


def makers(count: int, kind: PixelKind = "box") -> list[Callable[[], gym.Env[Any, Any]]]:
    return [partial(limited, kind, 100 * i, LIMIT + i) for i in range(count)]


def wrapped(make: Callable[[], gym.Env[Any, Any]], encoder: FrozenEncoder, latent_only: bool) -> gym.Env[Any, Any]:
    return LatentObservation(make(), encoder, latent_only=latent_only)


def assert_close(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert set(one) == set(other)
        for name in one:
            assert_close(one[name], other[name])
        return
    assert one.shape == other.shape
    assert one.dtype == other.dtype
    np.testing.assert_allclose(one, other, atol=1e-5)


def assert_same_story(one: VecEnv, other: VecEnv, steps: int = 9) -> int:
    """Both vector environments tell the same; how many episodes ended."""
    assert one.observation_space == other.observation_space
    assert_close(one.reset(), other.reset())
    ended = 0
    for step in range(steps):
        actions = np.full(one.num_envs, step % 2)
        (a, a_rewards, a_dones, a_infos), (b, b_rewards, b_dones, b_infos) = one.step(actions), other.step(actions)
        assert_close(a, b)
        np.testing.assert_array_equal(a_rewards, b_rewards)
        np.testing.assert_array_equal(a_dones, b_dones)
        for a_info, b_info, done in zip(a_infos, b_infos, a_dones, strict=True):
            assert set(a_info) == set(b_info)
            assert a_info.get("TimeLimit.truncated") == b_info.get("TimeLimit.truncated")
            assert ("terminal_observation" in a_info) is bool(done)
            if done:
                ended += 1
                assert_close(a_info["terminal_observation"], b_info["terminal_observation"])
    return ended


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", ["box", "chw", "dict"])
@pytest.mark.parametrize("latent_only", [False, True])
def test_wrapping_then_vectorizing_is_vectorizing_then_wrapping(
    encoder: FrozenEncoder, count: int, kind: PixelKind, latent_only: bool
):
    one = DummyVecEnv([partial(wrapped, make, encoder, latent_only) for make in makers(count, kind)])
    other = VecLatentObservation(DummyVecEnv(makers(count, kind)), encoder, latent_only=latent_only)
    assert assert_same_story(one, other) >= 2 * count


def test_worker_processes_tell_the_same(encoder: FrozenEncoder):
    one = DummyVecEnv([partial(wrapped, make, encoder, False) for make in makers(2, "dict")])
    other = VecLatentObservation(SubprocVecEnv(makers(2, "dict")), encoder)
    try:
        assert assert_same_story(one, other) >= 4
    finally:
        other.close()


def test_pixels_transposed_by_sb3_give_the_same(encoder: FrozenEncoder):
    one = VecLatentObservation(DummyVecEnv(makers(2)), encoder)
    other = VecLatentObservation(VecTransposeImage(DummyVecEnv(makers(2))), encoder)
    assert assert_same_story(one, other) >= 4


def test_pixels_resized_in_the_workers_give_the_same(encoder: FrozenEncoder):
    def resized(make: Callable[[], gym.Env[Any, Any]]) -> gym.Env[Any, Any]:
        return ContractObservation(make(), encoder.contract)

    one = VecLatentObservation(DummyVecEnv(makers(2, "dict")), encoder)
    other = VecLatentObservation(DummyVecEnv([partial(resized, make) for make in makers(2, "dict")]), encoder)
    assert assert_same_story(one, other) >= 4


@pytest.mark.parametrize("kind", ["box", "dict"])
def test_terminal_observations_are_the_true_last_frames(encoder: FrozenEncoder, kind: PixelKind):
    venv = VecLatentObservation(DummyVecEnv(makers(3, kind)), encoder)
    venv.reset()
    seen = 0
    episodes = [0, 100, 200]
    for _ in range(12):
        observation, _, dones, infos = venv.step(np.zeros(3, int))
        for i in map(int, np.flatnonzero(dones)):
            last = infos[i]["terminal_observation"]
            last = last["pov"] if isinstance(last, dict) else last
            now = observation["pov"][i] if isinstance(observation, dict) else observation[i]
            limit = LIMIT + i
            assert infos[i]["TimeLimit.truncated"] is True
            np.testing.assert_allclose(last, encoder(picture(episodes[i], limit)), atol=1e-5)
            episodes[i] += 1
            np.testing.assert_allclose(now, encoder(picture(episodes[i], 0)), atol=1e-5)
            seen += 1
    assert seen == 4 + 3 + 2


def test_one_forward_pass_a_step(encoder: FrozenEncoder, monkeypatch: pytest.MonkeyPatch):
    venv = VecLatentObservation(DummyVecEnv([partial(limited, "box", 0, 2)] * 3), encoder)
    counts: list[int] = []
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda frames: counts.append(len(frames)) or encode(frames))
    venv.reset()
    venv.step(np.zeros(3, int))
    venv.step(np.zeros(3, int))  # all end: three first frames and three last ones
    assert counts == [3, 3, 6]


def test_outputs_do_not_alias_each_other(encoder: FrozenEncoder):
    venv = VecLatentObservation(DummyVecEnv(makers(2)), encoder)
    first = venv.reset()
    assert isinstance(first, np.ndarray)
    kept = first.copy()
    observations = [venv.step(np.zeros(2, int))[0] for _ in range(3)]
    np.testing.assert_array_equal(first, kept)
    for other in observations:
        assert isinstance(other, np.ndarray)
        assert not np.shares_memory(first, other)
        assert other.flags.writeable


def test_spaces_without_fitting_pixels_are_refused(encoder: FrozenEncoder):
    with pytest.raises(InputError, match="3 channel"):
        VecLatentObservation(DummyVecEnv(makers(1, "grey")), encoder)
    with pytest.raises(InputError, match="several images"):
        VecLatentObservation(DummyVecEnv(makers(1, "two-images")), encoder)
    venv = VecLatentObservation(DummyVecEnv(makers(1, "two-images")), encoder, pixel_key="map")
    observation = venv.reset()
    assert isinstance(observation, dict)
    np.testing.assert_allclose(observation["map"][0], encoder(picture(0, 0)[::-1]), atol=1e-5)


class TurnsRound(PixelEnv):
    """Declares (W, H, C), as craftium does, and gives (H, W, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(0, 255, (28, 20, 3), np.uint8)


def test_an_array_that_differs_from_its_space_is_refused(encoder: FrozenEncoder):
    class Raw(DummyVecEnv):
        """Hands the arrays on as they are, as vector environments written in C++ do."""

        def reset(self) -> Any:
            return np.stack([env.reset()[0] for env in self.envs])

    with pytest.raises(InputError, match=r"\(20, 28, 3\).*declared \(28, 20, 3\)"):
        VecLatentObservation(Raw([TurnsRound]), encoder).reset()


def tiny_ppo(venv: VecEnv, policy: str = "MlpPolicy") -> PPO:
    return PPO(policy, venv, n_steps=8, batch_size=8, n_epochs=2, seed=0, device="cpu", gamma=0.5)


@pytest.mark.parametrize("kind", ["box", "dict"])
def test_ppo_bootstraps_from_the_latent_of_the_true_last_frame(
    encoder: FrozenEncoder, kind: PixelKind, monkeypatch: pytest.MonkeyPatch
):
    model = tiny_ppo(
        VecLatentObservation(DummyVecEnv([partial(limited, kind, 0, LIMIT)]), encoder),
        {
            "box": "MlpPolicy",
            "dict": "MultiInputPolicy",
        }[kind],
    )
    asked: list[Any] = []
    predict_values = model.policy.predict_values

    def watched(observation: Any) -> torch.Tensor:
        asked.append(observation)
        return predict_values(observation)

    monkeypatch.setattr(model.policy, "predict_values", watched)
    model.learn(8)
    # Eight steps hold two whole episodes of three; the last value asked for is that of the unfinished one.
    assert len(asked) == 3
    for episode, observation in enumerate(asked[:2]):
        latent = observation["pov"] if kind == "dict" else observation
        assert latent.shape == (1, LATENT_DIM)
        # SB3 seeds the environment once, which starts the story at its first episode.
        np.testing.assert_allclose(latent[0].numpy(), encoder(picture(episode, LIMIT)), atol=1e-5)


@pytest.mark.parametrize("outside", [False, True])
def test_training_an_agent_leaves_the_encoder_bit_identical(outside: bool):
    encoder = FrozenEncoder.random(tiny_architecture(), device="cpu")
    before = {name: value.clone() for name, value in encoder._network.state_dict().items()}
    if outside:
        venv: VecEnv = VecLatentObservation(DummyVecEnv(makers(2)), encoder)
    else:
        venv = DummyVecEnv([partial(wrapped, make, encoder, False) for make in makers(2)])
    model = tiny_ppo(venv)
    weights = [p.clone() for p in model.policy.parameters()]
    model.learn(48)
    assert any(not torch.equal(a, b) for a, b in zip(weights, model.policy.parameters(), strict=True))  # it did train
    assert not encoder._network.training
    for name, value in encoder._network.state_dict().items():
        assert torch.equal(value, before[name]), name
    held = {id(p) for p in model.policy.parameters()}
    assert not held & {id(p) for p in encoder._network.parameters()}


def test_a_folder_in_place_of_an_encoder(encoder_folder: Any, encoder: FrozenEncoder):
    venv = VecLatentObservation(DummyVecEnv(makers(1)), encoder_folder, device="cpu")
    np.testing.assert_array_equal(venv.reset(), VecLatentObservation(DummyVecEnv(makers(1)), encoder).reset())
