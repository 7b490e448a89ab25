"""The verdict: tables of rules on the numbers of a report. Each rule that applies becomes a finding.

Nothing is said about what was not measured. The limits are rules of thumb, so each finding shows its numbers.
"""

import math
import string
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from vae_training.report.metrics.latents import Latents, Stability
from vae_training.report.metrics.reconstruction import Reconstruction
from vae_training.report.probes.probes import CLEAR, KEPT, METRIC_NAMES, ProbeTable

Level = Literal["bad", "warning", "good"]
_LEVELS: tuple[Level, ...] = ("bad", "warning", "good")
_BETTER = 0.05  # above chance, from 0 to 1: by less, a baseline is not called better
_NAMED = 6  # targets in a sentence
_OVERFIT = 2.0  # held-out error over training error


@dataclass(frozen=True)
class Finding:
    """One thing that the numbers say."""

    key: str  # the rule that applied, "topic.name", such as "reconstruction.worse_than_pca"
    level: Level
    sentence: str  # what was found
    numbers: dict[str, float] = field(default_factory=dict)  # that it rests on, by name
    suggestion: str = ""  # what to try next; empty where nothing is to be done
    lost: tuple[str, ...] = ()  # what an agent will not see

    @property
    def topic(self) -> str:
        """What it is about, such as "reconstruction"."""
        return self.key.split(".")[0]


@dataclass(frozen=True)
class Numbers:
    """What a verdict is made of; what is None was not measured."""

    latents: Latents
    reconstruction: Reconstruction | None = None
    stability: Stability | None = None
    probes: ProbeTable | None = None
    bottleneck: str = "dense"  # or "spatial"
    beta: float | None = None  # wanted in training
    unseen: bool = True  # whether the encoder is known never to have seen the frames measured
    training_mse: float | None = None  # on frames that it was trained on


class Rule(NamedTuple):
    """When to say what; `say` and `advice` are format strings of the facts."""

    when: Callable[[dict[str, Any]], bool]
    say: str
    advice: str = ""


_PCA = "The squared error is {ratio_to_pca:.2f} times that of PCA of the same size"
_SHIFT = "A shift by one pixel moves the latent {shift:.0%} of the way to an unrelated frame"
_NEAR = "Neighboring frames are {neighbors:.0%} as far apart as random ones (their pixels {neighbors_pixels:.0%})"

