"""Summary and verdict of a comparison: constructed studies whose answers are known."""

import dataclasses
from typing import Any

import pytest

pytest.importorskip("stable_baselines3")
pytest.importorskip("scipy")

from agents.compare import Results, statistics, summarize
from tests.support.compare_cases import results_of

FOUR = {
    "won": {"pixels": [10, 11, 12], "latent": [20, 21, 22], "random-latent": [5, 6, 7], "pca-latent": [14, 15, 16]},
    "level": {"pixels": [10, 11, 12], "latent": [9, 10, 11], "random-latent": [8, 9.5, 10], "pca-latent": [1, 2, 3]},
    "lost": {"pixels": [10, 11, 12], "latent": [3, 4, 5], "random-latent": [7, 8, 9], "pca-latent": [1, 2, 3]},
}


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 300)


@pytest.fixture
def summary() -> dict[str, Any]:
    return summarize(results_of(FOUR, rates={"latent": 200.0, "pixels": 100.0}))


def test_arms_are_above_level_or_below_by_their_intervals(summary: dict[str, Any]):
    counts = summary["verdict"]["counts"]["latent"]
    assert counts == {
        "won": {"pixels": "above", "random-latent": "above", "pca-latent": "above", "sooner": True},
        "level": {"pixels": "level", "random-latent": "level", "pca-latent": "above", "sooner": False},
        "lost": {"pixels": "below", "random-latent": "below", "pca-latent": "level", "sooner": False},
    }
    assert summary["verdict"]["counts"]["random-latent"]["won"] == {"pixels": "below", "sooner": False}


def test_losses_are_reported_like_wins(summary: dict[str, Any]):
    headline, texts = summary["verdict"]["headline"], "\n".join(summary["verdict"]["sentences"])
    assert "latent is better than pixels on won (21.0 and 11.0)." in headline
    assert "latent and pixels cannot be distinguished on level (10.0 and 11.0)." in headline
    assert "latent is worse than pixels on lost (4.00 and 11.0)." in headline
    assert "less time on 1 of 3 tasks" in headline
    assert "latent is worse than a random encoder on lost (4.00 and 8.00)." in texts
    assert "latent is better than PCA on won (21.0 and 15.0), level (10.0 and 2.00)." in texts
    assert not set(summary["verdict"]["sentences"]) & {headline}
    assert (summary["verdict"]["warnings"], summary["verdict"]["learned_nothing"]) == ([], {})


@pytest.mark.parametrize(
    ("latent", "pixels", "chance", "failed", "place"),
    [
        ([3, 4, 5], [2, 3, 4], 15.0, {"latent", "pixels"}, "no result"),  # both far below the random policy
        ([3.0], [2.0], 15.0, {"latent", "pixels"}, "no result"),  # one seed is enough to see that
        ([3, 4, 5], [20, 21, 22], 15.0, {"latent"}, "below"),
        ([20, 21, 22], [14, 15, 16], 15.0, {"pixels"}, "above"),
        ([10, 40, 90], [20, 21, 22], 15.0, {"latent"}, "level"),  # the interval reaches down to the random policy
        ([82.5, 82.6, 82.7], [83.0, 83.1, 83.2], 0.0, set(), "level"),  # apart, but the task is too easy
        ([70, 71, 72], [83.0, 83.1, 83.2], 0.0, set(), "below"),
    ],
)
def test_what_has_learned_nothing_is_said_first(
    latent: list[float], pixels: list[float], chance: float, failed: set[str], place: str
):
    verdict = summarize(results_of({"t": {"pixels": pixels, "latent": latent}}, chance=chance))["verdict"]
    assert set(verdict["learned_nothing"]) == failed
    assert verdict["counts"]["latent"]["t"]["pixels"] == place
    assert ("sooner" in verdict["counts"]["latent"]["t"]) == (place != "no result")
    assert verdict["headline"].startswith("latent does not beat the random policy") == ("latent" in failed)
    assert ("pixels does not beat" in verdict["headline"]) == ("pixels" in failed)
    assert any("cannot tell them apart" in text for text in verdict["warnings"]) == (max(latent) == 82.7)


def test_the_random_policy_has_an_interval_too():
    results = results_of({"t": {"pixels": [12.0, 12.0], "latent": [20.0, 20.0]}})
    results.random["t"] = [5.0, 15.0]
    summary = summarize(results)
    assert summary["tasks"]["t"]["random"]["high"] == pytest.approx(10 + 1.96 * 5)
    assert set(summary["verdict"]["learned_nothing"]) == {"pixels"}


