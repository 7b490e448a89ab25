"""VectorLatentObservation shows, step for step, what wrapping each environment and then vectorizing them shows."""

import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.wrappers.features import FeatureObservation
from latent_obs.wrappers.single import LatentObservation
from latent_obs.wrappers.vector import VectorLatentObservation
from tests.support.latent_cases import assert_same
from tests.support.tiny import PixelEnv, PixelKind, limited

Makers = Sequence[Callable[[], gym.Env[Any, Any]]]


class Episodes(PixelEnv):
    """Episodes of given lengths, one after the other and again; they terminate, time out, or both."""

    def __init__(self, kind: PixelKind, first_episode: int, lengths: Sequence[int]) -> None:
        super().__init__(kind, first_episode)
        self.lengths = lengths

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, _ = super().reset(seed=seed, options=options)
        return observation, {"begun": self.episode, "place": {"x": 0.5}}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, _, _, info = super().step(action)
        number = self.episode - self.first_episode
        ends = self.steps >= self.lengths[number % len(self.lengths)]
        how = (self.episode + self.steps) % 3
        return observation, reward, ends and how != 1, ends and how != 2, {**info, "place": {"x": float(self.steps)}}


def assert_same_story(one: VectorEnv[Any, Any, Any], other: VectorEnv[Any, Any, Any], plan: Sequence[Any]) -> int:
    """Play the same plan in both, and compare all that they give; how many episodes ended.

    A plan is of steps (None) and resets: of all (True), or of those in a mask.
    """
    assert other.single_observation_space == one.single_observation_space
    assert other.observation_space == one.observation_space
    mode, ended, count = one.metadata["autoreset_mode"], np.zeros(one.num_envs, bool), 0
    given: list[tuple[Any, Any]] = []  # by the other, and as it was then

    def compare(a: tuple[Any, ...], b: tuple[Any, ...]) -> None:
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
        assert b[0] in other.observation_space
        for final in b[-1].get("final_obs", ()):
            assert final is None or final in other.single_observation_space
        for what in (b[0], b[-1].get("final_obs")):
            given.append((what, deepcopy(what)))

    compare(one.reset(seed=5), other.reset(seed=5))
    for number, operation in enumerate(plan):
        must = ended if mode is AutoresetMode.DISABLED else np.zeros_like(ended)
        mask = must if operation is None else np.array(operation) | must
        if operation is True:
            compare(one.reset(), other.reset())
            ended = np.zeros_like(ended)
        elif mask.any():
            compare(*(env.reset(options={"reset_mask": mask.copy()}) for env in (one, other)))
            ended = ended & ~mask
        actions = np.arange(one.num_envs) * number % 2
        shown = one.step(actions)
        compare(shown, other.step(actions))
        ended = shown[2] | shown[3]
        count += int(ended.sum())
    for what, was in given:
        assert_same(what, was)  # no later step wrote over it
    return count


def both(
    makers: Makers, encoder: FrozenEncoder, mode: AutoresetMode, copy: bool = False, **options: Any
) -> tuple[VectorEnv[Any, Any, Any], VectorLatentObservation]:
    """Wrapped then vectorized, and vectorized then wrapped."""

    def wrapped(make: Callable[[], gym.Env[Any, Any]]) -> gym.Env[Any, Any]:
        return LatentObservation(make(), encoder, **options)

    one = SyncVectorEnv([partial(wrapped, make) for make in makers], autoreset_mode=mode)
    return one, VectorLatentObservation(SyncVectorEnv(makers, copy=copy, autoreset_mode=mode), encoder, **options)


@st.composite
def stories(draw: st.DrawFn) -> tuple[list[list[int]], list[Any]]:
    """Lengths of the episodes of each environment, and a plan."""
    count = draw(st.integers(1, 4))
    lengths = draw(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3), min_size=count, max_size=count))
    masks = st.lists(st.booleans(), min_size=count, max_size=count).filter(any)
    step = st.none()
    return lengths, draw(st.lists(st.one_of(step, step, step, st.just(True), masks), min_size=3, max_size=14))


