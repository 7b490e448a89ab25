"""An agent shown step by step, and filmed: it plays as in an evaluation, and what is drawn is what it saw and did."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import ImageColor

pytest.importorskip("stable_baselines3")
pytest.importorskip("av")

import av
import torch

import agents.play.show as show_module
from agents.evaluation import evaluate_agent
from agents.play.policy import Decision
from agents.play.show import LatentPicture, Picture, Show, compose, draw_latent, film, write_video
from agents.store import load_agent
from agents.training import train_agent
from latent_obs.encoder.folder import read_encoder_folder, write_encoder_folder
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.encoder.pca import PCA
from latent_obs.encoder.statistics import LatentStatistics
from latent_obs.util.colors import COLORS
from latent_obs.util.errors import InputError
from tests.support.side_env import SideEnv, tiny
from tests.support.tiny import random_frames

GAME = np.full((48, 64, 3), (200, 30, 90), np.uint8)
SEEN = np.full((16, 16, 3), (10, 220, 30), np.uint8)


def train(folder: Path, encoder: Path | None, **settings: Any) -> Path:
    config = tiny(encoder=encoder, out=folder, **{"steps": 32, "eval_every": 0, **settings})
    return train_agent(config, say=lambda text: None).run


def encoder_with(folder: Path, out: Path, **parts: Any) -> Path:
    """A copy of an encoder folder without its decoder, with other parts."""
    plain = read_encoder_folder(folder)
    same = {name: getattr(plain, name) for name in ("architecture", "contract", "encoder", "selfcheck")}
    return write_encoder_folder(out, **{**same, **parts})


@pytest.fixture(scope="module")
def run(encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("watched") / "run", encoder_folder)


# Playing


def test_a_show_plays_as_an_evaluation_does(run: Path):
    with contextlib.closing(Show(run, seed=1_000_003, device="cpu", success_return=4.0)) as show:
        while len(show.ended) < 4:
            show.step()
    played = evaluate_agent(run, episodes=1, seed=1_000_003, device="cpu", success_return=4.0)
    assert show.ended[0] == (played.returns[0], played.lengths[0], played.successes is not None and played.successes[0])
    assert [end.length for end in show.ended] == [8] * 4
    assert all(end.success == (end.total >= 4) for end in show.ended)


def test_pictures_change_nothing_what_is_shown_is_done_and_a_restart_does_not_count(run: Path):
    stories = []
    for draw in (False, True):
        torch.manual_seed(0)
        with contextlib.closing(Show(run, seed=5, device="cpu", deterministic=False)) as show:
            show.step()
            show.restart()
            assert (show.step_number, show.total, show.ended) == (0, 0.0, [])
            for _ in range(20):
                if draw:
                    assert np.array_equal(show.picture(), show.picture())
                before, decided, side = show.total, show.decision, show._venv.get_attr("side")[0]
                end = show.step()
                assert (end.total if end else show.total) - before == float(decided.chosen[side])
            stories.append(show.ended)
    assert stories[0] == stories[1]
    assert len(stories[0]) == 2


@pytest.mark.parametrize(
    "settings",
    [
        {"with_statistics": True},
        {"env_kwargs": {"kind": "dict"}},
        {"env_kwargs": {"kind": "dict"}, "flatten": True, "history": 2},
    ],
)
def test_the_newest_latent_is_what_is_drawn_and_decoded(
    encoder_folder: Path, tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    statistics, folder, settings = None, encoder_folder, dict(settings)
    if settings.pop("with_statistics", False):
        statistics = LatentStatistics.from_latents(np.random.default_rng(0).normal(0.4, 2.0, (500, 6)))
        decoder = read_encoder_folder(encoder_folder).decoder()
        folder = encoder_with(encoder_folder, tmp_path / "with", decoder=decoder, statistics=statistics)
    run = train(tmp_path / "run", folder, **settings)
    encoder = FrozenEncoder.load(encoder_folder, device="cpu")
    drawn: list[dict[str, Any]] = []
    monkeypatch.setattr("agents.play.show.compose", lambda game, **parts: drawn.append({"game": game, **parts}))
    with contextlib.closing(Show(run, device="cpu")) as show:
        for _ in range(10):
            show.picture()
            show.step()
            latent = encoder(np.ascontiguousarray(drawn[-1]["game"][::3, ::4]))
            np.testing.assert_allclose(drawn[-1]["seen"].astype(int), encoder.decode(latent).astype(int), atol=1)
            picture: LatentPicture = drawn[-1]["latent"]
            assert picture.shape is None
            if statistics is not None:
                expected = (latent - statistics.mean) / statistics.scale / 3
            else:
                expected = latent * (picture.values[0] / latent[0])
                assert np.abs(picture.values).max() <= 1
            np.testing.assert_allclose(picture.values, expected, atol=1e-3)


def test_an_encoder_without_a_decoder_leaves_the_reconstruction_out(encoder_folder: Path, tmp_path: Path):
    run = train(tmp_path / "run", encoder_with(encoder_folder, tmp_path / "bare"))
    with contextlib.closing(Show(run, device="cpu")) as show:
        bare = show.picture()
    with contextlib.closing(Show(train(tmp_path / "whole", encoder_folder), device="cpu")) as show:
        assert show.picture().shape == (bare.shape[0], bare.shape[1] + 246, 3)


def test_principal_components_are_put_together_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = PCA.fit(random_frames(300), 16).save(tmp_path / "pca.safetensors")
    run = train(tmp_path / "run", None, observation="pca-latent", pca=file)
    drawn: list[Any] = []
    monkeypatch.setattr("agents.play.show.compose", lambda game, seen, **_: drawn.append((game, seen)))
    with contextlib.closing(Show(run, device="cpu")) as show:
        show.picture()
    game, seen = drawn[0]
    pca = PCA.load(file)
    frame = game[::3, ::4].reshape(-1) / 255
    expected = pca.centre + pca.components.T @ (pca.components @ (frame - pca.centre))
    np.testing.assert_allclose(seen.reshape(-1), np.clip(expected, 0, 1) * 255, atol=1)
    assert np.abs(expected * 255 - frame * 255).mean() > 1, "16 values do not hold it all"


def test_a_memory_is_carried_within_an_episode_and_dropped_between(encoder_folder: Path, tmp_path: Path):
    pytest.importorskip("sb3_contrib")
    run = train(tmp_path / "run", encoder_folder, algorithm="recurrent-ppo")
    model: Any = load_agent(run, "best", device="cpu")
    state, forgetful = None, []
    with contextlib.closing(Show(run, device="cpu", deterministic=True)) as show:
        for step in range(20):
            begins = step % 8 == 0
            observation = show._observation
            tensor, _ = model.policy.obs_to_tensor(observation)
            with torch.inference_mode():
                shape = model.policy.lstm_hidden_state_shape
                zero = (torch.zeros(shape[0], 1, *shape[2:]),) * 2
                memory = zero if state is None or begins else tuple(map(torch.as_tensor, state))
                # One distribution object for all: its numbers are read before the next call.
                one, _ = model.policy.get_distribution(tensor, memory, torch.tensor([float(begins)]))
                remembering = one.distribution.probs[0].tolist()
                other, _ = model.policy.get_distribution(tensor, zero, torch.ones(1))
                forgetful.append(np.abs(np.subtract(other.distribution.probs[0].tolist(), remembering)).max())
            np.testing.assert_allclose(show.decision.levels, remembering, atol=1e-6)
            action, state = model.predict(observation, state, np.array([begins]), deterministic=True)
            assert show.decision.chosen[int(action[0])]
            show.step()
    assert max(forgetful) > 1e-5, "memory makes a difference"


# Drawing


def latent(values: Any, shape: tuple[int, int, int] | None = None) -> LatentPicture:
    return LatentPicture(np.asarray(values, np.float64), shape, "latent")


def decision(levels: list[float], chosen: int = 0, signed: bool = False) -> Decision:
    names = tuple(f"action {i}" for i in range(len(levels)))
    return Decision(
        "action", names, tuple(levels), ("",) * len(names), tuple(i == chosen for i in range(len(names))), signed
    )


def teal(picture: Picture) -> NDArray[np.bool_]:
    """Where bars go up, at full strength."""
    return np.asarray((picture == ImageColor.getrgb(COLORS["above"])).all(-1))


def pink(picture: Picture) -> NDArray[np.bool_]:
    """Where bars go down, at full strength."""
    return np.asarray((picture == ImageColor.getrgb(COLORS["below"])).all(-1))


@settings(deadline=None, max_examples=10)
@given(
    st.sampled_from([(48, 64, 3), (240, 320, 3), (600, 500, 3), (64, 64, 1), (84, 84, 4), (7, 300, 3)]),
    st.booleans(),
    st.sampled_from([None, 1, 7, 64, 256, 5_000]),
    st.sampled_from([0, 1, 4, 17, 60]),
    st.booleans(),
    st.sampled_from([1, 1.37, 2]),
)
def test_any_parts_make_a_picture_that_video_takes(
    shape: tuple[int, int, int], seen: bool, size: int | None, actions: int, signed: bool, scale: float
):
    sheet = compose(
        np.zeros(shape, np.uint8),
        title="x" * 300,
        seen=SEEN if seen else None,
        latent=None if size is None else latent(np.linspace(-2, 2, size)),
        footer="y" * 300,
        scale=scale,
        decision=decision([1 / actions] * actions, signed=signed) if actions else None,
    )
    assert sheet.dtype == np.uint8
    assert sheet.shape[0] % 2 == sheet.shape[1] % 2 == 0


def test_every_part_is_there_and_a_missing_one_takes_no_space():
    parts: dict[str, Any] = {"seen": SEEN, "latent": latent(np.ones(4)), "decision": decision([0.5, 0.5])}
    once = compose(GAME, title="", **parts)
    assert compose(GAME, title="", **parts, scale=2).shape == (2 * once.shape[0], 2 * once.shape[1], 3)
    parts["footer"] = "f"
    whole = compose(GAME, title="", **parts)
    assert (whole == GAME[0, 0]).all(-1).any()
    assert (whole == SEEN[0, 0]).all(-1).any()
    for name in parts:
        assert compose(GAME, title="", **{**parts, name: None}).size < whole.size


@settings(deadline=None, max_examples=15)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=128), st.integers(256, 800), st.integers(20, 120))
def test_bars_are_as_high_as_their_values(values: list[float], width: int, height: int):
    sheet = draw_latent(latent(values), width, height)
    assert sheet.shape == (height, width, 3)
    half = (height - 1) // 2
    edges = np.linspace(0, width, len(values) + 1).round().astype(int)
    for value, left in zip(values, edges, strict=False):
        assert abs(teal(sheet[:, left]).sum() - half * max(value, 0)) <= 0.5 + 1e-9
        assert abs(pink(sheet[:, left]).sum() - half * max(-value, 0)) <= 0.5 + 1e-9


def test_thousands_of_values_and_maps_that_do_not_fit_are_rows_of_bars():
    values = np.zeros(2_000)
    values[[0, 1_999]] = 1.0
    sheet = teal(draw_latent(latent(values), 400, 80))
    assert sheet[:8, :2].any()
    assert sheet[70:, 390:].any()
    assert sheet.sum() < 40
    many = np.linspace(-1, 1, 600 * 64)
    np.testing.assert_array_equal(draw_latent(latent(many, (600, 8, 8)), 700, 80), draw_latent(latent(many), 700, 80))
    beyond, at = latent([5.0, -7.0, np.nan]), latent([1.0, -1.0, 0.0])
    np.testing.assert_array_equal(draw_latent(beyond, 100, 50), draw_latent(at, 100, 50))


@pytest.mark.parametrize("shape", [(1, 2, 3), (16, 4, 4), (3, 15, 20)])
def test_maps_show_each_value_where_it_is(shape: tuple[int, int, int]):
    places = {(0, 0, 0), tuple(n - 1 for n in shape), (shape[0] // 2, shape[1] // 2, 0)}
    seen = set()
    for place in places:
        for value, mark in ((1.0, teal), (-1.0, pink)):
            values = np.zeros(shape)
            values[place] = value
            sheet = draw_latent(latent(values.ravel(), shape), 700, 80)
            rows, columns = np.nonzero(mark(sheet))
            side = rows.max() - rows.min() + 1
            assert len(rows) == side**2 == (columns.max() - columns.min() + 1) ** 2, "one square"
        seen.add((rows.min(), columns.min()))
    assert len(seen) == len(places)


def test_components_are_bars_to_the_left_of_the_maps():
    component, learned = np.zeros(16 + 3 * 16), np.zeros(16 + 3 * 16)
    component[3], learned[16 + 5] = 1.0, 1.0
    one, other = (
        np.nonzero(teal(draw_latent(latent(values, (3, 4, 4)), 700, 80)))[1] for values in (component, learned)
    )
    assert len(one) > 0
    assert len(other) > 0
    assert one.max() < 175 - 12 <= 175 <= other.min()


def test_bars_of_actions_are_as_long_as_their_levels():
    lengths = [teal(compose(GAME, title="", decision=decision([0, p], chosen=0))).sum() for p in (0.25, 0.5, 1.0)]
    assert lengths[1] == pytest.approx(2 * lengths[0], rel=0.05)
    assert lengths[2] == pytest.approx(4 * lengths[0], rel=0.05)
    sheet = compose(GAME, title="", decision=decision([1.0, -0.5], signed=True))
    assert teal(sheet).sum() == pytest.approx(2 * pink(sheet).sum(), rel=0.1)


def test_of_many_actions_the_likeliest_and_the_chosen_are_shown():
    levels = [0.0] * 60
    levels[20] = levels[40] = 0.5
    sheet = compose(GAME, title="", decision=decision(levels, chosen=59))
    assert ((sheet[..., 0] > 200) & (sheet[..., 1] > 150) & (sheet[..., 2] < 130)).any(), "its name, in yellow"
    assert teal(sheet).sum() > 100


# Videos


def read(path: Path) -> tuple[NDArray[Any], float, str, str | None]:
    """Frames (N, H, W, 3), frames per second, codec and pixel format."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        return frames, float(stream.average_rate or 0), stream.codec_context.name, stream.codec_context.pix_fmt


