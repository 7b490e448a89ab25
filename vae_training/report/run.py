"""`report()`: what an encoder keeps of its frames, measured on recordings that it never saw; a page and a JSON file.

report/
├── report.html     one self-contained page
├── report.json     every number
└── pictures/       the pictures of the page, as PNG files
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latent_obs.encoder.folder import package_versions
from latent_obs.util.errors import InputError, require
from vae_training.data.frames import describe_datasets, get_datasets
from vae_training.report.config import ReportConfig
from vae_training.report.encoder import ReportModel
from vae_training.report.findings import Finding, Numbers, Probe, ScoreOf, headline, verdict
from vae_training.report.json_file import write_compact_json
from vae_training.report.metrics.baselines import MeanImage, Pca
from vae_training.report.metrics.latents import Latents, describe
from vae_training.report.metrics.reconstruction import Measured, Reconstruction, compare, measure, train_autoencoder
from vae_training.report.metrics.stability import Stability, measure_stability
from vae_training.report.probes.table import ProbeTable
from vae_training.report.sample import (
    Dataset,
    Recordings,
    Sample,
    check_enough,
    find_recordings,
    neighbours,
    read,
    rows_of,
    take,
)

PIXELS = "pixels (CNN)"
NOTHING_KNOWN = (
    "nothing is known of the state beside these frames (frames record keeps it for environments that tell; or give "
    "--targets FILE)"
)
_MEASURES = {"r2": "R²", "auroc": "AUROC", "balanced_accuracy": "balanced accuracy"}
_MOST_FRAMES = 20_000
Targets = dict[str, dict[str, NDArray[Any]]]


@dataclass(frozen=True)
class Known:
    """What is known of the recordings of a report.

    Attributes:
        recordings: By name.
        held_out: Names of those that are measured.
        targets: For each recording what is known of it, by name.
    """

    recordings: dict[str, Dataset]
    held_out: list[str]
    targets: Targets


def load_known(work: "Work") -> Known:
    """Read what is known of the state, before anything takes long.

    Raises:
        InputError: The rows beside a file of frames, or the user's targets, cannot be read or do not fit the frames.
    """
    if not work.config.probes:
        return Known({}, [], {})
    named, held_out = _named(work)
    return Known(named, held_out, _targets(work, named))


def probe_encoder(work: "Work", known: Known) -> "ProbeTable | None":
    """How well known state is read from the latents and from the baselines; None where there is none to read.

    Args:
        work: What is being reported on; what cannot be measured is noted there.
        known: From `load_known`.
    """
    config = work.config
    if not config.probes:
        work.not_measured["probes"] = "left out (--no-probes)"
        return None
    named, held_out, targets = known.recordings, known.held_out, known.targets
    if not any(targets[name] for name in held_out):
        work.not_measured["probes"] = NOTHING_KNOWN
        return None
    learning = [name for name in named if name not in held_out]
    shared = set().union(*(targets[name] for name in learning)) & set().union(*(targets[name] for name in held_out))
    scored: list[str] | None = held_out
    if not shared:  # nothing is known of the training recordings: probes learn from some that the encoder never saw
        named, scored = {name: named[name] for name in held_out}, None
        targets = {name: targets[name] for name in named}
    from vae_training.report.metrics.baselines import EncoderMeans, random_encoder
    from vae_training.report.probes.probes import probe

    frames, targets = _converted(work, named, targets)
    others = [work.pca] if work.pca is not None and work.pca.frame_shape == work.model.contract.shape else []
    with work.part("probes", "what can be read from the latents, from PCA, from a random encoder, from the pixels"):
        try:
            # Another seed than training's: its own would be the very weights that training began with.
            untrained = random_encoder(work.model.frozen, seed=config.seed + 1_000_003)
            table = probe(
                [EncoderMeans(work.model.frozen), *others, untrained],
                frames,
                targets,
                held_out=scored,
                seed=config.seed,
                mlp=not config.quick,
                cnn=not config.quick,
                most_frames=config.training_frames if config.quick else _MOST_FRAMES,
                device=str(work.model.frozen.device),
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


def _named(work: "Work") -> tuple[dict[str, Dataset], list[str]]:
    """Recordings by name, and the names of the held-out ones."""
    named: dict[str, Dataset] = {}
    held_out: list[str] = []
    for part, datasets in (("training", work.recordings.training), ("held out", work.recordings.held_out)):
        for dataset in datasets:
            stem = Path(str(getattr(dataset, "filename", None) or "frames")).stem
            name = stem if stem not in named else f"{stem} ({part})"
            named[name] = dataset
            if part == "held out":
                held_out.append(name)
    return named, held_out


def _targets(work: "Work", named: dict[str, Dataset]) -> Targets:
    """What is known of each recording, from the rows beside it and from the user's file."""
    from vae_training.data.rows import targets_of
    from vae_training.report.probes.probes import load_targets

    targets: Targets = {name: dict(targets_of(rows_of(dataset))) for name, dataset in named.items()}
    if work.config.targets is None:
        return targets
    # The file goes along whole files, while a recording here may be a part of one.
    folder = Path(str(getattr(work.recordings.held_out[0], "filename", ""))).parent
    own = load_targets(work.config.targets, {Path(str(d.filename)).stem: d for d in get_datasets(folder)})
    for name, dataset in named.items():
        file = Path(str(getattr(dataset, "filename", "")))
        if file.parent == folder:
            first = describe_datasets([dataset])[0]["first_frame"]
            targets[name] |= {key: values[first : first + len(dataset)] for key, values in own[file.stem].items()}
    return targets


