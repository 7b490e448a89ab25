"""What pages and plots have in common: a color for each meaning, and pages that stand alone."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("stable_baselines3")
pytest.importorskip("scipy")

from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.text import Text

from agents import Evaluation
from agents.compare import statistics
from latent_obs.util import colors
from latent_obs.util.colors import COLORS, colors_of
from latent_obs.util.words import wrapped
from latent_obs_cli import pages, quickstart
from latent_obs_cli.pages import plot_agent, plot_vae, write_comparison
from tests.support.compare_cases import results_of
from vae_training.report import page as report_page
from vae_training.report.look import write_html
from vae_training.report.metrics.latents import describe
from vae_training.report.probes.probes import PIXELS, Head, ProbeResult, ProbeTable
from vae_training.report.probes.scores import Score

ARMS = ("pixels", "latent", "random-latent", "pca-latent", "mine", "yours")
TABLE = {*COLORS.values(), *colors_of([f"arm {i}" for i in range(20)]).values()}


class Alone(HTMLParser):
    """Checks that a page fetches nothing, and collects its text, titles and colored marks."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.text, self.open, self.keys = "", list[str](), dict[str, str]()
        self.feed(file.read_text(encoding="utf-8"))
        assert not self.open, "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        assert tag not in ("link", "iframe", "object"), tag
        for name in ("src", "href", "poster"):
            assert (values.get(name) or "data:").startswith("data:"), values[name]
        if tag == "i" and values.get("class") == "key":
            self.color = str(values["style"]).removeprefix("background: ")
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if (color := self.__dict__.pop("color", None)) is not None:
            self.keys.setdefault(data, color)
            assert self.keys[data] == color, data


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn while a test runs."""
    figures: list[Figure] = []
    for module in (pages, report_page):
        save = module.save_figure
        monkeypatch.setattr(
            module, "save_figure", lambda made, target, save=save: figures.append(made) or save(made, target)
        )
    monkeypatch.setattr(statistics, "RESAMPLES", 100)
    return figures


def colors_in(made: Figure) -> set[str]:
    """Colors of everything that a figure shows, except images and what is transparent."""
    found: set[str] = set()
    for part in made.findobj():
        if isinstance(part, (Figure, AxesImage)) or not part.get_visible():
            continue
        if isinstance(part, Text) and not part.get_text():
            continue
        if isinstance(part, LineCollection) and not part.get_segments():
            continue
        for name in ("color", "facecolor", "edgecolor", "markerfacecolor"):
            if (value := getattr(part, f"get_{name}", lambda: None)()) is not None:
                rows: list[Any] = list(value) if isinstance(value, np.ndarray) and value.ndim == 2 else [value]
                found |= {to_hex(row) for row in rows if to_hex(row, keep_alpha=True)[-2:] != "00"}
    return found


def test_every_plot_takes_its_colors_from_the_table(tmp_path: Path, drawn: list[Figure]):
    scores = {arm: [i + 1.0, i + 2.0] for i, arm in enumerate(ARMS)}
    write_comparison(results_of({"a": scores, "b": scores}), tmp_path / "compare")
    evaluation = Evaluation((1.0, 2.0), (1, 1))
    (tmp_path / "run").mkdir()
    plot_vae(tmp_path / "run", tmp_path / "vae.png")
    plot_agent(tmp_path / "run", tmp_path / "agent.png", evaluation, evaluation)
    rng = np.random.default_rng(0)
    latents = describe(rng.standard_normal((50, 4)) * [1, 1, 1, 0], np.zeros((50, 4)))
    drawn += [report_page._kl_bars(latents), report_page._aggregate_posterior(latents)]
    drawn.append(report_page._image(np.eye(3), cmap=report_page._signed_colors(), vmin=-1, vmax=1))
    heads: list[tuple[str, Head]] = [
        ("latent", "linear"),
        ("PCA", "linear"),
        ("random encoder", "linear"),
        (PIXELS, "cnn"),
    ]
    results = [ProbeResult("x", "continuous", *head, [Score("r2", 0.5, 0.4, 0.6)], 0, 9, 9) for head in heads]
    drawn.append(report_page._probe_bars(ProbeTable(results, {}, {}, "recordings")))
    bars = {str(bar.get_label()): to_hex(bar.patches[0].get_facecolor()) for bar in drawn[-1].axes[0].containers[::2]}  # pyright: ignore[reportAttributeAccessIssue]
    assert list(bars.values()) == list(colors_of(name for name, _ in heads).values())
    assert len(drawn) == 2 * 2 + 1 + 2 + 4
    for made in drawn:
        made.draw_without_rendering()
        # The patches behind axes are white until they are saved as transparent.
        assert colors_in(made) - {"#ffffff"} <= TABLE, made


def test_an_arm_has_one_color_in_every_plot_and_table(tmp_path: Path, drawn: list[Figure]):
    scores = {arm: [i + 1.0, i + 2.0] for i, arm in enumerate(ARMS)}
    file, _ = write_comparison(results_of({"a": scores, "b": dict(reversed(scores.items()))}), tmp_path)
    expected = colors_of(ARMS)
    assert len(set(expected.values())) == len(ARMS)
    for made in drawn[:-1]:
        lines = {str(line.get_label()): to_hex(line.get_color()) for line in made.axes[0].get_lines()}
        assert {arm: lines[arm] for arm in ARMS} == expected
    page = Alone(file)
    assert {arm: page.keys[arm] for arm in ARMS} == expected
    # The report calls the same things by other names.
    other = colors_of(["pixels (CNN)", "encoder", "random encoder", "PCA"])
    assert list(other.values()) == [expected[arm] for arm in ARMS[:4]]


def test_colors_of_the_table_are_readable_on_white_and_on_black():
    def light(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]  # sRGB
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    for name, color in COLORS.items():
        contrasts = 1.05 / (light(color) + 0.05), (light(color) + 0.05) / (light("#14171f") + 0.05)
        assert name in ("good", "doubtful", "bad") or min(contrasts) >= 3, (name, contrasts)  # WCAG 2, 1.4.11
        assert contrasts[0] >= 3, name  # white on these
    assert len(set(COLORS.values())) == len(COLORS)
    assert colors._SAME.keys().isdisjoint(COLORS)


def test_a_quickstart_page_shows_what_there_is(tmp_path: Path):
    picture = pages.save_figure(pages.figure(1)[0], tmp_path / "a.png")
    video = tmp_path / "a.mp4"
    video.write_bytes(b"film")
    values: dict[str, Any] = {"env": "Doom <1>", "latent_dim": None, "pictures": {}}
    early = Alone(write_html(tmp_path / "early.html", quickstart._TEMPLATE, values))
    assert "still at work" in early.text
    assert "Doom <1>" in early.text
    values |= {"latent_dim": 256, "pictures": {"reconstructions": picture, "agent": picture}, "video": video}
    values |= {
        "trained": Evaluation((81.0, 83.0), (1, 1)),
        "chance": Evaluation((0.0, 2.0), (1, 1)),
        "results": {"Time": "3 s"},
        "commands": ["go on"],
    }
    file = write_html(tmp_path / "late.html", quickstart._TEMPLATE, values)
    late = Alone(file)
    assert "still at work" not in late.text
    assert all(text in late.text for text in ("256 numbers", "82.0 ± 1.0", "1.0 ± 1.0", "3 s", "go on"))
    assert len(re.findall("<img", file.read_text())) == 2
    assert re.search(r"<video [^>]*autoplay muted playsinline src=\"data:video/mp4", file.read_text())


def test_sentences_are_wrapped(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "40")
    lines = wrapped("word " * 30, indent="  ").splitlines()
    assert len(lines) > 1
    assert all(len(line) <= 40 for line in lines)
    assert all(line.startswith("  ") for line in lines[1:])