def test_times_and_steps_to_the_pixel_agents_return(summary: dict[str, Any]):
    """Curves rise evenly in four evaluations; the pixel agent's final return is 11, and it ends after 10 seconds."""
    won = summary["tasks"]["won"]["arms"]["latent"]["against_pixels"]
    assert (won["target"], won["pixels_ended_seconds"], won["speed"]) == (11, 10, 2)
    assert won["reached"] == {"step": 750, "seconds": 3.75}, "15.75 of 21"
    late, soon = {"step": 750, "seconds": 3.75}, {"step": 500, "seconds": 2.5}
    assert won["reached_by_seed"] == [late, late, soon]
    assert won["at_that_time"]["value"] == 21, "it had ended by then"
    assert won["difference"]["value"] == 10
    assert won["probability_of_improvement"] == {"value": 1, "low": 1, "high": 1}
    lost = summary["tasks"]["lost"]["arms"]["latent"]["against_pixels"]
    assert (lost["reached"], lost["reached_by_seed"]) == (None, [None, None, None])
    assert summary["tasks"]["won"]["arms"]["pixels"]["against_pixels"]["reached"] == {"step": 1000, "seconds": 10}
    results = results_of({"t": {"pixels": [1.0], "latent": [2.0]}}, rates={"latent": 1.0, "pixels": 100.0})
    assert summarize(results)["tasks"]["t"]["arms"]["latent"]["against_pixels"]["at_that_time"] is None


def test_what_has_to_be_reached_is_where_the_pixel_agents_curve_ends():
    """New episodes may be easier than those of the curve, so that no point of it would ever be as good."""
    results = results_of({"t": {"pixels": [10, 12], "latent": [10, 12]}}, rates={"latent": 200.0})
    for run in results.runs["t"]["pixels"]:
        run["final"]["mean"] += 5
    arms = summarize(results)["tasks"]["t"]["arms"]
    assert arms["latent"]["against_pixels"]["target"] == 11
    assert arms["latent"]["against_pixels"]["reached"] == {"step": 1000, "seconds": 5}
    assert arms["pixels"]["mean"]["value"] == 16


def test_sooner_is_less_training_time():
    for rate, sooner, then in ((50.0, False, 5), (200.0, True, 10)):
        summary = summarize(results_of({"t": {"pixels": [10, 10], "latent": [10, 10]}}, rates={"latent": rate}))
        assert summary["verdict"]["counts"]["latent"]["t"] == {"pixels": "level", "sooner": sooner}
        against = summary["tasks"]["t"]["arms"]["latent"]["against_pixels"]
        assert (against["reached"]["seconds"], against["at_that_time"]["value"]) == (1000 / rate, then)


def test_scores_of_all_tasks_are_normalized():
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


def test_how_far_latents_are_ahead_of_each_arm_over_all_tasks():
    scores = {
        "a": {"pixels": [10.0, 10], "latent": [12.0, 14], "pca-latent": [9.0, 11], "pca-motion": [13.0, 13]},
        "b": {"pixels": [4.0, 4], "latent": [4.0, 6], "pca-latent": [2.0, 2], "pca-motion": [5.0, 5]},
    }
    results = results_of(scores)
    results = dataclasses.replace(
        results, study=dataclasses.replace(results.study, arm_settings={"pca-motion": {"observation": "pca-latent"}})
    )
    summary = summarize(results)
    arms = summary["over_tasks"]["arms"]
    assert "latents_ahead" not in arms["latent"]
    # Normalized: latent 1.2, 1.4, 1.0, 1.5, of which the middle two count; PCA 0.9, 1.1, 0.5, 0.5.
    assert arms["pca-latent"]["latents_ahead"]["value"] == pytest.approx((1.2 + 1.4) / 2 - (0.9 + 0.5) / 2)
    assert arms["pca-latent"]["latents_ahead"]["low"] > 0
    assert arms["latent"]["worst"] == pytest.approx({"a": 1.2, "b": 1.0})
    counts = summary["verdict"]["counts"]["latent"]
    assert (counts["b"]["pca-latent"], counts["a"]["pca-motion"], counts["b"]["pca-motion"]) == (
        "above",
        "level",
        "level",
    )
    assert any("latent and pca-motion cannot be distinguished on a" in t for t in summary["verdict"]["sentences"])


