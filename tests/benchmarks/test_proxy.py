"""The proxy of returns: its numbers against numpy, scikit-learn and hand-made cases, and a run on a recording."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")
pytest.importorskip("scipy")
pytest.importorskip("sklearn")

from benchmarks import proxy
from benchmarks.proxy import Arm, Options, main, observations, rank_correlation, returns_to_go, sample_of, starts_of
from latent_obs.encoder.pca import PCA
from vae_training.data.rows import save_rows
from vae_training.report.probes.scores import UNUSED


def test_returns_to_go_are_sums_within_an_episode():
    """Three frames that end in a death, a picture after it, and 120 frames that the recording cuts."""
    count = 124
    rows: dict[str, Any] = {"reward": np.arange(count, dtype=np.float32), "terminated": np.arange(count) == 2}
    rows["first"] = np.isin(np.arange(count), (0, 4))
    rows["acted"] = ~np.isin(np.arange(count), (3, count - 1))
    found = returns_to_go(rows)
    g = proxy.GAMMA
    np.testing.assert_allclose(found[:3], [0 + g * (1 + g * 2), 1 + g * 2, 2])
    assert np.isnan(found[3]), "no step is known after a last picture"
    known = np.flatnonzero(np.isfinite(found[4:])) + 4
    assert known.tolist() == list(range(4, known[-1] + 1))
    assert g ** (count - known[-1]) <= 0.1 < g ** (count - known[-1] - 1)
    np.testing.assert_allclose(found[4], (g ** np.arange(120) * np.arange(4, 124)).sum())


def recording(folder: Path, count: int = 150) -> Path:
    """Four files of episodes of 10 frames: a bright column's place is the state, the reward and the action."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(4):
        place = rng.integers(0, 8, count)
        frames = rng.integers(0, 60, (count, 8, 8, 3)).astype(np.uint8)
        frames[np.arange(count), :, place] += 150
        np.save(folder / f"f_{number}.npy", frames)
        first = np.arange(count) % 10 == 0
        box = np.stack([np.ones(count), place / 8, *np.zeros((3, count))], 1).astype(np.float32)
        columns = {"action": place // 4, "reward": place.astype(np.float32), "object$Bar": box}
        columns |= {"first": first, "terminated": np.append(first[1:], True), "acted": np.ones(count, bool)}
        save_rows(folder / f"f_{number}.rows.npz", columns)
    return folder


def test_a_history_begins_with_its_episode_and_has_the_agents_scale(tmp_path: Path):
    folder = recording(tmp_path / "task")
    sample = sample_of(folder, proxy.state_and_return, Options(count=200))
    pca = PCA.fit(folder, 4)
    encoder = pca.encoder(device="cpu")
    found = observations(Arm(encoder, 3), sample)
    used = sample.split.part != UNUSED
    assert (used[sample.split.part <= 1].sum(), found.shape) == (200, (600, 12))
    flat = np.concatenate([np.load(file).reshape(150, -1) / 255 for file in sorted(folder.glob("*.npy"))])
    latents = (flat - pca.centre) @ pca.components.T
    begin = np.arange(600) // 10 * 10
    wanted = np.concatenate([latents[np.maximum(np.arange(600) - back, begin)] for back in (2, 1, 0)], 1)
    learnt = sample.split.part <= 1
    wanted = (wanted - wanted[learnt].mean(0)) / np.sqrt(wanted[learnt].var(0).mean()) * 0.5
    np.testing.assert_allclose(found[used], wanted[used], atol=1e-3)
    assert starts_of({"first": np.array([1, 0, 1, 0, 0])}, 5).tolist() == [0, 0, 2, 2, 2]


def test_the_linear_head_is_ridge_regression(tmp_path: Path):
    from sklearn.linear_model import Ridge

    sample = sample_of(recording(tmp_path / "task"), proxy.state_and_return, Options(count=200))
    inputs = np.random.default_rng(1).normal(size=(600, 5))
    wanted = inputs @ np.array([[1.0], [0], [0], [2], [0]]) + np.random.default_rng(2).normal(size=(600, 1))
    (found,) = proxy._ridge(inputs, [wanted], sample.split)
    part = sample.split.part
    scores: list[tuple[float, float]] = []
    for penalty in np.logspace(-6, 1, 15):
        model = Ridge(alpha=penalty * (part == 0).sum()).fit(inputs[part == 0], wanted[part == 0].ravel())
        scores.append((float(np.square(model.predict(inputs[part == 1]) - wanted[part == 1, 0]).mean()), penalty))
    model = Ridge(alpha=min(scores)[1] * (part <= 1).sum()).fit(inputs[part <= 1], wanted[part <= 1].ravel())
    np.testing.assert_allclose(found[:, 0], model.predict(inputs), atol=1e-6)


def test_rank_correlations():
    from scipy.stats import spearmanr

    x, y = np.random.default_rng(0).normal(size=(2, 7))
    assert rank_correlation([(x, y)]) == pytest.approx(spearmanr(x, y)[0])  # pyright: ignore[reportArgumentType]
    same = [(x, [np.array([v, v]) for v in x])] * 3
    assert proxy.with_interval(same, 0) == pytest.approx((1, 1, 1))
    assert np.isnan(rank_correlation([(np.ones(3), x[:3])]))


def test_a_run_ranks_arms_by_what_they_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = recording(tmp_path / "task")
    PCA.fit(folder, 8).save(tmp_path / "task.safetensors")
    PCA.fit(folder, 1).save(tmp_path / "one.safetensors")
    recording(tmp_path / "experts" / "task")
    returns = {"many": {"scores": [2.0, 3.0]}, "one": {"scores": [1.0, 1.0]}}
    (tmp_path / "compare.json").write_text(json.dumps({"summary": {"tasks": {"task": {"arms": returns}}}}))
    arms = (f"many={tmp_path}/{{task}}.safetensors", f"one={tmp_path}/one.safetensors")
    main(
        Options(frames=(folder,), arms=arms, expert=tmp_path / "experts", returns=tmp_path / "compare.json", count=300)
    )
    printed = capsys.readouterr().out
    for name in ("objects, linear", "action, linear"):
        row = printed[printed.index(f"\n{name} head") :].split("| task | ")[2]
        many, one = (float(cell) for cell in row.split("|")[:2])
        assert 1 >= many > one >= 0
    assert "1.00 [1.00, 1.00]" in printed