@pytest.mark.parametrize("observation", ["latent", "pixels", "random-latent"])
def test_an_agent_is_filmed(run: Path, encoder_folder: Path, tmp_path: Path, observation: Any):
    if observation == "pixels":
        short: dict[str, Any] = {"steps": 16, "n_steps": 8, "batch_size": 16, "env_kwargs": {"kind": "dict"}}
        run = train(tmp_path / "run", None, observation="pixels", **short)
    elif observation == "random-latent":
        run = train(tmp_path / "run", encoder_folder, observation="random-latent")
    file, returns = film(run, episodes=2, seconds=0)
    assert file == run / "agent.mp4"
    assert len(returns) == 2
    assert all(0 <= r <= 8 for r in returns)
    frames, rate, codec, pixel_format = read(file)
    # A 48x64 picture, a 16x16 one, each 240 rows high, and the actions; gaps of 6. A random encoder has no decoder.
    height = 286 if observation == "pixels" else 286 + 94
    width = 6 + 320 + 6 + (0 if observation == "random-latent" else 240 + 6) + 190 + 6
    assert frames.shape == (16, height, width, 3)
    assert (rate, codec, pixel_format) == (10, "h264", "yuv420p")
    # Left, the game: one half of each picture is bright, each half at some time. Right, what the agent sees of it.
    left, right = frames[:, 40:278, 6:326], frames[:, 40:278, 332:572]
    brighter = left[:, :, :150].mean((1, 2, 3)) - left[:, :, 170:].mean((1, 2, 3))
    assert (np.abs(brighter) > 80).all()
    assert len(set(np.sign(brighter))) == 2
    if observation == "pixels":
        seen = right[:, :, :110].mean((1, 2, 3)) - right[:, :, 130:].mean((1, 2, 3))
        np.testing.assert_allclose(seen, brighter, atol=20)
    assert frames[:, :20].max() > 150, "a line of text"
    assert frames[:, 40:100, -190:].max() > 150, "actions"


