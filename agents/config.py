"""Everything that decides an agent's training run, as one frozen dataclass; the command line is made from it."""

import dataclasses
import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm

from agents.normalization import Normalization
from agents.schedules import Shape
from latent_obs.encoder.frozen import Backend, Precision
from latent_obs.envs.pixel_envs import is_minerl_id
from latent_obs.util.errors import InputError, require
from latent_obs.util.run_config import RunConfig

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
            latent_obs.util.errors.InputError: SAC cannot take the actions of Maze-v0, Discrete(4): it takes Box. Those
            that can: \
--algorithm ppo, recurrent-ppo, dqn, qr-dqn
        """
        if isinstance(space, self.actions):
            return
        able = [name for name, other in ALGORITHMS.items() if isinstance(space, other.actions)]
        takes = ", ".join(kind.__name__ for kind in self.actions)
        raise InputError(
            f"{self.title} cannot take the actions of {env}, {' '.join(str(space).split())}: it takes {takes}. "
            + (
                f"Those that can: --algorithm {', '.join(able)}"
                if able
                else "No algorithm here can; wrap its actions first"
            )
        )


_ANY_ACTIONS = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary, spaces.Box)
_NORMALISED = {"normalize_reward": True, "normalize_observation": "together", "latent_deviation": 1.0}
_PPO: dict[str, Any] = {
    # Updates of a small network on latents cost next to nothing, so many of them pay.
    "learning_rate": 2.5e-4,
    "gamma": 0.99,
    "net_arch": (64, 64),
    **_NORMALISED,
    "batch_size": 64,
    "n_steps": 128,
    "n_epochs": 10,
    "gae_lambda": 0.95,
    "ent_coef": 0.01,
    "clip_range": 0.2,
    "latent_deviation": 0.5,
}
_DQN: dict[str, Any] = {
    "learning_rate": 5e-4,
    "gamma": 0.99,
    "net_arch": (128, 128),
    **_NORMALISED,
    "batch_size": 128,
    "buffer_size": 100_000,
    "learning_starts": 2_000,
    "train_freq": 1,
    "gradient_steps": 2,
    "tau": 1.0,
    "target_update_interval": 1_000,
    "exploration_fraction": 0.25,
    "exploration_final_eps": 0.05,
}
_CNN: dict[str, Any] = {"learning_rate": 2.5e-4, "net_arch": ()}

#: By the name that `--algorithm` takes.
ALGORITHMS: dict[AlgorithmName, Algorithm] = {
    "ppo": Algorithm(
        "PPO", "stable_baselines3:PPO", "Schulman et al. 2017", _ANY_ACTIONS, True, _PPO, {"net_arch": ()}
    ),
    "recurrent-ppo": Algorithm(
        "RecurrentPPO",
        "sb3_contrib:RecurrentPPO",
        "Schulman et al. 2017, with an LSTM",
        _ANY_ACTIONS,
        True,
        {**_PPO, "learning_rate": 5e-4, "batch_size": 256, "n_epochs": 4, "lstm_size": 128, "latent_deviation": 1.0},
        _CNN,
        policy="LstmPolicy",
    ),
    "dqn": Algorithm("DQN", "stable_baselines3:DQN", "Mnih et al. 2015", (spaces.Discrete,), False, _DQN, _CNN),
    "qr-dqn": Algorithm(
        "QR-DQN",
        "sb3_contrib:QRDQN",
        "Dabney et al. 2018",
        (spaces.Discrete,),
        False,
        {**_DQN, "n_quantiles": 50},
        _CNN,
    ),
    "sac": Algorithm(
        "SAC",
        "stable_baselines3:SAC",
        "Haarnoja et al. 2018",
        (spaces.Box,),
        False,
        {
            "learning_rate": 5e-4,
            "gamma": 0.99,
            "net_arch": (256, 256),
            **_NORMALISED,
            "batch_size": 256,
            "buffer_size": 100_000,
            "learning_starts": 1_000,
            "train_freq": 1,
            "gradient_steps": 2,
            "tau": 0.005,
            "ent_coef": "auto",
        },
        {"learning_rate": 3e-4},
    ),
}
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


EnvArgument = bool | int | float | str
Observation = Literal["latent", "random-latent", "pca-latent", "pixels"]
_COUNTS = (
    "n_steps",
    "n_epochs",
    "lstm_size",
    "buffer_size",
    "train_freq",
    "target_update_interval",
    "n_quantiles",
    "batch_size",
)


@dataclass(frozen=True)
class AgentConfig(RunConfig):
    """Settings of `latent-obs train-agent`, saved beside the agent as `config.json`."""

    CHANGEABLE_ON_RESUME: ClassVar[tuple[str, ...]] = (
        "out",
        "steps",
        "device",
        "eval_every",
        "eval_episodes",
        "workers",
        "watch_drift",
        "backend",
        "keep_checkpoints",
    )
    RENAMED: ClassVar[dict[str, str]] = {"standardise": "standardize"}
    KIND: ClassVar[str] = "agent"
    WHERE_FROM: ClassVar[str] = "latent-obs train-agent"

    env: str = "VizdoomBasic-v1"
    """A registered Gymnasium environment with pixels, ViZDoom's and MineRL's among them."""
    encoder: Path | None = None
    """Encoder folder (or the run folder of train-vae). Copied beside the agent."""
    pca: Path | None = None
    """For pca-latent: the file that `latent_obs.encoder.pca` wrote. Copied beside the agent."""
    out: Path = Path("runs/agent")
    """Folder to make: best and last agent, the encoder, evaluations and logs."""
    observation: Observation = "latent"
    """latent: mean latents of the encoder. Baselines: random-latent (the network untrained), pca-latent (principal
    components of the frames, --pca), pixels (CnnPolicy)."""
    steps: int = 150_000
    """Environment steps to train for, over all environments."""
    envs: int = 8
    """Environments in parallel."""
    workers: Literal["processes", "serial"] = "processes"
    """processes: each environment in one of its own. serial: all in this process, one after the other."""
    frame_skip: int | None = None
    """Passed to the environment as frame_skip when given: game frames per agent step. 4 is usual for ViZDoom."""
    env_kwargs: dict[str, EnvArgument] = field(default_factory=dict)
    """Further arguments of the environment, as name value pairs. MineRL games that run already: port 9000 (each
    environment has a port of its own, counted from there; evaluations use those after)."""
    pixel_key: str | None = None
    """Entry of a Dict observation that holds the pixels, where there is more than one image."""
    latent_only: bool = False
    """Drop every other entry of a Dict observation (inventory, game variables), so that pixels are all there is."""
    flatten: bool | None = None
    """One vector, latent first and all else after it, in place of a Dict observation. None: for MineRL's
    environments."""
    history: int = 1
    """Latents that the agent sees, the oldest first: a single picture tells no speed. Of pixels, frames stacked as
    channels."""
    standardize: bool = False
    """Shift and scale latents by their mean and deviation over the encoder's training frames."""
    precision: Precision = "float32"
    """Of the encoder's layers: float32, or bfloat16, faster where the processor has it."""
    backend: Backend = "torch"
    """What encodes: torch, or openvino (on a CPU; an extra)."""
    watch_drift: bool = True
    """Warn, and log, when the agent sees what the encoder never saw; with encoders whose folder has statistics."""
    algorithm: AlgorithmName = "ppo"
    """ppo, recurrent-ppo, dqn and qr-dqn (which need discrete actions), or sac (continuous ones). What follows and is
    None is at the algorithm's own default."""
    learning_rate: float | None = None
    """Step size of Adam at the beginning. PPO: 2.5e-4; the others: 5e-4 on latents, less on pixels."""
    learning_rate_schedule: Shape = "constant"
    """How the step size falls to 0 over the run's steps."""
    batch_size: int | None = None
    """Samples per gradient step."""
    gamma: float | None = None
    """Discount per agent step. 0.99 for all."""
    net_arch: tuple[int, ...] | None = None
    """Hidden layers of the policy, and of the value function, on top of the latent (or of the CNN)."""
    normalize_reward: bool | None = None
    """Divide rewards by the running deviation of the return; on by default. Evaluations show the game's own rewards."""
    normalize_observation: Normalization | None = None
    """Shift and scale latents, and numbers beside them, by their running mean and deviation. together (the default):
    the values of a latent share one deviation, so that what hardly varies stays small. each: every number has its own.
    off. Pixels are left to the CNN."""
    latent_deviation: float | None = None
    """With together: what the deviation of a latent's values is made. Where it is large, tanh units saturate and
    learning is
    slow. PPO: 0.5; the others: 1."""
    ent_coef: float | Literal["auto"] | None = None
    """Weight of the entropy bonus, which keeps the agent exploring. PPO, RecurrentPPO: 0.01. SAC: auto."""
    n_steps: int | None = None
    """PPO, RecurrentPPO: steps in each environment between two updates."""
    n_epochs: int | None = None
    """PPO, RecurrentPPO: passes over the samples of an update."""
    gae_lambda: float | None = None
    """PPO, RecurrentPPO: weight of longer returns in the advantage (Schulman et al. 2016)."""
    clip_range: float | None = None
    """PPO, RecurrentPPO: how far an update may move the policy (Schulman et al. 2017)."""
    clip_range_schedule: Shape = "constant"
    """PPO, RecurrentPPO: how the clip range falls to 0 over the run's steps."""
    lstm_size: int | None = None
    """RecurrentPPO: units of the LSTM."""
    buffer_size: int | None = None
    """DQN, QR-DQN, SAC: steps that the replay buffer holds, over all environments."""
    learning_starts: int | None = None
    """DQN, QR-DQN, SAC: steps with random actions before learning begins."""
    train_freq: int | None = None
    """DQN, QR-DQN, SAC: steps in each environment between two updates."""
    gradient_steps: int | None = None
    """DQN, QR-DQN, SAC: gradient steps of an update. -1: as many as steps were taken since the last one."""
    tau: float | None = None
    """DQN, QR-DQN, SAC: how far the target network moves towards the other at once; 1 copies it."""
    target_update_interval: int | None = None
    """DQN, QR-DQN: steps between two updates of the target network."""
    exploration_fraction: float | None = None
    """DQN, QR-DQN: share of the run in which random actions become fewer."""
    exploration_final_eps: float | None = None
    """DQN, QR-DQN: share of random actions after that."""
    n_quantiles: int | None = None
    """QR-DQN: quantiles of the return that it learns."""
    checkpoint_every: int = 10_000
    """Environment steps between checkpoints, from which --resume goes on. 0: only at the end."""
    exact_resume: bool | None = None
    """Begin new episodes at each checkpoint, so that a run that was stopped or killed goes on to the bit (on a CPU) as
    one
    that never was. None: for all but MineRL's environments, whose resets are slow and whose episodes are long."""
    keep_checkpoints: int = 0
    """Checkpoints to keep in checkpoints/ beside the last one; the oldest go first. -1: all of them."""
    eval_every: int = 25_000
    """Environment steps between evaluations. 0: none."""
    eval_episodes: int = 20
    """Episodes per evaluation."""
    deterministic: bool = True
    """Evaluate the most likely action rather than a sample."""
    seed: int = 0
    """Seeds the agent, and the environments (seed, seed + 1, …)."""
    device: str = "auto"
    """Where to encode (and where pixel agents learn): auto, cpu, cuda, cuda:N, mps. One that is named must be there."""

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise InputError(f"algorithm must be one of {', '.join(ALGORITHMS)}, got {self.algorithm!r}")
        if self.normalize_observation not in (None, *get_args(Normalization)):
            raise InputError(
                f"normalize_observation must be one of {', '.join(get_args(Normalization))}, got {self.normalize_observation!r}"
            )
        for name in self._given:
            if name not in ALGORITHMS[self.algorithm].defaults:
                raise InputError(
                    f"{ALGORITHMS[self.algorithm].title} has no {name}, which is of {users_of(name)}; leave it out"
                )
        if self.clip_range_schedule != "constant" and "clip_range" not in ALGORITHMS[self.algorithm].defaults:
            raise InputError(f"clip_range_schedule is of {users_of('clip_range')}; leave it out")
        for name in ("steps", "envs", "history", "eval_episodes", *_COUNTS):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("eval_every", "seed", "checkpoint_every", "learning_starts"):
            if getattr(self, name) is not None and getattr(self, name) < 0:
                raise InputError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.keep_checkpoints < -1:
            raise InputError(f"keep_checkpoints must be 0 or more, or -1 for all, got {self.keep_checkpoints}")
        if self.frame_skip is not None and self.frame_skip < 1:
            raise InputError(f"frame_skip must be 1 or more, got {self.frame_skip}")
        if any(width < 1 for width in self.net_arch or ()):
            raise InputError(f"net_arch must be positive widths, got {self.net_arch}")
        if self.gradient_steps is not None and self.gradient_steps < 1 and self.gradient_steps != -1:
            raise InputError(f"gradient_steps must be 1 or more, or -1 for one a step, got {self.gradient_steps}")
        self._check_fractions()
        if ALGORITHMS[self.algorithm].on_policy:
            self._check_batches()

    def _check_fractions(self) -> None:
        for name in ("learning_rate", "clip_range", "latent_deviation"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} must be a positive number, got {value}")
        for name in ("gamma", "tau"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise InputError(f"{name} must be above 0 and at most 1, got {value}")
        for name in ("gae_lambda", "exploration_fraction", "exploration_final_eps"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise InputError(f"{name} must be from 0 to 1, got {value}")
        if self.ent_coef == "auto":
            if self.algorithm != "sac":
                raise InputError(f"ent_coef 'auto' is of SAC, {self.algorithm} takes a number, 0 or more")
        elif self.ent_coef is not None and not 0 <= self.ent_coef < math.inf:
            raise InputError(f"ent_coef must be a number, 0 or more, got {self.ent_coef}")

    def _check_batches(self) -> None:
        values = self.hyperparameters
        batch, samples = values["batch_size"], values["n_steps"] * self.envs
        if batch < 2:
            raise InputError(f"batch_size must be 2 or more, for PPO to normalize advantages by, got {batch}")
        if samples < 2 or samples % batch == 1:
            raise InputError(
                f"n_steps x envs = {samples} samples cannot be cut into batches of {batch}: "
                "a batch of one sample has no standard deviation to normalize advantages by"
            )

    @property
    def _given(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in HYPERPARAMETERS if getattr(self, name) is not None}

    @property
    def trainer(self) -> Algorithm:
        """The algorithm itself."""
        return ALGORITHMS[self.algorithm]

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Every hyperparameter of the algorithm: as given, else its default (which for pixels is another).

        Example:
            >>> AgentConfig(gamma=0.9).hyperparameters["gamma"], AgentConfig(algorithm="sac").hyperparameters["ent_coef"]
            (0.9, 'auto')
        """
        return {**self.trainer.settings(pixels=self.observation == "pixels"), **self._given}

    def settled(self) -> Self:
        """The same with all hyperparameters of the algorithm filled in, as a run keeps them."""
        return dataclasses.replace(self, **self.hyperparameters)

    @property
    def exact(self) -> bool:
        """Whether a resumed run is the same as one that was never stopped."""
        return bool(self.checkpoint_every) and (
            not is_minerl_id(self.env) if self.exact_resume is None else self.exact_resume
        )

    @property
    def flattened(self) -> bool:
        """Whether the agent sees one vector."""
        return is_minerl_id(self.env) if self.flatten is None else self.flatten

    @property
    def all_env_kwargs(self) -> dict[str, EnvArgument]:
        """Arguments of the environment, `frame_skip` included."""
        return {**self.env_kwargs, **({"frame_skip": self.frame_skip} if self.frame_skip is not None else {})}
