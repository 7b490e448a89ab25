"""What follows each frame of a super-batch: the next frame of its recording, the action and the reward between the two."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latent_obs.errors import InputError
from vae_training.datasets import name_of
from vae_training.frame_reader import gather, place_on_disk
from vae_training.rows import load_rows

Frames = NDArray[np.uint8]


class SuperBatch(dict[str, NDArray[Any]]):
    """Arrays of as many rows by name, the frames as "frames"; a slice cuts all of them.

    Example:
        >>> batch = SuperBatch(frames=np.zeros((4, 8, 8, 3), np.uint8), reward=np.arange(4.0))
        >>> batch.cut(slice(1, 3))["reward"].tolist(), len(batch["frames"])
        ([1.0, 2.0], 4)
    """

    def cut(self, rows: slice) -> dict[str, NDArray[Any]]:
        """These rows of each array."""
        return {name: values[rows] for name, values in self.items()}


@dataclass(frozen=True)
class ActionKind:
    """What actions the recordings have.

    Attributes:
        kind: "discrete" (whole numbers from 0) or "continuous".
        size: Number of actions, or of values in one.
    """

    kind: str
    size: int


class Transitions:
    """Finds what follows each frame, by the rows beside the frame files.

    Without rows the next frame of a file counts as what follows, which is right within a video and wrong at the ends of
    episodes; so actions and rewards, which need rows, come with the true ends of episodes.

    Args:
        datasets: Arrays from `get_datasets`, or slices of them.
        acts: Whether actions and rewards are needed; else the next frames are all.

    Attributes:
        actions: What actions there are; None where none are needed.

    Raises:
        InputError: Actions are needed, and a file has none, or those of two files cannot be of one environment.
    """

    def __init__(self, datasets: Sequence[Frames], *, acts: bool) -> None:
        self._datasets = list(datasets)
        self._rows: list[dict[str, NDArray[Any]]] = []
        for dataset in self._datasets:
            columns = _rows_of(dataset)
            follows = np.append(np.ones(len(dataset) - 1, bool), False)
            if "first" in columns:
                follows[:-1] &= ~columns["first"][1:].astype(bool)
            if "acted" in columns:
                follows &= columns["acted"].astype(bool)
            kept: dict[str, NDArray[Any]] = {"follows": follows}
            if acts:
                if "action" not in columns or "reward" not in columns:
                    raise InputError(
                        f"{name_of(dataset)} has no actions and rewards beside it (a .rows.npz with `action` and `reward`), "
                        "which inverse_dynamics, next_latent and reward are trained on. Record with `latent-obs frames "
                        "record`, or leave these terms at 0"
                    )
                kept |= {"action": columns["action"], "reward": columns["reward"].astype(np.float32)}
            self._rows.append(kept)
        self.actions = self._kind_of_actions() if acts else None

    def _kind_of_actions(self) -> ActionKind:
        kinds: dict[ActionKind, str] = {}
        highest = 0
        for dataset, rows in zip(self._datasets, self._rows, strict=True):
            action = rows["action"]
            whole = action.dtype.kind in "iub" and action.ndim == 1
            if whole and len(action):
                if int(action.min()) < 0:
                    raise InputError(f"{name_of(dataset)} has the action {int(action.min())}; whole numbers begin at 0")
                highest = max(highest, int(action.max()))
            width = 1 if action.ndim == 1 else int(np.prod(action.shape[1:]))
            kinds.setdefault(ActionKind("discrete", 0) if whole else ActionKind("continuous", width), name_of(dataset))
        if len(kinds) > 1:
            told = "; ".join(f"{kind.kind} ones of {kind.size or 'some'} in {file}" for kind, file in kinds.items())
            raise InputError(f"the recordings have actions of several kinds: {told}. Train on those of one environment")
        kind = next(iter(kinds))
        return kind if kind.kind == "continuous" else ActionKind("discrete", highest + 1)

    def read(
        self, plan: Sequence[tuple[int, NDArray[np.int64], NDArray[np.int64]]], frames: Frames, after: Frames
    ) -> SuperBatch:  # fmt: skip
        """A super-batch with what follows each frame.

        Args:
            plan: As `plan_draw` gives it.
            frames: The frames of the plan, uint8 (N, H, W, C).
            after: Where to put the next frames, the same shape; where none follows, the frame itself.

        Returns:
            "frames", "after", "follows" bool (N,), and with actions "action" and "reward" of the step between.
        """
        batch = SuperBatch(frames=frames, after=after)
        wanted = []
        for index, rows, targets in plan:
            columns = self._rows[index]
            wanted.append((self._datasets[index], rows + columns["follows"][rows], targets))
            for name, values in columns.items():
                if name not in batch:
                    batch[name] = np.zeros((len(frames), *values.shape[1:]), values.dtype)
                batch[name][targets] = values[rows]
        gather(wanted, after)
        return batch

    def column(self, name: str) -> Iterator[NDArray[Any]]:
        """The values of each dataset's column ("action", "reward") where a transition begins."""
        for rows in self._rows:
            yield rows[name][rows["follows"]]


def _rows_of(dataset: Frames) -> dict[str, NDArray[Any]]:
    """Rows of a dataset's frames: those of its file, cut as the dataset is."""
    filename = getattr(dataset, "filename", None)
    if not filename:
        return {}
    columns, place = load_rows(Path(str(filename))), place_on_disk(dataset)
    if not columns or place is None:
        return columns if not columns or len(next(iter(columns.values()))) == len(dataset) else {}
    whole = np.load(place.file, mmap_mode="r")
    first = (place.offset - whole.offset) // max(1, dataset[:1].nbytes)
    return {name: values[first : first + len(dataset)] for name, values in columns.items()}
