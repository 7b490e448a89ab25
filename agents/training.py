"""Train an agent on latents, evaluate it on the way, and save what is needed to use and to resume it."""

import contextlib
import dataclasses
import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, VecTransposeImage

from agents.config import NOT_ITS_OWN, AgentConfig
from agents.envs import load_encoder, make_monitor, make_vec_env, with_normalization
from agents.evaluation import evaluation_env, play
from agents.schedules import Schedule
from agents.store import (
    agent_state,
    check_encoder,
    check_spaces,
    fingerprint,
    keep_file,
    load_agent,
    restore_replay,
    restore_statistics,
    save_agent,
)
from latent_obs.encoder.folder import read_encoder_folder
from latent_obs.util.atomic import atomic_write, write_json
from latent_obs.util.device import resolve_device, torch_threads
from latent_obs.util.errors import InputError
from latent_obs.util.interrupt import GracefulStop
from latent_obs.wrappers.drift import DriftMonitor

_SMALLEST_CNN = 36  # pixels that the three convolutions of NatureCNN need
_EVALUATION_SEED = 500_009  # is added to the run's seed for the environments of evaluations


@dataclass(frozen=True)
class AgentResult:
    """The result of `train_agent`.

    Attributes:
        run: The run folder, for `evaluate_agent` and `film`.
        steps: Environment steps in all.
        steps_per_second: Of this call's training, evaluations not counted.
        best_return: Highest mean return of an evaluation; NaN if there was none.
        interrupted: Whether it was stopped before its last step.
    """

    run: Path
    steps: int
    steps_per_second: float
    best_return: float
    interrupted: bool


