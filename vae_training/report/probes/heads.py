"""The heads that predict targets: linear ones, small networks on a representation, and a network on the pixels.

Each uses only the rows that a target names: `fit` to learn, `validation` to choose the strength of the penalty or when
to stop, `held_out` to predict: (n,) in the units of the target, or (n, classes) scores.
"""

import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from torch import Tensor, nn

from latent_obs.util.device import resolve_device
from latent_obs.util.errors import require
from vae_training.report.probes.targets import Target

Floats = NDArray[np.float64]
Scale = Literal["each", "together"]
_RIDGE = np.logspace(-6, 1, 15)  # times the number of frames; inputs have variance 1
_LOGISTIC = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # scikit-learn's C, the inverse strength
_HIDDEN, _MLP_BATCH, _CNN_BATCH = 128, 256, 128
_MLP_STEPS, _CHUNK = 1500, 512
_RATE, _DECAY = 2e-3, 1e-2


def predict_linear(inputs: NDArray[np.float32], targets: Sequence[Target], *, scale: Scale = "each") -> list[Floats]:
    """Ridge regression for amounts, logistic regression with balanced classes for classes.

    Inputs, float32 (N, D), are standardized, each by its own deviation or all together by one, as for an agent: few
    frames then do not drown in directions in which they hardly vary. The strength of the penalty is the best one on the
    validation frames; then the probe is fitted to both parts with it. Raises a MissingExtraError without scikit-learn.
    """
    require("sklearn", extra="report", purpose="fit linear probes")
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.metrics import log_loss
    from sklearn.model_selection import GridSearchCV, PredefinedSplit
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.utils.class_weight import compute_sample_weight

    def balanced_log_likelihood(model: Any, x: Floats, y: NDArray[Any]) -> float:
        weights = compute_sample_weight("balanced", y)
        return -float(log_loss(y, model.predict_proba(x), sample_weight=weights, labels=model.classes_))

    wide = inputs.astype(np.float64)
    if scale == "together":
        wide /= np.sqrt(wide.var(0).mean()) or 1.0
    predictions: list[Floats] = []
    for target in targets:
        if target.classes:
            head: Any = LogisticRegression(class_weight="balanced", max_iter=300, tol=1e-3)
            grid: dict[str, Any] = {"logisticregression__C": _LOGISTIC}
            scoring: Any = balanced_log_likelihood
        else:
            head, scoring = Ridge(solver="cholesky"), "neg_mean_squared_error"
            grid = {"ridge__alpha": _RIDGE * len(target.fit)}
        learn = np.concatenate([target.fit, target.validation])
        folds = PredefinedSplit(np.repeat([-1, 0], [len(target.fit), len(target.validation)]))
        search = GridSearchCV(
            make_pipeline(StandardScaler(with_std=scale == "each"), head), grid, cv=folds, scoring=scoring
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # not converged to the last digit: the validation frames judge it
            search.fit(wide[learn], target.labels(learn) if target.classes else target.values[learn])
        method = search.decision_function if target.classes else search.predict
        predicted = method(wide[target.held_out])
        if target.classes and predicted.ndim == 1:  # of two classes
            predicted = np.stack([np.zeros_like(predicted), predicted], 1)
        predictions.append(predicted)
    return predictions


def predict_mlp(inputs: NDArray[np.float32], targets: Sequence[Target], *, seed: int = 0) -> list[Floats]:
    """A small network per target (two hidden layers of 128 ReLUs) on inputs float32 (N, D), stopped early."""

    def network(outputs: int) -> nn.Module:
        hidden = nn.Linear(inputs.shape[1], _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, _HIDDEN), nn.ReLU()
        return nn.Sequential(*hidden, nn.Linear(_HIDDEN, outputs))

    predictions: list[Floats] = []
    for target in targets:
        mean, std = inputs[target.fit].mean(0), inputs[target.fit].std(0)
        scale = np.where(std > 1e-6 * np.maximum(np.abs(mean), 1e-6), std, np.inf)  # a constant input becomes 0
        x = torch.from_numpy(((inputs - mean) / scale).astype(np.float32))
        settings: dict[str, Any] = {"steps": _MLP_STEPS, "batch": _MLP_BATCH, "checks": 30, "patience": 6}
        predictions += _train(network, lambda rows, x=x: x[rows], [target], torch.device("cpu"), seed, **settings)
    return predictions


def predict_cnn(
    frames: NDArray[np.uint8],
    targets: Sequence[Target],
    *,
    seed: int = 0,
    device: str | torch.device = "auto",
    steps: int = 1000,
) -> list[Floats]:
    """One network on the pixels for all targets, trained on the frames where each is known.

    Its scores are a lower bound of what a frame shows: a larger network, or more recordings, may read more.

    Args:
        frames: uint8 (N, H, W, C).
        targets: What to predict; all their rows are rows of `frames`.
        seed: Of weights and batches.
        device: Where to compute, as for `FrozenEncoder`.
        steps: Gradient steps of 128 frames, at most.
    """
    place = resolve_device(device)
    learned = np.unique(np.concatenate([target.fit for target in targets]))
    # Pixels minus the mean image, over their spread: what never changes must not hide the rest.
    chunks = [learned[i : i + _CHUNK] for i in range(0, len(learned), _CHUNK)]
    mean = np.sum([frames[rows].sum(0, dtype=np.int64) for rows in chunks], axis=0) / len(learned)
    squares = sum(float(np.square(frames[rows] - mean).sum()) for rows in chunks)
    center = torch.from_numpy(mean).to(place, torch.float32).permute(2, 0, 1)  # (C, H, W)
    scale = max(squares / len(learned) / mean.size, 1.0) ** -0.5

    def inputs(rows: NDArray[np.intp]) -> Tensor:
        batch = torch.from_numpy(frames[rows]).to(place)
        return (batch.permute(0, 3, 1, 2).float() - center) * scale  # channels last in memory

    def network(outputs: int) -> nn.Module:
        """Strided convolutions down to a map of at most 10x10, one hidden layer, and the outputs."""
        height, width, channels = frames.shape[1:]
        layers: list[nn.Module] = []
        for out in (16, 32, *[64] * 12):
            layers += [nn.Conv2d(channels, out, 4, 2, 1), nn.ReLU(inplace=True)]
            height, width, channels = max(1, height // 2), max(1, width // 2), out
            if max(height, width) <= 10:
                break
        layers += [nn.Flatten(), nn.LazyLinear(256), nn.ReLU(inplace=True), nn.Linear(256, outputs)]
        made = nn.Sequential(*layers)
        made(torch.zeros(1, *center.shape))  # gives the lazy layer its size
        return made.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    settings: dict[str, Any] = {"steps": steps, "batch": _CNN_BATCH, "checks": 25, "patience": 8, "one_cycle": True}
    return _train(network, inputs, targets, place, seed, **settings)


def _train(
    make_network: Callable[[int], nn.Module],
    inputs: Callable[[NDArray[np.intp]], Tensor],
    targets: Sequence[Target],
    device: torch.device,
    seed: int,
    *,
    steps: int,
    batch: int,
    checks: int,
    patience: int,
    one_cycle: bool = False,
) -> list[Floats]:
    """Train one network with a group of outputs per target; predict each with its best weights on `validation`.

    `make_network` takes the number of outputs, and `inputs` gives the network's input for rows. The validation rows are
    scored `checks` times within all steps, and training stops after `patience` checks in which no target got better.
    With `one_cycle` the learning rate follows one cycle (Smith & Topin 2017).
    """
    rng, codes = np.random.default_rng(seed), [_Code(target, device) for target in targets]
    ends = np.cumsum([0, *(target.outputs for target in targets)])
    columns = [slice(first, end) for first, end in itertools.pairwise(ends)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make_network(int(ends[-1]))
    for parameter in list(network.parameters())[-2:]:  # begin with the mean of amounts, and all classes alike
        nn.init.zeros_(parameter)
    network.to(device)
    optimizer = torch.optim.AdamW(network.parameters(), _RATE, weight_decay=_DECAY, fused=device.type != "mps")
    schedule = None
    if one_cycle:  # making one sets the optimizer's rate
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps + 1, pct_start=0.1)

    @torch.inference_mode()
    def outputs_of(rows: NDArray[np.intp]) -> Tensor:
        return torch.cat([network(inputs(rows[i : i + _CHUNK])) for i in range(0, len(rows), _CHUNK)])

    learn, tune = (np.unique(np.concatenate([getattr(t, use) for t in targets])) for use in ("fit", "validation"))
    best, best_step, since = [np.inf] * len(targets), [0] * len(targets), 0
    states: dict[int, dict[str, Tensor]] = {}
    for step in range(steps + 1):
        if step % max(1, steps // checks) == 0 or step == steps:
            outputs, since = outputs_of(tune), since + 1
            for i, code in enumerate(codes):
                at = np.searchsorted(tune, code.target.validation)
                loss = float(code.loss(outputs[at, columns[i]], code.target.validation))
                if loss < best[i] * 0.999:
                    best[i], best_step[i], since = loss, step, 0
            if since == 0:
                states[step] = {name: value.detach().clone() for name, value in network.state_dict().items()}
            states = {at: state for at, state in states.items() if at in best_step}
            if since >= patience:
                break
        rows = learn[rng.integers(len(learn), size=batch)]
        outputs = network(inputs(rows))
        known = [np.flatnonzero(code.is_fit[rows]) for code in codes]
        losses = [
            code.loss(outputs[at, column], rows[at])
            for code, column, at in zip(codes, columns, known, strict=True)
            if len(at)
        ]
        optimizer.zero_grad(set_to_none=True)
        torch.stack(losses).sum().backward()
        optimizer.step()
        if schedule:
            schedule.step()
    predictions: list[Floats] = []
    for i, code in enumerate(codes):
        network.load_state_dict(states[best_step[i]])
        predictions.append(code.decode(outputs_of(code.target.held_out)[:, columns[i]]))
    return predictions


class _Code:
    """A target as a network learns it: amounts standardized, classes weighted so that each counts the same."""

    def __init__(self, target: Target, device: torch.device) -> None:
        self.target = target
        self.is_fit = np.isin(np.arange(len(target.values)), target.fit)
        learned = target.values[target.fit]
        self._mean, self._std = (0.0, 1.0) if target.classes else (float(learned.mean()), float(learned.std()) or 1.0)
        with np.errstate(invalid="ignore"):
            values = np.nan_to_num((target.values - self._mean) / self._std)
        self._values = torch.from_numpy(values).to(device, torch.long if target.classes else torch.float32)
        self._weights: Tensor | None = None
        if target.classes:
            counts = np.maximum(np.bincount(target.labels(target.fit), minlength=len(target.classes)), 1.0)
            self._weights = torch.from_numpy(1 / counts).to(device, torch.float32)

    def loss(self, outputs: Tensor, rows: NDArray[np.intp]) -> Tensor:
        """Mean loss over rows: squared error in standard deviations, or cross-entropy with the classes balanced."""
        truth = self._values[torch.from_numpy(rows).to(self._values.device)]
        if self._weights is None:
            return functional.mse_loss(outputs[:, 0], truth)
        return functional.cross_entropy(outputs, truth, self._weights)

    def decode(self, outputs: Tensor) -> Floats:
        values = outputs.double().cpu().numpy()
        return values if self.target.classes else values[:, 0] * self._std + self._mean
