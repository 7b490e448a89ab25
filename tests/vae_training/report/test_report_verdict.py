"""The verdict: each finding appears where its number says so, and nothing is said of what was not measured."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from vae_training.report.findings import Finding, Numbers, Probe, ScoreOf, headline, judge_probes, verdict
from vae_training.report.metrics.latents import Latents, describe
from vae_training.report.metrics.reconstruction import Reconstruction, Scores
from vae_training.report.metrics.stability import Stability


def latents(**changes: Any) -> Latents:
    rng = np.random.default_rng(0)
    good = describe(rng.normal(0, 1, (500, 16)), np.full((500, 16), -4.0))
    return dataclasses.replace(good, **changes)


def scores(mse: float, worst: float | None = None) -> Scores:
    return Scores(mse, 20.0, 0.8, mse, worst or 2 * mse)


def reconstruction(own: float = 0.005, *, worst: float | None = None, **others: float) -> Reconstruction:
    found = {"encoder": scores(own, worst), "pca": scores(0.01), "mean image": scores(0.05)}
    found |= {name.replace("_", " "): scores(mse) for name, mse in others.items()}
    return Reconstruction(100, found, [0], [1], [[0.0]], {"autoencoder": "trained here for 9 steps, 3 s"})


def stability(**changes: Any) -> Stability:
    good = Stability(100, 5.0, {"up": 0.1}, 0.1, 0.3, 0.05, 0.1, 0.2, 0.4, 99)
    return dataclasses.replace(good, **changes)


def probe(latent: float, *, width: float = 0.02, chance: float = 0.0, name: str = "x", **others: float) -> Probe:
    def score(value: float) -> ScoreOf:
        return ScoreOf(value, value - width, value + width)

    single = {key: score(others.pop(key)) for key in ("mlp", "pixels") if key in others}
    return Probe(
        name, "R²", score(latent), {key: score(value) for key, value in others.items()}, chance=chance, **single
    )


def numbers(**changes: Any) -> Numbers:
    return Numbers(**{"latents": latents(), "reconstruction": reconstruction(), "stability": stability(), **changes})


def about(findings: list[Finding], topic: str) -> Finding:
    (found,) = [finding for finding in findings if finding.topic == topic]
    return found


def test_good_numbers_give_good_findings_only():
    findings = verdict(numbers(probes=[probe(0.95, pixels=0.97, PCA=0.8)], training_mse=0.004))
    assert {finding.level for finding in findings} == {"good"}
    topics = {finding.topic for finding in findings}
    assert topics == {"information", "dimensions", "reconstruction", "shifts", "smoothness", "probes"}
    assert not any(finding.suggestion for finding in findings)
    assert all(finding.numbers for finding in findings)
    assert headline(findings) == "What was measured looks good."


def test_nothing_is_said_of_what_was_not_measured():
    findings = verdict(Numbers(latents()))
    assert {finding.topic for finding in findings} == {"information", "dimensions"}
    assert headline(findings, ["reconstruction", "probes"]).endswith("Not measured: reconstruction, probes.")


def test_collapse_is_told_first_and_instead_of_what_follows_from_it():
    rng = np.random.default_rng(0)
    collapsed = describe(rng.normal(0, 0.01, (100, 8)), np.zeros((100, 8)))
    findings = verdict(numbers(latents=collapsed, beta=4.0, reconstruction=None))
    assert findings[0].topic == "collapse"
    assert findings[0].level == "bad"
    assert "0 of 8" in findings[0].sentence
    assert "0.8 instead of 4" in findings[0].suggestion
    assert {finding.topic for finding in findings} == {"collapse"}
    assert headline(findings).startswith("Do not freeze this encoder yet: 1 serious problem, 0 warnings.")


def test_few_nats():
    found = about(verdict(numbers(latents=latents(kl_nats=4.0), beta=None)), "information")
    assert found.level == "warning"
    assert "4.0 nats" in found.sentence
    assert "55 pictures" in found.sentence  # exp(4) = 54.6
    assert found.suggestion.startswith("a smaller --beta,")


@pytest.mark.parametrize(("active", "level"), [(15, "good"), (14, None), (8, None), (7, "warning")])
def test_dead_dimensions(active: int, level: str | None):
    found = [f for f in verdict(numbers(latents=latents(active_units=active))) if f.topic == "dimensions"]
    assert [f.level for f in found] == ([level] if level else [])
    if level == "warning":
        assert "--latent-dim 8" in found[0].suggestion
        spatial = verdict(numbers(latents=latents(active_units=active), bottleneck="spatial"))
        assert "--latent-dim" not in about(spatial, "dimensions").suggestion


@pytest.mark.parametrize(("mse", "level"), [(0.0079, "good"), (0.009, "warning"), (0.011, "bad")])
def test_reconstruction_beside_pca(mse: float, level: str):
    found = about(verdict(numbers(reconstruction=reconstruction(mse))), "reconstruction")
    assert found.level == level
    assert f"{mse / 0.01:.2f} times" in found.sentence
    assert found.numbers == {"mse": mse, "pca_mse": 0.01, "ratio_to_pca": pytest.approx(mse / 0.01)}


def test_where_probes_tell_what_is_kept_pca_judges_no_more():
    told = Probe("object$Monster.x", "R²", ScoreOf(0.95, 0.94, 0.96), {"PCA": ScoreOf(0.5, 0.4, 0.6)})
    found = about(verdict(numbers(reconstruction=reconstruction(0.011), probes=[told])), "reconstruction")
    assert found.level == "warning"


def test_hardly_better_than_the_mean_image():
    found = about(verdict(numbers(reconstruction=reconstruction(0.048))), "reconstruction")
    assert found.level == "bad"
    assert "96%" in found.sentence


def test_beta_that_costs_detail():
    assert "beta" not in {f.topic for f in verdict(numbers(reconstruction=reconstruction(0.005, autoencoder=0.004)))}
    found = about(verdict(numbers(reconstruction=reconstruction(0.005, autoencoder=0.002))), "beta")
    assert "40% of the squared error, trained here for 9 steps, 3 s" in found.sentence


def test_overfitting_turns_the_advice_round():
    findings = verdict(numbers(reconstruction=reconstruction(0.02), training_mse=0.005, beta=1.0))
    assert "4.0 times" in about(findings, "overfitting").sentence
    assert "smaller --beta" not in " ".join(f.suggestion for f in findings)
    findings = verdict(numbers(reconstruction=reconstruction(0.02), training_mse=0.015, beta=1.0))
    assert "overfitting" not in {f.topic for f in findings}
    assert "0.2 instead of 1" in about(findings, "reconstruction").suggestion


def test_outliers():
    found = about(verdict(numbers(reconstruction=reconstruction(0.005, worst=0.1))), "outliers")
    assert "20 times" in found.sentence


@pytest.mark.parametrize(
    ("changes", "topic"),
    [
        ({"shift": 0.5, "shift_pixels": 0.3}, "shifts"),
        ({"brightness": 0.3, "brightness_pixels": 0.1}, "brightness"),
        ({"neighbours": 0.95, "neighbors_pixels": 0.3}, "smoothness"),
    ],
)
def test_unsteady_latents(changes: dict[str, float], topic: str):
    found = about(verdict(numbers(stability=stability(**changes))), topic)
    assert found.level == "warning"
    first, second = changes.values()
    assert f"{first:.0%}" in found.sentence
    assert f"{second:.0%}" in found.sentence


@pytest.mark.parametrize(
    "changes",
    [
        {"shift": 0.5, "shift_pixels": 0.6},
        {"brightness": 0.3, "brightness_pixels": 0.4},
        {"neighbours": 0.95, "neighbors_pixels": 0.94},
        {"neighbours": None, "neighbors_pixels": None, "pairs": 0},
        {"spread": 0.0, "shift": 0.0, "brightness": 0.0},
    ],
)
def test_what_the_pixels_do_as_well_is_no_warning(changes: dict[str, float]):
    assert {f.level for f in verdict(numbers(stability=stability(**changes)))} == {"good"}


def test_scale_and_correlation():
    findings = verdict(numbers(latents=latents(aggregate_std=[1.0] * 15 + [4.0], mean_abs_correlation=0.5)))
    assert "4.0" in about(findings, "scale").sentence
    assert "VecNormalize" in about(findings, "scale").suggestion
    assert "0.50" in about(findings, "correlation").sentence


def test_frames_that_it_may_have_seen():
    assert about(verdict(numbers(unseen=False)), "held out").level == "warning"


def test_a_target_that_is_lost():
    (found, *_) = judge_probes([probe(0.1, pixels=0.9, name="object$Imp.x")], smaller_beta="a smaller --beta (1)")
    assert found.level == "bad"
    assert "object$Imp.x (R² 0.10 of 0.90)" in found.sentence
    assert found.numbers == {"object$Imp.x": 0.1, "object$Imp.x, best": 0.9}
    for advice in ("--bottleneck spatial", "--latent-dim", "a smaller --beta (1)"):
        assert advice in found.suggestion
    (spatial, *_) = judge_probes([probe(0.1, pixels=0.9)], bottleneck="spatial")
    assert "--bottleneck" not in spatial.suggestion


@pytest.mark.parametrize(
    ("made", "level", "words"),
    [
        (probe(0.6, pixels=0.9), "warning", "only in part"),
        (probe(0.2, mlp=0.88, pixels=0.9), "warning", "tangled"),
        (probe(0.87, pixels=0.9), "good", "about as well"),
        (probe(0.6, width=0.2, pixels=0.9), "good", "about as well"),  # the intervals meet
        (probe(0.2, width=0.4, pixels=0.9), "warning", "too little is held out"),
        (probe(0.55, chance=0.5, pixels=0.95), "bad", "cannot be read"),  # an AUROC of 0.55 is next to nothing
        (probe(0.1, pixels=0.45), "warning", "only faintly from"),  # a single frame hardly tells it either
        (probe(0.55, chance=0.5, pixels=0.7), "warning", "only faintly from"),
    ],
)
def test_what_a_probe_says(made: Probe, level: str, words: str):
    (found,) = judge_probes([made])
    assert (found.level, words in found.sentence) == (level, True), found


def test_one_value_lost_among_many_is_named_and_no_verdict_on_the_whole():
    findings = list(judge_probes([probe(0.1, pixels=0.9, name="lost"), probe(0.9, name="a"), probe(0.9, name="b")]))
    assert [finding.level for finding in findings] == ["warning", "good"]
    assert headline(findings) == "Usable, unless the agent needs what is lost: lost. 1 warning to look at first."
    most = list(
        judge_probes([probe(0.1, pixels=0.9, name="lost"), probe(0.1, pixels=0.9, name="too"), probe(0.9, name="b")])
    )
    assert headline(most).startswith("Do not freeze this encoder yet: 1 serious problem")
    assert most[0].lost == ("lost", "too")


def test_what_nothing_reads_is_no_fault_of_the_encoder():
    assert list(judge_probes([probe(0.0, pixels=0.05, PCA=0.02)])) == []
    assert list(judge_probes([])) == []


def test_a_baseline_that_reads_more():
    findings = list(judge_probes([probe(0.90, PCA=0.99, name="a"), probe(0.90, PCA=0.91, name="b")]))
    (better,) = [f for f in findings if "from PCA than" in f.sentence]
    assert better.level == "warning"
    assert "a (0.99 against 0.90)" in better.sentence
    assert "b (" not in better.sentence


def test_a_baseline_that_is_better_only_by_chance_is_not_named():
    assert [f.level for f in judge_probes([probe(0.90, width=0.06, PCA=0.99)])] == ["good"]
    assert [f.level for f in judge_probes([probe(0.90, width=0.001, PCA=0.93)])] == ["good"]


def test_many_targets_make_few_findings():
    findings = list(judge_probes([probe(0.1 + i / 100, pixels=0.9, name=f"t{i}") for i in range(20)]))
    assert len(findings) == 1
    assert "and 14 more" in findings[0].sentence
    assert findings[0].sentence.index("t0 ") < findings[0].sentence.index("t1 ")
    assert len(findings[0].numbers) == 40


def test_the_worst_comes_first():
    findings = verdict(numbers(reconstruction=reconstruction(0.02), latents=latents(kl_nats=3.0)))
    order = [("bad", "warning", "good").index(finding.level) for finding in findings]
    assert order == sorted(order)
    assert headline(findings).startswith("Do not freeze")
    assert headline([f for f in findings if f.level != "bad"]).startswith("Usable, with 1 warning")
