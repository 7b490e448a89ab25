"""The main script, which a worker process imports only if it needs something of it: scripts import torch, workers do
without.

`multiprocessing` has every process that it spawns import the main script first. But what makes an environment comes
along whole, by cloudpickle, and seldom needs that; then torch would take seconds and memory in each worker for nothing.
"""

import multiprocessing
import multiprocessing.spawn
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from typing import Any

import gymnasium as gym

_withholding = threading.RLock()
_withheld: list[dict[str, Any]] = []  # where the main script is, while nobody else is to know


@contextmanager
def withheld() -> Iterator[None]:
    """Processes that are started meanwhile, by "spawn" or "forkserver", do not import the main script at their
    start.
    """
    with _withholding:
        _withheld.append(_where_it_is())
        main = vars(sys.modules["__main__"])
        kept = {name: main[name] for name in ("__spec__", "__file__") if name in main}
        main["__spec__"] = None  # by these two it would be found
        main.pop("__file__", None)
        try:
            yield
        finally:
            main.update(kept)
            _withheld.pop()


def _where_it_is() -> dict[str, Any]:
    """What `multiprocessing` has new processes told of the main script: its name or its path; nothing in a notebook."""
    with _withholding:
        if _withheld:
            return _withheld[-1]
        preparation = multiprocessing.spawn.get_preparation_data("")
        return {key: value for key, value in preparation.items() if key.startswith("init_main_from")}


class Maker:
    """What makes an environment in a worker that was started without the main script, and imports that where it is
    needed.

    That is where something is asked for by its name there (its classes themselves come along by cloudpickle), or where
    an
    environment is not registered: the script may do it.

    Args:
        make: The function; or its bytes, from this very process, which are unpickled when it is called and not where
            the worker starts, so that an error in it can be told.

    Example:
        >>> from functools import partial
        >>> with withheld():
        ...     venv = gym.vector.AsyncVectorEnv([Maker(partial(gym.make, "CartPole-v1"))] * 2, context="spawn")
        >>> venv.reset()[0].shape
        (2, 4)
        >>> venv.close()
    """

    def __init__(self, make: Callable[[], Any] | bytes) -> None:
        self.made_in, self.make, self.main = os.getpid(), make, _where_it_is()

    def __call__(self) -> Any:
        """The environment."""
        lent = bool(self.main) and os.getpid() != self.made_in
        if lent:
            _lend(self.main)
        # The pipe's own way to unpickle, as this comes through a pipe as well.
        make: Any = ForkingPickler.loads(self.make) if isinstance(self.make, bytes) else self.make  # pyright: ignore
        try:
            return make()
        except Exception as error:
            if not lent or not _is_of_unknown_name(error):
                raise
            _import(self.main)
            return make()


def _lend(main: dict[str, Any]) -> None:
    """Have the main script imported as soon as somebody, such as an unpickler, asks for something in it."""
    bare = sys.modules["__main__"]

    def ask(name: str) -> Any:
        if not name.startswith("__"):
            _import(main)
            if sys.modules["__main__"] is not bare:
                return getattr(sys.modules["__main__"], name)
        raise AttributeError(f"module '__main__' has no attribute {name!r}")

    vars(bare)["__getattr__"] = ask


def _import(main: dict[str, Any]) -> None:
    """Import the main script, unless that has been done, as `multiprocessing` would have at the start."""
    vars(sys.modules["__main__"]).pop("__getattr__", None)  # it may ask for itself meanwhile
    process: Any = multiprocessing.current_process()
    process._inheriting = True  # a script that starts processes without asking for its name is told so
    try:
        multiprocessing.spawn.prepare(main)
    finally:
        del process._inheriting


def _is_of_unknown_name(error: BaseException | None) -> bool:
    """Whether an error, or one that it came of, is that no environment of such a name is registered."""
    while error is not None:
        if isinstance(error, gym.error.UnregisteredEnv):
            return True
        error = error.__cause__ or error.__context__
    return False
