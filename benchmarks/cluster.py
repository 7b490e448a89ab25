"""How many environment steps a second 1 to 512 runners of RLlib train on: a model, and two nodes beside it.

One iteration of synchronous PPO has four parts, one after the other:

1. *Runners*, all at the same time, one core each: `envs` games make `fragment` steps. A step costs the game (frame skip
   and resize included), its share of encoding a batch of `envs` frames, and RLlib's own work: the policy, connectors,
   episodes, and writing these to Ray's object store.
2. *Driver*: for each runner a call, its metrics, and reading its episodes, after they have crossed the network.
3. *Learner*: prepares all steps (GAE), then `epochs` x steps / `minibatch` gradient steps. G learners share the steps,
   and average their gradients after each gradient step.
4. *Weights*: written once, then a call for each runner, which fetches and loads them.

    steps/s = N * envs * fragment / (runners + driver + network + learner + weights)

Only the first part is divided by the number of runners N, so this is Amdahl's law: the rate never passes that of the
other parts. An asynchronous algorithm (APPO, IMPALA) does all parts at the same time: its rate is that of the slowest.

All constants are measured here but the network's speed, which is assumed. They are CPU seconds, with the games' own
processes, because these depend little on what else the machine does; on idle cores wall time is the same, as each part
computes on one thread without waiting. Then PPO runs on two nodes with a core each (`ray.cluster_utils.Cluster`), with
one and with two runners, beside what the model predicts: CPU seconds of a runner, and of the driver with its learner.
Wall time can be compared on idle cores only. Four minutes, and three times as long on a machine with ten other
processes. Needs the extras ray and vizdoom.
"""

import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import tyro
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from benchmarks.common import QUICKSTART, interleaved, machine_line, markdown_table
from latent_obs import FrozenEncoder
from latent_obs.util.device import torch_threads

SMALL, LARGE = 64, 2048  # minibatches: Stable-Baselines3's, and one with which a learner keeps up with more runners
EPOCHS = 10  # Stable-Baselines3's
FRAME_BYTES = 64 * 64 * 3


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    env: str = "VizdoomBasic-v1"
    """A registered environment with pixels."""
    frame_skip: int = 4
    """Game frames per step."""
    envs: int = 8
    """Environments of a runner."""
    fragment: int = 64
    """Steps of each environment between two updates."""
    gbit: float = 10.0
    """Speed of the network, in Gbit/s: assumed, not measured."""
    rounds: int = 5
    """Interleaved repeats."""
    iterations: int = 3
    """Measured iterations of PPO with one runner, and with two."""


@dataclass(frozen=True)
class Constants:
    """What the model is made of: seconds, unless they are bytes. "A step" is one of one environment."""

    game: float
    """A step of the game."""
    encode: float
    """A step's share of encoding a batch."""
    act: float
    """A step in RLlib's runner, without game and encoder."""
    pack: float
    """To write a step to the object store."""
    unpack: float
    """To read it."""
    call: float
    """The driver's for one call of one runner."""
    metrics: float
    """The driver's for the metrics of one runner."""
    prepare: float
    """The learner's for a step, before any gradient step."""
    small: float
    """A gradient step on 64 steps."""
    large: float
    """A gradient step on 2,048 steps."""
    load: float
    """To write the weights, and to load them in a runner."""
    step_bytes: float
    """Of a step in the object store."""
    weight_bytes: float
    """Of the weights."""


@dataclass(frozen=True)
class Plan:
    """A training to predict."""

    runners: int
    envs: int = 8
    fragment: int = 64
    epochs: int = EPOCHS
    minibatch: int = SMALL
    learners: int = 1
    bytes_per_second: float = 1.25e9

    @property
    def steps(self) -> int:
        """Of an iteration."""
        return self.runners * self.envs * self.fragment


def parts(constants: Constants, plan: Plan) -> dict[str, float]:
    """Seconds of an iteration, by what needs them.

    Example:
        >>> constants = Constants(1e-3, 0, 0, 0, 0, 0, 0, 0, 5e-3, 0, 0, 0, 0)
        >>> {name: round(s, 3) for name, s in parts(constants, Plan(runners=2)).items() if s}
        {'game': 0.512, 'learner': 0.8}
    """
    own = plan.envs * plan.fragment
    gradient = {SMALL: constants.small, LARGE: constants.large}[plan.minibatch]
    if plan.learners > 1:  # each sends its gradients and receives their mean
        gradient += constants.call + 2 * constants.weight_bytes / plan.bytes_per_second
    gradient_steps = plan.epochs * plan.steps / (plan.minibatch * plan.learners)
    crossing = plan.steps * constants.step_bytes + plan.runners * constants.weight_bytes
    return {
        "game": own * constants.game,
        "encoder": own * constants.encode,
        "RLlib's runner": own * (constants.act + constants.pack),
        "driver": plan.runners * (constants.call + constants.metrics) + plan.steps * constants.unpack,
        "network": crossing / plan.bytes_per_second,
        "learner": plan.steps * constants.prepare / plan.learners + gradient_steps * gradient,
        "weights": plan.runners * constants.call + constants.load,
    }


