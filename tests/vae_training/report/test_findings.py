"""The verdict fits the numbers: one table has the limits, the worst finding decides, and advice can be followed."""

import dataclasses
import itertools
import math
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tyro

from latent_obs.encoder.architecture import Architecture
from latent_obs_cli.fit import FitConfig
from vae_training import RecordConfig, TrainConfig
from vae_training.report import ReportConfig
from vae_training.report.findings import LEVELS, MEASURES, Numbers, Verdict, verdict
from vae_training.report.metrics.latents import Latents, Stability, describe
from vae_training.report.metrics.reconstruction import Reconstruction, Scores
from vae_training.report.probes.probes import PIXELS, Head, ProbeResult, ProbeTable
from vae_training.report.probes.scores import Score
from vae_training.training.config import LAYERS

Interval = tuple[float, float, float]  # value, low, high


def latents(**changes: Any) -> Latents:
    rng = np.random.default_rng(0)
    good = describe(rng.normal(0, 1, (500, 16)), np.full((500, 16), -4.0))
    return dataclasses.replace(good, **changes)


def reconstruction(own: float = 0.005, ssim: float = 0.9, *, worst: float = 2.0, **others: float) -> Reconstruction:
    """Errors and SSIM of the encoder (`worst` times its error for the worst frame), PCA, the mean image, and others."""
    errors = {"encoder": own, "pca": 0.01, "mean image": 0.05, **others}
    similarities = {"encoder": ssim, "pca": 0.85, "mean image": 0.5}
    found = {name: Scores(mse, 20.0, similarities.get(name, 0.8), mse, worst * mse) for name, mse in errors.items()}
    return Reconstruction(100, found, [0], [1], [[0.0]])


def stability(**changes: Any) -> Stability:
    good = Stability(100, 5.0, {"up": 0.1}, 0.1, 0.3, 0.05, 0.1, 0.2, 0.4, 99)
    return dataclasses.replace(good, **changes)


def probes(*targets: Mapping[str, float | Interval], width: float = 0.02, metric: str = "r2") -> ProbeTable:
    """A table of targets t0, t1 …: scores by a linear head on "latent" and others, by "mlp", "PCA mlp" and "pixels"."""
    results: list[ProbeResult] = []
    kind, classes = ("continuous", 0) if metric == "r2" else ("binary", 2)
    for i, values in enumerate(targets):
        for name, value in values.items():
            representation = {"mlp": "latent", "PCA mlp": "PCA", "pixels": PIXELS}.get(name, name)
            head: Head = "mlp" if name.endswith("mlp") else "cnn" if name == "pixels" else "linear"
            interval = value if isinstance(value, tuple) else (value, value - width, value + width)
            results.append(ProbeResult(f"t{i}", kind, representation, head, [Score(metric, *interval)], classes, 9, 9))
    order = ["latent", "PCA", "random encoder", PIXELS]
    return ProbeTable(sorted(results, key=lambda r: order.index(r.representation)), {}, {}, "recordings")


def judge(**changes: Any) -> Verdict:
    given = {"latents": latents(), "reconstruction": reconstruction(), "stability": stability(), **changes}
    return verdict(Numbers(**given))


