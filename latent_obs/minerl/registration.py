"""MineRL environments by name, ready for Stable-Baselines3: `make_minerl`, and their entry in Gymnasium's registry."""

import difflib
from pathlib import Path
from typing import Any

import gymnasium as gym

from latent_obs.actions import FrameSkip, sb3_actions
from latent_obs.envs.faults import RestartOnFault
from latent_obs.minerl.client import make_client, minerl_specs
from latent_obs.minerl.env import MineRLEnv
from latent_obs.util.errors import InputError


def make_minerl(
    env_id: str,
    *,
    port: int | None = None,
    host: str = "localhost",
    actions: str | Path = "auto",
    camera_step_degrees: float = 10.0,
    always: str | None = None,
    camera_bins: int = 11,
    camera_max_degrees: float = 10.0,
    frame_skip: int = 1,
    render_mode: str | None = None,
    step_deadline_s: float = 60.0,
    reset_deadline_s: float = 900.0,
    faults_in_a_row: int = 8,
) -> gym.Env[Any, Any]:
    """Make a MineRL 0.4.4 environment as a Gymnasium environment whose actions Stable-Baselines3 can take.

    Observations are MineRL's own (a Dict with ``pov``). A lost game is a truncation and a restart (`RestartOnFault`).

    Args:
        env_id: Such as "MineRLTreechop-v0"; `minerl_specs` has all of them.
        port: Of a game that runs already. None starts one, which needs Java 8 and the built game (docs/minerl.md).
        host: Where the game on that port runs.
        actions: "auto": a curated set for the task ("discrete"), or the obfuscated vector ("continuous").
            "multidiscrete", "multidiscrete-linear", "dict" (MineRL's own), or a file of k-means centroids. See
            `latent_obs.actions`.
        camera_step_degrees: How far one discrete action turns.
        always: Keys held in every discrete action but the no-op, such as "attack+sprint"; None: as fits the task.
        camera_bins: Bins of each axis of the camera, for "multidiscrete".
        camera_max_degrees: The largest turn among them.
        frame_skip: Game steps per action; keys are held, turns and crafting happen once.
        render_mode: "rgb_array" or "human".
        step_deadline_s: Seconds after which a game that does not answer counts as hung.
        reset_deadline_s: The same for the start of an episode, and of the game.
        faults_in_a_row: After so many lost games in a row it stops with `GameLostError`.

    Raises:
        InputError: The id or an argument is wrong, nothing listens on the port, or a game cannot be started here.
        MissingExtraError: minerl is not installed.
    """
    specs = minerl_specs()
    if env_id not in specs:
        near = difflib.get_close_matches(env_id, list(specs), n=4, cutoff=0.5)
        hint = f"Did you mean {', '.join(near)}?" if near else "latent_obs.minerl.client.minerl_specs() lists all"
        raise InputError(f"minerl 0.4.4 has no environment {env_id!r}. {hint}")
    game = MineRLEnv(
        make_client(env_id),
        port=port,
        host=host,
        render_mode=render_mode,
        step_deadline_s=step_deadline_s,
        reset_deadline_s=reset_deadline_s,
    )
    return _with_actions(
        game,
        actions,
        frame_skip,
        faults_in_a_row,
        camera_step_degrees=camera_step_degrees,
        always=always,
        camera_bins=camera_bins,
        camera_max_degrees=camera_max_degrees,
    )


def adapt_minerl(client: Any) -> gym.Env[Any, Any]:
    """An environment that minerl's own `gym.make` gave, as `make_minerl` makes it by default."""
    return _with_actions(MineRLEnv(client))


def _with_actions(
    game: MineRLEnv, actions: str | Path = "auto", frame_skip: int = 1, faults_in_a_row: int = 8, **kwargs: Any
) -> gym.Env[Any, Any]:
    try:
        env: gym.Env[Any, Any] = RestartOnFault(game, most_in_a_row=faults_in_a_row)
        if frame_skip != 1:
            env = FrameSkip(env, frame_skip)
        return sb3_actions(env, actions, env_id=game.env_id, **kwargs)
    except BaseException:
        game.close()
        raise


def register_minerl() -> None:
    """Enter MineRL's environments in Gymnasium's registry, so that `gymnasium.make` knows them; errors as there."""
    for env_id, spec in minerl_specs().items():
        if env_id not in gym.registry:
            gym.register(
                env_id,
                "latent_obs.minerl.registration:make_minerl",
                kwargs={"env_id": env_id},
                max_episode_steps=spec.max_episode_steps,
                reward_threshold=spec.reward_threshold,
            )
