"""A trained agent that acts on an environment's own observations, and a description of each of its decisions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import Tensor

from agents.envs import as_seen, contract_of, with_latents, with_normalization
from agents.evaluation import load_run
from agents.hub import run_folder
from agents.store import restore_statistics
from latent_obs.actions import plain_actions
from latent_obs.envs.factory import make_pixel_env
from latent_obs.pixels import brief
from latent_obs.util.device import torch_threads
from latent_obs.util.errors import InputError

Names = tuple[str, ...]
Choices = list[list[str]] | None


class PlayPolicy:
    """An agent of Stable-Baselines3 with the wrappers that it was trained with, which acts on an environment's pixels.

    It gets an environment's observations one by one and returns actions; `vae_training.record(policy=...)` takes it.
    Beneath the wrappers is a stand-in that returns the observations it was given, so whatever the wrappers do (resize,
    encode, normalize, stack, keep a history) is what they did in training.

    Args:
        model: The agent, of any algorithm.
        wrap: Puts the wrappers of training around one environment. They must change observations only: skipping
            frames, ending episodes and changing actions belong into the environment itself.
        deterministic: Take the most likely action rather than a sample.
        notes: A description in plain values, which `record` writes beside the frames.
        settings: The environment that it was trained in: "env", "env_kwargs", "frame_skip", "pixel_key".

    Example::

        policy = PlayPolicy(PPO.load("mine.zip"), lambda env: VecLatentObservation(DummyVecEnv([lambda: env]), encoder))
        record(RecordConfig("VizdoomBasic-v1", Path("frames")), policy=policy)
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
        self._venv: VecEnv | None = None

    def begin(self, env: gym.Env[Any, Any]) -> None:
        """Put the wrappers around a stand-in for an environment.

        Raises:
            InputError: Its actions or observations are not those that the agent was trained with.
        """
        self._stand_in = _StandIn(env.observation_space, env.action_space)
        # An agent of the user's own may act in the environment's space itself.
        own = self.model.action_space == env.action_space
        plain = self._stand_in if own else plain_actions(self._stand_in)
        self._require_same("actions", self.model.action_space, plain.action_space)
        self._to_env = plain.action if isinstance(plain, gym.ActionWrapper) else lambda action: action
        # As Stable-Baselines3 itself does: it transposes pictures for its CNNs.
        self._venv = self.model._wrap_env(self._wrap(self._stand_in), monitor_wrapper=False)
        self._require_same("observations", self.model.observation_space, self._venv.observation_space)
        self._any_actions = np.array([plain.action_space.sample()])  # what is done in the stand-in has no effect
        self.reset()

    def _require_same(self, what: str, trained: spaces.Space[Any], given: spaces.Space[Any]) -> None:
        if trained != given:
            raise InputError(
                f"env: the agent was trained in {self.settings.get('env', 'another environment')} with {what} "
                f"{brief(trained)}, got {brief(given)}; make the environment of training, with the same arguments"
            )

    def make_env(self, **kwargs: Any) -> gym.Env[Any, Any]:
        """Make the environment of its training, and prepare to act there.

        Args:
            **kwargs: Further arguments of `gymnasium.make`, such as ``render_mode="human"``.

        Raises:
            InputError: The environment is unknown here, or `settings` name none.
        """
        if not (name := self.settings.get("env")):
            raise InputError("env: the settings of this policy name no environment; make it, and call begin(env)")
        skip = self.settings.get("frame_skip")
        arguments = {**(self.settings.get("env_kwargs") or {}), **({} if skip is None else {"frame_skip": skip})}
        env = make_pixel_env(name, **{**arguments, **kwargs})
        try:
            self.begin(env)
        except BaseException:
            env.close()
            raise
        return env

    def play(self, env: gym.Env[Any, Any], *, seed: int | None = None) -> float:
        """Play one episode, and return the sum of its rewards; `evaluate_agent` plays many.

        Args:
            env: From `make_env`, or another environment with the same observations and actions.
            seed: Of the environment's reset; None for an episode of its choice.
        """
        self.begin(env)
        with torch_threads(1):  # one frame at a time: more threads would only wait for each other
            observation, _ = env.reset(seed=seed)
            total, over = 0.0, False
            while not over:
                observation, reward, terminated, truncated, _ = env.step(self(observation))
                total, over = total + float(reward), terminated or truncated
        return total

    def reset(self, seed: int | None = None) -> None:
        """Begin an episode: wrappers and agent forget the previous one."""
        self._begins, self._state = True, None

    def __call__(self, observation: Any) -> Any:
        """The action for an observation, as the environment's action space has it."""
        if self._venv is None:
            raise InputError("make_env() or begin(env) must be called before the policy acts")
        self._stand_in.waiting = [observation]
        seen: Any = self._venv.reset() if self._begins else self._venv.step(self._any_actions)[0]
        actions, self._state = self.model.predict(
            seen, state=self._state, episode_start=np.array([self._begins]), deterministic=self.deterministic
        )
        self._begins = False
        action = self._to_env(actions[0])
        return int(action) if isinstance(self.model.action_space, spaces.Discrete) else np.array(action)