def test_the_time_to_make_the_encoder_can_be_counted():
    for made, sooner in ((4.0, True), (6.0, False)):
        results = results_of({"t": {"pixels": [10, 10], "latent": [10, 10]}}, rates={"latent": 200.0})
        tasks = {"t": dataclasses.replace(results.study.tasks["t"], encoder_seconds=made)}
        summary = summarize(dataclasses.replace(results, study=dataclasses.replace(results.study, tasks=tasks)))
        against = summary["tasks"]["t"]["arms"]["latent"]["against_pixels"]
        assert against["reached_with_encoder"] == 5 + made, "pixels need 10"
        count = summary["verdict"]["counts"]["latent"]["t"]
        assert (count["sooner"], count["sooner_with_encoder"]) == (True, sooner)
        assert f"({int(sooner)} of 1 with the time to record" in summary["verdict"]["headline"]


def test_a_task_on_which_pixels_learned_nothing_is_not_normalized_by_them():
    results = results_of({"t": {"pixels": [11, 11], "latent": [14, 15]}})
    results.random["t"] = [5.0, 15.0]
    assert summarize(results)["over_tasks"]["left_out"] == ["t"]


def test_tasks_that_cannot_be_normalized_are_left_out():
    scores = {
        "a": {"pixels": [20.0], "latent": [35.0]},
        "b": {"pixels": [-3.0], "latent": [9.0]},
        "c": {"pixels": [1.0]},
        "d": {"pixels": [1.0], "latent": [9.0]},
    }
    results = results_of(scores)
    del results.random["d"]
    summary = summarize(results)
    assert summary["over_tasks"]["tasks"] == ["a"]
    assert summary["over_tasks"]["left_out"] == ["b", "c", "d"], "below chance, no latent agent, no random policy"
    assert summary["verdict"]["learned_nothing"] == {"pixels": ["b"]}
    results.runs["a"]["latent"][0]["settings"] = {"frame_skip": 2}
    assert any("frames" in text for text in summarize(results)["verdict"]["warnings"])


def test_one_seed_gives_no_verdict():
    scores = {"a": {"pixels": [1.0], "latent": [5.0]}, "b": {"pixels": [1.0, 2.0], "latent": [5.0]}}
    verdict = summarize(results_of(scores))["verdict"]
    assert verdict["sentences"] == []
    assert "one seed gives no verdict on a (5.00 and 1.00), b (5.00 and 1.50)" in verdict["headline"]
    assert verdict["counts"]["latent"]["a"] == {"pixels": "one seed"}


def test_an_arm_counts_with_the_seeds_that_it_has():
    scores = {"a": {"pixels": [1.0, 2.0, 3.0], "latent": [5.0]}, "b": {"pixels": [1.0, 2.0, 3.0], "latent": [5.0, 6.0]}}
    summary = summarize(results_of(scores))
    assert {arm: one["seeds"] for arm, one in summary["over_tasks"]["arms"].items()} == {"pixels": 3, "latent": 1}
    assert summary["seeds"].startswith("Some arms have fewer seeds")
    assert summary["tasks"]["a"]["arms"]["latent"]["iqm"] == {"value": 5, "low": 5, "high": 5}


def test_nothing_finished_and_no_pixel_agent():
    empty = results_of({"t": {"pixels": [1.0], "latent": [2.0]}})
    nothing = summarize(Results(empty.study, {"t": {"pixels": [], "latent": []}}))
    assert "Nothing to compare yet" in nothing["verdict"]["headline"]
    alone = summarize(results_of({"t": {"latent": [2.0, 3.0], "random-latent": [1.0, 1.5]}}))
    assert "latent is better than a random encoder" in alone["verdict"]["headline"]


def test_the_share_of_solved_episodes_needs_all_seeds():
    results = results_of({"t": {"latent": [1.0, 2.0]}})
    runs = results.runs["t"]["latent"]
    runs[0]["final"]["successes"] = [True, False]
    assert summarize(results)["tasks"]["t"]["arms"]["latent"]["success_share"] is None
    runs[1]["final"]["successes"] = [True, True]
    assert summarize(results)["tasks"]["t"]["arms"]["latent"]["success_share"] == 0.75
