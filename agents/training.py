"""Train an agent on latents, evaluate it on the way, and save what is needed to use and to resume it."""

import contextlib
import dataclasses
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, configure
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from agents.config import ENV_FOLDER, NOT_ITS_OWN, AgentConfig
from agents.envs import contract_of, load_components, load_encoder, make_vec_env, with_normalization
from agents.evaluation import evaluation_env, play, run_config
from agents.schedules import Schedule
from agents.store import (
    agent_state,
    check_encoder,
    fingerprint,
    load_agent,
    restore_replay,
    restore_statistics,
    save_agent,
)
from latent_obs.encoder.folder import copy_encoder_folder
from latent_obs.envs.factory import module_folder
from latent_obs.util.atomic import GracefulStop, atomic_write, folder_lock, is_unused, own_folder, write_json
from latent_obs.util.device import resolve_device, torch_threads
from latent_obs.util.errors import InputError
from latent_obs.util.progress import ProgressBar, print_now
from latent_obs.util.ray import connect
from latent_obs.util.tracking import Tracker
from latent_obs.wrappers.drift import DriftMonitor

Say = Callable[[str], object]

_SMALLEST_CNN = 36  # pixels that the three convolutions of NatureCNN need
_EVALUATION_SEED = 500_009  # is added to the run's seed for the environments of evaluations


class AgentResult(NamedTuple):
    """The result of `train_agent`."""

    run: Path
    """The run folder, for `evaluate_agent` and `film`."""
    steps: int
    """Environment steps in all."""
    steps_per_second: float
    """Of this call's training, evaluations not counted."""
    best_return: float
    """Highest mean return of an evaluation; NaN if there was none."""
    interrupted: bool
    """Whether it was stopped before its last step."""