class _StandIn(gym.Env[Any, Any]):
    """In place of an environment: its next observation is the one in `waiting`, once."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self.waiting: list[Any] = []

    def _take(self) -> Any:
        if not self.waiting:
            raise InputError(
                "wrap: the wrappers of a PlayPolicy may only change observations, and these step the environment "
                "themselves; put what skips frames or ends episodes into the environment that is played"
            )
        return self.waiting.pop()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self._take(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._take(), 0.0, False, False, {}


def load_policy(
    run: str | Path, which: str = "best", *, deterministic: bool = False, device: str = "auto", trust: bool = False
) -> PlayPolicy:
    """Load an agent of `train-agent`, its encoder and its normalization, as a policy on its environment's observations.

    Args:
        run: The run folder, or with `trust` a repository of Hugging Face.
        which: "best" or "last".
        deterministic: Take the most likely action rather than a sample, which visits more of the game.
        device: Where to encode.
        trust: Whether to load an agent of Hugging Face ("user/name"), whose pickled settings can run any code.

    Raises:
        InputError: There is no such agent, its files are damaged, or it is not trusted. The .zip is pickled: load only
            what you trust.
        EncoderFolderError: The run's encoder is damaged.
        DeviceError: There is no such device.

    Example::

        policy = load_policy("runs/agent")
        env = policy.make_env(render_mode="human")  # the environment of its training
        print(policy.play(env, seed=0))  # one episode: the sum of its rewards

        observation, info = env.reset()  # or step by step
        policy.reset()  # at each episode
        observation, reward, terminated, truncated, info = env.step(policy(observation))
    """
    folder = run_folder(run, trust)
    if not folder.is_dir():
        raise InputError(
            f"agent {folder} is no folder, expected a run folder of latent-obs train-agent. For any other agent of "
            "Stable-Baselines3, call record(config, policy=...) from Python, with an agents.PlayPolicy"
        )
    config, model, encoder = load_run(folder, which, device)
    resized = as_seen(config, contract_of(encoder))

    def wrap(env: gym.Env[Any, Any]) -> VecEnv:  # as make_vec_env does
        small = resized(env)
        latents = with_latents(config, DummyVecEnv([lambda: small]), encoder)
        normalized = with_normalization(config, latents, training=False)
        restore_statistics(folder, which, normalized, model)
        return normalized

    notes: dict[str, Any] = {"run": str(folder), "which": which, "steps": model.num_timesteps, "env": config.env}
    path = None if encoder is None else encoder.path
    notes |= {"observation": config.observation, "encoder": None if path is None else str(path)}
    arguments = config.all_env_kwargs
    settings = {"env": config.env, "frame_skip": arguments.pop("frame_skip", None), "env_kwargs": arguments}
    settings["pixel_key"] = config.pixel_key
    return PlayPolicy(model, wrap, deterministic=deterministic, notes=notes, settings=settings)


@dataclass(frozen=True)
class Decision:
    """The choice of one step, with a row for each action, button or number."""

    caption: str
    names: Names
    levels: tuple[float, ...]
    """In [0, 1], or in [-1, 1] where `signed`."""
    texts: tuple[str, ...]
    chosen: tuple[bool, ...]
    """Which rows the agent does."""
    signed: bool = False


def action_names(env: gym.Env[Any, Any]) -> Names:
    """A name per action of a Discrete space, per button of a MultiBinary one, per choice or number of the others.

    They come from ViZDoom's buttons, from `names` of this project's wrappers for actions, or from
    `get_action_meanings()` (Atari). Without any of these the actions are numbered.
    """
    space = env.action_space
    count = int(space.n) if isinstance(space, spaces.Discrete) else int(np.prod(space.shape or (1,)))
    for names in (_doom_names(env), _attribute(env, "names"), _attribute(env, "get_action_meanings")):
        listed = names() if callable(names) else names
        if isinstance(listed, Sequence) and len(listed) == count and all(isinstance(name, str) for name in listed):
            return tuple(listed)
    return tuple(map(str, range(count)))


def _attribute(env: gym.Env[Any, Any], name: str) -> Any:
    return env.get_wrapper_attr(name) if env.has_wrapper_attr(name) else None


def _doom_names(env: gym.Env[Any, Any]) -> list[str] | None:
    """ViZDoom's buttons, or the combination that each number presses."""
    game, pressed = _attribute(env, "game"), _attribute(env, "button_map")
    if not hasattr(game, "get_available_buttons"):
        return None
    buttons = [button.name.lower().replace("_", " ") for button in game.get_available_buttons()]
    if not isinstance(env.action_space, spaces.Discrete) or pressed is None:
        return buttons
    return [" + ".join(b for b, down in zip(buttons, row, strict=False) if down) or "nothing" for row in pressed]


