"""What a run was trained on, so that it is not resumed on something else, and whether there is anything to learn in it."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latent_obs.errors import InputError
from vae_training.datasets import _first_frame, name_of

Datasets = Sequence[NDArray[np.uint8]]
_ENDS, _PIECES, _PIECE = 1 << 16, 16, 1 << 12
_LOOK_AT = 64


def identify(training: Datasets, held_out: Datasets) -> dict[str, list[dict[str, Any]]]:
    """What a checkpoint keeps of its frames: which of which file are trained on and held out, with a cheap fingerprint.

    The fingerprint of a file is of its size, its first and last 64 KB, and sixteen pieces of 4 KB between them: a recording
    that was made anew or appended to has another one, whatever its size.

    Returns:
        "training" and "held_out", each a list with `file`, `first_frame`, `frames` and `fingerprint` per array; plain JSON.
    """
    return {"training": [_identify(d) for d in training], "held_out": [_identify(d) for d in held_out]}


def _identify(dataset: NDArray[np.uint8]) -> dict[str, Any]:
    filename = getattr(dataset, "filename", None)
    return {
        "file": Path(filename).name if filename else None,
        "first_frame": _first_frame(dataset),
        "frames": len(dataset),
        "fingerprint": _fingerprint(Path(filename)) if filename else None,
    }


def _fingerprint(file: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        digest.update(str(size).encode())
        pieces = [
            (0, _ENDS),
            *((size * i // (_PIECES + 1), _PIECE) for i in range(1, _PIECES + 1)),
            (max(0, size - _ENDS), _ENDS),
        ]
        for place, length in pieces:
            handle.seek(place)
            digest.update(handle.read(length))
    return digest.hexdigest()


def split_as_before(
    datasets: Datasets, before: dict[str, list[dict[str, Any]]], *, allow_added: bool, folder: Path
) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]]:
    """The split that a run began with, over the same files as then.

    Args:
        datasets: All files of the folder now.
        before: What `identify` gave when the run began.
        allow_added: Whether files may have been added; they are trained on.
        folder: The folder, for messages.

    Returns:
        (training, held_out), as `split_held_out` gives them.

    Raises:
        InputError: A file is missing, has changed, or was added without leave.
    """
    by_name = {Path(str(getattr(d, "filename", ""))).name: d for d in datasets}
    saved = {entry["file"]: entry for entry in (*before["training"], *before["held_out"])}
    advice = f"Put the frames back as they were into {folder} (or name their folder with --frames), or start another run"
    missing = [name for name in saved if name not in by_name]
    if missing:
        raise InputError(f"the run to resume was trained on {_listed(missing)}, not in {folder} any more. {advice}")
    changed = [n for n, entry in saved.items() if _fingerprint(Path(str(by_name[n].filename))) != entry["fingerprint"]]  # pyright: ignore[reportAttributeAccessIssue]
    if changed:
        raise InputError(f"{_listed(changed)} in {folder} changed since the run to resume began. {advice}")
    added = [name for name in by_name if name not in saved]
    if added and not allow_added:
        raise InputError(
            f"{_listed(added)} came to {folder} since the run to resume began. To train on them as well: --allow-added-files; "
            "else move them elsewhere, or start another run"
        )
    parts = [
        [(entry["file"], by_name[entry["file"]][entry["first_frame"] :][: entry["frames"]]) for entry in before[side]]
        for side in ("training", "held_out")
    ]
    training = sorted([*parts[0], *((name, by_name[name]) for name in added)], key=lambda pair: pair[0])
    return [dataset for _, dataset in training], [dataset for _, dataset in parts[1]]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def check_worth_learning(training: Datasets) -> None:
    """Refuse frames that are all the same picture.

    Args:
        training: What would be trained on. Some frames, spread evenly, are looked at; all, only where these are all equal.

    Raises:
        InputError: They are.
    """
    first = np.asarray(training[0][0])
    for spread in (True, False):
        for dataset in training:
            step = max(1, len(dataset) // _LOOK_AT) if spread else _LOOK_AT
            for start in range(0, len(dataset), step):
                rows = dataset[start : start + (1 if spread else step)]
                if (rows != first).any():
                    return
    raise InputError(
        f"all {sum(map(len, training)):,} frames to train on ({name_of(training[0])} …) are the same picture, so there is "
        "nothing to learn. Look at them with: latent-obs frames stats FOLDER; a game that did not start, or a source that was "
        "never read, gives such frames"
    )
