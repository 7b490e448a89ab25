"""What the finished runs of a study have given."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agents.compare.files import read_json
from agents.compare.plan import Planned, plan_runs
from agents.compare.study import Study


@dataclass(frozen=True)
class Results:
    """Raw numbers of a study, finished or not.

    Attributes:
        study: What is compared.
        runs: Numbers of each finished run, as `agents.compare.worker` writes them, by task and arm, in the order of seeds.
        random: Returns of the random policy on each task that has them.
        missing: Name of each run without numbers, and why: "not finished", or how it failed.
    """

    study: Study
    runs: dict[str, dict[str, list[dict[str, Any]]]]
    random: dict[str, list[float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"study": self.study.to_json(), "runs": self.runs, "random": self.random, "missing": self.missing}


def collect(study: Study, out: Path) -> Results:
    """Read the numbers of all finished runs of a study.

    Args:
        study: What is compared.
        out: Its folder.

    Raises:
        InputError: A setting of the study will not do.
    """
    results = Results(study, {task: {arm: [] for arm in study.arms} for task in study.tasks})
    for run in plan_runs(study, out):
        numbers = read_json(run.file(".json"))
        if numbers is None:
            results.missing[run.name] = _why(run)
        elif run.kind == "random":
            results.random[run.task] = numbers["final"]["returns"]
        else:
            results.runs[run.task][run.arm].append(numbers)
    return results


def _why(run: Planned) -> str:
    failed = read_json(run.file(".failed.json"))
    return f"failed: {failed.get('reason')}" if failed else "not finished"
