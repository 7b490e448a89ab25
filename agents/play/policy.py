"""A trained agent that acts on an environment's own observations, for whoever plays that environment: `frames record`
does.
"""

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
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    Distribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecTransposeImage
from torch import Tensor

from agents.envs import as_seen, contract_of, with_latents, with_normalization
from agents.evaluation import load_run
from agents.store import restore_statistics
from latent_obs.util.errors import InputError


class PlayPolicy:
    """An agent of Stable-Baselines3 behind the wrappers that it was trained with, without the environment beneath them.

    It is given an environment's observations one after the other, and tells what to do: for
    `vae_training.record(policy=…)`. Beneath the wrappers is a stand-in that hands on what it is given, so that whatever
    they do (resize, encode, normalize, stack, keep a history) is what they did in training.

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
        advice = (
            f"Let it act in {self.settings['env']}" if "env" in self.settings else "Let it act where it was trained"
        )
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


def load_policy(
    run: str | Path, which: str = "best", *, deterministic: bool = False, device: str = "auto"
) -> PlayPolicy:
    """An agent of `train-agent`, on latents or on a baseline's observations, that acts on its environment's own
    observations.

    It sees what it saw in training and does in evaluations: the run's encoder, its running statistics, its wrappers.
    The environment must be made with the same arguments (`settings` of the policy), its frame skip among them.

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
        normalized = with_normalization(
            config, with_latents(config, DummyVecEnv([lambda: small]), encoder), training=False
        )
        if _is_of(model, normalized.observation_space):  # if not, begin() says what is wrong
            restore_statistics(folder, which, normalized)
        return normalized

    arguments = dict(config.all_env_kwargs)
    frame_skip = arguments.pop("frame_skip", None)
    notes = {
        "run": str(folder),
        "which": which,
        "steps": model.num_timesteps,
        "env": config.env,
        "observation": config.observation,
        "encoder": None if encoder is None or encoder.path is None else str(encoder.path),
    }
    return PlayPolicy(
        model,
        wrap,
        deterministic=deterministic,
        notes=notes,
        settings={"env": config.env, "env_kwargs": arguments, "frame_skip": frame_skip, "pixel_key": config.pixel_key},
    )


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


@dataclass(frozen=True)
class Decision:
    """One step's choice, a row per action, button or number.

    Attributes:
        caption: What the levels are.
        names: A name per row.
        levels: A level per row: in [0, 1], or in [-1, 1] where `signed`.
        texts: What to write beside each level.
        chosen: Which rows the agent does.
        signed: Whether levels go both ways from zero.
    """

    caption: str
    names: tuple[str, ...]
    levels: tuple[float, ...]
    texts: tuple[str, ...]
    chosen: tuple[bool, ...]
    signed: bool = False

    @property
    def summary(self) -> str:
        """What it does, in a few words.

        Example:
            >>> Decision("action", ("left", "right"), (0.0, 1.0), ("", ""), (False, True)).summary
            'right'
        """
        return ", ".join(name for name, chosen in zip(self.names, self.chosen, strict=True) if chosen) or "nothing"


def action_names(env: gym.Env[Any, Any]) -> tuple[str, ...]:
    """A name per action of a Discrete space, per button of a MultiBinary one, per choice or number of the others.

    From the environment where it tells: ViZDoom's buttons, `names` of this project's wrappers for actions, or
    `get_action_meanings()`, as Atari's have it. Else they are numbered.

    Args:
        env: The environment, wrappers and all.

    Example:
        >>> class Pendulum(gym.Env):
        ...     action_space = spaces.Box(-2.0, 2.0, (2,))
        >>> action_names(Pendulum())
        ('0', '1')
    """
    space = env.action_space
    count = int(space.n) if isinstance(space, spaces.Discrete) else int(np.prod(space.shape or (1,)))
    for names in (_doom_names(env), _attribute(env, "names"), _attribute(env, "get_action_meanings")):
        listed = names() if callable(names) else names
        if isinstance(listed, Sequence) and len(listed) == count and all(isinstance(name, str) for name in listed):
            return tuple(listed)
    return tuple(str(i) for i in range(count))


def _attribute(env: gym.Env[Any, Any], name: str) -> Any:
    try:
        return env.get_wrapper_attr(name)
    except AttributeError:
        return None


def _doom_names(env: gym.Env[Any, Any]) -> list[str] | None:
    """ViZDoom's buttons, or those that each number presses."""
    game = _attribute(env, "game")
    if not hasattr(game, "get_available_buttons"):
        return None
    buttons = [button.name.lower().replace("_", " ") for button in game.get_available_buttons()]
    pressed = _attribute(env, "button_map")
    if not isinstance(env.action_space, spaces.Discrete) or pressed is None:
        return buttons
    return [" + ".join(b for b, down in zip(buttons, row, strict=False) if down) or "nothing" for row in pressed]


def choices_of(env: gym.Env[Any, Any]) -> list[list[str]] | None:
    """What each choice of a MultiDiscrete action chooses from, where a wrapper tells it."""
    choices = _attribute(env, "choices")
    space = env.action_space
    fits = isinstance(choices, list) and isinstance(space, spaces.MultiDiscrete) and len(choices) == len(space.nvec)
    return choices if fits else None