@given(
    story=stories(),
    kind=st.sampled_from(["box", "chw", "dict"]),
    mode=st.sampled_from(list(AutoresetMode)),
    history=st.sampled_from([1, 3]),
    form=st.sampled_from([{}, {"flatten": True}, {"latent_only": True}, {"keep_pixels": True}]),
    copy=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_wrapping_then_vectorizing_is_vectorizing_then_wrapping(
    encoder: FrozenEncoder,
    story: Any,
    kind: PixelKind,
    mode: AutoresetMode,
    history: int,
    form: dict[str, bool],
    copy: bool,
):
    makers = [partial(Episodes, kind, 100 * i, lengths) for i, lengths in enumerate(story[0])]
    one, other = both(makers, encoder, mode, copy, history=history, **form)
    assert_same_story(one, other, story[1])


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("history", [1, 3])
def test_many_short_episodes_in_each_mode(encoder: FrozenEncoder, mode: AutoresetMode, history: int):
    """What the property tests may miss: a plan in which each kind of end, and each kind of reset, surely comes
    about."""
    makers = [partial(Episodes, "dict", 100 * i, lengths) for i, lengths in enumerate([(1,), (2, 1, 3), (4,)])]
    one, other = both(makers, encoder, mode, history=history)
    plan = [None] * 9 + [True] + [None] * 3 + [[False, True, True], None, [True, False, False]] + [None] * 5
    assert assert_same_story(one, other, plan) > 10


@pytest.mark.parametrize("mode", AutoresetMode)
def test_one_vector_of_features_and_what_its_numbers_are(encoder: FrozenEncoder, mode: AutoresetMode):
    def featured(first: int) -> gym.Env[Any, Any]:
        return FeatureObservation(Episodes("dict", first, [3, 1]), grouped=True)

    makers = [partial(featured, 100 * i) for i in range(2)]
    one, other = both(makers, encoder, mode, flatten=True, history=2)
    assert isinstance(one, SyncVectorEnv)
    assert other.index == one.get_attr("index")[0]
    assert [slot.name for slot in other.index] == ["latent[-1]", "latent[0]", "compass"]  # and not "features"
    assert assert_same_story(one, other, [None] * 6) >= 4


def test_several_encoders_and_cameras(encoder: FrozenEncoder):
    makers = [partial(Episodes, "two-images", 100 * i, [2]) for i in range(2)]
    cameras: Any = {"pov": encoder, "map": [encoder, encoder]}
    one, other = both(makers, cameras, AutoresetMode.SAME_STEP, history=2)
    assert assert_same_story(one, other, [None] * 5) >= 4


@pytest.mark.integration
@pytest.mark.parametrize(
    ("mode", "shared_memory", "plan"),
    [
        (AutoresetMode.NEXT_STEP, True, [None] * 7),
        (AutoresetMode.SAME_STEP, True, [None] * 7),
        (AutoresetMode.DISABLED, False, [None, [True, False], *[None] * 6]),
    ],
)
def test_worker_processes_show_the_same_and_never_load_torch(
    encoder: FrozenEncoder, mode: AutoresetMode, shared_memory: bool, plan: list[Any]
):
    makers = [partial(limited, "dict", 100 * i, 2 + i) for i in range(2)]
    if mode is AutoresetMode.NEXT_STEP:  # in the other modes there is no index in the workers to be asked for
        makers = [partial(FeatureObservation, make(), grouped=True) for make in makers]
    one, _ = both(makers, encoder, mode, history=2, flatten=True)
    workers = AsyncVectorEnv(makers, shared_memory=shared_memory, copy=False, context="forkserver", autoreset_mode=mode)
    try:
        other = VectorLatentObservation(workers, encoder, history=2, flatten=True)
        assert isinstance(one, SyncVectorEnv)
        assert other.index == one.get_attr("index")[0]
        assert assert_same_story(one, other, plan) >= 4
        assert other.call("has_wrapper_attr", "index") == (mode is AutoresetMode.NEXT_STEP,) * 2
        if sys.platform == "linux":
            assert not any("torch" in Path(f"/proc/{process.pid}/maps").read_text() for process in workers.processes)
    finally:
        workers.close()
