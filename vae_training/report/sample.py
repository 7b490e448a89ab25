"""Which frames a report is about, and what is known of them.

Held-out recordings are measured; baselines and probes are fitted on training recordings. The encoder folder lists what
it was trained on, file by file with checksums: a frame that was trained on is never measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latent_obs.pixels import PixelContract
from latent_obs.util.errors import InputError
from vae_training.data.frames import describe_datasets, get_datasets, split_held_out
from vae_training.data.loader import gather
from vae_training.data.rows import load_rows, targets_of
from vae_training.report.encoder import Frames
from vae_training.report.probes.targets import load_targets

Dataset = NDArray[np.uint8]
_FEWEST = 16  # frames: with fewer, best, worst and random pairs mean nothing


@dataclass(frozen=True)
class Recordings:
    """The recordings of a report.

    Attributes:
        training: What baselines and probes are fitted on.
        held_out: What is measured.
        how: How they were separated, a sentence for the page.
        certain: Whether it is known that the encoder never saw the held-out ones.
    """

    training: list[Dataset]
    held_out: list[Dataset]
    how: str
    certain: bool


def find_recordings(provenance: Mapping[str, Any], frames: Path | None = None) -> Recordings:
    """Separate training recordings from held-out ones.

    - The folder that the encoder was trained on: the split of the training run.
    - A folder of which some files were trained on: those, and the others are held out.
    - A folder that it never saw: all of it is held out; baselines are fitted on the training frames where they can
      still be read, else on a part of the folder, which is then not measured.

    Args:
        provenance: Of the encoder folder.
        frames: The folder given by the user, or None for the one of the training run.

    Raises:
        InputError: There is no such folder, its frames cannot be read, or nothing in it is held out.
    """
    settings = provenance.get("settings") or {}
    home = Path(settings["frames"]) if settings.get("frames") else None
    folder = frames or home
    if folder is None:
        raise InputError("--frames is needed: the encoder folder does not say what it was trained on")
    if frames is None and not folder.is_dir():
        raise InputError(f"--frames is needed: the training frames are not at {folder} (from {Path.cwd()})")
    datasets: list[Dataset] = list(get_datasets(folder))
    trained = {d["sha256_head_tail"]: d for d in provenance.get("trained_on") or [] if d.get("sha256_head_tail")}
    if any(d["sha256_head_tail"] in trained for d in describe_datasets(datasets)):
        return _of_the_training_folder(datasets, trained, settings.get("held_out"))
    if trained and home is not None and home.is_dir() and home.resolve() != folder.resolve():
        own, _ = _by_use(get_datasets(home), trained)
        if own and own[0].shape[1:] == datasets[0].shape[1:]:
            how = f"The encoder never saw any of {folder}; baselines are fitted on the recordings of its training."
            return Recordings(own, datasets, how, certain=True)
    training, held_out = split_held_out(datasets)
    how = "The encoder folder does not say which recordings it was trained on, so it may have seen some of these."
    if trained:
        how = (
            f"The encoder never saw any of {folder}, and its training frames are not there: baselines are fitted on "
            f"{len(training)} of these recordings, which gives them an advantage, and the others are measured."
        )
    return Recordings(training, held_out, how, certain=bool(trained))


def _of_the_training_folder(
    datasets: list[Dataset], trained: dict[str, dict[str, Any]], held_out: int | None
) -> Recordings:
    """The split of the training run, or what comes nearest to it where files were added or removed since."""
    try:
        training, measured = split_held_out(datasets, held_out)
    except InputError:
        training, measured = [], []
    place = ("sha256_head_tail", "first_frame", "frames")
    same = [{tuple(d[key] for key in place) for d in some} for some in (describe_datasets(training), trained.values())]
    if training and same[0] == same[1]:
        how = "The same split as in training: whole recordings that no gradient step has seen."
        if any(d["sha256_head_tail"] in trained for d in describe_datasets(measured)):
            how = (
                "The same split as in training: the end of a recording whose beginning was trained on. Place and light "
                "are those of training, so a new recording will do worse."
            )
        return Recordings(training, measured, how, certain=True)
    training, measured = _by_use(datasets, trained)
    if not measured:
        raise InputError("--frames is needed: every recording of the training folder was trained on, none is left")
    how = "The folder has changed since training: what is measured are the recordings in it that were not trained on."
    return Recordings(training, measured, how, certain=True)


def _by_use(datasets: Sequence[Dataset], trained: dict[str, dict[str, Any]]) -> tuple[list[Dataset], list[Dataset]]:
    """The frames of a folder that were trained on, and the recordings of which none were."""
    parts: list[Dataset] = []
    others: list[Dataset] = []
    for dataset, described in zip(datasets, describe_datasets(datasets), strict=True):
        if place := trained.get(described["sha256_head_tail"]):
            parts.append(dataset[place["first_frame"] : place["first_frame"] + place["frames"]])
        else:
            others.append(dataset)
    return parts, others


@dataclass(frozen=True)
class Sample:
    """Frames read into memory, with where they come from.

    Attributes:
        frames: uint8 (N, H, W, C), of the encoder's size.
        recording: int64 (N,), the number of each frame's recording.
        row: int64 (N,), the frame's place in it.
    """

    frames: Frames
    recording: NDArray[np.int64]
    row: NDArray[np.int64]


def take(datasets: Sequence[Dataset], count: int, contract: PixelContract) -> Sample:
    """At most `count` frames spread evenly over recordings, converted to the contract's size."""
    starts = np.cumsum([0, *map(len, datasets)])
    wanted = _spread(int(starts[-1]), count)
    recording = np.searchsorted(starts, wanted, side="right") - 1
    row = wanted - starts[recording]
    return Sample(read(datasets, recording, row, contract), recording, row)


