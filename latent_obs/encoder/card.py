"""The files that are pushed with an encoder, and its model card, made of numbers that other commands have written.

The frames come from the encoder's provenance and the index of its frames, errors and probes from `report/report.json`
beside the encoder, returns from `compare.json` and agents' run folders beside the run or above it. Nothing is measured
here. What is of another encoder is left out.
"""

import contextlib
import json
import math
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from latent_obs.encoder.folder import EncoderFolder, locate, parse, read_files
from latent_obs.util.errors import InputError, check_type, one_line, parse_json, require
from latent_obs.util.hub import Push, card_of, table
from latent_obs.util.words import counted

_TEMPLATE = Path(__file__).parent / "templates" / "card.md.j2"
_REPORT = ("report.html", "pictures/reconstructions.png")
#: The indexes of extracted frames: vae_training.data.frames.index_files.
_INDEX = re.compile(r"frames(?:\.shard-[0-9]+-of-[0-9]+)?\.json")
_METRICS = {"r2": "R²", "auroc": "AUROC", "balanced_accuracy": "balanced accuracy"}
_MOST_PROBES = 20  # rows of a table


class Returns(NamedTuple):
    """What an agent of a run folder reaches."""

    env: str
    algorithm: str
    observation: str
    which: str  # "best" or "last"
    steps: int
    mean: float
    error: float | None  # the standard error of the mean
    episodes: int
    success: float | None  # the share of episodes that were a success
    random: float | None  # mean return of the random policy
    during_training: bool  # by the evaluation that chose the agent, so a little too high


def encoder_push(source: Path, repo_id: str, license: str) -> Push:
    """The files of an encoder folder, or of the run folder that it is in, with its report, and their card.

    Raises:
        EncoderFolderError: The folder is missing or damaged.
        InputError: A file that the card is made of is damaged.
        MissingExtraError: huggingface_hub is not installed.
    """
    hub = require("huggingface_hub", extra="hub", purpose="write a model card")
    folder = locate(source).resolve()
    own = read_files(folder)
    if others := [name for name in own if not name.endswith((".json", ".safetensors", "SHA256SUMS"))]:
        raise InputError(f"{folder} lists {', '.join(others)}: only JSON and safetensors are pushed. Export it anew")
    files: dict[str, Path | bytes] = dict(own)
    read = parse(folder, own)
    run = folder.parent if folder.name == "encoder" else folder
    report, why_none = _report(folder.parent / "report", read)
    if report is not None:
        found = {f"report/{name}": folder.parent / "report" / name for name in _REPORT}
        files |= {name: file for name, file in found.items() if file.exists()}
    frames = _frames(read.provenance)
    compared = list(_comparisons(run, read))
    agents = list(_agents(run, own))
    envs = [*frames["envs"], *(task["env"] for _, task in compared), *(agent.env for agent in agents)]
    data = hub.ModelCardData(
        library_name="latent-obs",
        license=license,
        pipeline_tag="image-feature-extraction",
        tags=["latent-obs", "reinforcement-learning", "representation-learning", *dict.fromkeys(envs)],
        datasets=frames["datasets"] or None,
        model_name=repo_id.split("/")[1],
        eval_results=[*_errors(report, hub), *(mean_reward(agent, hub) for agent in agents)] or None,
    )
    values = {
        "name": repo_id.split("/")[1],
        "repo_id": repo_id,
        "license": license,
        "module": read.module,
        "needs_code": read.module is not None and "timm" not in read.module,  # a network of timm is made again
        "packages": read.provenance.get("packages"),
        "contract": read.contract,
        "latent_dim": read.latent_dim,
        "components": 0 if read.layers is None else read.layers.components,
        "weights": {
            f"{name}.safetensors": (sum(map(Tensor.numel, weights.values())), len(own[f"{name}.safetensors"]))
            for name, weights in (("decoder", read.decoder_weights), ("encoder", read.encoder))
            if weights is not None
        },
        "frames": frames,
        "report": report,
        "picture": "report/pictures/reconstructions.png" in files,
        "errors": None if report is None else _error_table(report),
        "probes": None if report is None else _probe_table(report),
        "compared": [(name, task, _return_table(task)) for name, task in compared],
        "agents": _agent_table(agents),
        "env": next(iter(envs), None),
    }
    notes = [f"No numbers of a report: {why_none}. latent-obs report {source} makes one."] if report is None else []
    if not compared and not agents:
        notes.append(f"No returns: no comparison and no agent with this encoder was found beside {run} or above it.")
    return Push(repo_id, files, lambda commit: card_of(_TEMPLATE, data, {**values, "commit": commit}), notes)


