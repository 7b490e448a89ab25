"""The notebook of the documentation is what its script says, and runs from its first cell to its last."""

from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

from tests.support import ROOT

SCRIPT = ROOT / "docs" / "first_steps.py"
NOTEBOOK = SCRIPT.with_suffix(".ipynb")
#: In place of the parameters. The minutes that fit needs depend on the machine, so it gets a plan.
TINY = """
import functools
import latent_obs_cli.fit as command
from latent_obs_cli.plan import Sizes
MINUTES, STEPS, EPISODES = 6, 64, 2
command.fit = functools.partial(command.fit, sizes=Sizes(frames=128, epochs=1))
"""


def test_the_notebook_is_made_from_its_script():
    """If this fails: jupytext --update --to ipynb docs/first_steps.py."""
    made, committed = jupytext.read(SCRIPT), nbformat.read(NOTEBOOK, as_version=4)
    cells = [[(cell.cell_type, cell.source, cell.metadata) for cell in book.cells] for book in (made, committed)]
    assert cells[0] == cells[1]
    assert not any(cell.get("outputs") for cell in committed.cells)
    assert NOTEBOOK.stat().st_size < 100_000


@pytest.mark.integration
def test_the_notebook_runs_and_its_output_can_be_read(tmp_path: Path):
    pytest.importorskip("vizdoom")
    book = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = [cell for cell in book.cells if "parameters" in cell.metadata.get("tags", [])]
    parameters.source = TINY
    NotebookClient(book, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    shown = {kind for output in outputs for kind in output.get("data", {})}
    assert {"image/png", "text/html"} <= shown  # pictures, and the video
    text = [output.text for output in outputs if output.output_type == "stream"]
    bars = [output.data["text/plain"] for output in outputs if output.output_type == "display_data"]
    assert any("100%" in bar for bar in bars)  # one output each, which was replaced as it went on
    assert not any("\r" in part for part in text)
    assert sum(part.count("\n") for part in text) < 100