def _converted(work: "Work", named: dict[str, Dataset], targets: Targets) -> tuple[dict[str, Dataset], Targets]:
    """Recordings of another frame size as the encoder eats them; of many frames every k-th, as they then lie in
    memory.
    """
    contract = work.model.contract
    if all(dataset.shape[1:] == contract.shape for dataset in named.values()):
        return named, targets
    step = max(1, -(-sum(map(len, named.values())) // _MOST_FRAMES))
    frames = {
        name: read([dataset], np.zeros(len(rows), np.int64), rows, contract)
        for name, dataset in named.items()
        if len(rows := np.arange(0, len(dataset), step))
    }
    return frames, {name: {key: v[::step] for key, v in targets[name].items()} for name in frames}


def scores_for_verdict(table: "ProbeTable") -> list[Probe]:
    """The table as the verdict takes it: linear heads against linear heads."""
    own = table.representations[0]
    found: list[Probe] = []
    for target in table.targets:
        lines = [result for result in table.results if result.target == target]
        linear = {line.representation: _score(line.main) for line in lines if line.head == "linear"}
        mlp = [_score(line.main) for line in lines if line.head == "mlp" and line.representation == own]
        cnn = [_score(line.main) for line in lines if line.head == "cnn"]
        found.append(
            Probe(
                target,
                _MEASURES.get(lines[0].main.metric, lines[0].main.metric),
                linear.pop(own),
                linear,
                mlp[0] if mlp else None,
                cnn[0] if cnn else None,
                lines[0].chance,
            )
        )
    return found


def _score(score: Any) -> ScoreOf:
    return ScoreOf(
        score.value, score.value if score.low is None else score.low, score.value if score.high is None else score.high
    )


def disentanglement_of(work: "Work", datasets: Sequence[Dataset]) -> dict[str, Any] | None:
    """Disentanglement scores, where the frames are scenes whose factors are known (`FactorScenes.write` made them).

    Args:
        work: What is being reported on.
        datasets: The recordings measured.

    Raises:
        InputError: `scenes.json` beside the frames cannot be read.
    """
    file = Path(str(getattr(datasets[0], "filename", "") or "")).parent / "scenes.json"
    if not file.is_file():
        return None  # not worth a word on the page: hardly any recordings have factors
    from benchmarks.factor_scenes import FactorScenes
    from vae_training.report.metrics.disentanglement import score

    try:
        scenes = FactorScenes(**json.loads(file.read_text())["arguments"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} cannot be read as the description of factor scenes: {error}") from None
    sizes = {"samples": 2_000, "dci_samples": 1_000, "votes": 150, "batch": 32} if work.config.quick else {}
    with work.part("disentanglement", f"{len(scenes.factors)} factors, on new scenes"):
        return score(work.model.frozen, scenes, seed=work.config.seed, **sizes).to_json()


_FORMAT, _FORMAT_VERSION = "latent-obs-report", 1
_PCA_FRAMES = 20_000
NO_DECODER = "the encoder folder has no decoder"


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
        disentanglement: Scores, as in the JSON; None where no factors are known.
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
class Work:
    """What the parts of a report share while it is made.

    Attributes:
        config: Settings.
        model: The encoder folder, opened.
        recordings: Which recordings are measured, and which fit baselines.
        sample: Held-out frames.
        training: Frames that baselines are fitted on.
        say: Where messages go.
        progress_bar: As for `report`.
        pca: The linear baseline, once it is fitted.
        methods: How each method reconstructs; the encoder's is among them where there is a decoder.
        measured: What each method did to each held-out frame.
        not_measured: What is left out, and why.
        seconds: What each part took.
    """

    config: ReportConfig
    model: ReportModel
    recordings: Recordings
    sample: Sample
    training: Sample
    say: Callable[[str], object]
    progress_bar: bool | None = None
    pca: Pca | None = None
    methods: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Measured] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def fitting(self) -> list[Any]:
        """What baselines are fitted on, as the encoder eats it: whole recordings, or a sample where they have another
        size.
        """
        fits = self.recordings.training[0].shape[1:] == self.model.contract.shape
        return self.recordings.training if fits else [self.training.frames]

    @contextmanager
    def part(self, name: str, text: str) -> Iterator[None]:
        """A part of the work: announced, and its time kept."""
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
        InputError: There are no frames to measure on, or they do not fit the encoder.
        DeviceError: The device asked for is not there.
        MissingExtraError: A package of the extra "report" is not installed.
    """
    for package in ("matplotlib", "skimage", "sklearn"):  # now, and not after minutes of work
        require(package, extra="report", purpose="write a report")
    model = ReportModel(config.encoder, config.device)
    out = config.out or (model.folder.path.parent / "report")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; name a folder with --out")
    recordings = find_recordings(model.provenance, config.frames)
    sample = take(recordings.held_out, config.held_out_frames, model.contract)
    check_enough(sample)
    training = take(recordings.training, config.training_frames, model.contract)
    work = Work(config, model, recordings, sample, training, say, progress_bar)
    say(
        f"{len(sample.frames):,} frames of {len(recordings.held_out)} held-out recording(s), out of "
        f"{sum(map(len, recordings.held_out)):,}. {recordings.how}"
    )
    known = load_known(work)
    with work.part("latents", "information, active dimensions, correlations"):
        latents = describe(*model.encode(sample.frames))
    with work.part("stability", "shifts, brightness, neighbouring frames"):
        pairs = neighbours(recordings.held_out, config.held_out_frames, model.contract)
        stability = measure_stability(model.means, sample.frames, pairs, seed=config.seed)
    work.pca = _pca(work)
    reconstruction, training_mse = _reconstruction(work)
    table = probe_encoder(work, known)
    disentanglement = disentanglement_of(work, recordings.held_out)
    findings = verdict(
        Numbers(
            latents,
            reconstruction,
            stability,
            probes=scores_for_verdict(table) if table else (),
            bottleneck=model.architecture.bottleneck,
            beta=(model.provenance.get("settings") or {}).get("beta"),
            unseen=recordings.certain,
            training_mse=training_mse,
        )
    )
    result = ReportResult(
        out / "report.html",
        out / "report.json",
        headline(findings, list(work.not_measured)),
        findings,
        latents,
        stability,
        reconstruction,
        table,
        disentanglement,
        work.not_measured,
    )
    from vae_training.report.page import lay_out  # matplotlib comes with it

    with work.part("page", "pictures, and the page"):
        lay_out(work, result, training_mse)
    write_compact_json(result.json, _to_json(work, result, training_mse))
    say(f"\n{result.headline}")
    for finding in findings:
        if finding.level != "good":
            say(f"- {finding.sentence}{f' Next: {finding.suggestion}.' if finding.suggestion else ''}")
    say(f"Page:    {result.page}\nNumbers: {result.json}")
    return result


def _pca(work: Work) -> Pca:
    """PCA of as many dimensions as the latent, or as the training frames allow."""
    config, shape = work.config, work.model.contract.shape
    with work.part("PCA", "the linear baseline"):
        fitting = work.fitting
        most = config.training_frames if config.quick else _PCA_FRAMES
        dim = min(work.model.architecture.latent_dim, most // 2, sum(map(len, fitting)), int(np.prod(shape)))
        return Pca.fit(fitting, dim, most_frames=most)


def _reconstruction(work: Work) -> tuple[Reconstruction | None, float | None]:
    """How frames come back, by the encoder and by what it is compared with."""
    model, config, frames, pca = work.model, work.config, work.sample.frames, work.pca
    if not model.has_decoder or pca is None:
        work.not_measured["reconstruction"] = NO_DECODER
        return None, None
    notes: dict[str, str] = {"pca": f"{pca.dim} components, fitted on {pca.fitted_on:,} training frames"}
    with work.part("reconstruction", "beside PCA and a mean image"):
        image = MeanImage.fit(work.fitting)
        work.methods |= {"encoder": model.reconstruct, "pca": pca.reconstruct, "mean image": image.reconstruct}
        for name, method in work.methods.items():
            work.measured[name] = measure(frames, method, progress_bar=work.progress_bar, name=name)
        few = work.training.frames[:: max(1, len(work.training.frames) // len(frames))]
        training_mse = (
            measure(few, model.reconstruct, with_ssim=False).scores().mse if work.recordings.certain else None
        )
    if config.steps:
        with work.part(
            "autoencoder", f"beta 0, the same layers, {config.steps} steps on {len(work.training.frames):,} frames"
        ):
            method, seconds = train_autoencoder(
                model.architecture,
                work.training.frames,
                steps=config.steps,
                seed=config.seed,
                device=next(model.cvae.parameters()).device,
                progress_bar=work.progress_bar,
            )
            notes["autoencoder"] = (
                f"trained here for {config.steps} steps, {seconds:.0f} s, on {len(work.training.frames):,} frames"
            )
            work.methods["autoencoder"] = method
            work.measured["autoencoder"] = measure(frames, method, progress_bar=work.progress_bar, name="autoencoder")
    else:
        work.not_measured["autoencoder"] = "left out (--autoencoder-steps 300 trains one to compare with)"
    return compare(work.measured, notes=notes), training_mse


def _to_json(work: Work, result: ReportResult, training_mse: float | None) -> dict[str, Any]:
    """Everything, as plain values."""
    model = work.model
    reconstruction = None if result.reconstruction is None else asdict(result.reconstruction)
    if reconstruction is not None and result.reconstruction is not None:
        reconstruction["ratio_to"] = {name: result.reconstruction.ratio(name) for name in result.reconstruction.scores}
        reconstruction["training_mse"] = training_mse
        for which in ("best", "worst"):
            reconstruction[which] = [_frame(work, i) for i in reconstruction[which]]
    return {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "headline": result.headline,
        "findings": [asdict(finding) for finding in result.findings],
        "not_measured": result.not_measured,
        "encoder": {
            "folder": str(model.folder.path),
            "architecture": model.architecture.to_json(),
            "settings": model.provenance.get("settings"),
            "step": model.provenance.get("step"),
            "training_seconds": model.provenance.get("training_seconds"),
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


def _recording(dataset: Any) -> dict[str, Any]:
    filename = getattr(dataset, "filename", None)
    return {"file": Path(filename).name if filename else None, "frames": len(dataset)}


def _frame(work: Work, number: int) -> dict[str, Any]:
    """Where a frame of the sample comes from, and its error."""
    dataset = work.recordings.held_out[int(work.sample.recording[number])]
    return {
        **_recording(dataset),
        "row": int(work.sample.row[number]),
        "mse": float(work.measured["encoder"].mse[number]),
    }