#: Rules by level and key, which is "topic.name". Of all rules on one topic the first that applies counts.
RULES: dict[Level, dict[str, Rule]] = {
    "bad": {
        "collapse.collapsed": Rule(
            lambda n: n["collapsed"] > 0,
            "Frames get (almost) equal latents: {kl_nats:.3g} nats, {active_units} of {latent_dim} dimensions active.",
            "{smaller_beta}; more epochs at beta 0 first (--batch-freeze); check the frames (latent-obs frames stats)",
        ),
        "reconstruction.mean_image": Rule(
            lambda n: n["ratio_to_mean_image"] > 0.9,
            "Reconstructions have {ratio_to_mean_image:.0%} of the squared error of one mean image for all frames.",
            "{remedy}",
        ),
        "reconstruction.worse_than_pca": Rule(
            lambda n: n["ratio_to_pca"] > 1.05 and not n["probed"],
            f"{_PCA}: a linear map does better.",
            "{remedy}",
        ),
    },
    "warning": {
        "information.few_nats": Rule(
            lambda n: n["information"] < 10,
            "A latent carries at most {kl_nats:.3g} nats, some {pictures} pictures. What is small is left out first.",
            "{smaller_beta}, or train longer",
        ),
        "dimensions.dead": Rule(
            lambda n: n["active_share"] < 0.5,
            "{active_units} of {latent_dim} dimensions are active. The others are the same for every frame.",
            "{smaller_beta} puts them to use{fewer_latents}",
        ),
        "correlation.high": Rule(
            lambda n: n["mean_abs_correlation"] > 0.3,
            "Active dimensions repeat each other: their absolute correlation is {mean_abs_correlation:.2f} on average, "
            "and the variance lies in about {effective_dimensions:.0f} direction(s) of {latent_dim}.",
            "more varied recordings, or a smaller --latent-dim",
        ),
        "scale.far_from_prior": Rule(
            lambda n: n["largest_mean"] > 2 or n["largest_std"] > 3,
            "Some latents are far from the prior: means up to {largest_mean:.1f}, deviations up to {largest_std:.1f}.",
            "normalize the observations for the agent (VecNormalize), or use a larger --beta",
        ),
        "shifts.sensitive": Rule(
            lambda n: n["shift"] > 0.4 and n["shift"] > n["shift_pixels"],
            f"{_SHIFT}, more than it changes the pixels ({{shift_pixels:.0%}}).",
            "longer training on more frames; a larger --beta gives smoother latents",
        ),
        "brightness.sensitive": Rule(
            lambda n: n["brightness"] > max(0.2, n["brightness_pixels"]),
            "A change of brightness by 8 of 255 moves the latent {brightness:.0%} of the way to an unrelated frame, "
            "more than it changes the pixels ({brightness_pixels:.0%}).",
            "record at more hours of the day or with more kinds of light, so that brightness alone says little",
        ),
        "smoothness.jumpy": Rule(
            lambda n: n["neighbors"] > 0.9 and n["neighbors"] > 1.2 * n["neighbors_pixels"],
            f"{_NEAR}: the latents jump where the picture does not.",
            "a larger --beta, or more frames",
        ),
        "reconstruction.worse_than_pca_but_probed": Rule(  # squared error is not what an agent needs: probes judge that
            lambda n: n["ratio_to_pca"] > 1.05,
            f"{_PCA}: a linear map does better.",
            "{remedy}",
        ),
        "reconstruction.like_pca": Rule(
            lambda n: n["ratio_to_pca"] > 0.8,
            f"{_PCA}: about as good as a linear map.",
            "{remedy}",
        ),
        "beta.costs_detail": Rule(
            lambda n: n["ratio_to_autoencoder"] > 1.5,
            "The squared error is {ratio_to_autoencoder:.1f} times that of these layers at beta 0: beta costs detail.",
            "{smaller_beta}",
        ),
        "overfitting.overfits": Rule(
            lambda n: n["ratio_to_training"] > _OVERFIT,
            "The squared error on held-out recordings is {ratio_to_training:.1f} times that on training recordings.",
            "{remedy}",
        ),
        "outliers.worst_frame": Rule(
            lambda n: n["worst_to_median"] > 10,
            "Some frames come back far worse than most: the worst has {worst_to_median:.0f} times the median error.",
            "look at the worst frames below, and record more like them",
        ),
        "held out.unknown": Rule(
            lambda n: not n["unseen"],
            "The encoder may have been trained on the frames measured here. Then all of this looks better than it is.",
            "name recordings made since, with --frames",
        ),
    },
    "good": {
        "information.enough": Rule(lambda n: n["information"] >= 10, "A latent carries up to {kl_nats:.3g} nats."),
        "dimensions.active": Rule(
            lambda n: n["active_share"] >= 0.9, "{active_units} of {latent_dim} dimensions are active."
        ),
        "shifts.steady": Rule(lambda n: n["shift"] <= 0.15, f"{_SHIFT}: steady."),
        "smoothness.smooth": Rule(lambda n: n["neighbors"] <= 0.5, f"{_NEAR}: latents follow the recording smoothly."),
        "reconstruction.better_than_pca": Rule(lambda n: n["ratio_to_pca"] <= 0.8, f"{_PCA}."),
    },
}

