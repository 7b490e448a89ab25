"""`report()` and `latent-obs report` as a user runs them, on a tiny encoder that was trained here."""

import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latent_obs.encoder.card import encoder_push
from latent_obs.pixels import PixelContract
from latent_obs.util.errors import EncoderFolderError, InputError, MissingExtraError
from latent_obs_cli.main import main
from tests.support.tiny import picture, random_frames, tiny_cvae
from tests.support.training_runs import config_for, run
from vae_training.report import ReportConfig, ReportResult, report
from vae_training.report.encoder import ReportModel
from vae_training.report.metrics.baselines import Pca
from vae_training.report.run import write_compact_json
from vae_training.training.export import export_encoder

for package in ("skimage", "sklearn", "matplotlib"):
    pytest.importorskip(package)


class Page(HTMLParser):
    """Tags and text of a page."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all_of(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in names]


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


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("settings", [1]),
        ("settings", {"frames": 5}),
        ("settings", {"beta": "x"}),
        ("settings", {"augment": "x"}),
        ("settings", {"epochs": [3]}),
        ("trained_on", {}),
        ("trained_on", [{"sha256_head_tail": "00", "frames": "3"}]),
        ("training_seconds", "x"),
    ],
)
def test_a_provenance_of_another_form_is_refused_by_name(tmp_path: Path, key: str, value: Any):
    folder = export_encoder(tmp_path / "encoder", tiny_cvae(), random_frames(2), provenance={key: value})
    with pytest.raises(InputError, match=r"config\.json, "):
        ReportModel(folder, "cpu")


def quietly(config: ReportConfig) -> ReportResult:
    return report(config, say=lambda _: None)


@pytest.fixture(scope="module")
def made(trained: Path) -> tuple[ReportResult, list[str]]:
    said: list[str] = []
    result = report(ReportConfig(trained, quick=True), say=said.append)
    return result, said


def test_the_page_lies_beside_the_encoder_holds_everything_and_fetches_nothing(made: Any, trained: Path):
    result, said = made
    assert result.page == trained / "report" / "report.html"
    assert sorted(p.name for p in (trained / "report").iterdir()) == ["pictures", "report.html", "report.json"]
    assert str(result.page) in said[-1]
    assert any(result.headline in " ".join(text.split()) for text in said), "wrapped"
    page = Page(result.page)
    assert len(page.all_of("h1", "h2")) == 10
    texts = [finding.sentence for finding in result.findings] + [grade.name for grade in result.grades]
    for text in (
        result.headline,
        result.worth.sentence,
        "state$STEP",
        *texts,
        *result.advice,
        *result.not_measured.values(),
    ):
        assert text in page.text
    images = page.all_of("img")
    assert len(images) == len(list((trained / "report" / "pictures").glob("*.png"))) == 11
    for attributes in images:
        assert str(attributes["src"]).startswith("data:image/png;base64,")
        assert attributes["alt"]
    assert not page.all_of("link", "iframe", "video")
    assert not any("src" in attributes for attributes in page.all_of("script"))
    assert not re.findall(r"https?://", result.page.read_text())


def test_the_card_of_the_encoder_has_the_numbers(made: Any, trained: Path):
    pytest.importorskip("huggingface_hub")
    result, _ = made
    what = encoder_push(trained, "somebody/doom", "mit")
    card, values = str(what.card("c0ffee")), json.loads(result.json.read_text())
    assert {"report/report.html", "report/pictures/reconstructions.png"} <= what.files.keys()
    error = values["reconstruction"]["scores"]["encoder"]["mse"]
    assert f"| this encoder | {error:.3g} |" in card
    assert f"value: {error}" in card, "in its front matter"
    assert result.headline in card
    assert "| state$STEP | R² |" in card
    assert "240 frames of 3 files" in card
    assert str(trained.parent) not in card, "no path of this machine"


def test_the_card_has_no_numbers_of_another_encoder(made: Any, trained: Path, tmp_path: Path):
    pytest.importorskip("huggingface_hub")
    copied = shutil.copytree(trained, tmp_path / "copied")
    file = copied / "report" / "report.json"
    values = json.loads(file.read_text())
    older = {name: value for name, value in values["encoder"].items() if name != "sha256"}
    for other in (
        {**values["encoder"], "sha256": "0" * 64},
        {**older, "step": older["step"] + 1},
        {**older, "module": {"name": "timm:another"}},
    ):
        file.write_text(json.dumps({**values, "encoder": other}))
        what = encoder_push(copied, "somebody/doom", "mit")
        assert "report/report.html" not in what.files
        assert values["headline"] not in str(what.card("c0ffee"))
        assert "another encoder" in what.notes[0]


def test_the_card_of_an_encoder_with_a_report_of_an_earlier_version(made: Any, trained: Path, tmp_path: Path):
    pytest.importorskip("huggingface_hub")
    copied = shutil.copytree(trained, tmp_path / "copied")
    file = copied / "report" / "report.json"
    values = json.loads(file.read_text())
    del values["worth"], values["encoder"]["sha256"]
    file.write_text(json.dumps(values))
    assert values["headline"] in str(encoder_push(copied, "somebody/doom", "mit").card("c0ffee"))
    del values["headline"]
    file.write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"report\.json: headline"):
        encoder_push(copied, "somebody/doom", "mit")


def test_the_numbers_are_in_the_json(made: Any):
    result, _ = made
    values = json.loads(result.json.read_text())
    assert (values["level"], values["headline"], values["advice"]) == (result.level, result.headline, result.advice)
    assert [(g["key"], g["level"]) for g in values["grades"]] == [(g.key, g.level) for g in result.grades]
    assert [(f["key"], f["topic"]) for f in values["findings"]] == [(f.key, f.topic) for f in result.findings]
    assert values["frames"]["held_out"] == [{"file": "3.npy", "frames": 80}]
    assert values["frames"]["measured"] == 80
    assert len(values["latents"]["kl_nats_by_dimension"]) == 6
    assert np.array(values["latents"]["correlation"]).shape == (6, 6)
    methods = values["reconstruction"]["scores"]
    assert set(methods) == {"encoder", "pca", "mean image"}
    assert 0 < methods["pca"]["mse"] < methods["mean image"]["mse"]
    assert set(values["reconstruction"]["worst"][0]) == {"file", "frames", "row", "mse"}
    assert values["reconstruction"]["training_mse"] > 0
    assert values["settings"]["seed"] == 0
    assert values["encoder"]["settings"]["beta"] == 0.01
    assert list(values["not_measured"]) == ["probes on the pixels"]
    assert result.probes.targets == ["state$STEP"]
    assert result.probes.representations == ["latent", "PCA", "random encoder"]
    assert result.probes.recordings["held_out"] == ["3"]
    assert result.few.representations == ["latent", "PCA"]
    assert values["worth"]["sentence"] == result.worth.sentence
    assert values["disentanglement"] is None, "with one known value even noise has a DCI disentanglement of 1"


def test_the_numbers_are_those_of_the_encoder(made: Any, trained: Path):
    """Measured once more with the frozen encoder that an agent gets."""
    result, _ = made
    frames = np.load(trained.parent / "frames" / "3.npy")
    model = ReportModel(trained, "cpu")
    means = model.frozen.encode(frames)
    assert model.means(frames) == pytest.approx(means, abs=1e-5)
    assert result.latents.variance_of_mean == pytest.approx(means.var(0).tolist(), rel=1e-4)
    mse = np.square(model.frozen.decode(means) / 255 - frames / 255).mean()
    assert result.reconstruction.scores["encoder"].mse == pytest.approx(mse, rel=1e-2)


@pytest.mark.parametrize("size", [16, 32])
def test_baselines_get_all_training_frames_and_none_that_is_held_out(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
):
    """Also with --quick, and where frames have to be resized."""
    folder, given = trained.parent / "frames", []
    if size != 16:
        folder = tmp_path / "large"
        folder.mkdir()
        for number in range(4):
            np.save(
                folder / f"{number}.npy", np.load(trained.parent / "frames" / f"{number}.npy").repeat(2, 1).repeat(2, 2)
            )
    fit = Pca.fit

    def kept(recordings: list[Any], dim: int) -> Pca:
        given.extend(recordings)
        return fit(recordings, dim)

    monkeypatch.setattr(Pca, "fit", kept)
    result = quietly(ReportConfig(trained, frames=folder, out=tmp_path / "out", quick=True, sample=20))
    (frames,) = given
    recorded = np.concatenate([np.load(folder / f"{number}.npy") for number in range(3)])
    assert np.array_equal(frames, PixelContract(16, 16, 3).convert(recorded))
    values = json.loads(result.json.read_text())
    assert (values["frames"]["fitted_on"], values["frames"]["measured"]) == (240, 20)
    assert "240 training frames" in result.reconstruction.notes["pca"]  # pyright: ignore[reportOptionalMemberAccess]
    assert "240 frames of 0.npy" in Page(result.page).text


def test_own_targets_change_nothing_else(made: Any, trained: Path, tmp_path: Path):
    frames = trained.parent / "frames"
    steps = [np.load(frames / f"{i}.rows.npz")["state$STEP"] for i in range(4)]
    np.savez(tmp_path / "own.npz", twice=2 * np.concatenate(steps))
    own, out = tmp_path / "own.npz", tmp_path / "out"
    result = quietly(ReportConfig(trained, out=out, targets=own, quick=True))
    assert result.probes is not None
    assert result.probes.targets == ["state$STEP", "twice"]
    one, other = (result.probes.result(name, "latent").main.value for name in result.probes.targets)
    assert one == pytest.approx(other, abs=1e-3)
    scores = result.disentanglement
    assert scores is not None
    assert scores["factors"] == list(scores["mig_per_factor"]) == list(scores["informativeness_per_factor"])
    assert scores["factors"] == ["state$STEP", "twice"]
    assert "Disentanglement" in Page(result.page).text
    assert 0 <= scores["mig"] <= 1
    first, _ = made  # the same seed gives the same report
    assert (result.latents, result.stability) == (first.latents, first.stability)
    assert result.reconstruction is not None
    assert result.reconstruction.scores == first.reconstruction.scores
    np.savez(tmp_path / "short.npz", short=np.zeros(7))
    with pytest.raises(InputError, match="short"):
        quietly(ReportConfig(trained, targets=tmp_path / "short.npz"))


def test_without_a_decoder_the_pictures_are_left_out(tmp_path: Path, frames_folder: Path):
    folder = export_encoder(tmp_path / "run" / "encoder", tiny_cvae(), random_frames(4), with_decoder=False)
    result = quietly(ReportConfig(folder, frames=frames_folder, quick=True, sample=20))
    assert result.page == tmp_path / "run" / "report" / "report.html"
    assert (result.reconstruction, result.probes, result.disentanglement) == (None, None, None)
    assert set(result.not_measured) == {"reconstruction", "probes"}
    assert len(Page(result.page).all_of("h1", "h2")) == 6
    assert "frames.may_be_known" in {finding.key for finding in result.findings}
    assert json.loads(result.json.read_text())["reconstruction"] is None


def test_by_the_command_line(trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    assert main(f"report {trained} --out {tmp_path / 'out'} --quick --no-probes --sample 32".split()) == 0
    assert str(tmp_path / "out" / "report.html") in capfd.readouterr().out
    values = json.loads((tmp_path / "out" / "report.json").read_text())
    assert values["frames"]["measured"] == 32
    assert set(values["not_measured"]) == {"probes"}


def test_mistakes_are_one_line(trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    (tmp_path / "file").write_text("mine")
    for name, frames in (("few", random_frames(15)), ("equal", np.zeros((40, 16, 16, 3), np.uint8))):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "0.npy", frames)
    for words, named in (
        ("nowhere", "nowhere"),
        (f"{trained} --frames nowhere", "nowhere"),
        (f"{trained} --out {tmp_path / 'file'}", "--out"),
        (f"{trained} --frames {tmp_path / 'few'}", "held-out frames"),
        (f"{trained} --frames {tmp_path / 'equal'}", "held-out frames"),
        (f"{trained} --targets nowhere.npz", "nowhere.npz"),
        (f"{trained} --device cuda:77", "cuda:77"),
    ):
        assert main(["report", *words.split()]) == 2
        err = capfd.readouterr().err
        assert named in err
        assert "Traceback" not in err
    with pytest.raises(InputError, match="sample"):
        ReportConfig(trained, sample=3)


def test_a_damaged_encoder_and_a_missing_package(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = shutil.copytree(trained / "encoder", tmp_path / "encoder")
    data = bytearray((folder / "decoder.safetensors").read_bytes())
    data[-3] ^= 1
    (folder / "decoder.safetensors").write_bytes(data)
    with pytest.raises(EncoderFolderError, match="damaged"):
        quietly(ReportConfig(folder))
    monkeypatch.setitem(sys.modules, "skimage", None)  # before the damage is seen
    with pytest.raises(MissingExtraError, match=r"latent-obs\[report\]"):
        quietly(ReportConfig(folder))


def test_json_is_plain_and_readable(tmp_path: Path):
    numbers = {"a": [1.0, float("nan"), np.float32(0.5)], "b": {"c": (np.int64(3), True, None)}, "p": Path("x")}
    text = write_compact_json(tmp_path / "a.json", {**numbers, "s": "[1, 2]", "rows": [[1, 2], [3, 4]]}).read_text()
    plain = {"a": [1.0, None, 0.5], "b": {"c": [3, True, None]}, "p": "x", "s": "[1, 2]", "rows": [[1, 2], [3, 4]]}
    assert json.loads(text) == plain
    assert '"a": [1.0, null, 0.5]' in text
    assert [f.name for f in tmp_path.iterdir()] == ["a.json"]
