"""The files that are pushed with an encoder, and its model card, made of numbers that other commands have written.

The frames come from the encoder's provenance and the index of its frames, errors and probes from `report/report.json`
beside the encoder, returns from `compare.json` and agents' run folders beside the run or above it. Nothing is measured
here. What is of another encoder is left out.
"""

import json
import math
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from latent_obs.encoder.folder import locate, read_files
from latent_obs.pixels import PixelContract
from latent_obs.util.errors import InputError, parse_json, require
from latent_obs.util.hub import Push, card_of, table
from latent_obs.util.words import counted

_TEMPLATE = Path(__file__).parent / "templates" / "card.md.j2"
_REPORT = ("report.html", "pictures/reconstructions.png")
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
    config: dict[str, Any] = {"provenance": {}, **json.loads(own["config.json"])}
    run = folder.parent if folder.name == "encoder" else folder
    report, why_none = _report(folder.parent / "report", config)
    if report is not None:
        found = {f"report/{name}": folder.parent / "report" / name for name in _REPORT}
        files |= {name: file for name, file in found.items() if file.exists()}
    frames = _frames(config["provenance"])
    compared = list(_comparisons(run, own))
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
        "config": config,
        "needs_code": "module" in config and "timm" not in config["module"],  # a network of timm is made again
        "contract": PixelContract.from_json(config["pixels"]),
        "latent_dim": _shapes(own["selfcheck.safetensors"])["latents"][-1],
        "components": (config.get("architecture") or {}).get("components", 0),
        "weights": {
            name: (sum(map(math.prod, _shapes(data).values())), len(data))
            for name, data in own.items()
            if name in ("encoder.safetensors", "decoder.safetensors")
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


def _frames(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """How many frames an encoder was trained on, and where they come from, if their folder is still there."""
    settings, trained_on = provenance.get("settings") or {}, provenance.get("trained_on") or []
    names = {str(each.get("file")) for each in trained_on}
    folder = Path(str(settings.get("frames") or "."))
    sources: list[str] = []
    envs: list[str] = []
    datasets: list[str] = []
    if trained_on and (file := folder / "recording.json").exists():
        recorded = [each for name, each in _json(file).get("files", {}).items() if name in names]
        for each in recorded:
            how = {key: each.get(key) for key in ("policy", "frame_skip") if each.get(key) is not None}
            agent = " by a trained agent" if each.get("agent") else ""
            more = ", ".join(f"{key} {value}" for key, value in how.items() if not (agent and key == "policy"))
            sources.append(f"recorded in {each['env']}{agent}" + (f" ({more})" if more else ""))
            envs.append(each["env"])
    for file in sorted(folder.glob("frames*.json")) if trained_on else []:  # one for each shard
        entries = [
            e for e in _json(file).get("recordings", {}).values() if names & {part["file"] for part in e["files"]}
        ]
        sources += [f"extracted from recordings of the kind {entry['kind']}" for entry in entries]
        datasets += [found[1] for e in entries if (found := re.match(r"hf://datasets/([\w.-]+/[\w.-]+)", e["source"]))]
    return {
        "count": sum(int(each.get("frames", 0)) for each in trained_on),
        "files": len(names),
        "sources": list(dict.fromkeys(sources)),
        "envs": list(dict.fromkeys(envs)),
        "datasets": sorted(set(datasets)),
    }


def _report(folder: Path, config: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """The numbers of a report on this very encoder, or None and why there are none."""
    file = folder / "report.json"
    if not file.exists():
        return None, f"there is no {file}"
    report, provenance = _json(file), config["provenance"]
    about = report.get("encoder") or {}
    seconds = (about.get("training_seconds") or 0.0, provenance.get("training_seconds") or 0.0)
    same = about.get("step") == provenance.get("step") and math.isclose(*seconds, rel_tol=1e-4)
    one, other = (values.get("architecture") or {} for values in (about, config))
    if not same or any(one.get(name) != other.get(name) for name in ("img_shape", "latent_dim")):
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


def _comparisons(run: Path, files: Mapping[str, bytes]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Tasks of comparisons in which agents were trained on this encoder, with those arms that it concerns."""
    sums = files["SHA256SUMS"].decode()
    for folder in _near(run):
        if not (file := folder / "compare.json").exists():
            continue
        try:
            tasks: dict[str, Any] = _json(file)["summary"]["tasks"]
        except (InputError, KeyError, TypeError):  # of another program
            continue
        for name, task in tasks.items():
            own = [arm for arm, a in task["arms"].items() if a["observation"] == "latent" and _is_of(a, sums)]
            arms = {arm: a for arm, a in task["arms"].items() if arm in own or a["observation"] != "latent"}
            if own:
                yield name, {**task, "arms": arms}


def _is_of(arm: Mapping[str, Any], sums: str) -> bool:
    """Whether the agents of an arm saw latents of the encoder with these checksums."""
    return f"{arm.get('settings', {}).get('encoder')}  encoder.safetensors" in sums.splitlines()


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
    """Agents beside a run that were trained on its encoder."""
    for folder in _near(run):
        sums = folder / "encoder" / "SHA256SUMS"
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


def _shapes(data: bytes) -> dict[str, list[int]]:
    """The shapes of the tensors in a safetensors file, from its header."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return {name: tensor["shape"] for name, tensor in header.items() if name != "__metadata__"}
