"""`train_agent()`: PPO on latents, evaluated along the way, with everything that is needed to run it again."""

import contextlib
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, VecTransposeImage

from agents.config import AgentConfig
from agents.drift_callback import DriftCallback
from agents.envs import load_encoder, make_monitor, make_vec_env, with_normalization
from agents.evaluate import Evaluation, evaluation_env, play
from agents.store import keep_encoder, load_agent, restore_statistics, save_agent
from latent_obs.atomic import write_json
from latent_obs.device import resolve_device
from latent_obs.drift import DriftMonitor
from latent_obs.errors import InputError, MissingExtraError, require
from latent_obs.folder import read_encoder_folder
from latent_obs.interrupt import GracefulStop
from latent_obs.torch_threads import torch_threads

_SMALLEST_CNN = 36  # pixels that the three convolutions of NatureCNN need


@dataclass(frozen=True)
class AgentResult:
    """What training an agent leaves.

    Attributes:
        run: The run folder, for `evaluate_agent` and `film`.
        steps: Environment steps in all.
        steps_per_second: Of this call, evaluations included.
        best_return: Highest mean return of an evaluation; NaN where there was none.
        interrupted: Whether it was stopped before its last step.
    """

    run: Path
    steps: int
    steps_per_second: float
    best_return: float
    interrupted: bool


def train_agent(
    config: AgentConfig, *, resume: bool = False, progress_bar: bool | None = None, say: Callable[[str], object] = print
) -> AgentResult:
    """Train PPO (Schulman et al. 2017) on an environment's latents, or on a baseline's observations.

    Every `eval_every` steps the agent plays `eval_episodes` whole episodes in environments of their own; the best one is
    kept as `best.zip`, the last one as `last.zip`. Ctrl-C (or SIGTERM) finishes the step under way and saves. See
    `agents.store` for the run folder.

    Args:
        config: All settings.
        resume: Go on with the agent in `config.out`. Its weights, optimizer and statistics go on as they were; the
            environments start new episodes, so it is not the same run to the bit.
        progress_bar: Show Stable-Baselines3's; None shows it in a terminal only.
        say: Where messages go.

    Raises:
        InputError: The environment, the settings or the run folder will not do; before training starts.
        EncoderFolderError: The encoder folder is missing or damaged.
        DeviceError: The device asked for is not there.
    """
    if resume:
        saved = AgentConfig.load(config.out)
        if (config.out / "encoder").exists():
            # The copy in the run decides; where it came from may be named again, or be gone.
            config = dataclasses.replace(config, encoder=None)
            saved = dataclasses.replace(saved, encoder=config.out / "encoder")
        config = config.resumed_from(saved)
    elif config.out.exists() and any(config.out.iterdir()):
        raise InputError(f"{config.out} is not empty. Go on with the agent in it with --resume, or choose another --out")
    device = resolve_device(config.device)
    encoder = load_encoder(config)
    side = min(encoder.contract.shape[:2]) if encoder is not None else _SMALLEST_CNN
    if config.observation == "pixels" and side < _SMALLEST_CNN:
        raise InputError(
            f"a pixel agent needs frames of {_SMALLEST_CNN}x{_SMALLEST_CNN} or more, for its CNN (Mnih et al. 2015), and this "
            f"encoder eats {encoder.contract.shape[:2] if encoder else ''}. Leave --encoder out: it then sees 64x64"
        )
    with torch_threads(1 if config.observation != "pixels" and device.type == "cpu" else None):
        monitor = make_monitor(config, encoder, say)
        venv = with_normalization(config, make_vec_env(config, encoder, monitor=monitor), training=True)
        evaluations: VecNormalize | None = None
        try:
            if config.eval_every:
                evaluations = evaluation_env(config, config.eval_episodes, config.seed + 500_009, config.envs)
            config.out.mkdir(parents=True, exist_ok=True)
            if config.encoder is not None:  # a random encoder takes its layers from it
                keep_encoder(read_encoder_folder(config.encoder).path, config.out)
            write_json(config.out / "config.json", config.to_json())
            model = _load(config, venv) if resume else _new(config, venv, device.type)
            if not resume:
                save_agent(config.out, "last", model)  # a run killed before its first evaluation can be resumed
            return _learn(config, model, evaluations, monitor, resume, progress_bar, say)
        finally:
            venv.close()
            if evaluations is not None:
                evaluations.close()


def _new(config: AgentConfig, venv: VecEnv, device: str) -> PPO:
    policy = {"Dict": "MultiInputPolicy"}.get(
        type(venv.observation_space).__name__, "CnnPolicy" if config.observation == "pixels" else "MlpPolicy"
    )
    return PPO(
        policy, venv, learning_rate=config.learning_rate, n_steps=config.n_steps, batch_size=config.batch_size,
        n_epochs=config.n_epochs, gamma=config.gamma, gae_lambda=config.gae_lambda, ent_coef=config.ent_coef,
        clip_range=config.clip_range, policy_kwargs={"net_arch": list(config.net_arch)}, seed=config.seed,
        # A small MLP on latents is faster on the CPU than the trips to a GPU and back; a CNN is not.
        device=device if config.observation == "pixels" else "cpu",
    )  # fmt: skip


