"""What can go wrong with the game, and when it will."""

from collections import deque
from typing import Literal, get_args

#: At a step - "crash": the process dies, and connections are refused until `StandInGame.revive`. "drop": this
#: connection is closed. "hang": this and all later messages of this connection go unanswered. "short": half a frame.
#: "empty": a frame of no bytes. "bad-json": an info that is not JSON.
#: At a reset, when the mission comes - "crash-reset", "drop-reset", "hang-reset": the same. "busy": the mission is
#: refused (0, MALMOBUSY), and the client asks again a second later.
Fault = Literal[
    "crash", "drop", "hang", "short", "empty", "bad-json", "crash-reset", "drop-reset", "hang-reset", "busy"
]
FAULTS: tuple[Fault, ...] = get_args(Fault)
AT_RESET: frozenset[Fault] = frozenset({"crash-reset", "drop-reset", "hang-reset", "busy"})


class FaultPlan:
    """The faults to come, each of which strikes once; and a crash at each multiple of `crash_every` steps."""

    def __init__(self, crash_every: int | None = None) -> None:
        self.crash_every = crash_every
        self._by_step: dict[int, list[Fault]] = {}
        self._next_step: deque[Fault] = deque()
        self._next_reset: deque[Fault] = deque()

    def add(self, kind: Fault, times: int = 1, at_step: int | None = None) -> None:
        """Plan a fault for the next steps or resets, or for the given step (or the first reset after it)."""
        if kind not in FAULTS:
            raise ValueError(f"no such fault: {kind!r}; there are {', '.join(FAULTS)}")
        kinds: list[Fault] = [kind] * times
        if at_step is not None:
            self._by_step.setdefault(at_step, []).extend(kinds)
        elif kind in AT_RESET:
            self._next_reset.extend(kinds)
        else:
            self._next_step.extend(kinds)

    def at_step(self, step: int) -> Fault | None:
        """What goes wrong at this step, if anything."""
        for kind in self._by_step.pop(step, ()):
            self.add(kind)
        if self.crash_every and step % self.crash_every == 0:
            return "crash"
        return self._next_step.popleft() if self._next_step else None

    def at_reset(self) -> Fault | None:
        """What goes wrong at this reset, if anything."""
        return self._next_reset.popleft() if self._next_reset else None