def read(
    datasets: Sequence[Dataset], recording: NDArray[np.int64], row: NDArray[np.int64], contract: PixelContract
) -> Frames:
    """Read frames of several recordings, and convert them to the encoder's size; rows ascend in each recording."""
    out = np.empty((len(row), *datasets[0].shape[1:]), np.uint8)
    places = [np.flatnonzero(recording == i) for i in range(len(datasets))]
    gather([(d, row[at], at) for d, at in zip(datasets, places, strict=True) if len(at)], out)
    layout = contract.layout_of(out.shape[1:], "the frames")
    contract.refuse_blur(out.shape[1:], layout, "the folder of frames")
    return contract.convert(out, layout, "the frames")


def neighbors(datasets: Sequence[Dataset], count: int, contract: PixelContract) -> tuple[Frames, Frames] | None:
    """At most `count` frames, spread evenly, and the next one of the same recording and episode of each.

    None where there are no such pairs.
    """
    rows = []
    for dataset in datasets:
        first = rows_of(dataset).get("first", np.zeros(len(dataset), bool))
        rows.append(np.flatnonzero(~first[1:].astype(bool)))  # the next frame does not begin an episode
    recording, row = np.repeat(np.arange(len(rows)), list(map(len, rows))), np.concatenate(rows)
    if not len(row):
        return None
    chosen = _spread(len(row), count)
    recording, row = recording[chosen], row[chosen]
    return read(datasets, recording, row, contract), read(datasets, recording, row + 1, contract)


def rows_of(dataset: Dataset) -> dict[str, NDArray[Any]]:
    """What is known of each frame of an array, from the `.rows.npz` beside its file; empty where there is nothing."""
    filename = getattr(dataset, "filename", None)
    rows = load_rows(Path(filename)) if filename else {}
    first = describe_datasets([dataset])[0]["first_frame"] if rows else 0
    return {name: values[first : first + len(dataset)] for name, values in rows.items()}


