"""The algorithms that train agents: where each comes from, which actions it can take, and its settings for latents.

Defaults were chosen on ViZDoom scenarios with eight environments; `benchmarks/RESULTS.md` says how.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm

from latent_obs.errors import InputError, require

AlgorithmName = Literal["ppo", "recurrent-ppo", "dqn", "qr-dqn", "sac"]


@dataclass(frozen=True)
class Algorithm:
    """One algorithm, and how it is set up.

    Attributes:
        title: Its usual name.
        source: Module and class.
        paper: Where it is from.
        actions: Action spaces that it can take.
        on_policy: Whether it learns from its latest steps only; the others keep a replay buffer.
        defaults: Settings on latents: every hyperparameter of `AgentConfig` that it has.
        on_pixels: What is different for a CNN on pixels.
        policy: Name of its policy after "Mlp", "Cnn" or "MultiInput".
    """

    title: str
    source: str
    paper: str
    actions: tuple[type[spaces.Space[Any]], ...]
    on_policy: bool
    defaults: Mapping[str, Any]
    on_pixels: Mapping[str, Any] = field(default_factory=dict)
    policy: str = "Policy"

    def load_class(self) -> type[BaseAlgorithm]:
        """The class itself.

        Raises:
            MissingExtraError: sb3-contrib is not installed, and it is from there.
        """
        module, name = self.source.split(":")
        require(module.split(".")[0], extra="agents", purpose=f"train {self.title}")
        return getattr(importlib.import_module(module), name)

    def settings(self, *, pixels: bool) -> dict[str, Any]:
        """Every hyperparameter that it has, at its default for latents or for pixels."""
        return {**self.defaults, **(self.on_pixels if pixels else {})}

    def check_actions(self, env: str, space: spaces.Space[Any]) -> None:
        """Refuse an action space that it cannot take.

        Raises:
            InputError: Naming the algorithms that can take it.

        Example:
            >>> ALGORITHMS["sac"].check_actions("Maze-v0", spaces.Discrete(4))
            Traceback (most recent call last):
            ...
            latent_obs.errors.InputError: SAC cannot take the actions of Maze-v0, Discrete(4): it takes Box. Those that can: \
--algorithm ppo, recurrent-ppo, dqn, qr-dqn
        """
        if isinstance(space, self.actions):
            return
        able = [name for name, other in ALGORITHMS.items() if isinstance(space, other.actions)]
        takes = ", ".join(kind.__name__ for kind in self.actions)
        raise InputError(
            f"{self.title} cannot take the actions of {env}, {' '.join(str(space).split())}: it takes {takes}. "
            + (f"Those that can: --algorithm {', '.join(able)}" if able else "No algorithm here can; wrap its actions first")
        )


_ANY_ACTIONS = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary, spaces.Box)
_NORMALISED = {"normalize_reward": True, "normalize_observation": "together", "latent_deviation": 1.0}
_PPO: dict[str, Any] = {
    # Updates of a small network on latents cost next to nothing, so many of them pay.
    "learning_rate": 2.5e-4, "gamma": 0.99, "net_arch": (64, 64), **_NORMALISED, "batch_size": 64, "n_steps": 128,
    "n_epochs": 10, "gae_lambda": 0.95, "ent_coef": 0.01, "clip_range": 0.2, "latent_deviation": 0.5,
}  # fmt: skip
_DQN: dict[str, Any] = {
    "learning_rate": 5e-4, "gamma": 0.99, "net_arch": (128, 128), **_NORMALISED, "batch_size": 128, "buffer_size": 100_000,
    "learning_starts": 2_000, "train_freq": 1, "gradient_steps": 2, "tau": 1.0, "target_update_interval": 1_000,
    "exploration_fraction": 0.25, "exploration_final_eps": 0.05,
}  # fmt: skip
_CNN: dict[str, Any] = {"learning_rate": 2.5e-4, "net_arch": ()}

#: By the name that `--algorithm` takes.
ALGORITHMS: dict[AlgorithmName, Algorithm] = {
    "ppo": Algorithm("PPO", "stable_baselines3:PPO", "Schulman et al. 2017", _ANY_ACTIONS, True, _PPO, {"net_arch": ()}),
    "recurrent-ppo": Algorithm(
        "RecurrentPPO", "sb3_contrib:RecurrentPPO", "Schulman et al. 2017, with an LSTM", _ANY_ACTIONS, True,
        {**_PPO, "learning_rate": 5e-4, "batch_size": 256, "n_epochs": 4, "lstm_size": 128, "latent_deviation": 1.0}, _CNN,
        policy="LstmPolicy",
    ),
    "dqn": Algorithm("DQN", "stable_baselines3:DQN", "Mnih et al. 2015", (spaces.Discrete,), False, _DQN, _CNN),
    "qr-dqn": Algorithm(
        "QR-DQN", "sb3_contrib:QRDQN", "Dabney et al. 2018", (spaces.Discrete,), False, {**_DQN, "n_quantiles": 50}, _CNN
    ),
    "sac": Algorithm(
        "SAC", "stable_baselines3:SAC", "Haarnoja et al. 2018", (spaces.Box,), False,
        {
            "learning_rate": 5e-4, "gamma": 0.99, "net_arch": (256, 256), **_NORMALISED, "batch_size": 256,
            "buffer_size": 100_000, "learning_starts": 1_000, "train_freq": 1, "gradient_steps": 2, "tau": 0.005,
            "ent_coef": "auto",
        },
        {"learning_rate": 3e-4},
    ),
}  # fmt: skip
assert set(ALGORITHMS) == set(get_args(AlgorithmName))

#: What goes elsewhere than to the algorithm's constructor: to its policy, or to the environments' wrapper.
NOT_ITS_OWN = ("net_arch", "lstm_size", "n_quantiles", "normalize_reward", "normalize_observation", "latent_deviation")
#: Every setting of `AgentConfig` that belongs to algorithms.
HYPERPARAMETERS = tuple(sorted({name for algorithm in ALGORITHMS.values() for name in algorithm.defaults}))


def users_of(name: str) -> str:
    """The algorithms that have a hyperparameter, by their titles.

    Example:
        >>> users_of("n_epochs")
        'PPO, RecurrentPPO'
    """
    return ", ".join(a.title for a in ALGORITHMS.values() if name in a.defaults)
