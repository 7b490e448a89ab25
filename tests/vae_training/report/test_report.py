"""`report()` and `latent-obs report` as a user runs them, on a tiny encoder that was trained here."""

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from latent_obs.util.errors import EncoderFolderError, InputError, MissingExtraError
from latent_obs_cli.main import main
from tests.support.tiny import IMG_SHAPE, picture, random_frames, tiny_cvae
from tests.support.training_runs import config_for, run
from vae_training.data.frames import get_datasets
from vae_training.report import ReportConfig, report
from vae_training.report.encoder import ReportModel
from vae_training.report.run import load_known
from vae_training.report.sample import Recordings
from vae_training.training.export import export_encoder

for package in ("skimage", "sklearn", "matplotlib"):
    pytest.importorskip(package)

SECTIONS = [
    "The encoder",
    "Reconstruction",
    "Latents",
    "What the decoder makes of latents",
    "Stability",
    "Not measured",
]


class Page(HTMLParser):
    """Tags, headings and text of a page."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.text = ""
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.tags[-1][0] in ("h1", "h2"):
            self.headings.append(data)
            self.tags.append(("", {}))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder; its frames lie beside it, with what is known of each."""
    home = tmp_path_factory.mktemp("report")
    frames = home / "frames"
    frames.mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        steps = rng.permutation(80) / 8
        np.save(frames / f"{number}.npy", np.stack([picture(number, step, 16, 16) for step in steps]))
        np.savez(frames / f"{number}.rows.npz", **{"state$STEP": steps.astype(np.float32), "first": np.arange(80) == 0})
    run(config_for(frames, home / "run", epochs=6, beta=0.01))
    return home / "run"


@pytest.fixture(scope="module")
def made(trained: Path) -> Any:
    said: list[str] = []
    result = report(ReportConfig(trained, quick=True, autoencoder_steps=3), progress_bar=False, say=said.append)
    return result, said


def test_it_lies_beside_the_encoder(made: Any, trained: Path):
    result, said = made
    assert result.page == trained / "report" / "report.html"
    assert sorted(p.name for p in (trained / "report").iterdir()) == ["pictures", "report.html", "report.json"]
    assert str(result.page) in said[-1]
    assert any(result.headline in line for line in said)


def test_the_page_holds_everything_and_fetches_nothing(made: Any, trained: Path):
    result, _ = made
    page = Page(result.page)
    assert page.headings[0] == "What the latents keep"
    assert [h for h in page.headings if h in SECTIONS] == SECTIONS
    assert result.headline in page.text
    for finding in result.findings:
        assert finding.sentence in page.text
        assert finding.suggestion in page.text
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == len(list((trained / "report" / "pictures").glob("*.png"))) == 10
    for attributes in images:
        assert str(attributes["src"]).startswith("data:image/png;base64,")
        assert attributes["alt"]
    assert not {"script", "link", "iframe", "video"} & {tag for tag, _ in page.tags}
    assert not re.findall(r"https?://", result.page.read_text())
    assert {"meta"} <= {tag for tag, attributes in page.tags if attributes.get("name") == "viewport"}


def test_the_numbers_are_in_the_json(made: Any, trained: Path):
    result, _ = made
    values = json.loads(result.json.read_text())
    assert values["headline"] == result.headline
    assert [f["sentence"] for f in values["findings"]] == [f.sentence for f in result.findings]
    assert values["frames"]["held_out"] == [{"file": "3.npy", "frames": 80}]
    assert values["frames"]["measured"] == 80
    assert len(values["latents"]["kl_nats_by_dimension"]) == 6
    assert np.array(values["latents"]["correlation"]).shape == (6, 6)
    assert set(values["reconstruction"]["scores"]) == {"encoder", "pca", "mean image", "autoencoder"}
    assert (
        0 < values["reconstruction"]["scores"]["pca"]["mse"] < values["reconstruction"]["scores"]["mean image"]["mse"]
    )
    assert set(values["reconstruction"]["worst"][0]) == {"file", "frames", "row", "mse"}
    assert values["settings"]["seed"] == 0
    assert values["encoder"]["settings"]["beta"] == 0.01
    assert list(values["not_measured"]) == ["probes on the pixels"]


