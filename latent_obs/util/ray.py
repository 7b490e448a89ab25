"""A cluster of Ray: joining one, and running tasks on its nodes. Ray is imported here only when it is used."""

import contextlib
import importlib
import importlib.metadata
import os
import socket
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import BrokenExecutor, CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, get_args

from latent_obs.util.errors import InputError, MissingExtraError, check_choice, one_line, require

#: Where tasks run: in processes of this machine, or on the nodes of a cluster.
Engine = Literal["local", "ray"]
#: How often a task is tried again whose process or node died.
RETRIES = 3
_ANSWER_SECONDS = 30.0  # that an address may take


@contextlib.contextmanager
def joined(engine: Engine, address: str | None) -> Iterator[Any]:
    """`connect` for the engine "ray"; for "local" yields None, and an address is an `InputError`."""
    check_choice("engine", engine, get_args(Engine))
    if engine == "ray":
        with connect(address) as ray:
            yield ray
        return
    if address is not None:
        raise InputError(f"address {address} is of a Ray cluster: give --engine ray as well, or leave it out")
    yield None


@contextlib.contextmanager
def connect(address: str | None = None, *, rllib: bool = False) -> Iterator[Any]:
    """Be connected to a cluster of Ray inside the block. A connection that this process already has is used and kept.

    Args:
        address: "host:port" of the head node; "auto" for the cluster that this machine belongs to; "local" to start
            Ray on this machine, until the block ends. None is "auto" where there is such a cluster, and else "local".
        rllib: Whether RLlib will be used, which needs one version of Gymnasium.

    Yields:
        The module `ray`.

    Raises:
        MissingExtraError: Ray is not installed, or Gymnasium is of another version than RLlib needs.
        InputError: Nothing answers at the address within 30 seconds, or a cluster that this process cannot join.
    """
    # With `uv run`, Ray would send the working directory, with all runs in it, to each node.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its libraries' own lines
    os.environ.setdefault("RAY_task_oom_retries", str(RETRIES))  # without end by default
    ray: Any = require("ray", extra="ray", purpose="work on several machines")
    if os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] == "0":  # read when Ray is imported, which was perhaps before
        constants: Any = require("ray._private.ray_constants", extra="ray", purpose="work on several machines")
        constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = False
    if rllib:
        _check_gymnasium()
    if ray.is_initialized():
        yield ray
        return
    try:
        _wait_for_answer(address)
        settings: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "warning"}
        try:
            ray.init(address, **settings)
        except ConnectionError:
            # With an address Ray sends no token by itself. Not at once: without token, a cluster would lose its tasks.
            if address in (None, "auto", "local") or not _use_token():
                raise
            ray.init(address, **settings)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"address {address or '(this machine)'}: {one_line(error)}. If the cluster asks for a token, copy "
            "~/.ray/auth_token from its head node, and set RAY_AUTH_MODE=token"
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _wait_for_answer(address: str | None) -> None:
    """Check that something listens at the address that Ray will choose; Ray itself tries a dead one for minutes."""
    if "://" in (address or os.environ.get("RAY_ADDRESS") or ""):
        raise InputError(
            f"address {address or os.environ['RAY_ADDRESS']}: Ray Client is not supported. Give the command on a "
            "machine of the cluster, with --address auto, or as a job: ray job submit"
        )
    services: Any = require("ray._private.services", extra="ray", purpose="work on several machines")
    chosen: str | None = services.canonicalize_bootstrap_address(address)
    if chosen is None:
        return
    host, _, port = chosen.rpartition(":")
    deadline = time.monotonic() + _ANSWER_SECONDS
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), max(1.0, deadline - time.monotonic())).close()
            return
        except OSError as error:
            if time.monotonic() >= deadline:
                raise InputError(
                    f"address {address or chosen}: nothing answers at {chosen} for {_ANSWER_SECONDS:.0f} s "
                    f"({one_line(error)}). On the head node, `ray start --head` prints the address to give, and "
                    "`ray stop` removes that of a cluster that is no more"
                ) from None
        time.sleep(1.0)


def _use_token() -> bool:
    """Let Ray send the token of this user, if there is one; whether there is."""
    name = "ray._private.authentication.authentication_token_setup"
    setup: Any = require(name, extra="ray", purpose="work on several machines")
    return setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def _check_gymnasium() -> None:
    """Check that Gymnasium is of the version that the installed Ray asks for."""
    requirements: Any = require("packaging.requirements", extra="ray", purpose="work on several machines")
    found = importlib.metadata.version("gymnasium")
    for line in importlib.metadata.requires("ray") or []:
        wanted = requirements.Requirement(line)
        if wanted.name == "gymnasium" and wanted.marker and wanted.marker.evaluate({"extra": "rllib"}):
            if not wanted.specifier.contains(found, prereleases=True):
                raise MissingExtraError(
                    f"RLlib of Ray {importlib.metadata.version('ray')} needs gymnasium{wanted.specifier}, and {found} "
                    "is installed. Make an environment for it: uv venv .venv-ray && uv pip install --python .venv-ray "
                    "'latent-obs[agents,ray]'    (in a clone: ./uvw --ray run latent-obs …)"
                )
            return


