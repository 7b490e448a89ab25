"""`OldGymEnv`: an environment of the old Gym API as a `gymnasium.Env`."""

import inspect
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from latent_obs.envs.old_spaces import convert_space, noop_of
from latent_obs.util.errors import InputError, check_choice, check_count


def is_old_gym(env: object) -> bool:
    """Whether something is an environment, and not one of Gymnasium's."""
    parts = ("reset", "step", "observation_space", "action_space")
    return not isinstance(env, gym.Env | type) and all(hasattr(env, part) for part in parts)


class OldGymEnv(gym.Env[Any, Any]):
    """Adapt an environment in hand that has the old Gym API (any of 0.10 to 0.26) to Gymnasium's.

    - `step` gives five values. A time-out (``info["TimeLimit.truncated"]``, as Gym's TimeLimit sets it, or an end
      within `time_limit_slack` steps of the specification's limit) is a truncation, any other end a termination.
    - Spaces are converted, MineRL's Enum, DiscreteRange and Text among them; frames are fresh, contiguous and writable.
    - Actions outside the space raise before the old environment sees them.

    Args:
        env: The old environment.
        render_mode: "rgb_array" or "human", where it can draw itself; None for not at all.
        seed_every_reset: Seed it at every reset, once it was seeded at all, so that one seed fixes a whole run of an
            environment that forgets its seed after one episode, as MineRL's do.
        time_limit_slack: An end this many steps before the limit still counts as a time-out: a server's own clock may
            be a little ahead.

    Raises:
        InputError: It is no environment of the old API, a space has no counterpart, or it has no such render mode.
    """

    def __init__(
        self, env: Any, *, render_mode: str | None = None, seed_every_reset: bool = False, time_limit_slack: int = 0
    ) -> None:
        if not is_old_gym(env):
            raise InputError(f"env must be an environment of the old Gym API, with reset, step and spaces; got {env}")
        self.time_limit_slack = check_count("time_limit_slack", time_limit_slack, at_least=0)
        self.gym_env = env
        self.metadata = _metadata(env)
        check_choice("render_mode", render_mode, (None, *self.metadata["render_modes"]))
        self.render_mode = render_mode
        self._observation = convert_space(env.observation_space, "observation")
        self._action = convert_space(env.action_space, "action")
        self.observation_space: spaces.Space[Any] = self._observation.space
        self.action_space: spaces.Space[Any] = self._action.space
        self.seed_every_reset = seed_every_reset
        self.max_episode_steps: int | None = getattr(getattr(env, "spec", None), "max_episode_steps", None)
        self._seeded = False
        self._elapsed: int | None = None  # steps of the episode; None when there is none under way

    @property
    def noop(self) -> Any:
        """The action that does nothing."""
        return noop_of(self.action_space)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; options are an InputError where the old environment's `reset` takes none."""
        takes = _parameters(self.gym_env.reset)
        super().reset(seed=seed)
        if options and "options" not in takes:
            raise InputError(f"options: this environment's reset takes none, got {options}")
        self._seeded = self._seeded or seed is not None
        if seed is None and self._seeded and self.seed_every_reset:
            seed = int(self.np_random.integers(2**31))
        self._elapsed = None
        keywords: dict[str, Any] = {"options": options} if options else {}
        if seed is not None and "seed" in takes:
            keywords["seed"] = seed
        elif seed is not None and callable(getattr(self.gym_env, "seed", None)):
            self.gym_env.seed(seed)
        observation, info = self._begin(keywords)
        self._elapsed = 0
        if self.render_mode == "human":
            self.render()
        return self._observation.from_old(observation), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take a step; an action outside the space is an InputError."""
        if self._elapsed is None:
            _ = self.gym_env.step  # raises if this is closed
            raise gym.error.ResetNeeded("no episode is under way: call reset() first, and after each episode's end")
        old_action = self._action.to_old(action)
        observation, reward, terminated, truncated, info = self._play(old_action)
        self._elapsed += 1
        if self.render_mode == "human":
            self.render()
        if terminated or truncated:
            limit, gyms_own = self.max_episode_steps, info.get("TimeLimit.truncated")
            late = limit is not None and self._elapsed >= limit - self.time_limit_slack
            if self.time_limit_slack == 0 and gyms_own is not None:
                late = False  # gym's own is False for an end by itself in the last step of all
            truncated = truncated or late or bool(gyms_own)
            terminated = terminated and not truncated
            self._elapsed = None
        return self._observation.from_old(observation), float(reward), terminated, truncated, info

    def _begin(self, keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Reset the old environment: its observation, unconverted, and its info."""
        result = self.gym_env.reset(**keywords)
        is_pair = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping)
        if is_pair and isinstance(self.observation_space, spaces.Tuple):  # or the pair is the observation
            is_pair = bool(self.gym_env.observation_space.contains(result[0]))
        return (result[0], dict(result[1])) if is_pair else (result, {})  # Gym 0.26 gives a pair

    def _play(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step the old environment: observation and action are the old environment's own."""
        observation, reward, terminated, *truncated, info = self.gym_env.step(action)  # Gym 0.26 gives five values
        return observation, reward, bool(terminated), any(truncated), dict(info)

    def render(self) -> Any:
        """The picture, uint8 (H, W, 3), or a window, as `render_mode` says; None without one."""
        if self.render_mode is None:
            return None
        takes = _parameters(self.gym_env.render)
        picture = self.gym_env.render(mode=self.render_mode) if "mode" in takes else self.gym_env.render()
        if self.render_mode != "rgb_array":
            return None
        if picture is None:  # Gym 0.26 settles it when the environment is made
            raise InputError(f"render_mode: {self.gym_env} gave no picture; make it with render_mode='rgb_array' too")
        return np.array(picture, order="C")

    def close(self) -> None:
        """Close the old environment; closing it twice does no harm."""
        env, self.gym_env = self.gym_env, _Closed()
        self._elapsed = None
        env.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}{self.gym_env}>"

    __str__ = __repr__


class _Closed:
    """What an environment is after `close`."""

    def close(self) -> None:
        pass

    def __repr__(self) -> str:
        return "<closed>"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copying and pickling look for these
            raise AttributeError(name)
        raise gym.error.ClosedEnvironmentError(f"{name!r} needs an open environment: this one was closed")


def _parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    """Parameters of a method, through Gym's wrappers, which pass on whatever they are given."""
    parameters: Mapping[str, inspect.Parameter] = inspect.signature(function).parameters
    passes_on = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    inner = getattr(getattr(function, "__self__", None), "env", None)
    method = getattr(inner, getattr(function, "__name__", ""), None)
    return {**parameters, **_parameters(method)} if passes_on and callable(method) else parameters


def _metadata(env: Any) -> dict[str, Any]:
    """Gymnasium's names for an old environment's metadata."""
    old = dict(getattr(env, "metadata", None) or {})
    modes = old.pop("render.modes", None) or old.pop("render_modes", None) or []
    rates = [old.pop(name, None) for name in ("video.frames_per_second", "video_frames_per_second", "render_fps")]
    return {**old, "render_modes": list(modes), "render_fps": next((rate for rate in rates if rate), 30)}
