"""The summary page and the plots: what they hold, and what they make of runs with little in them."""

import base64
import html
import json
import re
from html.parser import HTMLParser
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
from latent_obs_cli.pages import Section, write_page
from latent_obs_cli.plots import plot_agent, plot_vae

CHANCE, FINAL = Evaluation((0.0, 2.0), (1, 1)), Evaluation((9.0, 11.0), (1, 1))


class Reader(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def page(tmp_path: Path, **changes: Any) -> str:
    values: dict[str, Any] = {
        "title": "Title",
        "lead": "Lead.",
        "results": {"Return": "3"},
        "sections": [],
        "commands": ["one", "two"],
        **changes,
    }
    return write_page(tmp_path / "deep" / "page.html", **values).read_text(encoding="utf-8")


def test_everything_is_on_the_page(tmp_path: Path):
    reader = Reader(page(tmp_path, sections=[Section("Head", "Text.")]))
    for text in ("Title", "Lead.", "Return", "3", "Head", "Text.", "one\ntwo"):
        assert text in reader.text
    assert [f.name for f in (tmp_path / "deep").iterdir()] == ["page.html"]


def test_what_looks_like_html_is_text(tmp_path: Path):
    nasty = "<script>alert('&\"')</script>"
    (tmp_path / "a.png").write_bytes(b"png")
    written = page(
        tmp_path,
        title=nasty,
        lead=nasty,
        results={nasty: nasty},
        sections=[Section(nasty, nasty, tmp_path / "a.png")],
        commands=[nasty],
    )
    assert "<script" not in written
    reader = Reader(written)
    assert "script" not in {tag for tag, _ in reader.tags}
    assert reader.text.count(nasty) == 8  # the title twice
    (image,) = [attributes for tag, attributes in reader.tags if tag == "img"]
    assert image["alt"] == nasty
    assert html.escape(nasty) in written


def test_media_are_carried_by_the_page(tmp_path: Path):
    for name in ("a.png", "b.mp4"):
        (tmp_path / name).write_bytes(name.encode())
    reader = Reader(
        page(tmp_path, sections=[Section("A", "", tmp_path / "a.png"), Section("B", "", tmp_path / "b.mp4")])
    )
    sources = {tag: str(attributes["src"]) for tag, attributes in reader.tags if "src" in attributes}
    assert set(sources) == {"img", "video"}
    for tag, kind, data in (("img", "image/png", b"a.png"), ("video", "video/mp4", b"b.mp4")):
        head, _, body = sources[tag].partition(",")
        assert head == f"data:{kind};base64"
        assert base64.b64decode(body) == data


def is_picture(file: Path) -> None:
    with Image.open(file) as image:
        assert image.format == "PNG"
        assert 400 < image.width < 1600
        assert 250 < image.height < 900
        assert np.asarray(image.convert("RGB")).std() > 5, "something is drawn"


def agent_run(folder: Path, evaluations: int, episodes: bool = True) -> Path:
    folder.mkdir()
    rows = [{"step": 10 * i, "mean_return": i, "standard_error": 0.5, "returns": [i]} for i in range(evaluations)]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for start in (0, 20):
        logs = folder / "logs" / f"from_{start:09d}"
        logs.mkdir(parents=True)
        # Stable-Baselines3 leaves cells empty where there was nothing to log.
        text = "rollout/ep_rew_mean,time/total_timesteps\n,5\n" + (f"{start + 1}.5,{start + 10}\n" if episodes else "")
        (logs / "progress.csv").write_text(text)
    return folder


@pytest.mark.parametrize("evaluations", [0, 1, 4])
@pytest.mark.parametrize("compared", [False, True])
def test_the_learning_curve(tmp_path: Path, evaluations: int, compared: bool):
    kwargs: dict[str, Any] = {"chance": CHANCE, "final": FINAL} if compared else {}
    target = tmp_path / "pictures" / "agent.png"
    assert plot_agent(agent_run(tmp_path / "run", evaluations), target, **kwargs) == target
    is_picture(target)
    assert [f.name for f in target.parent.iterdir()] == ["agent.png"]


def test_a_run_with_nothing_in_it_is_drawn_too(tmp_path: Path):
    (tmp_path / "run").mkdir()
    is_picture(plot_agent(tmp_path / "run", tmp_path / "a.png"))
    one = Evaluation((1.0,), (3,))  # no standard error
    is_picture(plot_agent(agent_run(tmp_path / "other", 0, False), tmp_path / "b.png", chance=one, final=one))


def test_training_returns_are_those_of_every_part_of_the_run(tmp_path: Path):
    assert plots._training_returns(agent_run(tmp_path / "run", 0)) == ([10.0, 30.0], [1.5, 21.5])


def test_the_picture_shows_what_it_compares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn: list[Any] = []
    monkeypatch.setattr(plots, "_save", lambda figure, target: drawn.append(figure) or target)
    plot_agent(agent_run(tmp_path / "run", 3), tmp_path / "a.png", chance=CHANCE, final=FINAL)
    (axes,) = drawn[0].axes
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert any("random policy: 1" in text for text in texts)
    assert any("best agent" in text and "10" in text for text in texts)
    assert axes.get_xlabel() == "environment steps"


@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("held_out", [0, 2])
def test_the_losses(tmp_path: Path, rows: int, held_out: int):
    names = ("loss/total", "loss/reconstruction", "loss/kl_nats", "schedule/beta")
    lines = [{"step": i, **dict.fromkeys(names, 3.0 / (i + 1))} for i in range(rows)]
    lines += [{"step": i, "held_out/reconstruction": 2.0 + i} for i in range(held_out)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    is_picture(plot_vae(tmp_path, tmp_path / "pictures" / "vae.png"))


def test_pictures_are_stacked_at_one_width(tmp_path: Path):
    Image.new("RGB", (40, 20), "red").save(tmp_path / "a.png")
    Image.new("RGBA", (20, 30), "blue").save(tmp_path / "b.png")
    target = plots.overview([tmp_path / "a.png", tmp_path / "b.png"], tmp_path / "deep" / "c.png")
    with Image.open(target) as image:
        sheet = np.asarray(image.convert("RGB"))
    assert sheet.shape == (20 + 60, 40, 3)
    assert (sheet[:20] == [255, 0, 0]).all()
    assert (sheet[20:] == [0, 0, 255]).all()


def test_without_matplotlib_there_is_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=re.escape("latent-obs[plots]")):
        plot_agent(agent_run(tmp_path / "run", 1), tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
