"""What probes found, as a table: a line for each target, representation and head; and what it says about the latent."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from latent_obs.util.errors import InputError
from vae_training.report.probes.scores import Score
from vae_training.report.probes.targets import Kind

Head = Literal["linear", "mlp", "cnn"]
Verdict = Literal["kept", "partly kept", "lost", "not readable"]
PIXELS = "pixels (CNN)"
METRIC_NAMES = {"r2": "R²", "auroc": "AUROC", "balanced_accuracy": "balanced accuracy"}

KEPT, PARTLY = 0.9, 0.5  # shares of the reference's score
# From 0 (guessing) to 1 (perfect): below the first, nothing reads the target from a single frame; below the second, a
# frame shows it only faintly (a speed, say).
READABLE, CLEAR = 0.1, 0.5


@dataclass(frozen=True)
class ProbeResult:
    """One head on one representation.

    Attributes:
        target: Name of the target.
        kind: "continuous", "binary" or "categorical".
        representation: Name of the representation; "pixels (CNN)" for the network trained end to end.
        head: "linear", "mlp" or "cnn".
        scores: The main one first: R² and the mean error in the target's units; AUROC and balanced accuracy for two
            classes; balanced accuracy for more.
        classes: Number of classes; 0 for an amount.
        learnt_from: Frames to learn from, those for validation among them.
        scored_on: Held-out frames.
    """

    target: str
    kind: Kind
    representation: str
    head: Head
    scores: list[Score]
    classes: int
    learnt_from: int
    scored_on: int

    @property
    def main(self) -> Score:
        """The score that verdicts are made of."""
        return self.scores[0]

    @property
    def above_chance(self) -> float:
        """The main score on a scale from 0 (guessing, or worse) to 1 (perfect): an AUROC of 0.9 is 0.8."""
        chance = {"r2": 0.0, "auroc": 0.5}.get(self.main.metric, 1 / max(1, self.classes))
        return max(0.0, (self.main.value - chance) / (1 - chance))

    @property
    def interval(self) -> tuple[float, float]:
        """Ends of the main score's interval; the score itself where it has none."""
        value, low, high = self.main.value, self.main.low, self.main.high
        return (value if low is None else low), (value if high is None else high)


@dataclass(frozen=True)
class Kept:
    """How much of what can be read about a target a linear probe reads from a representation.

    Attributes:
        score: The main score of the linear probe.
        reference: The best main score of all probes: of the CNN as a rule, of another one where that beats it.
        reference_from: Whose it is, such as "pixels (CNN)" or "latent, mlp".
        share: `score` over `reference`, both from 0 at guessing to 1 at perfect; None where nothing reads the target.
        verdict: "kept" (a share of 0.9 or more), "partly kept" (0.5 or more), "lost", or "not readable": nothing reads
            it from a single frame, so it says nothing about the representation.
    """

    target: str
    representation: str
    score: float
    reference: float
    reference_from: str
    share: float | None
    verdict: Verdict


@dataclass(frozen=True)
class ProbeTable:
    """All results of a call of `probe`.

    Attributes:
        results: A line each, by target, representation and head.
        left_out: Targets that were not probed, and why.
        recordings: Names of the recordings by use: "fit", "validation", "held_out".
        resampled: What the intervals resample: "recordings", or "blocks of … frames".
        note: What is to be known of the split; empty when nothing is.
        seconds: Time of each part.
    """

    results: list[ProbeResult]
    left_out: dict[str, str]
    recordings: dict[str, list[str]]
    resampled: str
    note: str = ""
    seconds: dict[str, float] = field(default_factory=dict, compare=False)

    @property
    def targets(self) -> list[str]:
        """Targets that were probed."""
        return list(dict.fromkeys(result.target for result in self.results))

    @property
    def representations(self) -> list[str]:
        """Representations in the order given, the pixels last where they were measured."""
        return list(dict.fromkeys(result.representation for result in self.results))

    def result(self, target: str, representation: str, head: Head | None = None) -> ProbeResult:
        """One line; without a head the better one of the representation's. An InputError where there is none."""
        wanted = (target, representation)
        lines = [r for r in self.results if (r.target, r.representation) == wanted and head in (None, r.head)]
        if not lines:
            why = self.left_out.get(target, f"there are {self.targets} on {self.representations}")
            raise InputError(f"no probe of {target!r} on {representation!r} by {head or 'any head'}: {why}")
        return max(lines, key=lambda r: r.main.value)

    def best(self, target: str) -> ProbeResult:
        """The line with the best score of a target, of any probe: so much can be read from a frame, at least."""
        # Not always the CNN: it is but a network that was trained for a minute.
        lines = [result for result in self.results if result.target == target]
        return max(lines, key=lambda r: (r.main.value, r.head == "cnn"))

    def keeps(self, target: str) -> Kept:
        """How much of a target a linear probe reads from the first representation, the encoder, of what can be read.

        Raises:
            InputError: It was not probed.
        """
        linear = self.result(target, self.representations[0], "linear")
        best = self.best(target)
        share: float | None = None
        verdict: Verdict = "not readable"
        if best.above_chance >= READABLE:
            share = linear.above_chance / best.above_chance
            verdict = "kept" if share >= KEPT else "partly kept" if share >= PARTLY else "lost"
        source = best.representation if best.head == "cnn" else f"{best.representation}, {best.head}"
        return Kept(target, linear.representation, linear.main.value, best.main.value, source, share, verdict)

    def to_json(self) -> dict[str, Any]:
        """Plain values, with what `keeps` says of the first representation."""
        kept = [asdict(self.keeps(target)) for target in self.targets]
        return {**asdict(self), "keeps": kept}
