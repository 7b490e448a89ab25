"""Which frames a report is about, and what is known of them.

Held-out recordings are measured; baselines and probes are fitted on training recordings. The encoder folder lists what
it was trained on, file by file with checksums: a frame that was trained on is never measured.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latent_obs.pixels import PixelContract
from latent_obs.util.errors import InputError
from vae_training.data.frames import describe_datasets, get_datasets, split_held_out
from vae_training.data.loader import gather
from vae_training.data.rows import rows_of, targets_of
from vae_training.report.encoder import Frames
from vae_training.report.probes.targets import load_targets

_FEW_ACTIONS = 10  # more are no classes to a probe


@dataclass(frozen=True)
class Recordings:
    """The recordings of a report."""

    training: list[Frames]  # what baselines and probes are fitted on
    held_out: list[Frames]  # what is measured
    how: str  # they were separated, a sentence for the page
    certain: bool = True  # whether it is known that the encoder never saw the held-out ones


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
    if folder is None or (frames is None and not folder.is_dir()):
        where = f"they are not at {folder} (from {Path.cwd()})" if folder else "the encoder folder does not name them"
        raise InputError(f"--frames is needed to find the training frames: {where}; name a folder of recordings")
    datasets: list[Frames] = list(get_datasets(folder))
    trained = {d["sha256_head_tail"]: d for d in provenance.get("trained_on") or [] if d.get("sha256_head_tail")}
    used, others = _by_use(datasets, trained)
    if used:
        place = itemgetter("sha256_head_tail", "first_frame", "frames")
        with contextlib.suppress(InputError):  # too few files are left for the split of the training run
            training, held_out = split_held_out(datasets, settings.get("held_out"))
            if set(map(place, describe_datasets(training))) == set(map(place, trained.values())):
                how = "The same split as in training: whole recordings that no gradient step has seen."
                if _by_use(held_out, trained)[0]:
                    how = (
                        "The same split as in training: the end of a recording whose beginning was trained on. Place "
                        "and light are those of training, so a new recording will do worse."
                    )
                return Recordings(training, held_out, how)
        if not others:
            raise InputError("--frames is needed: every recording of the training folder was trained on, none is left")
        how = "The folder has changed since training: the recordings in it that were not trained on are measured."
        return Recordings(used, others, how)
    if trained and home is not None and home.is_dir():
        own, _ = _by_use(get_datasets(home), trained)
        if own and own[0].shape[1:] == datasets[0].shape[1:]:
            how = f"The encoder never saw any of {folder}; baselines are fitted on the recordings of its training."
            return Recordings(own, datasets, how)
    training, held_out = split_held_out(datasets)
    how = "The encoder folder does not say which recordings it was trained on, so it may have seen some of these."
    if trained:
        how = (
            f"The encoder never saw any of {folder}, and its training frames are not there: baselines are fitted on "
            f"{len(training)} of these recordings, which gives them an advantage, and the others are measured."
        )
    return Recordings(training, held_out, how, certain=bool(trained))


def _by_use(datasets: Sequence[Frames], trained: dict[str, dict[str, Any]]) -> tuple[list[Frames], list[Frames]]:
    """The frames of a folder that were trained on, and the recordings of which none were."""
    used: list[Frames] = []
    others: list[Frames] = []
    for dataset, described in zip(datasets, describe_datasets(datasets), strict=True):
        if place := trained.get(described["sha256_head_tail"]):
            used.append(dataset[place["first_frame"] : place["first_frame"] + place["frames"]])
        else:
            others.append(dataset)
    return used, others


def spread(total: int, count: int) -> NDArray[np.int64]:
    """At most `count` numbers below `total`, spread evenly."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).astype(np.int64))


def places(datasets: Sequence[Frames], index: Any) -> tuple[Any, Any]:
    """The recording of each frame and its row in it, by the number of the frame among all of them."""
    starts = np.cumsum([0, *map(len, datasets)])
    recording = np.searchsorted(starts, index, side="right") - 1
    return recording, index - starts[recording]


def read(datasets: Sequence[Frames], index: NDArray[np.int64], contract: PixelContract) -> Frames:
    """Read frames, numbered through all recordings in ascending order, and convert them to the encoder's size."""
    out = np.empty((len(index), *datasets[0].shape[1:]), np.uint8)
    recording, row = places(datasets, index)
    targets = [np.flatnonzero(recording == i) for i in range(len(datasets))]
    gather([(d, row[at], at) for d, at in zip(datasets, targets, strict=True) if len(at)], out)
    layout = contract.layout_of(out.shape[1:], "the frames")
    contract.refuse_blur(out.shape[1:], layout, "the folder of frames")
    return contract.convert(out, layout, "the frames")


def neighbors(datasets: Sequence[Frames], count: int, contract: PixelContract) -> tuple[Frames, Frames] | None:
    """At most `count` frames, spread evenly, and the next one of the same recording and episode of each.

    None where there are no such pairs.
    """
    firsts = [rows_of(dataset).get("first", np.zeros(len(dataset))).astype(bool) for dataset in datasets]
    for first in firsts:
        first[:1] = True
    pairs = np.flatnonzero(~np.concatenate(firsts)) - 1  # the next frame does not begin an episode
    if not len(pairs):
        return None
    index = pairs[spread(len(pairs), count)]
    return read(datasets, index, contract), read(datasets, index + 1, contract)


