"""Which frames a report is about: never one that was trained on, and the same split as in training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latent_obs.pixels import PixelContract
from latent_obs.util.errors import InputError
from tests.support.tiny import picture, random_frames
from vae_training.data.frames import describe_datasets, get_datasets, split_held_out
from vae_training.report.sample import Recordings, find_recordings, load_known, neighbors, places, read, spread

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


@pytest.mark.parametrize(("given", "held_out"), [(False, None), (True, 2)])
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


def test_recordings_added_since_are_held_out_and_what_was_trained_on_never(tmp_path: Path):
    folder = folder_of(tmp_path / "a", 20, 20, 20)
    provenance = provenance_of(folder)
    folder_of(tmp_path / "b", 30, first=7)
    (tmp_path / "b" / "7.npy").rename(folder / "1b.npy")  # between the others by name
    found = find_recordings(provenance)
    assert names(found.training) == ["0.npy", "1.npy"]
    assert names(found.held_out) == ["1b.npy", "2.npy"]
    (folder / "1b.npy").unlink()
    (folder / "2.npy").unlink()
    with pytest.raises(InputError, match="--frames"):
        find_recordings(provenance)


def test_a_folder_that_it_never_saw_is_held_out_whole(tmp_path: Path):
    home, other = folder_of(tmp_path / "a", 20, 20), folder_of(tmp_path / "b", 15, 15, first=5)
    provenance = json.loads(json.dumps(provenance_of(home)))  # as the encoder folder keeps it
    found = find_recordings(provenance, other)
    assert (names(found.training), names(found.held_out)) == (["0.npy"], ["5.npy", "6.npy"])
    assert len(found.training[0]) == 20
    assert found.certain
    # Without the training frames, baselines are fitted on a part of it.
    home.rename(tmp_path / "elsewhere")
    found = find_recordings(provenance, other)
    assert (names(found.training), names(found.held_out)) == (["5.npy"], ["6.npy"])
    assert found.certain
    assert not find_recordings({}, other).certain
    for nowhere in (provenance, {}):
        with pytest.raises(InputError, match="--frames"):
            find_recordings(nowhere)


def test_frames_are_spread_evenly_and_know_where_they_are_from(tmp_path: Path):
    datasets = get_datasets(folder_of(tmp_path / "a", 30, 10, 60))
    index = spread(100, 11)
    recording, row = places(datasets, index)
    frames = read(datasets, index, CONTRACT)
    assert frames[:, 0, 0, 0].tolist() == recording.tolist() == [0, 0, 0, 0, 1, 2, 2, 2, 2, 2, 2]
    assert frames[:, 0, 1, 0].tolist() == row.tolist()
    assert len(spread(100, 1_000)) == 100


def test_frames_of_another_size_are_converted(tmp_path: Path):
    frames = np.stack([picture(0, step, 24, 32) for step in range(20)])
    np.save(tmp_path / "0.npy", frames)
    datasets = get_datasets(tmp_path)
    assert np.array_equal(read(datasets, np.arange(20), CONTRACT), CONTRACT.convert(frames))
    with pytest.raises(InputError, match="far smaller"):
        read(datasets, np.arange(20), PixelContract(64, 64, 3))


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


def test_few_frames_of_training_beside_many_held_out_ones_with_actions_and_rewards(tmp_path: Path):
    folder = folder_of(tmp_path / "a", 60, 40, 50)
    for number, count in enumerate((60, 40, 50)):
        rows = {"state$ROW": np.arange(count), "action": np.arange(count) % 3, "acted": np.arange(count) < count - 1}
        rows |= {"reward": np.arange(count) / 2, "action$camera": np.ones((count, 2)), "action$many": np.arange(count)}
        np.savez(folder / f"{number}.rows.npz", **rows)  # pyright: ignore[reportArgumentType]
    first, second, last = get_datasets(folder)
    known = load_known(Recordings([first, second], [last], ""))
    assert known.targets["0"].keys() == {"state$ROW"}
    few = known.few(20, 25)
    assert [len(frames) for frames in few.recordings.values()] == [12, 8, 25]
    assert few.held_out == ["2"]
    assert few.targets["0"].keys() == {"state$ROW", "action", "reward", "action$camera.0", "action$camera.1"}
    for name, step in (("0", 5), ("1", 5), ("2", 2)):
        rows = few.targets[name]["state$ROW"]
        assert (
            rows.tolist()
            == few.recordings[name][:, 0, 1, 0].tolist()
            == list(range(0, len(known.recordings[name]), step))
        )
        assert few.targets[name]["reward"].tolist() == (rows / 2).tolist()
    assert np.isnan(known.few(200, 200).targets["1"]["action"]).tolist() == 39 * [False] + [True]


def test_own_targets_of_a_recording_that_is_cut(tmp_path: Path):
    np.save(tmp_path / "a.npy", random_frames(100))
    np.savez(tmp_path / "a.rows.npz", **{"state$HEALTH": np.arange(100.0)})  # pyright: ignore[reportArgumentType]
    np.savez(tmp_path / "own.npz", row=np.arange(100))
    (whole,) = get_datasets(tmp_path)
    known = load_known(Recordings([whole[:80]], [whole[85:]], ""), tmp_path / "own.npz")
    assert known.held_out == ["a (held out)"]
    for target in ("row", "state$HEALTH"):
        assert known.targets["a"][target].tolist() == list(range(80))
        assert known.targets["a (held out)"][target].tolist() == known.column(target).tolist() == list(range(85, 100))
    assert np.isnan(known.column("nothing")).all()
