"""Everything that decides an agent's training run, as one frozen dataclass; the command line is made from it.

Needs neither torch nor Gymnasium until a run begins.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

from agents.schedules import Shape
from latent_obs.encoder import Backend, Precision
from latent_obs.util.errors import InputError, check_choice, require
from latent_obs.util.run_config import ANY, RunConfig
from latent_obs.util.tracking import Service

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

AlgorithmName = Literal["ppo", "recurrent-ppo", "dqn", "qr-dqn", "sac"]
EnvArgument = bool | int | float | str
Observation = Literal["latent", "random-latent", "pca-latent", "pixels"]
#: together: the values of a latent share one deviation, other numbers have their own. each: every number has its own.
#: off: no normalization.
Normalization = Literal["together", "each", "off"]


@dataclass(frozen=True)
class Algorithm:
    """An algorithm of Stable-Baselines3 (or of sb3-contrib) and its hyperparameters."""

    title: str
    package: str
    actions: tuple[str, ...]
    """Kinds of Gymnasium's spaces that it supports."""
    defaults: Mapping[str, Any]
    """Every hyperparameter of `AgentConfig` that it has, with its default on latents."""
    on_pixels: Mapping[str, Any]
    """The defaults that differ for a CNN on pixels."""
    policy: str = "Policy"
    """Name of its policy after "Mlp", "Cnn" or "MultiInput"."""
    policy_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def load_class(self) -> "type[BaseAlgorithm]":
        """Import the class; raises MissingExtraError if it is in sb3-contrib, which is not installed."""
        package = require(self.package, extra="agents", purpose=f"train {self.title}")
        return getattr(package, self.title.replace("-", ""))


_NO_KEYS = ("Discrete", "MultiDiscrete", "Box")
_ANY_ACTIONS = (*_NO_KEYS, "MultiBinary")
_ALL: dict[str, Any] = {"gamma": 0.99, "normalize_reward": True, "normalize_observation": "together"}
# Updates of a small network on latents are cheap, so many of them pay.
_PPO = {**_ALL, "learning_rate": 2.5e-4, "net_arch": (64, 64), "batch_size": 64, "n_steps": 128, "n_epochs": 10}
_PPO |= {"ent_coef": 0.01, "latent_deviation": 0.5}
_RECURRENT_PPO = {**_PPO, "learning_rate": 5e-4, "batch_size": 256, "n_epochs": 4, "latent_deviation": 1.0}
_REPLAY = {**_ALL, "learning_rate": 5e-4, "buffer_size": 100_000, "train_freq": 1, "gradient_steps": 2}
_REPLAY |= {"latent_deviation": 1.0}
_DQN = {**_REPLAY, "net_arch": (128, 128), "batch_size": 128, "learning_starts": 2_000, "target_update_interval": 1_000}
_DQN |= {"exploration_fraction": 0.25, "exploration_final_eps": 0.05}
_SAC = {**_REPLAY, "net_arch": (256, 256), "batch_size": 256, "learning_starts": 1_000, "ent_coef": "auto"}
_CNN = {"learning_rate": 2.5e-4, "net_arch": ()}
_LSTM: dict[str, Any] = {"policy": "LstmPolicy", "policy_kwargs": {"lstm_hidden_size": 128}}

#: PPO: Schulman et al. 2017. DQN: Mnih et al. 2015. QR-DQN: Dabney et al. 2018. SAC: Haarnoja et al. 2018.
ALGORITHMS: dict[AlgorithmName, Algorithm] = {
    "ppo": Algorithm("PPO", "stable_baselines3", _ANY_ACTIONS, _PPO, _CNN),
    # Sb3-contrib's accepts MultiBinary, and fails on its first update.
    "recurrent-ppo": Algorithm("RecurrentPPO", "sb3_contrib", _NO_KEYS, _RECURRENT_PPO, _CNN, **_LSTM),
    "dqn": Algorithm("DQN", "stable_baselines3", ("Discrete",), _DQN, _CNN),
    "qr-dqn": Algorithm("QR-DQN", "sb3_contrib", ("Discrete",), _DQN, _CNN, policy_kwargs={"n_quantiles": 50}),
    "sac": Algorithm("SAC", "stable_baselines3", ("Box",), _SAC, {"learning_rate": 3e-4}),
}

