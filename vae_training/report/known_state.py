"""The parts of a report that need more than frames: probes where state is known, disentanglement where factors are known."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latent_obs.errors import InputError
from vae_training.datasets import describe_datasets, get_datasets
from vae_training.report.sample import Dataset, read, rows_of
from vae_training.report.verdict_probes import Probe, ScoreOf

if TYPE_CHECKING:
    from vae_training.report.probe_table import ProbeTable
    from vae_training.report.run import Work

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
    from vae_training.report.baselines import EncoderMeans, random_encoder
    from vae_training.report.probes import probe

    frames, targets = _converted(work, named, targets)
    others = [work.pca] if work.pca is not None and work.pca.frame_shape == work.model.contract.shape else []
    with work.part("probes", "what can be read from the latents, from PCA, from a random encoder, from the pixels"):
        try:
            # Another seed than training's: its own would be the very weights that training began with.
            untrained = random_encoder(work.model.frozen, seed=config.seed + 1_000_003)
            table = probe(
                [EncoderMeans(work.model.frozen), *others, untrained],
                frames, targets, held_out=scored, seed=config.seed, mlp=not config.quick, cnn=not config.quick,
                most_frames=config.training_frames if config.quick else _MOST_FRAMES,
                device=str(work.model.frozen.device), log=work.say,
            )  # fmt: skip
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
    from vae_training.report.probes import load_targets
    from vae_training.rows import targets_of

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
    """Recordings of another frame size as the encoder eats them; of many frames every k-th, as they then lie in memory."""
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
                target, _MEASURES.get(lines[0].main.metric, lines[0].main.metric), linear.pop(own), linear,
                mlp[0] if mlp else None, cnn[0] if cnn else None, lines[0].chance,
            )
        )  # fmt: skip
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
    from vae_training.report.disentanglement import score
    from vae_training.report.factor_scenes import FactorScenes

    try:
        scenes = FactorScenes(**json.loads(file.read_text())["arguments"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} cannot be read as the description of factor scenes: {error}") from None
    sizes = {"samples": 2_000, "dci_samples": 1_000, "votes": 150, "batch": 32} if work.config.quick else {}
    with work.part("disentanglement", f"{len(scenes.factors)} factors, on new scenes"):
        return score(work.model.frozen, scenes, seed=work.config.seed, **sizes).to_json()
