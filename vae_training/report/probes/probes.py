"""Probes: how well small heads read known state from latents, next to baselines and to a network on the pixels.

A linear probe shows what an agent's first layer can use at once; a small network shows what is there at all, tangled or
not; and the network on the pixels shows what a frame holds in the first place. What is in the pixels and not in the
latent was lost in compression. All scores are on recordings that no head learnt from.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from latent_obs.util.errors import InputError
from vae_training.report.metrics.baselines import Representation
from vae_training.report.probes.heads import Floats, Scale, predict_cnn, predict_linear, predict_mlp
from vae_training.report.probes.scores import Score, score_amounts, score_classes, split_recordings
from vae_training.report.probes.targets import Kind, prepare_targets

Head = Literal["linear", "mlp", "cnn"]
PIXELS = "pixels (CNN)"
METRIC_NAMES = {"r2": "R²", "auroc": "AUROC", "balanced_accuracy": "balanced accuracy"}
KEPT, PARTLY = 0.9, 0.5  # shares of the reference's score
# From 0 (guessing) to 1 (perfect): below the first, nothing reads the target from a single frame; below the second, a
# frame shows it only faintly (a speed, say).
READABLE, CLEAR = 0.1, 0.5
_CHUNK = 1024


@dataclass(frozen=True)
class ProbeResult:
    """One head on one representation."""

    target: str
    kind: Kind
    representation: str  # its name; "pixels (CNN)" for the network trained end to end
    head: Head
    scores: list[Score]  # the main one first: R² and the mean error; AUROC (two classes); balanced accuracy
    classes: int  # number of classes; 0 for an amount
    learnt_from: int  # frames to learn from, those for validation among them
    scored_on: int  # held-out frames

    @property
    def main(self) -> Score:
        """The score that verdicts are made of."""
        return self.scores[0]

    @property
    def above_chance(self) -> float:
        """The main score on a scale from 0 (guessing, or worse) to 1 (perfect): an AUROC of 0.9 is 0.8."""
        return max(0.0, (self.main.value - self.chance) / (1 - self.chance))

    @property
    def chance(self) -> float:
        """The main score of a guess."""
        return {"r2": 0.0, "auroc": 0.5}.get(self.main.metric, 1 / max(1, self.classes))

    @property
    def interval(self) -> tuple[float, float]:
        """Ends of the main score's interval; the score itself where it has none."""
        value, low, high = self.main.value, self.main.low, self.main.high
        return (value if low is None else low), (value if high is None else high)


@dataclass(frozen=True)
class Kept:
    """How much of what can be read about a target the better of a linear probe and a small network reads.

    The verdict is "kept" (a share of 0.9 or more), "tangled" (the same, but by the network only), "partly kept" (0.5 or
    more), "lost", or "not readable": nothing reads it from a single frame, so it says nothing about the representation.
    """

    target: str
    representation: str
    score: float  # the main score of the better of the two
    reference: float  # the best main score of all probes: of the CNN as a rule
    reference_from: str  # whose it is, such as "pixels (CNN)" or "latent, mlp"
    share: float | None  # of the reference, both from 0 at guessing to 1; None where nothing reads the target
    verdict: str


@dataclass(frozen=True)
class ProbeTable:
    """All results of a call of `probe`."""

    results: list[ProbeResult]  # a line each, by target, representation and head
    left_out: dict[str, str]  # targets that were not probed, and why
    recordings: dict[str, list[str]]  # names by use: "fit", "validation", "held_out"
    resampled: str  # by the intervals: "recordings", or "blocks of … frames"
    note: str = ""  # what is to be known of the split; empty when nothing is
    seconds: dict[str, float] = field(default_factory=dict, compare=False)  # of each part

    @property
    def targets(self) -> list[str]:
        """Targets that were probed."""
        return list(dict.fromkeys(result.target for result in self.results))

    @property
    def representations(self) -> list[str]:
        """Representations in the order given, the pixels last where they were measured."""
        return list(dict.fromkeys(result.representation for result in self.results))

    def find(self, target: str, representation: str, head: Head | None = None) -> ProbeResult | None:
        """One line; without a head the better one of the representation's. None where there is none."""
        wanted = (target, representation)
        lines = [r for r in self.results if (r.target, r.representation) == wanted and head in (None, r.head)]
        return max(lines, key=lambda r: r.main.value, default=None)

    def result(self, target: str, representation: str, head: Head | None = None) -> ProbeResult:
        """As `find`; an InputError where there is no such line."""
        if found := self.find(target, representation, head):
            return found
        why = self.left_out.get(target, f"there are {self.targets} on {self.representations}")
        raise InputError(f"no probe of {target!r} on {representation!r} by {head or 'any head'}: {why}")

    def best(self, target: str) -> ProbeResult:
        """The line with the best score of a target, of any probe: so much can be read from a frame, at least."""
        # Not always the CNN: it is but a network that was trained for a minute.
        lines = [result for result in self.results if result.target == target]
        return max(lines, key=lambda r: (r.main.value, r.head == "cnn"))

    def keeps(self, target: str) -> Kept:
        """How much of a probed target can be read from the encoder, of what can be read at all."""
        encoder = self.representations[0]
        own, linear, best = self.result(target, encoder), self.result(target, encoder, "linear"), self.best(target)
        share, verdict = None, "not readable"
        if best.above_chance >= READABLE:
            share = own.above_chance / best.above_chance
            verdict = "kept" if share >= KEPT else "partly kept" if share >= PARTLY else "lost"
            if verdict == "kept" and linear.above_chance < KEPT * best.above_chance:
                verdict = "tangled"
        source = best.representation if best.head == "cnn" else f"{best.representation}, {best.head}"
        return Kept(target, encoder, own.main.value, best.main.value, source, share, verdict)

    def to_json(self) -> dict[str, Any]:
        """Plain values, with what `keeps` says of each target."""
        return {**asdict(self), "keeps": [asdict(self.keeps(target)) for target in self.targets]}


