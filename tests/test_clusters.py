"""The files in docs/clusters and the commands of docs/machines.md, checked as far as they can be without a cluster."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from latent_obs_cli.main import main
from tests.test_design import ROOT

CLUSTERS = ROOT / "docs" / "clusters"
SCRIPTS = sorted(CLUSTERS.glob("*.sbatch"))
PAGE = ROOT / "docs" / "machines.md"
VARIABLES = {  # what Slurm sets, and the scripts themselves
    "SLURM_ARRAY_TASK_ID": "3",
    "SLURM_ARRAY_TASK_COUNT": "20",
    "SLURM_CPUS_PER_TASK": "8",
    "SLURM_GPUS_ON_NODE": "2",
    "SLURM_JOB_ID": "1234",
    "SLURM_JOB_NODELIST": "node[1-2]",
    "SLURM_NNODES": "2",
    "first": "node1",
    "out": "/shared/runs/agent",
    "resume": "--resume",
}
DIRECTIVES = re.compile(
    r"--(job-name=[\w-]+|array=\d+-\d+|nodes=\d+|ntasks-per-node=\d+|gpus-per-node=\d+|cpus-per-task=\d+|mem=\d+G"
    r"|time=\d\d:\d\d:\d\d|exclusive)"
)


def entrypoint(job: dict[str, Any]) -> str:
    return job["spec"]["entrypoint"]


def job() -> dict[str, Any]:
    return yaml.safe_load((CLUSTERS / "rayjob.yaml").read_text())


def words_of_ours() -> Iterator[Any]:
    """The words after each `latent-obs` of the examples and of the page, with shell variables replaced."""
    texts = {path.name: path.read_text() for path in SCRIPTS}
    texts["rayjob.yaml"] = entrypoint(job())
    texts[PAGE.name] = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL))
    for name, text in texts.items():
        text = re.sub(r"\$\{?(\w+)\}?", lambda match: VARIABLES.get(match[1], match[0]), text.replace("\\\n", " "))
        for line in text.splitlines():
            words = shlex.split(line, comments=True)
            if "exec" in words[:2] or "submit" in words[:3]:
                words = [part for word in words for part in shlex.split(word)]
            for start in ("latent-obs", "latent_obs_cli.main"):
                if start in words and words[0] not in ("git", "docker"):
                    ours = words[words.index(start) + 1 :]
                    yield pytest.param(ours, id=f"{name}: {' '.join(ours[:2])}")


@pytest.mark.parametrize("words", list(words_of_ours()))
def test_commands_have_settings_that_are_accepted(words: list[str], monkeypatch: pytest.MonkeyPatch):
    class Accepted(Exception):
        pass

    def accept(*_: Any, **__: Any) -> None:
        raise Accepted

    for name in ("extract", "record", "train", "frame_stats"):
        monkeypatch.setattr(f"vae_training.{name}", accept)
    monkeypatch.setattr("agents.train_agent", accept)
    monkeypatch.setattr("latent_obs_cli.compare.joined", accept)
    with pytest.raises(Accepted):
        main(words)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_batch_scripts(path: Path):
    subprocess.run(["bash", "-n", path], check=True)
    text = path.read_text()
    before, _, after = text.partition("set -euo pipefail\n")
    directives = [line.removeprefix("#SBATCH ") for line in before.splitlines() if line.startswith("#SBATCH ")]
    assert before.startswith("#!/bin/bash\n")
    assert "#SBATCH" not in after  # Slurm ignores directives after the first command
    assert [line for line in directives if not DIRECTIVES.fullmatch(line)] == []
    assert {"--job-name", "--time"} <= {line.partition("=")[0] for line in directives}
    used = set(re.findall(r"\$\{?([A-Za-z_]+)", after))
    assert used <= VARIABLES.keys()
    array = any(line.startswith("--array") for line in directives)
    assert array == any(name.startswith("SLURM_ARRAY") for name in used)
    if "SLURM_GPUS_ON_NODE" in used:
        assert any(line.startswith("--gpus-per-node") for line in directives)


def test_rayjob_is_one_of_kuberays():
    """Fields of RayJob, RayCluster (ray.io/v1) and of a pod that the example uses, with their types."""
    found = job()
    assert (found["apiVersion"], found["kind"]) == ("ray.io/v1", "RayJob")
    assert found.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert found["spec"].keys() == {"entrypoint", "shutdownAfterJobFinishes", "rayClusterSpec"}
    cluster = found["spec"]["rayClusterSpec"]
    assert cluster.keys() == {"rayVersion", "headGroupSpec", "workerGroupSpecs"}
    [workers] = cluster["workerGroupSpecs"]
    assert workers.keys() - {"groupName", "replicas", "minReplicas", "maxReplicas"} == {"rayStartParams", "template"}
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    assert cluster["headGroupSpec"].keys() == {"rayStartParams", "template"}
    for group in (cluster["headGroupSpec"], workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        assert pod.keys() == {"containers", "volumes"}
        [container], [volume] = pod["containers"], pod["volumes"]
        assert container.keys() == {"name", "image", "resources", "volumeMounts"}
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"]}
        assert volume.keys() == {"name", "persistentVolumeClaim"}


def test_versions_are_those_of_the_tests():
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints-ray.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert job()["spec"]["rayClusterSpec"]["rayVersion"] == pinned[1]
    assert f"FROM rayproject/ray:{pinned[1]}-py311-cpu\n" in (CLUSTERS / "Dockerfile").read_text()


def test_runners_have_a_core_each():
    wanted = int(re.search(r"--runners (\d+)", entrypoint(job()))[1])  # pyright: ignore[reportOptionalSubscript]
    [workers] = job()["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    [container] = workers["template"]["spec"]["containers"]
    assert workers["replicas"] * int(container["resources"]["requests"]["cpu"]) >= wanted
    up = yaml.safe_load((CLUSTERS / "ray-cluster.yaml").read_text())["available_node_types"]["runners"]
    assert up["min_workers"] * up["resources"]["CPU"] >= wanted
    script = (CLUSTERS / "train_agent.sbatch").read_text()
    nodes, cores, runners = (
        int(re.search(rf"{name}[= ](\d+)", script)[1])  # pyright: ignore[reportOptionalSubscript]
        for name in ("--nodes", "--cpus-per-task", "--runners")
    )
    assert nodes * cores > runners
