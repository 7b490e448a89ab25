"""The log of a run (JSON lines, and TensorBoard if installed), and its pictures."""

import contextlib
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from latent_obs.util.atomic import atomic_write
from latent_obs.util.errors import MissingExtraError, one_line, require
from latent_obs.util.tracking import Tracker
from vae_training.model.cvae import CVAE, gaussian_kl_nats, images_to_tensor


class RunLog:
    """Appends metrics by step to `log.jsonl`, to TensorBoard in `tensorboard/`, and to a `Tracker`.

    Metrics: ``loss/total``, ``loss/reconstruction`` (squared error), ``loss/kl_nats``, ``schedule/beta``,
    ``optimizer/learning_rate``, ``speed/images_per_second``, ``speed/data_wait_share`` (share of the time spent waiting
    for frames); ``held_out/loss_at_fixed_beta``, ``held_out/reconstruction``, ``held_out/kl_nats`` and
    ``held_out/active_latents`` once an epoch.

    Args:
        run: The run folder.
        from_step: Rows of later steps, which a killed run may have left, are removed; they will be written again.
        tensorboard: Whether to write TensorBoard logs as well.
        tracker: Where to log as well, or None.

    Attributes:
        note: Why there is no TensorBoard log, if there is none; empty otherwise.

    Raises:
        OSError: The disk is full; also by `write`, `picture` and at the end of a `with` block.
    """

    def __init__(
        self, run: Path, *, from_step: int = 0, tensorboard: bool = True, tracker: Tracker | None = None
    ) -> None:
        self._tracker = tracker
        self._path = run / "log.jsonl"
        if self._path.exists():
            kept = [row for row in read_log(run) if row["step"] <= from_step]
            with atomic_write(self._path) as aside:
                aside.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self._file = self._path.open("a", buffering=1)  # line by line: what a killed run logged is there
        self._writer: Any = None
        self.note = ""
        if tensorboard:
            try:
                require("tensorboard", extra="logs", purpose="write TensorBoard logs")
            except MissingExtraError as error:
                self.note = f"{error} The same numbers are in {self._path}."
            else:
                from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

                purge_step = from_step + 1 if from_step else None
                try:
                    self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=purge_step)
                except UnicodeError as error:
                    self.note = f"There are no TensorBoard logs: {one_line(error)}. Rename the folder to have them."

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Log metrics of a step."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        if self._writer is not None:
            for name, value in metrics.items():
                self._writer.add_scalar(name, value, step)
        if self._tracker is not None:
            self._tracker.log(metrics, step)

    def picture(self, step: int, name: str, image: Any) -> None:
        """Log a uint8 (H, W, 3) picture to TensorBoard."""
        if self._writer is not None:
            self._writer.add_image(name, image, step, dataformats="HWC")

    def __enter__(self) -> Self:
        self._hook = threading.excepthook
        threading.excepthook = self._on_thread_error
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._file.close()
            if self._writer is not None:
                self._writer.close()
        finally:
            threading.excepthook = self._hook

    def _on_thread_error(self, error: threading.ExceptHookArgs) -> None:
        # TensorBoard's thread prints a traceback for a full disk, and raises the error again at the next call.
        if not (isinstance(error.exc_value, OSError) and type(error.thread).__module__.startswith("tensorboard")):
            self._hook(error)


def read_log(run: Path) -> list[dict[str, float]]:
    """Rows of a run's `log.jsonl`, without damaged ones: the last line of a killed run may be half written."""
    rows: list[dict[str, float]] = []
    file = run / "log.jsonl"
    for line in file.read_bytes().splitlines() if file.exists() else []:
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                rows.append(row)
    return rows


Picture = NDArray[np.uint8]
_GAP, _GROUND, _TEXT = 2, (20, 23, 31), (229, 231, 235)  # dark, so that a page may be light or dark
_LETTERS = 60  # that fit into the width of a sheet: large enough to be read on a phone
_SHEET_FRAMES = 6  # side by side


