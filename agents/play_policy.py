"""A trained agent that acts on an environment's own observations, for whoever plays that environment: `frames record` does."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecTransposeImage

from agents.envs import as_seen, contract_of, with_latents, with_normalization
from agents.evaluate import load_run
from agents.store import restore_statistics
from latent_obs.errors import InputError


class PlayPolicy:
    """An agent of Stable-Baselines3 behind the wrappers that it was trained with, without the environment beneath them.

    It is given an environment's observations one after the other, and tells what to do: for `vae_training.record(policy=…)`.
    Beneath the wrappers is a stand-in that hands on what it is given, so that whatever they do (resize, encode, normalise,
    stack, keep a history) is what they did in training.

    Args:
        model: The agent, of any algorithm.
        wrap: Puts the wrappers of training around one environment. They must change only what is seen: none may skip
            frames, end episodes or change actions, which is for the environment itself to do.
        deterministic: Take the most likely action rather than a sample.
        notes: What it is, in plain values.
        settings: The environment that it was trained in: "env", "env_kwargs", "frame_skip", "pixel_key".

    Example::

        def wrap(env):
            return VecLatentObservation(DummyVecEnv([lambda: env]), encoder, latent_only=True)

        record(RecordConfig("VizdoomBasic-v1", Path("frames")), policy=PlayPolicy(PPO.load("mine.zip"), wrap))
    """

    def __init__(
        self,
        model: BaseAlgorithm,
        wrap: Callable[[gym.Env[Any, Any]], VecEnv | gym.Env[Any, Any]],
        *,
        deterministic: bool = False,
        notes: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.deterministic = model, deterministic
        self.notes: Mapping[str, Any] = {**(notes or {}), "deterministic": deterministic}
        self.settings: Mapping[str, Any] = dict(settings or {})
        self._wrap = wrap
        self._given: _Given | None = None
        self._venv: VecEnv | None = None
        self._state: Any = None
        self._begins = True

    def begin(self, env: gym.Env[Any, Any]) -> None:
        """Put the wrappers around a stand-in for an environment.

        Raises:
            InputError: Its actions or observations are not those that the agent was trained with.
        """
        advice = f"Let it act in {self.settings['env']}" if "env" in self.settings else "Let it act where it was trained"
        if self.model.action_space != env.action_space:
            raise InputError(
                f"the agent was trained with actions {_line(self.model.action_space)}, and this environment has "
                f"{_line(env.action_space)}. {advice}, made with the same arguments"
            )
        self._given = _Given(env.observation_space, env.action_space)
        wrapped = self._wrap(self._given)
        venv = wrapped if isinstance(wrapped, VecEnv) else DummyVecEnv([lambda: wrapped])
        if not _is_of(self.model, venv.observation_space):
            raise InputError(
                f"the agent was trained on {_brief(self.model.observation_space)}, and would see "
                f"{_brief(venv.observation_space)} of this environment. {advice}, made with the same arguments"
            )
        self._venv = venv
        self.reset(None)

    def reset(self, seed: int | None) -> None:
        """An episode begins: what wrappers and agent remember of the one before is forgotten."""
        self._begins, self._state = True, None

    def __call__(self, observation: Any) -> Any:
        """What to do, as the environment's action space has it."""
        if self._given is None or self._venv is None:
            raise InputError("begin(env) tells the policy which environment it acts in, and comes first")
        self._given.put(observation)
        if self._begins:
            seen: Any = self._venv.reset()
        else:
            seen, _, _, _ = self._venv.step(np.asarray(self._given.no_action)[None])
        actions, self._state = self.model.predict(
            seen, state=self._state, episode_start=np.array([self._begins]), deterministic=self.deterministic
        )
        self._begins = False
        return int(actions[0]) if isinstance(self.model.action_space, spaces.Discrete) else np.array(actions[0])


class _Given(gym.Env[Any, Any]):
    """Stands in for an environment: each observation that it is given is what it shows next, once."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self.no_action = action_space.sample()  # nobody looks at it
        self._waiting: list[Any] = []

    def put(self, observation: Any) -> None:
        self._waiting = [observation]

    def _take(self) -> Any:
        if not self._waiting:
            raise InputError(
                "the wrappers of a PlayPolicy may only change what is seen, and these step or reset the environment by "
                "themselves. Put what skips frames or ends episodes into the environment that is played"
            )
        return self._waiting.pop()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self._take(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._take(), 0.0, False, False, {}


def load_policy(run: str | Path, which: str = "best", *, deterministic: bool = False, device: str = "auto") -> PlayPolicy:
    """An agent of `train-agent`, on latents or on a baseline's observations, that acts on its environment's own observations.

    It sees what it saw in training and does in evaluations: the run's encoder, its running statistics, its wrappers. The
    environment must be made with the same arguments (`settings` of the policy), its frame skip among them.

    Args:
        run: The run folder.
        which: "best", "last" or the step of a kept checkpoint.
        deterministic: Take the most likely action rather than a sample, which shows more of the game.
        device: Where to encode.

    Raises:
        InputError: There is no such agent, or its files are damaged. The .zip is pickled: load only what you trust.
        EncoderFolderError: The run's encoder is damaged.
        DeviceError: The device asked for is not there.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise InputError(
            f"agent {folder} {'is a file' if folder.exists() else 'does not exist'}, expected a run folder of latent-obs "
            "train-agent (of its agents, --which names one). For any other agent of Stable-Baselines3, call from Python "
            "record(config, policy=...), with an agents.PlayPolicy"
        )
    config, model, encoder = load_run(folder, which, device)
    small_frames = as_seen(config, contract_of(encoder))

    def wrap(env: gym.Env[Any, Any]) -> VecEnv:  # as make_vec_env and evaluation_env do
        small = small_frames(env)
        normalized = with_normalization(config, with_latents(config, DummyVecEnv([lambda: small]), encoder), training=False)
        if _is_of(model, normalized.observation_space):  # if not, begin() says what is wrong
            restore_statistics(folder, which, normalized)
        return normalized

    arguments = dict(config.all_env_kwargs)
    frame_skip = arguments.pop("frame_skip", None)
    notes = {
        "run": str(folder), "which": which, "steps": model.num_timesteps, "env": config.env, "observation": config.observation,
        "encoder": None if encoder is None or encoder.path is None else str(encoder.path),
    }  # fmt: skip
    return PlayPolicy(
        model, wrap, deterministic=deterministic, notes=notes,
        settings={"env": config.env, "env_kwargs": arguments, "frame_skip": frame_skip, "pixel_key": config.pixel_key},
    )  # fmt: skip


def _is_of(model: BaseAlgorithm, space: spaces.Space[Any]) -> bool:
    """Whether an agent was trained on observations of a space; Stable-Baselines3 turns pictures for its CNNs."""
    return model.observation_space in (space, _channels_first(space))


def _line(space: spaces.Space[Any]) -> str:
    return " ".join(str(space).split())


def _brief(space: spaces.Space[Any]) -> str:
    entries = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    return ", ".join(f"{k} {type(s).__name__}{s.shape}".strip() for k, s in entries.items())


def _channels_first(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """A space with its pictures as Stable-Baselines3 turns them."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: _channels_first(entry) for key, entry in space.spaces.items()})
    if isinstance(space, spaces.Box) and is_image_space(space) and not is_image_space_channels_first(space):
        return VecTransposeImage.transpose_space(space)
    return space
