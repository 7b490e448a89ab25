"""VectorLatentObservation: known answers in each autoreset mode, the same as wrapped environments, what it refuses."""

import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.util.errors import InputError
from latent_obs.wrappers.features import FeatureObservation
from latent_obs.wrappers.single import LatentObservation
from latent_obs.wrappers.vector import VectorLatentObservation
from tests.support.latent_cases import assert_same, assert_shows
from tests.support.tiny import PixelEnv, PixelKind, limited, picture

Makers = Sequence[Callable[[], gym.Env[Any, Any]]]
LIMITS = (2, 3)
NO_ACTION = np.zeros(2, int)


def pixels(mode: AutoresetMode, kind: PixelKind = "box", copy: bool = True) -> SyncVectorEnv:
    """Two environments whose episodes 0, 1, … and 100, 101, … time out after two and three steps."""
    makers = [partial(limited, kind, 100 * i, limit) for i, limit in enumerate(LIMITS)]
    return SyncVectorEnv(makers, autoreset_mode=mode, copy=copy)


class Changes(VectorWrapper):
    """Changes what a vector environment gives, or what it says of itself."""

    def __init__(self, venv: VectorEnv, infos: Callable[[dict[str, Any]], None] | None = None, **metadata: Any) -> None:
        super().__init__(venv)
        self.change, self.kept = infos, {}
        self.metadata = metadata

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        *others, self.kept = self.env.step(actions)
        if self.change is not None:
            self.change(self.kept)
        return (*others, self.kept)


def test_same_step(encoder: FrozenEncoder):
    venv = VectorLatentObservation(pixels(AutoresetMode.SAME_STEP, "dict"), encoder, history=3)
    venv.reset()
    venv.step(NO_ACTION)
    shown, _, _, truncations, infos = venv.step(NO_ACTION)
    assert truncations.tolist() == [True, False]
    assert infos["_final_obs"].tolist() == [True, False]
    assert (infos["final_obs"].dtype, infos["final_obs"].shape, infos["final_obs"][1]) == (object, (2,), None)
    assert infos["final_info"]["step"].tolist() == [2, 0]
    last, shown = (o["pov"] for o in (infos["final_obs"][0], shown))
    assert_shows(encoder, last, (0, 0), (0, 1), (0, 2))
    assert_shows(encoder, shown[0], (1, 0), (1, 0), (1, 0))
    assert_shows(encoder, shown[1], (100, 0), (100, 1), (100, 2))
    shown, *_, infos = venv.step(NO_ACTION)
    assert infos["_final_obs"].tolist() == [False, True]
    last, shown = (o["pov"] for o in (infos["final_obs"][1], shown))
    assert_shows(encoder, last, (100, 1), (100, 2), (100, 3))
    assert_shows(encoder, shown[0], (1, 0), (1, 0), (1, 1))


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (AutoresetMode.NEXT_STEP, [2, 2, 2, 2, 2]),
        (AutoresetMode.SAME_STEP, [2, 2, 3, 3, 3]),  # one last frame in each of these steps
        (AutoresetMode.DISABLED, [2, 2, 2]),
    ],
)
def test_one_forward_pass_a_step(
    encoder: FrozenEncoder, mode: AutoresetMode, expected: list[int], monkeypatch: pytest.MonkeyPatch
):
    venv = VectorLatentObservation(pixels(mode), encoder)
    counts: list[int] = []
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda frames: counts.append(len(frames)) or encode(frames))
    venv.reset()
    for number in range(1, len(expected)):
        venv.step(NO_ACTION)
        assert len(counts) == number + 1
    assert counts == expected


