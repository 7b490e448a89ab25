"""What recording keeps beside the frames: transitions that follow from the files alone, whatever interrupts them."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from latent_obs.util.errors import InputError
from vae_training.data.frames import get_datasets
from vae_training.data.npy_writer import part_of
from vae_training.data.rows import load_rows, rows_file_of, transitions_of
from vae_training.recording.recorder import RecordConfig, record
from vae_training.recording.state import Numbers, RowsTable

TOP = 250  # sums are taken modulo this, so that 255 stays free
PLAIN = {"action", "reward", "terminated", "truncated", "acted", "first"}
SPACES: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(7, start=-3),
    "binary": spaces.MultiBinary(5),
    "box": spaces.Box(-4, 4, (2, 3), np.float64),
    "dict": spaces.Dict(
        camera=spaces.Box(-9, 9, (2,), np.float32),
        jump=spaces.Discrete(2),
        deep=spaces.Dict(use=spaces.MultiBinary(2)),
        say=spaces.Text(5),
    ),
    "tuple": spaces.Tuple((spaces.Discrete(4), spaces.MultiBinary(2))),
}


def total(action: Any) -> int:
    """A whole number that an action stands for: the sum of its numbers, rounded."""
    if isinstance(action, dict):
        return sum(total(action[key]) for key in sorted(action) if key != "say")
    return sum(map(total, action)) if isinstance(action, tuple) else int(np.round(np.sum(action)))


class Sums(gym.Env):
    """Red is the sum of all actions since the reset (modulo TOP), green the number of the episode, blue the step.

    Episodes have 1 to 6 steps, end as terminated and truncated by turns, and reward what the red is after the step.

    Args:
        end: "shown", the last picture shows the sum; "black"; or "repeated", the one before once more.
        actions: Key of `SPACES`.
        breaks: "step 7": Ctrl-C during the seventh call of that function.
    """

    def __init__(self, end: str = "shown", actions: str = "discrete", breaks: str = "", beside: bool = False) -> None:
        self.end, self.beside = end, beside
        self.action_space = SPACES[actions]
        picture = spaces.Box(0, 255, (8, 8, 3), np.uint8)
        self.observation_space: spaces.Space[Any] = picture
        if beside:
            self.observation_space = spaces.Dict(
                pov=picture,
                depth=spaces.Box(0, 255, (8, 8, 1), np.uint8),
                heat=spaces.Box(-1, 1, (4, 4), np.float32),
                sum=spaces.Discrete(TOP),
                compass=spaces.Dict(angle=spaces.Box(-180, 180, (), np.float64)),
                pair=spaces.Box(-9, 999, (2,), np.int32),
                text=spaces.Text(9),
            )
        self.breaks = breaks.split()
        self.calls = {"step": 0, "reset": 0}
        self.sum = self.episode = self.steps = 0

    def _call(self, name: str) -> None:
        self.calls[name] += 1
        if self.breaks[:1] == [name] and self.calls[name] == int(self.breaks[1]):
            raise KeyboardInterrupt if self.breaks[2:] != ["error"] else InputError("the game is gone")

    def _see(self) -> Any:
        picture = np.zeros((8, 8, 3), np.uint8)
        picture[:] = self.sum % TOP, self.episode, self.steps + 1
        if not self.beside:
            return picture
        return {
            "pov": picture,
            "depth": picture[..., :1],
            "heat": np.zeros((4, 4), np.float32),
            "sum": self.sum % TOP,
            "compass": {"angle": np.array(self.steps * 10.5)},
            "text": "hello",
            "pair": np.array([self.steps, self.episode], np.int32),
        }

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._call("reset")
        self.episode = 0 if seed is not None else self.episode + 1
        self.sum, self.steps = 10 * self.episode, 0
        self.last = self._see()
        return self.last, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._call("step")
        assert action in self.action_space
        self.sum, self.steps = self.sum + total(action), self.steps + 1
        over = self.steps == self.episode * 5 % 6 + 1
        if not over or self.end == "shown":
            self.last = self._see()
        else:
            self.last = self.last.copy() if self.end == "repeated" else np.zeros_like(self.last)
        return self.last, float(self.sum % TOP), over and self.episode % 2 == 0, over and self.episode % 2 == 1, {}


gym.register("test/Sums-v0", lambda **kwargs: Sums(**kwargs))


def config(out: Path, **changes: Any) -> RecordConfig:
    kwargs = {key: changes.pop(key) for key in ("end", "actions", "breaks", "beside") if key in changes}
    settings = {"env": "test/Sums-v0", "out": out, "frames": 60, "frames_per_file": 25, "size": 8, "policy": "random"}
    return RecordConfig(**{**settings, **changes, "env_kwargs": kwargs})


def files(folder: Path) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """The first pixel of each frame, and the rows, of each file."""
    for file in sorted(folder.glob("*.npy")):
        rows = load_rows(file)
        pixels = np.load(file)[:, 0, 0].astype(int)
        assert {len(column) for column in rows.values()} == {len(pixels)}
        yield pixels, rows


def check(pixels: np.ndarray, rows: dict[str, np.ndarray], shown: bool) -> None:
    """The rows of a file say what its pixels say."""
    red, green, blue = pixels.T
    last = len(red) - 1
    lengths = green * 5 % 6 + 1
    np.testing.assert_array_equal(rows["first"], blue == 1)
    transitions = transitions_of(rows)
    # All neighbours of one episode, and no others.
    np.testing.assert_array_equal(transitions, np.flatnonzero(green[1:] == green[:-1]))
    np.testing.assert_array_equal(red[transitions + 1], (red[transitions] + rows["action"][transitions]) % TOP)
    np.testing.assert_array_equal(red[transitions + 1], rows["reward"][transitions])
    np.testing.assert_array_equal(blue[transitions + 1], blue[transitions] + 1)
    # A step ends an episode where its length says so, by turns in two ways; the file's last frame has no step.
    steps = np.arange(len(red)) < last
    ends = steps & (blue == lengths)
    np.testing.assert_array_equal(rows["terminated"], ends & (green % 2 == 0))
    np.testing.assert_array_equal(rows["truncated"], ends & (green % 2 == 1))
    # Where the last picture is kept nothing is done at it; where not, the episode's last frame has its step all the
    # same.
    np.testing.assert_array_equal(rows["acted"], steps & (blue <= lengths))
    assert shown or not (blue > lengths).any()
    for name in ("action", "reward", "terminated", "truncated"):
        assert not rows[name][~rows["acted"]].any()


@pytest.mark.parametrize("end", ["shown", "black", "repeated"])
@pytest.mark.parametrize("frames_per_file", [1, 26])
def test_transitions_follow_from_the_files_alone(tmp_path: Path, end: str, frames_per_file: int):
    frames = 60 if frames_per_file == 26 else 9
    record(config(tmp_path, end=end, frames=frames, frames_per_file=frames_per_file, state=False, policy="sticky"))
    kept = 0
    for pixels, rows in files(tmp_path):
        assert set(rows) == PLAIN
        check(pixels, rows, shown=end == "shown")
        # The last step of an episode counts for its frame, whether its outcome is shown or not.
        over = rows["terminated"] | rows["truncated"]
        np.testing.assert_array_equal(rows["reward"][over], ((pixels[:, 0] + rows["action"]) % TOP)[over])
        if len(pixels) == 26:
            assert (pixels[:, 2] > pixels[:, 1] * 5 % 6 + 1).any() == (end == "shown")
            assert min(rows[name].sum() for name in ("terminated", "truncated")) > 1
        assert not rows["acted"][-1]
        assert rows["first"][0]
        kept += len(pixels)
    assert kept == frames


@pytest.mark.parametrize(
    ("actions", "expected"),
    [
        ("discrete", {"action": ((), "i8")}),
        ("binary", {"action": ((5,), "i1")}),
        ("box", {"action": ((6,), "f4")}),
        ("dict", {"action$camera": ((2,), "f4"), "action$jump": ((), "i8"), "action$deep$use": ((2,), "i1")}),
        ("tuple", {"action$0": ((), "i8"), "action$1": ((2,), "i1")}),
    ],
)
def test_actions_of_all_spaces(tmp_path: Path, actions: str, expected: dict[str, tuple[tuple[int, ...], str]]):
    record(config(tmp_path, actions=actions, frames=25))
    ((pixels, rows),) = files(tmp_path)
    found = {
        name: (column.shape[1:], column.dtype.str[1:]) for name, column in rows.items() if name.startswith("action")
    }
    assert found == expected
    numbers = np.sum([np.round(rows[name].reshape(25, -1).sum(axis=1)) for name in found], axis=0)
    i = transitions_of(rows)
    np.testing.assert_array_equal(pixels[i + 1, 0], (pixels[i, 0] + numbers[i]) % TOP)
    assert any(rows[name].any() for name in found)


def test_numbers_beside_the_picture(tmp_path: Path):
    record(config(tmp_path, beside=True, frames=25, pixel_key="pov"))
    ((pixels, rows),) = files(tmp_path)
    numbers = {name: column for name, column in rows.items() if name not in PLAIN}
    assert {name: (column.dtype.str[1:], column.shape[1:]) for name, column in numbers.items()} == {
        "observation$sum": ("i8", ()),
        "observation$compass$angle": ("f4", ()),
        "observation$pair": ("i4", (2,)),
    }
    red, green, blue = pixels.T
    np.testing.assert_array_equal(numbers["observation$sum"], red)
    np.testing.assert_array_equal(numbers["observation$compass$angle"], (blue - 1) * np.float32(10.5))
    np.testing.assert_array_equal(numbers["observation$pair"], np.stack([blue - 1, green], axis=1))
    record(config(tmp_path / "b", beside=True, frames=25, pixel_key="pov", state=False))
    ((others, plain),) = files(tmp_path / "b")
    np.testing.assert_array_equal(others, pixels)
    assert set(plain) == PLAIN


def test_an_observation_that_its_space_does_not_allow():
    numbers = Numbers(spaces.Dict(a=spaces.Box(0, 1, (2,)), b=spaces.Discrete(3)), "observation", most_axes=1)
    assert {name: np.asarray(v).tolist() for name, v in numbers({"a": [[0.5, 1]], "b": [2]}).items()} == {
        "observation$a": [0.5, 1],
        "observation$b": 2,
    }
    for wrong in ({"a": [1, 2, 3], "b": 0}, {"b": 0}, {"a": [0, 1], "b": "x"}, None):
        with pytest.raises(InputError, match=r"observation\$[ab]"):
            numbers(wrong)


# --- cut short


@pytest.mark.parametrize(("where", "call"), [("step", 1), ("step", 11), ("reset", 1), ("reset", 4)])
def test_interrupted_in_the_game(tmp_path: Path, where: str, call: int):
    """As a second Ctrl-C does it, or an error in the game: whatever was recorded has its rows."""
    record(config(tmp_path / "a", end="black", breaks=f"{where} {call}"))
    with pytest.raises(InputError, match="the game is gone"):
        record(config(tmp_path / "b", end="black", breaks=f"{where} {call} error"))
    for folder in (tmp_path / "a", tmp_path / "b"):
        frames = 0
        for pixels, rows in files(folder):
            check(pixels, rows, shown=False)
            frames += len(pixels)
        assert frames >= (call - 1 if (where, call) != ("reset", 1) else 0)
        assert not list(folder.glob("*.part"))
        assert not list(folder.glob(".*"))


def test_rows_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The frames are kept, and the lack is named: a full disk, here a name that is taken."""
    (tmp_path / ".test-Sums-v0_001.rows.part.npz" / "taken").mkdir(parents=True)
    record(config(tmp_path))
    assert [len(d) for d in get_datasets(tmp_path)] == [25, 25, 10]
    loaded = [load_rows(tmp_path / f"test-Sums-v0_00{i}.npy") for i in range(3)]
    assert [bool(rows) for rows in loaded] == [True, False, True]
    named = [line for line in capsys.readouterr().out.splitlines() if "no rows" in line]
    assert [line.split()[0] for line in named] == [str(tmp_path / "test-Sums-v0_001.npy")]


