"""What comes from an environment: memory that it uses again, the API of the old Gym."""

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

import latent_obs
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.envs.border import own
from latent_obs.envs.faults import LastRealFrame, RestartOnFault
from latent_obs.envs.old_gym import OldGymEnv
from latent_obs.util.errors import InputError
from latent_obs.wrappers.features import FeatureObservation
from latent_obs.wrappers.observation import ContractObservation
from latent_obs.wrappers.single import LatentObservation
from latent_obs.wrappers.vector import VectorLatentObservation
from tests.support.latent_cases import assert_same
from tests.support.stranger_envs import HalfNew, Of2021, OneBuffer
from tests.support.tiny import PixelKind, picture

pytest.importorskip("stable_baselines3")

from stable_baselines3.common.vec_env import DummyVecEnv

from latent_obs.envs.sb3_bridge import GymnasiumVecEnv, ProcessVecEnv
from latent_obs.wrappers.sb3 import VecLatentObservation

OLD, HALF, ADAPTED, BUFFER = (f"Stranger/{name}-v0" for name in ("Of2021", "HalfNew", "adapted", "OneBuffer"))


def sync(kind: PixelKind) -> Any:
    return SyncVectorEnv([partial(OneBuffer, kind)] * 2, autoreset_mode=AutoresetMode.SAME_STEP)


def in_workers(vectorization: Any, kind: PixelKind, encoder: FrozenEncoder, **options: Any) -> Any:
    # Frames of the encoder's own size are not resized, which would copy them.
    return latent_obs.make(BUFFER, encoder, num_envs=2, vectorization=vectorization, kind=kind, **options)


def last_and_next(venv: Any) -> tuple[Any, Any]:
    """The last observation of the first episode, and the first one of the second."""
    venv.reset()
    shown: Any = None
    for _ in range(3):
        shown = venv.step(np.zeros(2, int))
    infos = shown[-1]
    if isinstance(infos, dict):
        last, info = infos["final_obs"][0], {name: values[0] for name, values in infos["final_info"].items()}
    else:
        last, info = infos[0]["terminal_observation"], infos[0]
    assert info["step"] == 3
    first = {name: rows[0] for name, rows in shown[0].items()} if isinstance(shown[0], dict) else shown[0][0]
    return last, first


def assert_shows_them(venv: Any, encoder: FrozenEncoder) -> None:
    for observation, (episode, step) in zip(last_and_next(venv), ((0, 3), (1, 0)), strict=True):
        pixels = picture(episode, step, 16, 16)
        latent = observation
        if isinstance(observation, dict):
            latent = next(observation[key] for key in ("pov_latent", "latent", "pov") if key in observation)
            if "compass" in observation:
                np.testing.assert_allclose(observation["compass"], [np.sin(step), np.cos(step)], atol=1e-6)
            for key in observation.keys() & ({"pixels", "pov"} if latent is not observation.get("pov") else set()):
                np.testing.assert_array_equal(observation[key], pixels)
        np.testing.assert_allclose(latent, encoder(pixels), atol=1e-5)


@pytest.mark.parametrize("kind", ["box", "dict"])
@pytest.mark.parametrize("keep_pixels", [False, True])
def test_the_last_observation_of_an_environment_with_one_buffer(
    encoder: FrozenEncoder, kind: PixelKind, keep_pixels: bool
):
    how: dict[str, Any] = {"keep_pixels": keep_pixels}
    vectors: list[Callable[[], Any]] = [
        lambda: VectorLatentObservation(sync(kind), encoder, **how),
        lambda: VecLatentObservation(DummyVecEnv([partial(OneBuffer, kind)] * 2), encoder, **how),
        lambda: GymnasiumVecEnv(VectorLatentObservation(sync(kind), encoder, **how)),
        lambda: VecLatentObservation(GymnasiumVecEnv(sync(kind)), encoder, **how),
        lambda: in_workers("sync", kind, encoder, **how),
        lambda: in_workers("sb3-sync", kind, encoder, **how),
    ]
    for make in vectors:
        assert_shows_them(make(), encoder)


class Reuses(gym.ObservationWrapper[Any, Any, Any]):
    """A wrapper of the user's, which writes every picture into one array."""

    def observation(self, observation: Any) -> Any:
        self.buffer = getattr(self, "buffer", observation)
        self.buffer[:] = observation
        return self.buffer


def test_a_wrapper_that_uses_its_memory_again_is_copied_whatever_is_inside(encoder: FrozenEncoder):
    makers = [lambda: Reuses(own(OneBuffer("box")))] * 2
    assert_shows_them(
        VectorLatentObservation(SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP), encoder), encoder
    )


