"""How well cheap heads predict what an agent has to find out, from few frames, and whether that ranks arms by return.

Training agents takes hours, this takes seconds. Heads learn from a few thousand frames of recordings with rows
(`latent-obs frames record`), and are scored on whole recordings that none of them saw:

| proxy   | what is predicted |
| ------- | ----------------- |
| objects | whether an object is in sight, and where |
| state   | the other numbers of the game: own place, angle, health … |
| return  | whether the discounted sum of the rewards to come in this episode is above its median |
| action  | what a trained agent does, from recordings of its play (`frames record --agent`) |

Latents are stacked and scaled as agents see them: one deviation of 0.5 for all values. The linear head is ridge
regression, also for classes, because it costs a hundredth of logistic regression. The network is PPO's (two layers of
64, tanh, orthogonal weights, Adam at PPO's step size, batches of 64). A score is R² of amounts and 2 AUROC - 1 of
classes (their mean, each against the others): 0 is guessing, and less counts as 0; 1 is perfect.

The rank correlation is Spearman's, over the arms of a task, and over all tasks with the arms' ranks within each.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import nn

from agents.compare import saved_study
from agents.compare.study import BASELINE, folder_name
from agents.envs import load_encoder
from benchmarks.common import QUICKSTART, machine_line, markdown_table
from latent_obs import PCA, FrozenEncoder
from vae_training.data.rows import load_rows, targets_of
from vae_training.report.probes.scores import HELD_OUT, UNUSED, VALIDATION, ProbeSplit, split_recordings
from vae_training.report.probes.targets import Target, prepare_targets

Floats = NDArray[np.float64]
Rows = Mapping[str, NDArray[Any]]
Columns = dict[str, NDArray[Any]]
Scores = dict[tuple[str, str], float]  # by target and head

GAMMA = 0.97
_UNKNOWN = 0.1  # of a reward, the least weight of those after the end of a recording that makes a return unknown
_MOST_TESTED = 4_000
_DEVIATION = 0.5  # of all latents together, as agents.normalization makes it
_PENALTIES = np.logspace(-6, 1, 15)  # times the number of frames
_WIDTH, _GAIN = 64, 2**0.5  # of Stable-Baselines3's policy
_BATCH, _STEP_SIZE, _PASSES = 64, 2.5e-4, 30  # the first two of agents.config
_CHUNK = 512
_RESAMPLES = 1_000
_READABLE = 0.1  # a target that no arm predicts better than this is left out
_MOST_ACTIONS = 10


@dataclass(frozen=True)
class Options:
    """Options of the benchmark: a finished comparison, or folders of frames and encoders."""

    compare: Path | None = None
    """Folder of `latent-obs compare`, for its tasks and arms; arms on pixels are left out. With `state = true` in
    [record] its frames have states."""
    frames: tuple[Path, ...] = ()
    """Folders of frames with rows, one for each task, whose name it has."""
    arms: tuple[str, ...] = ()
    """NAME=PATH of an encoder folder or a PCA file, where {task} becomes the task's name; NAME=random is untrained."""
    history: int = 1
    """Latents in an observation, with --frames."""
    expert: Path | None = None
    """Folder that has, by task, a folder of frames recorded with a trained agent's policy."""
    returns: Path | None = None
    """compare.json with the returns of the arms; the comparison's own by default."""
    count: int = 2_000
    """Frames to learn from."""
    seed: int = 0
    """Of the recordings to test on, of the frames to learn from, and of the networks."""


@dataclass(frozen=True)
class Arm:
    """What an agent sees: latents of an encoder, the last `history` of them."""

    encoder: FrozenEncoder
    history: int


@dataclass(frozen=True, eq=False)
class Sample:
    """Frames to learn from and to test on, and what is to be predicted of them."""

    frames: dict[str, NDArray[np.uint8]]  # by recording
    starts: dict[str, NDArray[np.intp]]  # of each frame, the first one of its episode
    split: ProbeSplit
    targets: list[Target]