KEPT = probes({"latent": 0.95, "PCA": 0.8, "random encoder": 0.8, "pixels": 0.97})
LOST, READ = {"latent": 0.1, "PCA": 0.08, "pixels": 0.9}, {"latent": 0.9, "PCA": 0.7, "pixels": 0.92}
#: After ten gradient steps: 13.4 times PCA's error, less like the frames than the mean image, five of nine values lost.
TEN_STEPS: dict[str, Any] = {
    "reconstruction": reconstruction(0.134, 0.49, **{"mean image": 0.16}),
    "probes": probes(*5 * [LOST], *4 * [{"latent": 0.9, "PCA": 0.92, "pixels": 0.93}]),
    "bottleneck": "spatial",
    "steps": 10,
    "settings": {"beta": 0.02},
}
#: The encoder of the quickstart, whose agent gets 82.6 of at most 83: a monster's x and width, a velocity, a position.
QUICKSTART: dict[str, Any] = {
    "reconstruction": Reconstruction(
        1000,
        {
            "encoder": Scores(0.00086, 33.0, 0.834, 0.0005, 0.00126),
            "pca": Scores(0.00023, 44.1, 0.977, 0.00005, 0.0009),
            "mean image": Scores(0.0051, 25.2, 0.654, 0.003, 0.008),
        },
        [0],
        [1],
        [[0.0]],
    ),
    "stability": stability(shift=0.47, shift_pixels=0.49, brightness=0.36, brightness_pixels=0.4),
    "bottleneck": "spatial",
    "steps": 3562,
    "settings": {"beta": 0.01},
    "training_mse": 0.00053,
}
QUICKSTART_PROBES = probes(
    {
        "latent": (0.85, 0.807, 0.889),
        "mlp": (0.986, 0.98, 0.99),
        "PCA": (0.73, 0.65, 0.789),
        "PCA mlp": (0.931, 0.904, 0.951),
        "random encoder": (0.716, 0.62, 0.783),
        "pixels": (0.979, 0.966, 0.987),
    },
    {
        "latent": (0.314, -0.223, 0.449),
        "mlp": (0.854, 0.754, 0.898),
        "PCA": (0.263, -0.29, 0.429),
        "random encoder": (0.1, -0.514, 0.255),
        "pixels": (0.835, 0.712, 0.91),
    },
    {
        "latent": (0.2, 0.15, 0.241),
        "mlp": (0.557, 0.438, 0.652),
        "PCA": (0.327, 0.251, 0.389),
        "PCA mlp": (0.65, 0.562, 0.725),
        "random encoder": (0.235, 0.176, 0.285),
        "pixels": (0.724, 0.656, 0.78),
    },
    {"latent": 0.9996, "PCA": 0.9999, "random encoder": 0.998, "pixels": 0.995},
)


@pytest.mark.parametrize(
    ("changes", "level", "worst"),
    [
        ({}, "good", "pictures.pca"),
        ({"probes": KEPT}, "good", "probes.kept"),
        (TEN_STEPS, "bad", "probes.lost"),
        ({**TEN_STEPS, "probes": None}, "bad", "pictures.pca"),
        (QUICKSTART, "doubtful", "pictures.pca"),
        ({**QUICKSTART, "probes": QUICKSTART_PROBES}, "doubtful", "probes.partly"),
        # If probes show that the latents keep what acts, the pictures alone are only a doubt.
        ({"reconstruction": reconstruction(0.049)}, "bad", "pictures.mean_image"),
        ({"reconstruction": reconstruction(0.049), "probes": KEPT}, "doubtful", "pictures.mean_image"),
        # They do not show it if an untrained network does as well.
        (
            {"reconstruction": reconstruction(0.049), "probes": probes({"latent": 0.8, "random encoder": 0.79})},
            "bad",
            "pictures.mean_image",
        ),
        ({"reconstruction": reconstruction(0.011)}, "doubtful", "pictures.pca"),
        ({"reconstruction": reconstruction(0.009, 0.84)}, "doubtful", "pictures.ssim"),
        ({"reconstruction": reconstruction(0.009, 0.49)}, "bad", "pictures.ssim"),
        ({"latents": latents(kl_nats=4.0)}, "doubtful", "information.nats"),
        ({"training_mse": 0.002}, "doubtful", "overfitting.ratio"),
        ({"reconstruction": reconstruction(worst=11)}, "doubtful", "outliers.worst"),
        ({"stability": stability(shift=0.5)}, "doubtful", "stability.shift"),
        ({"stability": stability(shift=0.5, shift_pixels=0.6)}, "good", "pictures.pca"),
        ({"stability": stability(shift=0.1, shift_pixels=0.01)}, "good", "pictures.pca"),
        ({"stability": stability(brightness=0.3)}, "doubtful", "stability.brightness"),
        ({"stability": stability(neighbors=0.9)}, "doubtful", "stability.next_frame"),
        ({"unseen": False}, "doubtful", "frames.may_be_known"),
        ({"reconstruction": None}, "doubtful", "measured.too_little"),
        (
            {"reconstruction": None, "probes": probes({"latent": 0.0, "pixels": 0.05})},
            "doubtful",
            "measured.too_little",
        ),
    ],
)
def test_the_worst_finding_decides(changes: dict[str, Any], level: str, worst: str):
    found = judge(**changes)
    assert (found.level, found.findings[0].level, found.findings[0].key) == (level, level, worst)
    assert found.headline.startswith({"good": "Good", "bad": "Not usable"}.get(level, ("Doubtful", "Usable, with")))
    assert bool(found.advice) == (level != "good")


