"""What follows each frame: checked by the pixels themselves, across ends of episodes, files and slices."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from latent_obs.util.errors import InputError
from vae_training.data.frames import get_datasets, split_held_out
from vae_training.data.loader import SuperBatches, get_random_samples, plan_draw
from vae_training.data.rows import save_rows
from vae_training.data.transitions import ActionKind, SuperBatch, Transitions
from vae_training.recording.recorder import RecordConfig, record

SHAPE = (4, 4, 3)
Columns = dict[str, NDArray[Any]]


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
        return (
            np.zeros((8, 8, 3), np.uint8) if over and self.ends_black else self.see(),
            float(action) / 2 + over,
            over,
            False,
            {},
        )


gym.register("test/Steps-v0", lambda **kwargs: Counter(**kwargs))


@pytest.fixture(scope="module", params=[False, True], ids=["shown", "black"])
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bool]:
    folder = tmp_path_factory.mktemp("recorded") / "frames"
    config = RecordConfig(
        env="test/Steps-v0",
        out=folder,
        frames=90,
        frames_per_file=31,
        size=8,
        policy="random",
        env_kwargs={"ends_black": request.param},
    )
    return record(config, say=lambda _: None), request.param


def read(
    datasets: Sequence[NDArray[np.uint8]], transitions: Transitions, size: int, seed: int = 0, **kwargs: Any
) -> SuperBatch:
    plan = plan_draw(datasets, size, None, seed=np.random.default_rng(seed), replace_small=True, **kwargs)
    count = size if kwargs.get("places") is None else len(kwargs["places"])
    frames, after = (np.full((count, *datasets[0].shape[1:]), 7, np.uint8) for _ in range(2))
    for index, rows, targets in plan:
        frames[targets] = datasets[index][rows]
    return transitions.read(plan, frames, after)


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
    batch = read(datasets, transitions, 1000)
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


def test_slices_have_the_rows_of_their_own_frames(recorded: tuple[Path, bool]):
    datasets = get_datasets(recorded[0])
    whole = Transitions(datasets[:1], acts=True)
    expected = whole._rows[0]
    for start, stop in ((0, 12), (5, 20), (12, 14), (17, 31)):
        cut = datasets[0][start:stop]
        transitions = Transitions([cut], acts=True)
        check_story(read([cut], transitions, stop - start))
        for name in ("action", "reward", "acted"):
            np.testing.assert_array_equal(transitions._rows[0][name], expected[name][start:stop])
        follows = transitions._rows[0]["follows"]
        assert not follows[-1]  # the next frame is not in the slice: another side of a split must not see it
        np.testing.assert_array_equal(follows[:-1], expected["follows"][start : stop - 1])


def test_the_split_of_a_single_recording_keeps_both_sides_apart(recorded: tuple[Path, bool], tmp_path: Path):
    for file in recorded[0].glob("*_000.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    training, held_out = split_held_out(get_datasets(tmp_path))
    for side in (training, held_out):
        batch = read(side, Transitions(side, acts=False), 60)
        inside = {bytes(frame) for frame in side[0]}
        assert {bytes(frame) for frame in batch["after"]} <= inside
    check_story(read(training, Transitions(training, acts=True), 60))


def files(folder: Path, lengths: Sequence[int], rows: Sequence[Columns | None]) -> list[np.memmap]:
    """Files whose pixels are (number of the file, number of the frame)."""
    for i, (length, columns) in enumerate(zip(lengths, rows, strict=True)):
        frames = np.zeros((length, *SHAPE), np.uint8)
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
    starts = [data.draw(st.integers(0, n - 1)) for n in lengths]
    cut = [dataset[start:] for dataset, start in zip(datasets, starts, strict=True)]
    size = data.draw(st.integers(1, 30))
    places = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=40, unique=True)))
    whole = read(cut, Transitions(cut, acts=False), size)
    for at in range(size):
        file, row = (int(v) for v in whole["frames"][at, 0, 0, :2])
        known = flags[file]
        follows = row + 1 < lengths[file]
        follows = follows and not ("first" in known and known["first"][row + 1])
        follows = follows and bool("acted" not in known or known["acted"][row])
        assert bool(whole["follows"][at]) is follows
        assert whole["after"][at, 0, 0, :2].tolist() == [file, row + follows]
    part = read(cut, Transitions(cut, acts=False), size, places=places)
    for name, values in part.items():
        np.testing.assert_array_equal(values, whole[name][places])


def test_what_has_no_rows_has_next_frames_and_no_actions(tmp_path: Path):
    datasets = files(tmp_path, [6], [actions(6)])
    for dataset in (np.asarray(datasets[0]).copy(), datasets[0][::-1]):  # in no file, and not in a file's order
        batch = read([dataset], Transitions([dataset], acts=False), 6)
        assert set(batch) == {"frames", "after", "follows"}
        assert batch["follows"].sum() == 5
        with pytest.raises(InputError, match="no actions and rewards"):
            Transitions([dataset], acts=True)


BAD = {
    "no reward": ([actions(4), {"action": np.zeros(4)}], r"1\.npy"),
    "in parts": (
        [actions(4), {"action$camera": np.zeros((4, 2)), "action$jump": np.zeros(4), "reward": np.zeros(4)}],
        r"1\.npy .*action\$camera, action\$jump",
    ),
    "negative": ([actions(4), actions(4, action=np.array([0, -2, 1, 0]))], r"1\.npy .*-2"),
    "kinds": ([actions(4), actions(4, action=np.zeros((4, 2)))], r"discrete.*0\.npy; continuous ones of 2"),
    "text": ([actions(4, action=np.array(["a"] * 4))] * 2, r"0\.npy .*<U1"),
    "no step": ([actions(4, acted=np.zeros(4, bool))] * 2, r"beside .*0\.npy .*no step"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_trained_on_is_named_with_its_file(tmp_path: Path, case: str):
    rows, message = BAD[case]
    datasets = files(tmp_path, [4, 4], rows)
    with pytest.raises(InputError, match=message):
        Transitions(datasets, acts=True)


def test_actions_of_several_types_become_one(tmp_path: Path):
    whole = [actions(4, action=np.array([0, 1, 2, 0], np.uint8)), actions(4, action=np.array([300, 0, 1, 0]))]
    datasets = files(tmp_path, [4, 4], whole)
    transitions = Transitions(datasets, acts=True)
    assert transitions.actions == ActionKind("discrete", 301)
    batch = read(datasets, transitions, 60)
    assert batch["action"].dtype == np.int64
    assert (batch["action"] == 300).any()
    real = [actions(4, action=np.linspace(0, 1, 4)), actions(4, action=np.linspace(2, 3, 4, dtype=np.float32)[:, None])]
    transitions = Transitions(files(tmp_path, [4, 4], real), acts=True)
    assert transitions.actions == ActionKind("continuous", 1)
    batch = read(datasets, transitions, 60)
    assert (batch["action"].dtype, batch["action"].shape) == (np.float32, (60, 1))
    assert batch["reward"].dtype == np.float32


@pytest.mark.parametrize("places", [None, np.array([3, 0, 29, 11])])
def test_super_batches_are_those_without_and_repeat_with_seed_and_epoch(
    tmp_path: Path, places: NDArray[np.int64] | None
):
    datasets = files(tmp_path, [40, 50, 60], [actions(n, first=np.arange(n) % 7 == 0) for n in (40, 50, 60)])
    transitions = Transitions(datasets, acts=True)
    with SuperBatches(datasets, 30, seed=5, epochs=4, transitions=transitions, places=places) as batches:
        seen = list(batches)
    with SuperBatches(datasets, 30, seed=5, start_epoch=2, epochs=4, transitions=transitions, places=places) as resumed:
        again = list(resumed)
    for epoch, batch in enumerate(seen):
        assert isinstance(batch, SuperBatch)
        plain = get_random_samples(datasets, 30, normalize=False, seed=np.random.default_rng([5, epoch]))
        np.testing.assert_array_equal(batch["frames"], plain if places is None else plain[places])
        row = batch["frames"][:, 0, 0, 1].astype(int)
        np.testing.assert_array_equal(batch["after"][:, 0, 0, 1], row + batch["follows"])
        np.testing.assert_array_equal(batch["action"], row % 3)
    for one, other in zip(seen[2:], again, strict=True):
        assert isinstance(one, SuperBatch)
        assert isinstance(other, SuperBatch)
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
