"""Which frames a report is about: held-out recordings to measure on, training ones to fit baselines and probes on.

What counts as held out is decided by what the encoder was trained on, which its folder tells file by file with
checksums; a frame that was trained on is never measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latent_obs.pixels import PixelContract
from latent_obs.util.errors import InputError
from vae_training.data.frames import describe_datasets, get_datasets, name_of, split_held_out
from vae_training.data.loader import gather
from vae_training.report.encoder import Frames

Dataset = NDArray[np.uint8]
Rows = dict[str, NDArray[Any]]
_FEWEST = 16  # frames: with fewer, best, worst and pairs at random mean nothing


@dataclass(frozen=True)
class Recordings:
    """The recordings of a report.

    Attributes:
        training: What baselines and probes are fitted on.
        held_out: What is measured.
        how: How they were told apart, a sentence for the page.
        certain: Whether it is known that the encoder never saw the held-out ones.
    """

    training: list[Dataset]
    held_out: list[Dataset]
    how: str
    certain: bool


def find_recordings(provenance: Mapping[str, Any], frames: Path | None = None) -> Recordings:
    """Tell training recordings from held-out ones.

    - The folder that the encoder was trained on: the split of the training run.
    - A folder of which some files were trained on: those, and the others are held out.
    - A folder that it never saw: all of it is held out; baselines are fitted on the training frames where they are
    still at
      hand, else on a part of the folder, which is then not measured.

    Args:
        provenance: Of the encoder folder.
        frames: The folder given by the user, or None for the one of the training run.

    Raises:
        InputError: There is no such folder, its frames cannot be read, or nothing in it is held out.
    """
    settings = provenance.get("settings") or {}
    home = Path(settings["frames"]) if settings.get("frames") else None
    if frames is None and home is None:
        raise InputError(
            "the encoder folder does not tell what it was trained on; name frames to measure on: --frames FOLDER"
        )
    if frames is None and home is not None and not home.is_dir():
        raise InputError(
            f"the frames that it was trained on are not at {home} (from {Path.cwd()}); name them: --frames FOLDER"
        )
    folder = frames if frames is not None else home
    assert folder is not None
    datasets: list[Dataset] = list(get_datasets(folder))
    trained = [d for d in provenance.get("trained_on") or [] if d.get("sha256_head_tail")]
    if not trained:
        training, held_out = split_held_out(datasets)
        how = "The encoder folder does not tell which recordings it was trained on, so it may have seen some of these."
        return Recordings(training, held_out, how, certain=False)
    seen = {d["sha256_head_tail"] for d in trained}
    known = [d["sha256_head_tail"] in seen for d in describe_datasets(datasets)]
    if any(known):
        return _of_the_training_folder(datasets, known, trained, settings.get("held_out"))
    if home is not None and home.is_dir() and home.resolve() != folder.resolve():
        own = _trained_parts(get_datasets(home), trained)
        if own and own[0].shape[1:] == datasets[0].shape[1:]:
            how = (
                f"The encoder never saw any of {folder}; baselines are fitted on the recordings that it was trained on."
            )
            return Recordings(own, datasets, how, certain=True)
    training, held_out = split_held_out(datasets)
    how = (
        f"The encoder never saw any of {folder}, and the frames that it was trained on are not at hand: baselines are fitted "
        f"on {len(training)} of these recordings, which gives them an advantage, and the others are measured."
    )
    return Recordings(training, held_out, how, certain=True)


def _of_the_training_folder(
    datasets: list[Dataset], known: list[bool], trained: list[dict[str, Any]], held_out: int | None
) -> Recordings:
    """The split of the training run, or what comes nearest to it where files were added or removed since."""
    try:
        training, measured = split_held_out(datasets, held_out)
    except InputError:
        training, measured = [], []
    if training and _places(describe_datasets(training)) == _places(trained):
        how = "The same split as in training: whole recordings that no gradient step has seen."
        if any(
            describe_datasets([m])[0]["sha256_head_tail"] in {t["sha256_head_tail"] for t in trained} for m in measured
        ):
            how = (
                "The same split as in training: the end of a recording whose beginning was trained on. Place and light are "
                "those of training, so a new recording will do worse."
            )
        return Recordings(training, measured, how, certain=True)
    measured = [d for d, is_known in zip(datasets, known, strict=True) if not is_known]
    if not measured:
        raise InputError(
            f"every recording in {name_of(datasets[0])}'s folder was trained on, so none is left to measure on. Name other "
            "frames: --frames FOLDER"
        )
    how = "The folder has changed since training: what is measured are the recordings in it that were not trained on."
    return Recordings(_trained_parts(datasets, trained), measured, how, certain=True)


def _trained_parts(datasets: Sequence[Dataset], trained: Sequence[Mapping[str, Any]]) -> list[Dataset]:
    """The frames of a folder that were trained on."""
    parts = {d["sha256_head_tail"]: (d["first_frame"], d["frames"]) for d in trained}
    found = [
        (d, parts.get(told["sha256_head_tail"])) for d, told in zip(datasets, describe_datasets(datasets), strict=True)
    ]
    return [d[part[0] : part[0] + part[1]] for d, part in found if part is not None]


def _places(described: Sequence[Mapping[str, Any]]) -> set[tuple[Any, ...]]:
    return {(d["sha256_head_tail"], d["first_frame"], d["frames"]) for d in described}


@dataclass(frozen=True)
class Sample:
    """Frames read into memory, with where they come from.

    Attributes:
        frames: uint8 (N, H, W, C), as the encoder eats them.
        recording: int64 (N,), the number of each frame's recording.
        row: int64 (N,), the frame's place in it.
    """

    frames: Frames
    recording: NDArray[np.int64]
    row: NDArray[np.int64]


def take(datasets: Sequence[Dataset], count: int, contract: PixelContract) -> Sample:
    """Frames spread evenly over recordings.

    Args:
        datasets: The recordings.
        count: How many, at most.
        contract: Frames of another size are converted as it says.
    """
    total = sum(len(d) for d in datasets)
    wanted = np.unique(np.linspace(0, total - 1, min(count, total)).astype(np.int64))
    starts = np.cumsum([0, *(len(d) for d in datasets)])
    recording = np.searchsorted(starts, wanted, side="right") - 1
    row = wanted - starts[recording]
    return Sample(read(datasets, recording, row, contract), recording, row)


def read(
    datasets: Sequence[Dataset], recording: NDArray[np.int64], row: NDArray[np.int64], contract: PixelContract
) -> Frames:
    """Read frames of several recordings, as the encoder eats them; numbers in ascending order."""
    out = np.empty((len(row), *datasets[0].shape[1:]), np.uint8)
    places = np.arange(len(row))
    gather(
        [(d, row[recording == i], places[recording == i]) for i, d in enumerate(datasets) if (recording == i).any()],
        out,
    )
    layout = contract.layout_of(out.shape[1:], "the frames")
    contract.refuse_blur(out.shape[1:], layout, "the folder of frames")
    return contract.convert(out, layout, "the frames")


def neighbours(datasets: Sequence[Dataset], count: int, contract: PixelContract) -> tuple[Frames, Frames] | None:
    """Frames with the next one of the same recording and episode, spread evenly; None where there are none.

    Args:
        datasets: The recordings.
        count: How many pairs, at most.
        contract: As for `take`.
    """
    recordings, rows = [], []
    for i, dataset in enumerate(datasets):
        first = rows_of(dataset).get("first")
        begins = np.zeros(len(dataset), bool) if first is None else np.asarray(first, bool)
        row = np.flatnonzero(~begins[1:])  # the next frame does not begin an episode
        recordings.append(np.full(len(row), i))
        rows.append(row)
    recording, row = np.concatenate(recordings), np.concatenate(rows)
    if not len(row):
        return None
    chosen = np.unique(np.linspace(0, len(row) - 1, min(count, len(row))).astype(np.int64))
    recording, row = recording[chosen], row[chosen]
    return read(datasets, recording, row, contract), read(datasets, recording, row + 1, contract)


def rows_of(dataset: Dataset) -> Rows:
    """What is known of each frame of an array, from the `.rows.npz` beside its file; empty where there is nothing."""
    filename = getattr(dataset, "filename", None)
    if not filename:
        return {}
    from vae_training.data.rows import load_rows

    rows = load_rows(Path(filename))
    first = describe_datasets([dataset])[0]["first_frame"] if rows else 0
    return {name: values[first : first + len(dataset)] for name, values in rows.items()}


def check_enough(sample: Sample) -> None:
    """Refuse what is too little to say anything.

    Raises:
        InputError: There are fewer than 16 frames, or all of them are the same.
    """
    if len(sample.frames) < _FEWEST:
        raise InputError(
            f"{len(sample.frames)} held-out frame(s) are too few for a report, {_FEWEST} the least; record more"
        )
    if (sample.frames == sample.frames[0]).all():
        raise InputError(
            "all held-out frames are equal, so nothing can be told about the latents. Record frames that differ"
        )
