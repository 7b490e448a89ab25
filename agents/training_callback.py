"""What happens beside the learning: evaluations, checkpoints, stops, and what is counted."""

import contextlib
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize

from agents.config import AgentConfig
from agents.evaluate import Evaluation, play
from agents.model import begin_part, part_seed
from agents.store import keep_checkpoint, save_agent
from latent_obs.atomic import written_aside
from latent_obs.interrupt import GracefulStop


class TrainingCallback(BaseCallback):
    """Evaluates, keeps the best agent, makes checkpoints, and ends the run when a signal came.

    All of it at the beginning of a rollout, when the update before it is done and the environments are not in use.

    Attributes:
        best: Highest mean return of an evaluation; NaN where there was none.
        saved: Step of the last checkpoint.
        rewarded: Whether any reward was other than 0.
    """

    def __init__(
        self, config: AgentConfig, evaluations: VecNormalize | None, stop: GracefulStop, say: Callable[[str], object],
        *, notes: dict[str, Any], seconds: float, until: int | None,
    ) -> None:  # fmt: skip
        """As `train_agent` has them; `notes` go into every agent's state, `seconds` is what earlier parts of the run took."""
        super().__init__()
        self.config, self.evaluations, self.stop, self.say, self.notes, self.until = (
            config, evaluations, stop, say, notes, until,
        )  # fmt: skip
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
            result = play(self.model, self.evaluations, self.config.eval_episodes, deterministic=self.config.deterministic)
        self.say(f"  step {step:>9,}: mean return {result}")
        if not self.best >= result.mean:  # also when there is no best yet, NaN
            self.best = result.mean
            # Before its score is noted: a killed run has both, or no score.
            save_agent(self.config.out, "best", self.model, notes={**self.notes, "seconds": seconds})
        row = {
            "step": step, "mean_return": result.mean, "standard_error": result.standard_error, "returns": result.returns,
            "lengths": result.lengths, "successes": result.success_rate, "seconds": seconds,
        }  # fmt: skip
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
        with written_aside(run / "evaluations.jsonl") as aside:
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