@pytest.mark.integration
def test_the_last_observation_of_one_with_one_buffer_in_a_worker(encoder: FrozenEncoder):
    vectors: list[Callable[[], Any]] = [
        lambda: VecLatentObservation(ProcessVecEnv([partial(OneBuffer, "dict")] * 2), encoder, keep_pixels=True),
        lambda: in_workers("async", "dict", encoder),
    ]
    for make in vectors:
        venv = make()
        try:
            assert_shows_them(venv, encoder)
        finally:
            venv.close()


@pytest.mark.integration
@pytest.mark.parametrize("advised", [False, True])
def test_a_worker_of_another_kind_that_has_written_over_the_last_picture_is_warned_of(
    encoder: FrozenEncoder, advised: bool, recwarn: pytest.WarningsRecorder
):
    def make() -> gym.Env[Any, Any]:
        return ContractObservation(OneBuffer(), encoder.contract) if advised else OneBuffer()

    inner = AsyncVectorEnv([make] * 2, autoreset_mode=AutoresetMode.SAME_STEP, context="fork")
    venv = VectorLatentObservation(inner, encoder)
    try:
        venv.reset()
        for _ in range(40):
            venv.step(np.zeros(2, int))
    finally:
        venv.close()
    found = [str(warning.message) for warning in recwarn if "ContractObservation" in str(warning.message)]
    assert len(found) == (0 if advised else 1)


@pytest.mark.parametrize("kind", ["box", "dict"])
def test_what_one_environment_has_shown_stays(encoder: FrozenEncoder, kind: PixelKind):
    def kept(env: gym.Env[Any, Any]) -> tuple[list[Any], list[Any]]:
        shown = [env.reset(seed=0)[0]]
        copies = [np.copy(shown[0]) if not isinstance(shown[0], dict) else {k: v.copy() for k, v in shown[0].items()}]
        for _ in range(3):
            shown.append(env.step(0)[0])
            last = shown[-1]
            copies.append({k: v.copy() for k, v in last.items()} if isinstance(last, dict) else np.copy(last))
        return shown, copies

    for env in (
        LatentObservation(OneBuffer(kind), encoder, keep_pixels=True, history=2),
        latent_obs.make(BUFFER, encoder, kind=kind, keep_pixels=True),
        latent_obs.make_pixel_env(BUFFER, kind=kind),
        ContractObservation(OneBuffer(kind), encoder.contract),
        FeatureObservation(OneBuffer(kind)),
        LastRealFrame(OneBuffer(kind)),
    ):
        shown, copies = kept(env)
        assert_same(shown, copies)


def test_the_last_real_observation_before_a_fault():
    env = RestartOnFault(OneBuffer(fails_at=2), remake=OneBuffer)
    env.reset(seed=0)
    env.step(0)
    observation, _, _, truncated, _ = env.step(0)  # the buffer holds the picture of step 2 already
    assert truncated
    np.testing.assert_array_equal(observation, picture(0, 1, 16, 16))


def test_an_environment_of_2021_works_or_names_what_makes_it_work(encoder: FrozenEncoder):
    for make in (
        lambda: latent_obs.wrap(Of2021(), encoder),
        lambda: LatentObservation(OldGymEnv(Of2021()), encoder),
        lambda: LatentObservation(OldGymEnv(HalfNew()), encoder),
        lambda: latent_obs.make(ADAPTED, encoder),
    ):
        env = make()
        np.testing.assert_allclose(env.reset()[0], encoder(picture(0, 0)), atol=1e-5)
        assert [env.step(0)[2] for _ in range(5)] == [False] * 4 + [True]
    refused: list[Callable[[], Any]] = [
        lambda: latent_obs.make(OLD, encoder),
        lambda: latent_obs.make(OLD, encoder, num_envs=2),
        lambda: latent_obs.make(HALF, encoder, num_envs=1, vectorization="sb3-sync").reset(),
        lambda: latent_obs.make(HALF, encoder).reset(),
        lambda: latent_obs.wrap(HalfNew(), encoder).reset(),
        lambda: LatentObservation(Of2021(), encoder),
        lambda: FeatureObservation(Of2021()),
        lambda: LatentObservation(gym.wrappers.TimeLimit(Of2021(), 3), encoder),
        lambda: VectorLatentObservation(SyncVectorEnv([Of2021]), encoder),
        lambda: VectorLatentObservation(SyncVectorEnv([HalfNew]), encoder).reset(),
        lambda: VecLatentObservation(DummyVecEnv([HalfNew]), encoder).reset(),
    ]
    for use in refused:
        with pytest.raises(InputError, match="OldGymEnv"):
            use()