def grid(rows: Sequence[NDArray[np.uint8]], scale: int = 2, *, names: Sequence[str] = ()) -> Picture:
    """Arrange rows of images as one picture, uint8 (H', W', 3), with a dark line between them.

    Args:
        rows: Each uint8 (n, H, W, C). One channel is shown in gray; of more than three, the last three (the newest
            frame of a stack).
        scale: Whole number by which each pixel is enlarged.
        names: Of the first rows, written above each.
    """
    height, width = rows[0].shape[1:3]
    columns = max(len(row) for row in rows)
    step_y, step_x = height * scale + _GAP, width * scale + _GAP
    across = columns * step_x - _GAP
    size = max(10, 2 * across // _LETTERS)  # a letter is about half as wide as high
    font, line = ImageFont.load_default(size), round(1.4 * size)
    sheet = np.full((len(rows) * step_y - _GAP + len(names) * line, across, 3), _GROUND, np.uint8)
    for y, row in enumerate(rows):
        top = y * step_y + min(y + 1, len(names)) * line
        if y < len(names):
            strip = Image.new("RGB", (across, line), _GROUND)
            ImageDraw.Draw(strip).text((size // 3, line // 2), names[y], _TEXT, font, anchor="lm")
            sheet[top - line : top] = np.asarray(strip)
        rgb = np.repeat(row[..., :1], 3, axis=-1) if row.shape[-1] < 3 else row[..., -3:]
        for x, image in enumerate(rgb):
            large = image.repeat(scale, axis=0).repeat(scale, axis=1)
            left = x * step_x
            sheet[top : top + height * scale, left : left + width * scale] = large
    return sheet


def save_picture(path: Path, picture: Picture) -> None:
    """Write a PNG atomically."""
    with atomic_write(path) as aside:
        Image.fromarray(picture).save(aside)


@torch.inference_mode()
def reconstruct(model: CVAE, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Frames uint8 (N, H, W, C), each decoded from its mean latent."""
    return to_uint8(model.decode(model.encode(to_images(model, frames))[0]))


def reconstruction_sheet(model: CVAE, frames: NDArray[np.uint8]) -> Picture:
    """Some of the frames uint8 (N, H, W, C), evenly chosen, above their reconstructions."""
    shown = frames[np.linspace(0, len(frames) - 1, min(_SHEET_FRAMES, len(frames))).astype(int)]
    return grid([shown, reconstruct(model, shown)], names=["frames", "reconstructions"])


@torch.inference_mode()
def traversal_sheet(
    model: CVAE,
    frame: NDArray[np.uint8],
    *,
    sample: NDArray[np.uint8],
    latents: int = 6,
    steps: int = _SHEET_FRAMES - 1,
) -> Picture:
    """What single latents encode: each row changes one latent over its range and keeps the others.

    The last image of a row is bright where its first and last picture differ, brightest where they differ most.

    Args:
        model: The CVAE.
        frame: uint8 (H, W, C), the frame to start from.
        sample: uint8 (N, H, W, C), some hundred frames: a latent changes over its 1st to 99th percentile in them.
        latents: Rows, for the latents that change this picture most over their range, the most first.
        steps: Pictures per row.
    """
    mean, logvar = model.encode(to_images(model, sample))
    nats = gaussian_kl_nats(mean, logvar).mean(0)
    low, high = (torch.quantile(mean, q, dim=0) for q in (0.01, 0.99))
    start, _ = model.encode(to_images(model, frame[None]))

    def changed(latent: int, values: torch.Tensor) -> torch.Tensor:
        z = start.repeat(len(values), 1)
        z[:, latent] = values
        return model.decode(z).clamp(0, 1)

    ends = (changed(i, torch.stack([low[i], high[i]])) for i in range(mean.shape[1]))
    effect = torch.stack([(one - other).square().mean() for one, other in ends])
    rows: list[NDArray[np.uint8]] = []
    names: list[str] = []
    for i in effect.argsort(descending=True, stable=True)[:latents].tolist():
        images = changed(i, torch.linspace(float(low[i]), float(high[i]), steps, device=mean.device))
        change = (images[-1:] - images[:1]).abs()
        rows.append(to_uint8(torch.cat([images, change / change.max().clamp(min=1 / 255)])))
        where = ", and where it acts" if not names else ""
        information = "principal component" if i < model.architecture.components else f"{nats[i]:.1f} nats"
        names.append(f"dimension {i}, {low[i]:.1f} to {high[i]:.1f}: {information}{where}")
    return grid(rows, names=names)


def to_images(model: CVAE, frames: NDArray[np.uint8]) -> torch.Tensor:
    """Frames uint8 (N, H, W, C) as a batch on the model's device."""
    writable = np.require(frames, requirements=("C", "W"))
    return images_to_tensor(torch.from_numpy(writable).to(next(model.parameters()).device))


def to_uint8(images: torch.Tensor) -> NDArray[np.uint8]:
    """Float (N, C, H, W) to uint8 (N, H, W, C)."""
    return images.clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
