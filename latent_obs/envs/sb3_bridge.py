"""`GymnasiumVecEnv`: Gymnasium's vector environments, spoken to in Stable-Baselines3's way, so that its agents train on
them.

Needs stable-baselines3 (`latent-obs[agents]`).
"""

import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.wrappers.vector import NormalizeReward, RecordEpisodeStatistics
from numpy.typing import NDArray
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from latent_obs.util.errors import InputError, require
from latent_obs.wrappers.vector import VectorLatentObservation


def infos_by_environment(infos: Any, count: int) -> list[dict[str, Any]]:
    """Give each environment the dict that it sent, out of what `gymnasium.vector.VectorEnv._add_info` made of them.

    Args:
        infos: Values by key, arrays (count, …) or dicts of such, with masks: ``infos["_key"][i]`` says whether
            environment i sent "key". A key without a mask is everybody's, as are those in the "episode" of
            `RecordEpisodeStatistics`. A list of dicts, from `DictInfoToList`, is copied.
        count: Number of environments.

    Returns:
        A dict for each, with Python's own bool, int and float where they had sent them, and memory of its own.

    Example:
        >>> infos_by_environment({"lives": np.array([3, 0]), "_lives": np.array([True, False])}, 2)
        [{'lives': 3}, {}]
    """
    if isinstance(infos, list | tuple):
        return [deepcopy(info) for info in infos]
    by_environment: list[dict[str, Any]] = [{} for _ in range(count)]
    # An environment's own key may begin with an underscore as well: it is a mask only beside what it is the mask of.
    masks = {f"_{key}" for key in infos}
    for key, values in infos.items():
        if key in masks:
            continue
        rows = infos_by_environment(values, count) if isinstance(values, dict) else values
        if isinstance(rows, np.ndarray) and rows.ndim == 1 and rows.dtype in (np.bool_, np.int_, np.float64):
            rows = rows.tolist()  # back to what Gymnasium made such arrays of, Python's bool, int and float
        length = len(rows) if isinstance(rows, list | tuple) else next(iter(getattr(rows, "shape", ())), None)
        for i in np.flatnonzero(infos.get(f"_{key}", np.ones(count, bool))):
            by_environment[i][key] = deepcopy(rows[i] if length == count else rows)
    return by_environment


require("stable_baselines3", extra="agents", purpose="train on Gymnasium's vector environments with Stable-Baselines3")


_PLAIN = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
_HOW = (
    "gymnasium.make_vec(id, num_envs, vectorization_mode='sync', "
    "vector_kwargs={'autoreset_mode': gymnasium.vector.AutoresetMode.SAME_STEP})"
)