def _json(file: Path) -> dict[str, Any]:
    return parse_json(file.read_bytes(), dict[str, Any], file)


def _entries(values: Mapping[str, Any], key: str, file: Path) -> dict[str, dict[str, Any]]:
    """The entries of an index, by name."""
    found = values.get(key, {})
    check_type(f"{file}: {key}", found, dict[str, dict[str, Any]])
    return found


def _frames(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """How many frames an encoder was trained on, and where they come from, if their folder is still there."""
    settings, trained_on = provenance.get("settings") or {}, provenance.get("trained_on") or []
    check_type("settings of the provenance", settings, dict[str, Any])
    check_type("trained_on of the provenance", trained_on, list[dict[str, Any]])
    names = {str(each.get("file")) for each in trained_on}
    folder = Path(str(settings.get("frames") or "."))
    sources: list[str] = []
    envs: list[str] = []
    datasets: list[str] = []
    if trained_on and (file := folder / "recording.json").exists():
        recorded = [each for name, each in _entries(_json(file), "files", file).items() if name in names]
        for each in recorded:
            how = {key: each.get(key) for key in ("policy", "frame_skip") if each.get(key) is not None}
            agent = " by a trained agent" if each.get("agent") else ""
            more = ", ".join(f"{key} {value}" for key, value in how.items() if not (agent and key == "policy"))
            env = str(each.get("env"))
            sources.append(f"recorded in {env}{agent}" + (f" ({more})" if more else ""))
            envs.append(env)
    for file in sorted(folder.glob("frames*.json")) if trained_on else []:  # one for each shard
        if not _INDEX.fullmatch(file.name):
            continue
        for name, entry in _entries(_json(file), "recordings", file).items():
            check_type(f"{file}: files of {name}", entry.get("files"), list[dict[str, Any]])
            if names & {str(part.get("file")) for part in entry["files"]}:
                sources.append(f"extracted from recordings of the kind {entry.get('kind')}")
                if found := re.match(r"hf://datasets/([\w.-]+/[\w.-]+)", str(entry.get("source"))):
                    datasets.append(found[1])
    return {
        "count": sum(int(each.get("frames", 0)) for each in trained_on),
        "files": len(names),
        "sources": list(dict.fromkeys(sources)),
        "envs": list(dict.fromkeys(envs)),
        "datasets": sorted(set(datasets)),
    }


def _report(folder: Path, read: EncoderFolder) -> tuple[dict[str, Any] | None, str]:
    """The numbers of a report on this very encoder, or None and why there are none."""
    file = folder / "report.json"
    if not file.exists():
        return None, f"there is no {file}"
    report, provenance = _json(file), read.provenance
    for name, kind in (("encoder", dict[str, Any]), ("headline", str), ("frames", dict[str, Any])):
        check_type(f"{file}: {name}", report.get(name), kind)
    about = report["encoder"]
    seconds = (about.get("training_seconds") or 0.0, provenance.get("training_seconds") or 0.0)
    same = about.get("step") == provenance.get("step") and math.isclose(*seconds, rel_tol=1e-4)
    layers = {} if read.layers is None else read.layers.to_json()
    one = about.get("architecture") or {}
    same = same and all(one.get(name) == layers.get(name) for name in ("img_shape", "latent_dim"))
    same = same and about.get("module") == read.module
    if "sha256" in about:  # not in older reports
        same = about["sha256"] == read.checksums["encoder.safetensors"]
    if not same:
        return None, f"{file} is of another encoder"
    return report, ""


def _error_table(report: Mapping[str, Any]) -> str | None:
    found = report.get("reconstruction")
    if not found:
        return None
    rows = [
        [
            {"encoder": "this encoder", "pca": "PCA"}.get(name, name),
            f"{s['mse']:.3g}",
            f"{s['psnr_db']:.1f}",
            f"{s['ssim']:.3f}",
        ]
        for name, s in found["scores"].items()
    ]
    return table(["reconstructions by", "squared error", "PSNR [dB]", "SSIM"], rows)


def _probe_table(report: Mapping[str, Any]) -> str | None:
    found = report.get("probes")
    if not found:
        return None
    scores = {(r["target"], r["representation"], r["head"]): r["scores"][0] for r in found["results"]}

    def shown(target: str, representation: str) -> str:
        score = scores.get((target, representation, "linear"))
        if score is None:
            return "–"
        interval = "" if score["low"] is None else f" [{score['low']:.2f}, {score['high']:.2f}]"
        return f"{score['value']:.2f}{interval}"

    rows = [
        [kept["target"], _METRICS.get(metric["metric"], metric["metric"]), *who, kept["verdict"]]
        for kept in found["keeps"][:_MOST_PROBES]
        if (metric := scores.get((kept["target"], "latent", "linear")))
        and (who := [shown(kept["target"], name) for name in ("latent", "PCA")])
    ]
    heads = ["known value", "score", "from the latents [95%]", "from PCA [95%]", "the latents have it"]
    left = len(found["keeps"]) - _MOST_PROBES
    return table(heads, rows) + (f"\n\nThe report has {left} more." if left > 0 else "")


def _comparisons(run: Path, read: EncoderFolder) -> Iterator[tuple[str, dict[str, Any]]]:
    """Tasks of comparisons in which agents were trained on this encoder, with those arms that it concerns."""
    for folder in _near(run):
        if not (file := folder / "compare.json").exists():
            continue
        try:
            for name, task in _json(file)["summary"]["tasks"].items():
                latent = {arm: a for arm, a in task["arms"].items() if a["observation"] == "latent"}
                weights = read.checksums["encoder.safetensors"]
                own = [arm for arm, a in latent.items() if a.get("settings", {}).get("encoder") == weights]
                arms = {arm: a for arm, a in task["arms"].items() if arm in own or a["observation"] != "latent"}
                if own:
                    yield name, {**task, "arms": arms}
        except (InputError, KeyError, TypeError, AttributeError):  # of another program
            continue


def _near(run: Path) -> list[Path]:
    """Folders beside a run, and those above it."""
    beside = sorted(run.parent.iterdir()) if os.access(run.parent, os.R_OK) else [run]
    return [each for each in (*beside, *run.parents) if each.is_dir() and os.access(each, os.X_OK)]


def _return_table(task: Mapping[str, Any]) -> str:
    def shown(estimate: Mapping[str, float] | None) -> str:
        return "–" if not estimate else f"{estimate['value']:,.1f} [{estimate['low']:,.1f}, {estimate['high']:,.1f}]"

    rows = [[arm, shown(a["mean"]), shown(a["iqm"]), str(len(a["seeds"]))] for arm, a in task["arms"].items()]
    if task.get("random"):
        rows.append(["random policy", f"{task['random']['mean']:,.1f}", "–", "–"])
    return table(["agents on", "mean return [95%]", "IQM [95%]", "seeds"], rows)


def _agents(run: Path, files: Mapping[str, bytes]) -> Iterator[Returns]:
    """Agents beside a run that were trained on its encoder; damaged ones are left out."""
    for folder in _near(run):
        sums, found = folder / "encoder" / "SHA256SUMS", None
        with contextlib.suppress(InputError):
            found = returns_of(folder) if sums.exists() and sums.read_bytes() == files["SHA256SUMS"] else None
        if found is not None and found.observation == "latent":
            yield found


def returns_of(run: Path) -> Returns | None:
    """What the agent of a run folder reaches, by `latent-obs evaluate` or else by the evaluations during its training.

    It is the best agent, or the last one where there is no best. None if there is no agent, or no number of it.

    Raises:
        InputError: A file is damaged.
    """
    which = next((name for name in ("best", "last") if (run / f"{name}.zip").exists()), None)
    if which is None or not (run / "config.json").exists():
        return None
    try:
        with zipfile.ZipFile(run / f"{which}.zip") as archive:  # its state is JSON; nothing is unpickled
            steps = int(json.loads(archive.read("latent_obs.json"))["steps"])
    except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile):
        raise InputError(f"{run / which}.zip is damaged, or no agent of latent-obs train-agent") from None
    try:
        return _returns(run, which, steps)
    except (KeyError, TypeError, AttributeError) as error:
        files = "config.json, evaluation.json or evaluations.jsonl"
        raise InputError(f"{run}: a value in {files} is missing or damaged: {one_line(error)}") from None


