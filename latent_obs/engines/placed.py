"""Networks built from weights, frozen, and put on a device."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from latent_obs.architecture import Architecture


def built(kind: Any, architecture: Architecture, weights: Mapping[str, Tensor]) -> Any:
    """An `Encoder` or `Decoder` with these weights.

    Raises:
        RuntimeError: Their names or shapes are others.
    """
    # Random first weights are drawn only to be replaced: the agent's own random numbers stay as they were seeded.
    with torch.random.fork_rng(devices=[]):
        network = kind(architecture).float()  # whatever torch's default dtype is
    network.load_state_dict(dict(weights), strict=True)
    return network


def placed(network: Any, device: torch.device) -> Any:
    """A network frozen, and moved to where it computes."""
    network.eval().requires_grad_(False)
    # Frames arrive with channels last, and stay so: no transposition on the way in, and faster convolutions.
    as_frames = getattr(network, "channels_last", True)  # a `ForeignNetwork` has found out what it can take
    return network.to(device, memory_format=torch.channels_last if as_frames else torch.contiguous_format)