def train_agent(
    config: AgentConfig,
    *,
    resume: bool = False,
    progress_bar: bool | None = None,
    say: Callable[[str], object] = print,
) -> AgentResult:
    """Train an agent on an environment's latents, or on a baseline's observations.

    Every `eval_every` steps the agent plays `eval_episodes` whole episodes in separate environments. The best agent is
    kept as `best.zip`, the last one as `last.zip`, which is written at every checkpoint. See `agents.store` for the run
    folder.

    **Resuming.** The state of an environment cannot be saved, so every run resets its environments at each checkpoint,
    with seeds that follow from the settings and the step. A run that was stopped (Ctrl-C, SIGTERM) or killed therefore
    continues from its last checkpoint and gives the same agent, to the bit on a CPU, as one that was not. With
    `exact_resume` off, environments are not reset at checkpoints, and a run that is stopped saves its present agent.

    Args:
        config: All settings.
        resume: Continue with the agent in `config.out`.
        progress_bar: Show Stable-Baselines3's; None shows it in a terminal only.
        say: Where messages go.

    Raises:
        InputError: The environment, the settings or the run folder are not valid; before training starts.
        EncoderFolderError: The encoder folder is missing or damaged.
        DeviceError: The device does not exist.
    """
    if resume:
        config = _resumed(config)
    elif config.out.exists() and any(config.out.iterdir()):
        raise InputError(
            f"out: {config.out} is not empty. Continue with the agent in it with --resume, or choose another"
        )
    config = config.settled()
    device = resolve_device(config.device)
    encoder = load_encoder(config)
    on_pixels = config.observation == "pixels"
    if on_pixels and encoder is not None and min(encoder.contract.shape[:2]) < _SMALLEST_CNN:
        raise InputError(
            f"encoder: its frames are {encoder.contract.shape[:2]}, and the CNN of a pixel agent (Mnih et al. 2015) "
            f"needs {_SMALLEST_CNN}x{_SMALLEST_CNN} or more; leave --encoder out, then the agent sees 64x64"
        )
    seen = None if on_pixels else encoder
    continues = resume and (config.out / "last.zip").exists()
    if continues:
        check_encoder(config.out, "last", seen)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch_threads(1 if not on_pixels and device.type == "cpu" else None))
        monitor = make_monitor(config, encoder, say)
        venv = make_vec_env(config, encoder, monitor=monitor)
        stack.callback(venv.close)
        venv = with_normalization(config, venv, training=True)
        evaluations = None
        if config.eval_every:
            seed = config.seed + _EVALUATION_SEED
            evaluations = evaluation_env(config, config.eval_episodes, seed, config.envs, encoder=encoder)
            stack.callback(evaluations.close)

        _write_inputs(config)
        notes = {"encoder": fingerprint(seen)}
        if continues:
            model = loaded_model(config, venv)
        else:
            model = new_model(config, venv, device.type)
            save_agent(config.out, "last", model, notes={**notes, "seconds": 0.0}, replay=True)
        before = model.num_timesteps
        shape = model.observation_space.shape or "Dict"
        say(
            f"Training {config.trainer.title} on {config.env} ({config.observation}, {shape} observations), "
            f"{config.envs} environments, {config.steps:,} steps{f', from step {before:,} on' if before else ''}."
        )
        formats = ["json", "csv", *(["tensorboard"] if find_spec("tensorboard") else [])]
        model.set_logger(configure(str(config.out / "logs" / f"from_{before:09d}"), formats))
        stack.callback(model.logger.close)

        stop = stack.enter_context(GracefulStop())
        earlier = agent_state(config.out, "last").get("seconds", 0.0)
        clock = _TrainingClock(earlier)
        evaluate = _EvaluateCallback(config, evaluations, clock, notes, say)
        checkpoint = _CheckpointCallback(config, clock, notes, stop)
        game = _GameCallback()
        callbacks = [evaluate, checkpoint, game, *([] if monitor is None else [DriftCallback(monitor)])]
        for callback in callbacks:
            callback.init_callback(model)  # learn() does so too, but there may be nothing left to learn
        if config.steps > before:
            begin_part(model, part_seed(config.seed, before))
            shown = sys.stderr.isatty() if progress_bar is None else progress_bar
            model.learn(config.steps - before, callbacks, reset_num_timesteps=False, progress_bar=shown)
        seconds, steps, stopped = clock.seconds - earlier, model.num_timesteps, stop.requested
        if not stopped or (not config.exact and checkpoint.saved < steps):
            checkpoint.save()
        if not stopped:
            evaluate.evaluate()  # the last agent may be the best
        if math.isnan(evaluate.best):  # none was evaluated, so the last agent counts as the best
            save_agent(config.out, "best", model, notes=notes)

    rate = (steps - before) / seconds
    say(
        f"{'Stopped' if stopped else 'Done'} at step {steps:,}: {seconds:.0f} s of training, {rate:.0f} steps/s."
        + ("" if math.isnan(evaluate.best) else f" Best mean return {evaluate.best:.1f}.")
    )
    if not game.rewarded and not stopped and steps > before:
        say(
            f"No step of this run gave any reward, so there was nothing to learn from. {config.env} may need more than "
            f"{config.steps:,} steps, more exploration (--ent-coef), fewer decisions an episode (--frame-skip), or a "
            "denser reward."
        )
    say(f"Agent: {config.out}")
    if stopped:
        say(f"Continue from step {checkpoint.saved:,} with: latent-obs train-agent --out {config.out} --resume")
    else:
        say(f"Evaluate and film it with: latent-obs evaluate --run {config.out}")
    return AgentResult(config.out, checkpoint.saved, rate, evaluate.best, stopped)


def _resumed(config: AgentConfig) -> AgentConfig:
    """The settings of the run in `config.out`, with those of `config` that may change on resume."""
    saved = AgentConfig.load(config.out)
    for field, name in (("encoder", "encoder"), ("pca", "pca.safetensors")):
        if (config.out / name).exists():  # the copy in the run is used, whatever path is given
            config = dataclasses.replace(config, **{field: None})
            saved = dataclasses.replace(saved, **{field: config.out / name})
    return config.resumed_from(saved)


def _write_inputs(config: AgentConfig) -> None:
    """Write the settings, and copies of the encoder and of the principal components, into the run folder."""
    config.out.mkdir(parents=True, exist_ok=True)
    if config.encoder is not None:
        keep_file(read_encoder_folder(config.encoder).path, config.out / "encoder")
    if config.pca is not None:
        keep_file(config.pca, config.out / "pca.safetensors")
    write_json(config.out / "config.json", config.to_json())


