"""`train_agent()`: an agent on latents, evaluated along the way, with everything that is needed to run it again."""

import contextlib
import dataclasses
import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, VecTransposeImage

from agents.config import NOT_ITS_OWN, AgentConfig
from agents.envs import load_encoder, make_monitor, make_vec_env, with_normalization
from agents.evaluation import Evaluation, evaluation_env, play
from agents.schedules import Schedule
from agents.store import (
    agent_state,
    check_encoder,
    check_spaces,
    fingerprint,
    keep_checkpoint,
    keep_file,
    load_agent,
    restore_replay,
    restore_statistics,
    save_agent,
)
from latent_obs.encoder.folder import read_encoder_folder
from latent_obs.util.atomic import atomic_write, write_json
from latent_obs.util.device import resolve_device, torch_threads
from latent_obs.util.errors import InputError, MissingExtraError, require
from latent_obs.util.interrupt import GracefulStop
from latent_obs.wrappers.drift import DriftMonitor


def new_model(config: AgentConfig, venv: VecEnv, device: str) -> BaseAlgorithm:
    """A fresh agent.

    Args:
        config: The settings.
        venv: The training environments.
        device: Where a pixel agent learns; a small MLP on latents is faster on the CPU than the trips to a GPU and
            back.
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
        f"{kind}{config.trainer.policy}",
        venv,
        policy_kwargs=policy,
        seed=config.seed,
        device=device if config.observation == "pixels" else "cpu",
        **settings,
    )


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

    What the games are at cannot be saved. So all runs, stopped or not, begin new episodes at each checkpoint, and
    nothing but the checkpoint decides what comes after it.
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


class TrainingCallback(BaseCallback):
    """Evaluates, keeps the best agent, makes checkpoints, and ends the run when a signal came.

    All of it at the beginning of a rollout, when the update before it is done and the environments are not in use.

    Attributes:
        best: Highest mean return of an evaluation; NaN where there was none.
        saved: Step of the last checkpoint.
        rewarded: Whether any reward was other than 0.
    """

    def __init__(
        self,
        config: AgentConfig,
        evaluations: VecNormalize | None,
        stop: GracefulStop,
        say: Callable[[str], object],
        *,
        notes: dict[str, Any],
        seconds: float,
        until: int | None,
    ) -> None:
        """As `train_agent` has them; `notes` go into every agent's state, `seconds` is what earlier parts of the run
        took.
        """
        super().__init__()
        self.config, self.evaluations, self.stop, self.say, self.notes, self.until = (
            config,
            evaluations,
            stop,
            say,
            notes,
            until,
        )
        self.best = math.nan
        self.rewarded = False
        self.saved = self._evaluated = 0
        self._at_until = False
        self._seconds, self._began = seconds, time.perf_counter()
        self._faults: dict[int, int] = {}  # games lost so far, by environment

    def _init_callback(self) -> None:
        step = self.model.num_timesteps
        rows = _rows_until(self.config.out, step)
        self.best = max((row["mean_return"] for row in rows), default=math.nan)
        self._evaluated = int(rows[-1]["step"]) if rows else 0
        self.saved = step

    @property
    def seconds(self) -> float:
        """Seconds of training so far, evaluations not counted."""
        return self._seconds + time.perf_counter() - self._began

    @property
    def stopped(self) -> bool:
        """Whether the run ends before its last step."""
        return self.stop.requested or self._at_until

    def _on_rollout_start(self) -> None:
        step = self.model.num_timesteps
        if self.config.eval_every and step - self._evaluated >= self.config.eval_every:
            self.evaluate()
        every = self.config.checkpoint_every
        self._at_until = self.until is not None and step >= self.until
        if step > self.saved and (self._at_until or (every and step // every > self.saved // every)):
            self.checkpoint()
            if self.config.exact:
                begin_part(self.model, part_seed(self.config.seed, step))

    def _on_step(self) -> bool:
        normalize = self.model.get_vec_normalize_env()
        if not self.rewarded and normalize is not None:
            self.rewarded = bool(np.any(normalize.get_original_reward()))
        for i, info in enumerate(self.locals["infos"]):
            if "fault" in info:
                self._faults[i] = info["faults"]
                self.model.logger.record("env/faults", sum(self._faults.values()))
        return not self.stopped

    def checkpoint(self) -> None:
        """Save the agent, its statistics and its replay buffer, to go on from."""
        step = self.model.num_timesteps
        save_agent(self.config.out, "last", self.model, notes={**self.notes, "seconds": self.seconds}, replay=True)
        self.saved = step
        if step:
            keep_checkpoint(self.config.out, step, self.config.keep_checkpoints)

    def evaluate(self) -> Evaluation | None:
        """Play whole episodes, log them, and keep the agent if it is the best so far."""
        step = self.model.num_timesteps
        if self.evaluations is None or step == self._evaluated:
            return None
        seconds, self._evaluated = self.seconds, step
        normalize = self.model.get_vec_normalize_env()
        if normalize is not None and normalize.norm_obs:
            self.evaluations.obs_rms = normalize.obs_rms
        with _random_state_kept():
            self.evaluations.seed(part_seed(self.config.seed, step, purpose=1))
            result = play(
                self.model, self.evaluations, self.config.eval_episodes, deterministic=self.config.deterministic
            )
        self.say(f"  step {step:>9,}: mean return {result}")
        if not self.best >= result.mean:  # also when there is no best yet, NaN
            self.best = result.mean
            # Before its score is noted: a killed run has both, or no score.
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
        self._seconds, self._began = seconds, time.perf_counter()  # its own time is not training's
        return result


def read_evaluations(run: Path) -> list[dict[str, Any]]:
    """Rows of a run's `evaluations.jsonl`.

    Each has step, mean_return, standard_error, returns, lengths, successes (a share, or None), and seconds: of training
    before it, evaluations not counted.
    """
    file = run / "evaluations.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _rows_until(run: Path, step: int) -> list[dict[str, Any]]:
    """Evaluations up to a step; those after it, of a part of the run that was lost, are dropped from the file."""
    rows = read_evaluations(run)
    kept = [row for row in rows if row["step"] <= step]
    if len(kept) < len(rows):
        with atomic_write(run / "evaluations.jsonl") as aside:
            aside.write_text("".join(json.dumps(row) + "\n" for row in kept))
    return kept


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    """However often, and however long, an agent is evaluated: its training draws the same random numbers."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  (what Stable-Baselines3 draws from)
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


