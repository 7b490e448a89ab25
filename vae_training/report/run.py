"""`report()`: what an encoder keeps of its frames, measured on recordings that it never saw; a page and a JSON file.

report/
├── report.html     one self-contained page
├── report.json     every number
└── pictures/       the pictures of the page, as PNG files
"""

import contextlib
import json
import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latent_obs.encoder.folder import package_versions
from latent_obs.encoder.pca import PCA, most_frames
from latent_obs.util.atomic import atomic_write
from latent_obs.util.colors import colors_of
from latent_obs.util.errors import InputError, require
from latent_obs.util.progress import print_now
from latent_obs.util.words import counted, wrapped
from vae_training.report.config import FEWEST, ReportConfig
from vae_training.report.encoder import Floats, Frames, Reconstruct, ReportModel
from vae_training.report.findings import Finding, Grade, Level, Numbers, Worth, verdict
from vae_training.report.look import write_html
from vae_training.report.metrics.baselines import EncoderMeans, MeanImage, Pca, random_encoder
from vae_training.report.metrics.disentanglement import FEWEST_SAMPLES, dci, mig_by_factor
from vae_training.report.metrics.latents import describe, measure_stability
from vae_training.report.metrics.reconstruction import Measured, Reconstruction, compare, measure
from vae_training.report.page import METHOD_NAMES, draw_pictures, probe_columns
from vae_training.report.probes.probes import METRIC_NAMES, ProbeTable, probe
from vae_training.report.probes.scores import resampling_units
from vae_training.report.sample import (
    Known,
    Recordings,
    file_of,
    find_recordings,
    load_known,
    neighbors,
    places,
    read,
    spread,
)

_TEMPLATE = Path(__file__).parent / "templates" / "report.html.j2"
_MOST_FRAMES = 20_000  # that probes are fitted on
_FEW = 1_000  # that probes of few frames learn from: about as many as PPO sees before its first update
_MOST_SCORED = 4_000  # held-out frames that probes of few frames are scored on
_NOTHING_KNOWN = (
    "there is no state beside these frames: record with an environment that reports it, or give --targets FILE"
)
_NUMBERS = re.compile(r"\[\s+((?:-?[\d.eE+-]+|true|false|null)(?:,\s+(?:-?[\d.eE+-]+|true|false|null))*)\s+\]")


@dataclass(frozen=True, kw_only=True)
class ReportResult(Numbers):
    """What a report found, and the numbers that it rests on."""

    page: Path  # the HTML file
    json: Path  # the JSON file
    level: Level  # the verdict, that of the worst finding: "good", "doubtful" or "bad"
    headline: str  # the verdict in a sentence or two
    advice: list[str]  # what to try next, the most useful first
    command: str | None  # that follows the first advice on training
    worth: Worth | None  # whether the encoder was worth its training, beside PCA
    findings: list[Finding]  # what the verdict rests on, the worst first
    grades: list[Grade]  # every number that has limits, and whether it is good, doubtful or bad
    disentanglement: dict[str, Any] | None  # DCI and MIG, as in the JSON; None with fewer than two probed values
    not_measured: dict[str, str]  # what is missing, and why


@dataclass
class _Work:
    """What the steps of a report share."""

    config: ReportConfig
    model: ReportModel
    recordings: Recordings
    index: NDArray[np.int64]  # which held-out frames are measured, numbered through all held-out recordings
    frames: Frames  # these frames
    training: Frames  # that baselines are fitted on
    say: Callable[[str], object]
    methods: dict[str, Reconstruct] = field(default_factory=dict)
    measured: dict[str, Measured] = field(default_factory=dict)  # what each method did to each held-out frame
    training_mse: float | None = None
    not_measured: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """Those of the training run."""
        return self.model.folder.provenance.get("settings") or {}

    @contextlib.contextmanager
    def step(self, name: str, text: str) -> Iterator[None]:
        """A step of the work: announced, and timed."""
        self.say(f"{name}: {text}")
        began = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - began, 2)


