"""How many threads torch computes with, for a while."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Set torch's threads inside the block, and put them back after it.

    Beside worker processes that play a game on the same cores, one thread is faster for small networks: more of them
    wait for each other at the end of each layer.

    Args:
        count: Threads; None leaves them as they are.

    Example:
        >>> with torch_threads(1):
        ...     torch.get_num_threads()
        1
    """
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
