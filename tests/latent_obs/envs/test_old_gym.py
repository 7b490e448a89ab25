"""OldGymEnv around real environments of gym 0.17 and small ones with the later versions of the old API."""

import importlib
import random
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

import latent_obs
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.envs.old_gym import OldGymEnv, ignores_seed, is_old_gym
from latent_obs.minerl.installation import minerl_version
from latent_obs.util.errors import InputError
from tests.support.old_gyms import Behind, Gym022, Gym026, Old
from tests.support.tiny import picture

needs_gym = pytest.mark.skipif(minerl_version() is None, reason="gym 0.17 comes with minerl, which is not installed")
REAL = ["Pendulum-v0", "Blackjack-v0", "Copy-v0"]  # Box, Tuple observations, Tuple actions


def make_real(env_id: str) -> Any:
    """An environment of gym 0.17, imported without its deprecation warnings."""
    from latent_obs.minerl.client import load_minerl

    load_minerl()
    return importlib.import_module("gym").make(env_id)


def play(env: OldGymEnv, resets: int = 3, seed: int | None = None) -> list[Any]:
    """First and last picture of several episodes, of which only the first is seeded."""
    seen = []
    for episode in range(resets):
        seen.append(env.reset(seed=seed if episode == 0 else None)[0])
        observation, done = None, False
        while not done:
            observation, _, terminated, truncated, _ = env.step(0)
            done = terminated or truncated
        seen.append(observation)
    return seen


@needs_gym
@pytest.mark.parametrize("env_id", REAL)
@pytest.mark.filterwarnings("ignore:.*we recommend using a symmetric and normalized space")  # Pendulum's torque, of 2
def test_it_plays_as_the_old_environment_does(env_id: str):
    check_env(OldGymEnv(make_real(env_id)), skip_render_check=True)
    env, old = OldGymEnv(make_real(env_id)), make_real(env_id)
    env.action_space.seed(5)
    old.seed(3)
    for episode in range(3):
        observation, info = env.reset(seed=3 if episode == 0 else None)
        np.testing.assert_equal(observation, as_declared(env.observation_space, old.reset()))
        assert info == {}
        done, truncated, steps = False, False, 0
        while not done:
            action = env.action_space.sample()
            observation, reward, terminated, truncated, info = env.step(action)
            expected, expected_reward, done, expected_info = old.step(env._action.to_old(action))
            np.testing.assert_equal(observation, as_declared(env.observation_space, expected))
            assert observation in env.observation_space
            assert (reward, info) == (expected_reward, expected_info)
            steps += 1
            time_out = bool(expected_info.get("TimeLimit.truncated"))
            assert (terminated, truncated) == (done and not time_out, time_out)
        assert env_id != "Pendulum-v0" or (truncated and steps == 200)
    env.close()


def as_declared(space: spaces.Space[Any], value: Any) -> Any:
    """An old observation with the type that its space declares; gym's own give float64 for float32."""
    if isinstance(space, spaces.Tuple):
        return tuple(as_declared(part, each) for part, each in zip(space.spaces, value, strict=True))
    return np.asarray(value, space.dtype)[()]


@pytest.mark.parametrize("dialect", [Old, Gym022, Gym026])
def test_gymnasiums_checker_passes_on_every_dialect(dialect: type[Old]):
    check_env(OldGymEnv(dialect()), skip_render_check=True)
    check_env(OldGymEnv(Behind(dialect()), seed_every_reset=True), skip_render_check=True)


@pytest.mark.parametrize("behind", [False, True])
def test_a_seed_and_options_go_where_the_dialect_takes_them(behind: bool):
    old, middle, late = Old(), Gym022(), Gym026()
    wrap = Behind if behind else lambda env: env
    first = [OldGymEnv(wrap(env)).reset(seed=4)[0] for env in (old, middle, late)]
    np.testing.assert_array_equal(first[0], first[1])
    np.testing.assert_array_equal(first[0], first[2])
    assert middle.asked == late.asked == [("reset", 4, None)]
    assert OldGymEnv(wrap(late)).reset(options={"map": 2})[1] == {"began": True}
    assert late.asked[-1] == ("reset", None, {"map": 2})
    OldGymEnv(wrap(old)).reset(options={})
    with pytest.raises(InputError, match="options"):
        OldGymEnv(wrap(old)).reset(options={"map": 2})


def test_pairs_are_no_sign_of_the_new_dialect():
    """An observation that is a pair must not be taken for an observation and an info, nor the other way round."""

    class Pairs(Old):
        observation_space = spaces.Tuple([spaces.Discrete(9), spaces.Dict(a=spaces.Discrete(9))])

        def observe(self) -> Any:
            return 3, {"a": 4}

    class NewPairs(Gym026):
        observation_space = Pairs.observation_space
        observe = Pairs.observe

    assert OldGymEnv(Pairs()).reset() == ((3, {"a": 4}), {})
    assert OldGymEnv(NewPairs()).reset() == ((3, {"a": 4}), {"began": True})


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31 - 2))
def test_one_seed_fixes_a_whole_run(seed: int):
    one, again, other = (play(OldGymEnv(Old(), seed_every_reset=True), 4, s) for s in (seed, seed, seed + 1))
    assert all(map(np.array_equal, one, again))
    assert not all(map(np.array_equal, one, other))  # two seeds may share a picture by chance, not a run
    assert any(not np.array_equal(one[0], first) for first in one[2::2])  # nor all episodes of one


