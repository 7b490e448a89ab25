"""VectorLatentObservation: known answers in each autoreset mode, one forward pass a step, and what it refuses."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics

from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.util.errors import InputError
from latent_obs.wrappers.vector import VectorLatentObservation
from tests.support.latent_cases import assert_same, assert_shows
from tests.support.tiny import PixelEnv, PixelKind, limited, picture

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
    assert infos["final_obs"].dtype == object
    assert infos["final_obs"].shape == (2,)
    assert infos["final_obs"][1] is None
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


def test_the_options_given_to_the_environments_are_the_users(encoder: FrozenEncoder):
    class Listens(PixelEnv):
        heard: Any = None

        def reset(
            self, *, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[Any, dict[str, Any]]:
            self.heard = (seed, options)
            return super().reset(seed=seed, options=options)

    venv = VectorLatentObservation(SyncVectorEnv([Listens, Listens]), encoder)
    venv.reset(seed=7, options={"map": 3})
    assert venv.get_attr("heard") == ((7, {"map": 3}), (8, {"map": 3}))
    venv.reset(seed=[1, None])
    assert venv.get_attr("heard") == ((1, None), (None, None))
    with pytest.raises((TypeError, AssertionError), match="reset_mask"):  # which, depends on Gymnasium's version
        venv.reset(options={"reset_mask": [True, False]})


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

    def render(self) -> Any:
        return picture(self.episode, self.steps)

    def add(self, a: int, b: int = 0) -> int:
        return self.first_episode + a + b


def test_everything_else_passes_through(encoder: FrozenEncoder):
    inner = SyncVectorEnv([partial(Draws, "box", 10 * i) for i in range(2)])
    venv = VectorLatentObservation(RecordEpisodeStatistics(inner), encoder)
    venv.reset()
    assert venv.num_envs == 2
    assert venv.render_mode == "rgb_array"
    assert venv.action_space == inner.action_space
    assert venv.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert venv.unwrapped is inner
    np.testing.assert_array_equal(np.stack(cast(Any, venv.render())), [picture(0, 0), picture(10, 0)])
    assert venv.call("add", 1, b=2) == (3, 13)
    venv.set_attr("lives", [5, 6])
    assert venv.get_attr("lives") == (5, 6)
    assert repr(venv).startswith("<VectorLatentObservation, <RecordEpisodeStatistics")
    venv.close()
    assert inner.closed


def test_made_by_name(encoder_folder: Path, encoder: FrozenEncoder):
    gym.register("LatentObsTests/VectorPixels-v0", entry_point=cast(Any, PixelEnv), max_episode_steps=2)
    try:
        venv = VectorLatentObservation(gym.make_vec("LatentObsTests/VectorPixels-v0", 3), encoder_folder, device="cpu")
        assert_shows(encoder, venv.reset()[0][2], (0, 0))
        assert venv.spec is not None
        assert venv.spec.id == "LatentObsTests/VectorPixels-v0"
        assert isinstance(venv.encoder, FrozenEncoder)
        assert venv._saved_kwargs["encoder"] is encoder_folder
    finally:
        del gym.registry["LatentObsTests/VectorPixels-v0"]


@pytest.mark.parametrize("said", ["SameStep", "SAME_STEP", AutoresetMode.SAME_STEP])
def test_the_mode_may_be_text(encoder: FrozenEncoder, said: Any):
    venv = VectorLatentObservation(Changes(pixels(AutoresetMode.SAME_STEP), autoreset_mode=said), encoder)
    assert venv.autoreset_mode is AutoresetMode.SAME_STEP


def test_a_mode_that_is_not_known_and_other_environments_are_refused(encoder: FrozenEncoder):
    modes: list[dict[str, Any]] = [{}, {"autoreset_mode": "sometimes"}]
    for said in modes:
        with pytest.raises(InputError, match="autoreset_mode"):
            VectorLatentObservation(Changes(pixels(AutoresetMode.SAME_STEP), **said), encoder)
    with pytest.raises(InputError, match="venv"):
        VectorLatentObservation(cast(Any, PixelEnv()), encoder)


def last_in_another_form(how: str, infos: dict[str, Any]) -> None:
    if "final_obs" not in infos:
        return
    if how == "no mask":
        del infos["_final_obs"]
    elif how == "nothing":
        del infos["_final_obs"], infos["final_obs"]
    elif how == "list":
        infos["final_obs"] = list(infos["final_obs"])
    else:
        infos["final_obs"] = {"pov": np.zeros((2, 20, 28, 3), np.uint8)}


@pytest.mark.parametrize("how", ["no mask", "nothing", "list", "batched"])
def test_last_observations_in_the_forms_of_other_vector_environments(encoder: FrozenEncoder, how: str):
    inner = Changes(
        pixels(AutoresetMode.SAME_STEP), partial(last_in_another_form, how), autoreset_mode=AutoresetMode.SAME_STEP
    )
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
