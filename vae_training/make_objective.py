"""The objective that the settings ask for, ready for its first step."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vae_training.acting_objective import CHANGES, ActingObjective
from vae_training.augment import augment
from vae_training.config import TrainConfig
from vae_training.cvae import CVAE, images_to_tensor
from vae_training.linear_start import start_linear_path
from vae_training.objective import ClassicObjective, Objective
from vae_training.precision import compiles_on, resolve_precision
from vae_training.sampling import get_random_samples
from vae_training.transitions import Transitions

_SAMPLE_FRAMES = 2_048  # for principal components: many times their number
_SAMPLE_BYTES = 256 << 20  # as float32; fewer frames where they are large
_SAMPLE_STEPS = 100_000  # of actions and rewards, for their mean and spread


def make_objective(
    config: TrainConfig, model: CVAE, transitions: Transitions | None = None, say: Callable[[str], object] = print
) -> Objective:
    """The objective that the settings ask for.

    Args:
        config: Settings.
        model: The CVAE, on its device.
        transitions: What follows each frame, where a term needs it.
        say: Where messages go.
    """
    device = next(model.parameters()).device
    dtype = resolve_precision(config.precision, device)
    if config.terms.are_any or config.augment:
        return ActingObjective(
            model, config.terms, actions=transitions.actions if transitions else None, augment=config.augment,
            free_bits=config.free_bits, dtype=dtype,
        ).to(device)  # fmt: skip
    return ClassicObjective(
        model, free_bits=config.free_bits, dtype=dtype, compile=compiles_on(device), fall_back=say
    ).to(device)  # fmt: skip


def start_from_data(
    config: TrainConfig, objective: Objective, training: Sequence[NDArray[np.uint8]], transitions: Transitions | None
) -> None:
    """Set what begins as something measured on the data: a linear path, a background, the spread of actions and rewards.

    A function of the data and the seed alone, so that all processes of a run begin alike.
    """
    model = objective.model
    needs_sample = model.architecture.linear_path or model.architecture.standardise or config.terms.salience
    images = _sample(config, training, model) if needs_sample else None
    for network in (model.encoder, model.decoder):
        if network.standard is not None and images is not None:
            network.standard.measure(images)
    if model.architecture.linear_path and images is not None:
        start_linear_path(model, images)
    if isinstance(objective, ActingObjective):
        actions = rewards = None
        if config.terms.need_actions and transitions is not None:
            rng = np.random.default_rng([config.seed, 1])
            actions, rewards = (_some(list(transitions.column(name)), rng) for name in ("action", "reward"))
        if images is not None or actions is not None:
            device = next(model.parameters()).device
            objective.fit(images if images is not None else torch.zeros(0, device=device), actions, rewards)


def _sample(config: TrainConfig, training: Sequence[NDArray[np.uint8]], model: CVAE) -> torch.Tensor:
    available = sum(len(d) for d in training)
    size = min(_SAMPLE_FRAMES, available, max(256, _SAMPLE_BYTES // (4 * int(np.prod(model.architecture.img_shape)))))
    frames = get_random_samples(
        training, size, list(config.dataset_weights) or None, normalize=False, seed=np.random.default_rng([config.seed, 2]),
        replace_small=True,
    )  # fmt: skip
    images = images_to_tensor(torch.from_numpy(frames).to(next(model.parameters()).device))
    if not config.augment:
        return images
    changes = torch.from_numpy(np.random.default_rng([config.seed, 3]).standard_normal((len(images), CHANGES), np.float32))
    return augment(images, config.augment, changes.to(images.device))


def _some(columns: Sequence[NDArray[Any]], rng: np.random.Generator) -> torch.Tensor:
    values = np.concatenate(columns)
    if len(values) > _SAMPLE_STEPS:
        values = values[rng.choice(len(values), _SAMPLE_STEPS, replace=False)]
    return torch.from_numpy(np.ascontiguousarray(values))
