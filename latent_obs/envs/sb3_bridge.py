"""Stable-Baselines3 `VecEnv`s around Gymnasium's vector environments: `GymnasiumVecEnv`, and `ProcessVecEnv`.

Needs stable-baselines3 (`latent-obs[agents]`).
"""

import contextlib
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.wrappers.vector import NormalizeReward, RecordEpisodeStatistics
from numpy.typing import NDArray

from latent_obs.envs.border import own_envs_of
from latent_obs.envs.workers import ProcessVectorEnv, WorkerError, worker_losses
from latent_obs.util.errors import InputError, require
from latent_obs.wrappers.vector import VectorLatentObservation

require("stable_baselines3", extra="agents", purpose="use environments in Stable-Baselines3's way")

from stable_baselines3.common.vec_env import VecEnv  # noqa: E402
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn  # noqa: E402

_PLAIN = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


class GymnasiumVecEnv(VecEnv):
    """A Stable-Baselines3 `VecEnv` around a `gymnasium.vector.VectorEnv`, with the results of `DummyVecEnv`.

    When an episode ends, the observation returned is the next episode's first, and ``infos[i]["terminal_observation"]``
    the last one, from which agents bootstrap after a time-out. The vector environment's autoreset mode must give both:

    - SAME_STEP does so in one step. Take this one where there is a choice.
    - NEXT_STEP spends a step on the reset, which Stable-Baselines3 does not know. Only a bare `SyncVectorEnv`, or
      `AsyncVectorEnv` with shared memory, can be reset right after the step instead.

    Infos become a dict per environment; those of resets go to `reset_infos`. "episode" of `RecordEpisodeStatistics`
    arrives as agents log it (``rollout/ep_rew_mean``). Observations and infos are memory of their own, also with
    ``copy=False``.

    Args:
        vector_env: The vector environment, from `gymnasium.make_vec` or `latent_obs.VectorLatentObservation`.
            Observations: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of them; actions: one of the
            four.

    Raises:
        InputError: It is no vector environment, its autoreset mode does not fit, or its spaces are of other kinds.

    Example:
        >>> same_step = {"autoreset_mode": AutoresetMode.SAME_STEP}
        >>> venv = GymnasiumVecEnv(gym.make_vec("Pendulum-v1", 2, vectorization_mode="sync", vector_kwargs=same_step))
        >>> venv.seed(0), venv.reset().shape
        ([0, 1], (2, 3))
    """

    def __init__(self, vector_env: VectorEnv[Any, Any, Any]) -> None:
        if not isinstance(vector_env, VectorEnv):
            raise InputError(
                f"vector_env must be a gymnasium.vector.VectorEnv, got {vector_env}; gymnasium.make_vec makes one"
            )
        self.vector_env = vector_env
        self.spec = vector_env.spec  # `VecMonitor` writes its name
        self._mode = _usable_mode(vector_env)
        own_envs_of(vector_env)
        parts = vector_env.single_observation_space
        if isinstance(parts, spaces.Dict | spaces.Tuple):
            parts = dict(parts.spaces) if isinstance(parts, spaces.Dict) else tuple(parts.spaces)
        self._dtypes = _each(partial(_dtype, "observation"), parts)
        _dtype("action", vector_env.single_action_space)
        self._base: Any = vector_env.unwrapped
        self._has_single_ones = isinstance(self._base, SyncVectorEnv | AsyncVectorEnv)
        self._concurrent = isinstance(vector_env, AsyncVectorEnv)  # wrappers have `step` only
        self._actions: NDArray[Any] | None = None
        super().__init__(vector_env.num_envs, vector_env.single_observation_space, vector_env.single_action_space)
        self.metadata = {**(vector_env.metadata or {}), **self.metadata}

    def reset(self) -> VecEnvObs:
        """Start an episode in all of them, with the seeds and options set before, once; a step under way is dropped."""
        if self._actions is not None:
            self._actions = None
            if self._concurrent:
                with worker_losses(self.vector_env):
                    self._base.step_wait()
        seed = None if self._seeds[0] is None else int(self._seeds[0])
        with worker_losses(self.vector_env):
            observation, infos = self.vector_env.reset(seed=seed, options=self._options[0] or None)
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = self._infos(infos)
        return self._own(observation)

    def step_async(self, actions: NDArray[Any]) -> None:
        """Begin a step with actions (num_envs, …); with `AsyncVectorEnv` the environments work when this returns."""
        dtype = np.dtype(self.vector_env.action_space.dtype)
        shape = (self.num_envs, *(self.action_space.shape or ()))
        try:
            self._actions = np.asarray(actions).astype(dtype, casting="same_kind", copy=False).reshape(shape)
        except (TypeError, ValueError) as error:
            raise InputError(f"actions should be {dtype} of shape {shape}, got {actions}: {error}") from None
        if self._concurrent:
            with worker_losses(self.vector_env):
                self._base.step_async(self._actions)

    def step_wait(self) -> VecEnvStepReturn:
        """End the step: observations, float32 rewards (num_envs,), bool dones (num_envs,), and a dict for each."""
        actions, self._actions = self._actions, None
        if actions is None:
            raise InputError("step_wait() ends a step, and none has begun; call step_async(actions) before it")
        with worker_losses(self.vector_env):
            step = self._base.step_wait() if self._concurrent else self.vector_env.step(actions)
        observation, (rewards, terminated, truncated) = self._own(step[0]), map(np.asarray, step[1:4])
        infos = self._infos(step[4])
        dones = np.logical_or(terminated, truncated)
        if self._mode is AutoresetMode.SAME_STEP:
            infos = [self._last_info(i, info, bool(dones[i])) for i, info in enumerate(infos)]
        elif dones.any():
            for i in np.flatnonzero(dones):
                infos[i]["terminal_observation"] = _each(lambda part, i=i: part[i].copy(), observation)
            with worker_losses(self.vector_env):
                first, reset_infos = self.vector_env.reset(options={"reset_mask": dones.copy()})
            reset_infos, observation = self._infos(reset_infos), self._own(first)
            for i in np.flatnonzero(dones):
                self.reset_infos[i] = reset_infos[i]
        for i, info in enumerate(infos):
            info["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
        return observation, rewards.astype(np.float32), dones, infos

    def _infos(self, infos: Any) -> list[dict[str, Any]]:
        return infos_by_environment(infos, self.num_envs)

    def _last_info(self, i: int, info: dict[str, Any], done: bool) -> dict[str, Any]:
        """Split what SAME_STEP gives at an episode's end: the last step's info is returned, the reset's kept."""
        last, final = info.pop("final_obs", None), info.pop("final_info", None)
        if not done:
            return info
        if last is None:
            raise InputError(f"infos['final_obs'] of {self.vector_env} must hold the last observation of each episode")
        if final is None:
            final, info = info, {}
        # RecordEpisodeStatistics stands outside, and adds this after the reset.
        elif isinstance(episode := info.get("episode"), dict) and {"r", "l"} <= set(episode):
            final["episode"] = info.pop("episode")
        self.reset_infos[i] = info
        final["terminal_observation"] = _each(lambda dtype, part: np.asarray(part, dtype)[()], self._dtypes, last)
        return final

    def _own(self, observation: Any) -> Any:
        """A copy: the vector environment may write the next step into the same arrays."""
        return _each(lambda dtype, part: np.array(part, dtype), self._dtypes, observation)

    def set_options(self, options: list[dict[str, Any]] | dict[str, Any] | None = None) -> None:
        """Set the options of the next reset, the same for all: Gymnasium's vector environments take one dict."""
        each = options if isinstance(options, list) else [options] * self.num_envs
        if len(each) != self.num_envs or not all(data_equivalence(one, each[0]) for one in each):
            raise InputError(f"options must be one dict, or {self.num_envs} that are equal, got {options}")
        super().set_options(options)

    def close(self) -> None:
        """Close the environments."""
        with contextlib.suppress(WorkerError), worker_losses(self.vector_env):
            self.vector_env.close()

    def get_images(self) -> Sequence[NDArray[Any] | None]:
        """A picture of each environment, (H, W, 3) uint8, where the render mode is "rgb_array"; else None."""
        frames: Any = self.vector_env.render() if self.render_mode == "rgb_array" else None
        return [None] * self.num_envs if frames is None else list(frames)

    def has_attr(self, attr_name: str) -> bool:
        """Whether all environments, or wrappers of theirs, have an attribute."""
        return self._has_single_ones and all(self._ask("has_wrapper_attr", attr_name))

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of each environment."""
        if attr_name == "render_mode":
            return [self.vector_env.render_mode for _ in self._get_indices(indices)]
        self._check_there(attr_name, indices)
        return self._ask("get_wrapper_attr", attr_name, indices=indices)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the environments, in the wrapper that has it, else in the outermost one."""
        self._ask("set_wrapper_attr", attr_name, value, indices=indices)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of the environments."""
        self._check_there(method_name, indices)
        return self._ask(method_name, *method_args, indices=indices, **method_kwargs)

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Whether the single environments have a wrapper, known by its class's own name."""
        if not self._has_single_ones:
            return [False for _ in self._get_indices(indices)]
        # Gymnasium writes wrappers as <Outer<Inner<Env instance>>>.
        return [f"<{wrapper_class.__name__}<" in text for text in self._ask("__str__", indices=indices)]

    def _check_there(self, name: str, indices: VecEnvIndices) -> None:
        if not all(self._ask("has_wrapper_attr", name, indices=indices)):  # an AttributeError would end a worker
            raise AttributeError(f"the environments of {self.vector_env} have no attribute {name!r}")

    def _ask(self, method: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        if not self._has_single_ones:
            raise InputError(f"{method!r} needs single environments, and {self._base} has none; make it with 'sync'")
        with worker_losses(self.vector_env):
            return self._answers(method, [range(self.num_envs)[i] for i in self._get_indices(indices)], args, kwargs)

    def _answers(self, method: str, chosen: list[int], args: Any, kwargs: dict[str, Any]) -> list[Any]:
        if isinstance(self._base, SyncVectorEnv):
            return [self._base.envs[i].get_wrapper_attr(method)(*args, **kwargs) for i in chosen]
        if chosen == list(range(self.num_envs)) or self._actions is not None:  # in the middle of a step this raises
            return list(self._base.call(method, *args, **kwargs))
        # Gymnasium has no call for some of the workers; this is what its own sends to all.
        for i in chosen:
            self._base.parent_pipes[i].send(("_call", (method, args, kwargs)))
        answers = [self._base.parent_pipes[i].recv() for i in chosen]
        failed = {i for i, (_, succeeded) in zip(chosen, answers, strict=True) if not succeeded}
        self._base._raise_if_errors([i not in failed for i in range(self.num_envs)])
        return [answer for answer, _ in answers]


class ProcessVecEnv(GymnasiumVecEnv):
    """Environments in worker processes for Stable-Baselines3: `GymnasiumVecEnv` around `ProcessVectorEnv`.

    Unlike those of `SubprocVecEnv`, its workers may start processes, import neither torch nor Stable-Baselines3, and
    end with their parent. An environment that raises, or a worker that dies, ends the vector with an error; to have an
    environment that raises made anew instead, put `RestartOnFault` around it. Arguments and errors as in
    `ProcessVectorEnv`.

    Example:
        >>> from functools import partial
        >>> venv = ProcessVecEnv([partial(gym.make, "CartPole-v1")] * 2)
        >>> venv.reset().shape
        (2, 4)
        >>> venv.close()
    """

    def __init__(
        self,
        env_fns: Sequence[Callable[[], gym.Env[Any, Any]]],
        start_method: str | None = None,
        *,
        close_grace_s: float = 10.0,
    ) -> None:
        workers = _InfosAsSent(env_fns, start_method, close_grace_s=close_grace_s)
        try:
            super().__init__(workers)
        except BaseException:
            workers.close()
            raise

    @property
    def processes(self) -> list[Any]:
        """The worker processes."""
        return self._base.processes

    def _infos(self, infos: Any) -> list[dict[str, Any]]:
        return [infos[i] for i in range(self.num_envs)]


class _InfosAsSent(ProcessVectorEnv):
    """Infos by the number of the environment: Gymnasium's arrays by key do not keep the type of every value."""

    def _add_info(self, vector_infos: dict[Any, Any], env_info: dict[str, Any], env_num: int) -> dict[Any, Any]:
        vector_infos[env_num] = env_info
        return vector_infos


def infos_by_environment(infos: Any, count: int) -> list[dict[str, Any]]:
    """Split the infos of a vector environment, arrays by key, into a dict for each environment, as it sent it.

    ``infos["_key"][i]`` says whether environment i sent "key"; a key without such a mask is everybody's.
    """
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


def _usable_mode(venv: VectorEnv[Any, Any, Any]) -> AutoresetMode:
    """The autoreset mode; refused where its steps are not those of Stable-Baselines3."""
    found = (venv.metadata or {}).get("autoreset_mode")
    wrappers: list[Any] = []
    base: Any = venv
    while isinstance(base, VectorWrapper):
        wrappers.append(base)
        base = base.env
    if found in (AutoresetMode.NEXT_STEP, AutoresetMode.NEXT_STEP.value):
        # A worker without shared memory forgets that it has been reset, and resets again at the next step.
        shared = isinstance(base, AsyncVectorEnv) and base.shared_memory and base.worker is None
        only_latents = all(isinstance(wrapper, VectorLatentObservation) for wrapper in wrappers)
        if only_latents and (shared or isinstance(base, SyncVectorEnv)):
            return AutoresetMode.NEXT_STEP
    if found not in (AutoresetMode.SAME_STEP, AutoresetMode.SAME_STEP.value):
        raise InputError(f"autoreset_mode of {venv} must be SAME_STEP, got {found}; make it with that")
    is_old = tuple(map(int, gym.__version__.split(".")[:2])) < (1, 4)
    for wrapper in wrappers:
        if is_old and isinstance(wrapper, RecordEpisodeStatistics | NormalizeReward):
            raise InputError(
                f"{type(wrapper).__name__} of gymnasium {gym.__version__} counts wrongly in autoreset mode SAME_STEP "
                "(1.4 is right). Put Stable-Baselines3's VecMonitor or VecNormalize around this in its place"
            )
    return AutoresetMode.SAME_STEP


def _dtype(what: str, space: spaces.Space[Any]) -> Any:
    """The dtype of a space of numbers."""
    if not isinstance(space, _PLAIN):
        raise InputError(
            f"{what} space must be Box, Discrete, MultiDiscrete or MultiBinary, got {space}; change the environments "
            "with a wrapper, such as gymnasium.wrappers.FlattenObservation"
        )
    return space.dtype


def _each(function: Callable[..., Any], first: Any, *others: Any) -> Any:
    """Call a function with the parts of some observations; its results, in the structure of the first one."""
    if isinstance(first, dict):
        return {name: function(part, *(other[name] for other in others)) for name, part in first.items()}
    if isinstance(first, tuple):
        return tuple(function(*parts) for parts in zip(first, *others, strict=True))
    return function(first, *others)