def check_enough(sample: Sample) -> None:
    """Raise an InputError if there are too few held-out frames, or all of them are equal."""
    if len(sample.frames) < _FEWEST:
        raise InputError(f"held-out frames: got {len(sample.frames)}, a report needs {_FEWEST} or more; record more")
    if (sample.frames == sample.frames[0]).all():
        raise InputError("held-out frames: all are equal, which says nothing about latents; record frames that differ")


def _spread(total: int, count: int) -> NDArray[np.int64]:
    """At most `count` numbers below `total`, spread evenly."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).astype(np.int64))


@dataclass(frozen=True)
class Known:
    """What is known of the state beside the frames.

    Attributes:
        recordings: The recordings by name.
        targets: For each recording its known values by name, an entry for each frame.
        held_out: Names of the recordings that are measured, in the order of `Recordings.held_out`.
    """

    recordings: dict[str, Dataset]
    targets: dict[str, dict[str, NDArray[Any]]]
    held_out: list[str]

    def to_probe(self) -> tuple["Known", list[str] | None]:
        """What probes learn from and are scored on, and the recordings to score on.

        Where nothing is known of the training recordings, probes learn from some that the encoder never saw, and choose
        those to score on themselves (None).
        """
        names = self.held_out
        learning = set[str]().union(*(self.targets[name] for name in self.recordings if name not in names))
        if learning & set[str]().union(*(self.targets[name] for name in names)):
            return self, names
        return Known({n: self.recordings[n] for n in names}, {n: self.targets[n] for n in names}, names), None

    def converted(self, contract: PixelContract, most: int) -> "Known":
        """The same with frames of the encoder's size; converted in memory, of more than `most` only every k-th."""
        if all(dataset.shape[1:] == contract.shape for dataset in self.recordings.values()):
            return self
        step = max(1, -(-sum(map(len, self.recordings.values())) // most))
        frames: dict[str, Dataset] = {}
        for name, dataset in self.recordings.items():
            rows = np.arange(0, len(dataset), step)
            frames[name] = read([dataset], np.zeros(len(rows), np.int64), rows, contract)
        targets = {name: {key: v[::step] for key, v in self.targets[name].items()} for name in frames}
        return Known(frames, targets, self.held_out)

    def column(self, target: str, sample: Sample) -> NDArray[np.float64]:
        """A target's values for a sample of the held-out recordings, NaN where it is not known."""
        values = np.full(len(sample.row), np.nan)
        for i, name in enumerate(self.held_out):
            if target in self.targets[name]:
                values[sample.recording == i] = self.targets[name][target][sample.row[sample.recording == i]]
        return values


def load_known(recordings: Recordings, own: Path | None = None) -> Known:
    """Read what is known of the state, from the rows beside the frames and from a user's file.

    Args:
        recordings: The recordings of a report.
        own: An .npz of targets for all files of the folder that is measured.

    Raises:
        InputError: The rows beside a file of frames, or the user's targets, cannot be read or do not fit the frames.
    """
    named: dict[str, Dataset] = {}
    held_out: list[str] = []
    for part, datasets in (("training", recordings.training), ("held out", recordings.held_out)):
        for dataset in datasets:
            stem = _file(dataset).stem or "frames"
            name = stem if stem not in named else f"{stem} ({part})"
            named[name] = dataset
            if part == "held out":
                held_out.append(name)
    targets: dict[str, dict[str, NDArray[Any]]] = {n: dict(targets_of(rows_of(d))) for n, d in named.items()}
    if own is not None:
        # The file covers whole files, while a recording here may be a part of one.
        folder = _file(recordings.held_out[0]).parent
        whole = load_targets(own, {_file(dataset).stem: dataset for dataset in get_datasets(folder)})
        for name, dataset in named.items():
            if _file(dataset).parent == folder:
                first = describe_datasets([dataset])[0]["first_frame"]
                values = whole[_file(dataset).stem]
                targets[name] |= {key: column[first : first + len(dataset)] for key, column in values.items()}
    return Known(named, targets, held_out)


def _file(dataset: Dataset) -> Path:
    return Path(str(getattr(dataset, "filename", None) or ""))
