"""Which frames a report is about: never one that was trained on, and the same split as in training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latent_obs.pixels import PixelContract
from latent_obs.util.errors import InputError
from tests.support.tiny import picture
from vae_training.data.frames import describe_datasets, get_datasets, split_held_out
from vae_training.report.sample import Sample, check_enough, find_recordings, neighbors, rows_of, take

CONTRACT = PixelContract(16, 16, 3)


def folder_of(path: Path, *lengths: int, first: int = 0) -> Path:
    """Recordings whose frames hold the number of their file and row in their first pixels."""
    path.mkdir(parents=True)
    for number, length in enumerate(lengths, first):
        frames = np.stack([picture(number, step, 16, 16) for step in range(length)])
        frames[:, 0, 0, 0], frames[:, 0, 1, 0] = number, np.arange(length)
        np.save(path / f"{number}.npy", frames)
    return path


def provenance_of(folder: Path, held_out: int | None = None) -> dict[str, Any]:
    training, _ = split_held_out(get_datasets(folder), held_out)
    return {"settings": {"frames": str(folder), "held_out": held_out}, "trained_on": describe_datasets(training)}


def names(datasets: list[Any]) -> list[str]:
    return [Path(str(d.filename)).name for d in datasets]


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("held_out", [None, 2])
def test_the_split_of_the_training_run(tmp_path: Path, given: bool, held_out: int | None):
    folder = folder_of(tmp_path / "a", 20, 20, 20, 20)
    found = find_recordings(provenance_of(folder, held_out), folder if given else None)
    assert names(found.held_out) == ["3.npy"] if held_out is None else ["2.npy", "3.npy"]
    assert names(found.training) == [f"{i}.npy" for i in range(4 - len(found.held_out))]
    assert found.certain


def test_a_single_recording_is_cut_where_training_cut_it(tmp_path: Path):
    folder = folder_of(tmp_path / "a", 100)
    found = find_recordings(provenance_of(folder))
    assert [len(d) for d in found.training + found.held_out] == [89, 10]
    assert found.held_out[0][:, 0, 1, 0].tolist() == list(range(90, 100))
    assert found.certain


def test_recordings_added_since_are_held_out(tmp_path: Path):
    folder = folder_of(tmp_path / "a", 20, 20, 20)
    provenance = provenance_of(folder)
    folder_of(tmp_path / "b", 30, first=7)
    (tmp_path / "b" / "7.npy").rename(folder / "1b.npy")  # between the others by name
    found = find_recordings(provenance)
    assert names(found.training) == ["0.npy", "1.npy"]
    assert names(found.held_out) == ["1b.npy", "2.npy"]


def test_a_folder_that_it_never_saw_is_held_out_whole(tmp_path: Path):
    home, other = folder_of(tmp_path / "a", 20, 20), folder_of(tmp_path / "b", 15, 15, first=5)
    found = find_recordings(provenance_of(home), other)
    assert (names(found.training), names(found.held_out)) == (["0.npy"], ["5.npy", "6.npy"])
    assert len(found.training[0]) == 20
    assert found.certain


def test_without_the_training_frames_baselines_are_fitted_on_a_part(tmp_path: Path):
    home, other = folder_of(tmp_path / "a", 20, 20), folder_of(tmp_path / "b", 15, 15, first=5)
    provenance = json.loads(json.dumps(provenance_of(home)))  # as the encoder folder keeps it
    home.rename(tmp_path / "elsewhere")
    found = find_recordings(provenance, other)
    assert (names(found.training), names(found.held_out)) == (["5.npy"], ["6.npy"])
    assert found.certain
    with pytest.raises(InputError, match="--frames"):
        find_recordings(provenance)


def test_what_was_trained_on_is_never_measured(tmp_path: Path):
    folder = folder_of(tmp_path / "a", 20, 20, 20)
    provenance = provenance_of(folder)
    (folder / "2.npy").unlink()
    with pytest.raises(InputError, match="--frames"):
        find_recordings(provenance)


def test_an_encoder_without_provenance(tmp_path: Path):
    folder = folder_of(tmp_path / "a", 20, 20)
    assert not find_recordings({}, folder).certain
    with pytest.raises(InputError, match="--frames"):
        find_recordings({})


def test_frames_are_spread_evenly_and_know_where_they_are_from(tmp_path: Path):
    datasets = get_datasets(folder_of(tmp_path / "a", 30, 10, 60))
    sample = take(datasets, 11, CONTRACT)
    assert sample.frames[:, 0, 0, 0].tolist() == sample.recording.tolist()
    assert sample.frames[:, 0, 1, 0].tolist() == sample.row.tolist()
    assert sample.recording.tolist() == [0, 0, 0, 0, 1, 2, 2, 2, 2, 2, 2]
    assert len(take(datasets, 1_000, CONTRACT).frames) == 100


def test_frames_of_another_size_are_converted(tmp_path: Path):
    (tmp_path / "a").mkdir()
    frames = np.stack([picture(0, step, 24, 32) for step in range(20)])
    np.save(tmp_path / "a" / "0.npy", frames)
    datasets = get_datasets(tmp_path / "a")
    assert np.array_equal(take(datasets, 20, CONTRACT).frames, CONTRACT.convert(frames))
    with pytest.raises(InputError, match="far smaller"):
        take(datasets, 20, PixelContract(64, 64, 3))


def test_neighbors_are_of_one_recording_and_one_episode(tmp_path: Path):
    folder = folder_of(tmp_path / "a", 6, 3)
    np.savez(folder / "0.rows.npz", first=np.isin(np.arange(6), [0, 2]))
    pairs = neighbors(get_datasets(folder), 100, CONTRACT)
    assert pairs is not None
    one, other = (side[:, 0, :2, 0].tolist() for side in pairs)
    assert one == [[0, 0], [0, 2], [0, 3], [0, 4], [1, 0], [1, 1]]
    assert other == [[file, row + 1] for file, row in one]
    few = neighbors(get_datasets(folder), 2, CONTRACT)
    assert few is not None
    assert len(few[0]) == 2
    assert neighbors(get_datasets(folder_of(tmp_path / "b", 1, 1)), 5, CONTRACT) is None


def test_rows_of_a_part_of_a_recording(tmp_path: Path):
    folder = folder_of(tmp_path / "a", 20)
    rows: dict[str, Any] = {"state$HEALTH": np.arange(20.0)}
    np.savez(folder / "0.rows.npz", **rows)
    (dataset,) = get_datasets(folder)
    assert rows_of(dataset[5:8])["state$HEALTH"].tolist() == [5, 6, 7]
    assert rows_of(np.zeros((3, 16, 16, 3), np.uint8)) == {}


def test_too_few_frames_or_equal_ones():
    frames, place = np.random.default_rng(0).integers(0, 255, (16, 4, 4, 3), np.uint8), np.zeros(16, np.int64)
    check_enough(Sample(frames, place, place))
    for bad in (frames[1:], np.full_like(frames, 7)):
        with pytest.raises(InputError, match="held-out frames"):
            check_enough(Sample(bad, place, place))
