"""The log of a run: JSON lines always, TensorBoard where it is installed."""

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from latent_obs.atomic import written_aside
from latent_obs.errors import MissingExtraError, require


class RunLog:
    """Append metrics by step to `log.jsonl`, and to TensorBoard in `tensorboard/`.

    Metrics: ``loss/total``, ``loss/reconstruction`` (squared error), ``loss/kl_nats``, ``schedule/beta``,
    ``speed/images_per_second``, ``speed/data_wait_share`` (share of the time spent waiting for frames);
    ``optimizer/learning_rate``, and ``optimizer/gradient_norm`` (before clipping) where gradients are clipped;
    ``held_out/loss_at_fixed_beta``, ``held_out/reconstruction``, ``held_out/kl_nats`` and
    ``held_out/active_latents`` once an epoch.

    Args:
        run: The run folder.
        from_step: Rows of later steps, which a killed run may have left, are dropped: they will be written again.
        tensorboard: Whether to write TensorBoard logs as well.

    Attributes:
        note: Why there is no TensorBoard log although it was asked for; empty otherwise.

    Example:
        >>> import tempfile
        >>> run = Path(tempfile.mkdtemp())
        >>> with RunLog(run, tensorboard=False) as log:
        ...     log.write(1, {"loss/total": 3.0})
        >>> read_log(run)
        [{'step': 1, 'loss/total': 3.0}]
    """

    def __init__(self, run: Path, *, from_step: int = 0, tensorboard: bool = True) -> None:
        self._path = run / "log.jsonl"
        if self._path.exists():
            kept = [row for row in read_log(run) if row["step"] <= from_step]
            with written_aside(self._path) as aside:
                aside.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self._file = self._path.open("a", buffering=1)  # line by line: what a killed run logged is there
        self._writer: Any = None
        self.note = ""
        if tensorboard:
            try:
                require("tensorboard", extra="logs", purpose="write TensorBoard logs")
                board = require("torch.utils.tensorboard", extra="logs", purpose="write TensorBoard logs")
            except MissingExtraError as error:
                self.note = f"{error} The same numbers are in {self._path}."
            else:
                self._writer = board.SummaryWriter(str(run / "tensorboard"), purge_step=from_step + 1 if from_step else None)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Log metrics of a step."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        if self._writer is not None:
            for name, value in metrics.items():
                self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: Any) -> None:
        """Log a uint8 (H, W, 3) picture to TensorBoard."""
        if self._writer is not None:
            self._writer.add_image(name, image, step, dataformats="HWC")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        if self._writer is not None:
            self._writer.close()


def read_log(run: Path) -> list[dict[str, float]]:
    """Rows of a run's `log.jsonl`; a half-written last line of a killed run is left out."""
    rows: list[dict[str, float]] = []
    file = run / "log.jsonl"
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