@pytest.mark.parametrize(
    ("target", "options", "key", "level"),
    [
        ({"latent": 0.1, "pixels": 0.9}, {}, "probes.lost", "bad"),
        ({"latent": 0.6, "pixels": 0.9}, {}, "probes.partly", "doubtful"),
        ({"latent": 0.2, "mlp": 0.88, "pixels": 0.9}, {}, "probes.kept", "good"),
        ({"latent": 0.2, "mlp": 0.6, "pixels": 0.9}, {}, "probes.partly", "doubtful"),
        ({"latent": 0.87, "pixels": 0.9}, {}, "probes.kept", "good"),
        ({"latent": 0.6, "pixels": 0.9}, {"width": 0.2}, "probes.kept", "good"),  # the intervals meet
        ({"latent": 0.2, "pixels": 0.9}, {"width": 0.4}, "probes.unsure", "doubtful"),
        ({"latent": 0.55, "pixels": 0.95}, {"metric": "auroc"}, "probes.lost", "bad"),  # 0.5 is guessing
    ],
)
def test_what_a_probe_says(target: dict[str, Any], options: Any, key: str, level: str):
    (found,) = [f for f in judge(probes=probes(target, **options)).findings if f.topic == "probes"]
    assert (found.key, found.level) == (key, level)
    assert found.numbers == {"t0": max(target["latent"], target.get("mlp", 0)), "t0, best": target["pixels"]}


def test_one_value_lost_among_many_is_named_and_no_verdict_on_the_whole():
    found = judge(probes=probes(LOST, READ, READ))
    assert {f.key: f.level for f in found.findings if f.topic == "probes"} == {
        "probes.lost": "doubtful",
        "probes.kept": "good",
    }
    assert "t0" in found.headline
    # What nothing reads, or only faintly, is no fault of the encoder.
    for pixels in (0.05, 0.45):
        nothing = judge(probes=probes({"latent": 0.0, "PCA": 0.02, "pixels": pixels}))
        assert "probes" not in {finding.topic for finding in nothing.findings}
    many = judge(probes=probes(*({**LOST, "latent": 0.1 + i / 99} for i in range(20)))).findings[0]
    assert many.detail.index("t0 ") < many.detail.index("t1 ")
    assert len(many.numbers) == 40


def test_what_a_baseline_reads_better_is_not_good():
    found = judge(probes=probes({"latent": 0.90, "PCA": 0.99}, {"latent": 0.90, "PCA": 0.7}))
    below, kept = (next(f for f in found.findings if f.key == f"probes.{name}") for name in ("below_baseline", "kept"))
    assert (below.level, below.numbers) == ("doubtful", {"t0": 0.90, "t0, PCA": 0.99})
    assert "t0" not in kept.numbers
    for value, width in ((0.99, 0.06), (0.93, 0.001)):  # only by chance, or only a little
        table = probes({"latent": 0.90, "PCA": value}, width=width)
        assert "probes.below_baseline" not in {f.key for f in judge(probes=table).findings}


def test_collapse_is_named_first():
    collapsed = describe(np.random.default_rng(0).normal(0, 0.01, (100, 8)), np.zeros((100, 8)))
    found = judge(latents=collapsed, settings={"beta": 4.0}, steps=5_000, reconstruction=reconstruction(0.05))
    assert found.findings[0].key == "information.nats"
    assert "0.8 instead of 4" in found.advice[0]
    assert not any(grade.key.startswith("stability") for grade in found.grades)


def test_principal_components_besides_learned_values_that_have_collapsed_are_only_a_doubt():
    means = np.random.default_rng(0).normal(0, [3.0] * 4 + [0.01] * 4, (100, 8))
    latents = describe(means, np.zeros((100, 8)), components=4)
    found = judge(latents=latents, settings={"beta": 4.0}, steps=5_000, reconstruction=reconstruction())
    assert (found.level, found.findings[0].key) == ("doubtful", "information.nats")
    assert "the same latent" not in found.headline
    assert any(grade.key.startswith("stability") for grade in found.grades)


