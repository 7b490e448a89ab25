"""The split of probes: no recording has two uses, so nothing leaks from what is learnt from into what is scored."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_obs.util.errors import InputError
from tests.support.probe_cases import NAMES, cut, numbered
from vae_training.report.probes.scores import FIT, HELD_OUT, UNUSED, VALIDATION, split_recordings


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 200), min_size=3, max_size=30), st.integers(0, 5), st.integers(50, 3000))
def test_no_recording_has_two_uses(lengths: list[int], seed: int, most_frames: int):
    split = split_recordings({str(i): np.zeros(n) for i, n in enumerate(lengths)}, seed=seed, most_frames=most_frames)
    uses = [set(names) for names in split.recordings.values()]
    if not split.note:
        assert all(uses)
        assert sum(map(len, uses)) == len(set().union(*uses)) == len(lengths)
    fit, validation, held_out = uses
    assert not held_out & (fit | validation)
    at = 0
    for name, rows in split.rows.items():
        part = split.part[at : at + len(rows)]
        assert split.note or len(set(part)) == 1
        assert (name in held_out) == bool((part == HELD_OUT).any())
        at += len(rows)
    assert at == len(split.part) <= most_frames + len(lengths)
    assert ((split.unit >= 0) == (split.part == HELD_OUT)).all()


def test_shares_of_the_split():
    frames = {str(i): np.zeros(100) for i in range(100)}
    split = split_recordings(frames, seed=3)
    assert [len(names) for names in split.recordings.values()] == [60, 15, 25]
    assert split.resampled == "recordings"
    assert len(np.unique(split.unit)) == 26
    assert split.recordings != split_recordings(frames, seed=4).recordings


def test_a_single_recording_is_cut_with_gaps():
    split = split_recordings({"only": np.zeros(1000)})
    assert "last 25% of only" in split.note
    starts = [int(np.flatnonzero(split.part == which)[0]) for which in (FIT, VALIDATION, HELD_OUT)]
    assert starts == sorted(starts)
    assert [split.part[start - 1] for start in starts[1:]] == [UNUSED, UNUSED]
    assert split.resampled.startswith("blocks of")
    assert len(np.unique(split.unit)) > 30


def test_blocks_stay_within_a_recording():
    split = split_recordings({str(i): np.zeros(90) for i in range(8)})
    owner = np.repeat(np.arange(8), 90)
    assert np.bincount(split.unit[split.unit >= 0]).tolist() == [5] * 36
    assert split.resampled == "blocks of 5 frames"
    for unit in range(split.unit.max() + 1):
        frames = np.flatnonzero(split.unit == unit)
        assert len(set(owner[frames])) == 1
        assert (np.diff(frames) == 1).all()


def test_the_held_out_recordings_can_be_named():
    frames = cut(numbered()) | {"empty": np.zeros(0)}
    assert split_recordings(frames, held_out=["r02", "r05"]).recordings["held_out"] == ["r02", "r05"]
    for held_out in (["r99"], [], NAMES, ["empty"]):
        with pytest.raises(InputError, match="held_out"):
            split_recordings(frames, held_out=held_out)
    with pytest.raises(InputError, match="frames_by_recording"):
        split_recordings({"empty": np.zeros(0)})
    with pytest.raises(InputError, match="tiny"):
        split_recordings({"tiny": np.zeros(2)})
