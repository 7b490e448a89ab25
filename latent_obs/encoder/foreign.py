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
    """A frozen copy of a module, with the scaling of its pixels before it; arguments as for `from_module`."""

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        module: nn.Module,
        channels: int,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise InputError(f"module must be a torch.nn.Module, got {type(module).__module__}.{type(module).__name__}")
        try:
            self.module = copy.deepcopy(module)
        except Exception as error:  # whatever a part of it raises
            raise InputError(
                f"module {type(module).__name__} must be copied to be frozen, and cannot: {error}"
            ) from error
        centre = np.array([0.0] * channels if mean is None else mean, np.float64)
        spread = np.array([1.0] * channels if std is None else std, np.float64)
        for name, values, least in (("mean", centre, -np.inf), ("std", spread, 0.0)):
            if values.shape != (channels,) or not np.isfinite(values).all() or not (values > least).all():
                what = "positive number" if name == "std" else "number"
                raise InputError(f"{name} must have a {what} for each of the {channels} channel(s), got {values}")
        self.register_buffer("scale", torch.from_numpy(1 / (255 * spread)).float(), persistent=False)
        self.register_buffer("shift", torch.from_numpy(-centre / spread).float(), persistent=False)
        self.dtype = dtype
        self.channels_last = True
        self.latent_dim = 0  # until `measure`
        self.float()

    @torch.inference_mode()
    def forward(self, frames: Tensor) -> Tensor:
        """Outputs, flattened to float32 (N, d) in memory of their own, of frames uint8 (N, h, w, c)."""
        output = self._module_output(frames)
        assert isinstance(output, Tensor)  # `measure` has checked it
        # A copy, as a module may return memory that it keeps.
        return output.flatten(1).float().clone(memory_format=torch.contiguous_format)

    def _module_output(self, frames: Tensor) -> object:
        x = torch.addcmul(self.shift, frames.float(), self.scale).permute(0, 3, 1, 2)
        if not self.channels_last:
            x = x.contiguous()
        half = self.dtype != torch.float32
        with torch.autocast(frames.device.type, self.dtype, enabled=half, cache_enabled=False):
            return self.module(x)

    @torch.inference_mode()
    def measure(self, contract: PixelContract, latent_dim: int | None) -> None:
        """Set `latent_dim` by a dry run on the module's device; an `InputError` if it cannot be an encoder."""
        name = f"module {type(self.module).__name__}"
        noise = np.random.default_rng(0).integers(0, 256, (3, *contract.shape), np.uint8)
        frames = torch.from_numpy(noise).to(self.scale.device)
        with torch.random.fork_rng(devices=[]):  # a module that draws random numbers is rejected below
            try:
                try:
                    output = self._module_output(frames)
                except RuntimeError:  # perhaps a .view() of a map with channels last in memory
                    self.channels_last = False
                    self.module.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
                    output = self._module_output(frames)
            except Exception as error:  # whatever the module raises
                shape = (len(noise), contract.channels, contract.height, contract.width)
                raise InputError(
                    f"{name} cannot take float32 {shape}, pixels of its contract: {error}. Give the PixelContract of "
                    "the frames that it takes, or wrap it in a module that takes these"
                ) from error
            if not isinstance(output, Tensor) or not output.is_floating_point() or output.dim() < 2:
                got = f"{output.dtype} {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
                raise InputError(f"{name} must return one float tensor (N, ...), such as pooled features, got {got}")
            if len(output) != len(noise):
                raise InputError(f"{name} returns {tuple(output.shape)} for {len(noise)} frames, expected (N, ...)")
            together = output.flatten(1).float().clone()
            alone = torch.cat([self(frames[i : i + 1]) for i in range(len(frames))])
        found = together.shape[1]
        if found == 0 or latent_dim not in (None, found):
            raise InputError(f"{name} gives {found} numbers a frame, expected latent_dim={latent_dim or '1 or more'}")
        if not bool(torch.isfinite(together).all()):
            raise InputError(f"{name} gives numbers that are not finite for frames of noise: check its weights")
        if not bool((alone - together).abs().max() <= _ALLOWED * together.abs().max()):
            raise InputError(
                f"{name} must always give a frame the same latent, and gives it another one in a batch than alone: it "
                "draws random numbers, or mixes frames, also in eval mode"
            )
        self.latent_dim = found