def test_short_episodes_are_followed_by_more_and_a_long_one_is_cut(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file, returns = film(run, tmp_path / "a.mp4", episodes=1, seconds=2.1)
    assert (len(read(file)[0]), len(returns)) == (21, 2)
    monkeypatch.setattr(show_module, "_MOST_SECONDS", 0.5)
    file, returns = film(run, tmp_path / "b.mp4", episodes=1)
    assert (len(read(file)[0]), returns) == (5, [])


def test_environments_that_cannot_draw_themselves(
    run: Path, encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    story = train(tmp_path / "run", encoder_folder, env="Story-v0")  # which has no render mode
    with pytest.raises(InputError, match="Story-v0"):
        film(story, tmp_path / "a.mp4")
    for picture in (None, "text"):
        monkeypatch.setattr(SideEnv, "render", lambda self, picture=picture: picture)
        with pytest.raises(InputError, match="Side-v0"):
            film(run, tmp_path / "a.mp4")
    assert not (tmp_path / "a.mp4").exists()


def test_where_no_video_can_be_written(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(show_module, "Show", lambda *_, **__: pytest.fail("played before it looked"))
    (tmp_path / "file").write_text("")
    for path in (run, tmp_path / "file" / "deeper" / "a.mp4"):
        with pytest.raises(InputError, match=path.name):
            film(run, path)
    with pytest.raises(InputError, match="episodes"):
        film(run, episodes=0)
    monkeypatch.setattr(show_module.os, "access", lambda *_: False)  # the tests may run as root
    with pytest.raises(InputError, match=r"a\.mp4"):
        film(run, tmp_path / "new" / "a.mp4")


@pytest.mark.parametrize("rate", [35 / 4, 0.5])
def test_flat_colors_come_back(tmp_path: Path, rate: float):
    colors = np.array([[0, 0, 0], [255, 255, 255], [200, 40, 40], [40, 200, 40], [40, 40, 200]], np.uint8)
    frames = [np.full((32, 48, 3), color, np.uint8) for color in colors]
    file = write_video(tmp_path / "deep" / "a.mp4", frames, frames_per_second=rate)
    back, got_rate, *_ = read(file)
    assert got_rate == pytest.approx(rate, rel=1e-3)
    np.testing.assert_allclose(back.mean((1, 2)), colors, atol=8)
    assert [f.name for f in (tmp_path / "deep").iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("there", [False, True])
def test_nothing_is_left_when_writing_fails(tmp_path: Path, there: bool):
    if there:
        (tmp_path / "a.mp4").write_bytes(b"before")

    def frames() -> Any:
        yield np.zeros((16, 16, 3), np.uint8)
        raise RuntimeError("the game crashed")

    with pytest.raises(RuntimeError, match="the game crashed"):
        write_video(tmp_path / "a.mp4", frames(), frames_per_second=5)
    with pytest.raises(InputError, match="frames"):
        write_video(tmp_path / "a.mp4", [], frames_per_second=5)
    assert [f.name for f in tmp_path.iterdir()] == (["a.mp4"] if there else [])
    assert not there or (tmp_path / "a.mp4").read_bytes() == b"before"
