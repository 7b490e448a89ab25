"""Vector environments for Stable-Baselines3: frames from worker processes, encoded in one batch in this one."""

import contextlib
import logging
from collections.abc import Callable
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from agents.config import ALGORITHMS, AgentConfig, Algorithm
from agents.normalization import LatentNormalize, latents_in, number_keys
from latent_obs.encoder.architecture import Architecture
from latent_obs.encoder.folder import read_encoder_folder
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.encoder.pca import PCA
from latent_obs.envs.factory import as_small_frames, env_maker, has_layer, is_minerl_id
from latent_obs.envs.sb3_bridge import ProcessVecEnv
from latent_obs.pixels import PixelContract, brief
from latent_obs.util.errors import InputError
from latent_obs.wrappers.drift import DriftMonitor
from latent_obs.wrappers.sb3 import VecLatentObservation

_log = logging.getLogger(__name__)
_NO_END = (
    "an episode was cut after %d steps, because the environment has no time limit; it can be given one with "
    "--env-kwargs max_episode_steps 1000"
)
_COMPONENTS = 256  # principal components, where no encoder gives their number
_PIXEL_SIDE = 64  # of the frames that a pixel agent without an encoder sees
_CLOSE_GRACE_S = 30.0  # MineRL games end slowly


def load_encoder(config: AgentConfig) -> FrozenEncoder | None:
    """The encoder of an agent's settings: trained, random, or None for a pixel agent without one.

    Raises:
        InputError: The observation needs an encoder or principal components, and there are none.
    """
    how: dict[str, Any] = {"device": config.device, "backend": config.backend, "precision": config.precision}
    if config.observation == "pca-latent":
        return load_components(config).encoder(device=config.device)
    if config.observation == "random-latent":
        architecture = Architecture((_PIXEL_SIDE, _PIXEL_SIDE, 3), 256, bottleneck="spatial")
        if config.encoder is not None:
            read = read_encoder_folder(config.encoder)
            architecture = read.layers or Architecture.for_frames(read.contract.shape)
        return FrozenEncoder.random(architecture, seed=config.seed, **how)
    if config.encoder is None and config.observation == "latent":
        raise InputError("encoder: observation 'latent' needs an encoder folder, which train-vae makes; give --encoder")
    return None if config.encoder is None else FrozenEncoder.load(config.encoder, **how)


def load_components(config: AgentConfig) -> PCA:
    """The principal components of an agent's settings: of a file, or fitted to a folder of frames.

    Raises:
        InputError: There is neither.
    """
    if config.pca is None:
        raise InputError(
            "pca: observation 'pca-latent' needs principal components; give --pca a folder of frames, or a file that "
            "latent_obs.PCA wrote"
        )
    return fit_components(config.pca, config.encoder) if config.pca.is_dir() else PCA.load(config.pca)


def fit_components(frames: Path, encoder: Path | None, motion: int = 0) -> PCA:
    """Fit principal components to a folder of frames: as many as an encoder folder has latents, else 256.

    `motion` of them are components of differences, as `PCA.fit` has them.
    """
    if encoder is None:
        return PCA.fit(frames, _COMPONENTS, motion=motion)
    read = read_encoder_folder(encoder)
    return PCA.fit(frames, read.latent_dim, motion=motion, contract=read.contract)


def make_vec_env(
    config: AgentConfig,
    encoder: FrozenEncoder | None,
    *,
    envs: int | None = None,
    seed: int | None = None,
    first: int = 0,
    monitor: DriftMonitor | None = None,
    step_limit: int | None = None,
) -> VecEnv:
    """A vector of environments as an agent of these settings sees them, without normalization.

    Each environment resizes its frames to the encoder's size in its own process, so that little has to be sent, and
    `VecLatentObservation` encodes the frames of all in one batch. Worker processes import neither torch nor
    Stable-Baselines3. The last step of an episode has the return in ``info["episode"]``.

    Args:
        config: The settings.
        encoder: From `load_encoder`; it also decides the frame size of a pixel agent.
        envs: Number of environments; as in the settings by default.
        seed: Seed of the first one, seed + 1 of the second …; as in the settings by default.
        first: Number of the first one among all that run at the same time: `i` uses MineRL's ``port + first + i``.
        monitor: Observes every latent.
        step_limit: Steps after which an episode is cut in an environment that has no time limit (`TimeLimit`). The
            step that reaches it has ``info["step_limit"]``, and the first one is logged.

    Raises:
        InputError: The environment is unknown, has no pixels that the encoder can take, or has actions that the
            algorithm does not support.
    """
    count = config.envs if envs is None else envs
    arguments, port = config.all_env_kwargs, config.env_kwargs.get("port")
    # A running MineRL game serves one environment only.
    numbered = is_minerl_id(config.env)
    ports = [{"port": port + first + i} if numbered and isinstance(port, int) else {} for i in range(count)]
    makers = [env_maker(config.env, **{**arguments, **own}) for own in ports]
    seen = as_seen(config, contract_of(encoder), step_limit)
    # One is made and closed again, so that a wrong name or space is one clear error before workers start.
    with contextlib.closing(makers[0]()) as env:
        step_limit = None if has_layer(env, gym.wrappers.TimeLimit) else step_limit
        checked = seen(env)
        if config.observation == "latent":
            checked.get_wrapper_attr("reader").refuse_blur()
        check_actions(config, checked.action_space)
    # Nothing of this package is named here: a worker would import it, and torch with it.
    in_workers = config.workers == "processes" and count > 1
    numbers = [None if in_workers else i for i in range(count)]  # errors of a worker name its number
    small = [lambda make=make, i=i: seen(make(), number=i) for make, i in zip(makers, numbers, strict=True)]
    if in_workers:
        frames: VecEnv = ProcessVecEnv(small, close_grace_s=_CLOSE_GRACE_S)
    else:
        frames = DummyVecEnv(small)
    venv = _EpisodeReturns(frames, step_limit)
    venv.seed(config.seed if seed is None else seed)
    return with_latents(config, venv, encoder, monitor)


