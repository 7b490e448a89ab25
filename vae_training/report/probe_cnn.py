"""A network trained end to end from the pixels to all targets: how much of them a frame tells at all."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from latent_obs.device import resolve_device
from vae_training.report.probe_heads import Code, Floats, guess_the_mean
from vae_training.report.probe_targets import Target

_WIDTHS = (16, 32, 64, 64)
_LARGEST_MAP = 10  # halved until a side is no longer than this, so 8x8 of 64x64: what is where stays readable
_HIDDEN = 256
_BATCH, _CHECKS, _PATIENCE = 128, 25, 8  # frames; looks at the validation frames; how many of them without gain
_RATE, _DECAY = 2e-3, 1e-2
_CHUNK = 512


class _Cnn(nn.Module):
    """Strided convolutions, one hidden layer on the flattened map, and an output for each target."""

    def __init__(self, shape: tuple[int, int, int], outputs: int) -> None:
        super().__init__()
        height, width, channels = shape
        layers: list[nn.Module] = []
        stage = 0
        while stage == 0 or max(height, width) > _LARGEST_MAP:
            out = _WIDTHS[min(stage, len(_WIDTHS) - 1)]
            layers += [nn.Conv2d(channels, out, 4, 2, 1), nn.ReLU(inplace=True)]
            height, width, channels, stage = max(1, height // 2), max(1, width // 2), out, stage + 1
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(_HIDDEN), nn.ReLU(inplace=True))
        self.head = nn.Linear(_HIDDEN, outputs)
        guess_the_mean(self.head)

    def forward(self, x: Tensor) -> Tensor:
        """Float (n, C, H, W) to (n, outputs)."""
        return self.head(self.body(x))


def predict_cnn(
    frames: NDArray[np.uint8],
    targets: Sequence[Target],
    *,
    seed: int = 0,
    device: str | torch.device = "auto",
    steps: int = 1000,
) -> list[Floats]:
    """One network for all targets, trained on the frames where each is known.

    For each target the weights count that did best on its validation frames. Its scores are a lower bound of what a frame
    tells: a larger network, or more recordings, may read more.

    Args:
        frames: uint8 (N, H, W, C).
        targets: What to predict; all their rows are rows of `frames`.
        seed: Of weights and batches.
        device: Where to compute, as for `FrozenEncoder`.
        steps: Gradient steps of 128 frames, at most.

    Returns:
        For each target its predictions over `held_out`: (n,) in its own units, or (n, classes) scores.
    """
    place, rng = resolve_device(device), np.random.default_rng(seed)
    codes = [Code(target, place) for target in targets]
    rows = np.unique(np.concatenate([target.fit for target in targets]))
    member = [np.isin(np.arange(len(frames)), target.fit) for target in targets]
    columns = np.cumsum([0, *(target.outputs for target in targets)])
    look = _Look(frames, rows, place)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        height, width, channels = frames.shape[1:]
        network = _Cnn((height, width, channels), int(columns[-1]))
        network(torch.zeros(1, channels, height, width))  # tells the lazy layer its size
    network.to(place, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.AdamW(network.parameters(), _RATE, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps + 1, pct_start=0.1)

    def outputs_of(chosen: NDArray[np.intp]) -> Tensor:
        with torch.inference_mode():
            return torch.cat([network(look(chosen[i : i + _CHUNK])) for i in range(0, len(chosen), _CHUNK)])

    tune = np.unique(np.concatenate([target.validation for target in targets]))
    best, best_at, since = [np.inf] * len(targets), [0] * len(targets), 0
    states: dict[int, dict[str, Tensor]] = {}
    every = max(1, steps // _CHECKS)
    for step in range(steps + 1):
        if step % every == 0 or step == steps:
            outputs, since = outputs_of(tune), since + 1
            for i, code in enumerate(codes):
                at = np.searchsorted(tune, code.target.validation)
                loss = float(code.loss(outputs[at, columns[i] : columns[i + 1]], code.target.validation))
                if loss < best[i] * 0.999:
                    best[i], best_at[i], since = loss, step, 0
            if since == 0:
                states[step] = {name: value.detach().clone() for name, value in network.state_dict().items()}
            states = {at: state for at, state in states.items() if at in best_at}
            if since >= _PATIENCE:
                break
        batch = rows[rng.integers(len(rows), size=_BATCH)]
        outputs = network(look(batch))
        losses: list[Tensor] = []
        for i, code in enumerate(codes):
            at = np.flatnonzero(member[i][batch])
            if len(at):
                losses.append(code.loss(outputs[at, columns[i] : columns[i + 1]], batch[at]))
        optimizer.zero_grad(set_to_none=True)
        torch.stack(losses).sum().backward()
        optimizer.step()
        schedule.step()
    predictions: dict[int, Floats] = {}
    for at, state in states.items():
        network.load_state_dict(state)
        theirs = [i for i, step in enumerate(best_at) if step == at]
        union = np.unique(np.concatenate([targets[i].held_out for i in theirs]))
        outputs = outputs_of(union)
        for i in theirs:
            chosen = np.searchsorted(union, targets[i].held_out)
            predictions[i] = codes[i].decode(outputs[chosen, columns[i] : columns[i + 1]])
    return [predictions[i] for i in range(len(targets))]


class _Look:
    """Frames by number as the network sees them: less the mean image, so that what stays the same does not drown the rest."""

    def __init__(self, frames: NDArray[np.uint8], rows: NDArray[np.intp], device: torch.device) -> None:
        self._frames, self._device = frames, device
        total = np.zeros(frames.shape[1:], np.int64)
        squares = 0.0
        for i in range(0, len(rows), _CHUNK):
            chunk = frames[rows[i : i + _CHUNK]]
            total += chunk.sum(0, dtype=np.int64)
            squares += float(np.square(chunk.astype(np.float32)).sum(dtype=np.float64))
        mean = total / len(rows)
        variance = squares / len(rows) / mean.size - float(np.square(mean).mean())
        self._mean = torch.from_numpy(mean).to(device, torch.float32).permute(2, 0, 1)  # (C, H, W)
        self._scale = max(variance, 1.0) ** -0.5

    def __call__(self, rows: NDArray[np.intp]) -> Tensor:
        """float32 (n, C, H, W), channels last in memory."""
        batch = torch.from_numpy(self._frames[rows]).to(self._device)
        return (batch.permute(0, 3, 1, 2).float() - self._mean) * self._scale
