"""The verdict: plain sentences with the numbers behind them, and what to try next. A pure function of the numbers.

Nothing is said about what was not measured; `not_measured` lists that.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from vae_training.report.metrics.latents import COLLAPSED_NATS, Latents
from vae_training.report.metrics.reconstruction import Reconstruction
from vae_training.report.metrics.stability import Stability

Level = Literal["good", "warning", "bad"]


@dataclass(frozen=True)
class Finding:
    """One thing that the numbers say.

    Attributes:
        level: "good", "warning" or "bad".
        topic: What it is about: "collapse", "information", "dimensions", "reconstruction", "probes", ...
        sentence: What was found, in words.
        numbers: The numbers it rests on, by name.
        suggestion: What to try next; empty where nothing is to be done.
        lost: Names of what an agent will not see.
    """

    level: Level
    topic: str
    sentence: str
    numbers: dict[str, float] = field(default_factory=dict)
    suggestion: str = ""
    lost: tuple[str, ...] = ()


_KEPT, _PARTLY = 0.9, 0.5  # shares of the best score that anything got, on the scale from guessing (0) to perfect (1)
_READABLE = 0.1  # on that scale: below, nothing reads the target from one frame, and no encoder is to blame
_TOLD = (
    0.5  # on that scale: below, a single frame tells it faintly (a speed, say), and to lose it is no serious problem
)
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
        return max(
            score for score in (self.latent, self.mlp, self.pixels, *self.baselines.values()) if score is not None
        )

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
        elif probe.mlp is not None and probe.above_chance(probe.mlp.value) >= _KEPT * probe.above_chance(
            probe.best.value
        ):
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
            "bad" if 2 * len(lost) > readable else "warning",
            "probes",
            f"Of {known} known value(s), {len(lost)} cannot be read from the latents although the frames tell them: "
            f"{_list(lost)}. {scale}. An agent that needs them will not see them.",
            _numbers(lost),
            more,
            tuple(probe.target for probe in lost),
        )
    if faint := groups["faint"]:
        yield Finding(
            "warning",
            "probes",
            f"Of {known} known value(s), {len(faint)} cannot be read from the latents, and only faintly "
            f"from a frame itself: {_list(faint)}. {scale}.",
            _numbers(faint),
            "if it is a matter of time, such as a speed, show the agent the last latents (history=4 in the wrappers)",
        )
    if partly := groups["partly"]:
        yield Finding(
            "warning",
            "probes",
            f"{_listed(partly)} only in part: {_list(partly)}. {scale}.",
            _numbers(partly),
            more,
        )
    if tangled := groups["tangled"]:
        yield Finding(
            "warning",
            "probes",
            f"{_listed(tangled)} by a small network and not by a linear probe: {_list(tangled)}. It is "
            "there, "
            "but tangled.",
            _numbers(tangled),
            "nothing, if the agent's network has hidden layers; else longer training",
        )
    if unsure := groups["unsure"]:
        yield Finding(
            "warning",
            "probes",
            f"Of {_count(unsure)} too little is held out to tell whether the latents keep it: "
            f"{_list(unsure)}, "
            "and the intervals overlap.",
            _numbers(unsure),
            "more held-out recordings",
        )
    if kept := groups["kept"]:
        yield Finding(
            "good",
            "probes",
            f"{_listed(kept)} by a linear probe about as well as from anything: {_list(kept)}.",
            _numbers(kept),
        )
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
                "warning",
                "probes",
                f"A linear probe reads more from {name} than from the latents: {listed}{_more(better)}.",
                numbers,
                more,
            )


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


_ORDER: tuple[Level, ...] = ("bad", "warning", "good")

# Where a number becomes good or bad: rules of thumb, so each finding shows its number.
_FEW_NATS = 10.0
_ACTIVE_MANY, _ACTIVE_FEW = 0.9, 0.5
_BETTER_THAN_PCA, _WORSE_THAN_PCA = 0.8, 1.05
_OF_THE_MEAN_IMAGE = 0.9
_AUTOENCODER_BETTER = 1.5
_OVERFIT = 2.0
_LESS_OVERFIT = "more and more varied recordings; fewer epochs; a larger --beta"
_OUTLIER = 10.0
_CORRELATED = 0.3
_FAR_MEAN, _FAR_STD = 2.0, 3.0
_SHIFT_STEADY, _SHIFT_SENSITIVE = 0.15, 0.4
_BRIGHTNESS_SENSITIVE = 0.2
_SMOOTH, _JUMPY = 0.5, 0.9


@dataclass(frozen=True)
class Numbers:
    """What a verdict is made of; what is None or empty was not measured.

    Attributes:
        latents: Statistics of the latents.
        reconstruction: None where the folder has no decoder.
        stability: Steadiness of the latents.
        probes: Empty where nothing is known of the state.
        bottleneck: "dense" or "spatial".
        beta: The wanted beta in training; None where the folder does not tell.
        unseen: Whether the encoder is known never to have seen the frames measured.
        training_mse: Error of the encoder on frames that it was trained on.
    """

    latents: Latents
    reconstruction: Reconstruction | None = None
    stability: Stability | None = None
    probes: Sequence[Probe] = ()
    bottleneck: str = "dense"
    beta: float | None = None
    unseen: bool = True
    training_mse: float | None = None

    @property
    def smaller_beta(self) -> str:
        """Advice to weigh the KL less, with a number where there is one to start from."""
        return (
            "a smaller --beta" if not self.beta else f"a smaller --beta ({self.beta / 5:.2g} instead of {self.beta:g})"
        )


def verdict(numbers: Numbers) -> list[Finding]:
    """What the numbers say, the worst first.

    Args:
        numbers: What was measured.
    """
    findings = list(_information(numbers))
    if not numbers.latents.collapsed:  # of latents that tell nothing, nothing else is worth a word
        findings += [*_scale(numbers), *_stability(numbers)]
    findings += _reconstruction(numbers)
    findings += judge_probes(numbers.probes, bottleneck=numbers.bottleneck, smaller_beta=numbers.smaller_beta)
    if not numbers.unseen:
        findings.append(
            Finding(
                "warning",
                "held out",
                "It is not known which recordings the encoder was trained on: it may have seen the "
                "frames measured here, and then all of this looks better than it is.",
                {},
                "name recordings made since, with --frames",
            )
        )
    return sorted(findings, key=lambda finding: _ORDER.index(finding.level))


def headline(findings: Sequence[Finding], missing: Sequence[str] = ()) -> str:
    """The verdict in a sentence.

    Example:
        >>> headline([Finding("good", "information", "…")], ["probes"])
        'What was measured looks good. Not measured: probes.'
        >>> headline([Finding("warning", "probes", "…", lost=("monster.x",))])
        'Usable, unless the agent needs what is lost: monster.x. 1 warning to look at first.'
    """
    levels = [finding.level for finding in findings]
    bad, warnings = levels.count("bad"), levels.count("warning")
    if bad:
        text = f"Do not freeze this encoder yet: {_count_of_verdict(bad, 'serious problem')}, {_count_of_verdict(warnings, 'warning')}."
    elif lost := [name for finding in findings for name in finding.lost]:
        text = f"Usable, unless the agent needs what is lost: {', '.join(lost)}. {_count_of_verdict(warnings, 'warning')} to look at first."
    elif warnings:
        text = f"Usable, with {_count_of_verdict(warnings, 'warning')} to look at first."
    else:
        text = "What was measured looks good."
    return f"{text} Not measured: {', '.join(missing)}." if missing else text


def _information(numbers: Numbers) -> Iterator[Finding]:
    latents = numbers.latents
    facts = {
        "kl_nats": latents.kl_nats,
        "active_units": float(latents.active_units),
        "latent_dim": float(latents.latent_dim),
    }
    if latents.collapsed:
        yield Finding(
            "bad",
            "collapse",
            f"The latents have collapsed: {_nats(latents.kl_nats)}, {latents.active_units} of "
            f"{latents.latent_dim} dimensions active. All frames get (almost) the same latent, so an agent on it is blind.",
            {**facts, "collapsed_below_nats": COLLAPSED_NATS},
            f"train again with {numbers.smaller_beta}; more epochs at beta 0 first (--batch-freeze); and look whether the "
            "frames differ at all (latent-obs frames stats)",
        )
        return
    if latents.kl_nats < _FEW_NATS:
        yield Finding(
            "warning",
            "information",
            f"A latent tells at most {_nats(latents.kl_nats)}: enough to tell some "
            f"{_rounded(math.exp(latents.kl_nats))} pictures apart. What is small in the picture is the first to be left out.",
            facts,
            f"{numbers.smaller_beta}, or train longer",
        )
    else:
        yield Finding("good", "information", f"A latent tells up to {_nats(latents.kl_nats)} about its frame.", facts)
    share = latents.active_units / latents.latent_dim
    text = f"{latents.active_units} of {latents.latent_dim} dimensions are active."
    if share >= _ACTIVE_MANY:
        yield Finding("good", "dimensions", text, facts)
    elif share < _ACTIVE_FEW:
        fitting = max(2, 2 ** math.ceil(math.log2(max(1, latents.active_units))))
        smaller = numbers.bottleneck == "dense" and fitting < latents.latent_dim
        yield Finding(
            "warning",
            "dimensions",
            f"{text} The others are the same for every frame: an agent learns nothing from them.",
            facts,
            f"{numbers.smaller_beta} puts them to use{f'; --latent-dim {fitting} would hold as much' if smaller else ''}",
        )


def _scale(numbers: Numbers) -> Iterator[Finding]:
    latents = numbers.latents
    if latents.mean_abs_correlation > _CORRELATED:
        yield Finding(
            "warning",
            "correlation",
            f"Active dimensions tell much of the same: their absolute correlation is "
            f"{latents.mean_abs_correlation:.2f} on average, and the variance lies in about "
            f"{latents.effective_dimensions:.0f} direction(s) of {latents.latent_dim}.",
            {
                "mean_abs_correlation": latents.mean_abs_correlation,
                "effective_dimensions": latents.effective_dimensions,
            },
            "more varied recordings, or a smaller --latent-dim",
        )
    mean, std = max(map(abs, latents.aggregate_mean)), max(latents.aggregate_std)
    if mean > _FAR_MEAN or std > _FAR_STD:
        yield Finding(
            "warning",
            "scale",
            f"Some latents are far from the prior's mean 0 and standard deviation 1 (largest mean "
            f"{mean:.1f}, largest standard deviation {std:.1f}).",
            {"largest_abs_mean": mean, "largest_std": std},
            "normalize the observations for the agent (VecNormalize), or use a larger --beta; samples from the prior will not "
            "look like frames",
        )


def _stability(numbers: Numbers) -> Iterator[Finding]:
    s = numbers.stability
    if s is None or s.spread <= 0:
        return
    facts = {"shift": s.shift, "shift_pixels": s.shift_pixels}
    text = f"A shift by one pixel moves the latent {_percent(s.shift)} of the way to an unrelated frame"
    if s.shift > _SHIFT_SENSITIVE and s.shift > s.shift_pixels:
        yield Finding(
            "warning",
            "shifts",
            f"{text}, more than it changes the pixels ({_percent(s.shift_pixels)}).",
            facts,
            "longer training on more frames; a larger --beta gives smoother latents",
        )
    elif s.shift <= _SHIFT_STEADY:
        yield Finding("good", "shifts", f"{text}: steady.", facts)
    facts = {"brightness": s.brightness, "brightness_pixels": s.brightness_pixels}
    if s.brightness > max(_BRIGHTNESS_SENSITIVE, s.brightness_pixels):
        yield Finding(
            "warning",
            "brightness",
            f"A change of brightness by 8 of 255 moves the latent {_percent(s.brightness)} of the way "
            f"to an unrelated frame, more than it changes the pixels ({_percent(s.brightness_pixels)}).",
            facts,
            "record at more hours of the day or with more kinds of light, so that brightness alone says little",
        )
    if s.neighbours is None or s.neighbors_pixels is None:
        return
    facts = {"neighbours": s.neighbours, "neighbors_pixels": s.neighbors_pixels, "pairs": float(s.pairs)}
    text = (
        f"Neighbouring frames are {_percent(s.neighbours)} as far apart as frames at random (their pixels "
        f"{_percent(s.neighbors_pixels)})"
    )
    if s.neighbours > _JUMPY and s.neighbours > 1.2 * s.neighbors_pixels:
        yield Finding(
            "warning",
            "smoothness",
            f"{text}: the latents jump where the picture does not.",
            facts,
            "a larger --beta, or more frames",
        )
    elif s.neighbours <= _SMOOTH:
        yield Finding("good", "smoothness", f"{text}: they follow the recording smoothly.", facts)


def _reconstruction(numbers: Numbers) -> Iterator[Finding]:
    r = numbers.reconstruction
    if r is None:
        return
    own = r.scores["encoder"].mse
    mean_ratio, pca_ratio, plain_ratio = r.ratio("mean image"), r.ratio("pca"), r.ratio("autoencoder")
    # Where it knows the training recordings by heart, more of the same training or less of a penalty makes it worse.
    remedy = (
        _LESS_OVERFIT
        if _overfits(numbers)
        else f"train longer, on more recordings; {numbers.smaller_beta}; more latents"
    )
    facts = {"mse": own}
    if mean_ratio is not None and mean_ratio > _OF_THE_MEAN_IMAGE:
        yield Finding(
            "bad",
            "reconstruction",
            "Reconstructions are hardly closer to the frames than one mean image for all of them: "
            f"{_percent(mean_ratio)} of its squared error is left.",
            facts | {"ratio_to_mean_image": mean_ratio},
            remedy,
        )
    elif pca_ratio is not None:
        facts |= {"pca_mse": r.scores["pca"].mse, "ratio_to_pca": pca_ratio}
        text = f"The squared error is {pca_ratio:.2f} times that of PCA of the same size"
        if pca_ratio > _WORSE_THAN_PCA:
            # Weighted pixels cost squared error, and it is not what an agent needs: where probes tell that, they judge.
            level = "warning" if numbers.probes else "bad"
            yield Finding(level, "reconstruction", f"{text}: a linear map does better.", facts, remedy)
        elif pca_ratio <= _BETTER_THAN_PCA:
            yield Finding("good", "reconstruction", f"{text}.", facts)
        else:
            yield Finding("warning", "reconstruction", f"{text}: about as good as a linear map.", facts, remedy)
    if plain_ratio is not None and plain_ratio > _AUTOENCODER_BETTER:
        yield Finding(
            "warning",
            "beta",
            f"A plain autoencoder (beta 0) of the same layers has {1 / plain_ratio:.0%} of the squared "
            f"error, {r.notes.get('autoencoder', 'after its own short training')}: beta costs detail.",
            {"mse": own, "autoencoder_mse": r.scores["autoencoder"].mse},
            numbers.smaller_beta,
        )
    if _overfits(numbers):
        assert numbers.training_mse is not None
        yield Finding(
            "warning",
            "overfitting",
            f"The squared error on held-out recordings is {own / numbers.training_mse:.1f} times "
            "that on the training recordings: the encoder knows those by heart.",
            {"mse": own, "training_mse": numbers.training_mse},
            _LESS_OVERFIT,
        )
    worst, middle = r.scores["encoder"].mse_worst, r.scores["encoder"].mse_median
    if worst > _OUTLIER * max(middle, 1e-5):
        yield Finding(
            "warning",
            "outliers",
            f"Some frames come back far worse than most: the worst has {worst / max(middle, 1e-5):.0f} "
            "times the median error.",
            {"mse_worst": worst, "mse_median": middle},
            "look at the worst frames below, and record more like them",
        )


def _overfits(numbers: Numbers) -> bool:
    r, trained = numbers.reconstruction, numbers.training_mse
    return r is not None and trained is not None and trained > 0 and r.scores["encoder"].mse > _OVERFIT * trained


def _nats(value: float) -> str:
    return f"{value:.1f} nats" if value >= 1 else f"{value:.2f} nats"


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 or share == 0 else "<1%"


def _rounded(number: float) -> str:
    """A number with two digits that say something.

    Example:
        >>> _rounded(54.6), _rounded(2980.9)
        ('55', '3,000')
    """
    digits = max(0, math.floor(math.log10(max(number, 1))) - 1)
    return f"{round(number / 10**digits) * 10**digits:,}"


def _count_of_verdict(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
