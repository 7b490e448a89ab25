"""The verdict of a report: each number is good, doubtful or bad by the limits of one table; the worst decides.

Nothing is said about what was not measured. The limits are rules of thumb, so every finding shows its numbers. They are
set so that nothing is good that is below its baseline: PCA, an untrained network, or one mean image for all frames.
"""

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

from latent_obs.util.errors import InputError
from latent_obs.util.words import counted
from vae_training.report.metrics.latents import Latents, Stability
from vae_training.report.metrics.reconstruction import Reconstruction
from vae_training.report.probes.probes import CLEAR, KEPT, METRIC_NAMES, PIXELS, READABLE, ProbeResult, ProbeTable
from vae_training.training.config import TrainConfig

Level = Literal["bad", "doubtful", "good"]
LEVELS: tuple[Level, ...] = ("bad", "doubtful", "good")
_BETTER = 0.05  # above chance, from 0 to 1: by less, a baseline is not called better
_NAMED = 6  # targets in a sentence
_FEW_STEPS = 1_000  # gradient steps
_WEAK = {f"probes.{name}" for name in ("lost", "partly", "below_baseline", "nothing_added")}  # findings of the encoder
_MOST_ADVICE = 3
_CHOSEN = ("latent_dim", "components")  # settings of train-vae that follow the frame size by default
_SMALL_CHANGE = 0.15  # of the way to an unrelated frame: where the pixels change by less, this counts in their place


class Measure(NamedTuple):
    """A number that a verdict is made of, and its limits. If `bad` is below `good`, more is better, else less is."""

    name: str
    good: float  # the value is good up to here (or from here, if more is better)
    bad: float  # the value is bad beyond this; infinite if it is never bad
    form: str  # format of the value and its limits

    def level(self, value: float) -> Level:
        """Whether a value is good, doubtful or bad.

        Example:
            >>> less, more = Measure("error", 1, 10, "{:.0f}"), Measure("nats", 10, 0.5, "{:.0f}")
            >>> less.level(1), less.level(2), less.level(11), more.level(9)
            ('good', 'doubtful', 'bad', 'doubtful')
        """
        sign = 1 if self.good <= self.bad else -1
        if sign * value <= sign * self.good:
            return "good"
        return "bad" if sign * value > sign * self.bad else "doubtful"

    @property
    def limits(self) -> dict[Level, str]:
        """The limits in words, by level."""
        form = "{:.0%}" if self.form.endswith("%}") else "{:g}"
        good, bad = (form.format(limit) for limit in (self.good, self.bad))
        if self.good <= self.bad:
            return {"good": f"at most {good}", "bad": f"above {bad}" if math.isfinite(self.bad) else "never"}
        return {"good": f"{good} or more", "bad": f"below {bad}" if math.isfinite(self.bad) else "never"}


#: The one definition of all limits. Keys are "topic.name".
MEASURES: dict[str, Measure] = {
    "probes.lost": Measure("known values that cannot be read from the latents", 0, 0.5, "{:.0%}"),
    "probes.below_baseline": Measure("known values that PCA or an untrained network shows better", 0, 0.5, "{:.0%}"),
    "probes.nothing_added": Measure("known values that the latents show better than both", 1, -math.inf, "{:.0f}"),
    "probes.partly": Measure("known values that can be read only in part", 0, math.inf, "{:.0%}"),
    "probes.unsure": Measure("known values with too few held-out frames for a verdict", 0, math.inf, "{:.0%}"),
    "information.nats": Measure("information in a latent, at most [nats]", 10, 0.5, "{:.3g}"),
    "pictures.mean_image": Measure("error of reconstructions, divided by that of one mean image", 0.5, 0.9, "{:.2f}"),
    "pictures.pca": Measure("error of reconstructions, divided by that of PCA", 1, 10, "{:,.2f}"),
    "pictures.ssim": Measure("SSIM of reconstructions, if one mean image is 0 and PCA is 1", 1, 0, "{:.2f}"),
    "overfitting.ratio": Measure("error on held-out frames, divided by that on training frames", 2, math.inf, "{:.2f}"),
    "outliers.worst": Measure("error of the worst frame, divided by the median", 10, math.inf, "{:.1f}"),
    "stability.shift": Measure("change by a shift of one pixel, latent / pixels", 1.2, math.inf, "{:.2f}"),
    "stability.brightness": Measure("change by a little more or less light, latent / pixels", 1.2, math.inf, "{:.2f}"),
    "stability.next_frame": Measure("change from one frame to the next, latent / pixels", 1.2, math.inf, "{:.2f}"),
}


