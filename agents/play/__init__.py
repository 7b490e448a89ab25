"""Playing with a trained agent: its policy on new observations, live windows and videos."""

from typing import NamedTuple


class EpisodeEnd(NamedTuple):
    """How an episode ended."""

    total: float
    """Its return, in the game's own rewards."""
    length: int
    success: bool | None
    """None where the task defines none."""

    def __str__(self) -> str:
        word = {None: "", True: ", a success", False: ", no success"}[self.success]
        return f"return {self.total:.1f}{word}"