def probe(
    representations: Sequence[Representation],
    frames_by_recording: Mapping[str, NDArray[np.uint8]],
    targets: Mapping[str, Mapping[str, NDArray[Any]]],
    *,
    held_out: Sequence[str] | None = None,
    seed: int = 0,
    mlp: bool = True,
    cnn: bool = True,
    cnn_steps: int = 1000,
    scale: Scale = "each",
    most_frames: int = 20_000,
    device: str = "auto",
    log: Callable[[str], object] = lambda line: None,
) -> ProbeTable:
    """Score heads on representations, for each target.

    The same arguments and seed give the same table on the same kind of machine (a GPU, where the CNN uses one, may
    differ in the last digits).

    Args:
        representations: The encoder first, then what it is compared with; PCA fitted on what is not held out.
        frames_by_recording: For each recording its frames, uint8 (N, H, W, C) of one shape; memory maps will do.
        targets: For each recording its targets by name, N numbers each, NaN where not known; see `prepare_targets`.
        held_out: Recordings to score on; a quarter, drawn by the seed, when not given.
        seed: Of the split, the networks and the resampling.
        mlp: Train a small network per target and representation.
        cnn: Train a network on the pixels, the reference for what can be known.
        cnn_steps: Its gradient steps, at most; with fewer it is quicker, and a weaker reference.
        scale: How linear probes standardize their inputs, see `predict_linear`.
        most_frames: Of more frames than this, every k-th is used.
        device: Where the CNN computes.
        log: Called with a line as each part begins.

    Raises:
        InputError: Frames or targets do not fit together, names repeat, or there is nothing to learn from.
        MissingExtraError: scikit-learn is not installed.

    Example:
        >>> from vae_training.report.metrics.baselines import Pca
        >>> rng = np.random.default_rng(0)
        >>> brightness = {name: rng.uniform(0, 255, 100) for name in "abcd"}
        >>> frames = {k: np.tile(b[:, None, None, None], (8, 8, 1)).astype(np.uint8) for k, b in brightness.items()}
        >>> pca = Pca.fit([frames["a"], frames["b"]], 1)
        >>> targets = {name: {"brightness": values} for name, values in brightness.items()}
        >>> table = probe([pca], frames, targets, held_out=["d"], mlp=False, cnn=False)
        >>> round(table.result("brightness", "PCA").main.value, 2)
        1.0
    """
    names = [representation.name for representation in representations]
    if not names or len({*names, PIXELS}) <= len(names):
        raise InputError(f"representations must have names of their own, none of them {PIXELS!r}, got {names}")
    if len(shapes := {frames.shape[1:] for frames in frames_by_recording.values()}) > 1:
        raise InputError(f"frames_by_recording must hold frames of one shape, got {sorted(shapes)}")
    split = split_recordings(frames_by_recording, held_out=held_out, seed=seed, most_frames=most_frames)
    chosen, left_out = prepare_targets(targets, split)
    results: dict[str, list[ProbeResult]] = {target.name: [] for target in chosen}
    seconds: dict[str, float] = {}

    def score(representation: str, head: Head, predict: Callable[[], list[Floats]]) -> None:
        what = f"{representation}, {head}" if head != "cnn" else PIXELS
        log(f"probes: {what}")
        start = time.perf_counter()
        for target, predicted in zip(chosen, predict(), strict=True):
            units = split.unit[target.held_out]
            if target.classes:  # the AUROC first
                scores = score_classes(target.labels(target.held_out), predicted, units, seed)[::-1]
            else:
                scores = score_amounts(target.values[target.held_out], predicted, units, seed)
            learned, scored = len(target.fit) + len(target.validation), len(target.held_out)
            line = (target.name, target.kind, representation, head, scores, len(target.classes), learned, scored)
            results[target.name].append(ProbeResult(*line))
        seconds[what] = round(time.perf_counter() - start, 3)

    for representation in representations if chosen else ():
        start = time.perf_counter()
        parts: list[NDArray[np.float32]] = []
        for name, rows in split.rows.items():
            for i in range(0, len(rows), _CHUNK):
                parts.append(representation(np.asarray(frames_by_recording[name][rows[i : i + _CHUNK]])))
                if not np.isfinite(parts[-1]).all():
                    raise InputError(f"{representation.name} gave values that are not finite, for frames of {name}")
        vectors = np.concatenate(parts)
        seconds[f"{representation.name}, vectors"] = round(time.perf_counter() - start, 3)
        score(representation.name, "linear", partial(predict_linear, vectors, chosen, scale=scale))
        if mlp:
            score(representation.name, "mlp", partial(predict_mlp, vectors, chosen, seed=seed))
    if cnn and chosen:
        pixels = np.concatenate([np.asarray(frames_by_recording[name][rows]) for name, rows in split.rows.items()])
        score(PIXELS, "cnn", partial(predict_cnn, pixels, chosen, seed=seed, device=device, steps=cnn_steps))
    lines = [result for target in chosen for result in results[target.name]]
    return ProbeTable(lines, left_out, split.recordings, split.resampled, split.note, seconds)
