"""A cluster of Ray: joining one, and running tasks on its nodes. Ray is imported here only when it is used."""

import contextlib
import importlib.metadata
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

from latent_obs.util.errors import InputError, MissingExtraError, one_line, require

ANSWER_SECONDS = 30.0
"""How long an address may take to answer."""


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
    ray: Any = require("ray", extra="ray", purpose="work on several machines")
    if rllib:
        _check_gymnasium()
    if ray.is_initialized():
        yield ray
        return
    try:
        _wait_for_answer(address)
        ray.init(address, include_dashboard=False, log_to_driver=False, logging_level="warning")
    except (ConnectionError, RuntimeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"address {address or '(this machine)'}: {one_line(error)}") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _wait_for_answer(address: str | None) -> None:
    """Check that something listens at the address that Ray will choose; Ray itself tries a dead one for minutes."""
    if "://" in (address or os.environ.get("RAY_ADDRESS") or ""):
        raise InputError(
            f"address {address or os.environ['RAY_ADDRESS']}: Ray Client is not supported. Give the command on a machine "
            "of the cluster, with --address auto, or as a job: ray job submit"
        )
    services: Any = require("ray._private.services", extra="ray", purpose="work on several machines")
    chosen: str | None = services.canonicalize_bootstrap_address(address)
    if chosen is None:
        return
    host, _, port = chosen.rpartition(":")
    deadline = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), max(1.0, deadline - time.monotonic())).close()
            return
        except OSError as error:
            if time.monotonic() >= deadline:
                raise InputError(
                    f"address {address or chosen}: nothing answers at {chosen} for {ANSWER_SECONDS:.0f} s "
                    f"({one_line(error)}). On the head node, `ray start --head` prints the address to give, and "
                    "`ray stop` removes that of a cluster that is no more"
                ) from None
        time.sleep(1.0)


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
