"""How good an agent is: returns of whole episodes with intervals, successes, and a random policy to compare with."""

import contextlib
import dataclasses
import json
import math
import re
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from agents.config import ENV_FOLDER, AgentConfig
from agents.envs import load_encoder, make_vec_env, with_normalization
from agents.hub import run_folder
from agents.store import check_encoder, encoder_of, load_agent, restore_statistics
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.envs.factory import find_spec, is_minerl_id, look_for_module
from latent_obs.util.device import torch_threads
from latent_obs.util.errors import InputError, LatentObsError, check_count
from latent_obs.util.progress import ProgressBar

_EVALUATION_SEED = 1_000_003  # far from training's seeds, so that an agent is judged on new episodes
_MOST_ENVS = 4
_MOST_STEPS = 27_000  # of an episode without a time limit: those of an Atari game, half an hour at 15 steps a second


@dataclass(frozen=True)
class Evaluation:
    """Undiscounted returns of whole episodes.

    Example:
        >>> print(Evaluation((1.0, 3.0), (10, 12), (True, True)))
        2.0 ± 1.0 (standard error, 2 episodes), success 100%
    """

    returns: tuple[float, ...]
    """One per episode, in the game's own rewards."""
    lengths: tuple[int, ...]
    """Steps of each episode."""
    successes: tuple[bool, ...] | None = None
    """Whether each was a success; None if the task does not define success."""
    cut: int = 0
    """Episodes that ended only because an evaluation has a step limit where the environment has no time limit."""

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def standard_error(self) -> float:
        """Standard error of the mean, ``std(ddof=1) / sqrt(episodes)``; NaN for one episode."""
        return float(np.std(self.returns, ddof=1) / math.sqrt(len(self.returns))) if len(self.returns) > 1 else math.nan

    @property
    def success_rate(self) -> float | None:
        """Share of episodes that were a success; None if the task does not define success."""
        return None if self.successes is None else float(np.mean(self.successes))

    def sigmas_above(self, other: "Evaluation") -> float:
        """By how many standard errors of the difference this mean is above another's (Welch's t); NaN for one episode.

        Example:
            >>> round(Evaluation((9.0, 11.0), (1, 1)).sigmas_above(Evaluation((0.0, 2.0), (1, 1))), 2)
            6.36
        """
        error, difference = math.hypot(self.standard_error, other.standard_error), self.mean - other.mean
        if error == 0:
            return difference * math.inf if difference else 0.0
        return difference / error

    def __str__(self) -> str:
        more = "" if self.success_rate is None else f", success {self.success_rate:.0%}"
        more += f", {self.cut} episodes cut at {max(self.lengths):,} steps" if self.cut else ""
        return f"{self.mean:.1f} ± {self.standard_error:.1f} (standard error, {len(self.returns)} episodes){more}"

    def details(self) -> str:
        """Interval, median, episode lengths and success, a line each."""
        numbers, lengths = self.to_json(), self.lengths
        line = f"median {numbers['median_return']:.1f}, from {min(self.returns):.1f} to {max(self.returns):.1f}"
        if numbers["mean_return_95"] is not None:
            line = "95% interval {:.1f} to {:.1f}, ".format(*numbers["mean_return_95"]) + line
        line += f"\nsteps in an episode: mean {np.mean(lengths):.1f}, from {min(lengths)} to {max(lengths)}"
        if self.successes is not None:
            line += f"\nsuccess in {sum(self.successes)} of {len(self.successes)} episodes, {self.success_rate:.0%} "
            line += "(95% interval {:.0%} to {:.0%})".format(*numbers["success_rate_95"])
        return line

    def to_json(self) -> dict[str, Any]:
        """All numbers, with 95% intervals; None instead of NaN, which JSON does not have."""
        several, judged = len(self.returns) > 1, self.successes
        return {
            "episodes": len(self.returns),
            "mean_return": self.mean,
            "standard_error": self.standard_error if several else None,
            "mean_return_95": list(bootstrap_interval(self.returns)) if several else None,
            "median_return": float(np.median(self.returns)),
            "least_return": min(self.returns),
            "most_return": max(self.returns),
            "mean_length": float(np.mean(self.lengths)),
            "success_rate": self.success_rate,
            "success_rate_95": None if judged is None else list(wilson_interval(sum(judged), len(judged))),
            **dataclasses.asdict(self),
        }


