"""Rows beside frame files: loaded whole or refused, and what they say of targets and of what follows each frame."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from latent_obs.util.errors import InputError
from vae_training.data.frames import get_datasets, split_held_out
from vae_training.data.loader import SuperBatches, get_random_samples
from vae_training.data.rows import (
    ActionKind,
    SuperBatch,
    Transitions,
    load_rows,
    rows_file_of,
    rows_of,
    save_rows,
    targets_of,
    transitions_of,
)
from vae_training.data.stats import frame_stats
from vae_training.extraction.readers.find import find_recordings
from vae_training.recording.recorder import RecordConfig, record

N = 5
Columns = dict[str, NDArray[Any]]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    np.save(tmp_path / "walk.v2.npy", np.arange(N * 8 * 8 * 3, dtype=np.uint8).reshape(N, 8, 8, 3))
    return tmp_path / "walk.v2.npy"


NAMES = st.text(st.characters(codec="ascii", exclude_characters="\0/\\:", categories=("L", "N", "P", "S")), min_size=1)
COLUMNS = arrays.arrays(
    st.sampled_from([np.dtype(t) for t in ("f4", "i8", "?", "<U5")]),
    st.sampled_from([(N,), (N, 3), (N, 0), (N, 2, 2)]),
)


@settings(max_examples=60, deadline=None)
@given(columns=st.dictionaries(NAMES, COLUMNS, max_size=4))
def test_what_is_saved_is_loaded(tmp_path_factory: pytest.TempPathFactory, columns: Columns):
    file = tmp_path_factory.mktemp("rows") / "a.npy"
    np.save(file, np.zeros((N, 8, 8, 3), np.uint8))
    save_rows(rows_file_of(file), columns)
    first = rows_file_of(file).read_bytes()
    loaded = load_rows(file)
    assert list(loaded) == list(columns)
    for name, column in columns.items():
        assert loaded[name].dtype == column.dtype
        np.testing.assert_array_equal(loaded[name], column)
    assert all(t.shape == (N,) and t.dtype == np.float32 for t in targets_of(loaded).values())
    save_rows(rows_file_of(file), columns)
    assert rows_file_of(file).read_bytes() == first
    assert sorted(p.name for p in file.parent.iterdir()) == ["a.npy", "a.rows.npz"]


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code of the file was run",)


def test_objects_are_never_loaded(file: Path, capsys: pytest.CaptureFixture[str]):
    np.savez(rows_file_of(file), reward=np.zeros(N), bad=np.array([Evil()] * N, object), allow_pickle=True)
    with pytest.raises(InputError, match=r"rows\.npz"):
        load_rows(file)
    assert capsys.readouterr().out == ""


def test_damaged_rows_and_frames(file: Path):
    rows = rows_file_of(file)
    assert rows == file.parent / "walk.v2.rows.npz"
    assert load_rows(file) == {}
    for shape in ((N - 1,), (N + 1, 2), ()):
        np.savez(rows, reward=np.zeros(N), short=np.zeros(shape))
        with pytest.raises(InputError, match=r"rows\.npz .*walk\.v2\.npy: its 'short'"):
            load_rows(file)
    np.savez(rows, reward=np.arange(N * 1000).reshape(N, 1000))
    whole = rows.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    for damaged in (b"", whole[:-30], bytes(flipped)):
        rows.write_bytes(damaged)
        with pytest.raises(InputError, match=r"rows\.npz"):
            load_rows(file)
    rows.write_bytes(whole)
    assert load_rows(file)["reward"].shape == (N, 1000)
    file.write_bytes(b"no frames")
    with pytest.raises(InputError, match=r"walk\.v2\.npy"):
        load_rows(file)
    file.unlink()
    with pytest.raises(InputError, match=r"walk\.v2\.npy"):  # rows of nothing
        load_rows(file)


def test_rows_of_arrays_and_slices(file: Path):
    np.savez(rows_file_of(file), reward=np.arange(N))
    (dataset,) = get_datasets(file.parent)
    assert rows_of(dataset)["reward"].tolist() == list(range(N))
    assert rows_of(dataset[1:][1:4])["reward"].tolist() == [2, 3, 4]
    for other in (dataset[::-1], dataset[::2], np.array(dataset)):  # not in the order of the file, or of no file
        assert rows_of(other) == {}


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=30))
def test_transitions_are_those_that_the_definition_names(flags: list[tuple[bool, bool]]):
    rows = {"acted": np.array([a for a, _ in flags], bool), "first": np.array([f for _, f in flags], bool)}
    found = transitions_of(rows)
    assert found.tolist() == [i for i in range(len(flags) - 1) if flags[i][0] and not flags[i + 1][1]]
    assert found.dtype == np.int64
    assert transitions_of({"acted": rows["acted"]}).tolist() == []


def test_targets():
    rows = {
        "action": np.array([1, 2]),
        "first": np.array([True, False]),
        "state$HEALTH": np.array([100, 50], np.float32),
        "state$ANGLE": np.array([90, 359], np.float32),
        "state$text": np.array(["a", "b"]),
        "object$Imp": np.array([[1, 0.5, 0.25, 0.1, 0.2], [0, 0, 0, 0, 0]], np.float32),
        "observation$compass$angle": np.array([-180, 30], np.float32),
        "observation$flags": np.array([[True, False], [False, True]]),
        "observation$empty": np.zeros((2, 0)),
    }
    nan = np.nan
    expected = {
        "state$HEALTH": [100, 50],
        "state$ANGLE.sin": [1, -0.017452],
        "state$ANGLE.cos": [0, 0.999848],
        "object$Imp.visible": [1, 0],
        "object$Imp.x": [0.5, nan],
        "object$Imp.y": [0.25, nan],
        "object$Imp.width": [0.1, nan],
        "object$Imp.height": [0.2, nan],
        "observation$compass$angle.sin": [0, 0.5],
        "observation$compass$angle.cos": [-1, 0.866025],
        "observation$flags.0": [1, 0],
        "observation$flags.1": [0, 1],
    }
    targets = targets_of(rows)
    assert list(targets) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(targets[name], np.array(values, np.float32), atol=1e-6, err_msg=name)
        assert targets[name].dtype == np.float32
    np.testing.assert_array_equal(rows["object$Imp"][1], 0)  # what was given is left as it was


def test_other_readers_of_a_folder_pass_rows_over(file: Path, tmp_path: Path):
    np.savez(rows_file_of(file), reward=np.zeros(N))
    assert [Path(str(d.filename)).name for d in get_datasets(tmp_path)] == ["walk.v2.npy"]
    assert not frame_stats(tmp_path).refused
    recordings, damaged = find_recordings([tmp_path])
    assert ([r.source for r in recordings if r.kind != "pictures"], damaged) == ([file], [])


# --- what follows each frame: checked by the pixels themselves, across ends of episodes, files and slices


class Counter(gym.Env):
    """Red is the number of the episode, green the step, blue the sum of the actions; of four steps, the last may show
    black."""

    observation_space = spaces.Box(0, 255, (8, 8, 3), np.uint8)
    action_space = spaces.Discrete(5)

    def __init__(self, ends_black: bool = False) -> None:
        self.ends_black, self.story = ends_black, [-1, 0, 0]

    def see(self) -> NDArray[np.uint8]:
        return np.full((8, 8, 3), np.array([self.story[0] % 200 + 1, *self.story[1:]], np.uint8))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.story = [self.story[0] + 1, 0, 0]
        return self.see(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.story = [self.story[0], self.story[1] + 1, self.story[2] + int(action)]
        over = self.story[1] == 4
        picture = np.zeros((8, 8, 3), np.uint8) if over and self.ends_black else self.see()
        return picture, float(action) / 2 + over, over, False, {}


gym.register("test/Steps-v0", lambda **kwargs: Counter(**kwargs))


@pytest.fixture(scope="module", params=[False, True], ids=["shown", "black"])
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bool]:
    folder, options = tmp_path_factory.mktemp("recorded") / "frames", {"ends_black": request.param}
    config = RecordConfig("test/Steps-v0", folder, 90, 31, size=8, policy="random", env_kwargs=options)
    return record(config, say=lambda _: None), request.param


def read(datasets: Sequence[NDArray[np.uint8]], size: int, *, acts: bool = True, **kwargs: Any) -> SuperBatch:
    transitions = Transitions(datasets, acts=acts)
    with SuperBatches(datasets, size, epochs=1, replace_small=True, transitions=transitions, **kwargs) as batches:
        return next(batches)


def check_story(batch: SuperBatch) -> None:
    """Whatever follows is of the same episode, one step later, and the action's sum; else it is the frame itself."""
    frames, after = (batch[name][:, 0, 0].astype(int) for name in ("frames", "after"))
    follows = batch["follows"]
    np.testing.assert_array_equal(after[follows, :2], frames[follows, :2] + [0, 1])
    np.testing.assert_array_equal(after[follows, 2] - frames[follows, 2], batch["action"][follows])
    np.testing.assert_array_equal(batch["after"][~follows], batch["frames"][~follows])
    over = frames[:, 1] == 3
    np.testing.assert_array_equal(batch["reward"][batch["acted"]], (batch["action"] / 2 + over)[batch["acted"]])


