"""The options of what an agent sees: history, entries joined, pixels kept, several encoders and cameras."""

import dataclasses
from functools import partial
from typing import Any, cast

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.vec_env import DummyVecEnv

from latent_obs.encoder.architecture import Architecture
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.util.errors import InputError
from latent_obs.wrappers.features import Slot
from latent_obs.wrappers.observation import ObservationEncoder, ObservationOptions, OptionsDict
from latent_obs.wrappers.sb3 import VecLatentObservation
from latent_obs.wrappers.single import LatentObservation
from tests.support.latent_cases import (
    IMAGE,
    Miner,
    assert_same_vec_envs,
    assert_shows,
    featured,
    index_of,
)
from tests.support.tiny import LATENT_DIM, PixelEnv, PixelKind, limited, pass_checkers, picture, tiny_architecture

OTHER = FrozenEncoder.random(Architecture((20, 28, 3), 3, widths=(4,), strides=(4,)), seed=3, device="cpu")
SAME_SIZE = FrozenEncoder.random(tiny_architecture(), seed=5, device="cpu")

#: Options with the kind of environment that each is for.
OPTIONS: dict[str, tuple[PixelKind, dict[str, Any]]] = {
    "history": ("box", {"history": 3}),
    "history of a Dict": ("dict", {"history": 2}),
    "history, flat": ("dict", {"history": 3, "flatten": True}),
    "pixels kept": ("chw", {"keep_pixels": True}),
    "pixels kept in a Dict": ("dict", {"keep_pixels": True, "history": 2}),
    "pixels kept, nothing else": ("dict", {"keep_pixels": True, "latent_only": True}),
    "two encoders": ("box", {"encoder": [OTHER, SAME_SIZE], "history": 2}),
    "two cameras": ("two-images", {"encoder": {"pov": SAME_SIZE, "map": SAME_SIZE}}),
    "two cameras, flat": (
        "two-images",
        {"encoder": {"map": OTHER, "pov": [SAME_SIZE, OTHER]}, "flatten": True, "history": 2},
    ),
    "two cameras, nothing else": ("two-images", {"encoder": {"pov": SAME_SIZE, "map": OTHER}, "latent_only": True}),
}


def wrap(make: Any, encoder: Any, options: dict[str, Any]) -> LatentObservation:
    wrapper: Any = LatentObservation
    return wrapper(make(), **{"encoder": encoder, **options})


def test_the_options_are_the_same_in_both_forms(encoder: FrozenEncoder):
    assert [field.name for field in dataclasses.fields(ObservationOptions)] == list(OptionsDict.__annotations__)
    with pytest.raises(TypeError, match="colour"):
        LatentObservation(PixelEnv(), encoder, colour="red")  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("name", OPTIONS)
def test_an_environment_passes_the_checks(name: str, encoder: FrozenEncoder):
    kind, options = OPTIONS[name]
    pass_checkers(wrap(partial(limited, kind), encoder, options))


@settings(max_examples=15, deadline=None)
@given(name=st.sampled_from(sorted(OPTIONS)), lengths=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_many_environments_see_what_each_alone_sees(encoder: FrozenEncoder, name: str, lengths: list[int]):
    kind, options = OPTIONS[name]
    makers = [partial(limited, kind, 10 * i, length) for i, length in enumerate(lengths)]
    one = DummyVecEnv([partial(wrap, make, encoder, options) for make in makers])
    wrapper: Any = VecLatentObservation
    other = wrapper(DummyVecEnv(makers), **{"encoder": encoder, **options})
    assert_same_vec_envs(one, other, steps=7)


# History


MASKS = st.lists(st.booleans(), min_size=3, max_size=3)


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 4), story=st.lists(st.tuples(MASKS, st.none() | MASKS), min_size=1, max_size=8))
def test_history_is_a_queue_per_environment(length: int, story: list[tuple[list[bool], list[bool] | None]]):
    both = ObservationEncoder(IMAGE, SAME_SIZE, ObservationOptions(history=length), num_envs=3)
    queues: list[list[Any]] = [[], [], []]
    for number, (restarts, new) in enumerate(story):
        frames = np.stack([picture(10 * i, number) for i in range(3)])
        latents = SAME_SIZE(frames)
        both.restart(np.array(restarts))
        shown, _ = both(frames, new=None if new is None else np.array(new))
        for i, queue in enumerate(queues):
            if restarts[i] or not queue:
                queue[:] = [latents[i]] * length
            elif new is None or new[i]:
                queue[:] = [*queue, latents[i]][-length:]
            if length > 1 or new is None or new[i]:  # a single latent is that of the frame at hand
                np.testing.assert_allclose(shown[i], np.concatenate(queue), atol=1e-5)


# Several encoders and cameras, and pixels kept


def test_cameras_that_share_an_encoder_are_one_call(monkeypatch: pytest.MonkeyPatch):
    sizes: list[int] = []
    encode = SAME_SIZE.encode
    makers = [partial(limited, "two-images", 0, limit) for limit in (1, 2)]
    venv = VecLatentObservation(DummyVecEnv(makers), {"pov": SAME_SIZE, "map": SAME_SIZE})
    monkeypatch.setattr(SAME_SIZE, "encode", lambda frames: (sizes.append(len(frames)), encode(frames))[1])
    venv.reset()
    venv.step(np.zeros(2, int))
    assert sizes == [4, 6]  # two cameras of two environments; and of one that ended the last frames