def choices_of(env: gym.Env[Any, Any]) -> Choices:
    """What each choice of a MultiDiscrete action chooses from, where a wrapper has such a list."""
    choices, space = _attribute(env, "choices"), env.action_space
    fits = isinstance(choices, list) and isinstance(space, spaces.MultiDiscrete) and len(choices) == len(space.nvec)
    return choices if fits else None


def decide(
    model: Any, observation: Any, state: Any, begins: bool, deterministic: bool, names: Names, choices: Choices = None
) -> tuple[NDArray[Any], Any, Decision]:
    """Ask an agent for an action, a batch of one; returns it, the new recurrent state, and a description."""
    starts = np.array([begins])
    estimates = _estimates(model.policy, observation, state, starts)
    actions, state = model.predict(observation, state=state, episode_start=starts, deterministic=deterministic)
    return actions, state, describe(model.action_space, actions[0], estimates, names, choices)


def describe(space: spaces.Space[Any], action: Any, estimates: Any, names: Names, choices: Choices = None) -> Decision:
    """Describe an action, with what the agent estimated of the others (by `_estimates`; None where it has none)."""
    flat = np.asarray(action, np.float64).reshape(-1)
    chosen = np.arange(len(names)) == flat[0] if isinstance(space, spaces.Discrete) else flat != 0
    if isinstance(space, spaces.Box):
        # In [-1, 1] by their bounds, with zero staying zero; without bounds, by the largest of them.
        bounds = np.maximum(np.abs(space.low), np.abs(space.high)).reshape(-1).astype(np.float64)
        bounds = np.where((bounds > 0) & (bounds < 1e30), bounds, max(float(np.abs(flat).max()), 1e-12))
        levels, texts = np.clip(flat / bounds, -1, 1), tuple(f"{value:+.2f}" for value in flat)
        return Decision("action", names, tuple(levels.tolist()), texts, (True,) * len(flat), signed=True)
    caption, levels = "action", chosen.astype(float)
    if isinstance(estimates, Tensor):
        caption, values = "action and its value", estimates[0].double().cpu().numpy()
        levels, texts = (values - values.min()) / max(float(np.ptp(values)), 1e-12), [f"{v:.3g}" for v in values]
    elif isinstance(space, spaces.MultiDiscrete):
        caption, words = "choices, how likely", choices or [list(map(str, range(n))) for n in space.nvec]
        texts = [word[int(n)] for word, n in zip(words, flat, strict=True)]
        levels = np.ones(len(flat))
        if estimates is not None:
            levels = np.array([float(part.probs[0, int(n)]) for part, n in zip(estimates, flat, strict=True)])
    elif estimates is not None:
        discrete = isinstance(space, spaces.Discrete)
        caption = "action and its probability" if discrete else "buttons, how likely pressed"
        levels = estimates.probs[0].double().cpu().numpy()
        texts = [f"{share:.0%}" for share in levels]
    else:
        texts = [""] * len(names)
    return Decision(caption, names, tuple(levels.tolist()), tuple(texts), tuple(chosen.tolist()))


def _estimates(policy: Any, observation: Any, state: Any, starts: NDArray[np.bool_]) -> Any:
    """The policy's `torch.distributions` object (a list of them for MultiDiscrete), or values, float (1, actions)."""
    with torch.inference_mode():
        policy.set_training_mode(False)
        seen, _ = policy.obs_to_tensor(observation)
        if hasattr(policy, "quantile_net"):  # QR-DQN: (1, quantiles, actions)
            return policy.quantile_net(seen).mean(dim=1)
        if hasattr(policy, "q_net"):
            return policy.q_net(seen)
        if hasattr(policy, "lstm_hidden_state_shape"):
            layers, _, size = policy.lstm_hidden_state_shape
            memory = (np.zeros((layers, 1, size)),) * 2 if state is None else state
            tensors = [torch.as_tensor(x, dtype=torch.float32, device=policy.device) for x in (*memory, starts)]
            return policy.get_distribution(seen, tuple(tensors[:2]), tensors[2])[0].distribution
        return policy.get_distribution(seen).distribution if hasattr(policy, "get_distribution") else None
