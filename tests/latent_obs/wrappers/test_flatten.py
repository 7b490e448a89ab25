"""FeatureObservation and `flatten` in use: wrapped, in vectors, in worker processes, on MineRL's spaces, under SB3."""

import copy
import functools
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env as check_gymnasium

from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.envs.old_spaces import convert_space
from latent_obs.util.errors import InputError
from latent_obs.wrappers.features import FeatureLayout, FeatureObservation, Slot, describe, needs_features
from latent_obs.wrappers.pixel_reader import ContractObservation
from latent_obs.wrappers.single import LatentObservation
from tests.latent_obs.wrappers.test_feature_rules import HELD, LOG, expected
from tests.latent_obs.wrappers.test_features import IMAGE, nested
from tests.support.tiny import LATENT_DIM, PixelEnv, PixelKind, limited, picture

pytest.importorskip("stable_baselines3")

from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from latent_obs.wrappers.sb3 import VecLatentObservation
from tests.latent_obs.wrappers.test_latent_vec_env import assert_same_story

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


class Miner(PixelEnv):
    """Pictures and a compass, and an inventory that tells episode and step as well."""

    def __init__(self, first_episode: int = 0) -> None:
        super().__init__("dict", first_episode)
        parts = cast(spaces.Dict, self.observation_space).spaces
        self.observation_space = spaces.Dict({**parts, "inventory": spaces.Dict(log=LOG, dirt=LOG), "held": HELD})

    def observe(self, episode: int, step: int) -> Any:
        inventory = {"log": np.array(step, np.int32), "dirt": np.array(episode, np.int32)}
        return {**super().observe(episode, step), "inventory": inventory, "held": np.int64(step % 3)}


class Samples(gym.Env[Any, Any]):
    """Gives whatever its observation space has, as its seed decides."""

    metadata = {"render_modes": []}  # noqa: RUF012
    action_space = spaces.Discrete(2)

    def __init__(self, space: spaces.Space[Any] | None = None) -> None:
        self.observation_space = nested() if space is None else space
        self._source = copy.deepcopy(self.observation_space)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self._source.seed(seed)
        return self._source.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._source.sample(), 0.0, False, False, {}


#: What SB3 takes, and `flatten` does not.
FLAT = spaces.Dict(pov=IMAGE, held=HELD)


def featured(grouped: bool = True, first_episode: int = 0, limit: int = 3) -> gym.Env[Any, Any]:
    return FeatureObservation(gym.wrappers.TimeLimit(Miner(first_episode), limit), grouped=grouped)


def latent(make: Callable[[], gym.Env[Any, Any]], encoder: FrozenEncoder) -> gym.Env[Any, Any]:
    return LatentObservation(make(), encoder, flatten=True)


def index_of(env: Any) -> list[tuple[str, int, int]]:
    return [(slot.name, slot.start, slot.stop) for slot in env.index]


