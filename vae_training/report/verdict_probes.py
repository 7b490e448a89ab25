"""What probes say about an encoder, in words: which of the state an agent can read from the latents, and which not."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vae_training.report.finding import Finding

_KEPT, _PARTLY = 0.9, 0.5  # shares of the best score that anything got, on the scale from guessing (0) to perfect (1)
_READABLE = 0.1  # on that scale: below, nothing reads the target from one frame, and no encoder is to blame
_TOLD = 0.5  # on that scale: below, a single frame tells it faintly (a speed, say), and to lose it is no serious problem
_BETTER = 0.05  # on that scale: by less, a baseline is not called better
_NAMED = 6  # targets in a sentence


class ScoreOf(NamedTuple):
    """A score with the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Probe:
    """How well one target is read.

    Attributes:
        target: What is predicted.
        measure: "R²", "AUROC" or "balanced accuracy".
        latent: By a linear probe on the latents: what an agent's first layer can use at once.
        baselines: By a linear probe on others, by name: "PCA", "random encoder".
        mlp: By a small network on the latents; None where not measured.
        pixels: By a network on the pixels; None where not measured.
        chance: Score of guessing.
    """

    target: str
    measure: str
    latent: ScoreOf
    baselines: dict[str, ScoreOf]
    mlp: ScoreOf | None = None
    pixels: ScoreOf | None = None
    chance: float = 0.0

    def above_chance(self, score: float) -> float:
        """A score on the scale from 0 (guessing, or worse) to 1 (perfect)."""
        return max(0.0, (score - self.chance) / max(1 - self.chance, 1e-6))

    @property
    def best(self) -> ScoreOf:
        """The best score that anything got: so much a frame tells, at least."""
        return max(score for score in (self.latent, self.mlp, self.pixels, *self.baselines.values()) if score is not None)

    @property
    def share(self) -> float | None:
        """What a linear probe on the latents reads of what can be read; None where nothing can."""
        best = self.above_chance(self.best.value)
        return self.above_chance(self.latent.value) / best if best >= _READABLE else None

    @property
    def text(self) -> str:
        """The target and its scores, in a few words."""
        return f"{self.target} ({self.measure} {self.latent.value:.2f} of {self.best.value:.2f})"


def judge_probes(
    probes: Sequence[Probe], *, bottleneck: str = "dense", smaller_beta: str = "a smaller --beta"
) -> Iterator[Finding]:
    """Findings about probes, a group of targets each.

    Args:
        probes: One per target.
        bottleneck: "dense" or "spatial": what to suggest depends on it.
        smaller_beta: Advice to weigh the KL less.
    """
    groups: dict[str, list[Probe]] = {"lost": [], "faint": [], "partly": [], "tangled": [], "unsure": [], "kept": []}
    for probe in probes:
        share = probe.share
        if share is None:
            continue
        if share >= _KEPT:
            groups["kept"].append(probe)
        elif probe.latent.high >= probe.best.low:  # the intervals meet: it is not known that anything is lost
            groups["kept" if share >= _PARTLY else "unsure"].append(probe)
        elif probe.mlp is not None and probe.above_chance(probe.mlp.value) >= _KEPT * probe.above_chance(probe.best.value):
            groups["tangled"].append(probe)
        elif share >= _PARTLY:
            groups["partly"].append(probe)
        else:
            groups["lost" if probe.above_chance(probe.best.value) >= _TOLD else "faint"].append(probe)
    spatial = "" if bottleneck == "spatial" else "a spatial bottleneck (--bottleneck spatial --latent-dim 256), "
    more = f"{spatial}a larger --latent-dim, {smaller_beta}, or longer training"
    known = len(probes)
    scale = "In brackets: what a linear probe reads from the latents, of the best that anything reads"
    if lost := groups["lost"]:
        # Which of them an agent needs nobody knows here; an encoder that loses most of what can be read is of no use.
        readable = sum(len(group) for group in groups.values()) - len(groups["faint"])
        yield Finding(
            "bad" if 2 * len(lost) > readable else "warning", "probes",
            f"Of {known} known value(s), {len(lost)} cannot be read from the latents although the frames tell them: "
            f"{_list(lost)}. {scale}. An agent that needs them will not see them.", _numbers(lost), more,
            tuple(probe.target for probe in lost),
        )  # fmt: skip
    if faint := groups["faint"]:
        yield Finding(
            "warning", "probes", f"Of {known} known value(s), {len(faint)} cannot be read from the latents, and only faintly "
            f"from a frame itself: {_list(faint)}. {scale}.", _numbers(faint),
            "if it is a matter of time, such as a speed, show the agent the last latents (history=4 in the wrappers)",
        )  # fmt: skip
    if partly := groups["partly"]:
        yield Finding(
            "warning", "probes", f"{_listed(partly)} only in part: {_list(partly)}. {scale}.", _numbers(partly), more,
        )  # fmt: skip
    if tangled := groups["tangled"]:
        yield Finding(
            "warning", "probes", f"{_listed(tangled)} by a small network and not by a linear probe: {_list(tangled)}. It is "
            "there, "
            "but tangled.", _numbers(tangled), "nothing, if the agent's network has hidden layers; else longer training",
        )  # fmt: skip
    if unsure := groups["unsure"]:
        yield Finding(
            "warning", "probes", f"Of {_count(unsure)} too little is held out to tell whether the latents keep it: "
            f"{_list(unsure)}, "
            "and the intervals overlap.", _numbers(unsure), "more held-out recordings",
        )  # fmt: skip
    if kept := groups["kept"]:
        yield Finding("good", "probes", f"{_listed(kept)} by a linear probe about as well as from anything: {_list(kept)}.",
                      _numbers(kept))  # fmt: skip
    yield from _baselines(probes, more)


def _baselines(probes: Sequence[Probe], more: str) -> Iterator[Finding]:
    """Baselines that beat the latents."""
    for name in dict.fromkeys(name for probe in probes for name in probe.baselines):
        better = [
            probe
            for probe in probes
            if name in probe.baselines
            and probe.baselines[name].low > probe.latent.high
            and probe.above_chance(probe.baselines[name].value) - probe.above_chance(probe.latent.value) > _BETTER
        ]
        if better:
            listed = ", ".join(
                f"{p.target} ({p.baselines[name].value:.2f} against {p.latent.value:.2f})" for p in better[:_NAMED]
            )
            numbers = {f"{p.target}, {name}": p.baselines[name].value for p in better} | {
                p.target: p.latent.value for p in better
            }
            yield Finding(
                "warning", "probes", f"A linear probe reads more from {name} than from the latents: "
                f"{listed}{_more(better)}.", numbers,
                more,
            )  # fmt: skip


def _listed(probes: Sequence[Probe]) -> str:
    return f"{_count(probes)} {'is' if len(probes) == 1 else 'are'} read"


def _count(probes: Sequence[Probe]) -> str:
    return f"{len(probes)} known value{'' if len(probes) == 1 else 's'}"


def _list(probes: Sequence[Probe]) -> str:
    worst_first = sorted(probes, key=lambda probe: probe.share or 0.0)
    return ", ".join(probe.text for probe in worst_first[:_NAMED]) + _more(probes)


def _more(probes: Sequence[Probe]) -> str:
    return f" and {len(probes) - _NAMED} more" if len(probes) > _NAMED else ""


def _numbers(probes: Sequence[Probe]) -> dict[str, float]:
    return {probe.target: probe.latent.value for probe in probes} | {f"{p.target}, best": p.best.value for p in probes}