class RayExecutor(ThreadPoolExecutor):
    """Run calls as tasks on the nodes of a cluster. A task is tried again, up to 3 times, if its process or node dies.

    All nodes need the same version of latent-obs and the same shared file system, which each task checks first. Tasks
    run in the working directory of this process. A future raises what its function raised, and further:

    - `BrokenExecutor`: the process or node died each time;
    - `InputError`: a node lacks latent-obs, a folder or a file; the message names it.

    Args:
        ray: The module, from `connect`.
        folder: A folder that tasks write to. It holds a hidden file until `shutdown`.
        also: Other files and folders that each node must see.
        cpus: What each task needs.
        at_once: The most tasks at a time; by default as many as the nodes that are there now have CPUs for.

    Raises:
        InputError: No node has so many CPUs, and `at_once` is not given.

    Example:
        >>> with connect() as ray, RayExecutor(ray, Path("runs")) as pool:  # doctest: +SKIP
        ...     pool.submit(pow, 2, 10).result()
        1024
    """

    def __init__(
        self, ray: Any, folder: Path, also: Collection[Path] = (), *, cpus: int = 1, at_once: int | None = None
    ) -> None:
        nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        fitting = sum(node // cpus for node in nodes)
        if not fitting and at_once is None:  # with it, nodes may be started on demand
            raise InputError(
                f"no node of the cluster has {cpus} CPUs, which a task needs: the largest has {max(nodes, default=0)}. "
                + ("Fewer --threads need less" if cpus > 1 else "Start a node, or say how many by --workers or --jobs")
            )
        super().__init__(at_once or fitting)
        self.at_once = at_once or fitting
        self._ray, self._refs, self._cancelled = ray, set[Any](), False
        self._token = folder / f".shared-{uuid.uuid4().hex}"
        self._token.touch()
        run_on_node = _for_nodes(str(Path.cwd()), {self._token: folder, **{path: path for path in also}}, _version())
        self._task = ray.remote(num_cpus=cpus, max_retries=RETRIES)(run_on_node)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Run a function that is found by its name on each node; arguments and outcome are pickled."""
        return super().submit(self._run, (fn, args, kwargs))

    def _run(self, call: tuple[Any, ...]) -> Any:
        errors = self._ray.exceptions
        ref = self._task.remote([self._ray.put(call)])  # in a list it is only read when the node was checked
        self._refs.add(ref)
        if self._cancelled:
            self._ray.cancel(ref)
        try:
            problem, outcome = self._ray.get(ref)
        except errors.RayTaskError as error:
            if isinstance(error.cause, errors.RayError):  # it could not be pickled
                raise RuntimeError(one_line(error.cause)) from None
            raise error.cause from None
        except errors.TaskCancelledError:
            raise CancelledError from None
        except errors.RayError as error:
            raise BrokenExecutor(one_line(error)) from None
        finally:
            self._refs.discard(ref)
        if problem:
            raise InputError(problem)
        return outcome

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Wait for all tasks; with `cancel_futures` running ones are interrupted as by Ctrl-C."""
        super().shutdown(wait=False, cancel_futures=cancel_futures)
        if cancel_futures:
            self._cancelled = True
            for ref in list(self._refs):
                self._ray.cancel(ref)
        super().shutdown(wait)
        self._token.unlink(missing_ok=True)


def _version() -> str | None:
    """The installed version of latent-obs."""
    return next((found.version for found in importlib.metadata.distributions(name="latent-obs")), None)


def _for_nodes(cwd: str, needed: Mapping[Path, Path], version: str | None) -> Callable[[list[Any]], tuple[str, Any]]:
    """A function that checks its node and runs a call; returns what the node lacks, or "", and the outcome."""

    # A function in a function is sent whole: it also runs, and reports, where latent-obs is not installed.
    def run_on_node(call: list[Any]) -> tuple[str, Any]:
        node = socket.gethostname()
        found = next((found.version for found in importlib.metadata.distributions(name="latent-obs")), None)
        if found != version:
            has = f"latent-obs {found}" if found else "no latent-obs"
            return f"node {node} has {has}, and this one {version}; install that on all nodes", None
        with contextlib.suppress(OSError):
            os.chdir(cwd)
        for path, name in needed.items():
            if not path.exists():
                return f"node {node} does not see {name}; all nodes need the same shared file system", None
        if not os.environ.get("CUDA_VISIBLE_DEVICES", "all"):
            del os.environ["CUDA_VISIBLE_DEVICES"]  # Ray hides GPUs from tasks that reserve none; here tasks share them
        ray: Any = importlib.import_module("ray")
        function, args, kwargs = ray.get(call[0])
        return "", function(*args, **kwargs)

    return run_on_node
