"""Summary, verdict and page of a comparison: constructed studies whose answers are known."""

import html
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("stable_baselines3")
pytest.importorskip("rliable.metrics")
pytest.importorskip("matplotlib")

from agents.compare import Results, summarize
from agents.compare import statistics as intervals
from agents.compare.statistics import normalize
from latent_obs_cli.pages import page, write_comparison
from tests.support.compare_cases import results_of, run_of

FOUR = {
    "won": {"pixels": [10, 11, 12], "latent": [20, 21, 22], "random-latent": [5, 6, 7], "pca-latent": [14, 15, 16]},
    "level": {"pixels": [10, 11, 12], "latent": [9, 10, 11], "random-latent": [8, 9.5, 10], "pca-latent": [1, 2, 3]},
    "lost": {"pixels": [10, 11, 12], "latent": [3, 4, 5], "random-latent": [7, 8, 9], "pca-latent": [1, 2, 3]},
}


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 200)


@pytest.fixture(scope="module")
def summary() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(intervals, "RESAMPLES", 400)
        return summarize(results_of(FOUR, rates={"latent": 200.0, "pixels": 100.0}))


def test_arms_are_above_level_or_below_by_their_intervals(summary: dict[str, Any]):
    counts = summary["verdict"]["counts"]["latent"]
    assert {task: row["pixels"] for task, row in counts.items()} == {"won": "above", "level": "level", "lost": "below"}
    assert {task: row["random-latent"] for task, row in counts.items()} == {
        "won": "above",
        "level": "level",
        "lost": "below",
    }
    assert {task: row["pca-latent"] for task, row in counts.items()} == {
        "won": "above",
        "level": "above",
        "lost": "level",
    }
    assert all(row["learnt"] for row in counts.values())


def test_the_verdict_tells_wins_and_losses(summary: dict[str, Any]):
    verdict = summary["verdict"]
    assert verdict["headline"] == (
        "latent: at equal steps not below pixels on 2 of 3 tasks (above on 1); reached the pixel agent's final return in less "
        "time on 1 of 3 tasks; above a random encoder on 1 of 3 tasks; above PCA on 2 of 3 tasks."
    )
    assert "latent loses to pixels on lost (4.00 against 11.0)." in verdict["sentences"]
    assert "latent is below the random encoder on lost." in verdict["sentences"]
    assert (
        "random-latent loses to pixels on won (6.00 against 11.0) and lost (8.00 against 11.0)." in verdict["sentences"]
    )
    assert verdict["warnings"] == []


def test_times_and_steps_to_the_pixel_agents_return(summary: dict[str, Any]):
    """Curves rise evenly in four evaluations; the pixel agent's final return is 11, and it ends after 10 seconds."""
    won = summary["tasks"]["won"]["arms"]["latent"]["against_pixels"]
    assert (won["target"], won["pixels_ended_seconds"], won["speed"]) == (11, 10, 2)
    assert won["reached"] == {"step": 750, "seconds": 3.75}, "15.75 of 21"
    assert won["reached_by_seed"] == [
        {"step": 750, "seconds": 3.75},
        {"step": 750, "seconds": 3.75},
        {"step": 500, "seconds": 2.5},
    ]
    assert won["at_that_time"]["value"] == 21, "it had ended by then"
    assert won["difference"]["value"] == 10
    assert won["probability_of_improvement"] == {"value": 1, "low": 1, "high": 1}
    lost = summary["tasks"]["lost"]["arms"]["latent"]["against_pixels"]
    assert lost["reached"] is None
    assert lost["reached_by_seed"] == [None, None, None]
    assert summary["tasks"]["won"]["arms"]["pixels"]["against_pixels"]["reached"] == {"step": 1000, "seconds": 10}


def test_what_has_to_be_reached_is_where_the_pixel_agents_curve_ends():
    """New episodes may be easier than those of the curve, so that no point of it would ever be as good."""
    results = results_of({"t": {"pixels": [10, 12], "latent": [10, 12]}}, rates={"latent": 200.0})
    for arm in results.runs["t"].values():
        for run in arm:
            run["final"]["mean"] += 5
    arms = summarize(results)["tasks"]["t"]["arms"]
    assert arms["latent"]["against_pixels"]["target"] == 11
    assert arms["latent"]["against_pixels"]["reached"] == {"step": 1000, "seconds": 5}
    assert arms["pixels"]["against_pixels"]["reached"] == {"step": 1000, "seconds": 10}
    assert arms["pixels"]["mean"]["value"] == 16