def test_recorded_frames_are_followed_by_what_came_next(recorded: tuple[Path, bool]):
    folder, black = recorded
    datasets = get_datasets(folder)
    transitions = Transitions(datasets, acts=True)
    assert transitions.actions == ActionKind("discrete", 5)
    batch = read(datasets, 1000)
    check_story(batch)
    steps = batch["frames"][:, 0, 0, 1]
    # Frames of step 3 are followed by a picture of step 4 only where that one was kept; steps end either way.
    assert batch["follows"][steps == 3].any() != black
    assert not batch["follows"][steps == 4].any()
    assert batch["follows"][steps < 3].mean() > 0.9  # but for ends of files
    assert batch["acted"][steps == 3].mean() > 0.8
    assert batch["acted"][batch["follows"]].all()
    sampled = np.concatenate(list(transitions.column("reward")))
    assert (sampled >= 1).any()  # the reward of ending is among those that the head is fitted to
    assert len(sampled) == sum(int(np.load(f)["acted"].sum()) for f in folder.glob("*.rows.npz"))


def test_slices_and_sides_of_a_split_have_their_own_frames_only(recorded: tuple[Path, bool], tmp_path: Path):
    for file in recorded[0].glob("*_000.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    datasets = get_datasets(tmp_path)
    training, held_out = split_held_out(datasets)
    for cut in (*training, *held_out, datasets[0][12:14], datasets[0][5:20]):
        batch = read([cut], len(cut), acts=len(cut) > 5)
        if "action" in batch:
            check_story(batch)
        assert {bytes(frame) for frame in batch["after"]} <= {bytes(frame) for frame in cut}


def files(folder: Path, lengths: Sequence[int], rows: Sequence[Columns | None]) -> list[np.memmap]:
    """Files whose pixels are (number of the file, number of the frame)."""
    for i, (length, columns) in enumerate(zip(lengths, rows, strict=True)):
        frames = np.zeros((length, 4, 4, 3), np.uint8)
        frames[..., 0], frames[..., 1] = i, np.arange(length)[:, None, None]
        np.save(folder / f"{i}.npy", frames)
        if columns is not None:
            save_rows(folder / f"{i}.rows.npz", columns)
    return get_datasets(folder)


def actions(length: int, **more: Any) -> Columns:
    return {"action": np.arange(length) % 3, "reward": np.arange(length, dtype=np.float64), **more}


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_the_successor_is_right_for_any_rows(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=3))
    flags = [
        {
            name: np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
            for name in ("acted", "first")
            if data.draw(st.booleans())
        }
        for n in lengths
    ]
    datasets = files(tmp_path_factory.mktemp("any"), lengths, [columns or None for columns in flags])
    cut = [dataset[data.draw(st.integers(0, len(dataset) - 1)) :] for dataset in datasets]
    size = data.draw(st.integers(1, 30))
    places = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=40, unique=True)))
    whole = read(cut, size, acts=False)
    for at in range(size):
        file, row = (int(v) for v in whole["frames"][at, 0, 0, :2])
        known = flags[file]
        follows = row + 1 < lengths[file]
        follows = follows and not ("first" in known and known["first"][row + 1])
        follows = follows and bool("acted" not in known or known["acted"][row])
        assert bool(whole["follows"][at]) is follows
        assert whole["after"][at, 0, 0, :2].tolist() == [file, row + follows]
    for name, values in read(cut, size, acts=False, places=places).items():
        np.testing.assert_array_equal(values, whole[name][places])


