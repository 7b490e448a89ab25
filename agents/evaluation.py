"""How good an agent is: returns over whole episodes and how sure they are, beside a random policy's."""

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from agents.config import AgentConfig
from agents.envs import load_encoder, make_vec_env, with_normalization
from agents.store import check_encoder, check_spaces, encoder_of, load_agent, restore_statistics
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.util.device import torch_threads
from latent_obs.util.errors import InputError

_RESAMPLES = 10_000
_CHUNK = 1_000  # resamples drawn at a time, which bounds the memory
_Z = 1.959963984540054  # of a 95% interval


@dataclass(frozen=True)
class Evaluation:
    """Undiscounted returns of whole episodes.

    Attributes:
        returns: One per episode, in the game's own rewards.
        lengths: Steps of each episode.
        successes: Whether each was a success; None where the task has none.

    Example:
        >>> print(Evaluation((1.0, 3.0), (10, 12)))
        2.0 ± 1.0 (standard error, 2 episodes)
        >>> print(Evaluation((1.0, 3.0), (10, 12), (False, True)))
        2.0 ± 1.0 (standard error, 2 episodes), success 50%
    """

    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    successes: tuple[bool, ...] | None = None

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def standard_error(self) -> float:
        """Standard error of the mean, ``std(ddof=1) / sqrt(episodes)``; NaN for one episode."""
        return float(np.std(self.returns, ddof=1) / math.sqrt(len(self.returns))) if len(self.returns) > 1 else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the mean return, by the percentile bootstrap over episodes (`bootstrap_interval`)."""
        return bootstrap_interval(self.returns)

    @property
    def median(self) -> float:
        """Median return."""
        return float(np.median(self.returns))

    @property
    def success_rate(self) -> float | None:
        """Share of episodes that were a success; None where the task has none."""
        return None if self.successes is None else float(np.mean(self.successes))

    @property
    def success_interval(self) -> tuple[float, float] | None:
        """95% interval of the success rate (`wilson_interval`)."""
        return None if self.successes is None else wilson_interval(sum(self.successes), len(self.successes))

    def sigmas_above(self, other: "Evaluation") -> float:
        """By how many standard errors of the difference this mean is above another's (Welch's t).

        Example:
            >>> round(Evaluation((9.0, 11.0), (1, 1)).sigmas_above(Evaluation((0.0, 2.0), (1, 1))), 2)
            6.36
        """
        error = math.hypot(self.standard_error, other.standard_error)
        difference = self.mean - other.mean
        if error == 0:
            return math.copysign(math.inf, difference) if difference else 0.0
        return difference / error  # NaN where a standard error is: one episode tells nothing of the spread

    def __str__(self) -> str:
        success = "" if self.success_rate is None else f", success {self.success_rate:.0%}"
        return f"{self.mean:.1f} ± {self.standard_error:.1f} (standard error, {len(self.returns)} episodes){success}"

    def details(self) -> str:
        """What `str` leaves out, a line each for returns, lengths and success.

        Example:
            >>> print(Evaluation((1.0, 3.0), (10, 12), (True, True)).details())
            95% interval 1.0 to 3.0, median 2.0, from 1.0 to 3.0
            steps in an episode: mean 11.0, from 10 to 12
            success in 2 of 2 episodes, 100% (95% interval 34% to 100%)
        """
        low, high = self.interval
        sure = "" if math.isnan(low) else f"95% interval {low:.1f} to {high:.1f}, "
        lines = [
            f"{sure}median {self.median:.1f}, from {min(self.returns):.1f} to {max(self.returns):.1f}",
            f"steps in an episode: mean {np.mean(self.lengths):.1f}, from {min(self.lengths)} to {max(self.lengths)}",
        ]
        if self.successes is not None and self.success_interval is not None:
            (low, high), count = self.success_interval, len(self.successes)
            share = f"{self.success_rate:.0%} (95% interval {low:.0%} to {high:.0%})"
            lines.append(f"success in {sum(self.successes)} of {count} episodes, {share}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """All numbers, as JSON has them: None where there is none.

        Example:
            >>> Evaluation((3.0,), (7,)).to_json()["mean_return_95"] is None
            True
        """
        return {
            "episodes": len(self.returns),
            "mean_return": self.mean,
            "standard_error": None if math.isnan(self.standard_error) else self.standard_error,
            "mean_return_95": None if math.isnan(self.interval[0]) else list(self.interval),
            "median_return": self.median,
            "least_return": min(self.returns),
            "most_return": max(self.returns),
            "mean_length": float(np.mean(self.lengths)),
            "success_rate": self.success_rate,
            "success_rate_95": None if self.success_interval is None else list(self.success_interval),
            "returns": list(self.returns),
            "lengths": list(self.lengths),
            "successes": None if self.successes is None else list(self.successes),
        }


def bootstrap_interval(values: tuple[float, ...], *, resamples: int = _RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """95% interval of a mean: the 2.5% and 97.5% quantiles of the means of resamples (Efron 1979).

    It asks for no normal distribution, which returns hardly ever have. Below some twenty values it is a little too
    narrow.

    Args:
        values: One per episode.
        resamples: How many to draw.
        seed: The same seed gives the same interval.

    Returns:
        Its ends; NaN for one value, which tells nothing of the spread.

    Example:
        >>> low, high = bootstrap_interval(tuple(float(n) for n in range(101)))
        >>> round(low), round(high)
        (44, 56)
    """
    if len(values) < 2:
        return math.nan, math.nan
    array, rng, means = np.asarray(values, np.float64), np.random.default_rng(seed), []
    for start in range(0, resamples, _CHUNK):
        drawn = rng.integers(len(array), size=(min(_CHUNK, resamples - start), len(array)))
        means.append(array[drawn].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return float(low), float(high)


def wilson_interval(successes: int, episodes: int) -> tuple[float, float]:
    """95% interval of a share, which unlike the usual ± holds near 0 and 1 too (Wilson 1927).

    Args:
        successes: How many.
        episodes: Of how many, 1 or more.

    Raises:
        InputError: There are more of the one than of the other, or none.

    Example:
        >>> tuple(round(end, 3) for end in wilson_interval(20, 20))
        (0.839, 1.0)
    """
    if not 0 <= successes <= episodes or episodes < 1:
        raise InputError(f"{successes} successes of {episodes} episodes is no share")
    share, spread = successes / episodes, _Z**2 / episodes
    middle = (share + spread / 2) / (1 + spread)
    half = _Z * math.sqrt(share * (1 - share) / episodes + spread / (4 * episodes)) / (1 + spread)
    return (0.0 if successes == 0 else middle - half), (1.0 if successes == episodes else middle + half)


_VERSION = re.compile(r"(-MultiBinary)?(VectorObf)?-v\d+$")


@dataclass(frozen=True)
class SuccessRule:
    """What makes an episode a success.

    Attributes:
        least_return: The return (of the game's own rewards) that it has to reach; None where the return tells nothing.
        reason: Where this comes from, in words.

    Example:
        >>> rule = SuccessRule(64.0, "the task's own threshold")
        >>> rule.is_success(64.0, truncated=True), rule.is_success(63.0, truncated=False)
        (True, False)
        >>> SuccessRule(None, "the monster is dead").is_success(-144.0, truncated=False)
        True
    """

    least_return: float | None
    reason: str

    def is_success(self, total: float, *, truncated: bool) -> bool:
        """Judge an episode by its return, or without a return to reach by its having ended before its time was up."""
        return not truncated if self.least_return is None else total >= self.least_return

    def __str__(self) -> str:
        return self.reason if self.least_return is None else f"a return of {self.least_return:g} or more: {self.reason}"


# The rewards of ViZDoom's scenarios are in the scripts of their .wad files and in their .cfg files:
# - Basic: 106 for the kill, -5 a shot, -1 a tic, 300 tics. A late kill has a return below 0 (-182 was seen), so the
# return   does not tell; but only the kill ends an episode early.
# - PredictPosition: 1 for the kill, -0.001 a tic, 300 tics. It ends early after a miss as well.
# - MyWayHome: 1 for the vest, -0.0001 a tic, 2,100 tics.
# - DeadlyCorridor: the distance walked, and 1,000 for the vest, which lies at 1,312; -100 for dying.
# The others (DefendCenter, DefendLine, HealthGathering, TakeCover, Deathmatch) have an end to put off and no goal to
# reach.
_KILLED = SuccessRule(None, "the monster was shot before the time was up")
_VEST = "the vest was reached"
# MineRL's: what upstream's `determine_success_from_rewards` asks for where it sums; and for the sparse tasks that end
# in one item, a return that cannot be had without it (all that comes before the diamond is 547, before the pickaxe
# 291).
_NAVIGATED = SuccessRule(100.0, "the diamond block was touched")
_NAVIGATED_DENSE = SuccessRule(160.0, "the diamond block was touched, as MineRL judges it")
_KNOWN = {
    "VizdoomBasic": _KILLED,
    "VizdoomBasicAudio": _KILLED,
    "VizdoomBasicNotifications": _KILLED,
    "VizdoomPredictPosition": SuccessRule(0.5, "the monster was hit"),
    "VizdoomMyWayHome": SuccessRule(0.5, _VEST),
    "VizdoomDeadlyCorridor": SuccessRule(2000.0, _VEST),
    "MineRLNavigate": _NAVIGATED,
    "MineRLNavigateExtreme": _NAVIGATED,
    "MineRLNavigateDense": _NAVIGATED_DENSE,
    "MineRLNavigateExtremeDense": _NAVIGATED_DENSE,
    "MineRLObtainDiamond": SuccessRule(1024.0, "a diamond was obtained"),
    "MineRLObtainIronPickaxe": SuccessRule(292.0, "an iron pickaxe was obtained"),
}


def success_rule(config: AgentConfig, least_return: float | None = None) -> SuccessRule | None:
    """How the episodes of an agent's environment are judged, where they do not say so themselves.

    Args:
        config: The settings; its environment has been made before, so that it is registered.
        least_return: A return to reach, in place of what is known of the task.

    Returns:
        The return that was given; else the environment's registered `reward_threshold`; else what is known of the
        scenario (`_KNOWN`); None where nothing is.

    Raises:
        InputError: `least_return` is no number.

    Example:
        >>> print(success_rule(AgentConfig(env="VizdoomBasic-MultiBinary-v1")))
        the monster was shot before the time was up
        >>> print(success_rule(AgentConfig(env="CartPole-v1")))
        a return of 475 or more: the environment's reward_threshold
        >>> success_rule(AgentConfig(env="VizdoomHealthGathering-v1")) is None
        True
    """
    if least_return is not None:
        if not math.isfinite(least_return):
            raise InputError(f"the return that counts as success must be a number, got {least_return}")
        return SuccessRule(float(least_return), "as was asked for")
    try:
        threshold = gym.spec(config.env).reward_threshold
    except (gym.error.Error, ImportError):
        threshold = None
    if threshold is not None:
        return SuccessRule(float(threshold), "the environment's reward_threshold")
    rule = _KNOWN.get(_VERSION.sub("", config.env.rpartition(":")[2]))
    if rule is _KILLED and config.all_env_kwargs.get("treat_episode_timeout_as_truncation") is False:
        return None  # then a time-out looks like a kill
    return rule


class EpisodeSuccess(VecEnvWrapper):
    """Put ``info["is_success"]``, as Stable-Baselines3 reads it, into the last step of each episode.

    Args:
        venv: Its infos have ``info["episode"]["r"]``, the return, at the end of an episode (`VecMonitor` puts it
            there).
        rule: What counts; None leaves it all to the environment.
        overrule: Judge by the rule also where the environment has its own word.
    """

    def __init__(self, venv: VecEnv, rule: SuccessRule | None, *, overrule: bool = False) -> None:
        super().__init__(venv)
        self.rule, self.overrule = rule, overrule

    def reset(self) -> VecEnvObs:
        """Reset all."""
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        """Wait for the step, and judge the episodes that it ended."""
        observation, rewards, dones, infos = self.venv.step_wait()
        for done, info in zip(dones, infos, strict=True):
            if done and self.rule is not None and (self.overrule or "is_success" not in info):
                info["is_success"] = _judge(self.rule, info)
        return observation, rewards, dones, infos


def _judge(rule: SuccessRule, info: dict[str, Any]) -> bool:
    return rule.is_success(info["episode"]["r"], truncated=bool(info.get("TimeLimit.truncated", False)))


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
    return dataclasses.replace(
        AgentConfig.load(Path(run)), **{name: path for name, path in inside.items() if path.exists()}
    )


def load_run(
    run: str | Path, which: str, device: str = "auto"
) -> tuple[AgentConfig, BaseAlgorithm, FrozenEncoder | None]:
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
    config: AgentConfig,
    episodes: int,
    seed: int,
    first: int = 0,
    *,
    success_return: float | None = None,
    encoder: FrozenEncoder | None = None,
) -> VecNormalize:
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
        policy: Anything with the `predict` of Stable-Baselines3; what it remembers is carried on, and dropped between
            episodes.
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