class DriftCallback(BaseCallback):
    """Log at the end of each rollout how far what the agent sees is from what its encoder was trained on.

    - `drift/share_outside`: share of recent frames farther out than 99% of the training's; 0.01 is as in training.
    - `drift/mean_shift`: shift of the latents' mean, in standard deviations.
    - `drift/reconstruction_ratio`: reconstruction error over that of held-out frames, where the encoder has a decoder.

    The monitor itself warns, once. Works with every algorithm of Stable-Baselines3.

    Args:
        monitor: The one that the vector environment's wrapper has.

    Raises:
        InputError: (in training) the monitor is shown nothing.

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
                "DriftCallback's monitor has seen no frame. Give the wrapper the same one, in this process: "
                "VecLatentObservation(venv, encoder, monitor=monitor); worker processes only have copies of it"
            )
        for name in ("share_outside", "mean_shift", "reconstruction_ratio"):
            value = getattr(report, name)
            if not math.isnan(value):
                self.logger.record(f"drift/{name}", value)


_SMALLEST_CNN = 36  # pixels that the three convolutions of NatureCNN need


@dataclass(frozen=True)
class AgentResult:
    """What training an agent leaves.

    Attributes:
        run: The run folder, for `evaluate_agent` and `film`.
        steps: Environment steps in all.
        steps_per_second: Of this call's training, evaluations not counted.
        best_return: Highest mean return of an evaluation; NaN where there was none.
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
    until: int | None = None,
    progress_bar: bool | None = None,
    say: Callable[[str], object] = print,
) -> AgentResult:
    """Train an agent on an environment's latents, or on a baseline's observations.

    Every `eval_every` steps the agent plays `eval_episodes` whole episodes in environments of their own; the best one
    is kept as `best.zip`, the last one as `last.zip`, which is written at every checkpoint. See `agents.store` for the
    run folder.

    **Going on.** All runs begin new episodes at each checkpoint, with seeds that follow from the settings and the step.
    So one that is stopped (Ctrl-C, SIGTERM) or killed goes on from its last checkpoint, and is then the same, to the
    bit on a CPU, as one that never was; what came after the checkpoint is done again. With `exact_resume` off, episodes
    are left alone at checkpoints, and a run that is stopped saves the agent as it is.

    Args:
        config: All settings.
        resume: Go on with the agent in `config.out`.
        until: Stop at a checkpoint after so many steps, although `config.steps`, which schedules end at, are more.
        progress_bar: Show Stable-Baselines3's; None shows it in a terminal only.
        say: Where messages go.

    Raises:
        InputError: The environment, the settings or the run folder will not do; before training starts.
        EncoderFolderError: The encoder folder is missing or damaged.
        DeviceError: The device asked for is not there.
    """
    if resume:
        config = _resumed(config)
    elif config.out.exists() and any(config.out.iterdir()):
        raise InputError(
            f"{config.out} is not empty. Go on with the agent in it with --resume, or choose another --out"
        )
    config = config.settled()
    device = resolve_device(config.device)
    encoder = load_encoder(config)
    side = min(encoder.contract.shape[:2]) if encoder is not None else _SMALLEST_CNN
    if config.observation == "pixels" and side < _SMALLEST_CNN:
        raise InputError(
            f"a pixel agent needs frames of {_SMALLEST_CNN}x{_SMALLEST_CNN} or more, for its CNN (Mnih et al. 2015), and this "
            f"encoder eats {encoder.contract.shape[:2] if encoder else ''}. Leave --encoder out: it then sees 64x64"
        )
    seen = encoder if config.observation != "pixels" else None
    began_before = resume and (config.out / "last.zip").exists()
    if began_before:
        check_encoder(config.out, "last", seen)
    with torch_threads(1 if config.observation != "pixels" and device.type == "cpu" else None):
        monitor = make_monitor(config, encoder, say)
        venv = with_normalization(
            config, make_vec_env(config, encoder, monitor=monitor, training=True, say=say), training=True
        )
        evaluations: VecNormalize | None = None
        try:
            if config.eval_every:
                evaluations = evaluation_env(
                    config, config.eval_episodes, config.seed + 500_009, config.envs, encoder=encoder
                )
            config.out.mkdir(parents=True, exist_ok=True)
            for source, name in ((config.encoder, "encoder"), (config.pca, "pca.safetensors")):
                if source is not None:  # a random encoder takes its layers from the trained one
                    keep_file(read_encoder_folder(source).path if name == "encoder" else source, config.out / name)
            write_json(config.out / "config.json", config.to_json())
            model = loaded_model(config, venv) if began_before else new_model(config, venv, device.type)
            notes = {"encoder": fingerprint(seen)}
            if not began_before:
                save_agent(config.out, "last", model, notes={**notes, "seconds": 0.0}, replay=True)
            callbacks: list[DriftCallback] = [] if monitor is None else [DriftCallback(monitor)]
            with GracefulStop() as stop:
                watch = TrainingCallback(
                    config,
                    evaluations,
                    stop,
                    say,
                    notes=notes,
                    until=until,
                    seconds=agent_state(config.out, "last").get("seconds", 0.0),
                )
                return _learn(config, model, watch, callbacks, progress_bar, say)
        finally:
            venv.close()
            if evaluations is not None:
                evaluations.close()


