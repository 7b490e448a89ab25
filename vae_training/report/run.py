"""`report()`: what an encoder keeps of its frames, measured on recordings that it never saw; a page and a JSON file.

report/
├── report.html     one self-contained page
├── report.json     every number
└── pictures/       the pictures of the page, as PNG files
"""

import json
import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from latent_obs.encoder.folder import package_versions
from latent_obs.util.atomic import atomic_write
from latent_obs.util.errors import InputError, require
from vae_training.report.config import ReportConfig
from vae_training.report.encoder import Floats, Reconstruct, ReportModel
from vae_training.report.findings import Finding, Numbers, headline, verdict
from vae_training.report.metrics.baselines import EncoderMeans, MeanImage, Pca, random_encoder
from vae_training.report.metrics.disentanglement import FEWEST_SAMPLES, dci, mig_by_factor
from vae_training.report.metrics.latents import Latents, describe
from vae_training.report.metrics.reconstruction import Measured, Reconstruction, compare, measure, train_autoencoder
from vae_training.report.metrics.stability import Stability, measure_stability
from vae_training.report.page import write_html
from vae_training.report.pictures import draw_pictures, probe_scores
from vae_training.report.probes.probes import probe
from vae_training.report.probes.table import METRIC_NAMES, ProbeTable
from vae_training.report.sample import (
    Dataset,
    Known,
    Recordings,
    Sample,
    check_enough,
    find_recordings,
    load_known,
    neighbors,
    take,
)

_FORMAT, _FORMAT_VERSION = "latent-obs-report", 1
_TEMPLATE = Path(__file__).parent / "templates" / "report.html.j2"
_MOST_FRAMES = 20_000  # that probes are fitted on
_NOTHING_KNOWN = (
    "there is no state beside these frames: record with an environment that reports it, or give --targets FILE"
)


@dataclass(frozen=True)
class ReportResult:
    """What a report found.

    Attributes:
        page: The HTML file.
        json: The JSON file.
        headline: The verdict in a sentence.
        findings: What it rests on, the worst first.
        latents: Statistics of the latents.
        stability: Steadiness of the latents.
        reconstruction: None where the folder has no decoder.
        probes: Scores by target and representation; None where nothing is known of the state.
        disentanglement: DCI and MIG on the probed values, as in the JSON; None where none were probed.
        not_measured: What is missing, and why.
    """

    page: Path
    json: Path
    headline: str
    findings: list[Finding]
    latents: Latents
    stability: Stability
    reconstruction: Reconstruction | None
    probes: ProbeTable | None
    disentanglement: dict[str, Any] | None
    not_measured: dict[str, str]


@dataclass
class _Work:
    """What the steps of a report share."""

    config: ReportConfig
    model: ReportModel
    recordings: Recordings
    sample: Sample  # held-out frames
    training: Sample  # frames that baselines are fitted on
    say: Callable[[str], object]
    progress_bar: bool | None
    methods: dict[str, Reconstruct] = field(default_factory=dict)
    measured: dict[str, Measured] = field(default_factory=dict)  # what each method did to each held-out frame
    training_mse: float | None = None
    not_measured: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def fitting(self) -> list[Dataset]:
        """Frames for baselines: whole recordings, or a converted sample where they have another size."""
        fits = self.recordings.training[0].shape[1:] == self.model.contract.shape
        return self.recordings.training if fits else [self.training.frames]

    @contextmanager
    def step(self, name: str, text: str) -> Iterator[None]:
        """A step of the work: announced, and timed."""
        self.say(f"{name}: {text}")
        began = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - began, 2)


