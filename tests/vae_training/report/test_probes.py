"""Probes on constructed cases: what is there is found, what is not there is not, and a table says so."""

import json

import numpy as np
import pytest
import torch

from latent_obs.util.errors import InputError
from tests.support.probe_cases import LENGTH, RECORDINGS, TOTAL, Given, cut, numbered, run, score, targets_of
from vae_training.report.metrics.baselines import MeanImage
from vae_training.report.probes import probes
from vae_training.report.probes.probes import probe
from vae_training.report.probes.table import ProbeTable

pytest.importorskip("sklearn")


def metric(table: ProbeTable, name: str, target: str = "y") -> float:
    return next(s.value for s in table.result(target, "latent", "linear").scores if s.metric == name)


# -- what is there, and what is not
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (1e-4, 0), (1e3, 1e4)])
def test_targets_that_are_latents_are_read(rng: np.random.Generator, scale: float, offset: float):
    y = rng.standard_normal((TOTAL, 3))
    table = run(scale * y @ rng.standard_normal((3, 3)) + offset, {"y": 5 * y[:, 0] + 100, "other": y[:, 1]})
    assert score(table) > 0.999
    assert score(table, "other") > 0.999
    assert metric(table, "mae") < 0.1  # in units of y
    assert table.keeps("y").verdict == "kept"


def test_networks_read_them_too(rng: np.random.Generator):
    z = rng.standard_normal((TOTAL, 4))
    table = run(z, {"y": 1000 + 50 * z[:, 0], "b": z[:, 1] > 0, "c": np.digitize(z[:, 2], [-0.5, 0.5])}, mlp=True)
    assert score(table, "y", "mlp") > 0.98
    assert score(table, "b", "mlp") > 0.98
    assert score(table, "c", "mlp") > 0.85


def test_noise_tells_nothing(rng: np.random.Generator):
    table = run(rng.standard_normal((TOTAL, 20)), {"y": rng.standard_normal(TOTAL)}, mlp=True)
    assert -0.2 < score(table) < 0.05
    assert -0.3 < score(table, head="mlp") < 0.05
    kept = table.keeps("y")
    assert (kept.verdict, kept.share) == ("not readable", None)


def test_a_product_is_there_but_not_linearly(rng: np.random.Generator):
    z = rng.standard_normal((TOTAL, 2))
    table = run(z, {"y": z[:, 0] * z[:, 1]}, mlp=True)
    assert score(table) < 0.2
    assert score(table, head="mlp") > 0.8
    kept = table.keeps("y")
    assert (kept.verdict, kept.reference_from) == ("lost", "latent, mlp")


def test_recognising_the_recording_is_not_reading(rng: np.random.Generator):
    """Latents that name the recording, and a target that goes with it: frames split at random would score almost 1."""
    place, value = rng.standard_normal((RECORDINGS, 16)), rng.standard_normal(RECORDINGS)
    of = np.repeat(np.arange(RECORDINGS), LENGTH)
    latents = place[of] + 0.1 * rng.standard_normal((TOTAL, 16))
    y = value[of] + 0.1 * rng.standard_normal(TOTAL)
    apart = run(latents, {"y": y})
    shuffled = rng.permutation(TOTAL)
    mixed = run(latents[shuffled], {"y": y[shuffled]})
    assert score(apart) < 0.3
    assert score(mixed) > 0.95


def test_latents_and_targets_stay_in_step_when_frames_are_left_out(rng: np.random.Generator):
    y = rng.standard_normal(TOTAL)
    table = run(y[:, None], {"y": y}, most_frames=250)
    result = table.result("y", "latent")
    assert result.learnt_from + result.scored_on == RECORDINGS * 20
    assert result.main.value > 0.999


def test_a_constant_vector_gets_the_mean(rng: np.random.Generator):
    y = rng.standard_normal(TOTAL)
    frames = cut(numbered())
    table = probe([MeanImage.fit(list(frames.values()))], frames, targets_of(y=y), cnn=False)
    for head in ("linear", "mlp"):
        assert table.result("y", "mean image", head).main.value == pytest.approx(0, abs=0.05)


# -- classes
# ----------------------------------------------------------------------------------------------------------------


