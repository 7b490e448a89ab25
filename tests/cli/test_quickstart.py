"""The quickstart on the real game at the smallest sizes: its page, going on where it stopped, and what it refuses."""

import base64
import contextlib
import dataclasses
import io
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("stable_baselines3")
pytest.importorskip("vizdoom")
pytest.importorskip("matplotlib")
pytest.importorskip("av")

import av
from stable_baselines3 import PPO

from agents import read_evaluations
from agents.store import load_agent
from latent_obs.envs.faults import LastRealFrame
from latent_obs.util.atomic import LOCK_FILE, folder_lock
from latent_obs.util.errors import InputError
from latent_obs_cli import stages
from latent_obs_cli.plan import Sizes
from latent_obs_cli.quickstart import QuickstartConfig, QuickstartResult, quickstart
from vae_training.training.trainer import Trainer

pytestmark = pytest.mark.integration
TINY = QuickstartConfig(episodes=2)
SIZES = Sizes(frames=160, epochs=1, steps=256, episodes=2)


class Walked(NamedTuple):
    """A quickstart that came to its end."""

    config: QuickstartConfig
    result: QuickstartResult
    text: str


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Walked:
    config = dataclasses.replace(TINY, out=tmp_path_factory.mktemp("quickstart") / "run")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        result = quickstart(config, SIZES)
    return Walked(config, result, said.getvalue())


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("computed anew")


def test_the_page_shows_everything_and_needs_nothing_else(walked: Walked):
    out, page = walked.config.out, walked.result.page.read_text(encoding="utf-8")
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:)", page), "nothing from elsewhere"
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
    media = re.findall(r'src="data:(image/png|video/mp4);base64,([A-Za-z0-9+/=]+)"', page)
    pictures = {base64.b64decode(data) for kind, data in media if kind == "image/png"}
    assert (len(pictures), len(media)) == (5, 6)
    assert all(data.startswith(b"\x89PNG") and len(data) > 1_000 for data in pictures)
    with av.open(str(out / "agent" / "agent.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) > 20
    assert str(walked.result.agent) in page
    assert str(walked.result.chance) in page
    for command in (
        f"latent-obs evaluate --run {out / 'agent'}",
        f"latent-obs train-agent --out {out / 'agent'} --resume --steps 512",
        f"latent-obs train-agent --env VizdoomBasic-v1 --frame-skip 4 --encoder {out / 'vae' / 'encoder'}",
    ):
        assert command in page
        assert f"  {command}" in walked.text


def test_what_it_did(walked: Walked):
    out, result = walked.config.out, walked.result
    assert ("Try --minutes 8" in walked.text) is not (result.agent.sigmas_above(result.chance) > 3)
    assert len(result.agent.returns) == len(result.chance.returns) == 2
    assert all(f"[{stage}/5]" in walked.text for stage in range(1, 6))
    assert len(result.seconds) == 5
    assert len(list((out / "frames").glob("*.npy"))) == 8
    model = load_agent(out / "agent", "last", device="cpu")
    assert model.num_timesteps == 1_024  # one rollout, the least there is
    assert model.observation_space.shape == (256,)


def test_again_it_computes_nothing_anew(walked: Walked, monkeypatch: pytest.MonkeyPatch):
    out = walked.config.out
    rows = read_evaluations(out / "agent")
    frames = {f: f.stat().st_mtime_ns for f in (out / "frames").glob("*.npy")}
    encoder = (out / "vae" / "encoder" / "encoder.safetensors").read_bytes()
    monkeypatch.setattr(PPO, "learn", never)
    monkeypatch.setattr(Trainer, "step", never)
    monkeypatch.setattr("agents.film", lambda *_, **__: (out / "agent" / "agent.mp4", []))
    again = quickstart(walked.config)
    assert (again.agent, again.chance, again.page) == (walked.result.agent, walked.result.chance, walked.result.page)
    assert read_evaluations(out / "agent") == rows
    assert {f: f.stat().st_mtime_ns for f in (out / "frames").glob("*.npy")} == frames
    assert (out / "vae" / "encoder" / "encoder.safetensors").read_bytes() == encoder


def test_other_settings_are_refused(walked: Walked):
    before = {f: f.stat().st_mtime_ns for f in walked.config.out.rglob("*")}
    with pytest.raises(InputError, match=r"out.*\(minutes\)"):
        quickstart(dataclasses.replace(walked.config, minutes=3.0))
    assert {f: f.stat().st_mtime_ns for f in walked.config.out.rglob("*")} == before


@pytest.mark.parametrize(("name", "text"), [("notes.txt", "mine"), ("quickstart.json", "[]")])
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, name: str, text: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match="out"):
        quickstart(dataclasses.replace(TINY, out=tmp_path))
    assert [(f.name, f.read_text()) for f in tmp_path.iterdir()] == [(name, text)]


class ReachedTheAgent(Exception):
    """Stands in for training an agent."""


def reached(*_: Any, **__: Any) -> Any:
    raise ReachedTheAgent


def test_one_that_was_killed_as_it_began_begins_again_and_two_do_not_share_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(stages, "record", reached)
    config = dataclasses.replace(TINY, out=tmp_path)
    for left in (LOCK_FILE, ".quickstart.part.json"):
        (tmp_path / left).write_text("{")
    with folder_lock(tmp_path), pytest.raises(InputError, match=str(os.getpid())):
        quickstart(config)
    with pytest.raises(ReachedTheAgent):
        quickstart(config, SIZES)


def test_interrupted_at_any_stage_it_goes_on_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config, sizes = dataclasses.replace(TINY, out=tmp_path / "run"), dataclasses.replace(SIZES, frames=48)
    step, count = LastRealFrame.step, 0

    def interrupted(*args: Any) -> Any:
        nonlocal count
        count += 1
        if count == 30:
            raise KeyboardInterrupt
        return step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(LastRealFrame, "step", interrupted)
        patch.setattr(stages, "train", never)
        with pytest.raises(KeyboardInterrupt):
            quickstart(config, sizes)
    assert (config.out / "frames").exists()

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            quickstart(config)
    assert (config.out / "vae").exists()

    # Pictures of an encoder that an interrupted training has left.
    pictures = [config.out / "pictures" / f"{name}.png" for name in ("reconstructions", "traversal", "vae")]
    for file in pictures:
        file.write_bytes(b"old")
    monkeypatch.setattr("agents.train_agent", reached)
    with pytest.raises(ReachedTheAgent):
        quickstart(config)
    assert (config.out / "vae" / "encoder" / "config.json").exists()
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in pictures)