def report(
    config: ReportConfig, *, progress_bar: bool | None = None, say: Callable[[str], object] = print
) -> ReportResult:
    """Measure an encoder on held-out recordings, and write a page and a JSON file.

    Args:
        config: Settings.
        progress_bar: Show bars for what takes long; None shows them in a terminal only.
        say: Where messages go.

    Raises:
        EncoderFolderError: The encoder folder is missing or damaged.
        InputError: There are no frames to measure on, or they or the targets do not fit.
        DeviceError: The device asked for is not there.
        MissingExtraError: A package of the extra "report" is not installed.
    """
    for package in ("matplotlib", "skimage", "sklearn"):  # now, and not after minutes of work
        require(package, extra="report", purpose="write a report")
    model = ReportModel(config.encoder, config.device)
    out = config.out or (model.folder.path.parent / "report")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; name a folder")
    recordings = find_recordings(model.provenance, config.frames)
    sample = take(recordings.held_out, config.held_out_frames, model.contract)
    check_enough(sample)
    training = take(recordings.training, config.training_frames, model.contract)
    known = load_known(recordings, config.targets) if config.probes else None
    work = _Work(config, model, recordings, sample, training, say, progress_bar)
    say(
        f"{len(sample.frames):,} frames of {len(recordings.held_out)} held-out recording(s), out of "
        f"{sum(map(len, recordings.held_out)):,}. {recordings.how}"
    )
    with work.step("latents", "information, active dimensions, correlations"):
        means, logvar = model.encode(sample.frames)
        latents = describe(means, logvar)
    with work.step("stability", "shifts, brightness, neighboring frames"):
        pairs = neighbors(recordings.held_out, config.held_out_frames, model.contract)
        stability = measure_stability(model.means, sample.frames, pairs, seed=config.seed)
    with work.step("PCA", "the linear baseline"):
        pca = Pca.fit([training.frames] if config.quick else work.fitting, model.architecture.latent_dim)
    reconstruction = _reconstruct(work, pca)
    probes = _probe(work, known, pca)
    disentanglement = None if known is None or probes is None else _disentanglement(work, known, probes, means)
    architecture, beta = model.architecture, (model.provenance.get("settings") or {}).get("beta")
    numbers = Numbers(
        latents, reconstruction, stability, probes, architecture.bottleneck, beta, recordings.certain, work.training_mse
    )
    findings = verdict(numbers)
    result = ReportResult(
        out / "report.html",
        out / "report.json",
        headline(findings, list(work.not_measured)),
        findings,
        latents,
        stability,
        reconstruction,
        probes,
        disentanglement,
        work.not_measured,
    )
    with work.step("page", "pictures, and the page"):
        _write_page(work, result)
    write_compact_json(result.json, _to_json(work, result))
    say(f"\n{result.headline}")
    for finding in findings:
        if finding.level != "good":
            say(f"- {finding.sentence}{f' Next: {finding.suggestion}.' if finding.suggestion else ''}")
    say(f"Page:    {result.page}\nNumbers: {result.json}")
    return result