def train_agent(
    config: AgentConfig,
    *,
    resume: bool = False,
    stop_at_return: float | None = None,
    progress_bar: bool | None = None,
    say: Say = print_now,
) -> AgentResult:
    """Train an agent on an environment's latents, or on a baseline's observations.

    Every `eval_every` steps the agent plays `eval_episodes` whole episodes in separate environments. The best agent is
    kept as `best.zip`, the last one as `last.zip`, which is written at every checkpoint. See `agents.store` for the run
    folder.

    **Resuming.** The state of an environment cannot be saved, so every run resets its environments at each checkpoint,
    with seeds that follow from the settings and the step. A run that was stopped (Ctrl-C, SIGTERM) or killed therefore
    continues from its last checkpoint and gives the same agent, to the bit on a CPU, as one that was not. MineRL's
    environments, and those of a run without checkpoints or with RLlib, are not reset; such a run saves its present
    agent when it is stopped.

    Args:
        config: All settings.
        resume: Continue with the agent in `config.out`.
        stop_at_return: Training ends when two evaluations in a row reach this mean return. It is not saved with the
            settings: a call without it trains on, up to the steps of the settings.
        progress_bar: Show how far it is: a bar in a terminal, elsewhere a line now and then. False shows neither.
        say: Where messages go.

    Raises:
        InputError: The environment, the settings or the run folder are not valid, or another process trains in that
            folder; before training starts.
        EncoderFolderError: The encoder folder is missing or damaged.
        DeviceError: The device does not exist.
    """
    with contextlib.ExitStack() as stack:
        if resume:
            saved = run_config(config.out)
            stack.enter_context(folder_lock(config.out))
            # The copies in the run are used, whatever paths are given.
            copies = {name: None for name in ("encoder", "pca") if getattr(saved, name) is not None}
            config = dataclasses.replace(config, **copies).resumed_from(saved)
        else:
            _check_new(config.out)
        config = config.settled()
        config.check_runners()
        device, on_pixels = resolve_device(config.device), config.observation == "pixels"
        if config.backend == "openvino" and resume and device.type != "cpu":
            config = dataclasses.replace(config, backend="auto")  # another device computes other bits anyway
        # As in training: they decide which backend is the fastest.
        stack.enter_context(torch_threads(1 if not on_pixels and device.type == "cpu" else None))
        components = load_components(config) if config.observation == "pca-latent" else None
        encoder = load_encoder(config) if components is None else components.encoder(device=config.device)
        if encoder is not None:  # a resumed run encodes as it did before, to the last bit
            config = dataclasses.replace(config, backend=encoder.backend, precision=encoder.precision)
        if on_pixels and min(contract_of(encoder).shape[:2]) < _SMALLEST_CNN:
            raise InputError(
                f"encoder: its frames are smaller than {_SMALLEST_CNN}x{_SMALLEST_CNN}, which the CNN of a pixel agent "
                "(Mnih et al. 2015) needs; leave --encoder out, then the agent sees 64x64"
            )
        seen = None if on_pixels else encoder
        # A run that was killed before it had an agent begins anew; one that has lost its last agent does not.
        continues = resume and any((config.out / f"{name}.zip").exists() for name in ("last", "best"))
        if continues:
            check_encoder(config.out, "last", seen)
            if (done := _finished(config, stop_at_return)) is not None:
                why = "plays well enough" if done.steps < config.steps else "has had its steps; give more with --steps"
                say(f"Nothing to do: after {done.steps:,} steps, the agent in {config.out} {why}")
                return done
        on_cluster = config.engine == "rllib"
        if on_cluster:
            stack.enter_context(connect(config.address, rllib=True))
        monitor = None
        if not on_cluster and config.observation == "latent" and encoder is not None and encoder.statistics is not None:
            monitor = DriftMonitor(encoder, say=say)
        # RLlib's runners have the environments: here is one, which only shows what they are like.
        venv = make_vec_env(config, encoder, monitor=monitor, envs=1 if on_cluster else None)
        stack.callback(venv.close)
        if on_cluster:
            from agents.rllib import check_spaces

            check_spaces(config, venv)
        venv = with_normalization(config, venv, training=True)
        evaluations = None
        if config.eval_every:
            seed = config.seed + _EVALUATION_SEED
            evaluations = evaluation_env(config, config.eval_episodes, seed, config.envs, encoder=encoder)
            stack.callback(evaluations.close)

        if not resume:
            stack.enter_context(own_folder(config.out))
            _check_new(config.out)
        tracker = None
        if config.log is not None:
            tracker = stack.enter_context(Tracker(config.log, config.out, config.to_json()))
        folder = module_folder(config.env)
        where = {} if folder is None else {ENV_FOLDER: folder}
        # First: from here on the run can be resumed.
        write_json(config.out / "config.json", {**config.to_json(), **where})
        encoder_copy, components_copy = config.out / "encoder", config.out / "pca.safetensors"
        if config.encoder is not None and not encoder_copy.exists():
            copy_encoder_folder(config.encoder, encoder_copy)
        if components is not None and not components_copy.exists():
            components.save(components_copy)
        notes = {"encoder": fingerprint(seen)}
        if continues:
            model = loaded_model(config, venv)
        else:
            model = new_model(config, venv, device.type)
            save_agent(config.out, "last", model, notes={**notes, "seconds": 0.0}, replay=True)
        before = model.num_timesteps
        say(
            f"Training {config.trainer.title} on {config.env} ({config.observation}, "
            f"{model.observation_space.shape or 'Dict'} observations), {config.envs} environments, "
            f"{config.steps:,} steps{f', from step {before:,} on' if before else ''}."
        )
        formats = ["json", "csv", *(["tensorboard"] if find_spec("tensorboard") else [])]
        model.set_logger(configure(str(config.out / "logs" / f"from_{before:09d}"), formats))
        if tracker is not None:
            model.logger.output_formats.append(_Tracked(tracker))
        stack.callback(model.logger.close)

        stop = stack.enter_context(GracefulStop())
        how: dict[str, Any] = {"unit": "step", "desc": "training", "shown": progress_bar}
        bar = stack.enter_context(ProgressBar(total=config.steps, initial=before, **how))
        run = _RunCallback(config, evaluations, notes, stop, say, bar, stop_at_return)
        earlier = run.seconds
        callbacks = [run, *([] if monitor is None else [DriftCallback(monitor)])]
        run.init_callback(model)  # learn() does so too, but there may be nothing left to learn
        if config.steps > before and on_cluster:
            from agents.rllib import learn_with_rllib

            with contextlib.suppress(KeyboardInterrupt):
                learn_with_rllib(config, model, run, part_seed(config.seed, before), say)
        elif config.steps > before:
            begin_part(model, part_seed(config.seed, before))
            model.learn(config.steps - before, callbacks, reset_num_timesteps=False)
        seconds, stopped = run.seconds - earlier, stop.requested
        # Training that stops takes one step more; of a good agent that step is left out.
        steps = run.saved if run.is_good else model.num_timesteps
        if not run.is_good:
            if not stopped or (not config.exact and run.saved < steps):
                run.save()
            if not stopped:
                run.evaluate()  # the last agent may be the best
        if math.isnan(run.best):  # none was evaluated, so the last agent counts as the best
            save_agent(config.out, "best", model, notes=notes)

    rate = (steps - before) / seconds
    best = "" if math.isnan(run.best) else f" Best mean return {run.best:.1f}."
    if run.is_good:
        best += (
            f" It has reached {stop_at_return:g} in two evaluations in a row, so training ends before its last step."
        )
    say(f"{'Stopped' if stopped else 'Done'} at step {steps:,}: {seconds:.0f} s, {rate:.0f} steps/s.{best}")
    more = f"Evaluate and film it with: latent-obs evaluate --run {config.out}"
    if stopped:
        more = f"Continue from step {run.saved:,} with: latent-obs train-agent --out {config.out} --resume"
    say(f"Agent: {config.out}\n{more}")
    return AgentResult(config.out, run.saved, rate, run.best, stopped)


