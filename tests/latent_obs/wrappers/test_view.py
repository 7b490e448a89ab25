"""The options of what an agent sees: history, pixels kept, several encoders and cameras; one environment and many
alike."""

from functools import partial
from typing import Any

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
from latent_obs.wrappers.observation import ObservationEncoder, ObservationOptions
from latent_obs.wrappers.sb3 import VecLatentObservation
from latent_obs.wrappers.single import LatentObservation
from tests.support.tiny import PixelEnv, PixelKind, limited, pass_checkers, picture, tiny_architecture

OTHER = FrozenEncoder.random(Architecture((20, 28, 3), 3, widths=(4,), strides=(4,)), seed=3, device="cpu")
SAME_SIZE = FrozenEncoder.random(tiny_architecture(), seed=5, device="cpu")
IMAGE = spaces.Box(0, 255, (20, 28, 3), np.uint8)

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
    return LatentObservation(make(), **{"encoder": encoder, **options})


@pytest.mark.parametrize("name", OPTIONS)
def test_an_environment_passes_the_checks(name: str, encoder: FrozenEncoder):
    kind, options = OPTIONS[name]
    pass_checkers(wrap(partial(limited, kind), encoder, options))


def assert_alike(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert set(one) == set(other)
        for key in one:
            assert_alike(one[key], other[key])
        return
    assert (one.shape, one.dtype) == (other.shape, other.dtype)
    np.testing.assert_allclose(one, other, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(name=st.sampled_from(sorted(OPTIONS)), lengths=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_many_environments_see_what_each_alone_sees(encoder: FrozenEncoder, name: str, lengths: list[int]):
    kind, options = OPTIONS[name]
    makers = [partial(limited, kind, 10 * i, length) for i, length in enumerate(lengths)]
    one = DummyVecEnv([partial(wrap, make, encoder, options) for make in makers])
    other = VecLatentObservation(DummyVecEnv(makers), **{"encoder": encoder, **options})
    assert one.observation_space == other.observation_space
    a: Any = one.reset()
    b: Any = other.reset()
    assert_alike(a, b)
    for step in range(7):
        kept = {k: v.copy() for k, v in b.items()} if isinstance(b, dict) else b.copy()
        actions = np.full(len(lengths), step % 2)
        (a, _, a_dones, a_infos), (new, _, b_dones, b_infos) = one.step(actions), other.step(actions)
        assert_alike(a, new)
        assert_alike(kept, b)  # a step leaves what it gave before as it was
        assert a_dones.tolist() == b_dones.tolist()
        for a_info, b_info in zip(a_infos, b_infos, strict=True):
            assert ("terminal_observation" in a_info) == ("terminal_observation" in b_info)
            if "terminal_observation" in a_info:
                assert_alike(a_info["terminal_observation"], b_info["terminal_observation"])
        b = new


def latent_of(encoder: FrozenEncoder, episode: int, step: int) -> Any:
    return encoder(picture(episode, step))


def test_history_is_the_last_latents_oldest_first_and_restarts_with_the_episode(encoder: FrozenEncoder):
    env = wrap(partial(limited, "box", 0, 9), encoder, {"history": 3})
    z = [latent_of(encoder, 0, step) for step in range(4)]
    np.testing.assert_allclose(env.reset(seed=0)[0], np.concatenate([z[0], z[0], z[0]]), atol=1e-5)
    seen = [env.step(0)[0] for _ in range(3)]
    np.testing.assert_allclose(seen[0], np.concatenate([z[0], z[0], z[1]]), atol=1e-5)
    np.testing.assert_allclose(seen[2], np.concatenate([z[1], z[2], z[3]]), atol=1e-5)
    again = latent_of(encoder, 1, 0)
    np.testing.assert_allclose(env.reset()[0], np.concatenate([again] * 3), atol=1e-5)


def test_the_index_names_every_number(encoder: FrozenEncoder):
    env = wrap(partial(limited, "dict"), encoder, {"history": 2, "flatten": True})
    assert [(slot.name, slot.start, slot.stop) for slot in env.index] == [
        ("latent[-1]", 0, 6),
        ("latent[0]", 6, 12),
        ("compass", 12, 14),
    ]
    kind, options = OPTIONS["two cameras, flat"]
    names = [slot.name for slot in wrap(partial(limited, kind), encoder, options).index]
    assert names == [
        "latent/map[-1]",
        "latent/map[0]",
        "latent/pov#0[-1]",
        "latent/pov#1[-1]",
        "latent/pov#0[0]",
        "latent/pov#1[0]",
        "compass",
    ]


def test_each_camera_has_its_own_encoder():
    env = LatentObservation(PixelEnv("two-images"), {"map": OTHER, "pov": SAME_SIZE})
    seen, raw = env.reset(seed=0)[0], picture(0, 0)
    np.testing.assert_allclose(seen["map"], OTHER(raw[::-1]), atol=1e-5)
    np.testing.assert_allclose(seen["pov"], SAME_SIZE(raw), atol=1e-5)


def test_pixels_kept_are_the_environments_own(encoder: FrozenEncoder):
    seen = wrap(partial(limited, "box"), encoder, {"keep_pixels": True}).reset(seed=0)[0]
    np.testing.assert_array_equal(seen["pixels"], picture(0, 0))
    np.testing.assert_allclose(seen["latent"], latent_of(encoder, 0, 0), atol=1e-5)
    space = wrap(partial(limited, "dict"), encoder, {"keep_pixels": True}).observation_space
    assert isinstance(space, spaces.Dict)
    assert set(space.spaces) == {"pov", "pov_latent", "compass"}


def test_cameras_that_share_an_encoder_are_one_call(monkeypatch: pytest.MonkeyPatch):
    sizes: list[int] = []
    encode = SAME_SIZE.encode
    monkeypatch.setattr(SAME_SIZE, "encode", lambda frames: (sizes.append(len(frames)), encode(frames))[1])
    makers = [partial(limited, "two-images", 0, limit) for limit in (1, 2)]
    venv = VecLatentObservation(DummyVecEnv(makers), {"pov": SAME_SIZE, "map": SAME_SIZE})
    venv.reset()
    venv.step(np.zeros(2, int))
    assert sizes == [4, 6]  # two cameras of two environments; and of one that ended the last frames


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"history": 0}, "history must be the number of latents to show, 1 or more, got 0"),
        ({"history": 1.5}, "history must be"),
        ({"keep_pixels": True, "flatten": True}, "choose one of them"),
        ({"standardize": True}, "has none. Train it"),
        ({"encoder": []}, "empty list"),
        ({"encoder": {}}, "empty mapping"),
        ({"encoder": 3}, "must be an encoder folder or a FrozenEncoder, got int"),
        ({"encoder": {"pov": OTHER}, "pixel_key": "pov"}, "encoder says which entries"),
        ({"encoder": {"nothing": OTHER}}, "'nothing' is not in the observation"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message.replace(".", r"\.")):
        LatentObservation(PixelEnv("dict"), **{"encoder": SAME_SIZE, **options})


def test_a_name_that_is_taken_is_refused():
    space = spaces.Dict(pov=IMAGE, pov_latent=spaces.Box(0, 1, (2,)))
    with pytest.raises(InputError, match="'pov_latent', and the observation has an entry of this name"):
        ObservationEncoder(space, OTHER, ObservationOptions(keep_pixels=True))


def test_the_wrong_kind_of_environment_is_told_which_wrapper_it_wants(encoder: FrozenEncoder):
    vector = gym.vector.SyncVectorEnv([partial(limited, "box")])
    with pytest.raises(InputError, match="VectorLatentObservation is for vectors"):
        LatentObservation(vector, encoder)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="VectorLatentObservation for gymnasium"):
        VecLatentObservation(vector, encoder)  # pyright: ignore[reportArgumentType]
