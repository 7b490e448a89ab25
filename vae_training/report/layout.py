"""Everything on the page of a report: the pictures drawn, and the words beside them."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vae_training.report import pictures
from vae_training.report.page import Part, Shown, Table, write_report_page
from vae_training.report.stability import BRIGHTNESS_LEVELS, Stability

if TYPE_CHECKING:
    from vae_training.report.latents import Latents
    from vae_training.report.probe_scores import Score
    from vae_training.report.probe_table import ProbeTable
    from vae_training.report.reconstruction import Reconstruction, Scores
    from vae_training.report.run import ReportResult, Work

_NAMES = {
    "encoder": "this encoder",
    "pca": "PCA of as many dimensions",
    "mean image": "one mean image",
    "autoencoder": "autoencoder",
}
_INTERPOLATIONS = 4
_SHOWN_TARGETS = 40
_METRICS = {"r2": "R²", "auroc": "AUROC", "balanced_accuracy": "balanced accuracy"}


def lay_out(work: "Work", result: "ReportResult", training_mse: float | None) -> Path:
    """Draw the pictures and write the page.

    Args:
        work: What was measured, and with what.
        result: What it says.
        training_mse: Error on training frames; None where it was not measured.
    """
    architecture, provenance = work.model.architecture, work.model.provenance
    settings = provenance.get("settings") or {}
    facts = {
        "folder": str(work.model.folder.path),
        "eats": "x".join(map(str, architecture.img_shape)),
        "latent": f"{architecture.latent_dim} values, {architecture.bottleneck} bottleneck",
        "trained": ", ".join(
            [f"{key.replace('_', ' ')} {settings[key]}" for key in ("beta", "epochs", "seed") if key in settings]
            + ([f"{provenance['training_seconds']:,.0f} s"] if provenance.get("training_seconds") else [])
        )
        or "not told by the folder",
        "measured on": f"{len(work.sample.frames):,} frames of {_files(work.recordings.held_out)}",
        "baselines fitted on": f"{len(work.training.frames):,} frames of {_files(work.recordings.training)}",
    }
    folder = result.page.parent / "pictures"
    return write_report_page(
        result.page,
        title="What the latents keep",
        lead=work.recordings.how,
        verdict=result.headline,
        findings=result.findings,
        facts=facts,
        parts=list(_parts(work, result, training_mse, folder)),
        footer=f"Made by latent-obs report on {time.strftime('%Y-%m-%d')} in {sum(work.seconds.values()):.0f} s; all "
        "numbers are "
        f"in {result.json.name}, beside this page.",
    )


def _parts(work: "Work", result: "ReportResult", training_mse: float | None, folder: Path) -> Iterator[Part]:
    if result.probes is not None:
        yield _probes(result.probes, folder)
    if result.reconstruction is not None:
        yield _reconstruction(work, result.reconstruction, training_mse, folder)
    yield _latents(result.latents, folder)
    if work.model.has_decoder:
        yield _decoded(work, folder)
    yield _stability(result.stability)
    if result.disentanglement is not None:
        yield _disentanglement(result.disentanglement)
    if result.not_measured:
        yield Part(
            "Not measured", "The verdict says nothing about these.",
            Table(("what", "why"), [(name, why) for name, why in result.not_measured.items()]),
        )  # fmt: skip


def _reconstruction(work: "Work", found: "Reconstruction", training_mse: float | None, folder: Path) -> Part:
    how = (
        f"Each of {found.frames:,} held-out frames is encoded to its mean latent and decoded. MSE: mean squared error of a "
        "value in "
        "0 to 1, less is better. PSNR: the same in decibels, more is better. SSIM: likeness of structure, 1 is identical. "
        "An encoder "
        "should beat PCA of its size clearly; the mean image is the floor."
    )
    rows = [_row(_NAMES[name], scores) for name, scores in found.scores.items()]
    if training_mse is not None:
        rows.append(("this encoder, training frames", _digits(training_mse), "", "", "", ""))
    if notes := "; ".join(f"{_NAMES[name]}: {note}" for name, note in found.notes.items()):
        how += f" {notes[0].upper()}{notes[1:]}."
    methods = [method for name, method in work.methods.items() if name in ("encoder", "pca", "autoencoder")]
    below = ", ".join(_NAMES[name] for name in work.methods if name in ("encoder", "pca", "autoencoder"))
    frames = work.sample.frames
    return Part(
        "Reconstruction", how, Table(("", "MSE", "PSNR [dB]", "SSIM", "median MSE", "worst MSE"), rows),
        [
            Shown(pictures.frames_above(folder / "worst.png", frames[found.worst], methods), "Worst frames",
                  "The worst first, of those that follow each other only one. Top row: the frames. Below, row by row: "
                  f"{below}. "
                  "What is missing here is missing from the latent, or was too small to count."),
            Shown(pictures.frames_above(folder / "best.png", frames[found.best], methods), "Best frames",
                  "The best first, in the same rows. Often these are plain walls or sky."),
            Shown(pictures.error_map(folder / "error_map.png", work.measured["encoder"].error_map), "Where the error is",
                  "Mean over all held-out frames. Bright places are drawn worst: usually where things move or edges "
                  "lie.", plot=True),
        ],
    )  # fmt: skip


def _latents(found: "Latents", folder: Path) -> Part:
    rows = [
        ("information, at most", f"{found.kl_nats:.1f} nats"),
        ("active dimensions", f"{found.active_units} of {found.latent_dim}"),
        ("effective dimensions", f"{found.effective_dimensions:.1f}"),
        ("mean absolute correlation of active dimensions", f"{found.mean_abs_correlation:.2f}"),
        ("largest absolute mean", f"{max(map(abs, found.aggregate_mean)):.2f}"),
        ("standard deviations", f"{min(found.aggregate_std):.2f} to {max(found.aggregate_std):.2f}"),
        ("largest absolute skewness", f"{max(map(abs, found.aggregate_skew)):.2f}"),
    ]
    if found.strongest_pair:
        i, j, r = found.strongest_pair
        rows.insert(4, ("strongest correlation", f"{r:.2f} (dimensions {i:.0f} and {j:.0f})"))
    return Part(
        "Latents", "What the encoder tells of a frame, over all held-out frames. A dimension is active if its mean varies "
        "by more "
        "than 0.01 (variance; Burda et al. 2016). Effective dimensions: over how many directions the variance of the means is "
        "spread. Means, standard deviations and skewness are those of the aggregate posterior; the prior has 0, 1 and 0.",
        Table(("", ""), rows),
        [
            Shown(pictures.kl_bars(folder / "kl.png", found), "Information of each dimension",
                  "KL from the prior in nats: how much a dimension tells of the frame, at most. Bars near zero are "
                  "unused.", plot=True),
            Shown(pictures.aggregate_posterior(folder / "aggregate.png", found), "Where the latents lie",
                  "Dots and bars inside the grey band look like the prior. An agent that gets others should have its "
                  "observations normalised.", plot=True),
            Shown(pictures.correlation_map(folder / "correlation.png", found), "Correlation of dimensions",
                  "Away from the diagonal, white is best: each dimension tells something of its own.", plot=True),
        ],
    )  # fmt: skip


def _decoded(work: "Work", folder: Path) -> Part:
    frames, model = work.sample.frames, work.model
    rng = np.random.default_rng(work.config.seed)
    count = min(_INTERPOLATIONS, len(frames) // 2)
    ends = frames[rng.permutation(len(frames))[: 2 * count]]
    middle = int(np.argsort(work.measured["encoder"].mse)[len(frames) // 2]) if "encoder" in work.measured else 0
    return Part(
        "What the decoder makes of latents", "The decoder only serves to look: an agent never uses it.", None,
        [
            Shown(pictures.traversals(folder / "traversals.png", model, frames[middle], frames[:512]), "Traversals",
                  "Each row moves one of the most informative dimensions from its 1st to its 99th percentile and leaves the "
                  "others "
                  "as they are in one frame. A row in which nothing moves tells little."),
            Shown(pictures.interpolations(folder / "interpolations.png", model, ends), "Interpolations",
                  "From one held-out frame (left end) to another (right end) in equal steps through the latents. Good "
                  "latents pass "
                  "through pictures that could be frames."),
            Shown(pictures.prior_samples(folder / "prior.png", model, seed=work.config.seed), "Samples from the prior",
                  "Latents drawn at random. With a small beta these need not look like frames, and an agent does not mind."),
        ],
    )  # fmt: skip


def _stability(found: Stability) -> Part:
    rows = [(f"one pixel {name}", _percent(value), "") for name, value in found.shift_by_direction.items()]
    rows += [
        ("one pixel, mean of the four", _percent(found.shift), _percent(found.shift_pixels)),
        (f"brightness ± {BRIGHTNESS_LEVELS} of 255", _percent(found.brightness), _percent(found.brightness_pixels)),
    ]
    if found.neighbours is not None and found.neighbours_pixels is not None:
        rows.append((f"next frame ({found.pairs:,} pairs)", _percent(found.neighbours), _percent(found.neighbours_pixels)))
    return Part(
        "Stability", "How far a small change moves the latent, as a share of the mean distance between two held-out frames at "
        "random: 100% would be as different as an unrelated frame. Beside it the same share of the pixels. A latent should "
        "move "
        "less than the pixels do, but it has to move: an agent must see small steps too.",
        Table(("change", "of the latent", "of the pixels"), rows),
    )  # fmt: skip


def _probes(found: "ProbeTable", folder: Path) -> Part:
    """The table of probes and their bars; baselines by their linear heads."""
    columns = [(name, head) for name in found.representations for head in ("linear", "mlp", "cnn")
               if any((r.representation, r.head) == (name, head) for r in found.results)]  # fmt: skip
    titles = [name if head == "cnn" else f"{name}, {'network' if head == 'mlp' else head}" for name, head in columns]
    rows: list[list[str]] = []
    for target in found.targets:
        cells = {(r.representation, r.head): r.main for r in found.results if r.target == target}
        metric = next(iter(cells.values())).metric
        kept = found.keeps(target)
        shown = [f"{cells[column].value:.2f}" if column in cells else "" for column in columns]
        rows.append([target, _METRICS.get(metric, metric), *shown, kept.verdict])
    drawn = [(column, title) for column, title in zip(columns, titles, strict=True) if column[1] != "mlp"]
    bars = {
        target: {
            title: _ends(r.main)
            for column, title in drawn
            for r in found.results
            if (r.target, (r.representation, r.head)) == (target, column)
        }
        for target in found.targets[:_SHOWN_TARGETS]
    }
    left_out = "".join(f" {name}: {why}." for name, why in list(found.left_out.items())[:10])
    return Part(
        "Probes: what an agent can read from the latents", "Small heads learn on training recordings to read what is known "
        "of the "
        "state, and are scored on held-out ones. R²: 1 is perfect, 0 is guessing. AUROC: 1 is perfect, 0.5 is guessing. "
        "Balanced "
        "accuracy: 1 is perfect. The network on the pixels tells what a frame shows at all; what it reads and a linear head "
        "on the "
        "latents does not was lost, or is tangled where a small network reads it. The latents should beat PCA and the random "
        f"encoder.{f' Note: {found.note}.' if found.note else ''}{f' Left out:{left_out}' if left_out else ''}",
        Table(("known value", "score", *titles, "the latents"), rows),
        [Shown(pictures.probe_bars(folder / "probes.png", bars, "score (0 or less is drawn as 0)"), "Probes side by side",
               "Longer is better; guessing gets 0 in R², and 0.5 in AUROC. Thin lines: 95% intervals, from resampling "
               f"{found.resampled}. Blue is this "
               "encoder.", plot=True)],
    )  # fmt: skip


def _disentanglement(found: dict[str, Any]) -> Part:
    names = {
        "mig": "MIG", "sap": "SAP", "dci_disentanglement": "DCI, disentanglement", "dci_completeness": "DCI, completeness",
        "dci_informativeness": "DCI, informativeness", "beta_vae": "beta-VAE score", "factor_vae": "FactorVAE score",
    }  # fmt: skip
    guess = {"beta_vae": found["chance"], "factor_vae": found["chance"]}
    rows = [(text, f"{found[key]:.3f}", f"{guess.get(key, 0.0):.2f}") for key, text in names.items()]
    return Part(
        "Disentanglement", "Whether each latent stands for one factor of the scenes, by published scores; 1 is best. An "
        "agent does "
        "not need it, except for informativeness: whether the factors are told at all.",
        Table(("score", "", "a guess gets"), rows),
    )  # fmt: skip


def _ends(score: "Score") -> tuple[float, float, float]:
    """A score with the ends of its interval; the score itself where there is none."""
    low, high = (score.value if end is None else end for end in (score.low, score.high))
    return score.value, low, high


def _row(name: str, scores: "Scores") -> tuple[str, ...]:
    similar = "too small" if scores.ssim is None else f"{scores.ssim:.3f}"
    return (name, _digits(scores.mse), f"{scores.psnr_db:.1f}", similar, _digits(scores.mse_median), _digits(scores.mse_worst))


def _digits(value: float) -> str:
    return f"{value:.5f}" if value < 0.1 else f"{value:.3f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _files(datasets: list[Any]) -> str:
    names = [Path(str(getattr(d, "filename", None) or "an array")).name for d in datasets]
    shown = ", ".join(names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 5 else ", ".join(names[:5])
