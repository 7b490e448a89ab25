"""Stable-Baselines3's model for an agent's settings, and how a part of a run begins: the same whether it was stopped or not."""

from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, VecTransposeImage

from agents.algorithms import NOT_ITS_OWN
from agents.config import AgentConfig
from agents.schedules import Schedule
from agents.store import check_spaces, load_agent, restore_replay, restore_statistics


def new_model(config: AgentConfig, venv: VecEnv, device: str) -> BaseAlgorithm:
    """A fresh agent.

    Args:
        config: The settings.
        venv: The training environments.
        device: Where a pixel agent learns; a small MLP on latents is faster on the CPU than the trips to a GPU and back.
    """
    values = config.hyperparameters
    settings = {name: value for name, value in values.items() if name not in NOT_ITS_OWN}
    settings["learning_rate"] = Schedule(values["learning_rate"], config.learning_rate_schedule)
    if "clip_range" in values:
        settings["clip_range"] = Schedule(values["clip_range"], config.clip_range_schedule)
    policy: dict[str, Any] = {"net_arch": list(values["net_arch"])}
    if "lstm_size" in values:
        policy["lstm_hidden_size"] = values["lstm_size"]
    if "n_quantiles" in values:
        policy["n_quantiles"] = values["n_quantiles"]
    kind = "Cnn" if config.observation == "pixels" else "Mlp"
    if type(venv.observation_space).__name__ == "Dict":
        kind = "MultiInput"
    return config.trainer.load_class()(
        f"{kind}{config.trainer.policy}", venv, policy_kwargs=policy, seed=config.seed,
        device=device if config.observation == "pixels" else "cpu", **settings,
    )  # fmt: skip


def loaded_model(config: AgentConfig, venv: VecNormalize) -> BaseAlgorithm:
    """The agent of a run's last checkpoint, with its statistics and its replay buffer, to train on.

    Raises:
        InputError: There is none, it is damaged, or the environments' spaces are not its.
    """
    model = load_agent(config.out, "last", device="cpu" if config.observation != "pixels" else config.device)
    check_spaces(config.out, "last", model, venv)
    restore_statistics(config.out, "last", venv)
    # load(env=...) would wrap before the statistics are back.
    model.set_env(VecTransposeImage(venv) if config.observation == "pixels" else venv)
    restore_replay(config.out, "last", model)
    return model


def part_seed(seed: int, step: int, purpose: int = 0) -> int:
    """A seed for what begins at a step of a run, below 2^31; at step 0, that of the run itself.

    Example:
        >>> part_seed(7, 0), part_seed(7, 10_000) == part_seed(7, 10_000), part_seed(7, 10_000) == part_seed(7, 20_000)
        (7, True, False)
    """
    if step == 0 and purpose == 0:
        return seed
    return int(np.random.SeedSequence([seed, step, purpose]).generate_state(1)[0] >> 1)


def begin_part(model: BaseAlgorithm, seed: int) -> None:
    """Begin a part of a run: new episodes, random numbers from the start.

    What the games are at cannot be saved. So all runs, stopped or not, begin new episodes at each checkpoint, and nothing but
    the checkpoint decides what comes after it.
    """
    env = model.get_env()
    assert env is not None
    set_random_seed(seed)
    model.action_space.seed(seed)
    env.action_space.seed(seed)
    env.seed(seed)
    model._last_obs = env.reset()  # pyright: ignore[reportAttributeAccessIssue]
    model._last_episode_starts = np.ones(env.num_envs, bool)
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        model._last_original_obs = normalize.get_original_obs()
    states = getattr(model, "_last_lstm_states", None)
    if isinstance(model, OnPolicyAlgorithm) and states is not None:
        zero = lambda pair: tuple(torch.zeros_like(part) for part in pair)  # noqa: E731
        model._last_lstm_states = type(states)(*map(zero, states))  # pyright: ignore[reportAttributeAccessIssue]