def bootstrap_interval(values: tuple[float, ...]) -> tuple[float, float]:
    """95% interval of a mean: the 2.5% and 97.5% quantiles of the means of 10,000 resamples (Efron 1979).

    Below some twenty values it is a little too narrow. The same values give the same interval.
    """
    array, rng = np.asarray(values, np.float64), np.random.default_rng(0)
    means = [array[rng.integers(len(array), size=len(array))].mean() for _ in range(10_000)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def wilson_interval(successes: int, episodes: int) -> tuple[float, float]:
    """95% interval of a share, which is also valid near 0 and 1 (Wilson 1927)."""
    z = NormalDist().inv_cdf(0.975)
    share, spread = successes / episodes, z**2 / episodes
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / episodes + spread / (4 * episodes)) / (1 + spread)
    return (0.0 if successes == 0 else middle - half), (1.0 if successes == episodes else middle + half)


class SuccessRule(NamedTuple):
    """Decides whether an episode was a success."""

    least_return: float | None
    """The return, of the game's own rewards, that it has to reach. None: it has to end before its time limit."""
    reason: str
    """Where the rule comes from."""
    overrules: bool = False
    """Whether it counts also if the environment has put ``info["is_success"]`` itself."""

    def is_success(self, total: float, *, truncated: bool) -> bool:
        """Judge an episode by its return and by whether its time limit ended it."""
        return not truncated if self.least_return is None else total >= self.least_return

    def __str__(self) -> str:
        return self.reason if self.least_return is None else f"a return of {self.least_return:g} or more: {self.reason}"


# By ViZDoom's scenario or MineRL's task. The rewards of ViZDoom's scenarios are in the scripts of their .wad files and
# in their .cfg files:
# - Basic: 106 for the kill, -5 a shot, -1 a tic, 300 tics. A late kill has a return below 0 (-182 was seen), so the
#   return does not decide; but only the kill ends an episode early.
# - PredictPosition: 1 for the kill, -0.001 a tic, 300 tics. It ends early after a miss as well.
# - MyWayHome: 1 for the vest, -0.0001 a tic, 2,100 tics.
# - DeadlyCorridor: the distance walked, and 1,000 for the vest, which lies at 1,312; -100 for dying.
# The others (DefendCenter, DefendLine, HealthGathering, TakeCover, Deathmatch) have no goal to reach.
_KILLED = SuccessRule(None, "the monster was shot before the time was up")
_NAVIGATED, _NAVIGATED_DENSE = (SuccessRule(least, "the diamond block was touched") for least in (100.0, 160.0))
_KNOWN = {
    **dict.fromkeys(("basic.cfg", "basic_audio.cfg", "basic_notifications.cfg"), _KILLED),
    "predict_position.cfg": SuccessRule(0.5, "the monster was hit"),
    "my_way_home.cfg": SuccessRule(0.5, "the vest was reached"),
    "deadly_corridor.cfg": SuccessRule(2000.0, "the vest was reached"),
    # MineRL: the threshold of upstream's `determine_success_from_rewards` where it sums the rewards; and for the sparse
    # tasks that end in one item, a return that cannot be had without it (all that comes before the diamond is 547,
    # before the pickaxe 291).
    **dict.fromkeys(("MineRLNavigate", "MineRLNavigateExtreme"), _NAVIGATED),
    **dict.fromkeys(("MineRLNavigateDense", "MineRLNavigateExtremeDense"), _NAVIGATED_DENSE),
    "MineRLObtainDiamond": SuccessRule(1024.0, "a diamond was obtained"),
    "MineRLObtainIronPickaxe": SuccessRule(292.0, "an iron pickaxe was obtained"),
}