def test_the_environments_own_arrays_and_infos_stay_as_they_were(encoder: FrozenEncoder):
    before: list[Any] = []
    inner = Changes(
        pixels(AutoresetMode.SAME_STEP, "dict"),
        lambda infos: before.append(deepcopy(infos)),
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    venv = VectorLatentObservation(inner, encoder, keep_pixels=True)
    venv.reset()
    venv.step(NO_ACTION)
    infos = venv.step(NO_ACTION)[-1]
    assert list(infos) == list(inner.kept) == list(before[-1])
    assert_same(inner.kept, before[-1])
    last, own = infos["final_obs"][0], inner.kept["final_obs"][0]
    np.testing.assert_array_equal(last["pov"], picture(0, 2))
    assert_shows(encoder, last["pov_latent"], (0, 2))
    assert not np.shares_memory(last["pov"], own["pov"])
    assert not np.shares_memory(last["compass"], own["compass"])


def test_other_vector_wrappers_inside_and_outside(encoder: FrozenEncoder):
    for mode in AutoresetMode:
        inside = VectorLatentObservation(RecordEpisodeStatistics(pixels(mode)), encoder, history=2)
        outside = RecordEpisodeStatistics(VectorLatentObservation(pixels(mode), encoder, history=2))
        for venv in (inside, outside):
            venv.reset()
            venv.step(NO_ACTION)
            shown, *_, infos = venv.step(NO_ACTION)
            episode = infos["final_info"]["episode"] if "episode" not in infos else infos["episode"]
            assert episode["l"].tolist() == [2, 0]
            frames = ((1, 0), (1, 0)) if mode is AutoresetMode.SAME_STEP else ((0, 1), (0, 2))
            assert_shows(encoder, shown[0], *frames)


class Draws(PixelEnv):
    """Draws its picture, and has methods and attributes."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    render_mode = "rgb_array"
    lives = 3
    heard: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.heard = (seed, options)
        return super().reset(seed=seed, options=options)

    def render(self) -> Any:
        return picture(self.episode, self.steps)

    def add(self, a: int, b: int = 0) -> int:
        return self.first_episode + a + b


def test_everything_else_passes_through(encoder: FrozenEncoder):
    inner = SyncVectorEnv([partial(Draws, "box", 10 * i) for i in range(2)])
    venv = VectorLatentObservation(RecordEpisodeStatistics(inner), encoder)
    venv.reset(seed=7, options={"map": 3})
    np.testing.assert_array_equal(np.stack(cast(Any, venv.render())), [picture(0, 0), picture(10, 0)])
    assert venv.get_attr("heard") == ((7, {"map": 3}), (8, {"map": 3}))
    venv.reset(seed=[1, None])
    assert venv.get_attr("heard") == ((1, None), (None, None))
    assert (venv.num_envs, venv.render_mode, venv.action_space) == (2, "rgb_array", inner.action_space)
    assert venv.call("add", 1, b=2) == (3, 13)
    venv.set_attr("lives", [5, 6])
    assert venv.get_attr("lives") == (5, 6)
    venv.close()
    assert inner.closed


def test_the_mode_may_be_text_and_else_is_refused(encoder: FrozenEncoder):
    for said in ("SameStep", "SAME_STEP"):
        venv = VectorLatentObservation(Changes(pixels(AutoresetMode.SAME_STEP), autoreset_mode=said), encoder)
        assert venv.autoreset_mode is AutoresetMode.SAME_STEP
    modes: list[dict[str, Any]] = [{}, {"autoreset_mode": "sometimes"}]
    for metadata in modes:
        with pytest.raises(InputError, match="autoreset_mode"):
            VectorLatentObservation(Changes(pixels(AutoresetMode.SAME_STEP), **metadata), encoder)
    with pytest.raises(InputError, match="venv"):
        VectorLatentObservation(cast(Any, PixelEnv()), encoder)


@pytest.mark.parametrize("how", ["no mask", "nothing", "list", "batched"])
def test_last_observations_in_the_forms_of_other_vector_environments(encoder: FrozenEncoder, how: str):
    def change(infos: dict[str, Any]) -> None:
        last = infos.pop("final_obs", None)
        if last is not None and how != "nothing":
            forms = {"list": list(last), "batched": {"pov": np.zeros((2, 20, 28, 3), np.uint8)}}
            infos["final_obs"] = forms.get(how, last)
        if how in ("no mask", "nothing"):
            infos.pop("_final_obs", None)

    inner = Changes(pixels(AutoresetMode.SAME_STEP), change, autoreset_mode=AutoresetMode.SAME_STEP)
    venv = VectorLatentObservation(inner, encoder, history=2)
    venv.reset()
    venv.step(NO_ACTION)
    if how == "batched":
        with pytest.raises(InputError, match="final_obs"):
            venv.step(NO_ACTION)
        return
    shown, *_, infos = venv.step(NO_ACTION)
    assert_shows(encoder, shown[0], (1, 0), (1, 0))
    assert ("final_obs" in infos) is (how != "nothing")
    if how != "nothing":
        assert_shows(encoder, infos["final_obs"][0], (0, 1), (0, 2))


def test_infos_in_a_list_are_for_the_outermost_wrapper(encoder: FrozenEncoder):
    venv = VectorLatentObservation(DictInfoToList(pixels(AutoresetMode.SAME_STEP)), encoder)
    venv.reset()
    with pytest.raises(InputError, match="DictInfoToList"):
        venv.step(NO_ACTION)
    venv = DictInfoToList(VectorLatentObservation(pixels(AutoresetMode.SAME_STEP), encoder))
    venv.reset()
    infos = [venv.step(NO_ACTION)[-1] for _ in range(2)][-1]
    assert_shows(encoder, cast(Any, infos)[0]["final_obs"], (0, 2))


# Wrapping then vectorizing is vectorizing then wrapping


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
def test_many_short_episodes_in_each_mode(encoder: FrozenEncoder, mode: AutoresetMode):
    """What the property tests may miss: a plan in which each kind of end, and of reset, surely comes about."""
    makers = [partial(Episodes, "dict", 100 * i, lengths) for i, lengths in enumerate([(1,), (2, 1, 3), (4,)])]
    one, other = both(makers, encoder, mode, history=3)
    plan = [None] * 9 + [True] + [None] * 3 + [[False, True, True], None, [True, False, False]] + [None] * 5
    assert assert_same_story(one, other, plan) > 10


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