def test_an_arm_that_is_as_good_later_is_not_called_sooner():
    same = {"t": {"pixels": [10, 10], "latent": [10, 10]}}
    slow = summarize(results_of(same, rates={"latent": 50.0, "pixels": 100.0}))
    assert slow["verdict"]["counts"]["latent"]["t"] == {"pixels": "level", "learnt": True, "sooner": False}
    assert slow["tasks"]["t"]["arms"]["latent"]["against_pixels"]["reached"]["seconds"] == 20
    assert slow["tasks"]["t"]["arms"]["latent"]["against_pixels"]["at_that_time"]["value"] == 5, (
        "half-way when pixels end"
    )
    fast = summarize(results_of(same, rates={"latent": 200.0, "pixels": 100.0}))
    assert fast["verdict"]["counts"]["latent"]["t"]["sooner"]


def test_scores_of_all_tasks_are_put_on_one_scale():
    scores = {"a": {"pixels": [20.0, 40.0], "latent": [35.0, 35.0]}, "b": {"pixels": [3.0, 3.0], "latent": [-3.0, 0.0]}}
    over = summarize(results_of(scores, chance=-10.0))["over_tasks"]
    assert over["scale"] == {"a": (-10, 30), "b": (-10, 3)}
    latent = over["arms"]["latent"]
    expected = [45 / 40, 45 / 40, 7 / 13, 10 / 13]
    assert latent["mean"]["value"] == pytest.approx(sum(expected) / 4)
    assert latent["iqm"]["value"] == pytest.approx((10 / 13 + 45 / 40) / 2)
    assert latent["optimality_gap"]["value"] == pytest.approx((6 / 13 + 3 / 13) / 4)
    assert latent["probability_of_improvement"]["value"] == pytest.approx((0.5 + 0) / 2)
    assert over["arms"]["pixels"]["mean"]["value"] == pytest.approx(1)
    assert normalize(-10, -10, 3) == 0


def test_tasks_without_a_scale_are_left_out_and_said_to_be():
    scores = {
        "a": {"pixels": [20.0], "latent": [35.0]},
        "b": {"pixels": [-3.0], "latent": [9.0]},
        "c": {"pixels": [1.0]},
    }
    summary = summarize(results_of(scores))
    assert summary["over_tasks"]["tasks"] == ["a"]
    assert set(summary["over_tasks"]["left_out"]) == {"b", "c"}
    assert "not above the random policy" in summary["over_tasks"]["left_out"]["b"]
    assert "latent" in summary["over_tasks"]["left_out"]["c"]
    assert any("On b the pixel agent (-3.00) is not above" in text for text in summary["verdict"]["warnings"])


def test_arms_that_skip_other_numbers_of_frames_are_warned_of():
    results = results_of({"t": {"pixels": [1.0], "latent": [1.0]}})
    results.runs["t"]["latent"][0]["settings"] = {"frame_skip": 2}
    assert any("skip different numbers of frames" in text for text in summarize(results)["verdict"]["warnings"])


def test_of_one_seed_there_is_no_verdict():
    scores = {"a": {"pixels": [1.0], "latent": [5.0]}, "b": {"pixels": [1.0, 2.0], "latent": [5.0]}}
    verdict = summarize(results_of(scores))["verdict"]
    expected = (
        "latent: no verdict, as one seed says nothing of another: a (5.00 against 1.00) and b (5.00 against 1.50)."
    )
    assert verdict["headline"] == expected
    assert verdict["counts"]["latent"]["a"] == {"pixels": "one seed", "learnt": True}
    mixed = scores | {"c": {"pixels": [1.0, 2.0], "latent": [5.0, 6.0]}}
    verdict = summarize(results_of(mixed))["verdict"]
    assert verdict["headline"].startswith(
        "latent: at equal steps not below pixels on 1 of 1 task (above on 1); reached"
    )
    assert (
        "latent: no verdict, with one seed, on a (5.00 against 1.00) and b (5.00 against 1.50)." in verdict["sentences"]
    )


