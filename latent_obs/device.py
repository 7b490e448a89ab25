"""Which device to compute on: the one asked for, or an error; never a silent replacement."""

import torch

from latent_obs.errors import DeviceError


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The torch device for a name.

    Args:
        device: "auto" (CUDA, else Apple's MPS, else the CPU), or a name such as "cpu", "cuda", "cuda:1", "mps".

    Raises:
        DeviceError: The device named is not there; a GPU that was asked for is never replaced by the CPU.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    if str(device) == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise DeviceError(f"device {str(device)!r} is unknown; expected auto, cpu, cuda, cuda:N or mps") from None
    if wanted.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            built = "this torch was built for the CPU only" if torch.version.cuda is None else "torch finds no CUDA GPU"
            raise DeviceError(f"device {str(device)!r} was asked for, but {built}. Use device='cpu', or see nvidia-smi")
        if (wanted.index or 0) >= count:
            raise DeviceError(f"device {str(device)!r} was asked for, but there are {count} GPU(s), numbered from 0")
        return torch.device("cuda", wanted.index if wanted.index is not None else torch.cuda.current_device())
    if wanted.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device 'mps' was asked for, but this machine or torch build has none. Use device='cpu'")
    if wanted.type == "meta":
        raise DeviceError("device 'meta' computes nothing; expected auto, cpu, cuda, cuda:N or mps")
    try:
        torch.empty(1, device=wanted)
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        raise DeviceError(f"device {str(device)!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return wanted
