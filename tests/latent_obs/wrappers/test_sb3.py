"""VecLatentObservation: the same as wrapping each environment, last frames included; what training leaves unchanged."""

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.util.errors import InputError
from latent_obs.wrappers.single import LatentObservation
from tests.support.latent_cases import assert_same_vec_envs, assert_shows, featured, index_of
from tests.support.tiny import LATENT_DIM, PixelKind, limited, tiny_architecture

pytest.importorskip("stable_baselines3")

from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from latent_obs.wrappers.sb3 import VecLatentObservation

LIMIT = 3


def makers(count: int, kind: PixelKind = "box") -> list[Callable[[], gym.Env[Any, Any]]]:
    return [partial(limited, kind, 100 * i, LIMIT + i) for i in range(count)]


def wrapped(make: Callable[[], gym.Env[Any, Any]], encoder: FrozenEncoder, **options: Any) -> gym.Env[Any, Any]:
    return LatentObservation(make(), encoder, **options)


@pytest.mark.parametrize(("kind", "latent_only"), [("box", False), ("chw", True), ("dict", False), ("dict", True)])
def test_wrapping_then_vectorizing_is_vectorizing_then_wrapping(
    encoder: FrozenEncoder, kind: PixelKind, latent_only: bool
):
    count = 3
    one = DummyVecEnv([partial(wrapped, make, encoder, latent_only=latent_only) for make in makers(count, kind)])
    other = VecLatentObservation(DummyVecEnv(makers(count, kind)), encoder, latent_only=latent_only)
    assert assert_same_vec_envs(one, other) >= 2 * count


@pytest.mark.integration
@pytest.mark.parametrize("has_index", [False, True])
def test_worker_processes_show_the_same_and_say_what_it_is(encoder: FrozenEncoder, has_index: bool):
    # Workers without an index do not survive the question for it.
    made: list[Any] = [partial(featured, True, 100 * i) for i in range(2)] if has_index else makers(1, "dict")
    one = DummyVecEnv([partial(wrapped, make, encoder, flatten=True) for make in made])
    other = VecLatentObservation(SubprocVecEnv(made), encoder, flatten=True)
    try:
        assert other.index == one.get_attr("index")[0]
        assert len(other.index) == (7 if has_index else 2)
        assert assert_same_vec_envs(one, other) >= 2 * len(made)
    finally:
        other.close()


def test_a_vector_that_answers_no_questions_has_an_index_all_the_same(encoder: FrozenEncoder):
    class Silent(DummyVecEnv):
        def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
            if attr_name == "index":
                raise NotImplementedError
            return super().get_attr(attr_name, indices)

    venv = VecLatentObservation(Silent([featured]), encoder, flatten=True)
    assert index_of(venv) == [("latent", 0, 6), ("features", 6, 13)]


def test_one_forward_pass_a_step(encoder: FrozenEncoder, monkeypatch: pytest.MonkeyPatch):
    venv = VecLatentObservation(DummyVecEnv([partial(limited, "box", 0, 2)] * 3), encoder)
    counts: list[int] = []
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda frames: counts.append(len(frames)) or encode(frames))
    first: Any = venv.reset()
    others: list[Any] = [venv.step(np.zeros(3, int))[0] for _ in range(2)]
    assert counts == [3, 3, 6]  # all end: three first frames and three last ones
    assert not any(np.shares_memory(first, other) for other in others)
    assert all(other.flags.writeable for other in others)


def test_what_is_no_vec_env_is_named(encoder: FrozenEncoder):
    vector: Any = gym.vector.SyncVectorEnv([partial(limited, "box")])
    with pytest.raises(InputError, match="venv"):
        VecLatentObservation(vector, encoder)


def tiny_ppo(venv: VecEnv, policy: str = "MlpPolicy") -> PPO:
    return PPO(policy, venv, n_steps=8, batch_size=8, n_epochs=2, seed=0, device="cpu", gamma=0.5)


def test_ppo_bootstraps_from_the_latent_of_the_true_last_frame(encoder: FrozenEncoder, monkeypatch: pytest.MonkeyPatch):
    venv = VecLatentObservation(DummyVecEnv([partial(limited, "dict", 0, LIMIT)]), encoder)
    model = tiny_ppo(venv, "MultiInputPolicy")
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
        latent = observation["pov"]
        assert latent.shape == (1, LATENT_DIM)
        # SB3 seeds the environment once, which starts the story at its first episode.
        assert_shows(encoder, latent[0].numpy(), (episode, LIMIT))


@pytest.mark.parametrize("outside", [False, True])
def test_training_an_agent_leaves_the_encoder_bit_identical(outside: bool):
    encoder = FrozenEncoder.random(tiny_architecture(), device="cpu")
    before = {name: value.clone() for name, value in encoder._network.state_dict().items()}
    if outside:
        venv: VecEnv = VecLatentObservation(DummyVecEnv([featured, featured]), encoder, flatten=True)
    else:
        venv = DummyVecEnv([partial(wrapped, make, encoder) for make in makers(2)])
    model = tiny_ppo(venv)
    weights = [p.clone() for p in model.policy.parameters()]
    model.learn(48)
    assert any(not torch.equal(a, b) for a, b in zip(weights, model.policy.parameters(), strict=True))  # it did train
    assert not encoder._network.training
    for name, value in encoder._network.state_dict().items():
        assert torch.equal(value, before[name]), name
    held = {id(p) for p in model.policy.parameters()}
    assert not held & {id(p) for p in encoder._network.parameters()}
