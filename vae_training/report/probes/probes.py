"""Probes: how well small heads read known state from latents, next to baselines and to a network on the pixels.

A linear probe tells what an agent's first layer can use at once; a small network tells what is there at all, tangled or
not; and the network on the pixels tells what a frame shows in the first place. What the pixels tell and the latent does
not was lost in compression. All scores are on recordings that no head learnt from.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latent_obs.util.errors import InputError
from vae_training.report.metrics.baselines import Representation
from vae_training.report.probes.heads import Floats, predict_cnn, predict_linear, predict_mlp
from vae_training.report.probes.scores import ProbeSplit, score_amounts, score_classes, split_recordings
from vae_training.report.probes.table import PIXELS, Head, ProbeResult, ProbeTable
from vae_training.report.probes.targets import Kind, Target, load_targets, prepare_targets

__all__ = ["PIXELS", "ProbeTable", "load_targets", "probe", "split_recordings"]

_CHUNK = 1024


def probe(
    representations: Sequence[Representation],
    frames_by_recording: Mapping[str, NDArray[np.uint8]],
    targets: Mapping[str, Mapping[str, NDArray[Any]]],
    *,
    held_out: Sequence[str] | None = None,
    seed: int = 0,
    mlp: bool = True,
    cnn: bool = True,
    cnn_steps: int = 1000,
    kinds: Mapping[str, Kind] | None = None,
    most_frames: int = 20_000,
    device: str = "auto",
    log: Callable[[str], object] | None = None,
) -> ProbeTable:
    """Score heads on representations, for each target.

    The same arguments and seed give the same table on the same kind of machine (a GPU, where the CNN uses one, may
    differ in the last digits).

    Args:
        representations: The encoder first, then what it is held against. Fit those that learn (PCA) on the frames of
            recordings that are not held out.
        frames_by_recording: For each recording its frames, uint8 (N, H, W, C) of one shape; memory maps will do. Pieces
            of one recording belong under one name.
        targets: For each recording its targets: for each name N numbers, NaN where not known; such as
            ``{name: targets_of(load_rows(file))}``, or `load_targets`. See `prepare_targets` for what is made of them.
        held_out: Recordings to score on; a quarter, drawn by the seed, when not given.
        seed: Of the split, the networks and the resampling.
        mlp: Train a small network per target and representation.
        cnn: Train a network on the pixels, the reference for what can be known.
        cnn_steps: Its gradient steps, at most; with fewer it is quicker, and a weaker reference.
        kinds: Kinds of targets, where the rule of `prepare_targets` is not what is wanted.
        most_frames: Of more frames than this, every k-th is used.
        device: Where the CNN computes.
        log: Called with a line as each part begins.

    Returns:
        Scores with intervals, and the targets that were left out.

    Raises:
        InputError: Frames or targets do not fit together, two representations share a name, or there is nothing to
            learn from.
        MissingExtraError: scikit-learn is not installed.

    Example:
        >>> from vae_training.report.metrics.baselines import Pca
        >>> rng = np.random.default_rng(0)
        >>> brightness = {name: rng.uniform(0, 255, 100) for name in "abcd"}
        >>> frames = {name: np.tile(b[:, None, None, None], (8, 8, 1)).astype(np.uint8) for name, b in brightness.items()}
        >>> pca = Pca.fit([frames["a"], frames["b"]], 1)
        >>> targets = {name: {"brightness": values} for name, values in brightness.items()}
        >>> table = probe([pca], frames, targets, held_out=["d"], mlp=False, cnn=False)
        >>> round(table.result("brightness", "PCA").main.value, 2)
        1.0
    """
    names = [representation.name for representation in representations]
    if not names or len(set(names)) < len(names) or PIXELS in names:
        raise InputError(f"representations need names of their own, and none is called {PIXELS!r}; got {names}")
    if len({frames.shape[1:] for frames in frames_by_recording.values()}) > 1:
        shapes = {name: frames.shape for name, frames in frames_by_recording.items()}
        raise InputError(f"recordings have frames of several shapes: {shapes}. Probe those of one shape together")
    say = log or (lambda _: None)
    split = split_recordings(frames_by_recording, held_out=held_out, seed=seed, most_frames=most_frames)
    chosen, left_out = prepare_targets(targets, split, kinds)
    results: dict[str, list[ProbeResult]] = {target.name: [] for target in chosen}
    seconds: dict[str, float] = {}

    def take(what: str, representation: str, head: Head, predict: Callable[[], list[Floats]]) -> None:
        say(f"probes: {what}")
        start = time.perf_counter()
        for target, predicted in zip(chosen, predict(), strict=True):
            results[target.name].append(_scored(target, predicted, split, representation, head, seed))
        seconds[what] = round(time.perf_counter() - start, 3)

    for representation in representations if chosen else ():
        start = time.perf_counter()
        vectors = _vectors(representation, frames_by_recording, split)
        seconds[f"{representation.name}, vectors"] = round(time.perf_counter() - start, 3)
        take(
            f"{representation.name}, linear", representation.name, "linear", lambda v=vectors: predict_linear(v, chosen)
        )
        if mlp:
            take(
                f"{representation.name}, mlp",
                representation.name,
                "mlp",
                lambda v=vectors: predict_mlp(v, chosen, seed=seed),
            )
    if cnn and chosen:
        pixels = np.concatenate([np.asarray(frames_by_recording[name][rows]) for name, rows in split.rows.items()])
        take(PIXELS, PIXELS, "cnn", lambda: predict_cnn(pixels, chosen, seed=seed, device=device, steps=cnn_steps))
    return ProbeTable(
        [result for target in chosen for result in results[target.name]],
        left_out,
        {"fit": list(split.fit), "validation": list(split.validation), "held_out": list(split.held_out)},
        split.resampled,
        split.note,
        seconds,
    )


def _vectors(
    representation: Representation, frames_by_recording: Mapping[str, NDArray[np.uint8]], split: ProbeSplit
) -> NDArray[np.float32]:
    """float32 (N, dim) of all frames of the split."""
    parts: list[NDArray[np.float32]] = []
    for name, rows in split.rows.items():
        for i in range(0, len(rows), _CHUNK):
            frames = np.asarray(frames_by_recording[name][rows[i : i + _CHUNK]])
            vectors = np.asarray(representation(frames), np.float32)
            if vectors.shape != (len(frames), representation.dim):
                raise InputError(
                    f"{representation.name} gave {vectors.shape} for {len(frames)} frames, expected ({len(frames)}, "
                    f"{representation.dim})"
                )
            if not np.isfinite(vectors).all():
                raise InputError(f"{representation.name} gave values that are not finite, for frames of {name}")
            parts.append(vectors)
    return np.concatenate(parts)


def _scored(
    target: Target, predicted: Floats, split: ProbeSplit, representation: str, head: Head, seed: int
) -> ProbeResult:
    """A line of the table."""
    units = split.unit[target.held_out]
    if target.classes:
        scores = score_classes(target.labels(target.held_out), predicted, units, seed)[::-1]  # the AUROC first
    else:
        scores = score_amounts(target.values[target.held_out], predicted, units, seed)
    return ProbeResult(
        target.name,
        target.kind,
        representation,
        head,
        scores,
        len(target.classes),
        len(target.fit) + len(target.validation),
        len(target.held_out),
    )