def test_binary_perfect_and_at_chance(rng: np.random.Generator):
    z = rng.standard_normal((TOTAL, 4))
    table = run(z, {"y": z[:, 0] > 0, "noise": rng.random(TOTAL) > 0.5})
    assert table.result("y", "latent").kind == "binary"
    assert table.result("y", "latent").main.metric == "auroc"
    assert metric(table, "auroc") > 0.99
    assert metric(table, "balanced_accuracy") > 0.96
    assert abs(metric(table, "auroc", "noise") - 0.5) < 0.12
    assert abs(metric(table, "balanced_accuracy", "noise") - 0.5) < 0.12
    assert table.keeps("noise").verdict == "not readable"


@pytest.mark.parametrize("mlp", [False, True])
def test_a_rare_class_counts_as_much_as_a_common_one(rng: np.random.Generator, mlp: bool):
    z = rng.standard_normal((TOTAL, 4))
    y, noise = (z[:, 0] > np.quantile(z[:, 0], 0.9)).astype(np.float32), (rng.random(TOTAL) > 0.9).astype(np.float32)
    table = run(z, {"y": y, "noise": noise}, mlp=mlp)
    head = "mlp" if mlp else "linear"
    found = {s.metric: s.value for s in table.result("y", "latent", head).scores}
    assert found["auroc"] > 0.98
    assert found["balanced_accuracy"] > 0.88
    assert (
        abs({s.metric: s.value for s in table.result("noise", "latent", head).scores}["balanced_accuracy"] - 0.5) < 0.2
    )


def test_several_classes(rng: np.random.Generator):
    z = rng.standard_normal((TOTAL, 3))
    y = z.argmax(1) * 10 + 5  # the classes have numbers of their own
    table = run(z, {"y": y, "noise": rng.integers(0, 3, TOTAL)})
    result = table.result("y", "latent")
    assert (result.kind, result.classes, result.chance) == ("categorical", 3, pytest.approx(1 / 3))
    assert result.main.metric == "balanced_accuracy"
    assert result.main.value > 0.9
    assert abs(score(table, "noise") - 1 / 3) < 0.12


# -- the whole
# ----------------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_table(rng: np.random.Generator):
    z = rng.standard_normal((TOTAL, 3))
    columns = {"y": z[:, 0] + 0.3 * rng.standard_normal(TOTAL), "b": z[:, 1] > 0.5}
    before = torch.random.get_rng_state()
    table = run(z, columns, mlp=True)
    assert torch.equal(before, torch.random.get_rng_state())
    assert run(z, columns, mlp=True) == table
    assert run(z, columns, mlp=True, seed=1) != table


def test_a_table_is_plain_json_and_a_markdown_table(rng: np.random.Generator):
    z = rng.standard_normal((TOTAL, 3))
    table = run(z, {"y": z[:, 0], "b": z[:, 1] > 0.5, "c|d": z.argmax(1), "none": np.zeros(TOTAL)})
    written = json.loads(json.dumps(table.to_json(), allow_nan=False))
    assert written["keeps"][0]["representation"] == "latent"
    assert written["left_out"] == {"none": "constant (0)"}
    rows = json.loads(json.dumps(table.rows(), allow_nan=False))
    assert [row["target"] for row in rows] == ["b", "c|d", "y"]
    assert rows[2]["r2_low"] <= rows[2]["r2"] <= rows[2]["r2_high"]


def test_bad_calls_are_refused(rng: np.random.Generator):
    z = rng.standard_normal((TOTAL, 2))
    frames, targets = cut(numbered()), targets_of(y=z[:, 0])
    with pytest.raises(InputError, match="names of their own"):
        probe([Given(z), Given(z)], frames, targets)
    with pytest.raises(InputError, match="names of their own"):
        probe([], frames, targets)
    with pytest.raises(InputError, match="several shapes"):
        probe([Given(z)], {**frames, "odd": np.zeros((5, 8, 8, 3), np.uint8)}, targets)
    with pytest.raises(InputError, match="not finite"):
        probe([Given(np.full_like(z, np.nan))], frames, targets)
    with pytest.raises(InputError, match=r"r00 .* 60 frames"):
        probe([Given(z)], frames, {"r00": {"y": z[:50, 0]}})
    with pytest.raises(InputError, match="r00"):
        probe([Given(z)], frames, {"r00": {"y": z[:LENGTH]}})
    with pytest.raises(InputError, match="strange"):
        probe([Given(z)], frames, {"strange": {"y": z[:LENGTH, 0]}})


def test_the_public_names_are_there():
    assert all(hasattr(probes, name) for name in probes.__all__)