def new_model(config: AgentConfig, venv: VecEnv, device: str) -> BaseAlgorithm:
    """A fresh agent; `device` is where a pixel agent learns.

    Agents on latents learn on the CPU: their networks are so small that copying to a GPU and back would take longer.
    """
    values = config.hyperparameters
    settings = {name: value for name, value in values.items() if name not in NOT_ITS_OWN}
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
    model = load_agent(config.out, "last", device="cpu" if config.observation != "pixels" else config.device)
    check_spaces(config.out, "last", model, venv)
    restore_statistics(config.out, "last", venv)
    # load(env=...) would wrap before the statistics are back.
    model.set_env(VecTransposeImage(venv) if config.observation == "pixels" else venv)
    restore_replay(config.out, "last", model)
    return model


def part_seed(seed: int, step: int, purpose: int = 0) -> int:
    """The seed, below 2^31, of the part of a run that begins at a step; at step 0, that of the run itself.

    Example:
        >>> part_seed(7, 0), part_seed(7, 10_000) == part_seed(7, 10_000), part_seed(7, 10_000) == part_seed(7, 20_000)
        (7, True, False)
    """
    if step == 0 and purpose == 0:
        return seed
    return int(np.random.SeedSequence([seed, step, purpose]).generate_state(1)[0] >> 1)


def begin_part(model: BaseAlgorithm, seed: int) -> None:
    """Reset the environments and seed all random numbers, so that what follows depends on the checkpoint alone."""
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
    states: Any = getattr(model, "_last_lstm_states", None)
    if states is not None:
        zeros = [tuple(torch.zeros_like(part) for part in pair) for pair in states]
        model._last_lstm_states = type(states)(*zeros)  # pyright: ignore[reportAttributeAccessIssue]


class _TrainingClock:
    """Seconds of training: those of earlier parts of the run included, those of evaluations not."""

    def __init__(self, earlier: float) -> None:
        self._earlier, self._began = earlier, time.perf_counter()

    @property
    def seconds(self) -> float:
        return self._earlier + time.perf_counter() - self._began

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        self._earlier = self.seconds
        yield
        self._began = time.perf_counter()


