"""The heads that predict targets: linear ones, small networks on a representation, and a network on the pixels.

All see the rows that a target names, and no others: `fit` to learn, `validation` to choose how much to shrink the
weights or when to stop, `held_out` to predict.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from torch import Tensor, nn

from latent_obs.util.device import resolve_device
from latent_obs.util.errors import require
from vae_training.report.probes.targets import Target

Floats = NDArray[np.float64]
_RIDGE = np.logspace(-6, 1, 15)  # times the number of frames; inputs have variance 1
_LOGISTIC = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # scikit-learn's C: the larger, the freer the weights

_MLP_WIDTH, _MLP_BATCH = 128, 256
_MLP_STEPS, _MLP_CHECK, _MLP_PATIENCE = 1500, 50, 6  # gradient steps; how many between looks; looks without gain
_MLP_RATE, _MLP_DECAY = 2e-3, 1e-2


def predict_linear(inputs: NDArray[np.float32], targets: Sequence[Target]) -> list[Floats]:
    """Ridge regression for amounts, logistic regression with balanced classes for classes.

    Inputs are standardized over the frames learnt from. The strength of the penalty is the one that does best on the
    validation frames; then the probe is fitted to both parts with it.

    Args:
        inputs: float32 (N, D).
        targets: What to predict.

    Returns:
        For each target its predictions over `held_out`: (n,) in its own units, or (n, classes) log-probabilities.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    linear_model = require("sklearn.linear_model", extra="report", purpose="fit linear probes")
    wide = inputs.astype(np.float64)
    predictions: dict[str, Floats] = {}
    groups: dict[tuple[bytes, ...], list[Target]] = {}
    for target in targets:
        if target.classes:
            predictions[target.name] = _logistic(linear_model, wide, target)
        else:  # amounts known in the same frames are solved for together
            groups.setdefault(
                tuple(rows.tobytes() for rows in (target.fit, target.validation, target.held_out)), []
            ).append(target)
    for group in groups.values():
        for target, predicted in zip(group, _ridge(linear_model, wide, group).T, strict=True):
            predictions[target.name] = predicted
    return [predictions[target.name] for target in targets]


def _ridge(linear_model: Any, inputs: Floats, group: Sequence[Target]) -> Floats:
    """Predictions (n, targets) over the held-out rows that the group shares; a strength for each target."""
    ridge = linear_model.Ridge
    fit, validation, held_out = group[0].fit, group[0].validation, group[0].held_out
    y = np.stack([target.values for target in group], 1)  # (N, targets)
    x, tune = _standardized(inputs, fit, fit, validation)
    errors: list[Floats] = []
    for strength in _RIDGE:
        fitted = ridge(alpha=strength * len(fit), solver="cholesky").fit(x, y[fit])
        errors.append(np.square(fitted.predict(tune).reshape(-1, len(group)) - y[validation]).mean(0))
    chosen = _RIDGE[np.argmin(errors, axis=0)]  # (targets,)
    learn = np.concatenate([fit, validation])
    x, test = _standardized(inputs, learn, learn, held_out)
    return ridge(alpha=chosen * len(learn), solver="cholesky").fit(x, y[learn]).predict(test).reshape(-1, len(group))


def _logistic(linear_model: Any, inputs: Floats, target: Target) -> Floats:
    """Log-probabilities (n, classes) over the held-out rows."""

    def fitted(x: Floats, labels: NDArray[np.intp], strength: float) -> Any:
        model = linear_model.LogisticRegression(C=strength, class_weight="balanced", max_iter=300, tol=1e-3)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # not converged to the last digit: no matter, the validation frames judge it
            return model.fit(x, labels)

    x, tune = _standardized(inputs, target.fit, target.fit, target.validation)
    truth = target.labels(target.validation)
    weights = _balance(truth, len(target.classes))[truth]
    losses: list[float] = []
    for strength in _LOGISTIC:
        chances = _log_chances(fitted(x, target.labels(target.fit), strength), tune)
        losses.append(-float(np.average(chances[np.arange(len(truth)), truth], weights=weights)))
    learn = np.concatenate([target.fit, target.validation])
    x, test = _standardized(inputs, learn, learn, target.held_out)
    return _log_chances(fitted(x, target.labels(learn), _LOGISTIC[int(np.argmin(losses))]), test)


def _log_chances(model: Any, x: Floats) -> Floats:
    """Log of the probability of each class, (n, classes); finite also where scikit-learn's own rounds to log 0."""
    odds = model.decision_function(x)
    odds = np.stack([np.zeros_like(odds), odds], 1) if odds.ndim == 1 else odds
    odds = odds - odds.max(1, keepdims=True)
    return odds - np.log(np.exp(odds).sum(1, keepdims=True))


def _standardized(inputs: NDArray[np.floating], over: NDArray[np.intp], *rows: NDArray[np.intp]) -> list[Floats]:
    """Rows of the inputs with mean 0 and variance 1 `over` some of them; an input that is constant there becomes 0."""
    mean, std = inputs[over].mean(0), inputs[over].std(0)
    scale = np.where(std > 1e-6 * np.maximum(np.abs(mean), 1e-6), std, np.inf)
    return [(inputs[chosen] - mean) / scale for chosen in rows]