def test_rows_of_a_file_that_was_removed_are_not_anothers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """They are gone before the first step, so that no kill can leave them to the new file of that name."""
    record(config(tmp_path, frames=25))
    file = tmp_path / "test-Sums-v0_000.npy"
    file.unlink()
    assert rows_file_of(file).exists()
    step, looked = Sums.step, []

    def look(self: Sums, action: Any) -> Any:
        looked.append(part_of(file).exists() and not rows_file_of(file).exists())
        return step(self, action)

    monkeypatch.setattr(Sums, "step", look)
    record(config(tmp_path, frames=9))
    assert looked
    assert all(looked)
    assert len(load_rows(file)["acted"]) == 9


@pytest.mark.parametrize("cut", [0, 1])
def test_killed_between_the_rows_and_the_end_of_their_file(tmp_path: Path, cut: int):
    record(config(tmp_path, frames=25))
    file = tmp_path / "test-Sums-v0_000.npy"
    rows = load_rows(file)
    file.rename(part_of(file))
    os.truncate(part_of(file), part_of(file).stat().st_size - cut * 8 * 8 * 3)  # as on a disk that lost its last pages
    record(config(tmp_path, frames=25 - cut))
    assert len(np.load(file)) == 25 - cut
    assert set(load_rows(file)) == (set() if cut else set(rows))
    assert rows_file_of(file).exists() != bool(cut)