def test_pixels_kept_are_the_environments_own(encoder: FrozenEncoder):
    seen = wrap(partial(limited, "box"), encoder, {"keep_pixels": True}).reset(seed=0)[0]
    np.testing.assert_array_equal(seen["pixels"], picture(0, 0))
    assert_shows(encoder, seen["latent"], (0, 0))
    space = wrap(partial(limited, "dict"), encoder, {"keep_pixels": True}).observation_space
    assert isinstance(space, spaces.Dict)
    assert set(space.spaces) == {"pov", "pov_latent", "compass"}


# One vector, and what its numbers are

#: compass (2,) comes with the pictures; sorted, as everything is: compass, held, inventory.
MINER_INDEX = [
    ("latent", 0, 6),
    ("compass", 6, 8),
    ("held=none", 8, 9),
    ("held=log", 9, 10),
    ("held=torch", 10, 11),
    ("inventory/dirt", 11, 12),
    ("inventory/log", 12, 13),
]


@pytest.mark.parametrize("grouped", [False, True])
def test_the_latent_comes_first_and_all_else_in_order(encoder: FrozenEncoder, grouped: bool):
    env = LatentObservation(featured(grouped), encoder, flatten=True)
    assert index_of(env) == MINER_INDEX
    space = env.observation_space
    assert isinstance(space, spaces.Box)
    most = float(np.float32(np.log(2305) / np.log(65)))
    np.testing.assert_array_equal(space.low, [*[-np.inf] * LATENT_DIM, -1, -1, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(space.high, [*[np.inf] * LATENT_DIM, 1, 1, 1, 1, 1, most, most], rtol=1e-6)
    env.reset(seed=0)
    env.step(0)
    observation = env.step(0)[0]
    assert observation in space
    assert observation.dtype == np.float32
    rest = [np.sin(2), np.cos(2), 0, 0, 1, 0, np.log(3) / np.log(65)]
    np.testing.assert_allclose(observation, [*encoder(picture(0, 2)), *rest], atol=1e-6)


def test_the_index_names_every_number(encoder: FrozenEncoder):
    env = wrap(partial(limited, "dict"), encoder, {"history": 2, "flatten": True})
    assert index_of(env) == [("latent[-1]", 0, 6), ("latent[0]", 6, 12), ("compass", 12, 14)]
    kind, options = OPTIONS["two cameras, flat"]
    names = " ".join(slot.name for slot in wrap(partial(limited, kind), encoder, options).index)
    pov = "latent/pov#0[-1] latent/pov#1[-1] latent/pov#0[0] latent/pov#1[0]"
    assert names == f"latent/map[-1] latent/map[0] {pov} compass"
    assert LatentObservation(featured(), encoder).index == ()  # a Dict that stays a Dict
    assert VecLatentObservation(DummyVecEnv([featured]), encoder).index == ()


@pytest.mark.parametrize("kind", ["box", "dict"])
def test_latent_only_wins_and_pixels_alone_need_no_joining(encoder: FrozenEncoder, kind: PixelKind):
    env = LatentObservation(limited(kind), encoder, latent_only=kind == "dict", flatten=True)
    assert env.observation_space == spaces.Box(-np.inf, np.inf, (LATENT_DIM,), np.float32)
    assert env.index == (Slot("latent", 0, LATENT_DIM),)
    assert_shows(encoder, env.reset(seed=0)[0], (0, 0))


def test_an_index_that_does_not_fit_is_not_shown(encoder: FrozenEncoder):
    before = cast(spaces.Dict, featured().observation_space).spaces
    shorter = spaces.Dict({**before, "features": spaces.Box(0, 1, (2,))})
    env = gym.wrappers.TransformObservation(featured(), lambda o: {**o, "features": o["features"][:2]}, shorter)
    assert index_of(LatentObservation(env, encoder, flatten=True)) == [("latent", 0, 6), ("features", 6, 8)]
    cast(Any, env).index = 17  # some number of its own
    assert index_of(LatentObservation(env, encoder, flatten=True)) == [("latent", 0, 6), ("features", 6, 8)]


# What is refused


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"history": 0}, "history"),
        ({"keep_pixels": True, "flatten": True}, "keep_pixels"),
        ({"standardize": True}, "standardize"),
        ({"encoder": []}, "encoder"),
        ({"encoder": 3}, "encoder"),
        ({"encoder": {"pov": OTHER}, "pixel_key": "pov"}, "pixel_key"),
        ({"encoder": [OTHER, OTHER], "monitor": object()}, "monitor"),
    ],
)
def test_bad_options(options: dict[str, Any], named: str):
    for env in (PixelEnv("dict"), DummyVecEnv([partial(PixelEnv, "dict")])):
        wrapper: Any = LatentObservation if isinstance(env, PixelEnv) else VecLatentObservation
        with pytest.raises(InputError, match=named):
            wrapper(env, **{"encoder": SAME_SIZE, **options})


def test_a_name_that_is_taken_is_refused():
    space = spaces.Dict(pov=IMAGE, pov_latent=spaces.Box(0, 1, (2,)))
    with pytest.raises(InputError, match=r"keep_pixels.*'pov_latent'"):
        ObservationEncoder(space, OTHER, ObservationOptions(keep_pixels=True))


def test_what_cannot_be_joined_is_named(encoder: FrozenEncoder):
    for make, entry in ((partial(PixelEnv, "two-images"), "map"), (Miner, "held")):
        with pytest.raises(InputError, match=rf"flatten.*\['{entry}'\]"):
            LatentObservation(make(), encoder, pixel_key="pov", flatten=True)


def test_an_entry_of_another_shape_than_declared_is_named(encoder: FrozenEncoder):
    env = LatentObservation(limited("dict"), encoder, flatten=True)
    with pytest.raises(InputError, match="'compass'"):
        env.observation({"pov": picture(0, 0), "compass": np.zeros(1, np.float32)})