def sample_of(folder: Path, columns: Callable[[dict[str, Rows]], dict[str, Columns]], options: Options) -> Sample:
    """Choose frames of a folder: `count` of them to learn from, and at most 4,000 of other recordings to test on."""
    files = sorted(folder.glob("*.npy"))
    if len(files) < 2:
        raise SystemExit(f"{folder} has {len(files)} .npy files, and 2 or more are needed: some to test on")
    frames = {file.stem: np.load(file, mmap_mode="r") for file in files}
    rows: dict[str, Rows] = {file.stem: load_rows(file) for file in files}
    split = split_recordings(frames, seed=options.seed)
    part, rng = split.part.copy(), np.random.default_rng(options.seed)
    for chosen, most in ((part <= VALIDATION, options.count), (part == HELD_OUT, _MOST_TESTED)):
        places = rng.permutation(np.flatnonzero(chosen))
        part[places[most:]] = UNUSED
    split = dataclasses.replace(split, part=part)
    starts = {name: starts_of(rows[name], len(frames[name])) for name in frames}
    targets, _ = prepare_targets(columns(rows), split)
    return Sample(frames, starts, split, targets)


def starts_of(rows: Rows, count: int) -> NDArray[np.intp]:
    """The number of the first frame of each frame's episode."""
    first = np.asarray(rows.get("first", np.zeros(count)), bool)
    return np.maximum.accumulate(np.where(first, np.arange(count), 0))


def state_and_return(recordings: dict[str, Rows]) -> dict[str, Columns]:
    """By recording, columns of objects, of the state of the game, and "return", where the rows have rewards."""
    columns: dict[str, Columns] = {name: dict(targets_of(rows)) for name, rows in recordings.items()}
    if all({"reward", "terminated", "first"} <= rows.keys() for rows in recordings.values()):
        returns = {name: returns_to_go(rows) for name, rows in recordings.items()}
        middle = np.nanmedian(np.concatenate(list(returns.values())))
        for name, values in returns.items():
            columns[name]["return"] = np.where(np.isfinite(values), values > middle, np.nan)
    for known in columns.values():
        known.pop("state$DEATHCOUNT", None)  # a counter of episodes
    return columns


def returns_to_go(rows: Rows) -> Floats:
    """Discounted sums of the rewards of a frame's step and those after it, in its episode.

    NaN where the recording or a time limit cuts the episode too soon to know.
    """
    rewards, ended = rows["reward"].astype(float), rows["terminated"].astype(bool)
    last = np.append(rows["first"].astype(bool)[1:], True)  # frames of their episodes
    sums = np.zeros(len(rewards))
    later, weight = 0.0, 0.0  # what comes after a frame, and how much of it is not known
    for i in range(len(rewards) - 1, -1, -1):
        if last[i] or ended[i]:
            later, weight = 0.0, 0.0 if ended[i] else 1.0
        later, weight = rewards[i] + GAMMA * later, GAMMA * weight
        sums[i] = later if weight <= _UNKNOWN else np.nan
    return sums


def actions_of(recordings: dict[str, Rows]) -> dict[str, Columns]:
    """By recording, columns of the actions taken: one of classes, or one for each button or axis."""
    return {name: _actions(rows) for name, rows in recordings.items()}


def _actions(rows: Rows) -> Columns:
    columns: Columns = {}
    for name in (name for name in rows if name == "action" or name.startswith("action$")):
        values = rows[name].reshape(len(rows["acted"]), -1).astype(float)
        values[~rows["acted"].astype(bool)] = np.nan
        for i, column in enumerate(values.T):
            levels, counts = np.unique(column[np.isfinite(column)], return_counts=True)
            if (levels == np.round(levels)).all():  # more classes than these would count as amounts
                column[~np.isin(column, levels[np.argsort(-counts)[:_MOST_ACTIONS]])] = np.nan
            columns[f"action.{name}.{i}"] = column
    return columns


def observations(arm: Arm, sample: Sample) -> Floats:
    """What an agent would see at each frame of the split, (N, history * latent_dim); zeros at those not used."""
    used, seen, begin = sample.split.part != UNUSED, [], 0
    for name, rows in sample.split.rows.items():
        mine = used[begin : begin + len(rows)]
        begin += len(rows)
        back = np.arange(arm.history - 1, -1, -1)  # the oldest first
        wanted = np.maximum(rows[mine, None] - back, sample.starts[name][rows[mine], None])
        numbers, place = np.unique(wanted, return_inverse=True)
        parts = [numbers[i : i + _CHUNK] for i in range(0, len(numbers), _CHUNK)]
        latents = [arm.encoder(np.asarray(sample.frames[name][part])) for part in parts]
        stacked = np.zeros((len(rows), arm.history * arm.encoder.latent_dim))
        if latents:
            stacked[mine] = np.concatenate(latents)[place.reshape(wanted.shape)].reshape(len(wanted), -1)
        seen.append(stacked)
    inputs = np.concatenate(seen)
    learnt = inputs[sample.split.part <= VALIDATION]
    return (inputs - learnt.mean(0)) * (_DEVIATION / np.sqrt(learnt.var(0).mean()))


