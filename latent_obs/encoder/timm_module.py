"""A feature map of a network of timm as a module: what an encoder folder of one is made again from."""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from latent_obs.util.errors import InputError, one_line, require

#: What the name of such a network begins with.
PREFIX = "timm:"
#: Frames in one pass: the maps of a network for large pictures take megabytes a frame.
BATCH = 64


class TimmLayer(TypedDict):
    """What config.json says of a network of timm, besides its name."""

    layer: int  # number of its feature map, negative from the end
    grid: int  # side of the grid of cells over which the map is averaged
    size: list[int]  # height and width of the pictures that the network takes
    interpolation: str  # how frames are resized to that


class GridFeatures(nn.Module):
    """A feature map of a network of timm, averaged over a grid of cells, flattened and projected.

    It takes ownership of the network, and removes the layers after the map.
    """

    project: nn.Module

    def __init__(self, network: Any, described: TimmLayer) -> None:
        super().__init__()
        self.described = {"timm": dict(described)}
        self.size, self.mode, self.grid = tuple(described["size"]), described["interpolation"], described["grid"]
        try:
            self.taken = network.prune_intermediate_layers([described["layer"]], prune_norm=False, prune_head=True)
        except AssertionError as error:  # timm's words, with the range
            raise InputError(f"layer {described['layer']} is none of this network: {error}") from None
        self.network, self.project = network, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Latents float32 (N, latent_dim) of frames (N, C, H, W), scaled as the network takes them."""
        return torch.cat([self._latents(part) for part in x.split(BATCH)])

    def _latents(self, x: Tensor) -> Tensor:
        if x.shape[2:] != self.size:
            x = functional.interpolate(x, self.size, mode=self.mode, antialias=True)
        how: dict[str, Any] = {"norm": True, "output_fmt": "NCHW", "intermediates_only": True}
        (features,) = self.network.forward_intermediates(x, indices=self.taken, **how)
        return self.project(functional.adaptive_avg_pool2d(features, self.grid).flatten(1))


def network_name(name: str) -> str:
    """The name as timm has it, without "timm:"; an `InputError` if timm has no such network."""
    timm = require("timm", extra="timm", purpose=f"make the network {name}")
    own, known = name.removeprefix(PREFIX), [*timm.list_models(pretrained=True), *timm.list_models()]
    if own not in known:
        near = ", ".join(PREFIX + one for one in difflib.get_close_matches(own, known, n=3))
        raise InputError(
            f"{name}: timm {timm.__version__} has no network of this name"
            + (f"; close ones are {near}" if near else "; timm.list_models(pretrained=True) lists all")
        )
    return own


def make_network(name: str, weights: str | os.PathLike[str] | None = None, *, pretrained: bool = False) -> Any:
    """A network of timm, with the weights of a file, with timm's if `pretrained`, or else with random ones."""
    own = network_name(name)
    timm = require("timm", extra="timm", purpose=f"make the network {name}")
    if weights is not None and not Path(weights).is_file():
        raise InputError(f"weights: there is no file {weights}")
    file = "" if weights is None else os.fspath(weights)
    try:
        with torch.random.fork_rng(devices=[]):
            network = timm.create_model(own, pretrained=pretrained and not file)
            if file:
                timm.models.load_checkpoint(network, file, weights_only=True)  # unpickles no code; not timm's default
    except Exception as error:  # of timm, of the hub's client, of torch
        if file:
            raise InputError(f"weights: {file} does not fit {name}: {one_line(error)}") from error
        raise InputError(
            f"{name}: its weights cannot be loaded ({one_line(error)}). timm downloads them at the first use; without "
            "a network give a file of them as weights"
        ) from error
    if not hasattr(network, "forward_intermediates") or not hasattr(network, "prune_intermediate_layers"):
        raise InputError(f"{name} has no feature maps that timm can give; choose another network")
    return network


def made_again(name: str, described: TimmLayer, weights: Mapping[str, Tensor]) -> nn.Module:
    """The module of an encoder folder, before it gets its weights."""
    module = GridFeatures(make_network(name), described)
    shape = weights["project.weight"].shape if "project.weight" in weights else ()
    with torch.random.fork_rng(devices=[]):
        module.project = nn.Linear(shape[1], shape[0]) if len(shape) == 2 else nn.Linear(1, 1)
    return module
