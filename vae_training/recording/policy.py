"""Who acts while frames are recorded, where that is not the random policy: what `record` asks of it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import gymnasium as gym

from latent_obs.util.errors import InputError
from vae_training.recording.config import RecordConfig


class Policy(Protocol):
    """Acts on an environment's own observations. `agents.load_policy` makes one of a trained agent, on latents or on
    pixels.

    Example:
        >>> class ToAndFro:
        ...     notes, settings = {"name": "to and fro"}, {}
        ...     def begin(self, env): pass
        ...     def reset(self, seed): self.step = 0
        ...     def __call__(self, observation):
        ...         self.step += 1
        ...         return self.step // 20 % 2
        >>> policy: Policy = ToAndFro()
    """

    @property
    def notes(self) -> Mapping[str, Any]:
        """What it is, for `recording.json`: plain values."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """The environment that it was made for: "env", "env_kwargs", "frame_skip", "pixel_key"; empty where none is
        known.
        """
        ...

    def begin(self, env: gym.Env[Any, Any]) -> None:
        """Look at the environment, once and before its first reset.

        Raises:
            InputError: It is none to act in.
        """
        ...

    def reset(self, seed: int | None) -> None:
        """Forget what was seen: an episode begins.

        Args:
            seed: Given at the beginning of each file, for random numbers of its own (torch's generator is seeded as
                well).
        """
        ...

    def __call__(self, observation: Any) -> Any:
        """The action at an observation as the environment gave it; asked once for each step, in order."""
        ...


def for_policy(config: RecordConfig, policy: Policy, say: Callable[[str], object]) -> RecordConfig:
    """The settings of a recording, with what was not given taken from the environment that the policy was made for.

    Args:
        config: The settings as given.
        policy: Who will act.
        say: Where a remark goes.

    Raises:
        InputError: Another frame skip was given than the policy acts with, or no environment.

    Example:
        >>> from pathlib import Path
        >>> class Stay:
        ...     notes, settings = {}, {"env": "VizdoomBasic-v1", "frame_skip": 4}
        >>> for_policy(RecordConfig(agent=Path("runs/agent")), Stay(), print).make_kwargs
        {'frame_skip': 4}
    """
    known = policy.settings
    trained = known.get("env")
    if not config.env and not trained:
        raise InputError("env must be given: this agent does not tell of which environment it is")
    if not known:
        return config
    same = config.env in ("", trained)
    if not same:
        say(f"the agent was trained in {trained}, and acts in {config.env} here")
    given, own = config.make_kwargs.get("frame_skip"), known.get("frame_skip")
    if given not in (None, own):
        raise InputError(
            f"frame_skip is {given} here, and the agent was trained with {'none given' if own is None else own}: it would see "
            "and do other things than in training. Leave frame_skip out, and the agent's is taken"
        )
    return dataclasses.replace(
        config,
        env=config.env or str(trained),
        frame_skip=own,
        env_kwargs={**(known.get("env_kwargs") or {}), **config.env_kwargs} if same else config.env_kwargs,
        pixel_key=config.pixel_key or (known.get("pixel_key") if same else None),
    )