def _check_new(out: Path) -> None:
    if not is_unused(out):
        raise InputError(f"out: {out} is not empty; choose another, or continue the agent in it with --resume")


def _finished(config: AgentConfig, stop_at_return: float | None) -> AgentResult | None:
    """The result of a run that has no step and no evaluation left to do, or None."""
    steps, rows = int(agent_state(config.out, "last").get("steps", 0)), read_evaluations(config.out)
    is_trained = steps >= config.steps or _is_good(rows, stop_at_return)
    if not is_trained or not (config.out / "best.zip").exists():
        return None
    judged = rows[-1]["step"] if rows else agent_state(config.out, "best").get("steps")  # the last counts as the best
    if judged != steps and (config.eval_every or not rows):
        return None
    best = max((row["mean_return"] for row in rows), default=math.nan)
    return AgentResult(config.out, steps, 0.0, best, False)


def _is_good(rows: list[dict[str, Any]], stop_at_return: float | None) -> bool:
    """Whether the last two evaluations have reached the return at which training stops."""
    return stop_at_return is not None and [row["mean_return"] >= stop_at_return for row in rows[-2:]] == [True, True]


def new_model(config: AgentConfig, venv: VecEnv, device: str) -> BaseAlgorithm:
    """A fresh agent; `device` is where a pixel agent learns.

    Agents on latents learn on the CPU: their networks are so small that copying to a GPU and back would take longer.
    """
    values = config.hyperparameters
    settings = {name: value for name, value in values.items() if name not in NOT_ITS_OWN}
    if config.engine == "rllib":
        settings["n_steps"] = values["batch_size"]  # its own buffer stays empty
    settings["learning_rate"] = Schedule(values["learning_rate"], config.learning_rate_schedule)
    kind = "Cnn" if config.observation == "pixels" else "Mlp"
    if isinstance(venv.observation_space, spaces.Dict):
        kind = "MultiInput"
    return config.trainer.load_class()(
        f"{kind}{config.trainer.policy}",
        venv,
        policy_kwargs={"net_arch": list(values["net_arch"]), **config.trainer.policy_kwargs},
        seed=config.seed,
        device=device if config.observation == "pixels" else "cpu",
        **settings,
    )


