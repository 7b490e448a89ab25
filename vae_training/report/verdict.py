"""The verdict: plain sentences with the numbers behind them, and what to try next. A pure function of the numbers.

Nothing is said about what was not measured; `not_measured` lists that.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vae_training.report.finding import Finding, Level
from vae_training.report.latents import COLLAPSED_NATS, Latents
from vae_training.report.reconstruction import Reconstruction
from vae_training.report.stability import Stability
from vae_training.report.verdict_probes import Probe, judge_probes

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
        return "a smaller --beta" if not self.beta else f"a smaller --beta ({self.beta / 5:.2g} instead of {self.beta:g})"


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
                "warning", "held out", "It is not known which recordings the encoder was trained on: it may have seen the "
                "frames measured here, and then all of this looks better than it is.", {},
                "name recordings made since, with --frames",
            )
        )  # fmt: skip
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
        text = f"Do not freeze this encoder yet: {_count(bad, 'serious problem')}, {_count(warnings, 'warning')}."
    elif lost := [name for finding in findings for name in finding.lost]:
        text = (
            f"Usable, unless the agent needs what is lost: {', '.join(lost)}. {_count(warnings, 'warning')} to look at first."
        )
    elif warnings:
        text = f"Usable, with {_count(warnings, 'warning')} to look at first."
    else:
        text = "What was measured looks good."
    return f"{text} Not measured: {', '.join(missing)}." if missing else text


def _information(numbers: Numbers) -> Iterator[Finding]:
    latents = numbers.latents
    facts = {"kl_nats": latents.kl_nats, "active_units": float(latents.active_units), "latent_dim": float(latents.latent_dim)}
    if latents.collapsed:
        yield Finding(
            "bad", "collapse", f"The latents have collapsed: {_nats(latents.kl_nats)}, {latents.active_units} of "
            f"{latents.latent_dim} dimensions active. All frames get (almost) the same latent, so an agent on it is blind.",
            {**facts, "collapsed_below_nats": COLLAPSED_NATS},
            f"train again with {numbers.smaller_beta}; more epochs at beta 0 first (--batch-freeze); and look whether the "
            "frames differ at all (latent-obs frames stats)",
        )  # fmt: skip
        return
    if latents.kl_nats < _FEW_NATS:
        yield Finding(
            "warning", "information", f"A latent tells at most {_nats(latents.kl_nats)}: enough to tell some "
            f"{_rounded(math.exp(latents.kl_nats))} pictures apart. What is small in the picture is the first to be left out.",
            facts, f"{numbers.smaller_beta}, or train longer",
        )  # fmt: skip
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
            "warning", "dimensions", f"{text} The others are the same for every frame: an agent learns nothing from them.",
            facts,
            f"{numbers.smaller_beta} puts them to use{f'; --latent-dim {fitting} would hold as much' if smaller else ''}",
        )  # fmt: skip


def _scale(numbers: Numbers) -> Iterator[Finding]:
    latents = numbers.latents
    if latents.mean_abs_correlation > _CORRELATED:
        yield Finding(
            "warning", "correlation", f"Active dimensions tell much of the same: their absolute correlation is "
            f"{latents.mean_abs_correlation:.2f} on average, and the variance lies in about "
            f"{latents.effective_dimensions:.0f} direction(s) of {latents.latent_dim}.",
            {"mean_abs_correlation": latents.mean_abs_correlation, "effective_dimensions": latents.effective_dimensions},
            "more varied recordings, or a smaller --latent-dim",
        )  # fmt: skip
    mean, std = max(map(abs, latents.aggregate_mean)), max(latents.aggregate_std)
    if mean > _FAR_MEAN or std > _FAR_STD:
        yield Finding(
            "warning", "scale", f"Some latents are far from the prior's mean 0 and standard deviation 1 (largest mean "
            f"{mean:.1f}, largest standard deviation {std:.1f}).", {"largest_abs_mean": mean, "largest_std": std},
            "normalise the observations for the agent (VecNormalize), or use a larger --beta; samples from the prior will not "
            "look like frames",
        )  # fmt: skip


def _stability(numbers: Numbers) -> Iterator[Finding]:
    s = numbers.stability
    if s is None or s.spread <= 0:
        return
    facts = {"shift": s.shift, "shift_pixels": s.shift_pixels}
    text = f"A shift by one pixel moves the latent {_percent(s.shift)} of the way to an unrelated frame"
    if s.shift > _SHIFT_SENSITIVE and s.shift > s.shift_pixels:
        yield Finding(
            "warning", "shifts", f"{text}, more than it changes the pixels ({_percent(s.shift_pixels)}).", facts,
            "longer training on more frames; a larger --beta gives smoother latents",
        )  # fmt: skip
    elif s.shift <= _SHIFT_STEADY:
        yield Finding("good", "shifts", f"{text}: steady.", facts)
    facts = {"brightness": s.brightness, "brightness_pixels": s.brightness_pixels}
    if s.brightness > max(_BRIGHTNESS_SENSITIVE, s.brightness_pixels):
        yield Finding(
            "warning", "brightness", f"A change of brightness by 8 of 255 moves the latent {_percent(s.brightness)} of the way "
            f"to an unrelated frame, more than it changes the pixels ({_percent(s.brightness_pixels)}).", facts,
            "record at more hours of the day or with more kinds of light, so that brightness alone says little",
        )  # fmt: skip
    if s.neighbours is None or s.neighbours_pixels is None:
        return
    facts = {"neighbours": s.neighbours, "neighbours_pixels": s.neighbours_pixels, "pairs": float(s.pairs)}
    text = (
        f"Neighbouring frames are {_percent(s.neighbours)} as far apart as frames at random (their pixels "
        f"{_percent(s.neighbours_pixels)})"
    )
    if s.neighbours > _JUMPY and s.neighbours > 1.2 * s.neighbours_pixels:
        yield Finding(
            "warning", "smoothness", f"{text}: the latents jump where the picture does not.", facts,
            "a larger --beta, or more frames",
        )  # fmt: skip
    elif s.neighbours <= _SMOOTH:
        yield Finding("good", "smoothness", f"{text}: they follow the recording smoothly.", facts)


def _reconstruction(numbers: Numbers) -> Iterator[Finding]:
    r = numbers.reconstruction
    if r is None:
        return
    own = r.scores["encoder"].mse
    mean_ratio, pca_ratio, plain_ratio = r.ratio("mean image"), r.ratio("pca"), r.ratio("autoencoder")
    # Where it knows the training recordings by heart, more of the same training or less of a penalty makes it worse.
    remedy = _LESS_OVERFIT if _overfits(numbers) else f"train longer, on more recordings; {numbers.smaller_beta}; more latents"
    facts = {"mse": own}
    if mean_ratio is not None and mean_ratio > _OF_THE_MEAN_IMAGE:
        yield Finding(
            "bad", "reconstruction", "Reconstructions are hardly closer to the frames than one mean image for all of them: "
            f"{_percent(mean_ratio)} of its squared error is left.", facts | {"ratio_to_mean_image": mean_ratio}, remedy,
        )  # fmt: skip
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
            "warning", "beta", f"A plain autoencoder (beta 0) of the same layers has {1 / plain_ratio:.0%} of the squared "
            f"error, {r.notes.get('autoencoder', 'after its own short training')}: beta costs detail.",
            {"mse": own, "autoencoder_mse": r.scores["autoencoder"].mse}, numbers.smaller_beta,
        )  # fmt: skip
    if _overfits(numbers):
        assert numbers.training_mse is not None
        yield Finding(
            "warning", "overfitting", f"The squared error on held-out recordings is {own / numbers.training_mse:.1f} times "
            "that on the training recordings: the encoder knows those by heart.",
            {"mse": own, "training_mse": numbers.training_mse},
            _LESS_OVERFIT,
        )  # fmt: skip
    worst, middle = r.scores["encoder"].mse_worst, r.scores["encoder"].mse_median
    if worst > _OUTLIER * max(middle, 1e-5):
        yield Finding(
            "warning", "outliers", f"Some frames come back far worse than most: the worst has {worst / max(middle, 1e-5):.0f} "
            "times the median error.", {"mse_worst": worst, "mse_median": middle},
            "look at the worst frames below, and record more like them",
        )  # fmt: skip


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


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
