"""Vector environments for Stable-Baselines3: frames from worker processes, encoded in one batch in this one."""

import multiprocessing
import signal
from collections.abc import Callable
from typing import Any

import gymnasium as gym
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize

from agents.config import AgentConfig
from latent_obs.architecture import Architecture
from latent_obs.environments import make_pixel_env
from latent_obs.errors import InputError
from latent_obs.frozen import FrozenEncoder
from latent_obs.pixels import PixelContract
from latent_obs.reader import ContractObservation
from latent_obs.sb3 import LatentVecEnv

_PIXEL_SIDE = 64  # of the frames that a pixel agent without an encoder sees
_PRELOAD = ["stable_baselines3.common.vec_env.subproc_vec_env", "agents.envs"]


def load_encoder(config: AgentConfig) -> FrozenEncoder | None:
    """The encoder of an agent's settings: trained, random, or none for a pixel agent.

    Raises:
        InputError: Latents were asked for without an encoder.
    """
    if config.encoder is None:
        if config.observation == "latent":
            raise InputError("observation 'latent' needs an encoder folder: --encoder runs/…/encoder (train-vae makes one)")
        if config.observation == "random-latent":
            architecture = Architecture((_PIXEL_SIDE, _PIXEL_SIDE, 3), 256, bottleneck="spatial")
            return FrozenEncoder.random(architecture, seed=config.seed, device=config.device)
        return None
    encoder = FrozenEncoder.load(config.encoder, device=config.device)
    if config.observation == "random-latent":
        return FrozenEncoder.random(encoder.architecture, seed=config.seed, device=config.device)
    return encoder


def make_vec_env(
    config: AgentConfig, encoder: FrozenEncoder | None, *, envs: int | None = None, seed: int | None = None
) -> VecEnv:
    """A vector of environments as an agent of these settings sees them, without reward normalisation.

    Each environment resizes its frame to what the encoder eats (in its own process, so that the pipe carries 12 KB and not
    230 KB a frame), and `LatentVecEnv` encodes all of them in one batch.

    Args:
        config: The settings.
        encoder: From `load_encoder`; also says what size a pixel agent sees.
        envs: Number of environments; as in the settings by default.
        seed: Seed of the first one, seed + 1 of the second …; as in the settings by default.

    Raises:
        InputError: The environment is unknown, or has no pixels that the encoder can eat.
    """
    count = config.envs if envs is None else envs
    contract = encoder.contract if encoder is not None else PixelContract(_PIXEL_SIDE, _PIXEL_SIDE, 3)
    check_environment(config, contract)
    in_processes = config.workers == "processes" and count > 1
    makers = [_maker(config, contract, in_processes) for _ in range(count)]
    venv: VecEnv = SubprocVecEnv(makers, start_method=_start_method()) if in_processes else DummyVecEnv(makers)
    venv.seed(config.seed if seed is None else seed)
    if config.observation == "pixels" or encoder is None:
        return venv
    return LatentVecEnv(venv, encoder, pixel_key=config.pixel_key, latent_only=config.latent_only)


def check_environment(config: AgentConfig, contract: PixelContract) -> None:
    """Make one environment here and close it again, so that a wrong name or space is one clear error and not eight.

    Raises:
        InputError: The environment is unknown, has no pixels that the contract can read, or actions that PPO cannot take.
    """
    env = make_pixel_env(config.env, **config.all_env_kwargs)
    try:
        wrapped = ContractObservation(env, contract, pixel_key=config.pixel_key, latent_only=config.latent_only)
        action_space = wrapped.action_space
        if not isinstance(action_space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary | spaces.Box):
            raise InputError(
                f"{config.env} has the action space {action_space}, expected Discrete, MultiDiscrete, MultiBinary or Box"
            )
    finally:
        env.close()


def _maker(config: AgentConfig, contract: PixelContract, in_process: bool) -> Callable[[], gym.Env[Any, Any]]:
    def make() -> gym.Env[Any, Any]:
        if in_process:
            # Ctrl-C reaches every process of the terminal; the parent decides when its workers stop.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        env = make_pixel_env(config.env, **config.all_env_kwargs)
        return Monitor(ContractObservation(env, contract, pixel_key=config.pixel_key, latent_only=config.latent_only))

    return make


def _start_method() -> str:
    """Fork from a small server where there is one: never from this process, which may have started CUDA and threads."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return "spawn"
    multiprocessing.get_context("forkserver").set_forkserver_preload(_PRELOAD)  # imported once, not once per worker
    return "forkserver"


def with_normalization(config: AgentConfig, venv: VecEnv, *, training: bool) -> VecNormalize:
    """Normalise observations by their running statistics (frozen outside training), and rewards in training only.

    Pixels (uint8) are left alone: a CNN divides them by 255 itself.
    """
    space = venv.observation_space
    keys: list[str] | None = None
    if isinstance(space, spaces.Dict):
        keys = [k for k, s in space.spaces.items() if isinstance(s, spaces.Box) and s.dtype != "uint8"]
    numbers = bool(keys) if keys is not None else isinstance(space, spaces.Box) and space.dtype != "uint8"
    return VecNormalize(
        venv, training=training, norm_obs=config.normalize_observation and numbers, norm_obs_keys=keys or None,
        norm_reward=training and config.normalize_reward, gamma=config.gamma,
    )  # fmt: skip
