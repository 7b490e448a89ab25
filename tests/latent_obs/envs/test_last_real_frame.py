"""LastRealFrame: a black last frame is replaced by the one before, and a time-out is a truncation."""

from typing import Any, cast

import numpy as np
import pytest
from gymnasium import spaces

import latent_obs
from latent_obs.envs.faults import LastRealFrame
from tests.support.tiny import PixelEnv, PixelKind, picture


class Blackout(PixelEnv):
    """Ends with a black picture and both flags, as ViZDoom does."""

    def __init__(self, kind: PixelKind = "box", *, terminated: bool = True, truncated: bool = True) -> None:
        super().__init__(kind)
        self.flags = terminated, truncated

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, _, _, info = super().step(action)
        if self.steps < 3:
            return observation, reward, False, False, info
        black = {k: 0 * v for k, v in observation.items()} if isinstance(observation, dict) else 0 * observation
        return black, reward, *self.flags, info


@pytest.mark.parametrize("kind", ["box", "dict"])
@pytest.mark.parametrize(("terminated", "truncated"), [(True, True), (True, False), (False, True)])
def test_a_black_last_frame_is_replaced_and_a_time_out_is_no_death(kind: PixelKind, terminated: bool, truncated: bool):
    env = LastRealFrame(Blackout(kind, terminated=terminated, truncated=truncated))
    for _ in range(2):
        env.reset(seed=0)
        observation: Any = None
        for _ in range(2):
            observation, _, *flags, _ = env.step(0)
            assert flags == [False, False]
        last, _, *flags, info = env.step(0)
        assert flags == [terminated and not truncated, truncated]
        assert info["step"] == 3
        np.testing.assert_equal(last, observation)
        assert np.any(last["pov"] if kind == "dict" else last)


def test_a_real_last_frame_is_kept():
    env = LastRealFrame(PixelEnv(die_at=2))
    env.reset(seed=0)
    env.step(0)
    observation, _, terminated, truncated, _ = env.step(0)
    np.testing.assert_array_equal(observation, picture(0, 2))
    assert (terminated, truncated) == (True, False)


def test_the_last_frame_of_a_real_vizdoom_is_real_and_its_time_out_a_truncation():
    pytest.importorskip("vizdoom")
    env = latent_obs.make_pixel_env("VizdoomBasic-v1", frame_skip=8)
    try:
        assert isinstance(env, LastRealFrame)
        before = env.reset(seed=1)[0]["screen"]
        assert before.any()
        screen, terminated, truncated, steps = before, False, False, 0
        while not (terminated or truncated):
            before = screen.copy()
            observation, _, terminated, truncated, _ = env.step(0)  # doing nothing, until the time is up
            screen, steps = observation["screen"], steps + 1
            assert screen.any()
            assert screen in cast(spaces.Dict, env.observation_space)["screen"]
            assert steps < 100
        assert (terminated, truncated) == (False, True)
        np.testing.assert_array_equal(screen, before)
    finally:
        env.close()
