"""The verdict: each rule applies where its number says so, and nothing is said of what was not measured."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from vae_training.report.findings import RULES, Finding, Numbers, headline, verdict
from vae_training.report.metrics.latents import Latents, Stability, describe
from vae_training.report.metrics.reconstruction import Reconstruction, Scores
from vae_training.report.probes.probes import PIXELS, Head, ProbeResult, ProbeTable
from vae_training.report.probes.scores import Score


def latents(**changes: Any) -> Latents:
    rng = np.random.default_rng(0)
    good = describe(rng.normal(0, 1, (500, 16)), np.full((500, 16), -4.0))
    return dataclasses.replace(good, **changes)


def reconstruction(own: float = 0.005, *, worst: float | None = None, **others: float) -> Reconstruction:
    errors = {"encoder": own, "pca": 0.01, "mean image": 0.05, **others}
    found = {name: Scores(mse, 20.0, 0.8, mse, 2 * mse) for name, mse in errors.items()}
    found["encoder"] = dataclasses.replace(found["encoder"], mse_worst=worst or 2 * own)
    return Reconstruction(100, found, [0], [1], [[0.0]])


def stability(**changes: Any) -> Stability:
    good = Stability(100, 5.0, {"up": 0.1}, 0.1, 0.3, 0.05, 0.1, 0.2, 0.4, 99)
    return dataclasses.replace(good, **changes)


def probes(*targets: dict[str, float], width: float = 0.02, metric: str = "r2") -> ProbeTable:
    """A table of targets t0, t1 …: scores by a linear head on "latent" and others, by "mlp" and "pixels"."""
    results: list[ProbeResult] = []
    kind, classes = ("continuous", 0) if metric == "r2" else ("binary", 2)
    for i, values in enumerate(targets):
        for name, value in values.items():
            representation = {"mlp": "latent", "pixels": PIXELS}.get(name, name)
            head: Head = "mlp" if name == "mlp" else "cnn" if name == "pixels" else "linear"
            score = Score(metric, value, value - width, value + width)
            results.append(ProbeResult(f"t{i}", kind, representation, head, [score], classes, 100, 50))
    return ProbeTable(results, {}, {}, "recordings")


def numbers(**changes: Any) -> Numbers:
    return Numbers(**{"latents": latents(), "reconstruction": reconstruction(), "stability": stability(), **changes})


def keys(findings: list[Finding]) -> set[str]:
    return {finding.key for finding in findings}


def finding_of(key: str, **changes: Any) -> Finding:
    (found,) = [finding for finding in verdict(numbers(**changes)) if finding.key == key]
    return found


GOOD = {
    "information.enough",
    "dimensions.active",
    "shifts.steady",
    "smoothness.smooth",
    "reconstruction.better_than_pca",
}


def test_good_numbers_give_good_findings_only_and_what_was_not_measured_none():
    findings = verdict(numbers(probes=probes({"latent": 0.95, "pixels": 0.97, "PCA": 0.8}), training_mse=0.004))
    assert keys(findings) == GOOD | {"probes.kept"}
    assert {finding.level for finding in findings} == {"good"}
    assert all(finding.numbers and not finding.suggestion for finding in findings)
    findings = verdict(Numbers(latents()))
    assert keys(findings) == {"information.enough", "dimensions.active"}
    assert "reconstruction, probes" in headline(findings, ["reconstruction", "probes"])


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"latents": latents(kl_nats=4.0)}, "information.few_nats"),
        ({"latents": latents(active_units=7)}, "dimensions.dead"),
        ({"latents": latents(mean_abs_correlation=0.5)}, "correlation.high"),
        ({"latents": latents(aggregate_std=[1.0] * 15 + [4.0])}, "scale.far_from_prior"),
        ({"reconstruction": reconstruction(0.048)}, "reconstruction.mean_image"),
        ({"reconstruction": reconstruction(0.011)}, "reconstruction.worse_than_pca"),
        (
            {"reconstruction": reconstruction(0.011), "probes": probes({"latent": 0.95})},
            "reconstruction.worse_than_pca_but_probed",
        ),
        ({"reconstruction": reconstruction(0.009)}, "reconstruction.like_pca"),
        ({"reconstruction": reconstruction(autoencoder=0.002)}, "beta.costs_detail"),
        ({"training_mse": 0.002}, "overfitting.overfits"),
        ({"reconstruction": reconstruction(worst=0.1)}, "outliers.worst_frame"),
        ({"stability": stability(shift=0.5, shift_pixels=0.3)}, "shifts.sensitive"),
        ({"stability": stability(brightness=0.3, brightness_pixels=0.1)}, "brightness.sensitive"),
        ({"stability": stability(neighbors=0.95, neighbors_pixels=0.3)}, "smoothness.jumpy"),
        ({"unseen": False}, "held out.unknown"),
    ],
)
def test_each_rule_applies_where_its_number_says_so(changes: dict[str, Any], key: str):
    found = finding_of(key, **changes)
    assert key in RULES[found.level]
    assert found.suggestion
    topic = key.split(".")[0]
    assert keys(verdict(numbers(**changes))) - {key, "probes.kept"} == {k for k in GOOD if k.split(".")[0] != topic}
    assert all(np.isfinite(number) for number in found.numbers.values())


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"latents": latents(active_units=8)}, "dimensions"),
        ({"stability": stability(shift=0.5, shift_pixels=0.6)}, "shifts"),
        ({"stability": stability(spread=0.0, shift=0.0, brightness=0.0)}, "shifts"),
        ({"reconstruction": reconstruction(autoencoder=0.004)}, "beta"),
        ({"training_mse": 0.004}, "overfitting"),
    ],
)
def test_no_rule_of_a_topic_applies(changes: dict[str, Any], key: str):
    findings = verdict(numbers(**changes))
    assert key not in {finding.topic for finding in findings}
    assert {finding.level for finding in findings} == {"good"}


def test_collapse_comes_first_and_instead_of_what_follows_from_it():
    collapsed = describe(np.random.default_rng(0).normal(0, 0.01, (100, 8)), np.zeros((100, 8)))
    (found,) = verdict(numbers(latents=collapsed, beta=4.0, reconstruction=None))
    assert (found.key, found.level) == ("collapse.collapsed", "bad")
    assert "0.8 instead of 4" in found.suggestion


def test_advice_fits_the_encoder():
    few = latents(active_units=7)
    assert "--latent-dim 8" in finding_of("dimensions.dead", latents=few).suggestion
    assert "--latent-dim" not in finding_of("dimensions.dead", latents=few, bottleneck="spatial").suggestion
    lost = probes({"latent": 0.1, "pixels": 0.9})
    assert "--bottleneck spatial" in finding_of("probes.lost", probes=lost).suggestion
    assert "--bottleneck" not in finding_of("probes.lost", probes=lost, bottleneck="spatial").suggestion
    # Where it overfits, less of a penalty makes it worse.
    overfit = verdict(numbers(reconstruction=reconstruction(0.02), training_mse=0.005, beta=1.0))
    assert "smaller --beta" not in " ".join(finding.suggestion for finding in overfit)
    under = {"reconstruction": reconstruction(0.02), "training_mse": 0.015, "beta": 1.0}
    assert "0.2 instead of 1" in finding_of("reconstruction.worse_than_pca", **under).suggestion


@pytest.mark.parametrize(
    ("target", "options", "key", "level"),
    [
        ({"latent": 0.1, "pixels": 0.9}, {}, "probes.lost", "bad"),
        ({"latent": 0.6, "pixels": 0.9}, {}, "probes.partly", "warning"),
        ({"latent": 0.2, "mlp": 0.88, "pixels": 0.9}, {}, "probes.tangled", "warning"),
        ({"latent": 0.87, "pixels": 0.9}, {}, "probes.kept", "good"),
        ({"latent": 0.6, "pixels": 0.9}, {"width": 0.2}, "probes.kept", "good"),  # the intervals meet
        ({"latent": 0.2, "pixels": 0.9}, {"width": 0.4}, "probes.unsure", "warning"),
        ({"latent": 0.55, "pixels": 0.95}, {"metric": "auroc"}, "probes.lost", "bad"),  # 0.5 is guessing
        ({"latent": 0.1, "pixels": 0.45}, {}, "probes.faint", "warning"),  # a single frame hardly shows it either
    ],
)
def test_what_a_probe_says(target: dict[str, float], options: Any, key: str, level: str):
    (found,) = [f for f in verdict(numbers(probes=probes(target, **options))) if f.topic == "probes"]
    assert (found.key, found.level) == (key, level)
    assert found.numbers == {"t0": target["latent"], "t0, best": target["pixels"]}


def test_one_value_lost_among_many_is_named_and_no_verdict_on_the_whole():
    lost, kept = {"latent": 0.1, "pixels": 0.9}, {"latent": 0.9}
    findings = verdict(numbers(probes=probes(lost, kept, kept)))
    assert {f.key: f.level for f in findings if f.topic == "probes"} == {
        "probes.lost": "warning",
        "probes.kept": "good",
    }
    assert "t0" in headline(findings)
    most = verdict(numbers(probes=probes(lost, lost, kept)))
    assert (most[0].key, most[0].level, most[0].lost) == ("probes.lost", "bad", ("t0", "t1"))
    # What nothing reads is no fault of the encoder; of many, the worst comes first.
    nothing = verdict(numbers(probes=probes({"latent": 0.0, "pixels": 0.05, "PCA": 0.02})))
    assert "probes" not in {finding.topic for finding in nothing}
    many = finding_of("probes.lost", probes=probes(*({"latent": 0.1 + i / 100, "pixels": 0.9} for i in range(20))))
    assert many.sentence.index("t0 ") < many.sentence.index("t1 ")
    assert len(many.numbers) == 40


def test_a_baseline_that_reads_more():
    table = probes({"latent": 0.90, "PCA": 0.99}, {"latent": 0.90, "PCA": 0.91})
    assert finding_of("probes.baseline_reads_more", probes=table).numbers == {"t0, PCA": 0.99, "t0": 0.90}
    for value, width in ((0.99, 0.06), (0.93, 0.001)):  # only by chance, or only a little
        table = probes({"latent": 0.90, "PCA": value}, width=width)
        assert "probes.baseline_reads_more" not in keys(verdict(numbers(probes=table)))


def test_the_headline_is_that_of_the_worst():
    findings = verdict(numbers(reconstruction=reconstruction(0.02), latents=latents(kl_nats=3.0)))
    order = [("bad", "warning", "good").index(finding.level) for finding in findings]
    assert order == sorted(order)
    assert len({headline(some) for some in (findings, [f for f in findings if f.level != "bad"], [])}) == 3
