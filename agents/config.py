"""Everything that decides an agent's training run, as one frozen dataclass; the command line is made from it."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from latent_obs.engines import Backend, Precision
from latent_obs.environments import is_minerl_id
from latent_obs.errors import InputError
from latent_obs.run_config import RunConfig

EnvArgument = bool | int | float | str
Observation = Literal["latent", "random-latent", "pixels"]


@dataclass(frozen=True)
class AgentConfig(RunConfig):
    """Settings of `latent-obs train-agent`, saved beside the agent as `config.json`."""

    CHANGEABLE_ON_RESUME: ClassVar[tuple[str, ...]] = (
        "out", "steps", "device", "eval_every", "eval_episodes", "workers", "watch_drift", "backend",
    )  # fmt: skip
    KIND: ClassVar[str] = "agent"
    WHERE_FROM: ClassVar[str] = "latent-obs train-agent"

    env: str = "VizdoomBasic-v1"
    """A registered Gymnasium environment with pixels, ViZDoom's and MineRL's among them."""
    encoder: Path | None = None
    """Encoder folder (or the run folder of train-vae). Copied beside the agent."""
    out: Path = Path("runs/agent")
    """Folder to make: best and last agent, the encoder, evaluations and logs."""
    observation: Observation = "latent"
    """latent: mean latents of the encoder. Baselines: random-latent (the network untrained), pixels (CnnPolicy)."""
    steps: int = 150_000
    """Environment steps to train for, over all environments."""
    envs: int = 8
    """Environments in parallel."""
    workers: Literal["processes", "serial"] = "processes"
    """processes: each environment in one of its own. serial: all in this process, one after the other."""
    frame_skip: int | None = None
    """Passed to the environment as frame_skip when given: game frames per agent step. 4 is usual for ViZDoom."""
    env_kwargs: dict[str, EnvArgument] = field(default_factory=dict)
    """Further arguments of the environment, as name value pairs. MineRL games that run already: port 9000 (each environment has
    a port of its own, counted from there; evaluations use those after)."""
    pixel_key: str | None = None
    """Entry of a Dict observation that holds the pixels, where there is more than one image."""
    latent_only: bool = False
    """Drop every other entry of a Dict observation (inventory, game variables), so that pixels are all there is."""
    flatten: bool | None = None
    """One vector, latent first and all else after it, in place of a Dict observation. None: for MineRL's environments."""
    history: int = 1
    """Latents that the agent sees, the oldest first: a single picture tells no speed."""
    standardise: bool = False
    """Shift and scale latents by their mean and deviation over the encoder's training frames."""
    precision: Precision = "float32"
    """Of the encoder's layers: float32, or bfloat16, faster where the processor has it."""
    backend: Backend = "torch"
    """What encodes: torch, or openvino (on a CPU; an extra)."""
    watch_drift: bool = True
    """Warn, and log, when the agent sees what the encoder never saw; with encoders whose folder has statistics."""
    learning_rate: float = 5e-4
    """Step size of Adam."""
    n_steps: int = 128
    """Steps in each environment between two updates."""
    batch_size: int = 256
    """Samples per gradient step of PPO."""
    n_epochs: int = 4
    """Passes over the samples of an update."""
    gamma: float = 0.99
    """Discount per agent step."""
    gae_lambda: float = 0.95
    """Weight of longer returns in the advantage (Schulman et al. 2016)."""
    ent_coef: float = 0.01
    """Weight of the entropy bonus, which keeps the agent exploring."""
    clip_range: float = 0.2
    """How far an update may move the policy (Schulman et al. 2017)."""
    net_arch: tuple[int, ...] = (64, 64)
    """Hidden layers of the policy, and of the value function, on top of the latent."""
    normalize_reward: bool = True
    """Divide rewards by the running standard deviation of the return. Evaluations show the game's own rewards."""
    normalize_observation: bool = True
    """Shift and scale latents (and numbers beside them) by their running mean and deviation: a latent that moves little, as
    one that stands for a small monster does, then counts as much as the others. Pixels are left to the CNN."""
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
        for name in ("steps", "envs", "history", "n_steps", "n_epochs", "eval_episodes"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.batch_size < 2:
            raise InputError(f"batch_size must be 2 or more, for PPO to normalise advantages by, got {self.batch_size}")
        if self.frame_skip is not None and self.frame_skip < 1:
            raise InputError(f"frame_skip must be 1 or more, got {self.frame_skip}")
        if any(width < 1 for width in self.net_arch):
            raise InputError(f"net_arch must be positive widths, got {self.net_arch}")
        if self.eval_every < 0 or self.seed < 0:
            raise InputError(f"eval_every and seed must be 0 or more, got {self.eval_every} and {self.seed}")
        for name in ("learning_rate", "clip_range"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} must be a positive number, got {getattr(self, name)}")
        if not 0 < self.gamma <= 1:
            raise InputError(f"gamma must be above 0 and at most 1, got {self.gamma}")
        if not 0 <= self.gae_lambda <= 1:
            raise InputError(f"gae_lambda must be from 0 to 1, got {self.gae_lambda}")
        if not 0 <= self.ent_coef < math.inf:
            raise InputError(f"ent_coef must be a number, 0 or more, got {self.ent_coef}")
        if self.n_steps * self.envs < 2 or (self.n_steps * self.envs) % self.batch_size == 1:
            raise InputError(
                f"n_steps x envs = {self.n_steps * self.envs} samples cannot be cut into batches of {self.batch_size}: "
                "a batch of one sample has no standard deviation to normalise advantages by"
            )

    @property
    def flattened(self) -> bool:
        """Whether the agent sees one vector."""
        return is_minerl_id(self.env) if self.flatten is None else self.flatten

    @property
    def all_env_kwargs(self) -> dict[str, EnvArgument]:
        """Arguments of the environment, `frame_skip` included."""
        return {**self.env_kwargs, **({"frame_skip": self.frame_skip} if self.frame_skip is not None else {})}