def decide(
    model: Any,
    observation: Any,
    state: Any,
    begins: bool,
    *,
    deterministic: bool,
    names: tuple[str, ...],
    choices: list[list[str]] | None = None,
) -> tuple[NDArray[Any], Any, Decision]:
    """Ask an agent of Stable-Baselines3 what to do in a vector of one environment.

    Args:
        model: The agent.
        observation: What it sees, a batch of one.
        state: What it remembers; None at the first step.
        begins: Whether an episode begins.
        deterministic: The most likely action rather than a sample.
        names: From `action_names`.
        choices: From `choices_of`.

    Returns:
        The actions of a batch of one, what it remembers now, and the decision.
    """
    starts = np.array([begins])
    thoughts = _thoughts(model, observation, state, starts)
    actions, state = model.predict(observation, state=state, episode_start=starts, deterministic=deterministic)
    return actions, state, describe(model.action_space, actions[0], thoughts, names, choices)


def describe(
    space: spaces.Space[Any],
    action: Any,
    thoughts: Distribution | Tensor | None,
    names: tuple[str, ...],
    choices: list[list[str]] | None = None,
) -> Decision:
    """Put an action, and what is known of the others, into words and numbers.

    Args:
        space: The action space.
        action: What is done.
        thoughts: The policy's distribution; or values of the actions, float (1, actions); or None.
        names: From `action_names`.
        choices: From `choices_of`.

    Example:
        >>> describe(spaces.Discrete(3), 1, torch.tensor([[0.0, 2.0, 1.0]]), ("left", "right", "fire"))
        Decision(caption='action and its value', names=('left', 'right', 'fire'), levels=(0.0, 1.0, 0.5),
                 texts=('0', '2', '1'), chosen=(False, True, False), signed=False)
    """
    if isinstance(space, spaces.Discrete):
        chosen = tuple(i == int(action) for i in range(int(space.n)))
        if isinstance(thoughts, CategoricalDistribution):
            shares = thoughts.distribution.probs[0].tolist()  # pyright: ignore[reportAttributeAccessIssue]
            return Decision(
                "action and its probability", names, tuple(shares), tuple(f"{p:.0%}" for p in shares), chosen
            )
        if isinstance(thoughts, Tensor):
            values = thoughts[0].double().cpu().numpy()
            levels = (values - values.min()) / max(float(np.ptp(values)), 1e-12)
            return Decision(
                "action and its value", names, tuple(levels.tolist()), tuple(f"{v:.3g}" for v in values), chosen
            )
        return Decision("action", names, tuple(map(float, chosen)), ("",) * len(names), chosen)
    flat = np.asarray(action).reshape(-1)
    if isinstance(space, spaces.MultiBinary):
        shares = flat.astype(float).tolist()
        if isinstance(thoughts, BernoulliDistribution):
            shares = thoughts.distribution.probs[0].tolist()  # pyright: ignore[reportAttributeAccessIssue]
        pressed = tuple(bool(down) for down in flat)
        return Decision("buttons, how likely pressed", names, tuple(shares), tuple(f"{p:.0%}" for p in shares), pressed)
    if isinstance(space, spaces.MultiDiscrete):
        shares = [1.0] * len(flat)
        if isinstance(thoughts, MultiCategoricalDistribution):
            shares = [float(part.probs[0, int(n)]) for part, n in zip(thoughts.distribution, flat, strict=True)]
        words = [choices[i][int(n)] if choices else str(int(n)) for i, n in enumerate(flat)]
        return Decision("choices, how likely", names, tuple(shares), tuple(words), tuple(bool(n) for n in flat))
    texts, levels = tuple(f"{value:+.2f}" for value in flat), tuple(_signed_levels(space, flat).tolist())
    return Decision("action", names, levels, texts, (True,) * len(flat), signed=True)


def _signed_levels(space: spaces.Space[Any], values: NDArray[Any]) -> NDArray[np.float64]:
    """Numbers of a Box in [-1, 1]: by its bounds, zero staying zero; unbounded ones by the largest of them."""
    values = values.astype(np.float64)
    bounds = np.ones_like(values)
    if isinstance(space, spaces.Box):
        bounds = np.maximum(np.abs(space.low), np.abs(space.high)).reshape(-1).astype(np.float64)
    bounds = np.where((bounds > 0) & (bounds < 1e30), bounds, max(float(np.abs(values).max()), 1e-12))
    return np.clip(values / bounds, -1, 1)


def _thoughts(model: Any, observation: Any, state: Any, starts: NDArray[np.bool_]) -> Distribution | Tensor | None:
    """The policy's distribution or values of actions, where this kind of agent has them."""
    policy = model.policy
    with torch.inference_mode():
        policy.set_training_mode(False)
        seen, _ = policy.obs_to_tensor(observation)
        if hasattr(policy, "quantile_net"):  # QR-DQN: (1, quantiles, actions)
            return policy.quantile_net(seen).mean(dim=1)
        if hasattr(policy, "q_net"):
            return policy.q_net(seen)
        if hasattr(policy, "lstm_hidden_state_shape"):
            shape = (policy.lstm_hidden_state_shape[0], 1, *policy.lstm_hidden_state_shape[2:])
            memory = state if state is not None else (np.zeros(shape, np.float32),) * 2
            tensors = tuple(torch.as_tensor(part, dtype=torch.float32, device=policy.device) for part in memory)
            begins = torch.as_tensor(starts, dtype=torch.float32, device=policy.device)
            return policy.get_distribution(seen, tensors, begins)[0]
        return policy.get_distribution(seen) if hasattr(policy, "get_distribution") else None