class GymnasiumVecEnv(VecEnv):
    """A Stable-Baselines3 `VecEnv` out of a `gymnasium.vector.VectorEnv`; it tells what `DummyVecEnv` tells of the same
    ones.

    When an episode ends, the observation returned is the next episode's first, and ``infos[i]["terminal_observation"]``
    the last one, from which agents bootstrap after a time-out. How that is got depends on the vector environment's
    autoreset mode:

    - SAME_STEP says both in one step. The quickest one.
    - DISABLED: those that ended are reset right after the step.
    - NEXT_STEP spends a step on the reset, for which Stable-Baselines3 has no place. `SyncVectorEnv` and
    `AsyncVectorEnv` can
      be reset right after the step instead, as in DISABLED; others are refused.

    Infos become a dict per environment; those of resets go to `reset_infos`. "episode" of `RecordEpisodeStatistics`
    arrives as agents log it (``rollout/ep_rew_mean``); `stable_baselines3.common.vec_env.VecMonitor` around this does
    as well. What other vector wrappers add to the infos of an ended episode in SAME_STEP cannot be told from the
    reset's, and goes there. Observations and infos are memory of their own, also with ``copy=False``.

    Args:
        vector_env: The vector environment, from `gymnasium.make_vec` or `latent_obs.VectorLatentObservation`.
            Observations: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of them; actions: one of the
                four.

    Attributes:
        vector_env: The vector environment.

    Raises:
        InputError: It is no vector environment, its resets cannot be told in Stable-Baselines3's way, or its spaces are
            not what that can take.

    Example:
        >>> venv = GymnasiumVecEnv(gym.make_vec("Pendulum-v1", num_envs=2, vectorization_mode="sync"))
        >>> venv.seed(0), venv.reset().shape
        ([0, 1], (2, 3))
        >>> _, rewards, dones, infos = venv.step(np.zeros((2, 1), np.float32))
        >>> rewards.dtype, dones, infos
        (dtype('float32'), array([False, False]), [{'TimeLimit.truncated': False}, {'TimeLimit.truncated': False}])
    """

    def __init__(self, vector_env: VectorEnv[Any, Any, Any]) -> None:
        if not isinstance(vector_env, VectorEnv):
            raise InputError(
                f"GymnasiumVecEnv takes a gymnasium.vector.VectorEnv, got {type(vector_env).__module__}."
                f"{type(vector_env).__name__}; make one with gymnasium.make_vec, or give a single environment to "
                "Stable-Baselines3 as it is"
            )
        self.vector_env = vector_env
        self._mode = _usable_mode(vector_env)
        self._dtypes = _dtypes("observation", vector_env.single_observation_space)
        _dtypes("action", vector_env.single_action_space)
        self._base: Any = vector_env.unwrapped
        #: Only Gymnasium's own two keep environments that can be asked one by one.
        self._has_singles = isinstance(self._base, SyncVectorEnv | AsyncVectorEnv)
        # What they return with copy=True is the caller's already; wrappers and others may lend a buffer.
        copied = type(vector_env) in (SyncVectorEnv, AsyncVectorEnv) and self._base.copy
        self._take: Callable[..., NDArray[Any]] = np.asarray if copied else np.array
        # Not of wrappers, which know `step` only.
        self._concurrent = type(vector_env) is AsyncVectorEnv
        self._actions: NDArray[Any] | None = None
        super().__init__(vector_env.num_envs, vector_env.single_observation_space, vector_env.single_action_space)
        self.metadata = {**(vector_env.metadata or {}), **self.metadata}

    @property
    def spec(self) -> Any:
        """The vector environment's registration, if it has one; `VecMonitor` writes its name."""
        return self.vector_env.spec

    def reset(self) -> VecEnvObs:
        """Start an episode in all of them, with the seeds and options set before, once; a step under way is dropped."""
        if self._actions is not None:
            self._actions = None
            if self._concurrent:
                self._base.step_wait()
        # One number seeds environment i with seed + i: what `seed` has promised.
        seed = None if self._seeds[0] is None else int(self._seeds[0])
        observation, infos = self.vector_env.reset(seed=seed, options=self._options[0] or None)
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = infos_by_environment(infos, self.num_envs)
        return self._own(observation)

    def step_async(self, actions: NDArray[Any]) -> None:
        """Begin a step; with `AsyncVectorEnv` the environments are at work when this returns.

        Args:
            actions: (num_envs, …) of the action space's shape.

        Raises:
            InputError: They are of another shape, or floats where whole numbers are needed.
        """
        self._actions = self._batch(actions)
        if self._concurrent:
            self._base.step_async(self._actions)

    def step_wait(self) -> VecEnvStepReturn:
        """End the step: observations, float32 rewards (num_envs,), bool dones (num_envs,), and a dict for each.

        Raises:
            InputError: No step was begun, or last observations are missing.
        """
        actions, self._actions = self._actions, None
        if actions is None:
            raise InputError("step_wait() ends a step, and none was begun; call step_async(actions) before it")
        step = self._base.step_wait() if self._concurrent else self.vector_env.step(actions)
        observation, (rewards, terminated, truncated) = self._own(step[0]), map(np.asarray, step[1:4])
        infos = infos_by_environment(step[4], self.num_envs)
        dones = np.logical_or(terminated, truncated)
        if self._mode is AutoresetMode.SAME_STEP:
            for i, info in enumerate(infos):
                infos[i] = self._last_and_reset(i, info, bool(dones[i]))
        elif dones.any():
            for i in np.flatnonzero(dones):
                infos[i]["terminal_observation"] = _each(lambda part, i=i: part[i].copy(), observation)
            self._restart(observation, dones)
        for i, info in enumerate(infos):
            info["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
        return observation, rewards.astype(np.float32), dones, infos

    def _last_and_reset(self, i: int, info: dict[str, Any], done: bool) -> dict[str, Any]:
        """Part what SAME_STEP says of both episodes: the last step's info is returned, the reset's kept."""
        last, final = info.pop("final_obs", None), info.pop("final_info", None)
        if not done:
            return info
        if last is None:
            raise InputError(
                f"environment {i} ended an episode, and {self.vector_env} gave no infos['final_obs'] for it, though its "
                "metadata['autoreset_mode'] is SAME_STEP; agents need it to tell a time-out's value"
            )
        if final is None:
            final, info = info, {}
        # RecordEpisodeStatistics stands outside, and adds this after the reset.
        elif isinstance(episode := info.get("episode"), dict) and {"r", "l"} <= set(episode):
            final["episode"] = info.pop("episode")
        self.reset_infos[i] = info
        final["terminal_observation"] = _each(lambda dtype, part: np.asarray(part, dtype)[()], self._dtypes, last)
        return final

    def _restart(self, observation: Any, ended: NDArray[np.bool_]) -> None:
        """Reset those that ended, and put their first observations in place of the last ones."""
        first, infos = self.vector_env.reset(options={"reset_mask": ended.copy()})
        by_environment = infos_by_environment(infos, self.num_envs)
        for i in np.flatnonzero(ended):
            self.reset_infos[i] = by_environment[i]

        # The others stay as the step gave them: wrappers may show them a second time, and otherwise.
        def put(part: Any, new: Any) -> None:
            part[ended] = np.asarray(new)[ended]

        _each(put, observation, first)

    def _own(self, observation: Any) -> Any:
        return _each(lambda dtype, part: self._take(part, dtype=dtype), self._dtypes, observation)

    def _batch(self, actions: Any) -> NDArray[Any]:
        dtype, given = np.dtype(self.vector_env.action_space.dtype), np.asarray(actions)
        shape = (self.num_envs, *(self.action_space.shape or ()))
        fits = given.shape[:1] == shape[:1] and given.size == np.prod(shape)
        if not fits or not np.can_cast(given.dtype, dtype, "same_kind"):
            raise InputError(
                f"actions for {self.num_envs} environments of {self.action_space} should be {dtype} of shape {shape}, got "
                f"{given.dtype} of shape {given.shape}"
            )
        return given.astype(dtype, copy=False).reshape(shape)

    def set_options(self, options: list[dict[str, Any]] | dict[str, Any] | None = None) -> None:
        """Options of the next reset, the same for all: Gymnasium's vector environments have one dict.

        Raises:
            InputError: A list of options that differ, or are not as many as the environments.
        """
        if isinstance(options, list) and (
            len(options) != self.num_envs or not all(data_equivalence(one, options[0]) for one in options)
        ):
            raise InputError(
                f"a gymnasium.vector.VectorEnv resets its {self.num_envs} environments with the same options; give one dict, "
                f"or that many that are equal, got {options}"
            )
        super().set_options(options)

    def close(self) -> None:
        """Close the environments."""
        if self._concurrent and self._actions is not None:
            with suppress(Exception):  # whatever the last step was, nobody wants it now
                self._base.step_wait()
        self._actions = None
        self.vector_env.close()

    def get_images(self) -> Sequence[NDArray[Any] | None]:
        """A picture of each environment, (H, W, 3) uint8, where the render mode is "rgb_array"."""
        if self.render_mode != "rgb_array":
            warnings.warn(f"the environments have no pictures: their render mode is {self.render_mode}", stacklevel=2)
            return [None] * self.num_envs
        frames: Any = self.vector_env.render()
        return list(frames)

    def has_attr(self, attr_name: str) -> bool:
        """Whether all environments, or wrappers of theirs, have an attribute."""
        if not self._has_singles:
            return hasattr(self._base, attr_name)
        # A worker process dies of a question for what is not there; this one it survives.
        return all(self._ask("has_wrapper_attr", attr_name))

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of each environment; of the vector environment, where it keeps no single ones.

        Raises:
            AttributeError: It is not there.
        """
        if attr_name == "render_mode":
            return [self.vector_env.render_mode for _ in self._get_indices(indices)]
        if not self._has_singles:
            return [getattr(self._base, attr_name) for _ in self._get_indices(indices)]
        if not all(self._ask("has_wrapper_attr", attr_name, indices=indices)):
            raise AttributeError(f"the environments of {self.vector_env} have no attribute {attr_name!r}")
        return self._ask("get_wrapper_attr", attr_name, indices=indices)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the environments, in the wrapper that has it, else in the outermost one."""
        self._ask("set_wrapper_attr", attr_name, value, indices=indices)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of the environments.

        Raises:
            AttributeError: It is not there.
            InputError: The vector environment keeps no single ones.
        """
        if self._has_singles and not all(self._ask("has_wrapper_attr", method_name, indices=indices)):
            raise AttributeError(f"the environments of {self.vector_env} have no method {method_name!r}")
        return self._ask(method_name, *method_args, indices=indices, **method_kwargs)

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Whether the single environments have a wrapper; in worker processes it is known by its class's own name
        only.
        """
        if not self._has_singles:
            return [False for _ in self._get_indices(indices)]
        if isinstance(self._base, SyncVectorEnv):
            return [is_wrapped(self._base.envs[i], wrapper_class) for i in self._get_indices(indices)]
        # Gymnasium writes wrappers as <Outer<Inner<Env instance>>>.
        return [f"<{wrapper_class.__name__}<" in text for text in self._ask("__str__", indices=indices)]

    def _ask(self, method: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        chosen = [range(self.num_envs)[i] for i in self._get_indices(indices)]
        if isinstance(self._base, SyncVectorEnv):
            return [self._base.envs[i].get_wrapper_attr(method)(*args, **kwargs) for i in chosen]
        if not isinstance(self._base, AsyncVectorEnv):
            raise InputError(
                f"{self._base} keeps no single environments for {method!r} to reach; one that does: {_HOW}"
            )
        if chosen == list(range(self.num_envs)) or self._actions is not None:  # amid a step, this says so
            return list(self._base.call(method, *args, **kwargs))
        # Gymnasium has no call for some of the workers; this is what its own sends to all.
        for i in chosen:
            self._base.parent_pipes[i].send(("_call", (method, args, kwargs)))
        answers = [self._base.parent_pipes[i].recv() for i in chosen]
        lost = {i for i, (_, success) in zip(chosen, answers, strict=True) if not success}
        self._base._raise_if_errors([i not in lost for i in range(self.num_envs)])
        return [answer for answer, _ in answers]


def _usable_mode(venv: VectorEnv[Any, Any, Any]) -> AutoresetMode:
    """The autoreset mode; refused where Stable-Baselines3 could not be told the truth in it."""
    found = (venv.metadata or {}).get("autoreset_mode")
    try:
        mode = AutoresetMode(found)
    except ValueError:
        raise InputError(
            f"{venv}.metadata['autoreset_mode'] should be a gymnasium.vector.AutoresetMode, which says when finished "
            f"environments are reset, got {found!r}"
        ) from None
    layers: list[VectorEnv[Any, Any, Any]] = [venv]
    while isinstance(inner := layers[-1], VectorWrapper):
        layers.append(inner.env)
    early_gymnasium = tuple(map(int, gym.__version__.split(".")[:2])) < (1, 4)
    # DISABLED: the reset of some is a reset of all to them. SAME_STEP, before 1.4: each episode but the first loses a
    # step.
    miscounts = mode is AutoresetMode.DISABLED or (mode is AutoresetMode.SAME_STEP and early_gymnasium)
    for layer in layers:
        if miscounts and isinstance(layer, RecordEpisodeStatistics | NormalizeReward):
            raise InputError(
                f"{type(layer).__name__} of gymnasium {gym.__version__} counts wrongly in autoreset mode {mode.name} (1.4 is "
                "right in SAME_STEP). Put Stable-Baselines3's VecMonitor or VecNormalize around this in its place"
            )
    if mode is AutoresetMode.NEXT_STEP:
        base: Any = layers[-1]
        # A worker without shared memory forgets that it has been reset, and resets again at the next step.
        early = type(base) is SyncVectorEnv or (
            type(base) is AsyncVectorEnv and base.shared_memory and base.worker is None
        )
        if not early or not all(isinstance(layer, VectorLatentObservation) for layer in layers[:-1]):
            raise InputError(
                f"{venv} resets in the step after an episode's end (autoreset mode NEXT_STEP), a step that Stable-Baselines3 "
                "would take for one of the episode; only a bare SyncVectorEnv, or AsyncVectorEnv with shared memory, can do "
                f"without it. Make it with another mode: {_HOW}"
            )
    return mode


def _dtypes(what: str, space: spaces.Space[Any]) -> Any:
    """The dtype of each part of a space, in the structure of the space."""
    parts: Any = space
    if what == "observation" and isinstance(space, spaces.Dict | spaces.Tuple):
        parts = dict(space.spaces) if isinstance(space, spaces.Dict) else tuple(space.spaces)

    def dtype(part: spaces.Space[Any]) -> Any:
        if not isinstance(part, _PLAIN):
            nested = ", or a Dict or Tuple of them that holds no other" if what == "observation" else ""
            raise InputError(
                f"Stable-Baselines3 takes {what} spaces that are Box, Discrete, MultiDiscrete or MultiBinary{nested}, got "
                f"{part}{'' if part is space else f' in {space}'}. Change the environments with a wrapper, such as "
                "gymnasium.wrappers.FlattenObservation, before they are put together"
            )
        return part.dtype

    return _each(dtype, parts)


def _each(function: Callable[..., Any], first: Any, *others: Any) -> Any:
    """Call a function with the parts of some observations; its results, in the structure of the first one."""
    if isinstance(first, dict):
        return {name: function(part, *(other[name] for other in others)) for name, part in first.items()}
    if isinstance(first, tuple):
        return tuple(function(*parts) for parts in zip(first, *others, strict=True))
    return function(first, *others)
