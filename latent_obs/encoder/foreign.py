"""Any torch module as the network of a frozen encoder, for `FrozenEncoder.from_module`."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from latent_obs.pixels import Frames, PixelContract
from latent_obs.util.errors import EncoderFolderError, InputError
from latent_obs.util.words import counted

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
        self.module = copied(module)
        centre = np.array([0.0] * channels if mean is None else mean, np.float64)
        spread = np.array([1.0] * channels if std is None else std, np.float64)
        for name, values in (("mean", centre), ("std", spread)):
            fits = values.shape == (channels,) and np.isfinite(values).all()
            if not fits or (name == "std" and values.min() <= 0):
                raise InputError(
                    f"{name} must be {counted(channels, 'number')}, one a channel, std above 0; got {values}"
                )
        self.register_buffer("scale", torch.from_numpy(1 / (255 * spread)).float(), persistent=False)
        self.register_buffer("shift", torch.from_numpy(-centre / spread).float(), persistent=False)
        self.scaling = {"mean": mean, "std": std}
        self.dtype = dtype
        self.channels_last = True
        self.float()

    @torch.inference_mode()
    def forward(self, frames: Tensor) -> Tensor:
        """Outputs, flattened to float32 (N, d) in memory of their own, of frames uint8 (N, h, w, c)."""
        return _flat(self._module_output(frames, self.dtype))

    @torch.inference_mode()
    def mean_of_frames(self, frames: Frames) -> NDArray[np.float32]:
        """The outputs in float32 (N, d), of an array uint8 (N, h, w, c): the definition that others compare with."""
        tensor = torch.from_numpy(frames).to(self.scale.device)
        return _flat(self._module_output(tensor, torch.float32)).cpu().numpy()

    def _module_output(self, frames: Tensor, dtype: torch.dtype) -> Any:
        x = torch.addcmul(self.shift, frames.float(), self.scale).permute(0, 3, 1, 2)
        half = dtype != torch.float32
        with torch.autocast(frames.device.type, dtype, enabled=half, cache_enabled=False):
            return self.module(x if self.channels_last else x.contiguous())

    @torch.inference_mode()
    def measure(self, contract: PixelContract) -> int:
        """The number of values in a latent, by a dry run; an `InputError` if the module cannot be an encoder."""
        name = f"module {type(self.module).__name__}"
        noise = np.random.default_rng(0).integers(0, 256, (3, *contract.shape), np.uint8)
        frames = torch.from_numpy(noise).to(self.scale.device)
        with torch.random.fork_rng(devices=[]):  # a module that draws random numbers is rejected below
            try:
                try:
                    output = self._module_output(frames, self.dtype)
                except RuntimeError:  # perhaps a .view() of a map with channels last in memory
                    self.channels_last = False
                    self.module.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
                    output = self._module_output(frames, self.dtype)
            except Exception as error:  # whatever the module raises
                shape = (len(noise), contract.channels, contract.height, contract.width)
                raise InputError(
                    f"{name} cannot take float32 {shape}, pixels of its contract: {error}. Give the PixelContract of "
                    "the frames that it takes, or wrap it in a module that takes these"
                ) from error
            got = f"{output.dtype} {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            is_float = isinstance(output, Tensor) and output.is_floating_point()
            if not is_float or output.dim() < 2 or len(output) != len(frames) or output.numel() == 0:
                raise InputError(f"{name} must return one float tensor (N, ...) for N frames, got {got} for 3")
            together = output.flatten(1).float().clone()
            alone = torch.cat([self(frames[i : i + 1]) for i in range(len(frames))])
        if not bool((alone - together).abs().max() <= _ALLOWED * together.abs().max()):  # also if it is NaN
            raise InputError(
                f"{name} must give a frame always the same latent of finite numbers, and gives another one in a batch "
                "than alone: it draws random numbers, mixes frames, or has weights that are not finite"
            )
        return together.shape[1]


def _flat(output: Tensor) -> Tensor:
    """Outputs as float32 (N, d), in memory of their own: a module may return memory that it keeps."""
    return output.flatten(1).float().clone(memory_format=torch.contiguous_format)


def with_weights(module: nn.Module, weights: Mapping[str, Tensor], where: object) -> nn.Module:
    """A copy of a module with the weights of an encoder folder; an `EncoderFolderError` if they are of another one."""
    own = copied(module).float()
    try:
        own.load_state_dict(dict(weights), strict=True)
    except RuntimeError as error:  # names or shapes differ
        raise EncoderFolderError(f"{where}: the weights do not fit module {type(module).__name__}: {error}") from None
    return own


def copied(module: nn.Module) -> nn.Module:
    """A copy of a module, or an `InputError`."""
    if not isinstance(module, nn.Module):
        raise InputError(f"module must be a torch.nn.Module, got {type(module).__module__}.{type(module).__name__}")
    try:
        return copy.deepcopy(module)
    except Exception as error:  # whatever a part of it raises
        raise InputError(f"module {type(module).__name__} cannot be copied, to freeze the copy: {error}") from error
