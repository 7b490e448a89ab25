"""The quickstart on the real game at the smallest sizes: its page, going on where it stopped, and what it refuses."""

import base64
import dataclasses
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

import latent_obs_cli.quickstart as quickstart_module
from agents import read_evaluations
from agents.store import load_agent
from latent_obs.envs.faults import LastRealFrame
from latent_obs.util.errors import InputError
from latent_obs_cli.quickstart import QuickstartConfig, QuickstartResult, quickstart
from vae_training.training.trainer import Trainer

TINY = QuickstartConfig(frames=160, vae_epochs=1, steps=256, episodes=2)


class Walked(NamedTuple):
    """A quickstart that came to its end."""

    config: QuickstartConfig
    result: QuickstartResult
    text: str


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Walked:
    config = dataclasses.replace(TINY, out=tmp_path_factory.mktemp("quickstart") / "run")
    said: list[str] = []
    result = quickstart(config, say=said.append)
    return Walked(config, result, "\n".join(said))


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("computed anew")


def test_the_page_shows_everything_and_needs_nothing_else(walked: Walked):
    assert walked.result.page == walked.config.out / "summary.html"
    page = walked.result.page.read_text(encoding="utf-8")
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:)", page), "nothing from elsewhere"
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
    media = re.findall(r'src="data:(image/png|video/mp4);base64,([A-Za-z0-9+/=]+)"', page)
    assert [kind for kind, _ in media].count("video/mp4") == 1
    pictures = [base64.b64decode(data) for kind, data in media if kind == "image/png"]
    assert len(pictures) == 4
    assert all(data.startswith(b"\x89PNG") and len(data) > 1_000 for data in pictures)
    assert len(set(pictures)) == 4
    for text in (
        "Trained agent",
        "Random policy",
        "standard errors",
        "Learning curve",
        "Reconstructions",
        "Latent traversal",
    ):
        assert text in page


def test_the_video_plays(walked: Walked):
    page = walked.result.page.read_text(encoding="utf-8")
    (data,) = re.findall(r'src="data:video/mp4;base64,([A-Za-z0-9+/=]+)"', page)
    video = walked.config.out / "from_page.mp4"
    video.write_bytes(base64.b64decode(data))
    try:
        with av.open(str(video)) as container:
            assert sum(1 for _ in container.decode(video=0)) > 20
    finally:
        video.unlink()


def test_numbers_on_the_page_are_those_of_the_result(walked: Walked):
    page = walked.result.page.read_text(encoding="utf-8")
    assert str(walked.result.agent) in page
    assert str(walked.result.chance) in page
    assert len(walked.result.agent.returns) == len(walked.result.chance.returns) == 2
    assert set(walked.result.seconds) >= {"Record frames", "Train the CVAE", "Train PPO on the latents", "Evaluate"}


def test_it_names_three_commands_to_go_on_with(walked: Walked):
    out = walked.config.out
    commands = [
        f"latent-obs evaluate --run {out / 'agent'}",
        f"latent-obs train-agent --out {out / 'agent'} --resume --steps 512",
        f"latent-obs train-agent --env VizdoomBasic-v1 --frame-skip 4 --encoder {out / 'vae' / 'encoder'}",
    ]
    page = walked.result.page.read_text(encoding="utf-8")
    for command in commands:
        assert command in page
        assert f"  {command}" in walked.text


def test_it_says_whether_the_agent_has_learnt(walked: Walked):
    sigmas = walked.result.agent.sigmas_above(walked.result.chance)
    learnt = re.search(r"The agent is -?[\d.]+ standard errors above chance\.", walked.text)
    not_learnt = re.search(r"The agent is only .* standard errors above chance\. Try --steps 512", walked.text)
    assert bool(learnt) is (sigmas > 3)
    assert bool(not_learnt) is not (sigmas > 3)
    for stage in range(1, 6):
        assert f"[{stage}/5]" in walked.text


def test_stages_were_as_asked(walked: Walked):
    out = walked.config.out
    assert len(list((out / "frames").glob("*.npy"))) == 8
    model = load_agent(out / "agent", "last", device="cpu")
    assert model.num_timesteps == 1_024  # one rollout, the least there is
    assert model.observation_space.shape == (256,)