#: Hyperparameters that are no arguments of the algorithm's constructor: they go to its policy or to the wrappers.
NOT_ITS_OWN = ("net_arch", "normalize_reward", "normalize_observation", "latent_deviation")
#: Every setting of `AgentConfig` that only some algorithms have, or that each has a default of its own for.
HYPERPARAMETERS = tuple(sorted({name for algorithm in ALGORITHMS.values() for name in algorithm.defaults}))

#: In `config.json` of a run: the folder of the module that "module:Env-v0" names. It is no setting.
ENV_FOLDER = "env_folder"
_MOST = 10**12  # of anything that is counted: more is a slip, and more than memory or torch can take
_COUNTS = ("steps", "envs", "runners", "history", "eval_episodes", "frame_skip", "n_steps", "n_epochs", "batch_size")
_COUNTS += ("buffer_size", "train_freq", "target_update_interval")
#: What values of a setting are valid: in words, as a function, and the settings.
_RANGES: tuple[tuple[str, Callable[[Any], bool], tuple[str, ...]], ...] = (
    (f"from 1 to {_MOST:,}", lambda value: 1 <= value <= _MOST, _COUNTS),
    (f"from 1 to {_MOST:,}, or -1 for one a step", lambda n: 1 <= n <= _MOST or n == -1, ("gradient_steps",)),
    (f"from 0 to {_MOST:,}", lambda value: 0 <= value <= _MOST, ("eval_every", "checkpoint_every", "learning_starts")),
    ("from 0 to 2^32 - 1", lambda value: 0 <= value < 2**32, ("seed",)),
    ("widths from 1 to 1,000,000", lambda value: all(1 <= width <= 1_000_000 for width in value), ("net_arch",)),
    ("a positive number", lambda value: 0 < value < math.inf, ("learning_rate", "latent_deviation")),
    ("above 0 and at most 1", lambda value: 0 < value <= 1, ("gamma",)),
    ("from 0 to 1", lambda value: 0 <= value <= 1, ("exploration_fraction", "exploration_final_eps")),
    ("a number, 0 or more, or auto", lambda value: value == "auto" or 0 <= value < math.inf, ("ent_coef",)),
    ("one of " + ", ".join(get_args(Normalization)), get_args(Normalization).__contains__, ("normalize_observation",)),
)


