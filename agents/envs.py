"""Vector environments for Stable-Baselines3: frames from worker processes, encoded in one batch in this one."""

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecMonitor, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from agents.config import AgentConfig, EnvArgument
from agents.normalization import normalized
from latent_obs.encoder.architecture import Architecture
from latent_obs.encoder.folder import read_encoder_folder
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.encoder.pca import load_pca
from latent_obs.envs.pixel_envs import as_small_frames, env_maker, is_minerl_id, make_pixel_env
from latent_obs.envs.sb3_bridge import ProcessVecEnv
from latent_obs.pixels import PixelContract
from latent_obs.util.errors import InputError
from latent_obs.wrappers.drift import DriftMonitor
from latent_obs.wrappers.sb3 import VecLatentObservation

_PIXEL_SIDE = 64  # of the frames that a pixel agent without an encoder sees
_CLOSE_GRACE_S = 30.0  # a game of MineRL's takes its time to end


def load_encoder(config: AgentConfig) -> FrozenEncoder | None:
    """The encoder of an agent's settings: trained, random, or none for a pixel agent.

    Raises:
        InputError: Latents were asked for without an encoder.
    """
    if config.observation == "pca-latent":
        if config.pca is None:
            raise InputError(
                "observation 'pca-latent' needs principal components: --pca FILE (latent_obs.encoder.pca writes one)"
            )
        return load_pca(config.pca, device=config.device)
    if config.encoder is None:
        if config.observation == "latent":
            raise InputError(
                "observation 'latent' needs an encoder folder: --encoder runs/…/encoder (train-vae makes one)"
            )
        if config.observation == "random-latent":
            architecture = Architecture((_PIXEL_SIDE, _PIXEL_SIDE, 3), 256, bottleneck="spatial")
            return FrozenEncoder.random(
                architecture, seed=config.seed, device=config.device, backend=config.backend, precision=config.precision
            )
        return None
    how: dict[str, Any] = {"device": config.device, "backend": config.backend, "precision": config.precision}
    if config.observation == "random-latent":
        architecture = read_encoder_folder(config.encoder).architecture
        return FrozenEncoder.random(architecture, seed=config.seed, **how)
    return FrozenEncoder.load(config.encoder, **how)


def make_vec_env(
    config: AgentConfig,
    encoder: FrozenEncoder | None,
    *,
    envs: int | None = None,
    seed: int | None = None,
    first: int = 0,
    monitor: DriftMonitor | None = None,
    training: bool = False,
    say: Callable[[str], object] | None = None,
) -> VecEnv:
    """A vector of environments as an agent of these settings sees them, without reward normalization.

    Each environment resizes its frame to what the encoder eats (in its own process, so that the pipe carries 12 KB and
    not 230 KB a frame), and `VecLatentObservation` encodes all of them in one batch. Worker processes import neither
    torch nor Stable-Baselines3; returns are summed in this one, ``info["episode"]`` of an episode's last step.

    Args:
        config: The settings.
        encoder: From `load_encoder`; also says what size a pixel agent sees.
        envs: Number of environments; as in the settings by default.
        seed: Seed of the first one, seed + 1 of the second …; as in the settings by default.
        first: Number of the first one among all that run at the same time: MineRL games that run already are shared out
            by it, environment `i` gets the port ``port + first + i``.
        monitor: Shown every latent.
        training: Not used any more.
        say: Not used any more.

    Raises:
        InputError: The environment is unknown, or has no pixels that the encoder can eat.
    """
    count = config.envs if envs is None else envs
    contract = contract_of(encoder)
    check_environment(config, contract, first)
    in_processes = config.workers == "processes" and count > 1
    makers = [_maker(config, contract, first + i) for i in range(count)]
    frames: VecEnv = ProcessVecEnv(makers, close_grace_s=_CLOSE_GRACE_S) if in_processes else DummyVecEnv(makers)
    venv: VecEnv = _EpisodeReturns(frames)
    venv.seed(config.seed if seed is None else seed)
    return with_latents(config, venv, encoder, monitor)


