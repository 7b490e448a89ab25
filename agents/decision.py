"""What an agent does in a step, and what else it thought of: by name, with probabilities or values where it has them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    Distribution,
    MultiCategoricalDistribution,
)
from torch import Tensor


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
    model: Any, observation: Any, state: Any, begins: bool, *, deterministic: bool, names: tuple[str, ...],
    choices: list[list[str]] | None = None,
) -> tuple[NDArray[Any], Any, Decision]:  # fmt: skip
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
    space: spaces.Space[Any], action: Any, thoughts: Distribution | Tensor | None, names: tuple[str, ...],
    choices: list[list[str]] | None = None,
) -> Decision:  # fmt: skip
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
            return Decision("action and its probability", names, tuple(shares), tuple(f"{p:.0%}" for p in shares), chosen)
        if isinstance(thoughts, Tensor):
            values = thoughts[0].double().cpu().numpy()
            levels = (values - values.min()) / max(float(np.ptp(values)), 1e-12)
            return Decision("action and its value", names, tuple(levels.tolist()), tuple(f"{v:.3g}" for v in values), chosen)
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