def test_the_most_useful_advice_comes_first():
    assert "10 gradient steps" in judge(**TEN_STEPS).advice[0]
    assert "--targets" in judge(**QUICKSTART).advice[0], "without probes, nothing shows what acts"
    assert "--epochs" in judge(**QUICKSTART, probes=QUICKSTART_PROBES).advice[0]
    lost: dict[str, Any] = {"probes": probes(LOST, READ), "steps": 5_000}
    assert any("--bottleneck" in text for text in judge(**lost).advice)
    assert not any("--bottleneck" in text for text in judge(**lost, bottleneck="spatial").advice)
    network = judge(**{**lost, "steps": None}, bottleneck=None, settings={"frames": "frames/doom"})
    assert "--layer" in network.advice[0], "nothing that train-vae could change"
    assert not any("--epochs" in text or "--bottleneck" in text for text in network.advice)
    assert network.command is None
    overfit = judge(reconstruction=reconstruction(0.02), training_mse=0.005, steps=5_000)
    assert "more frames" in overfit.advice[0]
    assert not any("longer" in text or "--beta" in text for text in overfit.advice)


def cases() -> Any:
    """Encoders of all kinds."""
    tables = (None, KEPT, probes(LOST, READ), probes(LOST))
    pictures = itertools.product((0.004, 0.03, 0.2), (0.4, 0.7, 0.9))
    others = itertools.product(tables, (10, None), (None, 0.002), (0.1, 0.9))
    for (mse, ssim), (table, steps, training, change) in itertools.product(pictures, others):
        yield {
            "latents": latents(kl_nats=4.0 if mse > 0.1 else 60.0),
            "reconstruction": reconstruction(mse, ssim, worst=3 if ssim > 0.5 else 20),
            "probes": table,
            "steps": steps,
            "training_mse": training,
            "stability": stability(shift=change, brightness=change),
            "bottleneck": "dense" if training else "spatial",
            "settings": {"beta": 0.1} if training else {},
            "unseen": ssim < 0.9,
        }


def few(*targets: tuple[float, float], width: float = 0.02, metric: str = "r2") -> ProbeTable:
    """A table of few frames: scores from the latents and from PCA."""
    return probes(*({"latent": own, "PCA": pca} for own, pca in targets), width=width, metric=metric)


@pytest.mark.parametrize(
    ("table", "ratio", "better"),
    [
        (few((0.62, 0.48), (0.9, 0.9)), (0.7, 0.6, 0.8), "vae"),
        (few((0.62, 0.48)), (13.0, 12.0, 14.0), "vae"),  # what an agent needs counts, not the pictures
        (few((0.48, 0.62)), (0.7, 0.6, 0.8), "pca"),
        (few((0.62, 0.48), width=0.1), (0.7, 0.6, 0.8), "neither"),  # the intervals overlap
        (few((0.93, 0.90), width=0.001), (0.7, 0.6, 0.8), "neither"),  # apart, and by too little
        (few((0.62, 0.48), (0.48, 0.62)), (0.7, 0.6, 0.8), "neither"),
        (few((0.62, 0.48), (0.7, 0.5), (0.48, 0.62)), (0.7, 0.6, 0.8), "vae"),
        # Nothing can be read from few frames, so the pictures decide.
        (few((0.05, -0.3)), (0.7, 0.6, 0.8), "vae"),
        (few((0.62, 0.5), metric="auroc", width=0.13), (1.3, 1.2, 1.4), "pca"),
        (None, (0.97, 0.93, 1.01), "neither"),
        (None, (1.3, 1.2, 1.4), "pca"),
        (few((0.62, 0.48)), None, "vae"),
        (None, None, None),
    ],
)
def test_whether_the_vae_was_worth_its_minutes(table: ProbeTable | None, ratio: Interval | None, better: str | None):
    pictures = dataclasses.replace(reconstruction(), beside_pca=ratio and Score("ratio", *ratio))
    for probed in (None, KEPT):
        found = judge(few=table, reconstruction=pictures, probes=probed, pca="runs/a/pca.safetensors")
        assert found.level == "good", "PCA as good makes no encoder bad"
        assert (found.worth and found.worth.better) == better
        if found.worth is not None:
            assert found.worth.sentence.startswith("The VAE is worth" if better == "vae" else "PCA is enough")
            assert ("runs/a/pca.safetensors" in found.worth.sentence) == (better != "vae")
            assert ("times PCA's error" in found.worth.sentence) == (ratio is not None)