@pytest.mark.parametrize("time", [1, 2])
def test_again_it_computes_nothing_anew(walked: Walked, monkeypatch: pytest.MonkeyPatch, time: int):
    out = walked.config.out
    rows = read_evaluations(out / "agent")
    frames = {f: f.stat().st_mtime_ns for f in (out / "frames").glob("*.npy")}
    encoder = (out / "vae" / "encoder" / "encoder.safetensors").read_bytes()
    monkeypatch.setattr(PPO, "learn", never)
    monkeypatch.setattr(Trainer, "step", never)
    if time == 2:  # the stages before are what could go wrong the second time
        chance, trained = walked.result.chance, walked.result.agent
        monkeypatch.setattr(quickstart_module, "evaluate_agent", lambda *_, **__: trained)
        monkeypatch.setattr(quickstart_module, "evaluate_random", lambda *_, **__: chance)
    monkeypatch.setattr(quickstart_module, "film", lambda *_, **__: (out / "agent" / "agent.mp4", []))
    again = quickstart(walked.config, say=lambda text: None)
    assert (again.agent, again.chance, again.page) == (walked.result.agent, walked.result.chance, walked.result.page)
    assert read_evaluations(out / "agent") == rows
    assert {f: f.stat().st_mtime_ns for f in (out / "frames").glob("*.npy")} == frames
    assert (out / "vae" / "encoder" / "encoder.safetensors").read_bytes() == encoder


@pytest.mark.parametrize("change", [{"frames": 200}, {"steps": 512}, {"env": "VizdoomCorridor-v1"}, {"seed": 1}])
def test_other_settings_are_refused(walked: Walked, change: dict[str, Any]):
    (name,) = change
    before = {f: f.stat().st_mtime_ns for f in walked.config.out.rglob("*")}
    with pytest.raises(InputError, match=f"other settings .*{name}.*choose another --out"):
        quickstart(dataclasses.replace(walked.config, **change), say=never)
    assert {f: f.stat().st_mtime_ns for f in walked.config.out.rglob("*")} == before


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty and holds no quickstart"):
        quickstart(dataclasses.replace(TINY, out=tmp_path), say=never)
    assert [f.name for f in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("text", ["", "[]"])
def test_damaged_settings_are_one_clear_error(tmp_path: Path, text: str):
    (tmp_path / "quickstart.json").write_text(text)
    with pytest.raises(InputError, match=r"quickstart\.json|other settings"):
        quickstart(dataclasses.replace(TINY, out=tmp_path), say=never)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"frames": 0}, "frames"),
        ({"vae_epochs": 0}, "vae_epochs"),
        ({"steps": 0}, "steps"),
        ({"episodes": 1}, "episodes"),
    ],
)
def test_settings_are_checked_by_name(settings: dict[str, Any], named: str):
    with pytest.raises(InputError, match=named):
        QuickstartConfig(**settings)


class ReachedTheAgent(Exception):
    """Stands in for training an agent."""


def test_interrupted_at_any_stage_it_goes_on_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = dataclasses.replace(TINY, out=tmp_path / "run", frames=48)
    step, count = LastRealFrame.step, 0

    def interrupted(*args: Any) -> Any:
        nonlocal count
        count += 1
        if count == 30:
            raise KeyboardInterrupt
        return step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(LastRealFrame, "step", interrupted)
        patch.setattr(quickstart_module, "train", never)
        with pytest.raises(KeyboardInterrupt):
            quickstart(config, say=lambda text: None)
    assert (config.out / "frames").exists()

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            quickstart(config, say=lambda text: None)
    assert (config.out / "vae").exists()

    def reached(*_: Any, **__: Any) -> Any:
        raise ReachedTheAgent

    monkeypatch.setattr(quickstart_module, "train_agent", reached)
    with pytest.raises(ReachedTheAgent):
        quickstart(config, say=lambda text: None)
    assert (config.out / "vae" / "encoder" / "config.json").exists()