def _returns(run: Path, which: str, steps: int) -> Returns | None:
    config, file = _json(run / "config.json"), run / "evaluation.json"
    about = (config["env"], config.get("algorithm", "ppo"), config.get("observation", "latent"), which, steps)
    numbers = _json(file) if file.exists() else {}
    if (numbers.get("which"), numbers.get("steps")) == (which, steps):
        agent, chance = numbers["agent"], numbers.get("random_policy") or {}
        error, success = agent["standard_error"], agent["success_rate"]
        return Returns(
            *about, agent["mean_return"], error, agent["episodes"], success, chance.get("mean_return"), False
        )
    file = run / "evaluations.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    rows = [parse_json(line, dict[str, Any], file) for line in lines if line.endswith("\n")]
    row = next((row for row in reversed(rows) if row["step"] == steps), None)
    if row is None:
        return None
    error = row["standard_error"] if math.isfinite(row["standard_error"]) else None
    return Returns(*about, row["mean_return"], error, len(row["returns"]), row["successes"], None, True)


def in_words(returns: Returns) -> str:
    """A mean return with its standard error.

    Example:
        >>> in_words(Returns("Doom", "ppo", "latent", "best", 1000, 79.0, 1.25, 100, None, None, False))
        '79.0 ± 1.2'
    """
    return f"{returns.mean:,.1f}" + ("" if returns.error is None else f" ± {returns.error:,.1f}")