def loaded_model(config: AgentConfig, venv: VecNormalize) -> BaseAlgorithm:
    """The agent of a run's last checkpoint, with its statistics and its replay buffer, to continue training."""
    model = load_agent(config.out, "last", device=config.device if config.observation == "pixels" else "cpu")
    restore_statistics(config.out, "last", venv, model)
    model.set_env(venv)
    restore_replay(config.out, "last", model)
    return model


def part_seed(seed: int, step: int, purpose: int = 0) -> int:
    """The seed, below 2^31, of the part of a run that begins at a step; at step 0, that of the run itself."""
    if step == 0 and purpose == 0:
        return seed
    return int(np.random.SeedSequence([seed, step, purpose]).generate_state(1)[0] >> 1)


def begin_part(model: BaseAlgorithm, seed: int) -> None:
    """Reset the environments and seed all random numbers, so that what follows depends on the checkpoint alone."""
    agent: Any = model  # Stable-Baselines3 has no public names for what it saw last
    env, normalize = agent.get_env(), agent.get_vec_normalize_env()
    set_random_seed(seed)
    agent.action_space.seed(seed)
    env.action_space.seed(seed)
    env.seed(seed)
    agent._last_obs, agent._last_episode_starts = env.reset(), np.ones(env.num_envs, bool)
    if normalize is not None:
        agent._last_original_obs = normalize.get_original_obs()
    states = getattr(agent, "_last_lstm_states", None)
    if states is not None:
        agent._last_lstm_states = type(states)(*(tuple(map(torch.zeros_like, pair)) for pair in states))


class _RunCallback(BaseCallback):
    """Evaluate and save the agent between updates, count lost games, and end training on a signal."""

    def __init__(
        self,
        config: AgentConfig,
        env: VecNormalize | None,
        notes: dict[str, Any],
        stop: GracefulStop,
        say: Say,
        bar: ProgressBar,
        stop_at_return: float | None,
    ) -> None:
        super().__init__()
        self.bar, self.stop_at_return = bar, stop_at_return
        self.is_good = False  # whether training stops because of the returns of evaluations
        self.config, self.env, self.notes, self.stop, self.say = config, env, notes, stop, say
        self.best = math.nan  # highest mean return of an evaluation
        self.saved = self._evaluated = 0  # steps of the last checkpoint and of the last evaluation
        self._faults: dict[int, int] = {}  # by environment
        self._seconds, self._began = agent_state(config.out, "last").get("seconds", 0.0), time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds of training: those of earlier parts of the run included, those of evaluations not."""
        return self._seconds + time.perf_counter() - self._began

    def _init_callback(self) -> None:
        """Drop the evaluations after the step to resume from: their part of the run is done again."""
        self.saved = self.model.num_timesteps
        rows = read_evaluations(self.config.out)
        if rows:
            rows = [row for row in rows if row["step"] <= self.saved]
            with atomic_write(self.config.out / "evaluations.jsonl") as aside:
                aside.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.best = max((row["mean_return"] for row in rows), default=math.nan)
        self._evaluated = int(rows[-1]["step"]) if rows else 0

    def _on_rollout_start(self) -> None:
        step, every = self.model.num_timesteps, self.config.checkpoint_every
        if self.config.eval_every and step - self._evaluated >= self.config.eval_every:
            self.evaluate()
            self.is_good = _is_good(read_evaluations(self.config.out), self.stop_at_return)
            if self.is_good:
                self.save()
                return
        if every and step // every > self.saved // every:
            self.save()
            if self.config.exact:
                begin_part(self.model, part_seed(self.config.seed, step))

    def _on_step(self) -> bool:
        for i, info in enumerate(self.locals.get("infos", ())):  # RLlib gives none
            if "fault" in info:
                self._faults[i] = info["faults"]
                self.model.logger.record("env/faults", sum(self._faults.values()))
        self.bar.update(min(self.model.num_timesteps, self.config.steps) - self.bar.n)
        return not (self.stop.requested or self.is_good)

    def save(self) -> None:
        """Save the agent, its statistics and its replay buffer, to resume from."""
        self.saved = self.model.num_timesteps
        save_agent(self.config.out, "last", self.model, notes={**self.notes, "seconds": self.seconds}, replay=True)

    def evaluate(self) -> None:
        """Play whole episodes, log them, and keep the agent if it is the best so far."""
        step = self.model.num_timesteps
        if self.env is None or step == self._evaluated:
            return
        self._evaluated, self._seconds = step, self.seconds
        normalize = self.model.get_vec_normalize_env()
        if normalize is not None and normalize.norm_obs:
            self.env.obs_rms = normalize.obs_rms
        with _random_state_kept():
            self.env.seed(part_seed(self.config.seed, step, purpose=1))
            shown = not self.bar.disable
            result = play(self.model, self.env, self.config.eval_episodes, self.config.deterministic, shown)
        self.say(f"  step {step:>9,}: mean return {result}")
        if not self.best >= result.mean:  # also if there is no best yet, NaN
            self.best = result.mean
            # Saved before its score is written: a run that is killed in between has no score, and evaluates again.
            save_agent(self.config.out, "best", self.model, notes={**self.notes, "seconds": self._seconds})
        row = {"step": step, "mean_return": result.mean, "standard_error": result.standard_error}
        row |= {"returns": result.returns, "lengths": result.lengths, "successes": result.success_rate}
        with (self.config.out / "evaluations.jsonl").open("a") as file:
            file.write(json.dumps({**row, "seconds": self._seconds}) + "\n")
        self.model.logger.record("eval/mean_return", result.mean)
        if result.success_rate is not None:
            self.model.logger.record("eval/success_rate", result.success_rate)
        self._began = time.perf_counter()


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    """Restore the random state afterwards, so that training does not depend on the number and length of evaluations."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  (what Stable-Baselines3 draws from)
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


