"""One thing that the numbers of a report say."""

from dataclasses import dataclass, field
from typing import Literal

Level = Literal["good", "warning", "bad"]


@dataclass(frozen=True)
class Finding:
    """One thing that the numbers say.

    Attributes:
        level: "good", "warning" or "bad".
        topic: What it is about: "collapse", "information", "dimensions", "reconstruction", "probes", ...
        sentence: What was found, in words.
        numbers: The numbers it rests on, by name.
        suggestion: What to try next; empty where nothing is to be done.
        lost: Names of what an agent will not see.
    """

    level: Level
    topic: str
    sentence: str
    numbers: dict[str, float] = field(default_factory=dict)
    suggestion: str = ""
    lost: tuple[str, ...] = ()
