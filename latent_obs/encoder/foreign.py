"""Any torch module as the network of a frozen encoder, for `FrozenEncoder.from_module`."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from latent_obs.pixels import PixelContract
from latent_obs.util.errors import InputError

_ALLOWED = 1e-2  # of the largest output: far above rounding, far below what dropout or statistics of a batch do


class ForeignNetwork(nn.Module):
    """A copy of a module, frozen, with the scaling of its pixels before it.

    Args:
        module: Takes float32 (N, C, H, W), gives (N, ...). It is copied, and left as it is.
        channels: Number of channels C.
        mean: What is subtracted from pixels in [0, 1], per channel; None for nothing.
        std: What they are divided by then; None for nothing.

    Raises:
        InputError: The module cannot be copied, or `mean` or `std` has another length or a zero.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, module: nn.Module, channels: int, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise InputError(
                f"from_module takes a torch.nn.Module, got {type(module).__module__}.{type(module).__name__}"
            )
        try:
            self.module = copy.deepcopy(module)
        except Exception as error:  # whatever a part of it raises
            raise InputError(
                f"the module {type(module).__name__} cannot be copied, so it cannot be frozen: {error}"
            ) from error
        centre, spread = (_per_channel(values, name, channels) for values, name in ((mean, "mean"), (std, "std")))
        centre = torch.zeros(channels, dtype=torch.float64) if centre is None else centre
        spread = torch.ones(channels, dtype=torch.float64) if spread is None else spread
        if not bool((spread > 0).all()):
            raise InputError(f"std must be positive, got {tuple(std or ())}")
        self.register_buffer("scale", (1 / (255 * spread)).float(), persistent=False)
        self.register_buffer("shift", (-centre / spread).float(), persistent=False)
        self.dtype = torch.float32
        self.channels_last = True
        self.float()

    def features(self, frames: Tensor) -> object:
        """What the module itself gives for frames uint8 (N, h, w, c)."""
        x = torch.addcmul(self.shift, frames.float(), self.scale).permute(0, 3, 1, 2)
        if not self.channels_last:
            x = x.contiguous()
        half = self.dtype != torch.float32
        with torch.autocast(frames.device.type, self.dtype, enabled=half, cache_enabled=False):
            return self.module(x)

    def forward(self, frames: Tensor) -> Tensor:
        """Outputs, flattened to float32 (N, d), of frames uint8 (N, h, w, c)."""
        output = self.features(frames)
        assert isinstance(output, Tensor)  # `measure` has seen to that
        return output.flatten(1).float().clone()

    @torch.inference_mode()
    def measure(self, contract: PixelContract, latent_dim: int | None) -> int:
        """The number of outputs per frame, from a dry run on the module's device.

        Raises:
            InputError: The module cannot be an encoder, for the reason given.
        """
        with torch.random.fork_rng(devices=[]):  # some modules draw numbers, and are refused for it
            return self._measure(contract, latent_dim)

    def _measure(self, contract: PixelContract, latent_dim: int | None) -> int:
        name = type(self.module).__name__
        noise = np.random.default_rng(0).integers(0, 256, (3, *contract.shape), np.uint8)
        frames = torch.from_numpy(noise).to(self.scale.device)
        shape = (len(noise), contract.channels, contract.height, contract.width)
        try:
            try:
                output = self.features(frames)
            except RuntimeError:  # a .view() of what lies in memory with channels last, perhaps
                self.channels_last = False
                self.module.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
                output = self.features(frames)
        except Exception as error:  # whatever the module raises
            raise InputError(
                f"the module {name} cannot take float32 {shape}, pixels of its contract: {error}. Give the PixelContract of "
                "the frames that it takes, or wrap it in a module that takes these"
            ) from error
        wanted = "Wrap it in a module whose forward returns one float tensor (N, ...), such as its pooled features"
        if not isinstance(output, Tensor) or not output.is_floating_point():
            got = f"a tensor of {output.dtype}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise InputError(f"the module {name} returns {got} and no tensor of floats. {wanted}")
        if output.dim() < 2 or len(output) != len(noise):
            raise InputError(f"the module {name} returns {tuple(output.shape)} for {len(noise)} frames. {wanted}")
        found = output.flatten(1).shape[1]
        if found == 0 or (latent_dim is not None and latent_dim != found):
            expected = "at least one" if latent_dim is None else f"latent_dim={latent_dim}"
            raise InputError(
                f"the module {name} gives {found} numbers a frame ({tuple(output.shape)}), expected {expected}"
            )
        together = output.float().clone()  # a module may hand out memory that it keeps
        if not bool(torch.isfinite(together).all()):
            raise InputError(
                f"the module {name} gives numbers that are not finite for frames of noise: check its weights"
            )
        alone = torch.cat([ForeignNetwork.forward(self, frames[i : i + 1]) for i in range(len(frames))])
        if not bool((alone - together.flatten(1)).abs().max() <= _ALLOWED * together.abs().max()):
            raise InputError(
                f"the module {name} gives other numbers for a frame alone than in a batch: it draws random numbers, or mixes "
                "the frames of a batch, also in eval mode. An encoder must give a frame the same latent always"
            )
        return found


def _per_channel(values: Sequence[float] | None, name: str, channels: int) -> Tensor | None:
    """One float64 per channel."""
    if values is None:
        return None
    tensor = torch.tensor([float(value) for value in values], dtype=torch.float64)
    if tensor.shape != (channels,) or not bool(torch.isfinite(tensor).all()):
        raise InputError(f"{name} must have a number for each of the {channels} channel(s), got {tuple(values)}")
    return tensor
