"""The page of a comparison, and the plots of the command line, also of runs with little in them."""

import html
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("stable_baselines3")
pytest.importorskip("scipy")
pytest.importorskip("matplotlib")

from agents import Evaluation
from agents.compare import statistics
from agents.compare.runs import plan_runs
from latent_obs.util.atomic import write_json
from latent_obs.util.errors import MissingExtraError
from latent_obs_cli import pages
from latent_obs_cli.main import main
from latent_obs_cli.pages import plot_agent, plot_vae, training_returns, write_comparison
from tests.support.compare_cases import results_of

CHANCE, FINAL = Evaluation((0.0, 2.0), (1, 1)), Evaluation((9.0, 11.0), (1, 1))


def is_picture(file: Path) -> None:
    with Image.open(file) as image:
        assert image.format == "PNG"
        assert np.asarray(image.convert("RGB")).std() > 5, "something is drawn"


def agent_run(folder: Path, evaluations: int) -> Path:
    folder.mkdir()
    rows = [{"step": 10 * i, "mean_return": i, "standard_error": 0.5, "returns": [i]} for i in range(evaluations)]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for start in (0, 20):
        logs = folder / "logs" / f"from_{start:09d}"
        logs.mkdir(parents=True)
        # Stable-Baselines3 leaves cells empty where there was nothing to log.
        text = "rollout/ep_rew_mean,time/total_timesteps\n,5\n" + f"{start + 1}.5,{start + 10}\n"
        (logs / "progress.csv").write_text(text)
    return folder


def test_the_learning_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn: list[Any] = []
    save = pages.save_figure
    monkeypatch.setattr(pages, "save_figure", lambda figure, target: drawn.append(figure) or save(figure, target))
    run, target = agent_run(tmp_path / "run", 4), tmp_path / "pictures" / "agent.png"
    assert training_returns(run) == ([10.0, 30.0], [1.5, 21.5]), "of every part of the run"
    assert plot_agent(run, target, CHANCE, FINAL) == target
    is_picture(target)
    texts = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert any("random policy: 1" in text for text in texts)
    assert any("best agent" in text and "10" in text for text in texts)
    (tmp_path / "empty").mkdir()
    is_picture(plot_agent(tmp_path / "empty", tmp_path / "a.png", CHANCE, FINAL))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match="plots"):
        plot_agent(run, tmp_path / "b.png", CHANCE, FINAL)
    assert not (tmp_path / "b.png").exists()


@pytest.mark.parametrize(("rows", "held_out"), [(0, 0), (1, 2)])
def test_the_losses(tmp_path: Path, rows: int, held_out: int):
    names = ("loss/total", "loss/reconstruction", "loss/kl_nats", "schedule/beta")
    lines = [{"step": i, **dict.fromkeys(names, 3.0 / (i + 1))} for i in range(rows)]
    lines += [{"step": i, "held_out/reconstruction": 2.0 + i} for i in range(held_out)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    is_picture(plot_vae(tmp_path, tmp_path / "pictures" / "vae.png"))


def test_a_page_of_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(statistics, "RESAMPLES", 100)
    results = results_of({"t": {"pixels": [1, 2, 3], "random-latent": [5, 6, 7]}})
    out = tmp_path / "out"
    *finished, failed = plan_runs(results.study, out)
    for run in finished:
        values = {"final": {"returns": [0.0, 0.0]}} if run.kind == "random" else results.runs["t"][run.arm][run.seed]
        write_json(run.file(".json"), values | {"settings": run.signature()})
    write_json(failed.file(".failed.json"), {"reason": "out of <memory>"})
    write_json(out / "study.json", results.study.to_json())
    assert main(["compare", "--page-only", "--out", str(out)]) == 0
    said = " ".join(capsys.readouterr().out.split())  # sentences are wrapped
    assert "random-latent is better than pixels on t (5.50 and 2.00)." in said
    assert str(out / "compare.html") in said
    page = (out / "compare.html").read_text()
    assert failed.name in page
    assert "out of &lt;memory&gt;" in page
    assert "<memory>" not in page
    assert page.count("data:image/png;base64,") >= 1
    numbers = json.loads((out / "compare.json").read_text())
    assert numbers["summary"]["tasks"]["t"]["arms"]["pixels"]["seeds"] == [0, 1, 2]
    assert numbers["results"]["missing"] == {failed.name: "failed: out of <memory>"}


def test_the_page_carries_everything_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 100)
    arms = {"pixels": [10, 11], "latent": [20, 21], "latent, <b>4</b>": [3, 4]}
    results = results_of({"won": arms, "lost & <u>": arms})
    results.missing["won, pixels, seed 4"] = "not finished"
    results.runs["won"]["pixels"][0]["final"]["successes"] = [True, False]
    target, summary = write_comparison(results, tmp_path)
    raw = target.read_text()
    assert not re.search("<u>|<b>4", raw)
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", raw)
    page = html.unescape(raw)
    texts = (*summary["verdict"]["sentences"], "won, pixels, seed 4", "an abacus", "frame_skip", "Memory: weighed")
    for text in texts:
        assert text in page, text
    pictures = sorted(file.name for file in (tmp_path / "plots").iterdir())
    assert pictures == ["lost-u-steps.png", "lost-u-time.png", "over-tasks.png", "won-steps.png", "won-time.png"]
    saved = json.loads((tmp_path / "compare.json").read_text())["results"]["runs"]["won"]["latent"][0]
    assert saved["evaluations"][0] == {"step": 250, "mean_return": 5.0, "seconds": 2.5}


def test_a_page_without_pixel_agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 100)
    results = results_of({"alone": {"latent": [20, 21], "random-latent": [3, 4]}})
    target, summary = write_comparison(results, tmp_path)
    assert set(summary["tasks"]["alone"]["arms"]) == {"latent", "random-latent"}
    assert "random-latent" in target.read_text()