def scores_of(arm: Arm, sample: Sample, seed: int) -> Scores:
    """How well each head predicts each target on the recordings that are tested on, from 0 to 1."""
    inputs, targets = observations(arm, sample), sample.targets
    columns = [_columns(target, sample.split) for target in targets]
    made: Scores = {}
    for head, predicted in (
        ("linear", _ridge(inputs, columns, sample.split)),
        ("network", _network(inputs, columns, sample.split, seed)),
    ):
        for target, wanted, guess in zip(targets, columns, predicted, strict=True):
            test = target.held_out
            measure = auroc_above_chance if target.classes else r2
            values = [measure(wanted[test, i], guess[test, i]) for i in range(wanted.shape[1])]
            made[target.name, head] = max(0.0, float(np.mean(values)))
    return made


def _columns(target: Target, split: ProbeSplit) -> Floats:
    """What a head puts out for a target, (N, 1) or (N, classes), of deviation 1 where it learns; NaN: not known."""
    known = np.concatenate([target.fit, target.validation, target.held_out])
    values = np.full((len(split.part), len(target.classes) if target.kind == "categorical" else 1), np.nan)
    values[known] = (
        np.eye(len(target.classes))[target.labels(known)]
        if target.kind == "categorical"
        else target.values[known, None]
    )
    learnt = values[np.concatenate([target.fit, target.validation])]
    return (values - learnt.mean(0)) / learnt.std(0)


def _ridge(inputs: Floats, columns: Sequence[Floats], split: ProbeSplit) -> list[Floats]:
    """Ridge regression; each column's penalty is the best on the validation frames, and then all frames are fitted."""

    def solve(rows: NDArray[np.intp], wanted: Floats) -> Callable[[Floats], Floats]:
        """The coefficients of any penalty, which is times the number of frames and one for each column."""
        x, y = inputs[rows] - inputs[rows].mean(0), wanted[rows] - wanted[rows].mean(0)
        values, vectors = np.linalg.eigh(x.T @ x)
        projected = vectors.T @ (x.T @ y)
        return lambda penalty: vectors @ (projected / (np.maximum(values, 0)[:, None] + penalty * len(rows)))

    predicted = [np.zeros_like(column) for column in columns]
    # Columns that are known at the same frames share all but the last product.
    groups: dict[bytes, list[int]] = {}
    for i, column in enumerate(columns):
        groups.setdefault((np.isfinite(column[:, 0]) & (split.part <= VALIDATION)).tobytes(), []).append(i)
    for key, members in groups.items():
        learn = np.frombuffer(key, bool)
        tuned = learn & (split.part == VALIDATION)
        if not tuned.any() or tuned.sum() == learn.sum():
            tuned = learn & (np.arange(len(learn)) % 5 == 0)
        fit, tune, learn = np.flatnonzero(learn & ~tuned), np.flatnonzero(tuned), np.flatnonzero(learn)
        wanted = np.concatenate([columns[i] for i in members], 1)
        find = solve(fit, wanted)
        centered, truth = inputs[tune] - inputs[fit].mean(0), wanted[tune] - wanted[fit].mean(0)
        errors = [np.square(centered @ find(np.array(penalty)) - truth).mean(0) for penalty in _PENALTIES]
        best = _PENALTIES[np.argmin(errors, axis=0)]
        guess = (inputs - inputs[learn].mean(0)) @ solve(learn, wanted)(best) + wanted[learn].mean(0)
        ends = np.cumsum([columns[i].shape[1] for i in members])
        for i, part in zip(members, np.split(guess, ends[:-1], axis=1), strict=True):
            predicted[i] = part
    return predicted