def test_the_numbers_are_those_of_the_encoder(made: Any, trained: Path):
    """Measured once more with the frozen encoder that an agent gets."""
    result, _ = made
    frames = np.load(trained.parent / "frames" / "3.npy")
    model = ReportModel(trained, "cpu")
    means = model.frozen.encode(frames)
    assert model.means(frames) == pytest.approx(means, abs=1e-5)
    assert result.latents.variance_of_mean == pytest.approx(means.var(0).tolist(), rel=1e-4)
    decoded = model.frozen.decode(means) / 255
    assert result.reconstruction.scores["encoder"].mse == pytest.approx(
        np.square(decoded - frames / 255).mean(), rel=1e-2
    )
    pca = result.reconstruction.scores["pca"].mse
    assert result.reconstruction.ratio("pca") == pytest.approx(result.reconstruction.scores["encoder"].mse / pca)


def test_what_is_known_of_the_state_is_probed(made: Any):
    result, _ = made
    assert result.probes.targets == ["state$STEP"]
    assert result.probes.representations == ["latent", "PCA", "random encoder"]
    assert result.probes.recordings["held_out"] == ["3"]
    page = Page(result.page)
    assert "state$STEP" in page.text
    assert any(h.startswith("Probes") for h in page.headings)


def test_the_same_report_twice(made: Any, trained: Path, tmp_path: Path):
    first, _ = made
    config = ReportConfig(trained, out=tmp_path / "again", quick=True, autoencoder_steps=3)
    second = report(config, progress_bar=False, say=lambda _: None)
    assert second.latents == first.latents
    assert second.stability == first.stability
    assert second.findings == first.findings
    assert second.reconstruction is not None
    assert second.reconstruction.scores == first.reconstruction.scores


def test_without_a_decoder_the_pictures_are_left_out(tmp_path: Path, frames_folder: Path):
    folder = export_encoder(tmp_path / "run" / "encoder", tiny_cvae(), random_frames(4), with_decoder=False)
    config = ReportConfig(folder, frames=frames_folder, quick=True, sample=20)
    result = report(config, progress_bar=False, say=lambda _: None)
    assert result.page == tmp_path / "run" / "report" / "report.html"
    assert result.reconstruction is None
    assert result.not_measured["reconstruction"] == "the encoder folder has no decoder"
    assert result.probes is None
    assert "nothing is known of the state" in result.not_measured["probes"]
    page = Page(result.page)
    assert [h for h in page.headings if h in SECTIONS] == ["The encoder", "Latents", "Stability", "Not measured"]
    assert "has no decoder" in page.text
    assert "held out" in {
        finding.topic for finding in result.findings
    }  # the folder does not tell what it was trained on
    assert json.loads(result.json.read_text())["reconstruction"] is None


def test_own_targets(trained: Path, tmp_path: Path):
    frames = trained.parent / "frames"
    steps = [np.load(frames / f"{i}.rows.npz")["state$STEP"] for i in range(4)]
    np.savez(tmp_path / "own.npz", twice=2 * np.concatenate(steps))
    config = ReportConfig(trained, out=tmp_path / "out", targets=tmp_path / "own.npz", quick=True)
    result = report(config, progress_bar=False, say=lambda _: None)
    assert result.probes is not None
    assert result.probes.targets == ["state$STEP", "twice"]
    one, other = (result.probes.result(name, "latent").main.value for name in result.probes.targets)
    assert one == pytest.approx(other, abs=1e-3)
    np.savez(tmp_path / "short.npz", short=np.zeros(7))
    with pytest.raises(InputError, match=r"short.*\(7,\)"):
        report(ReportConfig(trained, targets=tmp_path / "short.npz"), progress_bar=False, say=lambda _: None)