@dataclass(frozen=True)
class AgentConfig(RunConfig):
    """Settings of `latent-obs train-agent`, saved beside the agent as `config.json`.

    A hyperparameter that is None has the default of its algorithm (`ALGORITHMS`).
    """

    CHANGEABLE_ON_RESUME: ClassVar = (
        *("out", "steps", "device", "eval_every", "eval_episodes", "workers", "runners", "address", "backend", "log"),
    )
    REMOVED: ClassVar[dict[str, tuple[Any, str]]] = {
        **dict.fromkeys(("standardise", "standardize"), (False, "train a new agent with normalize_observation 'each'")),
        # The .zip of an agent holds the values of these that it was trained with.
        **dict.fromkeys(("clip_range", "clip_range_schedule", "gae_lambda", "lstm_size", "tau"), (ANY, "")),
        **dict.fromkeys(("n_quantiles", "keep_checkpoints", "exact_resume", "watch_drift"), (ANY, "")),
        ENV_FOLDER: (ANY, ""),
    }
    KIND: ClassVar[str] = "agent"
    WHERE_FROM: ClassVar[str] = "latent-obs train-agent"

    env: str = "VizdoomBasic-v1"
    """A registered Gymnasium environment with pixels, including those of ViZDoom and MineRL, or module:Env-v0: the
    module, which may be in the current folder, is imported first."""
    encoder: Path | None = None
    """Encoder folder (or the run folder of train-vae). Copied into the run."""
    pca: Path | None = None
    """For pca-latent: a folder of frames to fit principal components to, or a file of `latent_obs.PCA`. Saved in the
    run."""
    out: Path = Path("runs/agent")
    """Folder to make: best and last agent, the encoder, evaluations and logs."""
    observation: Observation = "latent"
    """latent: mean latents of the encoder. Baselines: random-latent (the untrained network), pca-latent (principal
    components of the frames, --pca), pixels (CnnPolicy)."""
    steps: int = 150_000
    """Environment steps to train for, over all environments."""
    envs: int = 8
    """Environments in parallel."""
    workers: Literal["processes", "serial"] = "processes"
    """processes: each environment in its own process. serial: all in this process, one after the other."""
    engine: Literal["sb3", "rllib"] = "sb3"
    """What trains: sb3 (Stable-Baselines3, on this machine), or rllib (PPO of RLlib, whose runners hold the
    environments, on any number of machines; an extra: ray). Both leave the same run folder."""
    runners: int | None = None
    """For rllib: processes, anywhere in the cluster, that share the environments evenly and encode their frames; one by
    default."""
    address: str | None = None
    """For rllib: "host:port" of the head node of a Ray cluster, auto for the cluster of this machine, local to start
    one. None is auto where there is such a cluster, and else local."""
    frame_skip: int | None = None
    """Passed to the environment as frame_skip when given: game frames per agent step. 4 is usual for ViZDoom."""
    env_kwargs: dict[str, EnvArgument] = field(default_factory=dict, metadata={"type": dict[str, Any]})
    """Further arguments of the environment, as name value pairs. max_episode_steps 1000 is a time limit. For running
    MineRL games: port 9000 (environment i uses port 9000 + i, and evaluations use the ports after those)."""
    render: bool = False
    """Observe the picture that the environment draws, such as CartPole's, in place of its own observation."""
    pixel_key: str | None = None
    """Entry of a Dict observation that holds the pixels, if there is more than one image."""
    latent_only: bool = False
    """Drop every other entry of a Dict observation (inventory, game variables)."""
    flatten: bool | None = None
    """One vector, latent first and all else after it, instead of a Dict observation. None: only for MineRL."""
    history: int = 1
    """Number of recent latents that the agent sees, the oldest first: one picture does not show speed. On pixels,
    frames stacked as channels."""
    precision: Precision = "auto"
    """Precision of the encoder's layers: float32 (auto), or bfloat16, which is faster on processors that support it."""
    backend: Backend = "auto"
    """Library that encodes: torch, openvino (on a CPU; an extra), or auto: the faster one of those installed."""
    algorithm: AlgorithmName = "ppo"
    """ppo, recurrent-ppo (no MultiBinary actions), dqn and qr-dqn (Discrete actions), or sac (continuous actions)."""
    learning_rate: float | None = None
    """Step size of Adam at the beginning."""
    learning_rate_schedule: Shape = "constant"
    """How the step size falls to 0 over the run's steps."""
    batch_size: int | None = None
    """Samples per gradient step."""
    gamma: float | None = None
    """Discount per agent step."""
    net_arch: tuple[int, ...] | None = None
    """Hidden layers of the policy, and of the value function, on top of the latent (or of the CNN)."""
    normalize_reward: bool | None = None
    """Divide rewards by the running deviation of the return. Evaluations show the game's own rewards."""
    normalize_observation: Normalization | None = None
    """Shift and scale latents, and numbers beside them, by their running mean and deviation. together: the values of a
    latent share one deviation, so that values that hardly vary stay small. each: every number has its own. off: not at
    all. Pixels are never normalized."""
    latent_deviation: float | None = None
    """With together: the deviation of a latent's values after normalization. Large values saturate tanh units, which
    slows learning."""
    ent_coef: float | Literal["auto"] | None = None
    """Weight of the entropy bonus, which keeps the agent exploring. auto (SAC only): adapted during training."""
    n_steps: int | None = None
    """Steps in each environment between two updates."""
    n_epochs: int | None = None
    """Passes over the samples of an update."""
    buffer_size: int | None = None
    """Steps that the replay buffer holds, over all environments."""
    learning_starts: int | None = None
    """Steps with random actions before learning begins."""
    train_freq: int | None = None
    """Steps in each environment between two updates."""
    gradient_steps: int | None = None
    """Gradient steps of an update. -1: as many as steps were taken since the last one."""
    target_update_interval: int | None = None
    """Steps between two updates of the target network."""
    exploration_fraction: float | None = None
    """Share of the run over which the share of random actions falls."""
    exploration_final_eps: float | None = None
    """Share of random actions after that."""
    checkpoint_every: int = 10_000
    """Environment steps between checkpoints, at which environments are reset (not MineRL's), so that a resumed run
    gives the same agent. 0: only at the end, or when the run is stopped."""
    eval_every: int = 25_000
    """Environment steps between evaluations. 0: none."""
    eval_episodes: int = 20
    """Episodes per evaluation."""
    deterministic: bool = True
    """Evaluate the most likely action rather than a sample."""
    seed: int = 0
    """Seed of the agent and of the environments (seed, seed + 1, …)."""
    device: str = "auto"
    """Where to encode, and where pixel agents learn: auto, cpu, cuda, cuda:N, mps."""
    log: Service | None = None
    """Where to log as well, beside the files and TensorBoard in logs/: wandb or trackio."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("algorithm", self.algorithm, ALGORITHMS)
        for name in self._given.keys() - self.trainer.defaults.keys():
            users = ", ".join(a.title for a in ALGORITHMS.values() if name in a.defaults)
            raise InputError(f"{name} is a setting of {users}, not of {self.trainer.title}; leave it out")
        for expected, is_valid, names in _RANGES:
            for name in names:
                value = getattr(self, name)
                if value is not None and not is_valid(value):
                    raise InputError(f"{name} must be {expected}, got {value!r}")
        if self.ent_coef == "auto" and self.algorithm != "sac":
            raise InputError(f"ent_coef must be a number for {self.trainer.title}, got 'auto'")
        values = self.hyperparameters
        if self.engine == "rllib":
            self._check_rllib(values)
        if "n_steps" in values:
            batch, samples = values["batch_size"], values["n_steps"] * self.envs
            if batch < 2 or samples < 2 or samples % batch == 1:
                raise InputError(
                    f"batch_size is {batch}, and n_steps x envs = {samples} samples: a batch of one sample has no "
                    "standard deviation to normalize advantages by; change one of them"
                )

    def _check_rllib(self, values: Mapping[str, Any]) -> None:
        if self.algorithm != "ppo" or self.observation == "pixels":
            raise InputError(
                f"engine rllib trains PPO on latents, not {self.trainer.title} on {self.observation}; leave it out, "
                "which trains with Stable-Baselines3"
            )
        if not values["net_arch"]:
            raise InputError("net_arch must have a layer at least with engine rllib, got none")

    def check_runners(self) -> None:
        """Check runners and address, which can be given without engine and envs to resume a run that has these.

        Raises:
            InputError: They are given for another engine, or the runners cannot share the environments.
        """
        if self.engine != "rllib" and (self.runners, self.address) != (None, None):
            raise InputError("runners and address are settings of engine rllib; give it as well, or leave them out")
        if self.envs % (self.runners or 1):
            raise InputError(f"runners: {self.envs} envs cannot be shared evenly by {self.runners} runners; change one")

    @property
    def _given(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in HYPERPARAMETERS if getattr(self, name) is not None}

    @property
    def trainer(self) -> Algorithm:
        """The algorithm itself."""
        return ALGORITHMS[self.algorithm]

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Every hyperparameter of the algorithm: the given value, or the default for latents or for pixels."""
        on_pixels = self.trainer.on_pixels if self.observation == "pixels" else {}
        return {**self.trainer.defaults, **on_pixels, **self._given}

    def settled(self) -> Self:
        """The same with all hyperparameters of the algorithm filled in, as a run saves them."""
        return dataclasses.replace(self, **self.hyperparameters)

    @property
    def exact(self) -> bool:
        """Whether environments are reset at checkpoints, so that a resumed run equals one that was never stopped.

        Not for MineRL, whose resets are slow and whose episodes are long, and not with RLlib.
        """
        return self.checkpoint_every > 0 and self.engine == "sb3" and not self._is_minerl

    @property
    def flattened(self) -> bool:
        """Whether the agent sees one vector."""
        return self._is_minerl if self.flatten is None else self.flatten

    @property
    def _is_minerl(self) -> bool:
        from latent_obs.envs.factory import is_minerl_id

        return is_minerl_id(self.env)

    @property
    def all_env_kwargs(self) -> dict[str, EnvArgument]:
        """Arguments of the environment, `frame_skip` and `render` included."""
        skip = {} if self.frame_skip is None else {"frame_skip": self.frame_skip}
        return {**self.env_kwargs, **skip, **({"render": True} if self.render else {})}
