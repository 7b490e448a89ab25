"""`compare()`: make the runs of a study that are missing, and say what they tell."""

from collections.abc import Callable
from pathlib import Path

from agents.compare.engine import only_one, run_all
from agents.compare.files import read_json
from agents.compare.plan import plan_runs
from agents.compare.results import Results, collect
from agents.compare.study import Study, study_from
from latent_obs.atomic import write_json
from latent_obs.errors import InputError


def compare(
    study: Study,
    out: str | Path,
    *,
    jobs: int | None = None,
    threads: int | None = None,
    say: Callable[[str], object] = print,
) -> Results:
    """Train and judge every arm of every task with every seed.

    Finished runs are taken as they are, unfinished ones go on, and what a study has more than before is added.

    Args:
        study: What to compare.
        out: The folder of all results.
        jobs: Runs at once; half the cores by default, at least 1.
        threads: Threads that torch computes with in each; cores / jobs by default.
        say: Where messages go.

    Raises:
        InputError: A setting will not do, or runs in the folder were made with other settings; before training starts.
        KeyboardInterrupt: It was stopped; the same call goes on.
    """
    out = Path(out)
    runs = plan_runs(study, out)
    with only_one(out):
        write_json(out / "study.json", study.to_json())
        run_all(runs, jobs=jobs, threads=threads, say=say)
    return collect(study, out)


def saved_study(out: str | Path) -> Study:
    """The study that was last begun in a folder.

    Raises:
        InputError: There is none.
    """
    values = read_json(Path(out) / "study.json")
    if not isinstance(values, dict):
        raise InputError(f"{out} holds no comparison (no study.json); latent-obs compare makes one")
    return study_from(values, Path(out))
