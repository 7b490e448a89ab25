"""LatentObservation on Box, Dict and channel-first environments, the checkers of others, and a real ViZDoom."""

from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

import latent_obs
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.envs.faults import LastRealFrame
from latent_obs.pixels import PixelContract
from latent_obs.util.errors import EncoderFolderError, InputError
from latent_obs.wrappers.pixel_reader import ContractObservation
from latent_obs.wrappers.single import LatentObservation
from tests.support.tiny import LATENT_DIM, PixelEnv, PixelKind, limited, pass_checkers, picture, tiny_architecture


@pytest.mark.parametrize("kind", ["box", "chw"])
def test_a_box_becomes_a_latent(encoder: FrozenEncoder, kind: PixelKind):
    env = LatentObservation(PixelEnv(kind), encoder)
    assert env.observation_space == spaces.Box(-np.inf, np.inf, (LATENT_DIM,), np.float32)
    observation, _ = env.reset(seed=0)
    np.testing.assert_allclose(observation, encoder(picture(0, 0)), atol=1e-6)
    for step in range(1, 4):
        observation, reward, terminated, truncated, info = env.step(1)
        assert observation in env.observation_space
        np.testing.assert_allclose(observation, encoder(picture(0, step)), atol=1e-6)
        assert (reward, terminated, truncated, info["step"]) == (1.0, False, False, step)


def test_channels_first_gives_the_same_latents(encoder: FrozenEncoder):
    one, other = (LatentObservation(PixelEnv(kind), encoder) for kind in ("box", "chw"))
    np.testing.assert_array_equal(one.reset()[0], other.reset()[0])
    np.testing.assert_array_equal(one.step(0)[0], other.step(0)[0])


def test_grey_pictures():
    encoder = FrozenEncoder.random(tiny_architecture(channels=1), device="cpu")
    env = LatentObservation(PixelEnv("grey"), encoder)
    np.testing.assert_allclose(env.reset()[0], encoder(picture(0, 0, channels=1)), atol=1e-6)


def test_a_dict_keeps_its_other_entries(encoder: FrozenEncoder):
    env = LatentObservation(PixelEnv("dict"), encoder)
    space = env.observation_space
    assert isinstance(space, spaces.Dict)
    assert set(space) == {"pov", "compass"}
    assert space["pov"] == spaces.Box(-np.inf, np.inf, (LATENT_DIM,), np.float32)
    assert space["compass"] == spaces.Box(-1.0, 1.0, (2,), np.float32)
    env.reset(seed=0)
    observation = env.step(0)[0]
    assert observation in space
    np.testing.assert_allclose(observation["pov"], encoder(picture(0, 1)), atol=1e-6)
    np.testing.assert_allclose(observation["compass"], [np.sin(1), np.cos(1)], atol=1e-6)


def test_latent_only_drops_them(encoder: FrozenEncoder):
    env = LatentObservation(PixelEnv("dict"), encoder, latent_only=True)
    assert env.observation_space == spaces.Box(-np.inf, np.inf, (LATENT_DIM,), np.float32)
    np.testing.assert_allclose(env.reset()[0], encoder(picture(0, 0)), atol=1e-6)


def test_pixel_key_chooses_the_picture(encoder: FrozenEncoder):
    with pytest.raises(InputError, match=r"several images.*\['map', 'pov'\]"):
        LatentObservation(PixelEnv("two-images"), encoder)
    env = LatentObservation(PixelEnv("two-images"), encoder, pixel_key="map")
    observation = env.reset()[0]
    np.testing.assert_allclose(observation["map"], encoder(picture(0, 0)[::-1]), atol=1e-6)
    np.testing.assert_array_equal(observation["pov"], picture(0, 0))  # the other stays as it is
    with pytest.raises(InputError, match="no Dict"):
        LatentObservation(PixelEnv(), encoder, pixel_key="pov")


def test_a_folder_in_place_of_an_encoder(encoder_folder: Path, encoder: FrozenEncoder):
    env = LatentObservation(PixelEnv(), str(encoder_folder), device="cpu")
    np.testing.assert_array_equal(env.reset()[0], LatentObservation(PixelEnv(), encoder).reset()[0])
    np.testing.assert_array_equal(
        latent_obs.wrap(PixelEnv(), encoder_folder, device="cpu").reset()[0], env.reset(seed=0)[0]
    )
    with pytest.raises(EncoderFolderError, match="nowhere"):
        LatentObservation(PixelEnv(), encoder_folder / "nowhere", device="cpu")


def test_observations_do_not_alias_each_other(encoder: FrozenEncoder):
    env = LatentObservation(PixelEnv(), encoder)
    first = env.reset()[0]
    kept = first.copy()
    second = env.step(0)[0]
    np.testing.assert_array_equal(first, kept)
    assert not np.shares_memory(first, second)
    assert first.flags.writeable


