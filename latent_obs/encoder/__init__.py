"""The encoder: its architecture, its folder on disk, and the frozen network that computes mean latents."""

from typing import Literal

# Settings name these, and do without torch.
#: Kinds of layers between the convolutions and the latent.
Bottleneck = Literal["dense", "spatial"]
#: Libraries that encode, and number formats of the layers.
Backend = Literal["auto", "torch", "openvino"]
Precision = Literal["auto", "float32", "bfloat16"]
#: How frames of another aspect ratio become the encoder's.
Crop = Literal["none", "center-square"]
