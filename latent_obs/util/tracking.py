"""Metrics of a run to Weights & Biases or to Trackio, whose functions have the same names."""

import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from latent_obs.util.atomic import LOG_NAME
from latent_obs.util.errors import InputError, one_line, require

Service = Literal["wandb", "trackio"]


class Tracker:
    """A run at a service, which a resumed run continues: `log_name` in the run folder has its name.

    Args:
        service: The package.
        run: The run folder, after which the run is named.
        settings: Plain values to show beside the metrics.

    Raises:
        MissingExtraError: The package is not installed.
        InputError: It cannot begin a run, for instance because nobody is logged in.
    """

    def __init__(self, service: Service, run: Path, settings: Mapping[str, Any]) -> None:
        package = require(service, extra=service, purpose=f"log to {service}")
        file = run / LOG_NAME
        named = re.sub(r"[^\w.-]", "-", run.resolve().name)[:100]  # wandb rejects others in an id, and long ones
        name = (file.exists() and file.read_text()) or f"{named}-{secrets.token_hex(4)}"
        how: dict[str, Any] = {"id": name} if service == "wandb" else {}
        project = os.environ.get("WANDB_PROJECT", "latent-obs")
        try:
            self._run = package.init(project=project, name=name, config=dict(settings), resume="allow", **how)
        except Exception as error:  # each has its own
            no_login = service == "wandb" and re.search("api.key|credential|log ?in", str(error), re.IGNORECASE)
            hint = " WANDB_MODE=offline logs without an account." if no_login else ""
            raise InputError(f"log: {service} cannot begin a run: {one_line(error)}.{hint}") from error
        file.write_text(name)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics of a step. wandb leaves out steps that a killed run has logged before."""
        self._run.log(dict(metrics), step=step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._run.finish()
