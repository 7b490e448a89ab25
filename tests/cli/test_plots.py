"""The plots of the command line, also of runs with little in them."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("stable_baselines3")
pytest.importorskip("matplotlib")

from agents import Evaluation
from latent_obs.util.errors import MissingExtraError
from latent_obs_cli import plots
from latent_obs_cli.plots import plot_agent, plot_vae, training_returns

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
    save = plots.save_figure
    monkeypatch.setattr(plots, "save_figure", lambda figure, target: drawn.append(figure) or save(figure, target))
    run, target = agent_run(tmp_path / "run", 4), tmp_path / "pictures" / "agent.png"
    assert training_returns(run) == ([10.0, 30.0], [1.5, 21.5]), "of every part of the run"
    assert plot_agent(run, target, chance=CHANCE, final=FINAL) == target
    is_picture(target)
    texts = [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()]
    assert any("random policy: 1" in text for text in texts)
    assert any("best agent" in text and "10" in text for text in texts)
    (tmp_path / "empty").mkdir()
    one = Evaluation((1.0,), (3,))  # no standard error
    is_picture(plot_agent(tmp_path / "empty", tmp_path / "a.png", chance=one, final=one))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match="plots"):
        plot_agent(run, tmp_path / "b.png")
    assert not (tmp_path / "b.png").exists()


@pytest.mark.parametrize(("rows", "held_out"), [(0, 0), (1, 2)])
def test_the_losses(tmp_path: Path, rows: int, held_out: int):
    names = ("loss/total", "loss/reconstruction", "loss/kl_nats", "schedule/beta")
    lines = [{"step": i, **dict.fromkeys(names, 3.0 / (i + 1))} for i in range(rows)]
    lines += [{"step": i, "held_out/reconstruction": 2.0 + i} for i in range(held_out)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    is_picture(plot_vae(tmp_path, tmp_path / "pictures" / "vae.png"))
