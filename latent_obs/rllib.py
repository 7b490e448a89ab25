"""Latents in RLlib: runners that encode their frames in one batch, and connectors for environments of your own.

register_env("latent-obs", env_creator)
config = PPOConfig().environment("latent-obs", env_config={"env": "VizdoomBasic-v1", "encoder": "/shared/encoder"})
config.env_runners(num_envs_per_env_runner=8, gym_env_vectorize_mode=gymnasium.VectorizeMode.VECTOR_ENTRY_POINT)
config.env_runners(env_to_module_connector=lambda env, spaces, device: LatentNormalize())
"""

import platform
import warnings
from functools import cache, reduce
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorWrapper
from gymnasium.wrappers.utils import update_mean_var_count_from_moments as merged

from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.envs.factory import make
from latent_obs.pixels import brief
from latent_obs.util.errors import EncoderFolderError, InputError, require
from latent_obs.wrappers.observation import PixelReader

ray = require("ray", extra="ray", purpose="use RLlib")
ConnectorV2: Any = require("ray.rllib.connectors.connector_v2", extra="ray", purpose="use RLlib").ConnectorV2


def env_creator(env_config: dict[str, Any]) -> Any:
    """Make the environments of a runner; without `num_envs`, which RLlib adds, only one, with a warning.

    Args:
        env_config: "env", "encoder" (a folder that every machine has at this path, or a repository of Hugging Face),
            and other arguments of `latent_obs.make`.

    Raises:
        InputError: The autoreset mode is not NEXT_STEP: RLlib would mix up episodes. Or as in `latent_obs.make`.
        EncoderFolderError: This machine cannot load the encoder.
    """
    arguments = dict(env_config)
    mode = arguments.pop("autoreset_mode", AutoresetMode.NEXT_STEP)
    if mode not in (AutoresetMode.NEXT_STEP, AutoresetMode.NEXT_STEP.value):
        raise InputError(f"autoreset_mode must be NEXT_STEP, got {mode}: RLlib's runners assume it; leave it out")
    if missing := [name for name in ("env", "encoder") if name not in arguments]:
        raise InputError(f"env_config needs {missing}, and has {sorted(env_config)}")
    encoder = load_on_this_node(str(arguments.pop("encoder")), arguments.pop("device", runner_device()))
    env_id = arguments.pop("env")
    if "num_envs" in arguments:
        return SeedsApart(make(env_id, encoder, autoreset_mode=AutoresetMode.NEXT_STEP, **arguments))
    warnings.warn(
        "RLlib makes every environment by itself, and encodes one frame at a time, which is slow. For one batch: "
        "config.env_runners(gym_env_vectorize_mode=gymnasium.VectorizeMode.VECTOR_ENTRY_POINT)",
        stacklevel=2,
    )
    return make(env_id, encoder, **arguments)


@cache
def load_on_this_node(encoder: str, device: str) -> FrozenEncoder:
    """Load an encoder once in this process; an `EncoderFolderError` names the machine, and how to share the folder."""
    try:
        return FrozenEncoder.load(encoder, device)
    except EncoderFolderError as error:
        raise EncoderFolderError(
            f"node {platform.node()}: {error}. Each machine loads the encoder by itself: put it on a disk that all of "
            "them share, or give the name of a repository of Hugging Face (latent-obs push)"
        ) from None


def runner_device() -> str:
    """Where this process encodes: "auto" if Ray has given it a GPU (`num_gpus_per_env_runner`), else "cpu"."""
    return "auto" if ray.is_initialized() and ray.get_gpu_ids() else "cpu"


class SeedsApart(VectorWrapper):
    """Draw the seeds of a runner's environments; by RLlib's, runner r + 1 would repeat most episodes of runner r."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Reset all."""
        drawn = None if seed is None else (np.random.SeedSequence(seed).generate_state(self.num_envs) >> 1).tolist()
        return self.env.reset(seed=drawn, options=options)