def _agent_table(agents: list[Returns]) -> str | None:
    if not agents:
        return None
    rows = [
        [
            f"{agent.algorithm} in {agent.env}",
            f"{agent.steps:,}",
            in_words(agent) + (" (during training)" if agent.during_training else ""),
            f"{agent.episodes:,}",
            "–" if agent.random is None else f"{agent.random:,.1f}",
        ]
        for agent in agents
    ]
    return table(["agent", "steps", "mean return ± standard error", "episodes", "random policy"], rows)


def _errors(report: Mapping[str, Any] | None, hub: Any) -> list[Any]:
    """The squared error of reconstructions, as the card's metadata have it."""
    if report is None or not report.get("reconstruction"):
        return []
    scores, measured = report["reconstruction"]["scores"], report["frames"]["measured"]
    about = {"task_type": "image-feature-extraction", "dataset_type": "held-out-frames"}
    about["dataset_name"] = counted(measured, "held-out frame")
    error = {"metric_type": "mse", "metric_name": "squared error of reconstructions"}
    return [hub.EvalResult(**about, **error, metric_value=scores["encoder"]["mse"])]


def mean_reward(agent: Returns, hub: Any) -> Any:
    """The mean return of an agent, as the metadata of cards have it."""
    return hub.EvalResult(
        task_type="reinforcement-learning",
        task_name=f"reinforcement learning ({agent.algorithm} on latents)",
        dataset_type=agent.env,
        dataset_name=agent.env,
        metric_type="mean_reward",
        metric_name="mean return",
        metric_value=in_words(agent),
    )