# --- the table


def test_columns_that_come_late_and_many_rows():
    """More rows than the table begins with: what was not entered is 0."""
    table, number = RowsTable(spaces.Discrete(9)), np.arange(2999)
    for i in range(3000):
        late = {"object$Late": np.full(5, i, np.float32)} if i % 3 == 0 and i > 1500 else {}
        table.begin({"state$X": float(i), **late}, first=i % 10 == 0)
        if i % 10 != 9:
            table.end_step(i % 9, i % 5, terminated=False, truncated=i % 10 == 8)
    columns = table.columns(2999)
    acted = (number % 10 != 9) & (number < 2998)
    expected = {
        "state$X": number,
        "object$Late": np.tile(np.where((number % 3 == 0) & (number > 1500), number, 0)[:, None], 5),
        "first": number % 10 == 0,
        "acted": acted,
        "action": np.where(acted, number % 9, 0),
        "reward": np.where(acted, number % 5, 0),
        "truncated": acted & (number % 10 == 8),
    }
    for name, column in expected.items():
        np.testing.assert_array_equal(columns[name], column, name)


def test_rows_beyond_the_frames_are_dropped_and_none_is_no_file(tmp_path: Path):
    table = RowsTable(spaces.Discrete(2))
    table.save(tmp_path / "a.npy", 0)
    assert not list(tmp_path.iterdir())
    for i in range(4):
        table.begin({}, first=i == 0)
        table.end_step(1, 1, terminated=False, truncated=False)
    for frames in range(1, 5):
        assert table.columns(frames)["action"].tolist() == [1] * (frames - 1) + [0]
    assert table.columns(4)["action"].tolist() == [1, 1, 1, 0]  # columns() changes nothing in the table
