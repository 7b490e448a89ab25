"""What to record and how, as one frozen dataclass; the command line is made from it."""

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from latent_obs.util.errors import InputError


@dataclass(frozen=True)
class RecordConfig:
    """What to record, and how.

    Example:
        >>> config = RecordConfig(env="VizdoomBasic-v1", out=Path("images"), frames=5000)
        >>> config.file_name(3)
        'VizdoomBasic-v1_003.npy'
    """

    env: str = ""
    """Registered Gymnasium id, such as VizdoomBasic-v1. May be left out where an agent of train-agent acts: its own it
    is."""
    out: Path = Path("frames")
    """Folder of the frame files; one that holds some already is continued."""
    frames: int = 20_000
    """Frames of this environment to have in the folder in the end, those that it has already among them."""
    frames_per_file: int = 2_500
    """Frames per file; each file is one recording and begins with a reset."""
    policy: Literal["random", "sticky"] = "sticky"
    """How to act: random actions, or random ones that are held for a while (gets further)."""
    agent: Path | None = None
    """Agent that acts instead of the policy: a run folder of train-agent, on latents or pixels. Loading it can run
    code."""
    deterministic: bool = False
    """Take the agent's most likely action rather than a sample, which shows more of the game."""
    stickiness: float = 0.75
    """Probability to repeat the last action, for the sticky policy."""
    size: int | None = 64
    """Side of the recorded frames in pixels; None keeps the environment's own size."""
    frame_skip: int | None = None
    """Passed to the environment as frame_skip, where given. An agent of train-agent has its own."""
    env_kwargs: dict[str, bool | int | float | str] = field(default_factory=dict)
    """Further arguments of the environment."""
    pixel_key: str | None = None
    """Entry of a Dict observation that holds the pixels, where there is more than one image."""
    state: bool = True
    """Keep what the environment tells of each frame beside the picture: ViZDoom's variables and objects in sight (their
    boxes take the engine more time), numbers of a Dict observation. Actions, rewards and episode ends are kept in any
    case."""
    seed: int = 0
    """File k is recorded with seed + k."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", Path(self.out))
        object.__setattr__(self, "agent", None if self.agent is None else Path(self.agent))
        if not self.env and self.agent is None:
            raise InputError("env must be a Gymnasium id such as VizdoomBasic-v1, got an empty string")
        for name in ("frames", "frames_per_file", "size", "frame_skip"):
            value = getattr(self, name)
            optional = name in ("size", "frame_skip")
            if not (value is None and optional) and not _is_int(value, 1):
                raise InputError(f"{name} must be a positive integer{' or None' if optional else ''}, got {value!r}")
        if self.policy not in ("random", "sticky"):
            raise InputError(f"policy must be 'random' or 'sticky', got {self.policy!r}")
        if not 0 <= self.stickiness < 1:
            raise InputError(
                f"stickiness must be a probability below 1 (1 would never act anew), got {self.stickiness!r}"
            )
        if not _is_int(self.seed, 0):
            raise InputError(f"seed must be an integer, zero or more, got {self.seed!r}")

    @property
    def slug(self) -> str:
        """The environment's id as a part of a file name."""
        return re.sub(r"[^A-Za-z0-9.]+", "-", self.env).strip("-.") or "env"

    @property
    def make_kwargs(self) -> dict[str, Any]:
        """What the environment is made with."""
        return {**self.env_kwargs, **({} if self.frame_skip is None else {"frame_skip": self.frame_skip})}

    def file_name(self, index: int) -> str:
        """Name of the recording of this number."""
        return f"{self.slug}_{index:03d}.npy"

    def to_json(self) -> dict[str, Any]:
        """Plain values for `recording.json`; where and how much is said there per file."""
        values = asdict(self)
        for name in ("out", "frames", "frames_per_file"):
            del values[name]
        return {**values, "agent": str(self.agent) if self.agent else None}


def _is_int(value: Any, at_least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= at_least