def with_latents(
    config: AgentConfig, venv: VecEnv, encoder: FrozenEncoder | None, monitor: DriftMonitor | None = None
) -> VecEnv:
    """Small frames encoded as an agent of these settings sees them; for a pixel agent the last ones on top of each
    other.
    """
    if config.observation == "pixels":
        return VecFrameStack(venv, config.history) if config.history > 1 else venv
    if encoder is None:
        return venv
    # Where pixels are all there is, the makers left no Dict to name an entry of.
    key = config.pixel_key if isinstance(venv.observation_space, spaces.Dict) else None
    return VecLatentObservation(
        venv,
        encoder,
        pixel_key=key,
        latent_only=config.latent_only,
        flatten=config.flattened,
        history=config.history,
        standardize=config.standardize,
        monitor=monitor,
    )


def make_monitor(
    config: AgentConfig, encoder: FrozenEncoder | None, say: Callable[[str], object] | None = None
) -> DriftMonitor | None:
    """What watches for drift; None where it is not wanted, or where the encoder is no trained one with statistics."""
    if not config.watch_drift or config.observation != "latent" or encoder is None or encoder.statistics is None:
        return None
    return DriftMonitor(encoder, say=say)


def check_environment(config: AgentConfig, contract: PixelContract, number: int = 0) -> None:
    """Make one environment here and close it again, so that a wrong name or space is one clear error and not eight.

    Raises:
        InputError: The environment is unknown, or has no pixels that the contract can read, or actions that the
            algorithm cannot take.
    """
    env = make_pixel_env(config.env, **env_arguments(config, number))
    try:
        seen = as_seen(config, contract)(env)
        if config.observation == "latent":
            seen.get_wrapper_attr("reader").refuse_blur()
        config.trainer.check_actions(config.env, seen.action_space)
    finally:
        env.close()


def env_arguments(config: AgentConfig, number: int) -> dict[str, EnvArgument]:
    """What the environment of this number is made with: a MineRL game that runs already serves one of them only."""
    arguments = config.all_env_kwargs
    port = arguments.get("port")
    if is_minerl_id(config.env) and isinstance(port, int):
        return {**arguments, "port": port + number}
    return arguments


def contract_of(encoder: FrozenEncoder | None) -> PixelContract:
    """What frames look like to an agent; one on pixels without an encoder sees 64x64."""
    return encoder.contract if encoder is not None else PixelContract(_PIXEL_SIDE, _PIXEL_SIDE, 3)


def as_seen(config: AgentConfig, contract: PixelContract) -> Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]:
    """What gives an environment with its frames resized, and everything else in numbers that a policy can take."""
    return partial(
        as_small_frames,
        contract=contract,
        pixel_key=config.pixel_key,
        latent_only=config.latent_only,
        flatten=config.flattened,
    )


def _maker(config: AgentConfig, contract: PixelContract, number: int) -> Callable[[], gym.Env[Any, Any]]:
    make, seen = env_maker(config.env, **env_arguments(config, number)), as_seen(config, contract)
    return lambda: seen(make())  # names nothing of this package, which a worker would import, and torch with it


class _EpisodeReturns(VecMonitor):
    """`VecMonitor` with the numbers of `Monitor`, which sums in double precision, and rounds to millionths."""

    def reset(self) -> VecEnvObs:
        """Reset all, and count from zero."""
        observation = super().reset()
        self.episode_returns = np.zeros(self.num_envs)
        return observation

    def step_wait(self) -> VecEnvStepReturn:
        """Wait for the step, and add up."""
        observation, rewards, dones, infos = super().step_wait()
        for i in np.flatnonzero(dones):
            episode = infos[i]["episode"]
            episode["r"], episode["l"] = round(float(episode["r"]), 6), int(episode["l"])
        return observation, rewards, dones, infos


def with_normalization(config: AgentConfig, venv: VecEnv, *, training: bool) -> VecNormalize:
    """Normalise as the settings say: observations by running statistics (frozen outside training), rewards in training
    only.
    """
    values = config.hyperparameters
    return normalized(
        venv,
        values["normalize_observation"],
        training=training,
        latent_deviation=values["latent_deviation"],
        normalize_reward=values["normalize_reward"],
        gamma=values["gamma"],
    )
