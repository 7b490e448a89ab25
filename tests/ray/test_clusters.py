"""What of docs/clusters Ray itself can check: the options of its commands, and the file for `ray up`."""

import importlib
import re
import shlex
from typing import Any

import pytest
import yaml

from tests.test_clusters import CLUSTERS

pytestmark = pytest.mark.ray


def test_ray_accepts_the_file_for_ray_up():
    autoscaler: Any = importlib.import_module("ray.autoscaler._private.util")
    given = yaml.safe_load((CLUSTERS / "ray-cluster.yaml").read_text())
    prepared = autoscaler.prepare_config(given)
    autoscaler.validate_config(prepared)
    assert prepared["available_node_types"]["head"]["max_workers"] == 0
    with pytest.raises(Exception, match="runner_nodes"):  # the schema knows all names
        autoscaler.validate_config({**prepared, "runner_nodes": 4})


def test_ray_accepts_the_options_of_symmetric_run():
    symmetric: Any = importlib.import_module("ray.scripts.symmetric_run")
    start: Any = importlib.import_module("ray.scripts.scripts").start
    script = (CLUSTERS / "train_agent.sbatch").read_text().replace("\\\n", " ")
    line = re.search(r"ray symmetric-run (.*?) -- latent-obs", " ".join(script.split()))
    assert line is not None
    words = shlex.split(line[1].replace("$SLURM_NNODES", "4").replace("$SLURM_CPUS_PER_TASK", "16"))
    options = symmetric.curate_and_validate_ray_start_args(words)
    assert start.make_context("start", ["--head", *options]).params["num_cpus"] == 16