def synchronous(constants: Constants, plan: Plan) -> tuple[float, str]:
    """Steps per second of one part after the other, and the part that takes most time."""
    seconds = parts(constants, plan)
    return plan.steps / sum(seconds.values()), max(seconds, key=lambda name: seconds[name])


def asynchronous(constants: Constants, plan: Plan) -> tuple[float, str]:
    """Steps per second of all parts at the same time, and the slowest."""
    seconds = parts(constants, plan)
    seconds["runners"] = sum(seconds.pop(name) for name in ("game", "encoder", "RLlib's runner"))
    seconds["driver"] += seconds.pop("weights")
    slowest = max(seconds, key=lambda name: seconds[name])
    return plan.steps / seconds[slowest], slowest


# --- measuring --------------------------------------------------------------------------------------------------------


class FreeVectorEnv(VectorEnv[Any, Any, Any]):
    """Latents drawn beforehand and episodes of 50 steps: a runner's time in it is RLlib's own."""

    def __init__(self, num_envs: int, space: gym.Space[Any], action_space: gym.Space[Any]) -> None:
        self.num_envs, self.metadata = num_envs, {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.single_observation_space, self.observation_space = space, batch_space(space, num_envs)
        self.single_action_space, self.action_space = action_space, batch_space(action_space, num_envs)
        self.drawn = np.random.default_rng(0).standard_normal((num_envs, *(space.shape or ())), np.float32)
        self.steps = 7 * np.arange(num_envs)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return self.drawn.copy(), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self.steps += 1
        ended = self.steps % 51 == 0
        return self.drawn.copy(), np.ones(self.num_envs), ended, np.zeros(self.num_envs, bool), {}


def ppo(options: Options, env: str, env_config: dict[str, Any], runners: int) -> Any:
    """RLlib's settings for PPO with the network and the updates of Stable-Baselines3's."""
    from ray.rllib.algorithms.ppo import PPOConfig  # pyright: ignore[reportMissingImports]
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig  # pyright: ignore

    return (
        PPOConfig()
        .environment(env, env_config=env_config)
        .env_runners(
            num_env_runners=runners,
            num_envs_per_env_runner=options.envs,
            gym_env_vectorize_mode=gym.VectorizeMode.VECTOR_ENTRY_POINT,  # pyright: ignore
            rollout_fragment_length=options.fragment,
            sample_timeout_s=None,
        )
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[64, 64], fcnet_activation="tanh"))
        .training(
            train_batch_size_per_learner=max(1, runners) * options.envs * options.fragment,
            minibatch_size=SMALL,
            num_epochs=EPOCHS,
            lr=3e-4,
        )
    )


def cpu_seconds(process: psutil.Process) -> float:
    """CPU seconds of a process and of those that it started, such as its games."""
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        times = one.cpu_times()
        total += times.user + times.system
    return total


def timed(call: Callable[[], object], units: int) -> Callable[[], float]:
    """A measurement of a call: CPU seconds per unit, of this process and its games."""
    own = psutil.Process()

    def measured() -> float:
        games = cpu_seconds(own) - sum(own.cpu_times()[:2])
        began = time.process_time()
        call()
        seconds = time.process_time() - began
        return (seconds + cpu_seconds(own) - sum(own.cpu_times()[:2]) - games) / units

    return measured