class _Tracked(KVWriter):
    """Sends what Stable-Baselines3 logs to a tracker: the numbers that TensorBoard shows."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        shown = {name: value for name, value in key_values.items() if "tensorboard" not in (key_excluded[name] or ())}
        self._tracker.log({name: float(v) for name, v in shown.items() if isinstance(v, int | float | np.number)}, step)

    def close(self) -> None:
        """The tracker belongs to the run."""


class DriftCallback(BaseCallback):
    """Log at the end of each rollout how far recent frames are from those that the encoder was trained on.

    - `drift/share_outside`: share of recent frames farther out than 99% of the training frames; 0.01 means no drift.
    - `drift/mean_shift`: shift of the latents' mean, in standard deviations.
    - `drift/reconstruction_ratio`: reconstruction error over that of held-out frames, if the encoder has a decoder.

    The monitor itself warns, once. Works with every algorithm of Stable-Baselines3.

    Args:
        monitor: The monitor that the vector environment's wrapper was given, as in docs/wrapping.md.
    """

    def __init__(self, monitor: DriftMonitor) -> None:
        super().__init__()
        self.monitor = monitor

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        report = self.monitor.report()
        if not report.frames:
            raise InputError("monitor has seen no frame; give the same one to a VecLatentObservation in this process")
        for name in ("share_outside", "mean_shift", "reconstruction_ratio"):
            if not math.isnan(value := getattr(report, name)):
                self.logger.record(f"drift/{name}", value)


def read_evaluations(run: Path) -> list[dict[str, Any]]:
    """Rows of a run's `evaluations.jsonl`.

    Each has step, mean_return, standard_error, returns, lengths, successes (a share, or None), and seconds (of
    training).
    """
    file = run / "evaluations.jsonl"
    try:
        # A line without its end was being written when the run was killed.
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        return [dict(json.loads(line)) for line in lines if line.endswith("\n")]
    except (ValueError, TypeError) as error:
        raise InputError(f"{file} is damaged: {error}. Restore it from a copy, or train a new agent") from None