def test_the_command_of_an_advice_trains_the_same_with_one_change():
    settings = TrainConfig(Path("runs/a/frames"), Path("runs/a/vae"), widths=(16, 32), components=0).to_json()
    found = judge(**{**QUICKSTART, "probes": QUICKSTART_PROBES, "settings": settings})
    assert "--epochs" in found.advice[0]
    assert found.command is not None
    words = shlex.split(found.command)
    assert words[:2] == ["latent-obs", "train-vae"]
    wanted = TrainConfig.from_json({**settings, "out": "runs/a/vae-2", "epochs": 2 * TrainConfig().epochs})
    assert tyro.cli(TrainConfig, args=words[2:]) == wanted
    for unknown in ({}, {**settings, "ramp": "cosine"}, {"beta": 0.1}):
        assert judge(**{**QUICKSTART, "settings": unknown}).command is None


def test_the_command_to_a_spatial_bottleneck_gives_layers_that_fit():
    dense = {"bottleneck": "dense", "latent_dim": 32, "components": 16, "start_from": "runs/b", "augment": 1.0}
    settings = {**TrainConfig(Path("frames"), Path("vae")).to_json(), **dense}
    lost: dict[str, Any] = {"probes": probes(LOST, READ), "steps": 5_000, "training_mse": 0.001}  # it overfits, too
    found = judge(**lost, settings=settings)
    assert found.command is not None
    config = tyro.cli(TrainConfig, args=shlex.split(found.command)[2:])
    layers = {name: getattr(config, name) for name in LAYERS}
    assert config.start_from is None
    assert (Architecture.for_frames((84, 84, 3), **layers).bottleneck, config.augment) == ("spatial", 1.0)


def test_laws_of_every_verdict():
    configs = (TrainConfig, RecordConfig, ReportConfig, FitConfig)
    names = {field.name for config in configs for field in dataclasses.fields(config)}
    for case in cases():
        found = judge(**case)
        order = [LEVELS.index(finding.level) for finding in found.findings]
        assert order == sorted(order)
        assert found.level == found.findings[0].level
        values = {grade.key: grade for grade in found.grades}
        for finding in found.findings:
            assert all(math.isfinite(number) for number in finding.numbers.values())
            if finding.level == "good" and finding.topic == "pictures":
                assert case["reconstruction"].ratio("pca") <= 1
                assert {values[key].level for key in values if key.startswith("pictures")} == {"good"}
        for key, grade in values.items():
            assert grade.level == MEASURES[key].level(grade.value)
        assert len(found.advice) == len(set(found.advice)) <= 3
        advice = " ".join(found.advice)
        assert {option[2:].replace("-", "_") for option in re.findall(r"--[a-z-]+", advice)} <= names
        assert not ("Train longer" in advice and "fewer" in advice)
        assert not re.search(r"larger|VecNormalize|hours", advice)
        if case["steps"] == 10 and found.level != "good":
            assert "10 gradient steps" in found.advice[0]


def test_limits_in_words_are_those_that_decide():
    for measure in MEASURES.values():
        words_by_limit = {measure.good: measure.limits["good"], measure.bad: measure.limits["bad"]}
        for limit, words in words_by_limit.items():
            scale = 100 if measure.form.endswith("%}") else 1
            assert words == "never" if math.isinf(limit) else f"{scale * limit:g}" in words
        assert measure.level(measure.good) == "good"
        if math.isfinite(measure.bad):
            step = math.copysign(0.01, measure.bad - measure.good)
            assert (measure.level(measure.bad), measure.level(measure.bad + step)) == ("doubtful", "bad")