def _resumed(config: AgentConfig) -> AgentConfig:
    """The settings of the run in `config.out`, with what was given anew of them."""
    saved = AgentConfig.load(config.out)
    for field, name in (("encoder", "encoder"), ("pca", "pca.safetensors")):
        if (config.out / name).exists():
            # The copy in the run decides; where it came from may be named again, or be gone.
            config = dataclasses.replace(config, **{field: None})
            saved = dataclasses.replace(saved, **{field: config.out / name})
    return config.resumed_from(saved)


def _learn(
    config: AgentConfig,
    model: BaseAlgorithm,
    watch: TrainingCallback,
    others: list[DriftCallback],
    progress_bar: bool | None,
    say: Callable[[str], object],
) -> AgentResult:
    formats = ["json", "csv"]
    try:
        require("tensorboard", extra="agents", purpose="write TensorBoard logs")
        formats.append("tensorboard")
    except MissingExtraError as error:
        say(f"{error} The same numbers are in {config.out / 'logs'}.")
    before = model.num_timesteps
    model.set_logger(configure(str(config.out / "logs" / f"from_{before:09d}"), formats))
    say(
        f"Training {config.trainer.title} on {config.env} ({config.observation}, "
        f"{model.observation_space.shape or 'Dict'} observations), {config.envs} environments, {config.steps:,} steps"
        f"{f', from step {before:,} on' if before else ''}."
    )
    with contextlib.closing(model.logger):
        watch.init_callback(model)  # learn() does so too, but there may be nothing left to learn
        earlier = watch.seconds
        if config.steps > before:
            begin_part(model, part_seed(config.seed, before))
            shown = sys.stderr.isatty() if progress_bar is None else progress_bar
            model.learn(config.steps - before, [watch, *others], reset_num_timesteps=False, progress_bar=shown)
        seconds = watch.seconds - earlier
        steps, stopped = model.num_timesteps, watch.stopped
        if stopped and (config.exact or watch.saved >= steps):
            steps = watch.saved
        else:
            watch.checkpoint()
        if not stopped:
            watch.evaluate()  # the last agent may be the best
        if not (config.out / "best.zip").exists() or math.isnan(watch.best):  # none was evaluated: the last one it is
            save_agent(config.out, "best", model, notes=watch.notes)
    rate = (model.num_timesteps - before) / seconds
    say(_ending(config, watch, model.num_timesteps, steps, seconds, rate))
    return AgentResult(config.out, steps, rate, watch.best, stopped)


def _ending(config: AgentConfig, watch: TrainingCallback, reached: int, saved: int, seconds: float, rate: float) -> str:
    """What a run says at its end."""
    lines = [
        f"{'Stopped' if watch.stopped else 'Done'} at step {reached:,}: {seconds:.0f} s of training, {rate:.0f} steps/s."
        + ("" if math.isnan(watch.best) else f" Best mean return {watch.best:.1f}.")
    ]
    if not watch.rewarded and not watch.stopped and seconds:
        lines.append(
            f"No step of this run gave any reward, so there was nothing to learn from. {config.env} may need more than "
            f"{config.steps:,} steps, more exploration (--ent-coef), fewer decisions an episode (--frame-skip), or a reward "
            "that says more along the way."
        )
    lines.append(f"Agent: {config.out}")
    if watch.stopped:
        lines.append(f"Go on from step {saved:,} with: latent-obs train-agent --out {config.out} --resume")
    else:
        lines.append(f"Evaluate and film it with: latent-obs evaluate --run {config.out}")
    return "\n".join(lines)