class Drawn(Old):
    """Cannot be seeded; `source` draws the numbers of its episodes."""

    seed: Any = None
    source: Any = staticmethod(lambda: np.random.randint(2**31))  # noqa: NPY002

    def reset(self) -> Any:
        super().reset()
        self.story = int(self.source())
        return self.observe()


class Crafter(Drawn):
    """Has its seed as an attribute, and draws an episode by it and by its number."""

    def __init__(self) -> None:
        super().__init__()
        self._seed, self._episode = 0, 0

    def source(self) -> int:
        self._episode += 1
        return hash((self._seed, self._episode)) % 2**31


class Hidden(Drawn):
    """Keeps its generators to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.rng, self.rng2, self.rng3 = np.random.default_rng(), np.random.RandomState(), random.Random()

    def source(self) -> int:
        return int(self.rng.integers(2**29)) + int(self.rng2.randint(2**29)) + self.rng3.randrange(2**29)


class Python(Drawn):
    source: Any = staticmethod(lambda: random.randrange(2**31))


class Unknown(Drawn):
    source: Any = staticmethod(lambda: np.random.default_rng().integers(2**31))


class GymnasiumUnseeded(gym.Env[Any, Any]):
    """A Gymnasium environment that takes a seed and does not use it."""

    observation_space: Any = Old.observation_space
    action_space: Any = Old.action_space
    source: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        number = self.np_random.integers(2**31) if self.source is None else self.source()
        return picture(int(number), 0), {}


def first_pictures(env: gym.Env[Any, Any], seed: int) -> list[Any]:
    return [env.reset(seed=seed)[0], env.reset()[0]]


@pytest.mark.parametrize("make", [Drawn, Crafter, Hidden, Python, lambda: Behind(Crafter())])
def test_what_cannot_take_a_seed_is_seeded_by_hand(make: Any, caplog: pytest.LogCaptureFixture):
    env = OldGymEnv(make())
    one, again, other = (first_pictures(env, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    np.testing.assert_array_equal(one, first_pictures(OldGymEnv(make()), 1))
    assert not np.array_equal(one, other)
    assert not np.array_equal(one[0], one[1])
    assert not caplog.records


def test_a_seed_that_has_no_effect_is_reported_once(caplog: pytest.LogCaptureFixture):
    class Deaf(GymnasiumUnseeded):
        source: Any = staticmethod(Unknown.source)

    entry: Any = Deaf
    gym.register("Deaf-v0", entry_point=entry, disable_env_checker=True)
    envs = [OldGymEnv(Unknown()), latent_obs.make_pixel_env("Deaf-v0")]
    del gym.registry["Deaf-v0"]
    for env, name in zip(envs, ("Unknown", "Deaf"), strict=True):
        caplog.clear()
        env.reset()
        assert not caplog.records
        env.reset(seed=1)
        env.reset(seed=1)
        assert [name in record.message for record in caplog.records] == [True]


@pytest.mark.parametrize("source", [None, Drawn.source])
def test_a_gymnasium_environment_that_drops_its_seed(source: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(GymnasiumUnseeded, "source", source and staticmethod(source))
    entry: Any = GymnasiumUnseeded
    gym.register("Drops-v0", entry_point=entry, disable_env_checker=True)
    env = latent_obs.make_pixel_env("Drops-v0")
    del gym.registry["Drops-v0"]
    np.testing.assert_array_equal(first_pictures(env, 1), first_pictures(env, 1))
    assert not np.array_equal(env.reset(seed=1)[0], env.reset(seed=2)[0])
    assert not ignores_seed(gym.make("CartPole-v1"))


@needs_gym
def test_the_seed_method_of_the_oldest_gym_does_nothing():
    class Derived(Crafter, importlib.import_module("gym").Env):
        seed = importlib.import_module("gym").Env.seed

    one, two = (first_pictures(OldGymEnv(Derived()), 1) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    env = OldGymEnv(Derived())
    np.testing.assert_array_equal(first_pictures(env, 1), first_pictures(env, 1))
    assert not np.array_equal(env.reset(seed=1)[0], env.reset(seed=2)[0])


def test_without_a_seed_nothing_is_fixed():
    env = OldGymEnv(Old(), seed_every_reset=True)
    assert not all(map(np.array_equal, play(env), play(env)))
    env = OldGymEnv(Old())  # the default
    assert not all(map(np.array_equal, play(env, seed=1), play(env, seed=1)))


def end(env: Old, **kwargs: Any) -> tuple[int, bool, bool]:
    """Steps until the end, and how it ended."""
    adapted = OldGymEnv(env, **kwargs)
    adapted.reset()
    for step in range(1, 20):
        *_, terminated, truncated, _ = adapted.step(1)
        if terminated or truncated:
            return step, terminated, truncated
    return 0, False, False


def test_a_time_out_is_a_truncation_and_any_other_end_is_none():
    assert end(Old(end_at=3)) == (3, True, False)
    assert end(Old(end_at=3, time_out=True)) == (3, False, True)
    assert end(Old(limit=5, end_at=4)) == (4, True, False)
    assert end(Old(limit=5, end_at=5)) == (5, False, True)
    assert end(Old(limit=5, end_at=5, time_out=False)) == (5, True, False)  # so says Gym's TimeLimit of such an end
    assert end(Old(limit=5, end_at=3), time_limit_slack=1) == (3, True, False)
    assert end(Old(limit=5, end_at=4), time_limit_slack=1) == (4, False, True)
    with pytest.raises(InputError, match="time_limit_slack"):
        OldGymEnv(Old(), time_limit_slack=-1)
    for flags, expected in (((True, False), (1, True, False)), ((True, True), (1, False, True))):
        late = Gym026()  # has both flags
        late.flags = flags
        assert end(late) == expected


def test_steps_need_an_episode():
    env = OldGymEnv(Old(end_at=2))
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)
    env.reset()
    env.step(0)
    assert env.step(0)[2]
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)


def test_a_wrong_action_never_reaches_the_old_environment():
    old = Old()
    env = OldGymEnv(old)
    env.reset()
    for wrong in (2, 0.5, "up"):
        with pytest.raises(InputError, match="action"):
            env.step(wrong)
    assert old.asked == []
    env.step(env.noop)
    assert old.asked == [0]


@pytest.mark.parametrize("dialect", [Old, Gym026])
def test_pictures_are_copies(dialect: type[Old]):
    for env in (OldGymEnv(Behind(dialect()), render_mode="rgb_array"), OldGymEnv(dialect(), render_mode="rgb_array")):
        env.reset()
        drawn = env.render()
        np.testing.assert_array_equal(drawn, Old.render_result, strict=True)
        assert drawn.flags.c_contiguous
        assert drawn.flags.writeable
        assert not np.shares_memory(drawn, Old.render_result)


def test_render_modes():
    with pytest.raises(InputError, match="render_mode"):
        OldGymEnv(Old(), render_mode="ansi")
    blind = Old()
    blind.metadata = {}
    with pytest.raises(InputError, match="render_mode"):
        OldGymEnv(blind, render_mode="rgb_array")
    old = Old()
    assert OldGymEnv(old).metadata == {"render_modes": ["human", "rgb_array"], "render_fps": 20, "runtime": True}
    assert OldGymEnv(Gym026()).metadata == {"render_modes": ["rgb_array"], "render_fps": 12}
    assert OldGymEnv(old).render() is None
    assert old.asked == []
    env = OldGymEnv(old, render_mode="human")  # draws by itself, as Gymnasium's environments do
    env.reset()
    env.step(1)
    assert old.asked == ["human", 1, "human"]
    late = Gym026()
    late.render_result = None  # as gym 0.26 does when it was made without a render_mode
    env = OldGymEnv(late, render_mode="rgb_array")
    env.reset()
    with pytest.raises(InputError, match="render_mode"):
        env.render()


def test_closing_is_for_good():
    old = Old()
    env = OldGymEnv(old, render_mode="rgb_array")
    env.reset()
    env.close()
    env.close()
    assert old.closed == 1
    for use in (env.reset, env.render, lambda: env.step(0)):
        with pytest.raises(gym.error.ClosedEnvironmentError):
            use()


def test_what_is_no_old_environment_is_refused():
    assert is_old_gym(Old())
    for thing in (3, Old, gym.make("CartPole-v1")):
        assert not is_old_gym(thing)
        with pytest.raises(InputError, match="env must"):
            OldGymEnv(thing)


@pytest.mark.parametrize("dialect", [Old, Gym022, Gym026])
def test_one_line_turns_its_pixels_into_latents(encoder: FrozenEncoder, dialect: type[Old]):
    old = dialect()
    env = latent_obs.wrap(old, encoder)
    np.testing.assert_allclose(env.reset(seed=1)[0], encoder(picture(old.story, 0)[::-1]), atol=1e-6)
    np.testing.assert_allclose(env.step(1)[0], encoder(picture(old.story, 1)[::-1]), atol=1e-6)
    check_env(latent_obs.wrap(dialect(), encoder).unwrapped, skip_render_check=True)


@needs_gym
def test_an_old_environment_without_pixels_is_refused(encoder: FrozenEncoder):
    with pytest.raises(InputError, match=r"uint8"):
        latent_obs.wrap(make_real("CartPole-v1"), encoder)
