"""Agents on Hugging Face: pushed with a card, loaded only if trusted. The real client against a small server."""

import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("stable_baselines3")
pytest.importorskip("huggingface_hub")

from agents import evaluate_agent, load_policy
from agents.play.show import Show
from latent_obs.encoder.card import encoder_push, returns_of
from latent_obs.encoder.folder import copy_encoder_folder
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.util.errors import InputError
from latent_obs_cli.main import main
from tests.support.agent_runs import algorithm_config, train
from tests.support.agent_runs import copied as copied
from tests.support.agent_runs import finished as finished
from tests.support.compare_cases import results_of
from tests.support.hub_server import Hub, Repository
from tests.support.hub_server import hub as hub

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the client itself
REPO = "somebody/agent"


def push(run: Path, *more: str) -> int:
    return main(["push", str(run), REPO, "--license", "mit", *more])


def card(hub: Hub) -> tuple[dict[str, Any], str]:
    text = hub.files(REPO)["README.md"].decode()
    return yaml.safe_load(text.split("---\n")[1]), text


def test_a_pushed_agent_plays_as_here_if_it_is_trusted(
    hub: Hub, copied: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    (copied / "agent.mp4").write_bytes(b"a video")
    (copied / "notes.txt").write_text("mine")
    assert push(copied) == 0
    out, _ = capfd.readouterr()
    assert "pickled settings" in out
    assert "--trust" in out
    pushed = {"config.json", "best.zip", "evaluations.jsonl", "replay.mp4", "encoder/encoder.safetensors"}
    assert pushed <= hub.files(REPO).keys()
    assert not {"last.zip", "notes.txt"} & hub.files(REPO).keys()
    assert str(tmp_path) not in hub.files(REPO)["config.json"].decode()
    _, text = card(hub)
    assert "pickled settings" in text
    assert "replay.mp4" in text

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    shutil.rmtree(copied / "logs")
    here = evaluate_agent(copied, episodes=2, device="cpu")
    assert evaluate_agent(REPO, episodes=2, device="cpu", trust=True) == here
    assert load_policy(f"{REPO}@main", device="cpu", trust=True).notes["steps"] > 0
    words = f"evaluate --run {REPO} --episodes 2 --no-video --no-random-policy --device cpu"
    assert main([*words.split(), "--trust"]) == 0
    assert json.loads(Path("evaluation.json").read_text())["agent"]["returns"] == list(here.returns), "in this folder"
    FrozenEncoder.load(REPO, device="cpu")  # of safetensors, so without trust


def test_an_agent_that_rllib_trained_needs_no_cluster(hub: Hub, copied: Path, monkeypatch: pytest.MonkeyPatch):
    config = json.loads((copied / "config.json").read_text()) | {"engine": "rllib", "address": "10.0.0.5:6379"}
    (copied / "config.json").write_text(json.dumps(config))
    assert push(copied) == 0
    assert "10.0.0.5" not in hub.files(REPO)["config.json"].decode()
    assert "RLlib" in card(hub)[1]
    monkeypatch.chdir(copied.parent)
    assert main(f"evaluate --run {REPO} --trust --episodes 2 --no-video --device cpu".split()) == 0
    assert "random_policy" in json.loads(Path("evaluation.json").read_text())


def test_what_is_pushed_of_settings_and_checkpoints(
    hub: Hub, encoder_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    run = tmp_path / "run"
    train(algorithm_config("dqn", encoder=encoder_folder, out=run))
    (run / "best.zip").unlink()
    config = json.loads((run / "config.json").read_text())
    config["env_kwargs"] |= {"scenario": "/home/me/maps", "key": "s3cret"}
    (run / "config.json").write_text(json.dumps(config))
    capfd.readouterr()
    assert push(run) == 0
    out, _ = capfd.readouterr()
    assert '"key": "s3cret"' in out
    assert "left out: scenario" in out
    assert "/home/me" not in hub.files(REPO)["config.json"].decode()
    with zipfile.ZipFile(io.BytesIO(hub.files(REPO)["last.zip"])) as pushed, zipfile.ZipFile(run / "last.zip") as own:
        assert {name for name in own.namelist() if not name.startswith("replay/")} == set(pushed.namelist())
        assert set(own.namelist()) > set(pushed.namelist())
    assert load_policy(REPO, "last", device="cpu", trust=True).notes["steps"] > 0


def test_an_agent_that_is_not_trusted_is_not_even_downloaded(hub: Hub, copied: Path, capfd: pytest.CaptureFixture[str]):
    assert push(copied) == 0
    hub.requests.clear()
    for load in (evaluate_agent, load_policy, Show):
        with pytest.raises(InputError, match=r"^trust: .*pickled"):
            load(REPO)
    for verb in ("evaluate", "watch"):
        assert main([verb, "--run", REPO, *(["--no-video"] if verb == "evaluate" else [])]) == 2
        assert "--trust" in capfd.readouterr().err
    assert hub.requests == []


def test_a_repository_without_an_agent(hub: Hub, copied: Path):
    hub.repositories[REPO] = Repository(private=False)
    hub.repositories[REPO].commit("main", {"config.json": b"{}"}, "no agent")
    with pytest.raises(InputError, match="holds no agent"):
        load_policy(REPO, trust=True)
    with pytest.raises(InputError, match="no repository somebody/typo"):
        load_policy("somebody/typo", trust=True)


def test_returns_are_of_the_agent_that_is_pushed(copied: Path):
    during = returns_of(copied)
    assert during is not None
    assert during.during_training
    rows = [json.loads(line) for line in (copied / "evaluations.jsonl").read_text().splitlines()]
    assert during.mean == next(row["mean_return"] for row in rows if row["step"] == during.steps)
    assert main(f"evaluate --run {copied} --episodes 3 --no-video --device cpu".split()) == 0
    after = returns_of(copied)
    assert after is not None
    assert (after.episodes, after.during_training) == (3, False)
    numbers = json.loads((copied / "evaluation.json").read_text())
    assert after.mean == numbers["agent"]["mean_return"]
    assert after.random == numbers["random_policy"]["mean_return"]
    (copied / "evaluation.json").write_text(json.dumps({**numbers, "steps": after.steps + 1}))
    assert returns_of(copied) == during, "those of an earlier agent do not count"
    (copied / "evaluation.json").write_text(json.dumps({**numbers, "which": "last"}))
    assert returns_of(copied) == during, "nor those of the last agent"
    (copied / "evaluation.json").write_text(json.dumps({**numbers, "agent": None}))
    with pytest.raises(InputError, match=r"evaluation\.json .* damaged"):
        returns_of(copied)
    (copied / "best.zip").write_bytes(b"")
    with pytest.raises(InputError, match=r"best\.zip"):
        returns_of(copied)


def test_an_evaluation_needs_no_file(copied: Path, capfd: pytest.CaptureFixture[str]):
    (copied / "evaluation.json").mkdir()  # as in a folder without permission to write, which root has
    words = f"evaluate --run {copied} --episodes 1 --no-video --no-random-policy --device cpu".split()
    assert main(words) == 0
    assert "evaluation.json cannot be written" in capfd.readouterr().out
    assert main([*words, "--json", str(copied / "evaluation.json")]) == 2


def test_the_card_of_an_encoder_has_the_returns_of_those_who_used_it(
    copied: Path, encoder_folder: Path, tmp_path: Path
):
    pytest.importorskip("scipy")
    from agents.compare import summarize

    copy_encoder_folder(encoder_folder, tmp_path / "vae" / "encoder")
    sums = (encoder_folder / "SHA256SUMS").read_text().splitlines()
    own = next(line.split()[0] for line in sums if line.endswith("  encoder.safetensors"))
    results = results_of({"side": {"pixels": [1, 2, 3], "latent": [3, 4, 6], "stranger": [7, 8, 9]}})
    for arm, encoder in (("latent", own), ("stranger", "0" * 64)):
        for run in results.runs["side"][arm]:
            run["settings"] = {**run["settings"], "encoder": encoder}
    (tmp_path / "study").mkdir()
    values = {"summary": summarize(results), "results": results.to_json()}
    (tmp_path / "study" / "compare.json").write_text(json.dumps(values))

    what = encoder_push(tmp_path / "vae", "somebody/doom", "mit")
    text = str(what.card("c0ffee"))
    mean = values["summary"]["tasks"]["side"]["arms"]["latent"]["mean"]
    assert f"| latent | {mean['value']:.1f} [{mean['low']:.1f}, {mean['high']:.1f}] |" in text
    assert "| pixels |" in text
    assert "| random policy |" in text
    assert "stranger" not in text, "that one saw latents of another encoder"
    returns = returns_of(copied)
    assert returns is not None
    assert f"| ppo in {returns.env} | {returns.steps} |" in text
    (metric,) = yaml.safe_load(text.split("---\n")[1])["model-index"][0]["results"]
    assert metric["metrics"][0]["type"] == "mean_reward"
    assert ["report" in note for note in what.notes] == [True]  # and none that there are no returns
