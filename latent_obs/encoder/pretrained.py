"""Networks of timm, by name, as encoders: a feature map, averaged over a grid, and its principal components.

Frames keep the size in which they were recorded, so that the environments of all encoders send the same; the network
resizes them to its own. Size, interpolation and scaling of pixels are those that timm states for the weights.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from latent_obs.encoder.components import principal_components
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.encoder.pca import arrays_of, evenly_spread, most_frames
from latent_obs.encoder.statistics import LatentStatistics
from latent_obs.encoder.timm_module import BATCH, PREFIX, GridFeatures, TimmLayer, make_network
from latent_obs.pixels import Frames
from latent_obs.util.errors import InputError, check_count, require
from latent_obs.util.progress import ProgressBar


def timm_encoder(
    name: str,
    frames: Frames | Sequence[Frames] | str | os.PathLike[str],
    pca: int = 256,
    *,
    layer: int = -1,
    grid: int = 4,
    weights: str | os.PathLike[str] | None = None,
    device: str | torch.device = "auto",
) -> FrozenEncoder:
    """Make an encoder of a pretrained network of timm and of frames, which are needed for its principal components.

    `save` writes an encoder folder like any other. To load it, timm must be installed, and nothing is downloaded.

    Args:
        name: "timm:" and a name that `timm.list_models(pretrained=True)` lists, such as "timm:resnet18.a1_in1k".
        frames: As for `PCA.fit`; RGB, and of the size in which the encoder gets them. At most 10,000 are used.
        pca: Number of principal components, the values of a latent. Of the smallest the deviation over frames is 1.
        layer: Which feature map: 0 is the first and largest one, -1 the last one; of a transformer, the patches after a
            block. What comes after it is left out, so that early maps take less time.
        grid: The map is averaged over grid x grid cells.
        weights: A file of weights of the whole network, in timm's names; by default timm downloads them.
        device: As for `FrozenEncoder`.

    Raises:
        InputError: timm has no such network, its weights cannot be loaded, it has no such layer, or `pca` is more than
            the map or the frames can give.
        MissingExtraError: timm is not installed.
    """
    check_count("pca", pca)
    check_count("grid", grid)
    parts, contract, provenance = arrays_of(frames)
    if contract.channels != 3:
        raise InputError(
            f"frames must have 3 channels, red, green and blue, as {name} takes them; got {contract.shape}"
        )
    network = make_network(name, weights, pretrained=True)
    stated = require("timm.data", extra="timm", purpose="").resolve_model_data_config(network)
    tag = network.pretrained_cfg["tag"]
    name = f"{PREFIX}{network.pretrained_cfg['architecture']}{f'.{tag}' if tag else ''}"  # the default tag may change
    described: TimmLayer = {
        "layer": layer,
        "grid": grid,
        "size": list(stated["input_size"][1:]),
        "interpolation": "bicubic" if stated["interpolation"] == "bicubic" else "bilinear",
    }
    how: dict[str, Any] = {"mean": stated["mean"], "std": stated["std"], "device": device, "name": name}
    module = GridFeatures(network, described)
    features = FrozenEncoder.from_module(module, contract, **how)
    total, size = sum(map(len, parts)), features.latent_dim
    count = min(total, most_frames(size))
    if pca > (most := min(size, count - 1)):
        raise InputError(
            f"pca must be at most {most}, got {pca}: layer {layer} of {name} has {size:,} values, averaged over "
            f"{grid}x{grid} cells, and {count:,} frames differ in {count - 1:,} directions"
        )
    flat = np.empty((count, size), np.float32)
    with ProgressBar(total=count, unit="frame", desc=name) as bar:
        for part, rows in zip(parts, evenly_spread(parts, count), strict=True):
            for start in range(0, len(rows), BATCH):
                batch = np.ascontiguousarray(part[rows[start : start + BATCH]])
                flat[bar.n : bar.n + len(batch)] = features.encode(batch)
                bar.update(len(batch))
    centre = flat.mean(0, dtype=np.float64).astype(np.float32)
    flat -= centre
    scale = float(np.sqrt(np.square(flat).mean(dtype=np.float64))) or 1.0
    flat /= scale  # so that directions in which nothing varies are recognized in maps of any scale
    _, spread, found = principal_components(torch.from_numpy(flat), pca)
    if len(spread) < pca:
        raise InputError(
            f"pca is {pca}, and layer {layer} of {name} varies in {len(spread)} directions only over these {total:,} "
            "frames; give fewer, or frames that differ more"
        )
    weight = (found.T / spread[-1]).contiguous()
    latents = (torch.from_numpy(flat) @ weight.T).numpy()
    module.project = nn.Linear(size, pca, device="meta")  # draws no random numbers
    module.project.weight = nn.Parameter(weight / scale)
    module.project.bias = nn.Parameter(-(weight.double() @ torch.from_numpy(centre).double() / scale).float())
    encoder = FrozenEncoder.from_module(module, contract, **how)
    explained = float(spread.square().sum()) / size
    encoder.provenance.update(provenance, frames=total, sampled=count, explained_variance=explained)
    encoder._statistics = LatentStatistics.from_latents(latents)
    return encoder