def measure(options: Options, env_config: dict[str, Any]) -> Constants:
    """Measure all constants, interleaved, and print them."""
    import ray  # pyright: ignore[reportMissingImports]
    from ray import cloudpickle  # pyright: ignore[reportMissingImports]
    from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner  # pyright: ignore[reportMissingImports]
    from ray.rllib.utils.metrics.metrics_logger import MetricsLogger  # pyright: ignore[reportMissingImports]

    from latent_obs.rllib import env_creator

    venv = env_creator({**env_config, "num_envs": options.envs})
    games, encoder = venv.env.env, venv.env.observation_encoder
    frames = games.reset(seed=0)[0]
    actions = [venv.action_space.sample() for _ in range(32)]
    spaces = {"space": venv.single_observation_space, "action_space": venv.single_action_space}
    config = ppo(options, "free", spaces, runners=0)
    runner = SingleAgentEnvRunner(config=config, worker_index=0)
    learner = config.build_learner(spaces={"default_policy": tuple(spaces.values())})
    steps = options.envs * options.fragment

    def act() -> list[Any]:
        return runner.sample(num_timesteps=steps)

    many = runner.sample(num_timesteps=LARGE)
    episodes = act()
    metrics = runner.get_metrics()
    weights = learner.get_state(components="rl_module", inference_only=True)
    written = ray.put(episodes)

    class Idle:
        def call(self) -> None:
            """Return at once."""

    idle = ray.remote(num_cpus=0)(Idle).remote()
    ray.get(idle.call.remote())

    arms = {
        "game": timed(lambda: [games.step(action) for action in actions], len(actions) * options.envs),
        "encode": timed(lambda: [encoder(frames) for _ in range(options.fragment)], steps),
        "act": timed(act, steps),
        "pack": timed(lambda: [ray.put(episodes) for _ in range(10)], 10 * steps),
        "unpack": timed(lambda: [ray.get(written) for _ in range(10)], 10 * steps),
        "call": timed(lambda: ray.get([idle.call.remote() for _ in range(32)]), 32),
        "metrics": timed(lambda: MetricsLogger(root=True).aggregate([metrics] * 32, key="runners"), 32),
        "load": timed(lambda: [runner.set_state(ray.get(ray.put(weights))) for _ in range(5)], 5),
        "one large": timed(lambda: learner.update(episodes=many, num_epochs=1, minibatch_size=LARGE), 1),
        "three large": timed(lambda: learner.update(episodes=many, num_epochs=3, minibatch_size=LARGE), 1),
        "small": timed(lambda: learner.update(episodes=episodes, num_epochs=3, minibatch_size=SMALL), 1),
    }
    for arm in arms.values():
        arm()
    began = os.getloadavg()[0]
    found = {name: statistics.median(values) for name, values in interleaved(arms, options.rounds).items()}
    print(f"Constants: medians of {options.rounds} rounds, load {began:.1f} to {os.getloadavg()[0]:.1f}\n", flush=True)
    runner.stop()
    venv.close()
    one, three, small = (found.pop(name) for name in ("one large", "three large", "small"))
    large = (three - one) / 2
    prepare = (one - large) / LARGE
    return Constants(
        **found,
        prepare=prepare,
        large=large,
        small=(small - prepare * steps) / (3 * steps / SMALL),
        step_bytes=len(cloudpickle.dumps(episodes)) / steps,
        weight_bytes=len(cloudpickle.dumps(weights)),
    )


def iterations(options: Options, env_config: dict[str, Any], runners: int) -> dict[str, float]:
    """Medians over iterations of PPO: wall seconds, and CPU seconds of a runner and of the driver with its learner."""
    algorithm = ppo(options, "latent-obs", env_config, runners).build_algo()
    try:
        pids = algorithm.env_runner_group.foreach_env_runner(lambda _: os.getpid(), local_env_runner=False)
        processes = [psutil.Process(pid) for pid in pids]
        algorithm.train()
        found = []
        for _ in range(options.iterations):
            wall, driver, began = time.perf_counter(), time.process_time(), [cpu_seconds(one) for one in processes]
            algorithm.train()
            ended = [cpu_seconds(one) for one in processes]
            each = statistics.mean(b - a for a, b in zip(began, ended, strict=True))
            found.append((time.perf_counter() - wall, each, time.process_time() - driver))
        names = ("wall", "a runner", "driver, learner")
        return dict(zip(names, map(statistics.median, zip(*found, strict=True)), strict=True))
    finally:
        algorithm.stop()