def _network(inputs: Floats, columns: Sequence[Floats], split: ProbeSplit, seed: int) -> list[Floats]:
    """One network of PPO's kind for all columns, after a fixed number of passes."""
    if not columns:
        return []
    torch.manual_seed(seed)
    x = torch.from_numpy(inputs.astype(np.float32))
    wanted = torch.from_numpy(np.concatenate(columns, 1).astype(np.float32))
    known, wanted = wanted.isfinite(), wanted.nan_to_num()
    layers = [nn.Linear(x.shape[1], _WIDTH), nn.Linear(_WIDTH, _WIDTH), nn.Linear(_WIDTH, wanted.shape[1])]
    for layer, gain in zip(layers, (_GAIN, _GAIN, 0.01), strict=True):
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
    network = nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])
    optimizer = torch.optim.Adam(network.parameters(), _STEP_SIZE, eps=1e-5)
    learn = torch.from_numpy(np.flatnonzero(split.part <= VALIDATION))
    for _ in range(_PASSES):
        for batch in learn[torch.randperm(len(learn))].split(_BATCH):
            optimizer.zero_grad()
            ((network(x[batch]) - wanted[batch]).square() * known[batch]).mean().backward()
            optimizer.step()
    with torch.inference_mode():
        guess = network(x).double().numpy()
    return np.split(guess, np.cumsum([column.shape[1] for column in columns])[:-1], axis=1)


def r2(wanted: Floats, predicted: Floats) -> float:
    """1 for perfect predictions, 0 for the mean."""
    return 1 - float(np.square(wanted - predicted).mean() / wanted.var())


def auroc_above_chance(wanted: Floats, predicted: Floats) -> float:
    """2 AUROC - 1 of the higher of two values of `wanted` against the lower, ties counting half.

    Example:
        >>> auroc_above_chance(np.array([0.0, 0.0, 1.0]), np.array([0.1, 0.5, 0.5]))
        0.5
    """
    positive = wanted > wanted.min()
    ones, zeros = int(positive.sum()), int((~positive).sum())
    above = rankdata(predicted)[positive].sum() - ones * (ones + 1) / 2
    return float(2 * above / (ones * zeros) - 1)


def proxy_of(target: str) -> str:
    """The proxy that a target belongs to."""
    kind = target.split(".")[0].split("$")[0]
    return {"object": "objects", "observation": "state"}.get(kind, kind)


def means(arms: Mapping[str, Scores]) -> dict[str, dict[tuple[str, str], float]]:
    """By arm, the mean score of each proxy and head over the targets that at least one arm can predict."""
    names = list(dict.fromkeys(key for scores in arms.values() for key in scores))
    readable = [key for key in names if max(scores[key] for scores in arms.values()) >= _READABLE]
    kinds = list(dict.fromkeys((proxy_of(target), head) for target, head in readable))
    return {
        arm: {
            kind: float(np.mean([scores[key] for key in readable if (proxy_of(key[0]), key[1]) == kind]))
            for kind in kinds
        }
        for arm, scores in arms.items()
    }


def rank_correlation(tasks: Sequence[tuple[Floats, Floats]]) -> float:
    """Spearman's, of two values of each arm, with the arms ranked within their task; NaN if all are alike.

    Example:
        >>> rising, mixed = np.array([1.0, 2.0, 5.0]), np.array([10.0, 30.0, 20.0])
        >>> rank_correlation([(rising, rising), (rising, mixed)])
        0.75
    """
    x, y = (np.concatenate([rankdata(task[i]) - (len(task[i]) + 1) / 2 for task in tasks]) for i in (0, 1))
    spread = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / spread if spread > 0 else float("nan")


def with_interval(tasks: Sequence[tuple[Floats, Sequence[Floats]]], seed: int) -> tuple[float, float, float]:
    """The rank correlation of proxies with mean returns over all tasks, and its 95% interval.

    Tasks are resampled, and within each the seeds of every arm, whose returns are given.
    """
    rng = np.random.default_rng(seed)
    value = rank_correlation([(proxy, np.array([own.mean() for own in returns])) for proxy, returns in tasks])
    drawn: list[float] = []
    for _ in range(_RESAMPLES):
        chosen = [tasks[i] for i in rng.integers(len(tasks), size=len(tasks))]
        drawn.append(
            rank_correlation(
                [(proxy, np.array([rng.choice(own, len(own)).mean() for own in returns])) for proxy, returns in chosen]
            )
        )
    return value, *np.nanpercentile(drawn, [2.5, 97.5]).tolist()


