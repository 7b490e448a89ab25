"""`benchmarks/gpu.py` works the day a GPU is at hand: on the CPU each of its rows is measured."""

import os

import pytest

from benchmarks import gpu
from benchmarks.gpu import Options, Rows, measure_all

TINY = Options(device="cpu", tiny=True)


def raises(options: Options) -> Rows:
    raise ValueError("no compiler\nat all")


def dies(options: Options) -> Rows:
    os._exit(7)


@pytest.mark.integration
def test_every_row_is_measured_or_says_why_it_failed(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("vizdoom")
    monkeypatch.setattr(gpu, "MEASUREMENTS", {"raises": raises, "dies": dies, **gpu.MEASUREMENTS})
    with pytest.raises(SystemExit, match="1"):
        gpu.main(TINY)
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in capfd.readouterr().out.splitlines()
        if line.startswith("|")
    ][2:]
    assert [row[0] for row in rows if row[1] == "failed"] == ["raises", "dies"]
    assert [row[3].count(part) for row, part in zip(rows, ("no compiler", "7"), strict=False)] == [1, 1]
    measured = [row for row in rows[2:] if "not measured" not in row[3]]
    assert len(measured) >= len(gpu.MEASUREMENTS)
    assert all(float(row[1].replace(",", "")) > 0 for row in measured)


def test_a_measurement_that_takes_too_long_is_left_out_and_the_next_one_begins():
    assert [
        (name, "not finished" in rows) for name, rows in measure_all({"a": raises, "b": raises}, TINY, row_s=0, all_s=9)
    ] == [("a", True), ("b", True)]
