"""Which episodes count as a success: by the environment's own word, by a return to reach, or by how the episode ended."""

import math
import re
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from agents.config import AgentConfig
from latent_obs.errors import InputError

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
# - Basic: 106 for the kill, -5 a shot, -1 a tic, 300 tics. A late kill has a return below 0 (-182 was seen), so the return
#   does not tell; but only the kill ends an episode early.
# - PredictPosition: 1 for the kill, -0.001 a tic, 300 tics. It ends early after a miss as well.
# - MyWayHome: 1 for the vest, -0.0001 a tic, 2,100 tics.
# - DeadlyCorridor: the distance walked, and 1,000 for the vest, which lies at 1,312; -100 for dying.
# The others (DefendCenter, DefendLine, HealthGathering, TakeCover, Deathmatch) have an end to put off and no goal to reach.
_KILLED = SuccessRule(None, "the monster was shot before the time was up")
_VEST = "the vest was reached"
# MineRL's: what upstream's `determine_success_from_rewards` asks for where it sums; and for the sparse tasks that end in
# one item, a return that cannot be had without it (all that comes before the diamond is 547, before the pickaxe 291).
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
        The return that was given; else the environment's registered `reward_threshold`; else what is known of the scenario
        (`_KNOWN`); None where nothing is.

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
        venv: Its infos have ``info["episode"]["r"]``, the return, at the end of an episode (`VecMonitor` puts it there).
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