@dataclass(frozen=True)
class Grade:
    """A row of the table of numbers: a value, its limits in words, and which of the three it is."""

    key: str  # of `MEASURES`
    name: str
    value: float
    shown: str
    good: str
    bad: str
    level: Level


@dataclass(frozen=True)
class Finding:
    """One thing that the numbers say."""

    key: str  # "topic.name", such as "pictures.pca"; a key of `MEASURES` unless it is no matter of a limit
    level: Level
    sentence: str  # what was found
    detail: str = ""  # the numbers behind it, or a remark
    numbers: dict[str, float] = field(default_factory=dict)  # that it rests on, by name
    lost: tuple[str, ...] = ()  # what an agent will not see

    @property
    def topic(self) -> str:
        """What it is about, such as "pictures"."""
        return self.key.split(".")[0]


@dataclass(frozen=True)
class Numbers:
    """What a verdict is made of; what is None was not measured."""

    latents: Latents
    reconstruction: Reconstruction | None = None
    stability: Stability | None = None
    probes: ProbeTable | None = None
    bottleneck: str | None = "dense"  # or "spatial"; None: a pretrained network, which train-vae has not made
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the training run; empty if not known
    steps: int | None = None  # gradient steps
    unseen: bool = True  # whether the encoder is known never to have seen the frames measured
    training_mse: float | None = None  # on frames that it was trained on
    few: ProbeTable | None = None  # linear probes that learnt from few frames, on the latents and on PCA
    pca: str | Path | None = None  # a file of the principal components, or a folder of frames to fit them to


@dataclass(frozen=True)
class Worth:
    """Whether an encoder was worth its training, beside principal components, which are fitted in seconds."""

    better: Literal["vae", "pca", "neither"]  # for an agent: "neither" if the intervals of both overlap
    sentence: str


class Verdict(NamedTuple):
    """What the numbers of a report say."""

    level: Level  # that of the worst finding
    headline: str
    advice: list[str]  # what to try next, the most useful first
    command: str | None  # that follows the first advice on training
    worth: Worth | None  # None if nothing was measured that shows it
    findings: list[Finding]  # the worst first
    grades: list[Grade]  # every number that has limits


def verdict(numbers: Numbers, missing: Sequence[str] = ()) -> Verdict:
    """Judge an encoder by its numbers; `missing` names what was not measured."""
    probed = None if numbers.probes is None else _Probed(numbers.probes)
    values = dict(_values(numbers, probed))
    grades = [_grade(key, values[key]) for key in MEASURES if key in values]
    # If probes show that training has kept what acts, the pictures alone are not a reason to reject an encoder.
    in_question = [grade.level for grade in grades if grade.key in ("probes.lost", "probes.below_baseline")]
    added = [grade.level for grade in grades if grade.key == "probes.nothing_added"]
    proven = probed is not None and bool(probed.readable) and "bad" not in in_question and added != ["doubtful"]
    findings: list[Finding] = [] if probed is None else list(probed.findings())
    topics: dict[str, Finding] = {}
    for grade in sorted(grades, key=lambda grade: LEVELS.index(grade.level)):
        topic = grade.key.split(".")[0]
        if topic == "probes" or topic in topics or (grade.level == "good" and grade.key != "pictures.pca"):
            continue
        level, detail = grade.level, ""
        if topic == "pictures" and proven and level == "bad":
            level, detail = "doubtful", "The known values can be read all the same, so this alone is only a doubt."
        if topic == "information" and numbers.latents.components and not numbers.latents.collapsed and level == "bad":
            level, detail = "doubtful", "The principal components say what PCA says, so this alone is only a doubt."
        topics[topic] = Finding(grade.key, level, _sentence(grade, numbers), detail, {grade.name: grade.value})
    findings += topics.values()
    if not numbers.unseen:
        said = "The encoder may have been trained on the frames measured here, so all numbers may look too good."
        findings.append(Finding("frames.may_be_known", "doubtful", said))
    if numbers.reconstruction is None and (probed is None or not probed.readable):
        said = "Neither reconstructions nor known values could be measured, so nothing shows what the latents keep."
        findings.append(Finding("measured.too_little", "doubtful", said))
    findings.sort(key=lambda finding: LEVELS.index(finding.level))
    text = headline(findings)
    if missing:
        text += f" Not measured: {', '.join(missing)}."
    level = findings[0].level if findings else "good"
    return Verdict(level, text, *advise(numbers, findings), _worth(numbers), findings, grades)


