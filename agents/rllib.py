"""PPO of RLlib for `latent-obs train-agent --engine rllib`: it samples and learns on a cluster of Ray.

Its network has the layers of Stable-Baselines3's. After each iteration the weights, the state of Adam and the running
statistics are copied into an agent of Stable-Baselines3, which is evaluated and saved as any other: `last.zip` holds
all that is needed to continue, and nothing that reads a run folder needs Ray.
"""

import contextlib
import dataclasses
import logging
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorWrapper
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from agents.config import AgentConfig
from agents.envs import as_seen, load_encoder
from agents.evaluation import run_config
from agents.normalization import LatentNormalize
from agents.schedules import Schedule
from latent_obs import rllib
from latent_obs.envs.factory import env_maker, is_minerl_id
from latent_obs.envs.workers import ProcessVectorEnv
from latent_obs.pixels import brief
from latent_obs.util.atomic import GracefulStop
from latent_obs.util.errors import InputError, LatentObsError, one_line, require
from latent_obs.wrappers.vector import VectorLatentObservation

_REPORT_S = 30.0  # between lines while no runner samples
_RESTART_S = 1.0  # until a runner whose environment raised an error starts again
_MOST_FAILURES = 3  # with no good iteration between them: then it is no accident
_RAISED = "runners.log"  # in the run folder: a line for each error that an environment raised
_ENV = "latent-obs-run"
_MODULE, _CONNECTORS = "default_policy", "env_to_module_connector"  # RLlib's names
#: How RLlib's parameters are called, and what the same ones are called in Stable-Baselines3.
_NAMES = {
    "encoder.actor_encoder.net.mlp": "mlp_extractor.policy_net",
    "encoder.critic_encoder.net.mlp": "mlp_extractor.value_net",
    "pi.net.mlp.0": "action_net",
    "pi.log_std": "log_std",
    "vf.net.mlp.0": "value_net",
}
#: What RLlib reports of an update, and what the same is called in the logs of Stable-Baselines3.
_LOGGED = {"policy_loss": "policy_gradient_loss", "vf_loss": "value_loss", "vf_explained_var": "explained_variance"}
_LOGGED |= {"default_optimizer_learning_rate": "learning_rate", "entropy": "entropy"}


def check_spaces(config: AgentConfig, venv: VecEnv) -> None:
    """Reject environments that RLlib does not take as Stable-Baselines3 does; an `InputError`."""
    actions, observations = (spaces.Discrete, spaces.MultiDiscrete, spaces.Box), venv.observation_space
    if (
        is_minerl_id(config.env)
        or not isinstance(observations, spaces.Box)
        or not isinstance(venv.action_space, actions)
    ):
        raise InputError(
            "engine rllib needs observations that are one vector (--latent-only or --flatten), Discrete, MultiDiscrete "
            f"or Box actions, and no MineRL; {config.env} has {brief(observations)} and {brief(venv.action_space)}. "
            "Leave --engine out to train with Stable-Baselines3"
        )


