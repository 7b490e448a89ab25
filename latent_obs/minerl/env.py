"""MineRL 0.4.4 as Gymnasium environments: `MineRLEnv`, `make_minerl` by name, and their entry in the registry."""

import copy
import difflib
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from latent_obs.actions import FrameSkip, sb3_actions
from latent_obs.envs.faults import RestartOnFault
from latent_obs.envs.old_gym import OldGymEnv
from latent_obs.minerl.client import GameConnection, core_of, make_client, minerl_specs, noop_vector, quietly
from latent_obs.util.errors import GameFaultError, InputError, LatentObsError

_PEEK_PAUSE_S = 0.1
_TIME_LIMIT_SLACK = 20  # steps, one second of the game: its clock starts before the first observation is asked for


class MineRLEnv(OldGymEnv):
    """A minerl environment with its own Dict observations and actions, as a Gymnasium environment.

    It raises `GameFaultError` when the connection breaks, no answer comes in time, or the answer cannot be read; minerl
    itself would give a random observation, an error from its internals, or nothing for minutes. The next `reset`
    connects anew, and starts the game anew if it was started here. A picture that the game leaves empty is the one
    before it again (``info["frame_missing"]``).

    Args:
        client: What `client.make_client` or minerl's own `gym.make` gave.
        port: Of a game that runs already; None as in `make_minerl`.
        host: Where that game runs.
        render_mode: "rgb_array" or "human".
        step_deadline_s: Seconds that a step may take before the game counts as hung.
        reset_deadline_s: Seconds that a reset may take, the start of a game and the making of a world included.

    Raises:
        InputError: A deadline is not positive, nothing listens on the port, or a game cannot be started here.
    """

    def __init__(
        self,
        client: Any,
        *,
        port: int | None = None,
        host: str = "localhost",
        render_mode: str | None = None,
        step_deadline_s: float = 60.0,
        reset_deadline_s: float = 900.0,
    ) -> None:
        for name, seconds in (("step_deadline_s", step_deadline_s), ("reset_deadline_s", reset_deadline_s)):
            if not seconds > 0:
                raise InputError(f"{name} must be a positive number of seconds, got {seconds}")
        self.core = core_of(client)
        # BASALT's reset does nothing for some steps, to see whether the player lives; the game's clock runs.
        slack = _TIME_LIMIT_SLACK + getattr(client, "n_noops", 0)
        super().__init__(client, render_mode=render_mode, seed_every_reset=True, time_limit_slack=slack)
        self.env_id: str = self.core.task.name
        self.step_deadline_s, self.reset_deadline_s = step_deadline_s, reset_deadline_s
        vector = noop_vector(self.core.task)
        self._noop = super().noop if vector is None else self._action.from_old(vector)
        self.connection = GameConnection(client, port=port, host=host)
        self._lost = False

    @property
    def noop(self) -> Any:
        """The action that does nothing; of an obfuscated task, the vector that stands for it."""
        return copy.deepcopy(self._noop)

    def _begin(self, keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        del keywords  # the client's reset takes none; its seed was set
        if self._lost:
            self.connection.drop()
            self._lost = False
        self.connection.begin(self.reset_deadline_s)
        try:
            with quietly():  # BASALT's reset calls something that upstream itself has deprecated
                observation = self.gym_env.reset()
            while self.connection.picture_missing:  # the world is there, its picture not yet
                time.sleep(_PEEK_PAUSE_S)
                (observation,) = self.core._peek_obs().values()
        except LatentObsError:
            self._lost = True
            raise
        except Exception as error:  # of sockets, struct, json, or an assertion of minerl's
            raise self._fault("while an episode began", error) from error
        if self.connection.trouble:  # in a step of BASALT's reset, which then began another, unseeded episode
            raise self._fault("while an episode began", self.connection.trouble)
        return observation, {}

    def _play(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.connection.begin(self.step_deadline_s)
        where = f"in step {(self._elapsed or 0) + 1} of an episode"
        try:
            with np.errstate(all="ignore"):  # a decoder of obfuscated actions may divide 0 by 0
                result: Any = self.gym_env.step(action)
            observation, reward, done, info = result
        except Exception as error:  # the action was checked before: this is the game's doing
            raise self._fault(where, error) from error
        # With an error the observation is a random one; or the picture came, and then the connection broke.
        if "error" in info or (self.core.done and not done):
            raise self._fault(where, self.connection.trouble or info.get("error"))
        if self.connection.picture_missing:
            info = {**info, "frame_missing": True}
        return observation, reward, done, False, info

    def _fault(self, where: str, reason: object) -> GameFaultError:
        self._lost = True
        self._elapsed = None
        what = f"{type(reason).__name__}: {reason}" if isinstance(reason, Exception) else str(reason)
        return GameFaultError(f"{self.env_id} lost its game ({self.connection.address}) {where}: {what}")

    def close(self) -> None:
        """Leave the game, and end it if it was started here."""
        self.connection.close()
        super().close()


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
        port: Of a game that runs already. None takes one that was given to minerl's
            `InstanceManager.add_existing_instance` in this process and is free; or starts one, which needs Java 8 and
            the built game (docs/minerl.md).
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
    deadlines: dict[str, Any] = {"step_deadline_s": step_deadline_s, "reset_deadline_s": reset_deadline_s}
    game = MineRLEnv(make_client(env_id), port=port, host=host, render_mode=render_mode, **deadlines)
    try:
        env: gym.Env[Any, Any] = RestartOnFault(game, most_in_a_row=faults_in_a_row)
        return sb3_actions(
            env if frame_skip == 1 else FrameSkip(env, frame_skip),
            actions,
            env_id=env_id,
            camera_step_degrees=camera_step_degrees,
            always=always,
            camera_bins=camera_bins,
            camera_max_degrees=camera_max_degrees,
        )
    except BaseException:
        game.close()
        raise


def adapt_minerl(client: Any) -> gym.Env[Any, Any]:
    """An environment that minerl's own `gym.make` gave, as `make_minerl` makes it by default."""
    game = MineRLEnv(client)
    return sb3_actions(RestartOnFault(game), env_id=game.env_id)


def register_minerl() -> None:
    """Enter MineRL's environments in Gymnasium's registry, so that `gymnasium.make` knows them; errors as there."""
    for env_id, spec in minerl_specs().items():
        if env_id not in gym.registry:
            gym.register(
                env_id,
                "latent_obs.minerl.env:make_minerl",
                kwargs={"env_id": env_id},
                max_episode_steps=spec.max_episode_steps,
                reward_threshold=spec.reward_threshold,
            )
