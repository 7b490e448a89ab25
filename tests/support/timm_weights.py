"""Small networks of timm with random weights, in files: what timm would download is not at hand in tests."""

from pathlib import Path
from typing import Any

import torch


def random_weights(name: str, folder: Path) -> Path:
    """A file of random weights of a network of timm, with other statistics of batches than the first ones."""
    import timm
    from safetensors.torch import save_file

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: Any = timm.create_model(name)
        network.train()(torch.rand(4, *network.pretrained_cfg["input_size"]))
    file = folder / f"{name}.safetensors"
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, file)
    return file
