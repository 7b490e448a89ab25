"""Tiny environments, frames and networks that the tests share; nothing here imports torch until a function needs it.

Worker processes import this module to find the environments, so it has to stay cheap to import.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from numpy.typing import NDArray

if TYPE_CHECKING:
    from latent_obs.encoder.architecture import Architecture
    from latent_obs.envs.sb3_bridge import ProcessVecEnv
    from vae_training.model.cvae import CVAE

LATENT_DIM = 6
IMG_SHAPE = (16, 16, 3)
#: Size of the tiny environments' pictures: neither square nor the size of the tiny encoder's input.
ENV_SIZE = (20, 28)

PixelKind = Literal["box", "chw", "grey", "dict", "two-images"]


def picture(episode: int, step: int, height: int = ENV_SIZE[0], width: int = ENV_SIZE[1], channels: int = 3) -> Any:
    """The frame of an episode's step: smooth, coloured and different for each pair."""
    y, x, c = np.ogrid[0:height, 0:width, 0:channels]
    wave = np.sin(0.3 * x + 0.9 * step + c) + np.cos(0.25 * y - 0.7 * episode + 2.1 * c)
    return np.round(63.75 * (wave + 2)).astype(np.uint8)


class PixelEnv(gym.Env[Any, Any]):
    """Pictures whose content shows episode and step; it never ends by itself, put a TimeLimit around it.

    Args:
        kind: "box" (H, W, C); "chw" (C, H, W); "grey" (H, W, 1); "dict" with the picture as "pov" and a "compass";
            "two-images", a Dict with two pictures.
        first_episode: Number of the first episode, so that several environments show different pictures.
        die_at: Step of an episode that terminates it, or 0 for never.
        size: Height and width of the picture.
    """

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        kind: PixelKind = "box",
        first_episode: int = 0,
        die_at: int = 0,
        size: tuple[int, int] = ENV_SIZE,
    ) -> None:
        self.kind, self.die_at, self.size = kind, die_at, size
        self.first_episode = first_episode
        self.episode, self.steps = first_episode - 1, 0
        height, width = size
        image = spaces.Box(0, 255, (height, width, 3), np.uint8)
        compass = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.observation_space: spaces.Space[Any] = {
            "box": image,
            "chw": spaces.Box(0, 255, (3, height, width), np.uint8),
            "grey": spaces.Box(0, 255, (height, width, 1), np.uint8),
            "dict": spaces.Dict(pov=image, compass=compass),
            "two-images": spaces.Dict(pov=image, map=image, compass=compass),
        }[kind]
        self.action_space = spaces.Discrete(2)

    def observe(self, episode: int, step: int) -> Any:
        """The observation of an episode's step."""
        height, width = self.size
        image = picture(episode, step, height, width, 1 if self.kind == "grey" else 3)
        if self.kind == "chw":
            return np.ascontiguousarray(image.transpose(2, 0, 1))
        if self.kind in ("box", "grey"):
            return image
        observation = {"pov": image, "compass": np.array([np.sin(step), np.cos(step)], np.float32)}
        if self.kind == "two-images":
            observation["map"] = image[::-1].copy()
        return observation

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        # A seed starts the story anew, so that the same seed gives the same observations, as checkers demand.
        self.episode, self.steps = (self.episode + 1 if seed is None else self.first_episode), 0
        return self.observe(self.episode, 0), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        info = {"story": self.episode, "step": self.steps}
        dead = bool(self.die_at) and self.steps >= self.die_at
        return self.observe(self.episode, self.steps), float(action), dead, False, info


def limited(kind: PixelKind = "box", first_episode: int = 0, limit: int = 3) -> gym.Env[Any, Any]:
    """A `PixelEnv` that times out."""
    return gym.wrappers.TimeLimit(PixelEnv(kind, first_episode), limit)


def pass_checkers(env: gym.Env[Any, Any]) -> None:
    """Both checkers, with only those of their warnings allowed that say what the project does on purpose."""
    from gymnasium.utils.env_checker import check_env as check_gymnasium

    sb3 = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*different from the unwrapped version.*")
        warnings.filterwarnings("ignore", message=".*Box observation space m(in|ax)imum value is -?infinity.*")
        warnings.filterwarnings("ignore", message=".*minimal resolution for an image is 36x36.*")
        check_gymnasium(env, skip_render_check=True)
        sb3.check_env(env, skip_render_check=True)


def random_frames(count: int, shape: tuple[int, ...] = IMG_SHAPE, seed: int = 0) -> NDArray[np.uint8]:
    """Noise."""
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


@contextlib.contextmanager
def closed_without_a_trace() -> Iterator[list[ProcessVecEnv]]:
    """A list: the vector environments put into it are closed in the end, and must then have left no process behind."""
    made: list[ProcessVecEnv] = []
    before = set(multiprocessing.active_children())
    yield made
    for venv in made:
        venv.close()
    left = set(multiprocessing.active_children()) - before
    for process in left:
        process.kill()
    assert not left


def tiny_architecture(channels: int = 3) -> Architecture:
    from latent_obs.encoder.architecture import Architecture

    return Architecture((16, 16, channels), LATENT_DIM, widths=(4, 8), strides=(2, 2))


def tiny_cvae(seed: int = 0, **kwargs: Any) -> CVAE:
    """A CVAE of 16x16 frames with some 3,000 weights; torch's random state is left as it was."""
    import torch

    from vae_training.model.cvae import CVAE

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CVAE(IMG_SHAPE, LATENT_DIM, **{"widths": (4, 8), "strides": (2, 2), **kwargs})