def _load(config: AgentConfig, venv: VecNormalize) -> PPO:
    model = load_agent(config.out, "last", device="cpu" if config.observation != "pixels" else config.device)
    restore_statistics(config.out, "last", venv)
    # PPO.load(env=...) would wrap before the statistics are back, and checks the spaces in any case.
    model.set_env(VecTransposeImage(venv) if config.observation == "pixels" else venv)
    return model


def _learn(
    config: AgentConfig, model: PPO, evaluations: VecNormalize | None, monitor: DriftMonitor | None, resume: bool,
    progress_bar: bool | None, say: Callable[[str], object],
) -> AgentResult:  # fmt: skip
    formats = ["json", "csv"]
    try:
        require("tensorboard", extra="agents", purpose="write TensorBoard logs")
        formats.append("tensorboard")
    except MissingExtraError as error:
        say(f"{error} The same numbers are in {config.out / 'logs'}.")
    before = model.num_timesteps
    model.set_logger(configure(str(config.out / "logs" / f"from_{before:09d}"), formats))
    say(
        f"Training PPO on {config.env} ({config.observation}, {model.observation_space.shape or 'Dict'} observations), "
        f"{config.envs} environments, {config.steps:,} steps{f', from step {before:,} on' if resume else ''}."
    )
    began = time.perf_counter()
    with contextlib.closing(model.logger), GracefulStop() as stop:
        callback = _Watch(config, evaluations, stop, say)
        callback.init_callback(model)  # learn() does so too, but there may be nothing left to learn
        if config.steps > before:
            shown = sys.stderr.isatty() if progress_bar is None else progress_bar
            callbacks = [callback, *([] if monitor is None else [DriftCallback(monitor)])]
            model.learn(config.steps - before, callbacks, reset_num_timesteps=not resume, progress_bar=shown)
        save_agent(config.out, "last", model)
        if not stop.requested:
            callback.evaluate()  # the last agent may be the best
        if not (config.out / "best.zip").exists() or math.isnan(callback.best):  # none was evaluated: the last one it is
            save_agent(config.out, "best", model)
    seconds = time.perf_counter() - began
    rate = (model.num_timesteps - before) / seconds
    say(
        f"{'Stopped' if stop.requested else 'Done'} at step {model.num_timesteps:,}: {seconds:.0f} s, {rate:.0f} steps/s, "
        f"evaluations included. "
        + ("" if math.isnan(callback.best) else f"Best mean return {callback.best:.1f}.")
        + f"\nAgent: {config.out}\n"
        + (f"Go on with: latent-obs train-agent --out {config.out} --resume" if stop.requested
           else f"Evaluate and film it with: latent-obs evaluate --run {config.out}")
    )  # fmt: skip
    return AgentResult(config.out, model.num_timesteps, rate, callback.best, stop.requested)


class _Watch(BaseCallback):
    """Evaluates, keeps the best agent, and stops the run when a signal came."""

    def __init__(
        self, config: AgentConfig, evaluations: VecNormalize | None, stop: GracefulStop, say: Callable[[str], object]
    ) -> None:
        super().__init__()
        self.config, self.evaluations, self.stop, self.say = config, evaluations, stop, say
        rows = read_evaluations(config.out)
        self.best = max((row["mean_return"] for row in rows), default=float("nan"))
        self._last = int(rows[-1]["step"]) if rows else 0
        self._faults: dict[int, int] = {}  # games lost so far, by environment

    def _on_step(self) -> bool:
        for i, info in enumerate(self.locals["infos"]):
            if "fault" in info:
                self._faults[i] = info["faults"]
                self.model.logger.record("env/faults", sum(self._faults.values()))
        return not self.stop.requested

    def _on_rollout_end(self) -> None:
        # Between rollout and update, when the observations of the training environments are not in use.
        # The last rollout's update is still to come: that agent is evaluated once it is done.
        step = self.model.num_timesteps
        if self.config.eval_every and step - self._last >= self.config.eval_every and step < self.config.steps:
            self.evaluate()

    def evaluate(self) -> Evaluation | None:
        """Play whole episodes, log them, and keep the agent if it is the best so far."""
        step = self.model.num_timesteps
        if self.evaluations is None or step == self._last:
            return None
        self._last = step
        normalize = self.model.get_vec_normalize_env()
        if normalize is not None and normalize.norm_obs:
            self.evaluations.obs_rms = normalize.obs_rms
        result = play(self.model, self.evaluations, self.config.eval_episodes, deterministic=self.config.deterministic)
        self.say(f"  step {step:>9,}: mean return {result}")
        if not self.best >= result.mean:  # also when there is no best yet, NaN
            self.best = result.mean
            save_agent(self.config.out, "best", self.model)  # before its score is noted: a killed run has both, or no score
        row = {
            "step": step,
            "mean_return": result.mean,
            "standard_error": result.standard_error,
            "returns": result.returns,
        }
        with (self.config.out / "evaluations.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.model.logger.record("eval/mean_return", result.mean)
        save_agent(self.config.out, "last", self.model)
        return result


def read_evaluations(run: Path) -> list[dict[str, float]]:
    """Rows of a run's `evaluations.jsonl`."""
    file = run / "evaluations.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
