"""The pictures of a report: plots of its numbers, and sheets of frames."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latent_obs.util.colors import COLORS, colors_of
from vae_training.report.encoder import Floats, Frames, Reconstruct, ReportModel
from vae_training.report.findings import Numbers
from vae_training.report.look import NEUTRAL, figure, legend_above, paint_axes, save_figure
from vae_training.report.metrics.latents import Latents
from vae_training.report.metrics.reconstruction import Measured
from vae_training.report.probes.probes import ProbeResult, ProbeTable
from vae_training.report.sample import spread
from vae_training.training.logs import grid, save_picture, traversal_sheet

#: What the tables and the sheets of a report call each way to reconstruct frames.
METHOD_NAMES = {"encoder": "this encoder", "pca": "PCA", "mean image": "mean image"}
_COLUMNS = 6  # frames side by side: on a phone each is about as wide as an icon
_SHEET = 800  # pixels, about the width of a sheet
_INTERPOLATIONS, _STEPS = 4, 4
_PRIOR_ROWS = 3
_MOST_TARGETS = 40
_MOST_NAMED = 20  # dimensions, with a number each beside a plot


def draw_pictures(
    folder: Path,
    model: ReportModel,
    frames: Frames,
    numbers: Numbers,
    *,
    methods: Mapping[str, Reconstruct],
    errors: Measured | None,
    seed: int,
) -> dict[str, Path]:
    """Draw everything that was measured on held-out frames, and return the PNG file of each picture by its name.

    `methods` reconstruct frames, and those but the mean image are shown; `errors` are the encoder's by frame.
    """
    latents, reconstruction, order = numbers.latents, numbers.reconstruction, numbers.latents.by_information
    plots = {"aggregate": _aggregate_posterior(latents)}
    if latents.learned:
        plots["kl"] = _kl_bars(latents)
    plots["correlation"] = _image(
        np.array(latents.correlation)[np.ix_(order[:64], order[:64])],
        names=order if len(order) <= _MOST_NAMED else (),
        cmap=_signed_colors(),
        vmin=-1,
        vmax=1,
        interpolation="nearest",
    )
    sheets: dict[str, tuple[Sequence[Frames], Sequence[str]]] = {}
    if numbers.probes is not None:
        plots["probes"] = _probe_bars(numbers.probes)
    if reconstruction is not None and errors is not None and model.cvae is not None:
        plots["error_map"] = _image(errors.error_map, cmap="magma", vmin=0)
        shown = {name: method for name, method in methods.items() if name != "mean image"}
        chosen = {"reconstructions": spread(len(frames), _COLUMNS), "worst": reconstruction.worst[:_COLUMNS]}
        for name, which in (chosen | {"best": reconstruction.best[:_COLUMNS]}).items():
            beside = {"encoder": model.reconstruct} if name == "reconstructions" else shown
            rows = [frames[which], *(_to_uint8(method(frames[which])) for method in beside.values())]
            sheets[name] = rows, ["frames", *(METHOD_NAMES[method] for method in beside)]
        rng, dim = np.random.default_rng(seed), latents.latent_dim
        pairs = frames[rng.permutation(len(frames))[: 2 * min(_INTERPOLATIONS, len(frames) // 2)]]
        steps = [_interpolation(model, pair) for pair in pairs.reshape(-1, 2, *frames.shape[1:])]
        sheets["interpolations"] = steps, [f"frame, {_STEPS} steps through the latents, frame"]
        z, standard = rng.standard_normal((_PRIOR_ROWS * _COLUMNS, dim)), model.cvae.encoder.standard
        if standard is not None and standard.components:  # these are as wide as they were over the training frames
            z[:, : standard.components] *= (standard.deviation / standard.deviation[-1]).cpu().numpy()
        samples = model.decode(z)
        sheets["prior"] = np.split(_to_uint8(samples), _PRIOR_ROWS), ()
    drawn = {name: save_figure(made, folder / f"{name}.png") for name, made in plots.items()}
    for name, (rows, names) in sheets.items():
        drawn[name] = folder / f"{name}.png"
        scale = round(_SHEET / (max(map(len, rows)) * frames.shape[2]))
        save_picture(drawn[name], grid(rows, scale=max(1, min(8, scale)), names=names))
    if errors is not None and model.cvae is not None:
        drawn["traversals"] = folder / "traversals.png"
        middle = frames[int(np.argsort(errors.mse)[len(frames) // 2])]
        save_picture(drawn["traversals"], traversal_sheet(model.cvae, middle, sample=frames[:512]))
    return drawn


def probe_columns(table: ProbeTable) -> dict[str, dict[str, ProbeResult]]:
    """Results by column and target; columns are titled "latent, linear", "latent, network", "pixels (CNN)"."""
    columns: dict[str, dict[str, ProbeResult]] = {}
    titles = {"linear": ", linear", "mlp": ", network", "cnn": ""}
    for representation in table.representations:
        for head, title in titles.items():
            found = {r.target: r for r in table.results if (r.representation, r.head) == (representation, head)}
            if found:
                columns[f"{representation}{title}"] = found
    return columns


def _interpolation(model: ReportModel, pair: Frames) -> Frames:
    """From one frame to another through the latent space, with the frames themselves at both ends."""
    one, other = model.means(pair)
    share = np.linspace(0, 1, _STEPS, dtype=np.float32)[:, None]
    return np.concatenate([pair[:1], _to_uint8(model.decode((1 - share) * one + share * other)), pair[1:]])


def _to_uint8(images: Floats) -> Frames:
    return np.round(np.clip(images, 0, 1) * 255).astype(np.uint8)


def _signed_colors() -> Any:
    """Colors of values from -1 to 1, transparent at 0."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgba

    below, above = (to_rgba(COLORS[sign]) for sign in ("below", "above"))
    return LinearSegmentedColormap.from_list("signed", [below, (*below[:3], 0), (*above[:3], 0), above])