class Declares(gym.Env[Any, Any]):
    """Declares one thing and gives another."""

    action_space = spaces.Discrete(2)

    def __init__(self, declared: spaces.Space[Any], given: Any) -> None:
        self.observation_space, self.given = declared, given

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self.given, {}


@pytest.mark.parametrize(
    ("declared", "given", "named"),
    [
        ((64, 48, 3), np.zeros((48, 64, 3), np.uint8), r"\(48, 64, 3\).*declared \(64, 48, 3\)"),  # craftium
        ((48, 64, 3), np.zeros((3, 48, 64), np.uint8), r"\(3, 48, 64\).*declared \(48, 64, 3\)"),
        ((48, 64, 3), np.zeros((48, 64), np.uint8), r"\(48, 64\).*declared"),
        ((48, 64, 3), np.zeros((48, 64, 3), np.float32), "float32"),
    ],
)
@pytest.mark.parametrize("in_dict", [False, True])
def test_an_array_that_differs_from_its_space_is_refused(
    encoder: FrozenEncoder, declared: tuple[int, ...], given: Any, named: str, in_dict: bool
):
    space: spaces.Space[Any] = spaces.Box(0, 255, declared, np.uint8)
    if in_dict:
        space, given = spaces.Dict(pov=space), {"pov": given}
    with pytest.raises(InputError, match=named):
        LatentObservation(Declares(space, given), encoder).reset()


@pytest.mark.parametrize(
    ("space", "named"),
    [
        (spaces.Box(0, 1, (48, 64, 3), np.float32), "float32"),
        (spaces.Box(0, 255, (48, 64, 1), np.uint8), "3 channel"),
        (spaces.Dict(health=spaces.Box(0, 1, (1,))), "no pixels"),
        (spaces.Discrete(2), "Discrete"),
        (spaces.Tuple([spaces.Box(0, 255, (48, 64, 3), np.uint8)]), "Tuple"),
    ],
)
def test_a_space_without_fitting_pixels_is_refused(encoder: FrozenEncoder, space: spaces.Space[Any], named: str):
    with pytest.raises(InputError, match=named):
        LatentObservation(Declares(space, None), encoder)


def test_what_is_no_environment_is_named(encoder: FrozenEncoder):
    with pytest.raises(InputError, match=r"gymnasium\.Env, got .*list"):
        LatentObservation(cast(Any, []), encoder)


@pytest.mark.parametrize("kind", ["box", "chw", "dict"])
@pytest.mark.parametrize("latent_only", [False, True])
def test_others_checkers_pass(encoder: FrozenEncoder, kind: PixelKind, latent_only: bool):
    pass_checkers(LatentObservation(limited(kind), encoder, latent_only=latent_only))


def test_others_checkers_pass_on_resized_pixels():
    timed = gym.wrappers.TimeLimit(PixelEnv(size=(48, 60)), 3)
    env = ContractObservation(timed, PixelContract(40, 40, 3))
    pass_checkers(env)
    np.testing.assert_array_equal(
        env.reset(seed=0)[0], PixelContract(40, 40, 3).convert(picture(0, 0, 48, 60)[None])[0]
    )


def test_resized_pixels_give_the_same_latents(encoder: FrozenEncoder):
    both = LatentObservation(ContractObservation(PixelEnv("dict"), encoder.contract), encoder)
    alone = LatentObservation(PixelEnv("dict"), encoder)
    np.testing.assert_array_equal(both.reset()[0]["pov"], alone.reset()[0]["pov"])
    np.testing.assert_array_equal(both.step(0)[0]["pov"], alone.step(0)[0]["pov"])


def test_the_spec_makes_the_wrapped_environment_again(encoder_folder: Path):
    gym.register("LatentObsTests/Pixels-v0", entry_point=cast(Any, PixelEnv))
    try:
        env = latent_obs.make("LatentObsTests/Pixels-v0", encoder_folder, device="cpu", first_episode=3)
        again = gym.make(cast(Any, env.spec), disable_env_checker=True)
        assert isinstance(again, LatentObservation)
        np.testing.assert_array_equal(again.reset()[0], env.reset()[0])
    finally:
        del gym.registry["LatentObsTests/Pixels-v0"]


def test_unknown_names_and_arguments(encoder: FrozenEncoder):
    with pytest.raises(InputError, match="CartPole-v1"):
        latent_obs.make("CartPol-v1", encoder)
    with pytest.raises(InputError, match="colour"):
        latent_obs.make("CartPole-v1", encoder, colour="red")


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


@pytest.fixture
def doom_encoder() -> FrozenEncoder:
    pytest.importorskip("vizdoom")
    return FrozenEncoder.random(tiny_architecture(), device="cpu")


def test_a_real_vizdoom_passes_others_checkers(doom_encoder: FrozenEncoder):
    env = latent_obs.make("VizdoomBasic-v1", doom_encoder, latent_only=True, frame_skip=4)
    try:
        assert env.observation_space == spaces.Box(-np.inf, np.inf, (LATENT_DIM,), np.float32)
        pass_checkers(env)
    finally:
        env.close()


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