_MORE = "{spatial}a larger --latent-dim, {smaller_beta}, or longer training"
#: Level, sentence and advice of each group of probed values; "lost" is bad where it is most of them.
PROBE_RULES: dict[str, tuple[Level, str, str]] = {
    "lost": ("warning", "cannot be read from the latents although the frames show them", _MORE),
    "faint": (
        "warning",
        "cannot be read from the latents, and only faintly from a frame itself",
        "for what takes time to see, such as a speed, show the agent the last latents (history=4 in the wrappers)",
    ),
    "partly": ("warning", "can be read from the latents only in part", _MORE),
    "tangled": (
        "warning",
        "can be read by a small network and not by a linear probe: they are there, but tangled",
        "nothing, if the agent's network has hidden layers; else longer training",
    ),
    "unsure": ("warning", "may be kept or lost: the intervals overlap, too little is held out", "more recordings"),
    "kept": ("good", "can be read by a linear probe about as well as from anything", ""),
}


def verdict(numbers: Numbers) -> list[Finding]:
    """What the numbers say, the worst first."""
    facts = _facts(numbers)
    findings: dict[str, Finding] = {}
    for level, rules in RULES.items():
        for key, rule in rules.items():
            topic = key.split(".")[0]
            if topic not in findings and rule.when(facts):
                named = [name for _, name, _, _ in string.Formatter().parse(rule.say) if name]
                shown = {name: facts[name] for name in named if not isinstance(facts[name], str)}
                findings[topic] = Finding(key, level, rule.say.format(**facts), shown, rule.advice.format(**facts))
    probed = [] if numbers.probes is None else _probes(numbers.probes, _MORE.format(**facts))
    return sorted([*findings.values(), *probed], key=lambda finding: _LEVELS.index(finding.level))


def headline(findings: Sequence[Finding], missing: Sequence[str] = ()) -> str:
    """The verdict in a sentence.

    Example:
        >>> headline([Finding("probes.lost", "warning", "…", lost=("monster.x",))])
        'Usable, unless the agent needs what is lost: monster.x. 1 warning to look at first.'
    """
    bad, count = (sum(finding.level == level for finding in findings) for level in ("bad", "warning"))
    warnings = f"{count} warning{'' if count == 1 else 's'}"
    if bad:
        text = f"Do not freeze this encoder yet: {bad} serious problem{'' if bad == 1 else 's'}, {warnings}."
    elif lost := [name for finding in findings for name in finding.lost]:
        text = f"Usable, unless the agent needs what is lost: {', '.join(lost)}. {warnings} to look at first."
    else:
        text = f"Usable, with {warnings} to look at first." if count else "What was measured looks good."
    return f"{text} Not measured: {', '.join(missing)}." if missing else text


def _facts(numbers: Numbers) -> dict[str, Any]:
    """What rules ask for: numbers, NaN where not measured, so that no comparison holds; and words made from them."""
    latents, r, s = numbers.latents, numbers.reconstruction, numbers.stability
    facts: dict[str, Any] = defaultdict(
        lambda: math.nan,
        unseen=numbers.unseen,
        probed=numbers.probes is not None,
        collapsed=latents.collapsed,
        kl_nats=latents.kl_nats,
        active_units=latents.active_units,
        latent_dim=latents.latent_dim,
    )
    if not latents.collapsed:  # of latents that carry nothing, nothing else is worth a word
        facts |= {
            "information": latents.kl_nats,
            "active_share": latents.active_units / latents.latent_dim,
            "mean_abs_correlation": latents.mean_abs_correlation,
            "effective_dimensions": latents.effective_dimensions,
            "largest_mean": max(map(abs, latents.aggregate_mean)),
            "largest_std": max(latents.aggregate_std),
        }
        if s is not None and s.spread > 0:
            facts |= {name: value for name, value in vars(s).items() if isinstance(value, float)}
    if r is not None:
        own = r.scores["encoder"]
        facts |= {f"ratio_to_{name.replace(' ', '_')}": r.ratio(name) for name in r.scores}
        facts["worst_to_median"] = own.mse_worst / max(own.mse_median, 1e-5)
        if numbers.training_mse:
            facts["ratio_to_training"] = own.mse / numbers.training_mse
    beta, spatial = numbers.beta, numbers.bottleneck == "spatial"
    smaller_beta = f"a smaller --beta ({beta / 5:.2g} instead of {beta:g})" if beta else "a smaller --beta"
    fitting = max(2, 2 ** math.ceil(math.log2(max(1, latents.active_units))))
    fewer = "" if spatial or fitting >= latents.latent_dim else f"; --latent-dim {fitting} would hold as much"
    # Where it knows the training recordings by heart, more of the same training or less of a penalty makes it worse.
    remedy = f"train longer, on more recordings; {smaller_beta}; more latents"
    if facts["ratio_to_training"] > _OVERFIT:
        remedy = "more and more varied recordings; fewer epochs; a larger --beta"
    return facts | {
        "smaller_beta": smaller_beta,
        "spatial": "" if spatial else "a spatial bottleneck (--bottleneck spatial --latent-dim 256), ",
        "fewer_latents": fewer,
        "pictures": f"{float(f'{math.exp(min(latents.kl_nats, 30)):.1e}'):,.0f}",  # two digits of it say something
        "remedy": remedy,
    }