@dataclass(frozen=True)
class Known:
    """What is known of the state beside the frames."""

    recordings: dict[str, Frames]  # by name
    targets: dict[str, dict[str, NDArray[Any]]]  # of each recording its known values by name, an entry for each frame
    acts: dict[str, dict[str, NDArray[Any]]]  # the same of actions and rewards, which are no state
    held_out: list[str]  # names of the recordings that are measured, in the order of `Recordings.held_out`

    def to_probe(self) -> tuple["Known", list[str] | None]:
        """What probes learn from and are scored on, and the recordings to score on.

        Where nothing is known of the training recordings, probes learn from some that the encoder never saw, and choose
        those to score on themselves (None).
        """
        scored = set[str]().union(*(self.targets[name] for name in self.held_out))
        if any(scored & self.targets[name].keys() for name in self.recordings if name not in self.held_out):
            return self, self.held_out
        kept = {name: self.recordings[name] for name in self.held_out}
        return replace(self, recordings=kept, targets={name: self.targets[name] for name in kept}), None

    def few(self, learn: int, score: int) -> "Known":
        """About `learn` frames of training and `score` held-out ones, evenly spread; with acts among the targets."""
        training = [name for name in self.recordings if name not in self.held_out]
        steps: dict[str, int] = {}
        for names, most in ((training, learn), (self.held_out, score)):
            total = sum(len(self.recordings[name]) for name in names)
            steps |= dict.fromkeys(names, max(1, -(-total // most)))
        targets = {name: {**self.acts[name], **self.targets[name]} for name in steps}
        return replace(
            self,
            recordings={name: self.recordings[name][::step] for name, step in steps.items()},
            targets={n: {key: column[:: steps[n]] for key, column in targets[n].items()} for n in steps},
        )

    def converted(self, contract: PixelContract, most: int) -> "Known":
        """The same with frames of the encoder's size; converted in memory, of more than `most` only every k-th."""
        if all(dataset.shape[1:] == contract.shape for dataset in self.recordings.values()):
            return self
        step = max(1, -(-sum(map(len, self.recordings.values())) // most))
        frames = {n: read([d], np.arange(0, len(d), step), contract) for n, d in self.recordings.items()}
        targets = {name: {key: v[::step] for key, v in self.targets[name].items()} for name in frames}
        return replace(self, recordings=frames, targets=targets)

    def column(self, target: str) -> NDArray[np.float64]:
        """A target's values for all frames of the held-out recordings, NaN where it is not known."""
        unknown = {name: np.full(len(self.recordings[name]), np.nan) for name in self.held_out}
        return np.concatenate([self.targets[name].get(target, unknown[name]) for name in self.held_out])


def load_known(recordings: Recordings, own: Path | None = None) -> Known:
    """Read what is known of the state, from the rows beside the frames and from a user's file.

    Args:
        recordings: The recordings of a report.
        own: An .npz of targets for all files of the folder that is measured.

    Raises:
        InputError: The rows beside a file of frames, or the user's targets, cannot be read or do not fit the frames.
    """
    named: dict[str, Frames] = {file_of(dataset).stem: dataset for dataset in recordings.training}
    held_out: list[str] = []
    for dataset in recordings.held_out:
        stem = file_of(dataset).stem
        held_out.append(stem if stem not in named else f"{stem} (held out)")
        named[held_out[-1]] = dataset
    rows = {name: rows_of(dataset) for name, dataset in named.items()}
    targets: dict[str, dict[str, NDArray[Any]]] = {name: dict(targets_of(known)) for name, known in rows.items()}
    if own is not None:
        # The file covers whole files, while a recording here may be a part of one.
        folder = file_of(recordings.held_out[0]).parent
        whole = load_targets(own, {file_of(dataset).stem: dataset for dataset in get_datasets(folder)})
        for name, dataset in named.items():
            if file_of(dataset).parent == folder:
                first = describe_datasets([dataset])[0]["first_frame"]
                values = whole[file_of(dataset).stem]
                targets[name] |= {key: column[first : first + len(dataset)] for key, column in values.items()}
    return Known(named, targets, {name: _acts_of(known) for name, known in rows.items()}, held_out)


def _acts_of(rows: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Actions and rewards as named numbers, NaN where no step was taken; discrete actions only if they are few."""
    acts: dict[str, NDArray[Any]] = {}
    for name, column in rows.items():
        is_act = name in ("action", "reward") or name.startswith("action$")
        if (
            is_act
            and column.dtype.kind in "biuf"
            and (column.dtype.kind == "f" or column.max(initial=0) < _FEW_ACTIONS)
        ):
            flat = column.reshape(len(column), -1).astype(np.float64)
            flat[~np.asarray(rows.get("acted", np.ones(len(flat))), bool)] = np.nan
            parts = [name] if flat.shape[1] == 1 else [f"{name}.{i}" for i in range(flat.shape[1])]
            acts |= dict(zip(parts, flat.T, strict=True))
    return acts


def file_of(dataset: Frames) -> Path:
    """The file of a recording; all of a report are memory maps of `get_datasets`."""
    return Path(dataset.filename)  # pyright: ignore[reportAttributeAccessIssue]