@pytest.mark.parametrize("features", [None, False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_flattened_rows_are_the_same_one_by_one_and_in_a_vector(
    encoder: FrozenEncoder, count: int, features: bool | None
):
    if features is None:
        makers = [partial(limited, "dict", 100 * i, 3 + i) for i in range(count)]
    else:
        makers = [partial(featured, features, 100 * i, 3 + i) for i in range(count)]
    one = DummyVecEnv([partial(latent, make, encoder) for make in makers])
    other = VecLatentObservation(DummyVecEnv(makers), encoder, flatten=True)
    assert isinstance(other.observation_space, spaces.Box)
    assert assert_same_story(one, other) >= 2 * count  # terminal observations included
    assert other.index == one.get_attr("index")[0]


@pytest.mark.parametrize("grouped", [False, True])
def test_the_latent_comes_first_and_all_else_in_order(encoder: FrozenEncoder, grouped: bool):
    env = LatentObservation(featured(grouped), encoder, flatten=True)
    assert index_of(env) == MINER_INDEX
    assert describe(env.index).splitlines()[-1] == "12:13  inventory/log   log(1+count)/log(65)"
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


@pytest.mark.parametrize("grouped", [False, True])
def test_the_index_points_at_what_changes(encoder: FrozenEncoder, grouped: bool):
    inner = featured(grouped)
    env = LatentObservation(inner, encoder, flatten=True)
    before = Miner().observe(0, 0)

    def numbers(value: Any) -> Any:
        return env.observation(cast(FeatureObservation, inner).observation(value))

    changes: dict[str, dict[str, Any]] = {
        "latent": {"pov": picture(3, 4)},
        "compass": {"compass": np.array([-0.5, -0.5], np.float32)},
        "inventory/log": {"inventory": {**before["inventory"], "log": np.array(9, np.int32)}},
        "inventory/dirt": {"inventory": {**before["inventory"], "dirt": np.array(9, np.int32)}},
        "held=none held=torch": {"held": np.int64(2)},
    }
    places = {slot.name: set(range(slot.start, slot.stop)) for slot in env.index}
    for names, change in changes.items():
        changed = set(np.flatnonzero(numbers(before) != numbers({**before, **change})).tolist())
        assert changed == set().union(*(places[name] for name in names.split())), names


def test_worker_processes_tell_the_same_and_say_what_it_is(encoder: FrozenEncoder):
    makers: list[Any] = [partial(featured, True, 100 * i) for i in range(2)]
    one = DummyVecEnv([partial(latent, make, encoder) for make in makers])
    other = VecLatentObservation(SubprocVecEnv(makers), encoder, flatten=True)
    try:
        assert index_of(other) == MINER_INDEX
        assert assert_same_story(one, other) >= 4
    finally:
        other.close()


def test_workers_without_an_index_are_not_killed_by_the_question(encoder: FrozenEncoder):
    venv = VecLatentObservation(SubprocVecEnv([partial(limited, "dict")]), encoder, flatten=True)
    try:
        assert index_of(venv) == [("latent", 0, 6), ("compass", 6, 8)]
        assert cast(Any, venv.reset()).shape == (1, 8)
    finally:
        venv.close()


def test_a_vector_that_answers_no_questions_has_an_index_all_the_same(encoder: FrozenEncoder):
    class Silent(DummyVecEnv):
        def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
            if attr_name == "index":
                raise NotImplementedError
            return super().get_attr(attr_name, indices)

    venv = VecLatentObservation(Silent([featured]), encoder, flatten=True)
    assert index_of(venv) == [("latent", 0, 6), ("features", 6, 13)]


@pytest.mark.parametrize("kind", ["box", "dict"])
@pytest.mark.parametrize("vector", [False, True])
def test_latent_only_wins_and_pixels_alone_need_no_joining(encoder: FrozenEncoder, kind: PixelKind, vector: bool):
    latent_only = kind == "dict"
    make = partial(limited, kind)
    plain: Any = LatentObservation(make(), encoder, latent_only=latent_only).reset(seed=0)[0]
    if vector:
        env: Any = VecLatentObservation(DummyVecEnv([make]), encoder, latent_only=latent_only, flatten=True)
        np.testing.assert_allclose(env.reset(), plain[None], atol=1e-6)
    else:
        env = LatentObservation(make(), encoder, latent_only=latent_only, flatten=True)
        np.testing.assert_array_equal(env.reset(seed=0)[0], plain)
    assert env.observation_space == spaces.Box(-np.inf, np.inf, (LATENT_DIM,), np.float32)
    assert env.index == (Slot("latent", 0, LATENT_DIM),)


def test_a_dict_that_stays_a_dict_has_no_index(encoder: FrozenEncoder):
    env = LatentObservation(featured(), encoder)
    assert env.index == ()
    assert isinstance(env.observation_space, spaces.Dict)
    assert set(env.observation_space) == {"features", "pov"}
    assert VecLatentObservation(DummyVecEnv([featured]), encoder).index == ()


def test_an_index_that_no_longer_fits_is_not_shown(encoder: FrozenEncoder):
    shorter = spaces.Dict(
        {**cast(spaces.Dict, featured().observation_space).spaces, "features": spaces.Box(0, 1, (2,))}
    )
    env = gym.wrappers.TransformObservation(featured(), lambda o: {**o, "features": o["features"][:2]}, shorter)
    assert index_of(LatentObservation(env, encoder, flatten=True)) == [("latent", 0, 6), ("features", 6, 8)]


class Indexed(PixelEnv):
    index = 17  # some number of its own


def test_an_index_of_another_kind_is_passed_over(encoder: FrozenEncoder):
    assert index_of(LatentObservation(Indexed("dict"), encoder, flatten=True)) == [("latent", 0, 6), ("compass", 6, 8)]


@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize(
    ("make", "named"),
    [
        (
            partial(Samples, FLAT),
            r"observation\['held'\] is Enum.*FeatureObservation\(env\) around the environment first",
        ),
        (partial(PixelEnv, "two-images"), r"observation\['map'\] is Box\(20, 28, 3\) uint8: drop it"),
    ],
)
def test_what_cannot_be_joined_is_named(
    encoder: FrozenEncoder, make: Callable[[], gym.Env[Any, Any]], named: str, vector: bool
):
    wrap: Any = VecLatentObservation if vector else LatentObservation
    env = DummyVecEnv([make]) if vector else make()
    with pytest.raises(InputError, match=named):
        wrap(env, encoder, pixel_key="pov", flatten=True)


def test_a_nested_observation_is_told_what_comes_first(encoder: FrozenEncoder):
    with pytest.raises(InputError, match=r"observation\['held'\].*put FeatureObservation\(env\) around"):
        LatentObservation(Miner(), encoder, flatten=True)


def test_an_entry_of_another_shape_than_declared_is_named(encoder: FrozenEncoder):
    env = LatentObservation(limited("dict"), encoder, flatten=True)
    with pytest.raises(InputError, match=r"'compass'.*\(1,\).*declared \(2,\)"):
        env.observation({"pov": picture(0, 0), "compass": np.zeros(1, np.float32)})


def test_pixels_may_be_resized_before_or_after(encoder: FrozenEncoder):
    before = FeatureObservation(ContractObservation(Miner(), encoder.contract), grouped=True)
    after = ContractObservation(featured(), encoder.contract)
    for env in (before, after):
        out = LatentObservation(env, encoder, flatten=True)
        assert index_of(out) == MINER_INDEX
        np.testing.assert_array_equal(out.reset(seed=0)[0], latent(featured, encoder).reset(seed=0)[0])


@functools.cache
def minerl_spaces() -> dict[str, spaces.Dict]:
    """What every environment of MineRL observes, by its name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old_gym = pytest.importorskip("gym", exc_type=ImportError)
        old_gym.logger.set_level(40)
        pytest.importorskip("minerl", exc_type=ImportError)
        specs = [spec for spec in old_gym.envs.registry.all() if spec.id.startswith("MineRL")]
        found = {spec.id: convert_space(spec._kwargs["env_spec"].observation_space).space for spec in specs}
    return cast(dict[str, spaces.Dict], found)


@pytest.mark.parametrize("grouped", [False, True])
def test_others_checkers_pass(grouped: bool):
    sb3 = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*different from the unwrapped version.*")
        warnings.filterwarnings("ignore", message=".*minimal resolution for an image is 36x36.*")
        env = FeatureObservation(gym.wrappers.TimeLimit(Samples(), 5), grouped=grouped)
        check_gymnasium(env, skip_render_check=True)
        sb3.check_env(env, skip_render_check=True)


def test_the_wrapper_gives_fresh_arrays_and_can_be_made_again():
    gym.register("LatentObsTests/Nested-v0", entry_point=cast(Any, Samples))
    try:
        env = FeatureObservation(gym.make("LatentObsTests/Nested-v0", disable_env_checker=True), grouped=True)
        again = gym.make(cast(Any, env.spec), disable_env_checker=True)
    finally:
        del gym.registry["LatentObsTests/Nested-v0"]
    assert isinstance(again, FeatureObservation)
    assert again.observation_space == env.observation_space
    first, _ = env.reset(seed=3)
    np.testing.assert_array_equal(again.reset(seed=3)[0]["features"], first["features"])
    kept = first["features"].copy()
    second = env.step(0)[0]["features"]
    assert not np.shares_memory(first["features"], second)
    np.testing.assert_array_equal(first["features"], kept)
    assert env.get_wrapper_attr("index") == env.index
    assert env.describe() == describe(env.index, env.left_out)
    with pytest.raises(InputError, match=r"gymnasium\.Env, got .*list"):
        FeatureObservation(cast(Any, []))


def test_all_of_minerls_observations_become_numbers():
    assert len(minerl_spaces()) >= 30
    for name, space in minerl_spaces().items():
        grouped, apart = FeatureLayout(space, grouped=True), FeatureLayout(space)
        assert needs_features(space) is any(isinstance(part, spaces.Dict) for part in space.values()), name
        value = space.sample()
        one, many, known = grouped.convert(value), apart.convert(value), expected(space, value)
        assert one in grouped.space, name
        assert many in apart.space, name
        assert set(one) == ({"pov", "features"} if known else {"pov"})
        assert one["pov"] is many["pov"] is value["pov"]
        assert grouped.left_out == ()
        assert [slot.name for slot in grouped.index] == [slot.name for slot in apart.index]
        assert {slot.name for slot in grouped.index} == set(known), name
        for slot in grouped.index:
            np.testing.assert_allclose(one["features"][slot.start : slot.stop], known[slot.name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("policy", "flatten"), [("MultiInputPolicy", False), ("MlpPolicy", True)])
@pytest.mark.parametrize("grouped", [False, True])
def test_agents_take_all_of_minerls_observations(encoder: FrozenEncoder, policy: str, flatten: bool, grouped: bool):
    distinct = {repr(space): space for space in minerl_spaces().values()}
    for space in distinct.values():
        venv = VecLatentObservation(
            DummyVecEnv([lambda space=space: FeatureObservation(Samples(space), grouped=grouped)]),
            encoder,
            flatten=flatten,
        )
        model = PPO(policy, venv, n_steps=2, batch_size=2, device="cpu")
        observation = venv.reset()
        assert model.predict(cast(Any, observation))[0].shape == (1,)
        if flatten:
            assert cast(Any, observation).shape == (1, venv.index[-1].stop)


def test_an_agent_learns_from_flattened_workers_last_observations(encoder: FrozenEncoder):
    venv: VecEnv = VecLatentObservation(DummyVecEnv([featured, featured]), encoder, flatten=True)
    PPO("MlpPolicy", venv, n_steps=8, batch_size=8, n_epochs=1, device="cpu").learn(16)