def _probes(table: ProbeTable, more: str) -> Iterator[Finding]:
    """Findings about probes: one for each group of targets, and one for each baseline that reads more."""
    groups: dict[str, list[str]] = {group: [] for group in PROBE_RULES}
    for target in table.targets:
        if group := _group(table, target):
            groups[group].append(target)
    readable = sum(map(len, groups.values())) - len(groups["faint"])
    for group, targets in groups.items():
        if not targets:
            continue
        level, say, advice = PROBE_RULES[group]
        kept = sorted((table.keeps(target) for target in targets), key=lambda k: k.share or 0.0)  # the worst first
        names = {target: METRIC_NAMES[table.best(target).main.metric] for target in targets}
        listed = _some([f"{k.target} ({names[k.target]} {k.score:.2f} of {k.reference:.2f})" for k in kept])
        yield Finding(
            f"probes.{group}",
            # Which of them an agent needs is not known here; an encoder that loses most of what can be read is useless.
            "bad" if group == "lost" and 2 * len(targets) > readable else level,
            f"{len(targets)} of {len(table.targets)} known value(s) {say}: {listed}. In brackets: the score of a "
            "linear probe on the latents, of the best of all probes.",
            {k.target: k.score for k in kept} | {f"{k.target}, best": k.reference for k in kept},
            more if advice == _MORE else advice,
            tuple(targets) if group == "lost" else (),
        )
    own, *others = table.representations
    for name in others:
        better: dict[str, tuple[float, float]] = {}
        for target in table.targets:
            ours, theirs = table.find(target, own, "linear"), table.find(target, name, "linear")
            if ours is None or theirs is None or theirs.interval[0] <= ours.interval[1]:
                continue
            if theirs.above_chance - ours.above_chance > _BETTER:
                better[target] = (theirs.main.value, ours.main.value)
        if better:
            listed = _some([f"{target} ({theirs:.2f} against {ours:.2f})" for target, (theirs, ours) in better.items()])
            said = f"A linear probe reads more from {name} than from the latents: {listed}."
            scores = {f"{target}, {name}": theirs for target, (theirs, _) in better.items()}
            scores |= {target: ours for target, (_, ours) in better.items()}
            yield Finding("probes.baseline_reads_more", "warning", said, scores, more)


def _group(table: ProbeTable, target: str) -> str | None:
    """The probe rule that applies to a target; None where nothing reads it, which is no fault of the encoder."""
    own = table.representations[0]
    kept, best, linear = table.keeps(target), table.best(target), table.result(target, own, "linear")
    network = table.find(target, own, "mlp")
    if kept.share is None or kept.verdict == "kept":
        return None if kept.share is None else "kept"
    if linear.interval[1] >= best.interval[0]:  # the intervals meet: it is not known that anything is lost
        return "kept" if kept.verdict == "partly kept" else "unsure"
    if network and network.above_chance >= KEPT * best.above_chance:
        return "tangled"
    if kept.verdict == "partly kept":
        return "partly"
    return "lost" if best.above_chance >= CLEAR else "faint"


def _some(texts: Sequence[str]) -> str:
    return ", ".join(texts[:_NAMED]) + (f" and {len(texts) - _NAMED} more" if len(texts) > _NAMED else "")