def test_seeds_that_are_missing_are_left_out():
    scores = {"a": {"pixels": [1.0, 2.0, 3.0], "latent": [5.0]}, "b": {"pixels": [1.0, 2.0, 3.0], "latent": [5.0, 6.0]}}
    summary = summarize(results_of(scores))
    assert summary["over_tasks"]["arms"]["latent"]["seeds"] == 1
    assert summary["over_tasks"]["arms"]["pixels"]["seeds"] == 3
    assert summary["seeds"].startswith("Some arms have fewer seeds")
    assert summary["tasks"]["a"]["arms"]["latent"]["iqm"] == {"value": 5, "low": 5, "high": 5}


def test_nothing_finished_and_no_pixel_agent():
    empty = results_of({"t": {"pixels": [1.0], "latent": [2.0]}})
    nothing = Results(empty.study, {"t": {"pixels": [], "latent": []}})
    assert summarize(nothing)["verdict"]["headline"] == "No run is finished yet."
    assert "No run is finished yet." in page(nothing, summarize(nothing), {})
    alone = summarize(results_of({"t": {"latent": [2.0, 3.0], "random-latent": [1.0, 1.5]}}))
    assert "no pixel agent" in alone["verdict"]["headline"]
    assert alone["verdict"]["counts"]["latent"]["t"]["random-latent"] == "above"
    only = results_of({"t": {"pixels": [1.0]}})
    assert "nothing to compare" in summarize(only)["verdict"]["headline"]


def test_a_run_before_the_first_evaluation_at_that_time_has_no_return_there():
    results = results_of({"t": {"pixels": [1.0], "latent": [2.0]}}, rates={"latent": 1.0, "pixels": 100.0})
    assert summarize(results)["tasks"]["t"]["arms"]["latent"]["against_pixels"]["at_that_time"] is None


def test_the_page_carries_everything_and_says_what_is_missing(tmp_path: Path):
    results = results_of(
        {"won": FOUR["won"] | {"latent, <b>4</b>": [30, 31]}, "lost & <u>": FOUR["lost"] | {"latent, <b>4</b>": [1, 2]}}
    )
    results.missing["won, pixels, seed 3"] = "failed: RuntimeError: out of <memory>"
    results.missing["won, pixels, seed 4"] = "not finished"
    results.runs["won"]["pixels"][0] = run_of(
        "won", "pixels", 0, 10, [1, 2], final={"mean": 10, "returns": [9, 11], "successes": [True, False]}
    )
    target, summary = write_comparison(results, tmp_path)
    text = target.read_text()
    assert summary["verdict"]["headline"] in html.unescape(text)
    for expected in (
        "out of &lt;memory&gt;",
        "2 run(s) have no numbers",
        "not finished: won, pixels, seed 4",
        "an abacus",
        "latent, &lt;b&gt;4&lt;/b&gt;",
        "beads 1.0",
        "Memory: weighed",
        "latent loses to pixels on lost &amp; &lt;u&gt;",
        "frame_skip",
    ):
        assert expected in text, expected
    assert "<memory>" not in text
    assert "<b>4" not in text
    assert "<u>" not in text
    assert text.count("data:image/png;base64,") == 3
    assert "http" not in text.split("base64")[0]
    raw = json.loads((tmp_path / "compare.json").read_text())
    assert raw["summary"]["tasks"]["won"]["arms"]["latent"]["scores"] == [20, 21, 22]
    assert raw["results"]["runs"]["won"]["latent"][0]["evaluations"][0] == {
        "step": 250,
        "mean_return": 5.0,
        "seconds": 2.5,
    }
    pictures = sorted(file.name for file in (tmp_path / "plots").iterdir())
    assert pictures == ["lost-u.png", "over-tasks.png", "overview.png", "won.png"]
    for picture in (tmp_path / "plots").iterdir():
        with Image.open(picture) as image:
            assert image.width > 800
