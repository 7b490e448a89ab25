"""Probes on constructed cases: what is there is found, what is not there is not, and a table says so."""

import json

import numpy as np
import pytest
import torch

from latent_obs.util.errors import InputError
from tests.support.probe_cases import LENGTH, RECORDINGS, TOTAL, Given, cut, numbered, run, score, targets_of
from vae_training.report.metrics.baselines import MeanImage
from vae_training.report.probes import heads
from vae_training.report.probes.probes import probe
from vae_training.report.probes.table import ProbeTable

pytest.importorskip("sklearn")


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "_MLP_STEPS", 250)


def metric(table: ProbeTable, name: str, target: str = "y") -> float:
    return next(s.value for s in table.result(target, "latent", "linear").scores if s.metric == name)


@pytest.mark.parametrize(("scale", "offset"), [(1e-4, 0), (1e3, 1e4)])
def test_targets_that_are_latents_are_read(rng: np.random.Generator, scale: float, offset: float):
    y = rng.standard_normal((TOTAL, 3))
    table = run(scale * y @ rng.standard_normal((3, 3)) + offset, {"y": 5 * y[:, 0] + 100, "other": y[:, 1]})
    assert min(score(table), score(table, "other")) > 0.999
    assert metric(table, "mae") < 0.1  # in units of y
    assert table.keeps("y").verdict == "kept"


def test_networks_read_them_too_and_the_state_of_torch_is_left_alone(rng: np.random.Generator):
    z = rng.standard_normal((TOTAL, 4))
    before = torch.random.get_rng_state()
    table = run(z, {"y": 1000 + 50 * z[:, 0], "c": np.digitize(z[:, 2], [-0.5, 0.5])}, mlp=True)
    assert torch.equal(before, torch.random.get_rng_state())
    assert score(table, "y", "mlp") > 0.98
    assert score(table, "c", "mlp") > 0.85


def test_a_product_is_there_but_not_linearly_and_noise_is_not_there(rng: np.random.Generator):
    z = rng.standard_normal((TOTAL, 2))
    table = run(z, {"y": z[:, 0] * z[:, 1], "noise": rng.standard_normal(TOTAL)}, mlp=True)
    assert score(table) < 0.2
    assert score(table, head="mlp") > 0.93
    assert (table.keeps("y").verdict, table.keeps("y").reference_from) == ("lost", "latent, mlp")
    assert -0.2 < score(table, "noise") < 0.05
    assert -0.3 < score(table, "noise", "mlp") < 0.05
    assert (table.keeps("noise").verdict, table.keeps("noise").share) == ("not readable", None)


def test_recognizing_the_recording_is_not_reading(rng: np.random.Generator):
    """Latents that name the recording, and a target that goes with it: frames split at random would score almost 1."""
    place, value = rng.standard_normal((RECORDINGS, 16)), rng.standard_normal(RECORDINGS)
    of = np.repeat(np.arange(RECORDINGS), LENGTH)
    latents = place[of] + 0.1 * rng.standard_normal((TOTAL, 16))
    y = value[of] + 0.1 * rng.standard_normal(TOTAL)
    assert score(run(latents, {"y": y})) < 0.3
    shuffled = rng.permutation(TOTAL)
    assert score(run(latents[shuffled], {"y": y[shuffled]})) > 0.95


def test_latents_and_targets_stay_in_step_when_frames_are_left_out(rng: np.random.Generator):
    y = rng.standard_normal(TOTAL)
    result = run(y[:, None], {"y": y}, most_frames=250).result("y", "latent")
    assert result.learnt_from + result.scored_on == RECORDINGS * 20
    assert result.main.value > 0.999


def test_a_constant_vector_gets_the_mean(rng: np.random.Generator):
    y = rng.standard_normal(TOTAL)
    frames = cut(numbered())
    table = probe([MeanImage.fit(list(frames.values()))], frames, targets_of(y=y), cnn=False)
    for head in ("linear", "mlp"):
        assert table.result("y", "mean image", head).main.value == pytest.approx(0, abs=0.05)


def test_classes(rng: np.random.Generator):
    """Two, one of them rare, and three with numbers of their own; each against noise of the same kind."""
    z = rng.standard_normal((TOTAL, 3))
    columns = {"y": z[:, 0] > 0, "rare": z[:, 0] > np.quantile(z[:, 0], 0.9), "three": z.argmax(1) * 10 + 5}
    noise = {"noise": rng.random(TOTAL) > 0.5, "noise rare": rng.random(TOTAL) > 0.9}
    table = run(z, {**columns, **noise, "noise of three": rng.integers(0, 3, TOTAL)})
    assert table.result("y", "latent").kind == "binary"
    assert table.result("y", "latent").main.metric == "auroc"
    assert metric(table, "auroc") > 0.99
    assert metric(table, "balanced_accuracy") > 0.96
    assert metric(table, "auroc", "rare") > 0.98
    assert metric(table, "balanced_accuracy", "rare") > 0.88
    three = table.result("three", "latent")
    assert (three.kind, three.classes, three.main.metric) == ("categorical", 3, "balanced_accuracy")
    assert three.main.value > 0.9
    assert abs(metric(table, "auroc", "noise") - 0.5) < 0.12
    for name, chance in (("noise", 1 / 2), ("noise rare", 1 / 2), ("noise of three", 1 / 3)):
        assert abs(metric(table, "balanced_accuracy", name) - chance) < 0.2
    assert table.keeps("noise").verdict == "not readable"


def test_the_same_seed_gives_the_same_table_which_is_plain_json(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(heads, "_MLP_STEPS", 40)
    z = rng.standard_normal((TOTAL, 3))
    columns = {"y": z[:, 0] + 0.3 * rng.standard_normal(TOTAL), "b": z[:, 1] > 0.5, "none": np.zeros(TOTAL)}
    table = run(z, columns, mlp=True)
    assert run(z, columns, mlp=True) == table
    assert run(z, columns, seed=1).recordings != table.recordings
    written = json.loads(json.dumps(table.to_json(), allow_nan=False))
    assert [line["target"] + line["head"] for line in written["results"]] == ["blinear", "bmlp", "ylinear", "ymlp"]
    assert written["keeps"][0]["representation"] == "latent"
    assert list(written["left_out"]) == ["none"]


def test_bad_calls_are_refused(rng: np.random.Generator):
    z = rng.standard_normal((TOTAL, 2))
    frames, targets = cut(numbered()), targets_of(y=z[:, 0])
    for representations in ([Given(z), Given(z)], []):
        with pytest.raises(InputError, match="representations"):
            probe(representations, frames, targets)
    with pytest.raises(InputError, match="frames_by_recording"):
        probe([Given(z)], {**frames, "odd": np.zeros((5, 8, 8, 3), np.uint8)}, targets)
    with pytest.raises(InputError, match="latent"):
        probe([Given(np.full_like(z, np.nan))], frames, targets)
    for values in (z[:50, 0], z[:LENGTH]):
        with pytest.raises(InputError, match="'y' of r00"):
            probe([Given(z)], frames, {"r00": {"y": values}})
    with pytest.raises(InputError, match="strange"):
        probe([Given(z)], frames, {"strange": {"y": z[:LENGTH, 0]}})
