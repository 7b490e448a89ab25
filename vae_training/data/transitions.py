"""What follows each frame of a super-batch: the next frame, and the action and the reward between the two."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from latent_obs.util.errors import InputError
from vae_training.data.frames import Frames, name_of
from vae_training.data.loader import gather
from vae_training.data.rows import rows_of


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

    kind: Literal["discrete", "continuous"]
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
            columns = rows_of(dataset)
            follows = np.append(np.ones(len(dataset) - 1, bool), False)
            if "first" in columns:
                follows[:-1] &= ~columns["first"][1:].astype(bool)
            if "acted" in columns:
                follows &= columns["acted"].astype(bool)
            kept: dict[str, NDArray[Any]] = {"follows": follows}
            if acts:
                if "action" not in columns or "reward" not in columns:
                    raise InputError(_lack_of_actions(dataset, columns))
                # A step that ends an episode has its reward, though often no picture follows it.
                acted = columns["acted"].astype(bool) if "acted" in columns else follows
                kept |= {"acted": acted, "action": columns["action"], "reward": columns["reward"].astype(np.float32)}
            self._rows.append(kept)
        self.actions = self._kind_of_actions() if acts else None
        if self.actions is not None:
            for kept in self._rows:
                kept["action"] = _uniform(kept["action"], self.actions)
            if not any(kept["follows"].any() for kept in self._rows):
                raise InputError(
                    f"the rows beside {name_of(self._datasets[0])} and other files show no step from a frame to the "
                    "next (`acted` is false, or `first` true, everywhere), and inverse_dynamics, next_latent and "
                    "reward are trained on such steps. Record longer episodes, or leave these terms at 0"
                )

    def _kind_of_actions(self) -> ActionKind:
        kinds: dict[ActionKind, str] = {}
        highest = 0
        for dataset, rows in zip(self._datasets, self._rows, strict=True):
            action = rows["action"]
            if action.dtype.kind not in "iubf":
                raise InputError(
                    f"{name_of(dataset)} has actions of type {action.dtype}, expected numbers. Record it again"
                )
            whole = action.dtype.kind in "iub" and action.ndim == 1
            if whole and len(action):
                if int(action.min()) < 0:
                    raise InputError(f"{name_of(dataset)} has the action {int(action.min())}; whole numbers begin at 0")
                highest = max(highest, int(action.max()))
            width = 1 if action.ndim == 1 else int(np.prod(action.shape[1:]))
            kinds.setdefault(ActionKind("discrete", 0) if whole else ActionKind("continuous", width), name_of(dataset))
        if len(kinds) > 1:
            found = "; ".join(f"{kind.kind} ones of {kind.size or 'some'} in {file}" for kind, file in kinds.items())
            raise InputError(
                f"the recordings have actions of several kinds: {found}. Train on those of one environment"
            )
        kind = next(iter(kinds))
        return kind if kind.kind == "continuous" else ActionKind("discrete", highest + 1)

    def read(
        self, plan: Sequence[tuple[int, NDArray[np.int64], NDArray[np.int64]]], frames: Frames, after: Frames
    ) -> SuperBatch:
        """A super-batch with what follows each frame.

        Args:
            plan: As `plan_draw` gives it.
            frames: The frames of the plan, uint8 (N, H, W, C).
            after: Where to put the next frames, the same shape; where none follows, the frame itself.

        Returns:
            "frames", "after", "follows" bool (N,), whether one does; with actions also "acted" bool (N,), whether a
            step was taken at the frame, and of that step "action", int64 (N,) or float32 (N, size), and "reward",
            float32 (N,).
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
        """The values of each dataset's column ("action", "reward") where a step was taken."""
        for rows in self._rows:
            yield rows[name][rows["acted"]]


def _lack_of_actions(dataset: Frames, columns: dict[str, NDArray[Any]]) -> str:
    several = sorted(name for name in columns if name.startswith("action$"))
    found = (
        f"has actions of several parts ({', '.join(several)})" if several else "has no actions and rewards beside it"
    )
    return (
        f"{name_of(dataset)} {found}; inverse_dynamics, next_latent and reward are trained on a .rows.npz with "
        "`action` and `reward`. Record with `latent-obs frames record` from an environment with a single action "
        "space, or leave these terms at 0"
    )


def _uniform(actions: NDArray[Any], kind: ActionKind) -> NDArray[Any]:
    """Actions of any file in one type and shape: int64 (N,) or float32 (N, size)."""
    return actions.astype(np.int64) if kind.kind == "discrete" else actions.reshape(-1, kind.size).astype(np.float32)
