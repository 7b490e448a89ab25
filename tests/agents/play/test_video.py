"""Videos: what PyAV reads back, for each kind of agent, and nothing half-written."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("stable_baselines3")
pytest.importorskip("av")

import av

import agents.play.video as video_module
from agents.play.video import film, write_video
from agents.training import train_agent
from latent_obs.util.errors import InputError
from tests.support.side_env import SideEnv, tiny

#: A 48x64 picture, a 16x16 one, each 240 rows high, and the actions; gaps of 6. Two lines of text above, a latent
#: below.
WIDTH = 6 + 320 + 6 + 240 + 6 + 190 + 6
HEIGHT, LATENT = 286, 94


def read(path: Path) -> tuple[NDArray[Any], float, str, str | None]:
    """Frames (N, H, W, 3), frames per second, codec and pixel format."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        return frames, float(stream.average_rate or 0), stream.codec_context.name, stream.codec_context.pix_fmt


def train(folder: Path, encoder: Path | None, **settings: Any) -> Path:
    values: dict[str, Any] = {"steps": 16, "n_steps": 8, "batch_size": 16, "eval_every": 0, **settings}
    return train_agent(tiny(encoder=encoder, out=folder, **values), say=lambda text: None).run


@pytest.fixture(scope="module")
def run(encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("filmed") / "run", encoder_folder)


@pytest.mark.parametrize("observation", ["latent", "pixels"])
def test_an_agent_is_filmed(run: Path, tmp_path: Path, observation: Any):
    if observation == "pixels":
        run = train(tmp_path / "run", None, observation="pixels", env_kwargs={"kind": "dict"})
    file, returns = film(run, episodes=2, seconds=0)
    assert file == run / "agent.mp4"
    assert len(returns) == 2
    assert all(0 <= r <= 8 for r in returns)
    frames, rate, codec, pixel_format = read(file)
    assert frames.shape == (16, HEIGHT + (LATENT if observation == "latent" else 0), WIDTH, 3)
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
    assert frames[:, 40:100, 580:].max() > 150, "actions"


def test_an_agent_on_a_random_encoder_can_be_filmed_too(encoder_folder: Path, tmp_path: Path):
    run = train(tmp_path / "run", encoder_folder, observation="random-latent")
    file, returns = film(run, episodes=1, seconds=0)
    assert len(returns) == 1
    assert read(file)[0].shape == (8, HEIGHT + LATENT, WIDTH - 246, 3)  # no decoder, nothing to put beside the game


def test_short_episodes_are_followed_by_more(run: Path, tmp_path: Path):
    file, returns = film(run, tmp_path / "a.mp4", episodes=1, seconds=2.1)
    assert len(read(file)[0]) == 21
    assert len(returns) == 2


def test_a_long_episode_is_cut(encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(video_module, "_MOST_SECONDS", 1)
    run = train(tmp_path / "run", encoder_folder, env_kwargs={"length": 1_000_000})
    file, returns = film(run, tmp_path / "elsewhere.mp4", episodes=1)
    assert returns == []
    assert len(read(file)[0]) == 10  # a second


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
    monkeypatch.setattr(video_module, "Show", lambda *_, **__: pytest.fail("played before it looked"))
    (tmp_path / "file").write_text("")
    for path in (run, tmp_path / "file" / "deeper" / "a.mp4"):
        with pytest.raises(InputError, match=path.name):
            film(run, path)
    with pytest.raises(InputError, match="episodes"):
        film(run, episodes=0)
    monkeypatch.setattr(video_module.os, "access", lambda *_: False)  # the tests may run as root
    with pytest.raises(InputError, match=r"a\.mp4"):
        film(run, tmp_path / "new" / "a.mp4")


@pytest.mark.parametrize("rate", [35 / 4, 0.5])
def test_flat_colors_come_back(tmp_path: Path, rate: float):
    colors = np.array(
        [[0, 0, 0], [255, 255, 255], [200, 40, 40], [40, 200, 40], [40, 40, 200], [128, 128, 128]], np.uint8
    )
    frames = [np.full((32, 48, 3), color, np.uint8) for color in colors]
    file = write_video(tmp_path / "deep" / "a.mp4", frames, frames_per_second=rate)
    back, got_rate, codec, pixel_format = read(file)
    assert back.shape == (6, 32, 48, 3)
    assert (codec, pixel_format) == ("h264", "yuv420p")
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
    assert [f.name for f in tmp_path.iterdir()] == (["a.mp4"] if there else [])
    assert not there or (tmp_path / "a.mp4").read_bytes() == b"before"


def test_a_video_of_nothing_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="no frames"):
        write_video(tmp_path / "a.mp4", [], frames_per_second=5)
    assert list(tmp_path.iterdir()) == []