def report(config: ReportConfig, *, pca: Path | None = None, say: Callable[[str], object] = print_now) -> ReportResult:
    """Measure an encoder on held-out recordings, and write a page and a JSON file.

    Args:
        config: Settings.
        pca: A file of `latent_obs.PCA`, of all training frames and as many values as the encoder has, to compare with.
            By default it is fitted here.
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
    contract, latent_dim = model.contract, model.folder.latent_dim
    out = config.out or (model.folder.path.parent / "report")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; name a folder")
    recordings = find_recordings(model.folder.provenance, config.frames)
    held_out, total = recordings.held_out, sum(map(len, recordings.held_out))
    index = spread(total, config.held_out_frames)
    frames = read(held_out, index, contract)
    if len(frames) < FEWEST or (frames == frames[0]).all():
        found = f"{len(frames)}{', all equal' if len(frames) >= FEWEST else ''}"
        raise InputError(f"held-out frames: got {found}, a report needs {FEWEST} or more that differ; record more")
    # Also if quick: a PCA of few frames would flatter the encoder.
    most = most_frames(math.prod(contract.shape))
    training = read(recordings.training, spread(sum(map(len, recordings.training)), most), contract)
    known = load_known(recordings, config.targets) if config.probes else None
    work = _Work(config, model, recordings, index, frames, training, say)
    say(f"{len(frames):,} of the {total:,} frames of {counted(len(held_out), 'held-out recording')}. {recordings.how}")
    with work.step("latents", "information, active dimensions, correlations"):
        means, logvar = model.encode(frames)
        latents = describe(means, logvar, components=model.components)
    with work.step("stability", "shifts, brightness, neighboring frames"):
        pairs = neighbors(held_out, config.held_out_frames, contract)
        stability = measure_stability(model.means, frames, pairs, seed=config.seed)
    with work.step("PCA", f"the linear baseline, of {len(training):,} training frames"):
        baseline = Pca.fit([training], latent_dim) if pca is None else Pca(PCA.load(pca))
    reconstruction = _reconstruct(work, baseline)
    probes = _probe(work, known, baseline)
    few = _probe_few(work, known, baseline)
    disentanglement = None if known is None or probes is None else _disentanglement(work, known, probes, means)
    numbers = Numbers(
        latents,
        reconstruction,
        stability,
        probes,
        bottleneck=None if model.folder.layers is None else model.folder.layers.bottleneck,
        settings=work.settings,
        steps=model.folder.provenance.get("step"),
        unseen=recordings.certain,
        training_mse=work.training_mse,
        few=few,
        pca=pca or work.settings.get("frames"),
    )
    result = ReportResult(
        **vars(numbers),
        **verdict(numbers, list(work.not_measured))._asdict(),
        page=out / "report.html",
        json=out / "report.json",
        disentanglement=disentanglement,
        not_measured=work.not_measured,
    )
    with work.step("page", "pictures, and the page"):
        _write_page(work, result)
    write_compact_json(result.json, _to_json(work, result))
    say(f"\n{wrapped(result.headline)}")
    for finding in result.findings:
        if finding.level != "good" and finding.sentence not in result.headline:
            say(wrapped(f"- {finding.sentence}", indent="  "))
    for text, advice in zip(("Next: ", *["Then: "] * len(result.advice)), result.advice, strict=False):
        say(wrapped(f"{text}{advice}"))
    if result.command:
        say(f"  {result.command}")
    if result.worth is not None:
        say(wrapped(result.worth.sentence))
    say(f"Page:    {result.page}\nNumbers: {result.json}")
    return result


def _reconstruct(work: _Work, pca: Pca) -> Reconstruction | None:
    """How frames come back, by the encoder and by what it is compared with."""
    model, frames, training = work.model, work.frames, work.training
    if not model.folder.has_decoder:
        work.not_measured["reconstruction"] = "the encoder folder has no decoder"
        return None
    notes = {"pca": f"{pca.pca.latent_dim} components, fitted on {pca.pca.provenance['sampled']:,} training frames"}
    with work.step("reconstruction", "beside PCA and a mean image"):
        image = MeanImage.fit([training])
        work.methods |= {"encoder": model.reconstruct, "pca": pca.reconstruct, "mean image": image.reconstruct}
        if work.recordings.certain:
            few = training[:: max(1, len(training) // len(frames))]
            work.training_mse = measure(few, model.reconstruct, with_ssim=False).scores().mse
    work.measured |= {name: measure(frames, method) for name, method in work.methods.items()}
    recording, _ = places(work.recordings.held_out, work.index)
    units = resampling_units(np.bincount(recording).tolist())
    return compare(work.measured, notes=notes, units=units)


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
    baselines = [pca, *([] if frozen.architecture is None else [random_encoder(frozen, seed=config.seed + 1_000_003)])]
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
                most_frames=4 * config.held_out_frames if config.quick else _MOST_FRAMES,
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


def _probe_few(work: _Work, known: Known | None, pca: Pca) -> ProbeTable | None:
    """What linear probes read of state, actions and rewards from few frames, from the latents and from PCA.

    Many frames show what is there, few show what an agent finds in its first updates. None where nothing is known of
    the training recordings or of the held-out ones.
    """
    if known is None or "probes" in work.not_measured:  # for the same reason
        return None
    few = known.few(_FEW, _MOST_SCORED)
    if not any(few.targets[name] for name in few.held_out):
        work.not_measured["probes of few frames"] = "nothing is known of the held-out recordings"
        return None
    few = few.converted(work.model.contract, _MOST_FRAMES)
    with work.step("few frames", "what linear probes learn from 1,000"):
        try:
            table = probe(
                [EncoderMeans(work.model.frozen), pca],
                few.recordings,
                few.targets,
                held_out=few.held_out,
                seed=work.config.seed,
                mlp=False,
                cnn=False,
                scale="together",
                most_frames=_MOST_FRAMES,
            )
        except InputError as error:
            work.not_measured["probes of few frames"] = str(error)
            return None
    if not table.results:
        work.not_measured["probes of few frames"] = "none of the known values could be probed"
        return None
    return table


def _disentanglement(work: _Work, known: Known, table: ProbeTable, means: Floats) -> dict[str, Any] | None:
    """DCI and MIG of the latents on the probed values, over the held-out sample.

    None unless two values or more vary: any latent, even noise, is used for one value only if there is but one.
    """
    columns = {target: known.column(target)[work.index] for target in table.targets}
    columns = {name: column for name, column in columns.items() if np.isfinite(column).sum() >= FEWEST_SAMPLES}
    if sum(np.nanstd(column) > 0 for column in columns.values()) < 2:
        return None
    names, values = list(columns), np.stack(list(columns.values()), 1)
    kinds = {result.target: result.kind for result in table.results}
    with work.step("disentanglement", f"of {counted(len(names), 'known value')}"):
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
    model, folder, settings = work.model, result.page.parent / "pictures", work.settings
    errors, seed = work.measured.get("encoder"), work.config.seed
    trained = [f"{name} {settings[name]}" for name in ("beta", "epochs", "seed") if name in settings]
    if seconds := model.folder.provenance.get("training_seconds"):
        trained.append(f"{seconds:,.0f} s")

    def files(recordings: list[Frames]) -> str:
        names = [file_of(recording).name for recording in recordings]
        return ", ".join(names) if len(names) <= 5 else f"{', '.join(names[:4])} and {len(names) - 4} more"

    values = {
        "result": result,
        "work": work,
        "trained": trained,
        "files": files,
        "colors_of": colors_of,
        "pictures": draw_pictures(folder, model, work.frames, result, methods=work.methods, errors=errors, seed=seed),
        "columns": result.probes and probe_columns(result.probes),
        "metric_names": METRIC_NAMES,
        "method_names": METHOD_NAMES,
        "date": time.strftime("%Y-%m-%d"),
    }
    write_html(result.page, _TEMPLATE, values)


def _to_json(work: _Work, result: ReportResult) -> dict[str, Any]:
    """Everything, as plain values."""
    folder, recordings, found = work.model.folder, work.recordings, result.reconstruction

    def recording(frames: Frames) -> dict[str, Any]:
        return {"file": file_of(frames).name, "frames": len(frames)}

    def frame(number: int) -> dict[str, Any]:
        """Where a frame of the sample comes from, and its error."""
        of, row = (int(part) for part in places(recordings.held_out, work.index[number]))
        return recording(recordings.held_out[of]) | {"row": row, "mse": work.measured["encoder"].mse[number]}

    reconstruction = found and {
        **asdict(found),
        "ratio_to": {name: found.ratio(name) for name in found.scores},
        "training_mse": result.training_mse,
        "best": [frame(number) for number in found.best],
        "worst": [frame(number) for number in found.worst],
    }
    return {
        "format": "latent-obs-report",
        "format_version": 1,
        "level": result.level,
        "headline": result.headline,
        "advice": result.advice,
        "command": result.command,
        "worth": result.worth and asdict(result.worth),
        "grades": [asdict(grade) for grade in result.grades],
        "findings": [{**asdict(finding), "topic": finding.topic} for finding in result.findings],
        "not_measured": result.not_measured,
        "encoder": {
            "folder": folder.path,
            "sha256": folder.checksums["encoder.safetensors"],
            "architecture": folder.layers and folder.layers.to_json(),
            "module": folder.module,
            **{name: folder.provenance.get(name) for name in ("settings", "step", "training_seconds")},
        },
        "frames": {
            "how": recordings.how,
            "certainly_unseen": recordings.certain,
            "held_out": [recording(frames) for frames in recordings.held_out],
            "training": [recording(frames) for frames in recordings.training],
            "measured": len(work.frames),
            "fitted_on": len(work.training),
        },
        "latents": asdict(result.latents),
        "stability": None if result.stability is None else asdict(result.stability),
        "reconstruction": reconstruction,
        "probes": result.probes and result.probes.to_json(),
        "probes_of_few_frames": result.few and result.few.to_json(),
        "disentanglement": result.disentanglement,
        "settings": asdict(work.config),
        "seconds": work.seconds,
        "packages": package_versions(),
    }


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