def _image(values: Any, *, names: Sequence[int] = (), **options: Any) -> Any:
    """Values (rows, columns) in colors, with a scale beside them; `options` are those of `imshow`."""
    made, axes = figure(3.8)
    shown = axes.imshow(values, **options)
    axes.grid(visible=False)
    axes.set_xticks(range(len(names)), names, fontsize=8, rotation=90)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    scale = made.colorbar(shown, ax=axes, shrink=0.85)
    paint_axes(scale.ax)
    scale.outline.set_visible(False)
    return made


def _kl_bars(latents: Latents) -> Any:
    order = latents.by_information
    made, axes = figure(3.0)
    kl = np.array(latents.kl_nats_by_dimension)[order]
    active = np.array(latents.active)[order]
    for which, color, label in ((active, "latent", "active"), (~active, "neutral", "not active")):
        if which.any():
            axes.bar(np.flatnonzero(which), kl[which], color=COLORS[color], width=0.85, label=label)
    axes.set(xlabel="dimension, the most informative first", ylabel="KL [nats]", xlim=(-0.7, len(order) - 0.3))
    legend_above(made, axes)
    if len(order) <= _MOST_NAMED:
        axes.set_xticks(range(len(order)), order)
    return made


def _aggregate_posterior(latents: Latents) -> Any:
    made, axes = figure(3.0)
    axes.axhspan(-1, 1, color=NEUTRAL, alpha=0.25, lw=0, label="prior")
    means, stds = latents.aggregate_mean, latents.aggregate_std
    places = range(latents.latent_dim)
    axes.errorbar(places, means, yerr=stds, fmt="o", color=COLORS["latent"], ms=2.5, lw=0.8, label="latent")
    axes.set(xlabel="dimension", ylabel="mean ± standard deviation", xlim=(-0.7, latents.latent_dim - 0.3))
    legend_above(made, axes)
    return made


def _probe_bars(table: ProbeTable) -> Any:
    """Scores of linear heads and of the CNN, with intervals, for each target."""
    targets = table.targets[:_MOST_TARGETS]
    columns = {title: found for title, found in probe_columns(table).items() if not title.endswith("network")}
    colors = colors_of(title.removesuffix(", linear") for title in columns)
    made, axes = figure(1.3 + 0.16 * len(targets) * (len(columns) + 1))
    height = 0.8 / len(columns)
    for k, ((title, found), color) in enumerate(zip(columns.items(), colors.values(), strict=True)):
        there = [i for i, target in enumerate(targets) if target in found]
        places = [i + (k - (len(columns) - 1) / 2) * height for i in there]
        results = [found[targets[i]] for i in there]
        values = np.array([result.main.value for result in results]).clip(0)  # 0 or less is drawn as 0
        low, high = np.array([result.interval for result in results]).clip(0).T
        axes.barh(places, values, height=0.9 * height, color=color, label=title)
        ends = np.abs([values - low, high - values])
        axes.errorbar(values, places, xerr=ends, fmt="none", color=NEUTRAL, lw=0.8, capsize=1.5)
    axes.set_yticks(range(len(targets)), targets, fontsize=9)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.02), xlabel="score (0 or less is drawn as 0)")
    legend_above(made, axes)
    return made