def learn_with_rllib(config: AgentConfig, model: Any, run: Any, seed: int, say: Callable[[str], object]) -> None:
    """Train a model up to `config.steps`, in place of its method `learn`.

    Args:
        config: The settings, as they are saved in the run folder.
        model: The PPO of Stable-Baselines3 to continue with. Of its environment only the running statistics are used.
        run: The callback that evaluates, saves, and decides when to stop.
        seed: For the environments and for sampling actions.
        say: Where messages go.

    Raises:
        InputError: The runners cannot make their environments; the message names a machine and the reason.
    """
    normalize: Any = model.get_vec_normalize_env()
    runners = config.runners or 1
    if (cpus := rllib.ray.available_resources().get("CPU", 0)) < runners:
        say(f"The cluster has {cpus:g} free CPUs for {runners} runners, so training waits until it has more.")
    with _Errors.kept() as errors, _algorithm(config, model, seed, errors, run.stop) as algorithm:
        learner = algorithm.learner_group.foreach_learner(lambda learner: learner).result_or_errors[0].get()
        _copy(model.policy, learner, from_learner=False)
        if normalize.norm_reward:
            learner._learner_connector.prepend(NormalizeRewards(normalize))
        algorithm.env_runner_group.sync_weights(from_worker_or_learner_group=algorithm.learner_group)
        healthy, reported, failures, going = runners, 0.0, 0, True
        while going and model.num_timesteps < config.steps:
            run.on_rollout_start()
            if run.is_good:
                return
            began, noted = time.perf_counter(), _last_line(config.out / _RAISED)
            with run.stop.at_once():  # of an iteration that is stopped nothing is kept
                result = algorithm.train()
            steps = result.get("env_runners", {}).get("num_env_steps_sampled", math.nan)
            if (raised := _last_line(config.out / _RAISED)) != noted:
                errors.last, failures = raised, failures + 1
                if failures == _MOST_FAILURES:
                    raise InputError(f"engine rllib: environments raised errors {failures} times, and last {raised}")
            elif not math.isnan(steps):
                failures = 0
            before, healthy = healthy, algorithm.env_runner_group.num_healthy_remote_workers()
            is_silent = math.isnan(steps)  # all runners are lost
            if healthy != before or (is_silent and time.monotonic() > reported + _REPORT_S):
                reported = time.monotonic()
                why = f"; the last error: {errors.last}" if healthy < runners and errors.last else ""
                say(f"  {healthy} of {runners} runners work{', waiting for Ray' * is_silent}{why}")
            if not is_silent:
                model.num_timesteps += int(steps)
                _copy(model.policy, learner, from_learner=True)
                if normalize.norm_obs:
                    _set_statistics(normalize.obs_rms, algorithm.env_runner.get_state([_CONNECTORS]))
                _log(model, result, steps / (time.perf_counter() - began))
            going = run.on_step()


@contextlib.contextmanager
def _algorithm(config: AgentConfig, model: Any, seed: int, errors: "_Errors", stop: GracefulStop) -> Iterator[Any]:
    """RLlib's PPO with the settings of Stable-Baselines3's, its runners started."""
    ppo = require("ray.rllib.algorithms.ppo", extra="ray", purpose="train with RLlib")
    require("ray.tune.registry", extra="ray", purpose="train with RLlib").register_env(_ENV, runner_env)
    settings = ppo_settings(config, model, ppo.PPOConfig()).debugging(seed=seed)
    try:
        with stop.at_once():
            algorithm = settings.build_algo()
    except Exception as error:
        if not errors.last:
            raise
        raise InputError(f"engine rllib: no runner could start: {errors.last}") from error
    try:
        yield algorithm
    finally:
        algorithm.stop()
        shutil.rmtree(algorithm.logdir, ignore_errors=True)  # an empty folder in ~/ray_results


def ppo_settings(config: AgentConfig, model: Any, settings: Any) -> Any:
    """Set those of Stable-Baselines3's PPO in a `PPOConfig` of RLlib."""
    normalize: Any = model.get_vec_normalize_env()
    values, samples = config.hyperparameters, config.hyperparameters["n_steps"] * config.envs
    module: dict[str, Any] = {"fcnet_hiddens": list(values["net_arch"]), "fcnet_activation": "tanh"}
    module |= {"vf_share_layers": False, "free_log_std": isinstance(model.action_space, spaces.Box)}
    # RLlib counts steps from 0, and is given a schedule as points with straight lines between them.
    left, schedule = (
        config.steps - model.num_timesteps,
        Schedule(values["learning_rate"], config.learning_rate_schedule),
    )
    points = {int(left * i / 100): schedule((left - int(left * i / 100)) / config.steps) for i in range(101)}
    connectors, runners = [], config.runners or 1
    if normalize.norm_obs:
        latents = normalize.latents[None] if isinstance(normalize, LatentNormalize) else 0
        rms: Any = normalize.obs_rms
        connectors = [rllib.LatentNormalize(latents, values["latent_deviation"], (rms.mean, rms.var, rms.count))]
    gpus = _gpus_for(runners) if config.device.partition(":")[0] in ("auto", "cuda") else 0
    return (
        settings.environment(
            _ENV,
            env_config={"run": str(config.out.absolute())},
            normalize_actions=False,
            clip_actions=True,
        )
        .env_runners(
            num_env_runners=runners,
            num_envs_per_env_runner=config.envs // runners,
            num_gpus_per_env_runner=1 / math.ceil(runners / gpus) if gpus else 0,
            gym_env_vectorize_mode=gym.VectorizeMode.VECTOR_ENTRY_POINT,
            rollout_fragment_length=values["n_steps"],
            sample_timeout_s=None,  # games can be slow; Ray reports a machine that is lost
            env_to_module_connector=lambda env, spaces, device: connectors,
        )
        .training(
            lr=[[step, value] for step, value in points.items()],
            gamma=values["gamma"],
            lambda_=model.gae_lambda,
            train_batch_size_per_learner=samples,
            minibatch_size=min(values["batch_size"], samples),
            num_epochs=values["n_epochs"],
            entropy_coeff=values["ent_coef"],
            clip_param=model.clip_range(1.0),
            vf_clip_param=math.inf,
            vf_loss_coeff=model.vf_coef,
            grad_clip=model.max_grad_norm,
            use_kl_loss=False,
        )
        .rl_module(model_config=module)
        .learners(num_learners=0)  # in this process: the network is small
        .fault_tolerance(restart_failed_env_runners=True, delay_between_env_runner_restarts_s=_RESTART_S)
    )