def headline(findings: Sequence[Finding]) -> str:
    """The verdict in two sentences, made from findings, the worst first.

    Example:
        >>> headline([Finding("information.nats", "bad", "The learned values say nothing.")])
        'Not usable. The learned values say nothing.'
    """
    if not findings:
        return "Good. No number that was measured is beyond its limit."
    worst = findings[0]
    doubts = [finding for finding in findings if finding.level == "doubtful"]
    if worst.level == "bad":
        return f"Not usable. {worst.sentence}"
    if not doubts:
        return f"Good. {worst.sentence}"
    if lost := [name for finding in findings for name in finding.lost]:
        return f"Usable, unless the agent needs what is lost: {', '.join(lost)}."
    kept = any(finding.key == "probes.kept" for finding in findings)
    if kept and not any(finding.key in ("probes.below_baseline", "probes.nothing_added") for finding in doubts):
        return f"Usable, with {counted(len(doubts), 'doubt')}. {worst.sentence}"
    return f"Doubtful. {worst.sentence}"


def advise(numbers: Numbers, findings: Sequence[Finding]) -> tuple[list[str], str | None]:
    """What to try next, the most useful first, no more than three; and the command of the first one on training.

    Advice has one direction only: never a larger beta, fewer latents or less training. So no two contradict each other.
    """
    problems = [finding for finding in findings if finding.level != "good"]
    topics, keys = ({finding.topic for finding in problems}, {finding.key for finding in problems})
    bad = any(finding.level == "bad" for finding in problems)
    settings, steps = numbers.settings, numbers.steps
    overfits, short = "overfitting" in topics, steps is not None and steps < _FEW_STEPS
    weak = not short and ("pictures" in topics or bool(keys & _WEAK))
    probed = any(finding.topic == "probes" for finding in findings)
    unprobed = not probed and not short and bool(topics & {"pictures", "measured"})
    beta, augment = settings.get("beta"), (settings.get("augment") or 0) < 1
    smaller_beta = "Use a smaller --beta" + (f": {beta / 5:.2g} instead of {beta:g}." if beta else ".")
    epochs = settings.get("epochs") or 0
    change_beta = {"beta": float(f"{beta / 5:.2g}")} if beta else {}
    measure = (
        "Measure what an agent needs: record frames together with the state of the game (latent-obs frames record does "
        "so if the environment has it), or give values of your own to latent-obs report with --targets."
    )
    augmented = ", or train with --augment 1, which moves and recolors frames" if augment else ""
    dense = weak and numbers.bottleneck == "dense"
    another = (
        "Take another feature map (--layer of latent-obs encoder), a finer grid (--grid), more components (--pca), or "
        "another network."
    )
    candidates: list[tuple[bool, str, dict[str, Any]]] = [
        (weak and numbers.bottleneck is None, another, {}),
        (
            short and bool(problems),
            f"Train longer (--epochs), or on more frames. The encoder took only {steps} gradient steps, and a few "
            "thousand are usual.",
            {"epochs": epochs * min(20, -(-3 * _FEW_STEPS // max(1, steps or 1)))},
        ),
        (
            "frames" in topics,
            "Measure recordings that were made after the training: latent-obs report --frames names their folder.",
            {},
        ),
        (
            overfits,
            f"Record more frames{augmented}. The encoder does much worse on frames that it was not trained on.",
            {"augment": 1.0} if augment else {},
        ),
        (not short and "information" in topics, smaller_beta, change_beta),
        (unprobed and not bad, measure, {}),
        (weak and not overfits, "Train longer (--epochs).", {"epochs": 2 * epochs}),
        (
            dense,
            "Train with --bottleneck spatial. It keeps where an object is in the frame.",
            {"bottleneck": "spatial", "widths": (), "strides": (), **dict.fromkeys((*_CHOSEN, "start_from"))},
        ),
        (unprobed, measure, {}),
        (weak and not overfits, smaller_beta, change_beta),
        ("probes.unsure" in keys, "Record more frames: too few were held out to see what the latents keep.", {}),
        ("outliers" in topics, "Look at the worst frames on the page, and record more like them.", {}),
        (
            "stability" in topics and augment and not short,
            "Train with --augment 1, which moves and recolors frames.",
            {"augment": 1.0},
        ),
    ]
    if numbers.bottleneck is None:  # nothing that train-vae could change
        candidates = [candidate for candidate in candidates if not candidate[2]]
    given = {text: changes for applies, text, changes in candidates if applies}
    advice = list(given)[:_MOST_ADVICE]
    change = next((given[text] for text in advice if given[text]), None)
    return advice, _command(settings, change) if change and settings.get("frames") else None


def _command(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> str | None:
    """The command that trains another encoder on the same frames with some settings changed."""
    try:
        config = TrainConfig.from_json({**settings, **changes, "out": f"{settings.get('out')}-2"})
    except InputError:  # settings of another version
        return None
    words = ["latent-obs", "train-vae"]
    for setting in fields(config):
        value, option = getattr(config, setting.name), f"--{setting.name.replace('_', '-')}"
        if isinstance(value, bool):
            words += [] if value == setting.default else [option if value else f"--no-{option[2:]}"]
        elif value != setting.default or setting.name in ("frames", "out"):
            words += [option, *map(str, value if isinstance(value, tuple) else [value])]
    return shlex.join(words)


def _worth(numbers: Numbers) -> Worth | None:
    """Compare with PCA of the same size: by known values if any can be read from few frames, else by the pictures."""
    few, error = numbers.few, numbers.reconstruction and numbers.reconstruction.beside_pca
    encoder = "VAE" if numbers.bottleneck else "network"
    evidence: list[str] = []
    score = 0
    pairs: list[tuple[ProbeResult, ProbeResult]] = []  # of values that can be read at all
    for best in [] if few is None else map(few.best, few.targets):
        if few is not None and best.above_chance >= READABLE and best.interval[0] > best.chance:
            own, theirs = (few.result(best.target, name) for name in few.representations)
            pairs.append((own, theirs))
    if pairs:
        ahead, behind = ([pair for pair in pairs if sign * _clear_gap(*pair) > 0] for sign in (1, -1))
        score = len(ahead) - len(behind)
        of = f"of {counted(len(pairs), 'known value')} can be predicted"
        source = f"from {max(own.learnt_from for own, _ in pairs):,} frames"
        for these, word in ((ahead, "better"), (behind, "worse")):
            if these:
                evidence.append(f"{len(these)} {of} {word} {source}, most of all {_beside(these, encoder)}")
        if not evidence:
            evidence.append(f"none {of} clearly better or worse {source}; most apart is {_beside(pairs, encoder)}")
    if error is not None:
        low, high = (error.value if end is None else end for end in (error.low, error.high))
        evidence.append(
            f"its reconstructions have {_times(error.value)} [{_times(low)}, {_times(high)}] times PCA's error"
        )
        score = score if pairs else (high < 1) - (low > 1)
    if not evidence:
        return None
    if score > 0:
        return Worth("vae", f"The {encoder} is worth its minutes: {'; '.join(evidence)}.")
    why = "PCA is enough here" + ("" if score < 0 else ", as it takes seconds and the two cannot be distinguished")
    where = f" To use it: train-agent --observation pca-latent --pca {numbers.pca}." if numbers.pca else ""
    return Worth("pca" if score < 0 else "neither", f"{why}: {'; '.join(evidence)}.{where}")


def _beside(pairs: Sequence[tuple[ProbeResult, ProbeResult]], encoder: str) -> str:
    """The value whose scores from the latents and from PCA differ most, with both."""
    pair = max(pairs, key=lambda pair: abs(pair[0].above_chance - pair[1].above_chance))
    own, theirs = (f"{r.main.value:.2f} [{r.interval[0]:.2f}, {r.interval[1]:.2f}]" for r in pair)
    return f"{pair[0].target} ({METRIC_NAMES[pair[0].main.metric]} {own} from the {encoder}, {theirs} from PCA)"


def _clear_gap(own: ProbeResult, theirs: ProbeResult) -> float:
    """How much better one probe is than another, from -1 to 1; 0 if their intervals overlap or the gap is small."""
    apart = own.interval[0] > theirs.interval[1] or theirs.interval[0] > own.interval[1]
    gap = own.above_chance - theirs.above_chance
    return gap if apart and abs(gap) > _BETTER else 0.0


def _grade(key: str, value: float) -> Grade:
    measure = MEASURES[key]
    words = measure.limits
    shown = measure.form.format(value)
    return Grade(key, measure.name, value, shown, words["good"], words["bad"], measure.level(value))


def _values(numbers: Numbers, probed: "_Probed | None") -> Iterator[tuple[str, float]]:
    """The value of each measure that was made."""
    latents, r, s = numbers.latents, numbers.reconstruction, numbers.stability
    if probed is not None:
        yield from probed.values()
    if latents.learned or latents.collapsed:
        yield "information.nats", 0.0 if latents.collapsed else latents.kl_nats
    if r is not None:
        yield "pictures.mean_image", r.ratio("mean image")
        yield "pictures.pca", r.ratio("pca")
        own, worst, best = (r.scores[name].ssim for name in ("encoder", "mean image", "pca"))
        if own is not None and worst is not None and best is not None and best > worst:
            yield "pictures.ssim", (own - worst) / (best - worst)
        scores = r.scores["encoder"]
        if numbers.training_mse:
            yield "overfitting.ratio", scores.mse / numbers.training_mse
        yield "outliers.worst", scores.mse_worst / max(scores.mse_median, 1e-5)
    if s is not None and s.spread > 0 and not latents.collapsed:
        pairs = {
            "shift": (s.shift, s.shift_pixels),
            "brightness": (s.brightness, s.brightness_pixels),
            "next_frame": (s.neighbors, s.neighbors_pixels),
        }
        for name, (own, pixels) in pairs.items():
            if own is not None and pixels is not None:
                yield f"stability.{name}", own / max(pixels, _SMALL_CHANGE)


def _sentence(grade: Grade, numbers: Numbers) -> str:
    """What a value of a measure means."""
    value, latents, r = grade.value, numbers.latents, numbers.reconstruction
    if grade.key == "information.nats":
        if grade.level == "bad":
            active = f"{latents.active_units} of {latents.latent_dim} dimensions active"
            of = "the same learned values besides principal components" if latents.components else "the same latent"
            return f"All frames get almost {of}: {latents.kl_nats:.2g} nats, {active}."
        of = "The learned values carry" if latents.components else "A latent carries"
        return f"{of} at most {value:.3g} nats. Small details are left out first."
    if r is not None and grade.key == "pictures.ssim":
        own, worst, best = (f"{r.scores[name].ssim:.2f}" for name in ("encoder", "mean image", "pca"))
        if grade.level == "bad":
            return f"Reconstructions are less like the frames than one mean image is (SSIM {own} and {worst})."
        return f"Reconstructions are less like the frames than those of PCA (SSIM {own} and {best})."
    return {
        "pictures.mean_image": f"Reconstructions have {value:.0%} of the error that one mean image for all frames has.",
        "pictures.pca": f"The error of reconstructions is {_times(value)} times that of PCA with as many dimensions.",
        "overfitting.ratio": f"The error on held-out recordings is {value:.1f} times that on training recordings.",
        "outliers.worst": f"The worst frame has {value:.0f} times the median error.",
        "stability.shift": f"A shift by one pixel changes the latent {value:.1f} times as much as the pixels.",
        "stability.brightness": f"A little more light changes the latent {value:.1f} times as much as the pixels.",
        "stability.next_frame": f"From frame to frame, the latent changes {value:.1f} times as much as the pixels.",
    }[grade.key]


class _Probed:
    """Known values in groups, by what the better of a linear probe and a small network reads from the latents.

    Values that no probe reads, or only faintly, say nothing about the encoder and are left out.
    """

    def __init__(self, table: ProbeTable) -> None:
        self.table = table
        self.own, *others = table.representations
        self.baselines = [name for name in others if name != PIXELS]
        self.groups: dict[str, list[str]] = {name: [] for name in ("lost", "partly", "unsure", "kept")}
        for target in table.targets:
            if group := self._group(target):
                self.groups[group].append(target)
        self.readable = [target for group in self.groups.values() for target in group]
        found = {target: self._better_baseline(target) for target in table.targets}
        self.below = {target: name for target, name in found.items() if name is not None}
        self.groups["kept"] = [target for target in self.groups["kept"] if target not in self.below]
        self.known = len({*self.readable, *self.below})

    def _group(self, target: str) -> str | None:
        kept, own, best = self.table.keeps(target), self.table.result(target, self.own), self.table.best(target)
        if kept.share is None or best.above_chance < CLEAR:
            return None
        if kept.verdict in ("kept", "tangled"):
            return "kept"
        if own.interval[1] >= best.interval[0]:  # the intervals meet: it is not known that anything is lost
            return "kept" if kept.verdict == "partly kept" else "unsure"
        return "partly" if kept.verdict == "partly kept" else "lost"

    def _better_baseline(self, target: str) -> str | None:
        """The baseline that shows a value clearly better than the latents do, if there is one."""
        own = self.table.result(target, self.own)
        for name in self.baselines:
            theirs = self.table.find(target, name)
            if theirs is not None and _clear_gap(own, theirs) < 0:
                return name
        return None

    def _added(self) -> int | None:
        """Number of values that a linear probe reads better from the latents; None if the baselines show all."""
        could = [t for t in self.readable if max(self._linear(t, name).above_chance for name in self.baselines) < KEPT]
        better = [t for t in could if all(self._is_above(t, name) for name in self.baselines)]
        return len(better) if could else None

    def _linear(self, target: str, name: str) -> ProbeResult:
        return self.table.result(target, name, "linear")

    def _is_above(self, target: str, baseline: str) -> bool:
        """Whether a linear probe reads a value clearly better from the latents than from a baseline."""
        return _clear_gap(self._linear(target, self.own), self._linear(target, baseline)) > 0

    def values(self) -> Iterator[tuple[str, float]]:
        """The value of each measure, if any known value can be read."""
        if not self.known:
            return
        for name in ("lost", "partly", "unsure"):
            yield f"probes.{name}", len(self.groups[name]) / self.known
        if self.baselines:
            yield "probes.below_baseline", len(self.below) / self.known
            if (added := self._added()) is not None:
                yield "probes.nothing_added", added

    def findings(self) -> Iterator[Finding]:
        """A finding for each group of values, and for the baselines."""
        values = dict(self.values())
        added_nothing = values.get("probes.nothing_added") == 0
        words = {
            "lost": "cannot be read from the latents, although the frames show them",
            "partly": "can be read from the latents only in part",
            "unsure": "may be kept or lost: too few held-out frames show it",
            "kept": "can be read from the latents",
        }
        for name, text in words.items():
            if (targets := self.groups[name]) and not (name == "kept" and added_nothing):
                key = f"probes.{name}"
                level = "good" if name == "kept" else MEASURES[key].level(values[key])
                sentence = f"{len(targets)} of {self.known} known values {text}."
                lost = tuple(targets) if name == "lost" else ()
                yield Finding(key, level, sentence, *self._scores(targets), lost)
        if self.below:
            key = "probes.below_baseline"
            numbers: dict[str, float] = {}
            for target, name in self.below.items():
                numbers |= {
                    target: self.table.result(target, self.own).main.value,
                    f"{target}, {name}": self.table.result(target, name).main.value,
                }
            listed = [f"{t} ({numbers[t]:.2f}; {numbers[f'{t}, {n}']:.2f} from {n})" for t, n in self.below.items()]
            text = (
                f"{len(self.below)} of {self.known} known values can be read better from PCA or an untrained network."
            )
            yield Finding(key, MEASURES[key].level(values[key]), text, f"{_some(listed)}.", numbers)
        if added_nothing:
            text = "No known value can be read clearly better from the latents than from PCA or an untrained network."
            detail = "Either the training has added little, or too few held-out frames were scored to show it."
            yield Finding("probes.nothing_added", "doubtful", text, detail, {"values": 0.0})

    def _scores(self, targets: Sequence[str]) -> tuple[str, dict[str, float]]:
        """The scores of values in words, the worst first, and as numbers."""
        kept = sorted((self.table.keeps(target) for target in targets), key=lambda k: k.share or 0.0)
        metrics = {target: METRIC_NAMES[self.table.best(target).main.metric] for target in targets}
        listed = _some([f"{k.target} ({metrics[k.target]} {k.score:.2f} of {k.reference:.2f})" for k in kept])
        detail = f"{listed}. In brackets: the score from the latents, of the best of all probes."
        if tangled := [k.target for k in kept if k.verdict == "tangled"]:
            detail += f" A small network is needed for {_some(tangled)}; a linear probe is not enough."
        return detail, {k.target: k.score for k in kept} | {f"{k.target}, best": k.reference for k in kept}


def _times(value: float) -> str:
    return f"{value:,.0f}" if value >= 20 else f"{value:.1f}" if value >= 2 else f"{value:.2f}"


def _some(texts: Sequence[str]) -> str:
    return ", ".join(texts[:_NAMED]) + (f" and {len(texts) - _NAMED} more" if len(texts) > _NAMED else "")
