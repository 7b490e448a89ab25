"""LatentObservation on Box, Dict and channel-first environments, the checkers of others, and a real ViZDoom."""

import warnings
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

import latent_obs
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.pixels import PixelContract
from latent_obs.util.errors import EncoderFolderError, InputError
from latent_obs.wrappers.observation import ContractObservation
from latent_obs.wrappers.single import LatentObservation
from tests.support.latent_cases import assert_shows
from tests.support.stranger_envs import Declares
from tests.support.tiny import LATENT_DIM, PixelEnv, PixelKind, limited, pass_checkers, picture, tiny_architecture

LATENT = spaces.Box(-np.inf, np.inf, (LATENT_DIM,), np.float32)


@pytest.mark.parametrize("kind", ["box", "chw"])
def test_a_box_becomes_a_latent(encoder: FrozenEncoder, kind: PixelKind):
    env = LatentObservation(PixelEnv(kind), encoder)
    assert env.observation_space == LATENT
    first, _ = env.reset(seed=0)
    kept = first.copy()
    assert_shows(encoder, first, (0, 0))
    for step in range(1, 4):
        observation, reward, terminated, truncated, info = env.step(1)
        assert observation in env.observation_space
        assert_shows(encoder, observation, (0, step))
        assert (reward, terminated, truncated, info["step"]) == (1.0, False, False, step)
        assert not np.shares_memory(first, observation)
        assert observation.flags.writeable
    np.testing.assert_array_equal(first, kept)


def test_a_dict_keeps_its_other_entries(encoder: FrozenEncoder):
    env = LatentObservation(PixelEnv("dict"), encoder)
    assert env.observation_space == spaces.Dict(pov=LATENT, compass=spaces.Box(-1.0, 1.0, (2,), np.float32))
    env.reset(seed=0)
    observation = env.step(0)[0]
    assert observation in env.observation_space
    assert_shows(encoder, observation["pov"], (0, 1))
    np.testing.assert_allclose(observation["compass"], [np.sin(1), np.cos(1)], atol=1e-6)
    alone = LatentObservation(PixelEnv("dict"), encoder, latent_only=True)
    assert alone.observation_space == LATENT
    assert_shows(encoder, alone.reset()[0], (0, 0))


def test_pixel_key_chooses_the_picture(encoder: FrozenEncoder):
    with pytest.raises(InputError, match="pixel_key"):
        LatentObservation(PixelEnv("two-images"), encoder)
    env = LatentObservation(PixelEnv("two-images"), encoder, pixel_key="map")
    observation = env.reset()[0]
    np.testing.assert_allclose(observation["map"], encoder(picture(0, 0)[::-1]), atol=1e-6)
    np.testing.assert_array_equal(observation["pov"], picture(0, 0))  # the other is unchanged
    with pytest.raises(InputError, match="pixel_key"):
        LatentObservation(PixelEnv(), encoder, pixel_key="pov")


def test_a_folder_in_place_of_an_encoder(encoder_folder: Path, encoder: FrozenEncoder):
    env = LatentObservation(PixelEnv(), str(encoder_folder), device="cpu")
    wrapped = latent_obs.wrap(PixelEnv(), encoder_folder, device="cpu")
    for one in (env, wrapped):
        np.testing.assert_array_equal(one.reset()[0], LatentObservation(PixelEnv(), encoder).reset()[0])
    with pytest.raises(EncoderFolderError, match="nowhere"):
        LatentObservation(PixelEnv(), encoder_folder / "nowhere", device="cpu")


@pytest.mark.parametrize(
    ("declared", "given", "named"),
    [
        ((64, 48, 3), np.zeros((48, 64, 3), np.uint8), r"\(48, 64, 3\).*\(64, 48, 3\)"),  # craftium
        ((48, 64, 3), np.zeros((48, 64), np.uint8), r"\(48, 64\)"),
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
    for env in (
        LatentObservation(Declares(space, given), encoder),
        ContractObservation(Declares(space, given), encoder.contract),
    ):
        with pytest.raises(InputError, match=named):
            env.reset()


def test_a_space_without_pixels_and_what_is_no_environment(encoder: FrozenEncoder):
    for space in (spaces.Box(0, 1, (48, 64, 3), np.float32), spaces.Dict(health=spaces.Box(0, 1, (1,)))):
        with pytest.raises(InputError, match="observation"):
            LatentObservation(Declares(space, None), encoder)
    for env in ([], gym.vector.SyncVectorEnv([PixelEnv])):
        with pytest.raises(InputError, match="env"):
            LatentObservation(cast(Any, env), encoder)


def test_pictures_of_zeros_and_ones_are_warned_of(encoder: FrozenEncoder):
    space = spaces.Box(0, 255, (16, 16, 3), np.uint8)
    for value, warned in ((1, True), (2, False)):
        env = LatentObservation(Declares(space, np.full((16, 16, 3), value, np.uint8)), encoder)
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            for _ in range(20):
                env.reset()
        assert [str(warning.message).startswith("observation") for warning in found] == [True] * warned


def test_others_checkers_pass_also_on_resized_pixels(encoder: FrozenEncoder):
    pass_checkers(LatentObservation(limited("chw"), encoder))
    contract = PixelContract(40, 40, 3)
    env = ContractObservation(gym.wrappers.TimeLimit(PixelEnv(size=(48, 60)), 3), contract)
    pass_checkers(env)
    np.testing.assert_array_equal(env.reset(seed=0)[0], contract.convert(picture(0, 0, 48, 60)[None])[0])


def test_resized_pixels_give_the_same_latents(encoder: FrozenEncoder):
    both = LatentObservation(ContractObservation(PixelEnv("dict"), encoder.contract), encoder)
    alone = LatentObservation(PixelEnv("dict"), encoder)
    np.testing.assert_array_equal(both.reset()[0]["pov"], alone.reset()[0]["pov"])
    np.testing.assert_array_equal(both.step(0)[0]["pov"], alone.step(0)[0]["pov"])
    only = ContractObservation(PixelEnv("dict"), encoder.contract, latent_only=True)
    assert only.observation_space == spaces.Box(0, 255, encoder.contract.shape, np.uint8)
    assert only.reset()[0] in only.observation_space


def test_the_spec_makes_the_wrapped_environment_again_and_wrong_names_are_refused(encoder_folder: Path):
    gym.register("LatentObsTests/Pixels-v0", entry_point=cast(Any, PixelEnv))
    try:
        env = latent_obs.make("LatentObsTests/Pixels-v0", encoder_folder, device="cpu", first_episode=3, history=2)
        again = gym.make(cast(Any, env.spec), disable_env_checker=True)
        assert isinstance(again, LatentObservation)
        np.testing.assert_array_equal(again.reset()[0], env.reset()[0])
        colour: dict[str, Any] = {"colour": "red"}
        for name, arguments, named in (("Pixel-v0", {}, "Pixels-v0"), ("Pixels-v0", colour, "colour")):
            with pytest.raises(InputError, match=named):
                latent_obs.make(f"LatentObsTests/{name}", encoder_folder, device="cpu", **arguments)
    finally:
        del gym.registry["LatentObsTests/Pixels-v0"]


def test_a_real_vizdoom_passes_others_checkers():
    pytest.importorskip("vizdoom")
    doom_encoder = FrozenEncoder.random(tiny_architecture(), device="cpu")
    env = latent_obs.make("VizdoomBasic-v1", doom_encoder, latent_only=True, frame_skip=4)
    try:
        assert env.observation_space == LATENT
        pass_checkers(env)
    finally:
        env.close()