def success_rule(config: AgentConfig, least_return: float | None = None) -> SuccessRule | None:
    """The rule for episodes of an agent's environment that have no ``info["is_success"]``.

    Args:
        config: The settings.
        least_return: A finite return to reach. By default the environment's `reward_threshold`, or the rule of a known
            scenario; None if there is neither.

    Example:
        >>> print(success_rule(AgentConfig(env="CartPole-v1")))
        a return of 475 or more: the environment's reward_threshold
    """
    if least_return is not None:
        return SuccessRule(float(least_return), "as requested", overrules=True)
    try:
        spec = find_spec(config.env)
    except LatentObsError:
        return None
    if spec.reward_threshold is not None:
        return SuccessRule(float(spec.reward_threshold), "the environment's reward_threshold")
    arguments, task = {**spec.kwargs, **config.env_kwargs}, None
    if is_minerl_id(config.env):
        task = re.sub(r"(VectorObf)?-v\d+$", "", str(arguments.get("env_id")))
    elif str(spec.entry_point).startswith("vizdoom."):
        task = arguments.get("scenario_config_file")
    rule = _KNOWN.get(str(task))
    if rule is _KILLED and arguments.get("treat_episode_timeout_as_truncation") is False:
        return None  # a time-out looks like a kill
    return rule


class EpisodeSuccess(VecEnvWrapper):
    """Put ``info["is_success"]`` into the last step of each episode, which has ``info["episode"]`` of `VecMonitor`."""

    def __init__(self, venv: VecEnv, rule: SuccessRule) -> None:
        super().__init__(venv)
        self.rule = rule

    def reset(self) -> VecEnvObs:
        """Reset all."""
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        """Wait for the step, and judge the episodes that it ended."""
        observation, rewards, dones, infos = self.venv.step_wait()
        for info in compress(infos, dones):
            if self.rule.overrules or "is_success" not in info:
                truncated = bool(info.get("TimeLimit.truncated", False))
                info["is_success"] = self.rule.is_success(info["episode"]["r"], truncated=truncated)
        return observation, rewards, dones, infos


def evaluate_agent(
    run: str | Path,
    *,
    episodes: int = 100,
    which: str = "best",
    seed: int = _EVALUATION_SEED,
    device: str = "auto",
    deterministic: bool | None = None,
    success_return: float | None = None,
    progress_bar: bool = False,
    trust: bool = False,
) -> Evaluation:
    """Play an agent of a run folder for whole episodes that training did not see.

    Args:
        run: The run folder, or with `trust` a repository of Hugging Face.
        episodes: Episodes to play.
        which: "best" (by the evaluations during training) or "last".
        seed: Seed of the first environment.
        device: Where to encode.
        deterministic: The most likely action rather than a sample; as in the settings by default.
        success_return: An episode is a success if its return reaches this; by default as in `success_rule`.
        progress_bar: Show how far it is: a bar in a terminal, elsewhere a line now and then.
        trust: Whether to load an agent of Hugging Face ("user/name"), whose pickled settings can run any code.

    Raises:
        InputError: There is no such agent, it is damaged, it was trained with another encoder, or it is not trusted.
        EncoderFolderError: The run's encoder is damaged.
    """
    run = run_folder(run, trust)
    config, model, encoder = load_run(run, which, device)
    venv = evaluation_env(config, episodes, seed, success_return=success_return, encoder=encoder)
    # One thread as in training: the game plays on the same cores.
    with contextlib.closing(venv), torch_threads(1):
        restore_statistics(run, which, venv, model)
        deterministic = config.deterministic if deterministic is None else deterministic
        return play(model, venv, episodes, deterministic, progress_bar)


