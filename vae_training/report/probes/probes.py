"""Probes: how well small heads read known state from latents, next to baselines and to a network on the pixels.

A linear probe shows what an agent's first layer can use at once; a small network shows what is there at all, tangled or
not; and the network on the pixels shows what a frame holds in the first place. What is in the pixels and not in the
latent was lost in compression. All scores are on recordings that no head learnt from.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latent_obs.util.errors import InputError
from vae_training.report.metrics.baselines import Representation
from vae_training.report.probes.heads import Floats, predict_cnn, predict_linear, predict_mlp
from vae_training.report.probes.scores import ProbeSplit, score_amounts, score_classes, split_recordings
from vae_training.report.probes.table import PIXELS, Head, ProbeResult, ProbeTable
from vae_training.report.probes.targets import prepare_targets

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
    most_frames: int = 20_000,
    device: str = "auto",
    log: Callable[[str], object] | None = None,
) -> ProbeTable:
    """Score heads on representations, for each target.

    The same arguments and seed give the same table on the same kind of machine (a GPU, where the CNN uses one, may
    differ in the last digits).

    Args:
        representations: The encoder first, then what it is compared with. Fit those that learn (PCA) on the frames of
            recordings that are not held out.
        frames_by_recording: For each recording its frames, uint8 (N, H, W, C) of one shape; memory maps will do. Pieces
            of one recording belong under one name.
        targets: For each recording its targets: for each name N numbers, NaN where not known; such as
            ``{name: targets_of(load_rows(file))}``, or `load_targets`. `prepare_targets` sorts them.
        held_out: Recordings to score on; a quarter, drawn by the seed, when not given.
        seed: Of the split, the networks and the resampling.
        mlp: Train a small network per target and representation.
        cnn: Train a network on the pixels, the reference for what can be known.
        cnn_steps: Its gradient steps, at most; with fewer it is quicker, and a weaker reference.
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
        >>> frames = {k: np.tile(b[:, None, None, None], (8, 8, 1)).astype(np.uint8) for k, b in brightness.items()}
        >>> pca = Pca.fit([frames["a"], frames["b"]], 1)
        >>> targets = {name: {"brightness": values} for name, values in brightness.items()}
        >>> table = probe([pca], frames, targets, held_out=["d"], mlp=False, cnn=False)
        >>> round(table.result("brightness", "PCA").main.value, 2)
        1.0
    """
    names = [representation.name for representation in representations]
    if not names or len({*names, PIXELS}) <= len(names):
        raise InputError(f"representations must have names of their own, none of them {PIXELS!r}, got {names}")
    if len(shapes := {frames.shape[1:] for frames in frames_by_recording.values()}) > 1:
        raise InputError(f"frames_by_recording must hold frames of one shape, got {sorted(shapes)}")
    split = split_recordings(frames_by_recording, held_out=held_out, seed=seed, most_frames=most_frames)
    chosen, left_out = prepare_targets(targets, split)
    results: dict[str, list[ProbeResult]] = {target.name: [] for target in chosen}
    seconds: dict[str, float] = {}

    def score(representation: str, head: Head, predict: Callable[[], list[Floats]]) -> None:
        what = f"{representation}, {head}" if head != "cnn" else PIXELS
        if log:
            log(f"probes: {what}")
        start = time.perf_counter()
        for target, predicted in zip(chosen, predict(), strict=True):
            units = split.unit[target.held_out]
            if target.classes:  # the AUROC first
                scores = score_classes(target.labels(target.held_out), predicted, units, seed)[::-1]
            else:
                scores = score_amounts(target.values[target.held_out], predicted, units, seed)
            learned, scored = len(target.fit) + len(target.validation), len(target.held_out)
            line = (target.name, target.kind, representation, head, scores, len(target.classes), learned, scored)
            results[target.name].append(ProbeResult(*line))
        seconds[what] = round(time.perf_counter() - start, 3)

    for representation in representations if chosen else ():
        start = time.perf_counter()
        vectors = _vectors(representation, frames_by_recording, split)
        seconds[f"{representation.name}, vectors"] = round(time.perf_counter() - start, 3)
        score(representation.name, "linear", partial(predict_linear, vectors, chosen))
        if mlp:
            score(representation.name, "mlp", partial(predict_mlp, vectors, chosen, seed=seed))
    if cnn and chosen:
        pixels = np.concatenate([np.asarray(frames_by_recording[name][rows]) for name, rows in split.rows.items()])
        score(PIXELS, "cnn", partial(predict_cnn, pixels, chosen, seed=seed, device=device, steps=cnn_steps))
    lines = [result for target in chosen for result in results[target.name]]
    return ProbeTable(lines, left_out, split.recordings, split.resampled, split.note, seconds)


def _vectors(
    representation: Representation, frames_by_recording: Mapping[str, NDArray[np.uint8]], split: ProbeSplit
) -> NDArray[np.float32]:
    """float32 (N, dim) of all frames of the split."""
    parts: list[NDArray[np.float32]] = []
    for name, rows in split.rows.items():
        for i in range(0, len(rows), _CHUNK):
            parts.append(representation(np.asarray(frames_by_recording[name][rows[i : i + _CHUNK]])))
            if not np.isfinite(parts[-1]).all():
                raise InputError(f"{representation.name} gave values that are not finite, for frames of {name}")
    return np.concatenate(parts)