def test_what_has_no_rows_has_next_frames_and_no_actions(tmp_path: Path):
    datasets = files(tmp_path, [6], [actions(6)])
    for dataset in (np.asarray(datasets[0]).copy(), datasets[0][::-1]):  # in no file, and not in a file's order
        batch = read([dataset], 6, acts=False)
        assert set(batch) == {"frames", "after", "follows"}
        assert batch["follows"].sum() == 5
        with pytest.raises(InputError, match="no actions and rewards"):
            Transitions([dataset], acts=True)


BAD: dict[str, tuple[list[Columns], str]] = {
    "no reward": ([actions(4), {"action": np.zeros(4)}], r"1\.npy"),
    "in parts": (
        [actions(4), {"action$camera": np.zeros((4, 2)), "action$jump": np.zeros(4), "reward": np.zeros(4)}],
        r"1\.npy .*action\$camera, action\$jump",
    ),
    "negative": ([actions(4), actions(4, action=np.array([0, -2, 1, 0]))], r"1\.npy .*-2"),
    "kinds": ([actions(4), actions(4, action=np.zeros((4, 2)))], r"discrete.*0\.npy; continuous ones of 2"),
    "text": ([actions(4), actions(4, action=np.array(["a"] * 4))], r"1\.npy"),
    "no step": ([actions(4, acted=np.zeros(4, bool))] * 2, r"0\.npy .*no step"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_trained_on_is_named_with_its_file(tmp_path: Path, case: str):
    rows, message = BAD[case]
    with pytest.raises(InputError, match=message):
        Transitions(files(tmp_path, [4, 4], rows), acts=True)


def test_actions_of_several_types_become_one(tmp_path: Path):
    whole = [actions(4, action=np.array([0, 1, 2, 0], np.uint8)), actions(4, action=np.array([300, 0, 1, 0]))]
    datasets = files(tmp_path, [4, 4], whole)
    assert Transitions(datasets, acts=True).actions == ActionKind("discrete", 301)
    batch = read(datasets, 60)
    assert batch["action"].dtype == np.int64
    assert (batch["action"] == 300).any()
    real = [actions(4, action=np.linspace(0, 1, 4)), actions(4, action=np.linspace(2, 3, 4, dtype=np.float32)[:, None])]
    datasets = files(tmp_path, [4, 4], real)
    assert Transitions(datasets, acts=True).actions == ActionKind("continuous", 1)
    batch = read(datasets, 60)
    assert (batch["action"].dtype, batch["action"].shape) == (np.float32, (60, 1))
    assert batch["reward"].dtype == np.float32


@pytest.mark.parametrize("places", [None, np.array([3, 0, 29, 11])])
def test_super_batches_are_those_without_and_repeat_with_seed_and_epoch(
    tmp_path: Path, places: NDArray[np.int64] | None
):
    datasets = files(tmp_path, [40, 50, 60], [actions(n, first=np.arange(n) % 7 == 0) for n in (40, 50, 60)])
    options: dict[str, Any] = {"transitions": Transitions(datasets, acts=True), "places": places, "seed": 5}
    with SuperBatches(datasets, 30, epochs=4, **options) as batches:
        seen = list(batches)
    for epoch, batch in enumerate(seen):
        plain = get_random_samples(datasets, 30, normalize=False, seed=np.random.default_rng([5, epoch]))
        np.testing.assert_array_equal(batch["frames"], plain if places is None else plain[places])
        row = batch["frames"][:, 0, 0, 1].astype(int)
        np.testing.assert_array_equal(batch["after"][:, 0, 0, 1], row + batch["follows"])
        np.testing.assert_array_equal(batch["action"], row % 3)
    with SuperBatches(datasets, 30, start_epoch=2, epochs=4, **options) as resumed:
        for one, other in zip(seen[2:], resumed, strict=True):
            assert one.keys() == other.keys()
            assert all(np.array_equal(one[name], other[name]) for name in one)
