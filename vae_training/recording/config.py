"""Settings of a recording; the command line is made from them."""

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from latent_obs.util.errors import InputError, check_count, check_types

#: Largest numbers that environments and pictures take.
_AT_MOST: dict[str, int] = {"size": 8192, "frame_skip": 2**31 - 1, "seed": 2**32 - 1}


@dataclass(frozen=True)
class RecordConfig:
    """What to record, and how.

    Example:
        >>> config = RecordConfig(env="VizdoomBasic-v1", out=Path("images"), frames=5000)
        >>> config.file_name(3)
        'VizdoomBasic-v1_003.npy'
    """

    env: str = ""
    """Registered Gymnasium id, such as VizdoomBasic-v1, or module:Env-v0: the module, which may be in the current
    folder, is imported first. With an agent of train-agent, the environment that it was trained in by default."""
    out: Path = Path("frames")
    """Folder of the frame files; one that holds some already is continued."""
    frames: int = 20_000
    """Frames of this environment to have in the folder in the end, including those that it has already."""
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
    env_kwargs: dict[str, bool | int | float | str] = field(default_factory=dict, metadata={"type": dict[str, Any]})
    """Further arguments of the environment."""
    render: bool = False
    """Record the picture that the environment draws, such as CartPole's, in place of its own observation."""
    pixel_key: str | None = None
    """Entry of a Dict observation that holds the pixels, where there is more than one image."""
    state: bool = True
    """Keep the state of the game beside each frame: ViZDoom's variables and objects in sight (their boxes take the
    engine more time), numbers of a Dict observation. Actions, rewards and episode ends are kept in any case."""
    seed: int = 0
    """File k is recorded with seed + k."""

    def __post_init__(self) -> None:
        check_types(self)
        if not self.env and self.agent is None:
            raise InputError("env must be a Gymnasium id such as VizdoomBasic-v1, got an empty string")
        for name, at_least in (("frames", 1), ("frames_per_file", 1), ("size", 1), ("frame_skip", 1), ("seed", 0)):
            if (value := getattr(self, name)) is not None or name not in ("size", "frame_skip"):
                check_count(name, value, at_least, _AT_MOST.get(name) or 2**63 - 1)
        if not 0 <= self.stickiness < 1:
            raise InputError(f"stickiness must be a probability below 1, got {self.stickiness!r}")

    @property
    def slug(self) -> str:
        """The environment's id as a part of a file name."""
        return re.sub(r"[^A-Za-z0-9.]+", "-", self.env).strip("-.") or "env"

    @property
    def make_kwargs(self) -> dict[str, Any]:
        """Arguments that the environment is made with."""
        skip = {} if self.frame_skip is None else {"frame_skip": self.frame_skip}
        return {**self.env_kwargs, **skip, **({"render": True} if self.render else {})}

    def file_name(self, index: int) -> str:
        """Name of the recording of this number."""
        return f"{self.slug}_{index:03d}.npy"

    def to_json(self) -> dict[str, Any]:
        """Plain values for an entry of `recording.json`."""
        values = {name: v for name, v in asdict(self).items() if name not in ("out", "frames", "frames_per_file")}
        return {**values, "agent": str(self.agent) if self.agent else None}