def arms_of_comparison(out: Path) -> dict[str, tuple[Path, dict[str, Arm]]]:
    """Frames and arms of each task of a comparison, without those on pixels."""
    study = saved_study(out)
    found: dict[str, tuple[Path, dict[str, Arm]]] = {}
    for name, task in study.tasks.items():
        frames, arms = task.frames or out / "prepared" / folder_name(name) / "frames", {}
        for arm in study.arms:
            config = dataclasses.replace(study.config(name, arm, study.seeds[0], out), device="cpu")
            if config.observation != BASELINE and (encoder := load_encoder(config)) is not None:
                arms[arm] = Arm(encoder, config.history)
        found[name] = frames, arms
    return found


def arms_of_options(options: Options) -> dict[str, tuple[Path, dict[str, Arm]]]:
    """Frames and arms of each folder of frames."""

    def load(place: str, task: str) -> FrozenEncoder:
        path = Path(place.format(task=task))
        if place == "random":
            return FrozenEncoder.random(QUICKSTART, seed=options.seed, device="cpu")
        return PCA.load(path).encoder(device="cpu") if path.is_file() else FrozenEncoder.load(path, device="cpu")

    named = [arm.partition("=")[::2] for arm in options.arms]
    return {
        folder.name: (folder, {arm: Arm(load(place, folder.name), options.history) for arm, place in named})
        for folder in options.frames
    }


def main(options: Options) -> None:
    """Measure, and print a table of each proxy, and the rank correlations where there are returns."""
    torch.set_num_threads(1)
    if (options.compare is None) == (not options.frames or not options.arms):
        raise SystemExit("give --compare, or --frames and --arms")
    print(machine_line(), flush=True)
    tasks = arms_of_options(options) if options.compare is None else arms_of_comparison(options.compare)
    table: dict[str, dict[str, dict[tuple[str, str], float]]] = {}  # by task and arm
    for task, (frames, arms) in tasks.items():
        samples = [sample_of(frames, state_and_return, options)]
        if options.expert is not None and (options.expert / folder_name(task)).is_dir():
            samples.append(sample_of(options.expert / folder_name(task), actions_of, options))
        scores: dict[str, Scores] = {}
        for name, arm in arms.items():
            began = time.process_time()
            scores[name] = {k: v for one in samples for k, v in scores_of(arm, one, options.seed).items()}
            print(f"{task}, {name}: {time.process_time() - began:.0f} CPU seconds", flush=True)
        table[task] = means(scores)
    kinds = list(dict.fromkeys(kind for arms in table.values() for scores in arms.values() for kind in scores))
    names = list(dict.fromkeys(arm for arms in table.values() for arm in arms))
    for kind in kinds:
        print(f"\n{kind[0]}, {kind[1]} head, {options.count:,} frames:\n")
        cells = [
            [f"{v:.3f}" if (v := table[t].get(a, {}).get(kind)) is not None else "–" for a in names] for t in table
        ]
        print(markdown_table(["task", *names], [[task, *row] for task, row in zip(table, cells, strict=True)]))
    file = options.returns or (options.compare / "compare.json" if options.compare else None)
    if file is not None and file.exists():
        summary = json.loads(file.read_text())["summary"]["tasks"]
        print("\nSpearman's rank correlation with mean returns:\n")
        print(_correlations(table, kinds, summary, options.seed))


def _correlations(
    table: Mapping[str, Mapping[str, Mapping[tuple[str, str], float]]],
    kinds: Sequence[tuple[str, str]],
    summary: Mapping[str, Any],
    seed: int,
) -> str:
    """A table of the rank correlation of each proxy with returns, in each task and over all."""
    lines: list[list[str]] = []
    for kind in kinds:
        pairs: dict[str, tuple[Floats, list[Floats]]] = {}
        for task, arms in table.items():
            known = [arm for arm in arms if kind in arms[arm] and arm in summary.get(task, {"arms": {}})["arms"]]
            if len(known) > 1:
                returns = [np.array(summary[task]["arms"][arm]["scores"], float) for arm in known]
                pairs[task] = np.array([arms[arm][kind] for arm in known]), returns
        if not pairs:
            continue
        own = {t: rank_correlation([(p, np.array([one.mean() for one in r]))]) for t, (p, r) in pairs.items()}
        value, low, high = with_interval(list(pairs.values()), seed)
        cells = [f"{own[task]:.2f}" if task in own else "–" for task in table]
        lines.append([", ".join(kind), *cells, f"{value:.2f} [{low:.2f}, {high:.2f}]"])
    return markdown_table(["proxy, head", *table, "all [95%]"], lines)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