class _OnLast(ConnectorV2):
    """Replaces the last observation of each episode by what `replaced` makes of all of them."""

    def __call__(self, *, batch: Any, episodes: Any, explore: bool | None = None, **_: Any) -> Any:
        found = list(self.single_agent_episode_iterator(episodes))
        new = self.replaced([one.get_observations(-1) for one in found], bool(explore))
        for episode, observation in zip(found, new, strict=True):
            episode.set_observations(at_indices=-1, new_data=observation)
            episode.observation_space = self.observation_space
        return batch  # the connectors that follow read observations from the episodes


class EncodePixels(_OnLast):
    """Encode the pixels of all episodes in one batch; of a Dict observation the other entries stay.

    `encoder` is as for `env_creator`, `device` what RLlib passes to the function that makes connectors, and `pixel_key`
    the entry with the pixels, if several entries could be.
    """

    def __init__(self, encoder: str, device: Any = "cpu", pixel_key: str | None = None) -> None:
        self.encoder, self.device, self.pixel_key = str(encoder), str(device), pixel_key
        super().__init__()

    def recompute_output_observation_space(self, space: Any, _: Any) -> Any:
        encoder = load_on_this_node(self.encoder, self.device)
        self.reader = PixelReader(space, encoder.contract, self.pixel_key)
        latent, key = spaces.Box(-np.inf, np.inf, (encoder.latent_dim,), np.float32), self.reader.key
        return latent if key is None else spaces.Dict({**space.spaces, key: latent})

    def replaced(self, last: list[Any], explore: bool) -> Any:
        key, contract = self.reader.key, self.reader.contract
        frames = np.stack([one if key is None else one[key] for one in last])
        latents = load_on_this_node(self.encoder, self.device).encode(contract.convert(frames, self.reader.layout))
        return latents if key is None else [{**old, key: new} for old, new in zip(last, latents, strict=True)]


class LatentNormalize(_OnLast):
    """Normalize vectors as `agents.LatentNormalize` does, by statistics that RLlib merges over all runners.

    The first `latents` values (by default all) keep their relation: their common deviation becomes `deviation`. Each of
    the others is divided by its own. `statistics` are mean, variance and count to begin with; evaluations add nothing.
    """

    def __init__(self, latents: int | None = None, deviation: float = 0.5, statistics: Any = None) -> None:
        self.latents, self.deviation, self.statistics = latents, deviation, statistics
        super().__init__()

    def recompute_output_observation_space(self, space: Any, _: Any) -> Any:
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise InputError(f"LatentNormalize needs observations that are vectors, got {brief(space)}")
        shape = space.shape
        self.statistics = self.statistics or (np.zeros(shape), np.ones(shape), 1e-4)  # as in Stable-Baselines3
        self.new = np.zeros(shape), np.zeros(shape), 0.0  # what this runner has seen since the last merge
        return spaces.Box(-10, 10, shape, np.float32)

    def replaced(self, last: list[Any], explore: bool) -> Any:
        batch = np.asarray(last, np.float64)
        if explore:
            seen = batch.mean(0), batch.var(0), len(batch)
            self.statistics, self.new = merged(*self.statistics, *seen), merged(*self.new, *seen)
        mean, variance = self.statistics[0], self.statistics[1].copy()
        if self.latents != 0:
            variance[: self.latents] = variance[: self.latents].mean() / self.deviation**2
        return np.clip((batch - mean) / np.sqrt(variance + 1e-8), -10, 10).astype(np.float32)

    def get_state(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {"statistics": self.statistics, "new": self.new}

    def set_state(self, state: dict[str, Any]) -> None:
        self.statistics, self.new = state["statistics"], (0 * state["new"][0], 0 * state["new"][1], 0.0)

    def merge_states(self, states: list[dict[str, Any]]) -> dict[str, Any]:
        total = reduce(lambda total, state: merged(*total, *state["new"]), states, self.statistics)
        return {"statistics": total, "new": self.new}