@contextmanager
def two_nodes() -> Iterator[None]:
    """A cluster of two nodes with a core each, on this machine."""
    import ray  # pyright: ignore[reportMissingImports]
    from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]

    # Ray's workers have niceness 15 by default: on a machine with other work they would wait for minutes.
    os.environ.setdefault("RAY_worker_niceness", "0")
    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 200_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        cluster.add_node(**node)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def constants_table(constants: Constants) -> str:
    """What was measured."""
    rows = [
        ["runner: a step of the game, frame skip 4", f"{constants.game * 1e6:,.0f} µs"],
        ["runner: its share of encoding eight frames", f"{constants.encode * 1e6:,.0f} µs"],
        ["runner: RLlib's own work for a step", f"{constants.act * 1e6:,.0f} µs"],
        ["runner: writing a step to the object store", f"{constants.pack * 1e6:,.1f} µs"],
        ["driver: reading it", f"{constants.unpack * 1e6:,.1f} µs"],
        ["driver: a call of a runner", f"{constants.call * 1e6:,.0f} µs"],
        ["driver: the metrics of a runner", f"{constants.metrics * 1e6:,.0f} µs"],
        ["learner: preparing a step", f"{constants.prepare * 1e6:,.0f} µs"],
        [f"learner: gradient steps on {SMALL}, per second", f"{1 / constants.small:,.0f}"],
        [f"learner: gradient steps on {LARGE:,}, per second", f"{1 / constants.large:,.0f}"],
        ["writing the weights and loading them", f"{constants.load * 1e3:.1f} ms"],
        ["bytes of a step (256 latents: 1,024)", f"{constants.step_bytes:,.0f}"],
        ["bytes of the weights", f"{constants.weight_bytes:,.0f}"],
    ]
    return markdown_table(["constant", "CPU time"], rows)


def model_table(constants: Constants, options: Options) -> str:
    """Predictions for 1 to 512 runners."""
    rows = []
    for runners, learners in ((1, 1), (8, 1), (64, 1), (512, 1), (512, 8)):
        plan = Plan(runners, options.envs, options.fragment, learners=learners, bytes_per_second=options.gbit / 8 * 1e9)
        small, small_binds = synchronous(constants, plan)
        large, large_binds = synchronous(constants, replace(plan, minibatch=LARGE))
        most, most_binds = asynchronous(constants, replace(plan, minibatch=LARGE, epochs=1))
        rows.append(
            [
                f"{runners}, {learners}",
                f"{small:,.0f} ({small_binds})",
                f"{large:,.0f} ({large_binds})" if plan.steps >= LARGE else "fewer steps",
                f"{most:,.0f} ({most_binds})",
                f"{most * constants.step_bytes / 1e6:,.1f}",
                f"{most * (constants.step_bytes + FRAME_BYTES - 4 * 256) / 1e6:,.1f}",
            ]
        )
    header = ["runners, learners", f"PPO {EPOCHS}/{SMALL}", f"PPO {EPOCHS}/{LARGE}", f"asynchronous 1/{LARGE}"]
    return markdown_table([*header, "MB/s of latents", "of frames"], rows)


def main(options: Options) -> None:
    """Measure and print."""
    from ray.tune.registry import register_env  # pyright: ignore[reportMissingImports]

    print(machine_line(), flush=True)
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)  # notes for those who come from its older interfaces
    with tempfile.TemporaryDirectory() as folder, torch_threads(1), two_nodes():
        from latent_obs.rllib import env_creator

        register_env("latent-obs", env_creator)
        register_env("free", lambda config: FreeVectorEnv(**config))
        encoder = Path(folder) / "encoder"
        FrozenEncoder.random(QUICKSTART, device="cpu").save(encoder)
        env_config = {
            "env": options.env,
            "encoder": str(encoder),
            "latent_only": True,
            "frame_skip": options.frame_skip,
        }
        constants = measure(options, env_config)
        print(constants_table(constants), flush=True)
        print(f"\nPredicted steps/s, and what takes most time:\n\n{model_table(constants, options)}\n", flush=True)
        rows = []
        for runners in (1, 2):
            plan = Plan(runners, options.envs, options.fragment)
            seconds = parts(constants, plan)
            predicted = {
                "a runner": seconds["game"] + seconds["encoder"] + seconds["RLlib's runner"],
                "driver, learner": seconds["driver"] + seconds["learner"] + seconds["weights"],
            }
            predicted["wall"] = sum(predicted.values())  # nothing crosses a network here
            for name, measured in iterations(options, env_config, runners).items():
                error = f"{predicted[name] / measured - 1:+.0%}"
                rows.append([f"{runners}, {name}", f"{predicted[name]:.2f}", f"{measured:.2f}", error])
        print(f"PPO {EPOCHS}/{SMALL} on two nodes, seconds of an iteration; load {os.getloadavg()[0]:.1f}:\n")
        print(markdown_table(["runners, what", "predicted", "measured", "error"], rows))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