def _gpus_for(runners: int) -> float:
    """The GPUs of the cluster, or 0 if the nodes that have them do not have a CPU for each runner."""
    nodes = [node["Resources"] for node in rllib.ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    return sum(node["GPU"] for node in nodes) if sum(node.get("CPU", 0) for node in nodes) >= runners else 0


def runner_env(context: Any) -> Any:
    """Make the environments of a runner, as an agent of a run folder sees them.

    Args:
        context: "run", the run folder, and "num_envs".

    Raises:
        InputError: This machine does not have the run folder, or cannot make the environments; the message names it.
    """
    device, count = rllib.runner_device(), context["num_envs"]
    try:
        config = run_config(context["run"])
        # A backend for CPUs was perhaps chosen where the run was started.
        own = {"device": device, "backend": config.backend if device == "cpu" else "auto"}
        encoder = load_encoder(dataclasses.replace(config, **own))
    except LatentObsError as error:
        raise InputError(
            f"node {platform.node()}: {error}. Each runner reads the run folder, with its copy of the encoder: --out "
            "must be on a disk that all machines of the cluster share, at the same path"
        ) from None
    assert encoder is not None
    seen, make = as_seen(config, encoder.contract), env_maker(config.env, **config.all_env_kwargs)
    in_processes = config.workers == "processes" and count > 1
    # Nothing of this package is named here: a worker would import it, and torch with it.
    numbers = [None if in_processes else i for i in range(count)]  # errors of a worker name its number
    makers = [lambda i=i: seen(make(), number=i) for i in numbers]
    venv = (ProcessVectorEnv if in_processes else SyncVectorEnv)(makers, autoreset_mode=AutoresetMode.NEXT_STEP)
    key = config.pixel_key if isinstance(venv.single_observation_space, spaces.Dict) else None
    how: dict[str, Any] = {"latent_only": config.latent_only, "flatten": config.flattened, "history": config.history}
    seen_by_agent = VectorLatentObservation(venv, encoder, pixel_key=key, **how)
    return _ErrorsNoted(rllib.SeedsApart(seen_by_agent), Path(context["run"]) / _RAISED)


class _ErrorsNoted(VectorWrapper):
    """Notes what environments raise in a file of the run: RLlib says only that a runner has ended."""

    def __init__(self, env: Any, file: Path) -> None:
        super().__init__(env)
        self.file = file

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> Any:
        """Reset all."""
        with self._noted():
            return self.env.reset(seed=seed, options=options)

    def step(self, actions: Any) -> Any:
        """Step all."""
        with self._noted():
            return self.env.step(actions)

    @contextlib.contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            when, what = time.strftime("%Y-%m-%d %H:%M:%S"), f"{type(error).__name__}: {one_line(error)}"
            with self.file.open("a") as file:
                file.write(f"{when}, node {platform.node()}, process {os.getpid()}: {what}\n")
            raise


def _last_line(file: Path) -> str:
    return file.read_text().splitlines()[-1] if file.exists() else ""


def _copy(policy: Any, learner: Any, *, from_learner: bool) -> None:
    """Copy weights and the state of Adam between a policy of Stable-Baselines3 and RLlib's learner."""
    optimizers = [learner.get_optimizer(_MODULE), policy.optimizer]
    pairs = parameter_pairs(learner.module[_MODULE], policy)
    if not from_learner:
        optimizers, pairs = optimizers[::-1], [pair[::-1] for pair in pairs]
        optimizers[1].param_groups[0]["eps"] = optimizers[0].param_groups[0]["eps"]
    for source, target in pairs:
        target.data.copy_(source.data)
        optimizers[1].state[target] = {name: value.clone() for name, value in optimizers[0].state[source].items()}


def parameter_pairs(module: Any, policy: Any) -> list[tuple[Any, Any]]:
    """The parameters of RLlib's module, each with the one of Stable-Baselines3's policy in the same place."""
    ours, pairs = dict(policy.named_parameters()), []
    for name, parameter in module.named_parameters():
        prefix = next(prefix for prefix in _NAMES if name.startswith(prefix))
        pairs.append((parameter, ours.pop(_NAMES[prefix] + name.removeprefix(prefix))))
    assert not ours, f"parameters without a counterpart in RLlib: {sorted(ours)}"
    return pairs


def _set_statistics(rms: Any, state: dict[str, Any]) -> None:
    """Take the running statistics of observations from the state of a runner's connectors."""
    [own] = [own for own in state[_CONNECTORS].values() if "statistics" in own]
    rms.mean, rms.var, rms.count = own["statistics"]


def _log(model: Any, result: dict[str, Any], steps_per_second: float) -> None:
    sampled, learned = result["env_runners"], result["learners"][_MODULE]
    if "episode_return_mean" in sampled:
        model.logger.record("rollout/ep_rew_mean", float(sampled["episode_return_mean"]))
        model.logger.record("rollout/ep_len_mean", float(sampled["episode_len_mean"]))
    model.logger.record("time/fps", int(steps_per_second))
    model.logger.record("time/total_timesteps", model.num_timesteps, exclude="tensorboard")
    for name, ours in _LOGGED.items():
        model.logger.record(f"train/{ours}", float(learned[name]))
    model.logger.dump(model.num_timesteps)


class NormalizeRewards(rllib.ConnectorV2):
    """Divide the rewards of an update by the running deviation of the return, as `VecNormalize` does at each step.

    In the learner, so that there is one deviation for all runners, and the returns that RLlib reports are the game's.
    """

    def __init__(self, normalize: VecNormalize) -> None:
        super().__init__()
        self.normalize = normalize
        self.returns: dict[str, float] = {}  # of the episodes that go on in the next update, discounted

    def __call__(self, *, batch: Any, episodes: Any, **_: Any) -> Any:
        """Add the returns of an update to the statistics, then divide its rewards."""
        ours, returns, after = self.normalize, [], {}
        for episode in episodes:
            total = after.pop(episode.id_, self.returns.get(episode.id_, 0.0))
            for reward in episode.get_rewards():
                total = total * ours.gamma + reward
                returns.append(total)
            if not episode.is_done:
                after[episode.id_] = total
        self.returns = after
        ours.ret_rms.update(np.array(returns))
        for episode in episodes:
            episode.rewards.data = ours.normalize_reward(np.asarray(episode.rewards.data))  # it can be read-only
        return batch


class _Errors(logging.Handler):
    """Keeps the last error that RLlib logs, which it does not raise: the last line of it is the reason."""

    last = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Show nothing."""
        if record.levelno >= logging.ERROR:
            lines = [
                line.strip() for line in record.getMessage().splitlines() if "latent_obs" in line or "Error" in line
            ]
            self.last = one_line(lines[-1], 500) if lines else self.last

    @classmethod
    @contextlib.contextmanager
    def kept(cls) -> "Iterator[_Errors]":
        """Keep errors inside the block, in which Ray's own lines are not shown."""
        errors, loggers = cls(), [logging.getLogger(name) for name in ("ray", "ray.rllib")]
        before = [(logger.handlers, logger.propagate) for logger in loggers]
        for logger in loggers:
            logger.handlers, logger.propagate = [errors], False
        try:
            yield errors
        finally:
            for logger, (handlers, propagate) in zip(loggers, before, strict=True):
                logger.handlers, logger.propagate = handlers, propagate