def check_actions(config: AgentConfig, space: spaces.Space[Any]) -> None:
    """Reject an action space (of `plain_actions`) whose values are not those that the algorithm sends.

    Raises:
        InputError: It is of another kind; the error names the algorithms that support it. Or it is a Box of whole
            numbers or without finite bounds.
    """
    title, kinds = config.trainer.title, config.trainer.actions

    def supports(algorithm: Algorithm) -> bool:
        return isinstance(space, tuple(getattr(spaces, kind) for kind in algorithm.actions))

    if not supports(config.trainer):
        able = ", ".join(name for name, other in ALGORITHMS.items() if supports(other))
        raise InputError(
            f"algorithm {title} supports the actions {', '.join(kinds)}, and {config.env} has {brief(space)}; choose "
            f"an algorithm that supports them ({able or 'none: wrap the actions first'})"
        )
    if isinstance(space, spaces.Box):
        with np.errstate(all="ignore"):
            spread = space.high - space.low
        fits = np.isfinite([space.low, space.high]).all() and np.dtype(space.dtype).kind == "f"
        if title == "SAC":  # which scales [-1, 1] to the bounds
            fits = fits and (np.isfinite(spread) & (spread > 0)).all()
        if not fits:
            raise InputError(
                f"algorithm {title} sends fractions between finite bounds, and {config.env} has the actions "
                f"{' '.join(str(space).split())}; wrap it in gymnasium.wrappers.TransformAction(env, function, "
                f"Box(-1, 1, {space.shape})), whose function makes the environment's actions of such numbers"
            )


def contract_of(encoder: FrozenEncoder | None) -> PixelContract:
    """The frame size that an agent sees; one on pixels without an encoder sees 64x64."""
    return encoder.contract if encoder is not None else PixelContract(_PIXEL_SIDE, _PIXEL_SIDE, 3)


def as_seen(
    config: AgentConfig, contract: PixelContract, step_limit: int | None = None
) -> Callable[..., gym.Env[Any, Any]]:
    """A function that wraps an environment: frames resized, all else as numbers, and the actions that SB3 sends."""
    how: dict[str, Any] = {"pixel_key": config.pixel_key, "latent_only": config.latent_only, "step_limit": step_limit}
    return partial(as_small_frames, contract=contract, flatten=config.flattened, for_sb3=True, **how)


def with_latents(
    config: AgentConfig, venv: VecEnv, encoder: FrozenEncoder | None, monitor: DriftMonitor | None = None
) -> VecEnv:
    """Encode resized frames as an agent of these settings sees them; for a pixel agent, stack them instead."""
    if config.observation == "pixels" or encoder is None:
        return VecFrameStack(venv, config.history) if config.history > 1 else venv
    # With `latent_only` the environments return the pixels alone, not a Dict.
    key = config.pixel_key if isinstance(venv.observation_space, spaces.Dict) else None
    how: dict[str, Any] = {"latent_only": config.latent_only, "flatten": config.flattened, "history": config.history}
    return VecLatentObservation(venv, encoder, pixel_key=key, monitor=monitor, **how)


class _EpisodeReturns(VecMonitor):
    """`VecMonitor` that sums in double precision and rounds to six decimals, as `Monitor` does.

    It reports episodes that a step limit has cut.
    """

    def __init__(self, venv: VecEnv, step_limit: int | None) -> None:
        super().__init__(venv)
        self.step_limit = step_limit
        self._reported = False

    def reset(self) -> VecEnvObs:
        observation = super().reset()
        self.episode_returns = np.zeros(self.num_envs)
        return observation

    def step_wait(self) -> VecEnvStepReturn:
        observation, rewards, dones, infos = super().step_wait()
        for info in compress(infos, dones):
            episode = info["episode"]
            episode["r"], episode["l"] = round(float(episode["r"]), 6), int(episode["l"])
            if self.step_limit is not None and episode["l"] >= self.step_limit:
                info["step_limit"] = self.step_limit
                if not self._reported:
                    _log.warning(_NO_END, self.step_limit)
                self._reported = True
        return observation, rewards, dones, infos


def with_normalization(config: AgentConfig, venv: VecEnv, *, training: bool) -> VecNormalize:
    """Normalize observations by their running statistics (fixed outside training), and rewards in training only.

    Pixels (uint8) are not normalized: a CNN divides them by 255 itself.
    """
    if config.observation == "pixels" and "buffer_size" in config.trainer.defaults:
        # Stable-Baselines3 stores the observations of `VecNormalize`, with the channels where its CNNs have them.
        venv = VecTransposeImage(venv)
    values = config.hyperparameters
    how, keys = values["normalize_observation"], number_keys(venv.observation_space)
    has_numbers = bool(keys) if keys is not None else venv.observation_space.dtype != "uint8"
    settings: dict[str, Any] = {"training": training, "gamma": values["gamma"], "norm_obs_keys": keys or None}
    settings |= {"norm_obs": has_numbers and how != "off", "norm_reward": training and values["normalize_reward"]}
    latents = latents_in(venv) if how == "together" else {}
    if latents:
        return LatentNormalize(venv, latents, values["latent_deviation"], **settings)
    return VecNormalize(venv, **settings)