class _EvaluateCallback(BaseCallback):
    """Evaluate the agent at the beginning of a rollout, when the update is done, and keep the best one.

    Attributes:
        best: Highest mean return of an evaluation; NaN if there was none.
    """

    def __init__(
        self,
        config: AgentConfig,
        env: VecNormalize | None,
        clock: _TrainingClock,
        notes: dict[str, Any],
        say: Callable[[str], object],
    ) -> None:
        super().__init__()
        self.config, self.env, self.clock, self.notes, self.say = config, env, clock, notes, say
        self.best = math.nan
        self._evaluated = 0

    def _init_callback(self) -> None:
        """Drop the evaluations after the step to resume from: their part of the run is done again."""
        rows = read_evaluations(self.config.out)
        kept = [row for row in rows if row["step"] <= self.model.num_timesteps]
        if len(kept) < len(rows):
            with atomic_write(self.config.out / "evaluations.jsonl") as aside:
                aside.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self.best = max((row["mean_return"] for row in kept), default=math.nan)
        self._evaluated = int(kept[-1]["step"]) if kept else 0

    def _on_rollout_start(self) -> None:
        if self.config.eval_every and self.model.num_timesteps - self._evaluated >= self.config.eval_every:
            self.evaluate()

    def _on_step(self) -> bool:
        return True

    def evaluate(self) -> None:
        """Play whole episodes, log them, and keep the agent if it is the best so far."""
        step = self.model.num_timesteps
        if self.env is None or step == self._evaluated:
            return
        self._evaluated = step
        with self.clock.stopped():
            seconds = self.clock.seconds
            normalize = self.model.get_vec_normalize_env()
            if normalize is not None and normalize.norm_obs:
                self.env.obs_rms = normalize.obs_rms
            with _random_state_kept():
                self.env.seed(part_seed(self.config.seed, step, purpose=1))
                result = play(self.model, self.env, self.config.eval_episodes, deterministic=self.config.deterministic)
            self.say(f"  step {step:>9,}: mean return {result}")
            if not self.best >= result.mean:  # also if there is no best yet, NaN
                self.best = result.mean
                # Saved before its score is written: a run that is killed in between has no score, and evaluates again.
                save_agent(self.config.out, "best", self.model, notes={**self.notes, "seconds": seconds})
            row = {
                "step": step,
                "mean_return": result.mean,
                "standard_error": result.standard_error,
                "returns": result.returns,
                "lengths": result.lengths,
                "successes": result.success_rate,
                "seconds": seconds,
            }
            with (self.config.out / "evaluations.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            self.model.logger.record("eval/mean_return", result.mean)
            if result.success_rate is not None:
                self.model.logger.record("eval/success_rate", result.success_rate)


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


class _CheckpointCallback(BaseCallback):
    """Save the agent at the beginning of a rollout, and end training when a signal has come.

    Attributes:
        saved: Step of the last checkpoint.
    """

    def __init__(self, config: AgentConfig, clock: _TrainingClock, notes: dict[str, Any], stop: GracefulStop) -> None:
        super().__init__()
        self.config, self.clock, self.notes, self.stop = config, clock, notes, stop
        self.saved = 0

    def _init_callback(self) -> None:
        self.saved = self.model.num_timesteps

    def _on_rollout_start(self) -> None:
        step, every = self.model.num_timesteps, self.config.checkpoint_every
        if every and step // every > self.saved // every:
            self.save()
            if self.config.exact:
                begin_part(self.model, part_seed(self.config.seed, step))

    def _on_step(self) -> bool:
        return not self.stop.requested

    def save(self) -> None:
        """Save the agent, its statistics and its replay buffer, to resume from."""
        notes = {**self.notes, "seconds": self.clock.seconds}
        save_agent(self.config.out, "last", self.model, notes=notes, replay=True)
        self.saved = self.model.num_timesteps


class _GameCallback(BaseCallback):
    """Log the number of lost games as `env/faults`, and notice whether there is any reward at all."""

    def __init__(self) -> None:
        super().__init__()
        self.rewarded = False
        self._faults: dict[int, int] = {}  # by environment

    def _on_step(self) -> bool:
        normalize = self.model.get_vec_normalize_env()
        if not self.rewarded and normalize is not None:
            self.rewarded = bool(np.any(normalize.get_original_reward()))
        for i, info in enumerate(self.locals["infos"]):
            if "fault" in info:
                self._faults[i] = info["faults"]
                self.model.logger.record("env/faults", sum(self._faults.values()))
        return True


class DriftCallback(BaseCallback):
    """Log at the end of each rollout how far recent frames are from those that the encoder was trained on.

    - `drift/share_outside`: share of recent frames farther out than 99% of the training frames; 0.01 means no drift.
    - `drift/mean_shift`: shift of the latents' mean, in standard deviations.
    - `drift/reconstruction_ratio`: reconstruction error over that of held-out frames, if the encoder has a decoder.

    The monitor itself warns, once. Works with every algorithm of Stable-Baselines3.

    Args:
        monitor: The monitor of the vector environment's wrapper.

    Raises:
        InputError: (in training) the monitor is not given to a wrapper in this process.

    Example::

        monitor = DriftMonitor(encoder)
        model = PPO("MlpPolicy", VecLatentObservation(venv, encoder, monitor=monitor))
        model.learn(1_000_000, DriftCallback(monitor))
    """

    def __init__(self, monitor: DriftMonitor) -> None:
        super().__init__()
        self.monitor = monitor

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        report = self.monitor.report()
        if not report.frames:
            raise InputError(
                "monitor: DriftCallback's monitor has seen no frame. Give the wrapper the same one, in this process: "
                "VecLatentObservation(venv, encoder, monitor=monitor); worker processes only have copies of it"
            )
        for name in ("share_outside", "mean_shift", "reconstruction_ratio"):
            value = getattr(report, name)
            if not math.isnan(value):
                self.logger.record(f"drift/{name}", value)


def read_evaluations(run: Path) -> list[dict[str, Any]]:
    """Rows of a run's `evaluations.jsonl`.

    Each has step, mean_return, standard_error, returns, lengths, successes (a share, or None), and seconds (of training
    before it, evaluations not counted).
    """
    file = run / "evaluations.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