def _balance(labels: NDArray[np.intp], classes: int) -> Floats:
    """Weight of each class, so that all weigh the same together."""
    return len(labels) / (classes * np.maximum(np.bincount(labels, minlength=classes), 1.0))


def predict_mlp(inputs: NDArray[np.float32], targets: Sequence[Target], *, seed: int = 0) -> list[Floats]:
    """A small network per target (two hidden layers of 128 ReLUs), stopped where it does best on the validation frames.

    Args:
        inputs: float32 (N, D).
        targets: What to predict.
        seed: Of weights and batches.

    Returns:
        As `predict_linear`.
    """
    return [_mlp(inputs, target, seed) for target in targets]


def _mlp(inputs: NDArray[np.float32], target: Target, seed: int) -> Floats:
    code, rng = Code(target), np.random.default_rng(seed)
    rows = (target.fit, target.validation, target.held_out)
    x, tune, test = (torch.from_numpy(part.astype(np.float32)) for part in _standardized(inputs, target.fit, *rows))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Linear(inputs.shape[1], _MLP_WIDTH),
            nn.ReLU(),
            nn.Linear(_MLP_WIDTH, _MLP_WIDTH),
            nn.ReLU(),
            nn.Linear(_MLP_WIDTH, target.outputs),
        )
    guess_the_mean(network[-1])
    optimizer = torch.optim.AdamW(network.parameters(), _MLP_RATE, weight_decay=_MLP_DECAY, fused=True)
    best, best_state, since = np.inf, network.state_dict(), 0
    for step in range(_MLP_STEPS + 1):
        if step % _MLP_CHECK == 0:
            since += 1
            with torch.inference_mode():
                loss = float(code.loss(network(tune), target.validation))
            if loss < best * 0.999:
                best, since = loss, 0
                best_state = {name: value.clone() for name, value in network.state_dict().items()}
            if since >= _MLP_PATIENCE:
                break
        chosen = code.draw(rng, _MLP_BATCH)
        loss = code.loss(network(x[torch.from_numpy(chosen)]), target.fit[chosen], balanced=True)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    network.load_state_dict(best_state)
    with torch.inference_mode():
        return code.decode(network(test))


def guess_the_mean(layer: nn.Module) -> None:
    """Let a network begin with zeros: the mean of an amount, and no opinion about classes."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class Code:
    """A target as a network learns it: amounts standardized, classes balanced.

    Args:
        target: The target.
        device: Where outputs are.

    Attributes:
        target: The target.
    """

    def __init__(self, target: Target, device: torch.device | str = "cpu") -> None:
        self.target = target
        learnt = target.values[target.fit]
        self._mean, self._std = (0.0, 1.0) if target.classes else (float(learnt.mean()), float(learnt.std()) or 1.0)
        kind = torch.long if target.classes else torch.float32
        with np.errstate(invalid="ignore"):
            values = np.nan_to_num((target.values - self._mean) / self._std)
        self._values = torch.from_numpy(values).to(device, kind)
        self._weights: Tensor | None = None
        self._chances: Floats | None = None
        if target.classes:
            balance = _balance(target.labels(target.fit), len(target.classes))
            self._weights = torch.from_numpy(balance).to(device, torch.float32)
            chances = balance[target.labels(target.fit)].cumsum()
            self._chances = chances / chances[-1]

    def draw(self, rng: np.random.Generator, count: int) -> NDArray[np.intp]:
        """Places in `target.fit` for a batch, each class as often as the others."""
        if self._chances is None:
            return rng.integers(len(self.target.fit), size=count)
        return np.searchsorted(self._chances, rng.random(count), side="right").clip(0, len(self.target.fit) - 1)

    def loss(self, outputs: Tensor, rows: NDArray[np.intp], *, balanced: bool = False) -> Tensor:
        """Mean loss over rows: squared error in standard deviations, or cross-entropy with the classes balanced.

        Args:
            outputs: (n, K), K at least `target.outputs`; others are not looked at.
            rows: (n,).
            balanced: The rows are from `draw`, so that no class has to be weighed any more.
        """
        truth = self._values[torch.from_numpy(rows).to(self._values.device)]
        if self._weights is None:
            return functional.mse_loss(outputs[:, 0], truth)
        return functional.cross_entropy(
            outputs[:, : len(self.target.classes)], truth, None if balanced else self._weights
        )

    def decode(self, outputs: Tensor) -> Floats:
        """Outputs as predictions: (n,) in the target's units, or (n, classes)."""
        values = outputs.double().cpu().numpy()
        return values[:, : len(self.target.classes)] if self.target.classes else values[:, 0] * self._std + self._mean


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

    For each target the weights count that did best on its validation frames. Its scores are a lower bound of what a
    frame
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
    """Frames by number as the network sees them: less the mean image, so that what stays the same does not drown the
    rest.
    """

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