def test_own_targets_of_a_recording_that_is_cut(tmp_path: Path):
    np.save(tmp_path / "a.npy", random_frames(100))
    np.savez(tmp_path / "own.npz", row=np.arange(100))
    (whole,) = get_datasets(tmp_path)
    recordings = Recordings([whole[:80]], [whole[85:]], "", True)
    work: Any = SimpleNamespace(config=ReportConfig(tmp_path, targets=tmp_path / "own.npz"), recordings=recordings)
    known = load_known(work)
    assert known.held_out == ["a (held out)"]
    assert known.targets["a"]["row"].tolist() == list(range(80))
    assert known.targets["a (held out)"]["row"].tolist() == list(range(85, 100))


def test_factor_scenes_get_disentanglement_scores(tmp_path: Path):
    from benchmarks.factor_scenes import FactorScenes

    scenes = FactorScenes(16, positions=3, sizes=1, shapes=1, hues=2, orientations=1)
    scenes.write(tmp_path / "scenes", frames=60, files=2)
    folder = export_encoder(tmp_path / "encoder", tiny_cvae(), random_frames(4, IMG_SHAPE))
    config = ReportConfig(folder, frames=tmp_path / "scenes", quick=True)
    result = report(config, progress_bar=False, say=lambda _: None)
    assert result.disentanglement is not None
    assert set(result.disentanglement["mig_per_factor"]) == {"position_x", "position_y", "hue"}
    assert "FactorVAE" in Page(result.page).text
    (tmp_path / "scenes" / "scenes.json").write_text("{}")
    with pytest.raises(InputError, match=r"scenes\.json cannot be read"):
        report(config, progress_bar=False, say=lambda _: None)


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Callable[[str], tuple[int, str, str]]:
    def run_it(words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            code = main(words.split())
        except SystemExit as error:
            code = int(error.code or 0)
        out, err = capfd.readouterr()
        return code, out, err

    return run_it


def test_by_the_command_line(call: Any, trained: Path, tmp_path: Path):
    code, out, _ = call(f"report {trained} --out {tmp_path / 'out'} --quick --no-probes --sample 32")
    assert code == 0
    assert str(tmp_path / "out" / "report.html") in out
    assert "Not measured:" in out
    values = json.loads((tmp_path / "out" / "report.json").read_text())
    assert values["frames"]["measured"] == 32
    assert values["not_measured"]["probes"] == "left out (--no-probes)"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("report nowhere", "nowhere"),
        ("report {run} --frames nowhere", "nowhere"),
        ("report {run} --out {file}", "is a file"),
        ("report {run} --sample 3", "sample must be 16"),
        ("report {run} --targets nowhere.npz", "nowhere.npz"),
        ("report {run} --device cuda:77", "cuda:77"),
    ],
)
def test_mistakes_are_told(call: Any, trained: Path, tmp_path: Path, words: str, told: str):
    (tmp_path / "file").write_text("mine")
    code, _, err = call(words.format(run=trained, file=tmp_path / "file"))
    assert code == 2
    assert told in err
    assert "Traceback" not in err


def test_a_damaged_encoder(trained: Path, tmp_path: Path):
    folder = shutil.copytree(trained / "encoder", tmp_path / "encoder")
    data = bytearray((folder / "decoder.safetensors").read_bytes())
    data[-3] ^= 1
    (folder / "decoder.safetensors").write_bytes(data)
    with pytest.raises(EncoderFolderError, match="damaged"):
        report(ReportConfig(folder), say=lambda _: None)


def test_a_missing_package_is_told_before_anything_else(trained: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "skimage", None)
    with pytest.raises(MissingExtraError, match=r"latent-obs\[report\]"):
        report(ReportConfig(trained), say=lambda _: None)
