"""The ablation: its arms differ from the defaults as their names say, and a run on tiny recordings measures them."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")
pytest.importorskip("scipy")
pytest.importorskip("skimage")
pytest.importorskip("sklearn")

from benchmarks.ablation import SIZES, Options, arms_of, main
from tests.support.tiny import picture
from vae_training import TrainConfig
from vae_training.data.rows import save_rows


def test_arms_are_the_defaults_but_for_what_their_names_say():
    for size, layers in SIZES.items():
        for name, settings in arms_of(size).items():
            assert all(f"{key} {value:g}" in name for key, value in settings.items() if key not in layers)
            assert TrainConfig(**settings) != TrainConfig(**layers) or settings == layers


@pytest.mark.parametrize("known", [True, False])
def test_a_study_measures_arms_beside_pca_and_goes_on(known: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(4):
        rng = np.random.default_rng(number)
        steps = rng.permutation(60) / 8
        frames = np.stack([picture(0, step, 16, 16) for step in steps]) // 2
        np.save(folder / f"{number}.npy", frames + rng.integers(0, 100, frames.shape, np.uint8))  # PCA leaves an error
        if known:
            save_rows(folder / f"{number}.rows.npz", {"state$STEP": steps.astype(np.float32)})
    options = Options(frames=folder, out=tmp_path / "out", epochs=1, count=100, only="dense 32, components")
    main(options)
    log = tmp_path / "out" / "dense_32_components_0_beta_0.02_seed_0" / "log.jsonl"
    written = log.read_text()
    first = capsys.readouterr().out
    head, pca, arm = [[cell.strip() for cell in line.split("|")[1:-1]] for line in _table(first)]
    assert (pca[0], arm[0]) == ("dense 32, PCA", "dense 32, components 0 beta 0.02")
    assert float(pca[2]) == 1
    assert float(arm[2]) == pytest.approx(float(arm[1]) / float(pca[1]), rel=0.01)
    assert head[4:] == (["state, linear", "state, network"] if known else [])
    main(options)
    assert _table(capsys.readouterr().out) == _table(first)
    assert log.read_text() == written, "a finished run is not trained again"


def _table(printed: str) -> list[str]:
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    return [lines[0], *lines[2:]]
