"""How good an agent is: returns over whole episodes and how sure they are, beside a random policy's."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from agents.config import AgentConfig
from agents.encoders import check_encoder, encoder_of
from agents.envs import load_encoder, make_vec_env, with_normalization
from agents.evaluation import Evaluation
from agents.store import check_spaces, load_agent, restore_statistics
from agents.success import EpisodeSuccess, success_rule
from latent_obs.errors import InputError
from latent_obs.frozen import FrozenEncoder
from latent_obs.torch_threads import torch_threads

__all__ = [
    "Evaluation",
    "RandomPolicy",
    "evaluate_agent",
    "evaluate_random",
    "evaluation_env",
    "load_run",
    "play",
    "run_config",
]

_EVALUATION_SEED = 1_000_003  # far from training's seeds: an agent is judged on episodes that it never saw
_MOST_ENVS = 4


class RandomPolicy:
    """Uniformly random actions, in the shape of an agent that Stable-Baselines3's `evaluate_policy` takes."""

    def __init__(self, venv: VecEnv, seed: int) -> None:
        self._spaces = [venv.action_space for _ in range(venv.num_envs)]
        venv.action_space.seed(seed)

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray[Any, Any], Any]:
        """A sample of the action space for each environment."""
        return np.array([space.sample() for space in self._spaces]), state


def evaluate_agent(
    run: str | Path,
    *,
    episodes: int = 100,
    which: str = "best",
    seed: int = _EVALUATION_SEED,
    device: str = "auto",
    deterministic: bool | None = None,
    success_return: float | None = None,
) -> Evaluation:
    """Play an agent of a run folder for whole episodes that training did not see.

    Args:
        run: The run folder.
        episodes: Episodes to play.
        which: "best" (by the evaluations during training), "last", or the step of a checkpoint.
        seed: Seed of the first environment.
        device: Where to encode.
        deterministic: The most likely action rather than a sample; as in the settings by default.
        success_return: An episode is a success if its return reaches this; by default as `success_rule` knows the task.

    Raises:
        InputError: There is no such agent, it was trained with another encoder, or fewer than one episode.
        EncoderFolderError: The run's encoder is damaged.
    """
    config, model, encoder = load_run(run, which, device)
    venv = evaluation_env(config, episodes, seed, success_return=success_return, encoder=encoder)
    try:
        check_spaces(Path(run), which, model, venv)
        restore_statistics(Path(run), which, venv)
        chosen = config.deterministic if deterministic is None else deterministic
        with torch_threads(1):  # as in training: the game plays on the same cores
            return play(model, venv, episodes, deterministic=chosen)
    finally:
        venv.close()


def evaluate_random(
    config: AgentConfig, *, episodes: int = 100, seed: int = _EVALUATION_SEED, success_return: float | None = None
) -> Evaluation:
    """Play uniformly random actions in an agent's environment: the least that it has to beat."""
    # A random policy looks at nothing, so nothing is encoded for it; the encoder only tells the size of a frame.
    blind = dataclasses.replace(config, observation="pixels", device="cpu")
    venv = evaluation_env(blind, episodes, seed, success_return=success_return)
    try:
        return play(RandomPolicy(venv, seed), venv, episodes)
    finally:
        venv.close()


def run_config(run: str | Path) -> AgentConfig:
    """The settings of a run folder, with the encoder and the principal components that lie in it."""
    inside = {"encoder": Path(run) / "encoder", "pca": Path(run) / "pca.safetensors"}
    return dataclasses.replace(AgentConfig.load(Path(run)), **{name: path for name, path in inside.items() if path.exists()})


def load_run(run: str | Path, which: str, device: str = "auto") -> tuple[AgentConfig, BaseAlgorithm, FrozenEncoder | None]:
    """An agent of a run folder, its settings, and the encoder that it was trained with.

    Args:
        run: The run folder.
        which: "best", "last", or the step of a checkpoint.
        device: Where to encode.

    Raises:
        InputError: There is no such agent, or the encoder is another than it was trained with.
        EncoderFolderError: The encoder is damaged.
    """
    run, config = Path(run), dataclasses.replace(run_config(run), device=device)
    model = load_agent(run, which, device="cpu")
    config = dataclasses.replace(config, encoder=encoder_of(run, which) or config.encoder)
    encoder = load_encoder(config)
    check_encoder(run, which, encoder if config.observation != "pixels" else None)
    return config, model, encoder


def evaluation_env(
    config: AgentConfig, episodes: int, seed: int, first: int = 0, *, success_return: float | None = None,
    encoder: FrozenEncoder | None = None,
) -> VecNormalize:  # fmt: skip
    """Environments to evaluate in: the game's own rewards, statistics that do not move, and each episode judged.

    Args:
        config: The settings.
        episodes: Episodes that will be played; no more environments than that.
        seed: Seed of the first one.
        first: Its number among all that run at the same time (`make_vec_env`).
        success_return: As for `evaluate_agent`.
        encoder: Where it is loaded already.

    Raises:
        InputError: Fewer than one episode.
    """
    if episodes < 1:
        raise InputError(f"episodes must be 1 or more, got {episodes}")
    encoder = load_encoder(config) if encoder is None else encoder
    venv = make_vec_env(config, encoder, envs=min(_MOST_ENVS, config.envs, episodes), seed=seed, first=first)
    try:
        judged = EpisodeSuccess(venv, success_rule(config, success_return), overrule=success_return is not None)
    except InputError:
        venv.close()
        raise
    return with_normalization(config, judged, training=False)


def play(policy: Any, venv: VecEnv, episodes: int, *, deterministic: bool = True) -> Evaluation:
    """Play whole episodes; the same number in each environment, so that short ones are not favoured.

    Args:
        policy: Anything with the `predict` of Stable-Baselines3; what it remembers is carried on, and dropped between episodes.
        venv: As `evaluation_env` makes them: ``info["is_success"]`` of an episode's last step says whether it was one.
        episodes: How many in all.
        deterministic: The most likely action rather than a sample.
    """
    judged: list[bool | None] = []

    def watch(now: dict[str, Any], _: dict[str, Any]) -> None:
        if now["done"]:
            judged.append(now["info"].get("is_success"))

    returns, lengths = evaluate_policy(
        policy, venv, n_eval_episodes=episodes, deterministic=deterministic, return_episode_rewards=True, callback=watch
    )
    assert isinstance(returns, Sequence)
    assert isinstance(lengths, Sequence)
    # An environment may speak of success only where there was one.
    successes = None if all(word is None for word in judged) else tuple(bool(word) for word in judged)
    return Evaluation(tuple(float(r) for r in returns), tuple(int(n) for n in lengths), successes)
