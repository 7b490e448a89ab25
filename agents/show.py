"""An agent at play, one step at a time, each drawn as it is taken: for videos and for the live window."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecNormalize

from agents.decision import Decision, action_names, choices_of, decide
from agents.envs import make_vec_env, with_normalization
from agents.evaluate import load_run
from agents.panel import LatentPicture, Picture, compose
from agents.store import check_spaces, restore_statistics
from agents.success import EpisodeSuccess, success_rule
from latent_obs.errors import EncoderFolderError, InputError
from latent_obs.pca import read_pca

_DEVIATIONS = 3.0  # what a full bar stands for


class EpisodeEnd(NamedTuple):
    """How an episode ended.

    Attributes:
        total: Its return, in the game's own rewards.
        length: Its steps.
        success: Whether it was one; None where the task has none.
    """

    total: float
    length: int
    success: bool | None

    def __str__(self) -> str:
        word = {None: "", True: ", a success", False: ", no success"}[self.success]
        return f"return {self.total:.1f}{word}"


class Show:
    """Plays an agent of a run folder, with the wrappers and statistics that it was trained with.

    Args:
        run: The run folder.
        which: "best", "last" or the step of a kept checkpoint.
        seed: Seed of the environment.
        device: Where to encode.
        deterministic: The most likely action rather than a sample; as in the settings by default.
        success_return: As for `evaluate_agent`.

    Attributes:
        config: The settings.
        frames_per_second: Agent steps in a second of the game.
        ended: The episodes played to their end.
        step_number: Steps of the episode under way.
        total: Its return so far.

    Raises:
        InputError: There is no such agent, or its environment cannot draw itself.

    Example::

        with contextlib.closing(Show("runs/agent")) as show:
            while not show.ended:
                save(show.picture())
                show.step()
    """

    def __init__(
        self,
        run: str | Path,
        *,
        which: str = "best",
        seed: int = 2_000_003,
        device: str = "auto",
        deterministic: bool | None = None,
        success_return: float | None = None,
    ) -> None:
        config, model, self._encoder = load_run(run, which, device)
        arguments = {**config.env_kwargs, "render_mode": "rgb_array"}
        self.config = config = dataclasses.replace(config, workers="serial", env_kwargs=arguments)
        self._deterministic = config.deterministic if deterministic is None else deterministic
        self._model: Any = model
        self._components = read_pca(config.pca) if config.observation == "pca-latent" and config.pca is not None else None
        self._venv = self._make(seed, success_return)
        try:
            check_spaces(Path(run), which, model, self._venv)
            restore_statistics(Path(run), which, self._venv)
            env = self._venv.get_attr("env")[0]
            self._names, self._choices = action_names(env), choices_of(env)
            self.frames_per_second = float(env.metadata.get("render_fps") or 30) / (config.frame_skip or 1)
            self.ended: list[EpisodeEnd] = []
            self._draws = self._encoder is not None and config.observation != "pixels"
            self._largest = 0.0
            self.restart()
            self._game_picture()  # an environment that cannot draw itself is found out now
        except BaseException:
            self._venv.close()
            raise

    def _make(self, seed: int, success_return: float | None) -> VecNormalize:
        config = self.config
        try:
            with warnings.catch_warnings():  # one that cannot draw is told below
                warnings.filterwarnings("ignore", message=".*not in the possible render_modes")
                venv = make_vec_env(config, self._encoder, envs=1, seed=seed)
        except InputError as error:
            if "render_mode" in str(error):
                raise InputError(
                    f"{config.env} cannot be shown, as it does not take render_mode='rgb_array': {error}"
                ) from None
            raise
        try:
            judged = EpisodeSuccess(venv, success_rule(config, success_return), overrule=success_return is not None)
            return with_normalization(config, judged, training=False)
        except BaseException:
            venv.close()
            raise

    def restart(self) -> None:
        """Begin another episode; the one under way does not count."""
        self._observation: Any = self._venv.reset()
        self._begin()

    def _begin(self) -> None:
        self._state, self._begins, self.step_number, self.total = None, True, 0, 0.0
        self._decided: tuple[NDArray[Any], Any, Decision] | None = None

    @property
    def decision(self) -> Decision:
        """What the agent does next, and what else it thought of."""
        return self._decide()[2]

    def _decide(self) -> tuple[NDArray[Any], Any, Decision]:
        if self._decided is None:  # once a step: a policy that samples would change its mind
            self._decided = decide(
                self._model, self._observation, self._state, self._begins, deterministic=self._deterministic,
                names=self._names, choices=self._choices,
            )  # fmt: skip
        return self._decided

    def step(self) -> EpisodeEnd | None:
        """Do what was decided; how the episode ended, if it did."""
        actions, self._state, _ = self._decide()
        self._observation, rewards, dones, infos = self._venv.step(actions)
        self._decided, self._begins = None, False
        self.step_number += 1
        self.total += float(rewards[0])
        if not dones[0]:
            return None
        success = infos[0].get("is_success")
        self.ended.append(EpisodeEnd(self.total, self.step_number, None if success is None else bool(success)))
        self._begin()
        return self.ended[-1]

    def picture(self, *, footer: str | None = None, scale: float = 1) -> Picture:
        """The step that comes next: the game, what the agent sees of it, its latent, and what it does.

        The reconstruction is decoded from the very latent that the agent acts on.

        Args:
            footer: A line below all.
            scale: 2 for a picture twice as large.

        Returns:
            uint8 (height, width, 3), always of the same size.
        """
        latent = self._latent() if self._draws else None
        seen, caption = self._seen(latent)
        title = f"{self.config.env}    episode {len(self.ended) + 1}    step {self.step_number}    return {self.total:.1f}"
        if self.ended:
            title += f"    (last episode: {self.ended[-1]})"
        return compose(
            self._game_picture(), title=title, seen=seen, seen_caption=caption,
            latent=None if latent is None else self._latent_picture(latent), decision=self.decision, footer=footer, scale=scale,
        )  # fmt: skip

    def close(self) -> None:
        """End the game."""
        self._venv.close()

    def _game_picture(self) -> Picture:
        picture = self._venv.env_method("render")[0]
        if not isinstance(picture, np.ndarray) or picture.ndim != 3:
            raise InputError(
                f"{self.config.env} cannot be shown: render() gives {type(picture).__name__}, not a picture (H, W, channels)"
            )
        return picture

    def _pixel_entry(self, observation: Any) -> NDArray[Any]:
        """The entry of an observation, a batch of one, that pixels or latents are in."""
        return observation[self._venv.get_attr("reader")[0].key] if isinstance(observation, dict) else observation

    def _newest(self, observation: Any) -> NDArray[np.float32]:
        """The newest latent of an observation; it comes after the older ones, and before what else is in one vector."""
        assert self._encoder is not None
        size, history = self._encoder.latent_dim, self.config.history
        return self._pixel_entry(observation)[0, (history - 1) * size : history * size]

    def _latent(self) -> NDArray[np.float32]:
        """float32 (latent_dim,), as the encoder gave it: before any statistics shifted and scaled it."""
        latent = self._newest(self._venv.get_original_obs())
        statistics = None if self._encoder is None else self._encoder.statistics
        if self.config.standardise and statistics is not None:
            return latent * statistics.scale + statistics.mean
        return latent

    def _seen(self, latent: NDArray[np.float32] | None) -> tuple[Picture | None, str]:
        if latent is None:
            frame = self._pixel_entry(self._venv.get_original_obs())
            if frame.ndim != 4:
                return None, "what the agent sees"
            newest = frame[0, ..., -(frame.shape[-1] // self.config.history) :]
            return newest.astype(np.uint8), "what the agent sees" + (" (the last frame)" if self.config.history > 1 else "")
        if self._components is not None:
            decoded = self._components.centre + latent @ self._components.components
            shape = self._components.contract.shape
            return (decoded.clip(0, 1) * 255).round().astype(np.uint8).reshape(shape), "put together from the latent"
        if self._encoder is None or self.config.observation == "random-latent":
            return None, ""
        try:
            return self._encoder.decode(latent), "decoded from the latent"
        except EncoderFolderError:
            if self._encoder.path is not None and (self._encoder.path / "decoder.safetensors").exists():
                raise  # it is there, and damaged
            return None, ""

    def _latent_picture(self, latent: NDArray[np.float32]) -> LatentPicture:
        """In standard deviations over the encoder's training frames; or else over what the agent saw while it was trained."""
        assert self._encoder is not None
        architecture, statistics = self._encoder.architecture, self._encoder.statistics
        spatial = architecture is not None and architecture.bottleneck == "spatial"
        shape = architecture.latent_map if architecture is not None and spatial else None
        size = f"{' x '.join(map(str, shape))} = {len(latent)}" if shape else f"{len(latent)}"
        unit = f"full at {_DEVIATIONS:g} deviations of"
        if statistics is not None:
            values, unit = statistics.standardise(latent), f"{unit} the training frames"
        elif self._venv.norm_obs:
            values, unit = self._newest(self._observation), f"{unit} what it saw in training"
        else:
            self._largest = max(self._largest, float(np.abs(latent).max()), 1e-12)
            values, unit = latent * (_DEVIATIONS / self._largest), "full at the largest so far"
        return LatentPicture(values / _DEVIATIONS, shape, f"latent, {size} values: {unit}, blue up, orange down")
