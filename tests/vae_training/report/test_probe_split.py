"""The split of probes: no recording has two uses, so that nothing leaks from what is learnt from into what is
scored."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_obs.util.errors import InputError
from tests.support.probe_cases import LENGTH, NAMES, cut, numbered
from vae_training.report.probes.scores import FIT, HELD_OUT, UNUSED, VALIDATION, split_recordings


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 200), min_size=3, max_size=30), st.integers(0, 5), st.integers(50, 3000))
def test_no_recording_has_two_uses(lengths: list[int], seed: int, most_frames: int):
    split = split_recordings({str(i): np.zeros(n) for i, n in enumerate(lengths)}, seed=seed, most_frames=most_frames)
    uses = [set(split.fit), set(split.validation), set(split.held_out)]
    if not split.note:
        assert all(uses)
        assert sum(map(len, uses)) == len(set().union(*uses)) == len(lengths)
    assert not set(split.held_out) & (set(split.fit) | set(split.validation))
    at = 0
    for name, rows in split.rows.items():
        part = split.part[at : at + len(rows)]
        if not split.note:
            assert len(set(part)) == 1
        assert (name in split.held_out) == bool((part == HELD_OUT).any())
        at += len(rows)
    assert at == len(split.part)
    assert at <= most_frames + len(lengths)
    assert ((split.unit >= 0) == (split.part == HELD_OUT)).all()


def test_shares_of_the_split():
    split = split_recordings({str(i): np.zeros(100) for i in range(100)}, seed=3)
    assert [len(part) for part in (split.fit, split.validation, split.held_out)] == [60, 15, 25]
    assert split.resampled == "recordings"
    assert len(np.unique(split.unit)) == 26
    assert split.held_out != split_recordings({str(i): np.zeros(100) for i in range(100)}, seed=4).held_out


def test_a_single_recording_is_cut_with_gaps():
    split = split_recordings({"only": np.zeros(1000)})
    assert "last 25% of only" in split.note
    starts = [int(np.flatnonzero(split.part == which)[0]) for which in (FIT, VALIDATION, HELD_OUT)]
    assert starts == sorted(starts)
    for which in (VALIDATION, HELD_OUT):
        assert split.part[np.flatnonzero(split.part == which)[0] - 1] == UNUSED
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
    frames = cut(numbered())
    split = split_recordings(frames, held_out=["r02", "r05"])
    assert split.held_out == ("r02", "r05")
    assert {name: len(part) for name, part in split.rows.items()} == dict.fromkeys(NAMES, LENGTH)
    with pytest.raises(InputError, match="r99"):
        split_recordings(frames, held_out=["r99"])
    with pytest.raises(InputError, match="no recordings"):
        split_recordings(frames, held_out=[])
    with pytest.raises(InputError, match="nothing to learn from"):
        split_recordings(frames, held_out=NAMES)
    with pytest.raises(InputError, match="no frames"):
        split_recordings({"a": np.zeros(0)})
    with pytest.raises(InputError, match="have no frames"):
        split_recordings({"a": np.zeros(0), "b": np.zeros(9)}, held_out=["a"])
    with pytest.raises(InputError, match="too few"):
        split_recordings({"a": np.zeros(2)})