def _reconstruct(work: _Work, pca: Pca) -> Reconstruction | None:
    """How frames come back, by the encoder and by what it is compared with."""
    model, config, frames, training = work.model, work.config, work.sample.frames, work.training.frames
    if not model.has_decoder:
        work.not_measured["reconstruction"] = "the encoder folder has no decoder"
        return None
    notes = {"pca": f"{pca.dim} components, fitted on {pca.pca.provenance['sampled']:,} training frames"}
    with work.step("reconstruction", "beside PCA and a mean image"):
        image = MeanImage.fit(work.fitting)
        work.methods |= {"encoder": model.reconstruct, "pca": pca.reconstruct, "mean image": image.reconstruct}
        if work.recordings.certain:
            few = training[:: max(1, len(training) // len(frames))]
            work.training_mse = measure(few, model.reconstruct, with_ssim=False).scores().mse
    if config.steps:
        fitted = f"{config.steps} steps on {len(training):,} frames"
        with work.step("autoencoder", f"beta 0, the same layers, {fitted}"):
            device, bar = next(model.cvae.parameters()).device, work.progress_bar
            work.methods["autoencoder"], seconds = train_autoencoder(
                model.architecture, training, steps=config.steps, seed=config.seed, device=device, progress_bar=bar
            )
        notes["autoencoder"] = f"trained here for {fitted}, {seconds:.0f} s"
    else:
        work.not_measured["autoencoder"] = "left out (--autoencoder-steps 300 trains one to compare with)"
    for name, method in work.methods.items():
        work.measured[name] = measure(frames, method, progress_bar=work.progress_bar, name=name)
    return compare(work.measured, notes=notes)


def _probe(work: _Work, known: Known | None, pca: Pca) -> ProbeTable | None:
    """How well known state is read from the latents and from the baselines; None where there is none to read."""
    config, frozen = work.config, work.model.frozen
    if known is None:
        work.not_measured["probes"] = "left out (--no-probes)"
        return None
    if not any(known.targets[name] for name in known.held_out):
        work.not_measured["probes"] = _NOTHING_KNOWN
        return None
    probed, scored = known.to_probe()
    fitting = probed.converted(work.model.contract, _MOST_FRAMES)
    # Another seed than training's: its own would be the very weights that training began with.
    baselines = [pca, random_encoder(frozen, seed=config.seed + 1_000_003)]
    with work.step("probes", "what can be read from the latents, from PCA, from a random encoder, from the pixels"):
        try:
            table = probe(
                [EncoderMeans(frozen), *baselines],
                fitting.recordings,
                fitting.targets,
                held_out=scored,
                seed=config.seed,
                mlp=not config.quick,
                cnn=not config.quick,
                most_frames=config.training_frames if config.quick else _MOST_FRAMES,
                device=str(frozen.device),
                log=work.say,
            )
        except InputError as error:  # the frames were fine for everything else: the report goes on without probes
            work.not_measured["probes"] = str(error)
            return None
    if not table.results:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(table.left_out.items())[:5])
        work.not_measured["probes"] = f"no target could be probed ({reasons})"
        return None
    if config.quick:
        work.not_measured["probes on the pixels"] = "left out with --quick, and so are those by small networks"
    return table


def _disentanglement(work: _Work, known: Known, table: ProbeTable, means: Floats) -> dict[str, Any] | None:
    """DCI and MIG of the latents on the probed values, over the held-out sample."""
    values = np.stack([known.column(target, work.sample) for target in table.targets], 1)
    enough = [i for i in range(values.shape[1]) if np.isfinite(values[:, i]).sum() >= FEWEST_SAMPLES]
    names, values = [table.targets[i] for i in enough], values[:, enough]
    if not names or not np.nanstd(values, axis=0).any():
        return None
    kinds = {result.target: result.kind for result in table.results}
    with work.step("disentanglement", f"of {len(names)} known value(s)"):
        scores = dci(means, values, categorical=[kinds[n] != "continuous" for n in names], seed=work.config.seed)
        gaps = mig_by_factor(means, values)
    return {
        "factors": names,
        "samples": len(means),
        "mig": float(np.nanmean(gaps)),
        "dci_disentanglement": scores.disentanglement,
        "dci_completeness": scores.completeness,
        "dci_informativeness": scores.informativeness,
        "mig_per_factor": dict(zip(names, gaps.tolist(), strict=True)),
        "informativeness_per_factor": dict(zip(names, scores.by_factor.tolist(), strict=True)),
    }


def _write_page(work: _Work, result: ReportResult) -> None:
    model = work.model
    errors = work.measured.get("encoder")
    folder, frames, seed = result.page.parent / "pictures", work.sample.frames, work.config.seed
    parts = (result.latents, result.reconstruction, result.probes)
    pictures = draw_pictures(folder, model, frames, *parts, methods=work.methods, errors=errors, seed=seed)
    settings = model.provenance.get("settings") or {}
    trained = [f"{name} {settings[name]}" for name in ("beta", "epochs", "seed") if name in settings]
    if seconds := model.provenance.get("training_seconds"):
        trained.append(f"{seconds:,.0f} s")
    values = {
        "result": result,
        "recordings": work.recordings,
        "training_mse": work.training_mse,
        "pictures": pictures,
        "probe_table": None if result.probes is None else _probe_rows(result.probes),
        "facts": {
            "folder": str(model.folder.path),
            "input": "x".join(map(str, model.architecture.img_shape)),
            "latent": f"{model.architecture.latent_dim} values, {model.architecture.bottleneck} bottleneck",
            "trained": ", ".join(trained) or "unknown: not in the folder",
            "measured on": f"{len(work.sample.frames):,} frames of {_files(work.recordings.held_out)}",
            "baselines fitted on": f"{len(work.training.frames):,} frames of {_files(work.recordings.training)}",
        },
        "seconds": sum(work.seconds.values()),
        "date": time.strftime("%Y-%m-%d"),
    }
    write_html(result.page, _TEMPLATE, values)


def _probe_rows(table: ProbeTable) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the probes' table."""
    columns = probe_scores(table)
    rows: list[list[str]] = []
    for target in table.targets:
        scores = [f"{found[target].main.value:.2f}" if target in found else "" for found in columns.values()]
        rows.append([target, METRIC_NAMES[table.best(target).main.metric], *scores, table.keeps(target).verdict])
    return ["known value", "score", *columns, "the latents"], rows


def _files(datasets: list[Dataset]) -> str:
    names = [_recording(dataset)["file"] or "an array" for dataset in datasets]
    return ", ".join(names) if len(names) <= 5 else f"{', '.join(names[:4])} and {len(names) - 4} more"


def _to_json(work: _Work, result: ReportResult) -> dict[str, Any]:
    """Everything, as plain values."""
    model, found = work.model, result.reconstruction
    reconstruction = None
    if found is not None:
        reconstruction = asdict(found) | {
            "ratio_to": {name: found.ratio(name) for name in found.scores},
            "training_mse": work.training_mse,
            "best": [_frame(work, i) for i in found.best],
            "worst": [_frame(work, i) for i in found.worst],
        }
    return {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "headline": result.headline,
        "findings": [{**asdict(finding), "topic": finding.topic} for finding in result.findings],
        "not_measured": result.not_measured,
        "encoder": {
            "folder": str(model.folder.path),
            "architecture": model.architecture.to_json(),
            **{name: model.provenance.get(name) for name in ("settings", "step", "training_seconds")},
        },
        "frames": {
            "how": work.recordings.how,
            "certainly_unseen": work.recordings.certain,
            "held_out": [_recording(d) for d in work.recordings.held_out],
            "training": [_recording(d) for d in work.recordings.training],
            "measured": len(work.sample.frames),
            "fitted_on": len(work.training.frames),
        },
        "latents": asdict(result.latents),
        "stability": asdict(result.stability),
        "reconstruction": reconstruction,
        "probes": None if result.probes is None else result.probes.to_json(),
        "disentanglement": result.disentanglement,
        "settings": work.config.to_json(),
        "seconds": work.seconds,
        "packages": package_versions(),
    }


def _recording(dataset: Dataset) -> dict[str, Any]:
    filename = getattr(dataset, "filename", None)
    return {"file": Path(filename).name if filename else None, "frames": len(dataset)}


def _frame(work: _Work, number: int) -> dict[str, Any]:
    """Where a frame of the sample comes from, and its error."""
    place = {"row": int(work.sample.row[number]), "mse": float(work.measured["encoder"].mse[number])}
    return _recording(work.recordings.held_out[int(work.sample.recording[number])]) | place


_NUMBERS = re.compile(r"\[\s+((?:-?[\d.eE+-]+|true|false|null)(?:,\s+(?:-?[\d.eE+-]+|true|false|null))*)\s+\]")


def write_compact_json(path: Path, values: Any) -> Path:
    """Write values as indented JSON, with lists of numbers on one line, and return the path.

    Floats are kept to six digits; those that are not finite become null.
    """
    text = json.dumps(_plain(values), indent=2, allow_nan=False, ensure_ascii=False)
    text = _NUMBERS.sub(lambda match: "[" + re.sub(r"\s+", " ", match.group(1)) + "]", text)
    with atomic_write(path) as aside:
        aside.write_text(text + "\n", encoding="utf-8")
    return path


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
