"""The encoder: its architecture, its folder on disk, and the frozen network that computes mean latents."""

from typing import Literal

#: Kinds of layers between the convolutions and the latent; here, as settings name them and do without torch.
Bottleneck = Literal["dense", "spatial"]