def evaluate_random(
    config: AgentConfig,
    *,
    episodes: int = 100,
    seed: int = _EVALUATION_SEED,
    success_return: float | None = None,
    progress_bar: bool = False,
) -> Evaluation:
    """Play uniformly random actions in an agent's environment: the baseline of every agent."""
    # A random policy needs no latents, nor what trained the agent; the encoder only decides the size of a frame.
    blind = dataclasses.replace(config, observation="pixels", device="cpu", engine="sb3", runners=None, address=None)
    with contextlib.closing(evaluation_env(blind, episodes, seed, success_return=success_return)) as venv:
        venv.action_space.seed(seed)

        def predict(observation: Any, **_: Any) -> tuple[np.ndarray[Any, Any], None]:
            return np.array([venv.action_space.sample() for _ in range(venv.num_envs)]), None

        return play(SimpleNamespace(predict=predict), venv, episodes, shown=progress_bar)


def run_config(run: str | Path) -> AgentConfig:
    """The settings of a run folder, with the paths of its own copies of the encoder and the principal components.

    The module of its environment is also looked for in the folder in which it was when the run was made.
    """
    config = AgentConfig.load(Path(run))
    look_for_module(config.env, json.loads((Path(run) / "config.json").read_bytes()).get(ENV_FOLDER))
    inside = {"encoder": Path(run) / "encoder", "pca": Path(run) / "pca.safetensors"}
    paths = {name: path for name, path in inside.items() if path.exists()}
    return dataclasses.replace(config, **paths)


def load_run(
    run: str | Path, which: str, device: str = "auto"
) -> tuple[AgentConfig, BaseAlgorithm, FrozenEncoder | None]:
    """The settings of a run folder, its agent `which`, and the encoder that the agent was trained with."""
    run, config = Path(run), run_config(run)
    model = load_agent(run, which, device="cpu")
    config = dataclasses.replace(config, device=device, encoder=encoder_of(run, which) or config.encoder)
    if config.backend == "openvino":  # which only a CPU has, and not every machine
        config = dataclasses.replace(config, backend="auto")
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
    """Environments to evaluate in: the game's own rewards, fixed statistics, and each episode judged.

    They are at most `episodes`. Where they have no time limit, an episode is cut after 27,000 steps. `encoder` is that
    of `config`, if loaded already; `first` is as for `make_vec_env`.
    """
    check_count("episodes", episodes)
    check_count("seed", seed, 0)
    if success_return is not None and not math.isfinite(success_return):
        raise InputError(f"success_return must be a finite number, got {success_return}")
    encoder = load_encoder(config) if encoder is None else encoder
    how: dict[str, Any] = {"seed": seed, "first": first, "step_limit": _MOST_STEPS}
    venv = make_vec_env(config, encoder, envs=min(_MOST_ENVS, config.envs, episodes), **how)
    rule = success_rule(config, success_return)
    return with_normalization(config, venv if rule is None else EpisodeSuccess(venv, rule), training=False)


def play(policy: Any, venv: VecEnv, episodes: int, deterministic: bool = True, shown: bool = False) -> Evaluation:
    """Play whole episodes, the same number in each environment, so that short ones are not favored.

    `policy` is anything with the method `predict` of Stable-Baselines3, and `venv` is of `evaluation_env`. `shown` is
    whether to show how far it is.
    """
    judged: list[bool | None] = []
    progress = ProgressBar(
        total=episodes, unit="episode", desc="evaluation", miniters=0, shown=None if shown else False
    )
    cut = 0

    def judge(now: dict[str, Any], _: dict[str, Any]) -> None:
        nonlocal cut
        if now["done"]:
            judged.append(now["info"].get("is_success"))
            cut += "step_limit" in now["info"]
        progress.update(len(judged) - progress.n)

    how: dict[str, Any] = {"deterministic": deterministic, "return_episode_rewards": True, "callback": judge}
    with progress:
        returns, lengths = evaluate_policy(policy, venv, n_eval_episodes=episodes, **how)
    # Some environments report success only in the episodes that were one.
    successes = None if all(success is None for success in judged) else tuple(map(bool, judged))
    return Evaluation(tuple(map(float, returns)), tuple(map(int, lengths)), successes, cut)  # pyright: ignore[reportArgumentType]
