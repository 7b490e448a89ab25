"""`train_agent()`: an agent on latents, evaluated along the way, with everything that is needed to run it again."""

import contextlib
import dataclasses
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecNormalize

from agents.config import AgentConfig
from agents.drift_callback import DriftCallback
from agents.encoders import check_encoder, fingerprint
from agents.envs import load_encoder, make_monitor, make_vec_env, with_normalization
from agents.evaluate import evaluation_env
from agents.model import begin_part, loaded_model, new_model, part_seed
from agents.store import agent_state, keep_file, save_agent
from agents.training_callback import TrainingCallback
from latent_obs.atomic import write_json
from latent_obs.device import resolve_device
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
    config: AgentConfig, *, resume: bool = False, until: int | None = None, progress_bar: bool | None = None,
    say: Callable[[str], object] = print,
) -> AgentResult:  # fmt: skip
    """Train an agent on an environment's latents, or on a baseline's observations.

    Every `eval_every` steps the agent plays `eval_episodes` whole episodes in environments of their own; the best one is
    kept as `best.zip`, the last one as `last.zip`, which is written at every checkpoint. See `agents.store` for the run folder.

    **Going on.** All runs begin new episodes at each checkpoint, with seeds that follow from the settings and the step. So one
    that is stopped (Ctrl-C, SIGTERM) or killed goes on from its last checkpoint, and is then the same, to the bit on a CPU, as
    one that never was; what came after the checkpoint is done again. With `exact_resume` off, episodes are left alone at
    checkpoints, and a run that is stopped saves the agent as it is.

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
        raise InputError(f"{config.out} is not empty. Go on with the agent in it with --resume, or choose another --out")
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
        venv = with_normalization(config, make_vec_env(config, encoder, monitor=monitor, training=True, say=say), training=True)
        evaluations: VecNormalize | None = None
        try:
            if config.eval_every:
                evaluations = evaluation_env(config, config.eval_episodes, config.seed + 500_009, config.envs, encoder=encoder)
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
                    config, evaluations, stop, say, notes=notes, until=until,
                    seconds=agent_state(config.out, "last").get("seconds", 0.0),
                )  # fmt: skip
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
    config: AgentConfig, model: BaseAlgorithm, watch: TrainingCallback, others: list[DriftCallback],
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
