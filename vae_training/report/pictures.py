"""The pictures of a report: sheets of frames, and plots."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latent_obs.atomic import written_aside
from latent_obs.errors import require
from vae_training.pictures import Picture, grid, save_picture
from vae_training.report.latents import Latents
from vae_training.report.model import Frames, Reconstruct, ReportModel, to_uint8

_BLUE, _ORANGE, _GREEN, _GREY, _LIGHT = "#2563eb", "#ea580c", "#15803d", "#6b7280", "#cbd5e1"
_COLOURS = (_BLUE, _ORANGE, _GREEN, _GREY, "#9333ea", "#0891b2")
_SHEET = 1_100  # pixels, the width of a sheet, about, so that small frames can be seen


def frames_above(path: Path, frames: Frames, methods: Sequence[Reconstruct]) -> Path:
    """Frames in the first row, and what each method makes of them in the rows below.

    Args:
        path: The PNG to write.
        frames: uint8 (n, H, W, C), some eight.
        methods: Frames to float images.
    """
    return save(path, [frames, *(to_uint8(method(frames)) for method in methods)])


def save(path: Path, rows: Sequence[Frames]) -> Path:
    """Rows of images as a PNG, enlarged by a whole number so that one sees them."""
    width = max(len(row) for row in rows) * rows[0].shape[2]
    save_picture(path, grid(rows, scale=max(1, min(8, round(_SHEET / width)))))
    return path


def interpolations(path: Path, model: ReportModel, frames: Frames, steps: int = 9) -> Path:
    """From one frame to another through the latent space, a row for each pair.

    Args:
        path: The PNG to write.
        model: Encoder and decoder.
        frames: uint8 (2 * n, H, W, C): the first of each pair, then the seconds.
        steps: Images between the frames, ends included; the frames themselves stand at both ends of a row.
    """
    means = model.means(frames)
    half = len(frames) // 2
    rows: list[Frames] = []
    for i in range(half):
        share = np.linspace(0, 1, steps, dtype=np.float32)[:, None]
        between = to_uint8(model.decode((1 - share) * means[i] + share * means[half + i]))
        rows.append(np.concatenate([frames[i : i + 1], between, frames[half + i : half + i + 1]]))
    return save(path, rows)


def prior_samples(path: Path, model: ReportModel, *, count: int = 20, seed: int = 0) -> Path:
    """What the decoder makes of latents drawn from the prior, in two rows."""
    z = np.random.default_rng(seed).standard_normal((count, model.architecture.latent_dim)).astype(np.float32)
    images = to_uint8(model.decode(z))
    return save(path, [images[: count // 2], images[count // 2 :]])


def error_map(path: Path, errors: NDArray[np.float64]) -> Path:
    """Where the error is, (H, W) mean squared errors as colours."""
    figure, axes = _figure(5.0, 3.8)
    shown = axes.imshow(errors, cmap="magma", vmin=0)
    axes.set(xticks=[], yticks=[], title="Mean squared error by place")
    axes.grid(visible=False)
    figure.colorbar(shown, ax=axes, shrink=0.85)
    return _save(figure, path)


def kl_bars(path: Path, latents: Latents) -> Path:
    """Nats of each dimension, the most informative first."""
    order = latents.by_information
    nats = np.array(latents.kl_nats_by_dimension)[order]
    colours = [_BLUE if latents.active[i] else _LIGHT for i in order]
    figure, axes = _figure(8.0, 3.2)
    axes.bar(np.arange(len(order)), nats, color=colours, width=0.85)
    axes.set(xlabel="dimension, in the order of what it tells", ylabel="KL [nats]", xlim=(-0.7, len(order) - 0.3))
    axes.set_title(f"{latents.kl_nats:.1f} nats; {latents.active_units} of {len(order)} dimensions active (blue)")
    if len(order) <= 40:
        axes.set_xticks(np.arange(len(order)), [str(i) for i in order], fontsize=7)
    return _save(figure, path)


def aggregate_posterior(path: Path, latents: Latents) -> Path:
    """Mean and standard deviation of each dimension over all frames, beside the prior's 0 and 1."""
    order = np.arange(latents.latent_dim)
    figure, axes = _figure(8.0, 3.0)
    axes.axhspan(-1, 1, color=_LIGHT, alpha=0.4, lw=0, label="the prior, mean ± standard deviation")
    axes.errorbar(
        order, latents.aggregate_mean, yerr=latents.aggregate_std, fmt="o", color=_BLUE, ms=3, lw=1,
        label="the latents, mean ± standard deviation",
    )  # fmt: skip
    axes.set(xlabel="dimension", xlim=(-0.7, latents.latent_dim - 0.3))
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return _save(figure, path)


def correlation_map(path: Path, latents: Latents) -> Path:
    """Correlations of the means, the most informative dimensions first; at most 64 of them."""
    order = latents.by_information[:64]
    matrix = np.array(latents.correlation)[np.ix_(order, order)]
    figure, axes = _figure(5.2, 4.4)
    shown = axes.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    axes.grid(visible=False)
    if len(order) <= 40:
        axes.set_xticks(np.arange(len(order)), [str(i) for i in order], fontsize=6, rotation=90)
        axes.set_yticks(np.arange(len(order)), [str(i) for i in order], fontsize=6)
    axes.set_title("Correlation of the means")
    figure.colorbar(shown, ax=axes, shrink=0.85)
    return _save(figure, path)


def probe_bars(path: Path, table: Mapping[str, Mapping[str, tuple[float, float, float]]], ylabel: str) -> Path:
    """Probe scores of the latents and of the baselines, with intervals.

    Args:
        path: The PNG to write.
        table: For each target, for each representation: score, and the low and high end of its interval.
        ylabel: What a score is.
    """
    names = list(dict.fromkeys(name for scores in table.values() for name in scores))
    figure, axes = _figure(8.0, 1.3 + 0.24 * len(table) * (len(names) + 1))
    height = 0.8 / len(names)
    for k, name in enumerate(names):
        places, values, below, above = [], [], [], []
        for i, scores in enumerate(table.values()):
            if name in scores:
                score, low, high = scores[name]
                places.append(i + (k - (len(names) - 1) / 2) * height)
                values.append(max(score, 0.0))
                below.append(max(0.0, values[-1] - max(low, 0.0)))
                above.append(max(0.0, high - values[-1]))
        axes.barh(places, values, height=0.9 * height, color=_COLOURS[k % len(_COLOURS)], label=name)
        axes.errorbar(values, places, xerr=[below, above], fmt="none", ecolor="black", lw=0.8, capsize=1.5)
    axes.set_yticks(range(len(table)), list(table), fontsize=8)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.02), xlabel=ylabel)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return _save(figure, path)


def traversals(path: Path, model: ReportModel, frame: Frames, sample: Frames) -> Path:
    """What single dimensions stand for: the sheet of `vae_training.traversal_sheet`."""
    from vae_training.pictures import traversal_sheet

    sheet: Picture = traversal_sheet(model.cvae, frame, sample=sample, latents=min(8, model.architecture.latent_dim))
    save_picture(path, sheet)
    return path


def _figure(width: float, height: float) -> tuple[Any, Any]:
    require("matplotlib", extra="report", purpose="draw the plots of a report")
    from matplotlib.figure import Figure  # not pyplot: no display and no global state

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    return figure, axes


def _save(figure: Any, target: Path) -> Path:
    with written_aside(target) as aside:
        figure.savefig(aside, format="png")
    return target
