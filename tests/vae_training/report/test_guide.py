"""The guide to the report has the limits that the verdict is made with."""

from pathlib import Path

from vae_training.report.findings import MEASURES

GUIDE = Path(__file__).parents[3] / "docs" / "report.md"


def test_the_guide_has_every_limit_of_the_verdict():
    rows = [line.strip("| ").split(" | ") for line in GUIDE.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    limits = [(row[0], row[1], row[2]) for row in rows if len(row) == 4]
    header, _, *found = limits
    assert header == ("number", "good", "bad")
    assert found == [(measure.name, measure.limits["good"], measure.limits["bad"]) for measure in MEASURES.values()]
