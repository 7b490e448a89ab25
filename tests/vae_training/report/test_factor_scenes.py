"""Factor scenes: drawn as Pillow draws them, every factor visible by itself, files that training opens."""

import colorsys
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from benchmarks.factor_scenes import SHAPES, FactorScenes
from latent_obs.util.errors import InputError
from vae_training.data.frames import get_datasets, split_held_out
from vae_training.data.rows import load_rows

_FINE = 16  # pixels of the oracle per pixel
NAMES = ["position_x", "position_y", "size", "shape", "hue", "orientation"]


def all_values(scenes: FactorScenes) -> np.ndarray:
    return np.array(list(itertools.product(*(range(f.values) for f in scenes.factors))))


def corners(shape: str, radius: float) -> list[tuple[float, float]]:
    """A shape of the area of a disc, unturned: x to the right, y up."""
    area = np.pi * radius**2
    if shape == "disc":
        return [(radius * np.cos(a), radius * np.sin(a)) for a in np.linspace(0, 2 * np.pi, 721)]
    if shape == "square":
        half = area**0.5 / 2
        return [(-half, -half), (half, -half), (half, half), (-half, half)]
    if shape == "triangle":
        outer = (area / (0.75 * 3**0.5)) ** 0.5
        return [(outer * np.cos(np.deg2rad(a)), outer * np.sin(np.deg2rad(a))) for a in (90, 210, 330)]
    bar = (area / 20) ** 0.5 * 2  # a plus of five squares of this side, of which each has a fifth of the area
    a, b = bar / 2, bar * 3 / 2
    return [(a, a), (b, a), (b, -a), (a, -a), (a, -b), (-a, -b), (-a, -a), (-b, -a), (-b, a), (-a, a), (-a, b), (a, b)]


def drawn_by_pillow(size: int, x: float, y: float, radius: float, shape: str, hue: float, degrees: float) -> np.ndarray:
    """The scene, from the formulas of the module's docstring: polygons at 16 times the size, made smaller."""
    turn = np.deg2rad(degrees)
    points = [
        (x + u * np.cos(turn) + v * np.sin(turn), y + u * np.sin(turn) - v * np.cos(turn))
        for u, v in corners(shape, radius)
    ]
    large = Image.new("L", (size * _FINE, size * _FINE))
    ImageDraw.Draw(large).polygon([(px * _FINE - 0.5, py * _FINE - 0.5) for px, py in points], fill=1)
    inside = np.asarray(large).astype(bool)
    pixel = (np.arange(size * _FINE) + 0.5) / _FINE
    ahead = (pixel[None] - x) * np.sin(turn) - (pixel[:, None] - y) * np.cos(turn)
    bright = 255 * np.array(colorsys.hsv_to_rgb(hue / 360, 1, 1))
    fine = np.where(inside[..., None], np.where((ahead > 0.25 * radius)[..., None], 0.35 * bright, bright), 40.0)
    return fine.reshape(size, _FINE, size, _FINE, 3).mean(axis=(1, 3))


@pytest.mark.parametrize("shape", SHAPES)
def test_drawn_as_pillow_draws_polygons(shape: str):
    scenes = FactorScenes(45, positions=5, sizes=3, hues=4, orientations=7)
    values = np.array([[1, 4, 2, SHAPES.index(shape), 2, 1], [3, 0, 1, SHAPES.index(shape), 1, 6]])
    for value, frame in zip(values, scenes.render(values), strict=True):
        x, y, s, _, hue, orientation = value / np.array([4, 4, 2, 1, 3, 6])
        radius = (0.08 + 0.07 * s) * 45
        place = ((0.25 + 0.5 * x) * 45, (0.25 + 0.5 * y) * 45)
        expected = drawn_by_pillow(45, *place, radius, shape, 240 * hue, 120 * orientation - 60)
        apart = np.abs(frame - expected)
        edge = 2 * np.pi * radius * 2  # pixels, more than any of the outlines crosses
        assert apart.max() < 0.2 * 255
        assert apart.mean(axis=2).sum() < 0.02 * 255 * edge


def test_colors_begin_at_red_and_end_at_blue():
    for hues, circular in ((5, False), (3, True)):
        scenes = FactorScenes(positions=1, sizes=1, shapes=1, hues=hues, orientations=1, circular=circular)
        below = scenes.render(np.arange(hues)[:, None])[:, 36, 32]
        assert below[[0, hues // 2, hues - 1]].tolist() == (255 * np.eye(3)).tolist()


@pytest.mark.parametrize("circular", [False, True])
def test_every_scene_is_one_of_its_own(circular: bool):
    scenes = FactorScenes(24, positions=2, sizes=2, hues=3, orientations=6, backgrounds=3, circular=circular)
    values = all_values(scenes)
    frames = scenes.render(values).reshape(len(values), -1)
    assert len(values) == 2 * 2 * 2 * 4 * 3 * 6 * 3
    assert len(np.unique(frames, axis=0)) == len(values)


def test_nothing_is_cut_off_at_the_border():
    """A shape in a corner of its range is the one in the middle, moved."""
    scenes = FactorScenes(32, positions=3, sizes=2, hues=1, orientations=24, circular=True)
    values, quarter = all_values(scenes), 8
    middle = scenes.render(values[(values[:, :2] == 1).all(axis=1)])
    assert (middle[:, [0, -1]] == 40).all()
    for x, y in itertools.product((0, 2), (0, 2)):
        corner = scenes.render(values[(values[:, :2] == (x, y)).all(axis=1)])
        np.testing.assert_array_equal(corner, np.roll(middle, (quarter * (y - 1), quarter * (x - 1)), axis=(1, 2)))


def test_a_factor_changes_only_what_it_is_about():
    scenes = FactorScenes(backgrounds=4)
    column = {factor.name: i for i, factor in enumerate(scenes.factors)}
    value = np.array([[5, 6, 3, 1, 2, 4, 1]])

    def changed(name: str, to: int) -> np.ndarray:
        other = value.copy()
        other[0, column[name]] = to
        return (scenes.render(value)[0] != scenes.render(other)[0]).any(axis=2)

    shape = changed("hue", 5)  # where the shape is
    rows, columns = np.nonzero(shape)
    assert 100 < shape.sum() < 400
    assert (abs(columns.mean() + 0.5 - (16 + 32 * 5 / 15)), abs(rows.mean() + 0.5 - (16 + 32 * 6 / 15))) < (0.5, 0.5)
    background = changed("background", 3)
    assert (background | shape).all()
    assert not (background & shape)[int(rows.mean()), int(columns.mean())]
    assert not changed("orientation", 5)[:5].any()
    for name, axis in (("position_x", 1), ("position_y", 0)):
        places = []
        for position in (0, 15):
            moved = value.copy()
            moved[0, column[name]] = position
            other = moved.copy()
            other[0, column["hue"]] = 5
            places.append(np.nonzero((scenes.render(moved) != scenes.render(other))[0].any(axis=2))[axis].mean())
        assert places[1] - places[0] == pytest.approx(32, abs=0.01)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), n=st.integers(1, 150))
def test_a_scene_is_the_same_alone_and_among_others(seed: int, n: int):
    scenes = FactorScenes(20, backgrounds=3)
    frames, values = scenes.sample(n, np.random.default_rng(seed))
    one = seed % n
    np.testing.assert_array_equal(frames[one], scenes.render(values[one : one + 1])[0])
    again, values_again = scenes.sample(n, np.random.default_rng(seed))
    np.testing.assert_array_equal(frames, again)
    np.testing.assert_array_equal(values, values_again)


def test_factors_are_even_and_independent():
    scenes = FactorScenes(backgrounds=3)
    values = scenes.sample_values(40_000, np.random.default_rng(0))
    assert [f.name for f in scenes.factors] == [*NAMES, "background"]
    assert [f.name for f in scenes.factors if not f.ordered] == ["shape"]
    for k, factor in enumerate(scenes.factors):
        counts, expected = np.bincount(values[:, k], minlength=factor.values), len(values) / factor.values
        assert len(counts) == factor.values
        assert np.abs(counts - expected).max() < 5 * expected**0.5
    assert np.abs(np.corrcoef(values.T) - np.eye(len(scenes.factors))).max() < 5 / len(values) ** 0.5
    fewer = FactorScenes(positions=1, hues=1, shapes=2)  # a factor of one value is none
    assert [f.name for f in fewer.factors] == ["size", "shape", "orientation"]


def test_files_that_training_opens(tmp_path: Path):
    scenes = FactorScenes(16, positions=6, backgrounds=2)
    files = scenes.write(tmp_path / "scenes", frames=403, files=4, seed=7)
    datasets = get_datasets(tmp_path / "scenes")
    assert [dataset.shape for dataset in datasets] == [(n, 16, 16, 3) for n in (101, 101, 101, 100)]
    assert [len(part) for part in split_held_out(datasets)] == [3, 1]
    for file, dataset in zip(files, datasets, strict=True):
        rows = load_rows(file)
        assert list(rows) == [f"factor${name}" for name in [*NAMES, "background"]]
        np.testing.assert_array_equal(dataset, scenes.render(np.stack(list(rows.values()), axis=1)))
    assert not (datasets[0][:100] == datasets[3]).all(axis=(1, 2, 3)).any()
    made_of = json.loads((tmp_path / "scenes" / "scenes.json").read_text())
    assert made_of["factors"][3] == {"name": "shape", "values": 4, "ordered": False}
    np.testing.assert_array_equal(
        FactorScenes(**made_of["arguments"]).render(np.ones((1, 7), int)), scenes.render(np.ones((1, 7), int))
    )
    FactorScenes(16, positions=6, backgrounds=2).write(tmp_path / "again", frames=403, files=4, seed=7)
    for file in (tmp_path / "scenes").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()
    scenes.write(tmp_path / "other", frames=403, files=4, seed=8)
    assert files[0].read_bytes() != (tmp_path / "other" / files[0].name).read_bytes()
    with pytest.raises(InputError, match="exists"):
        scenes.write(tmp_path / "scenes", frames=40, files=2)


def test_no_frames_without_their_rows_after_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    scenes, calls = FactorScenes(16), []
    render = scenes.render

    def interrupted(values: Any) -> Any:
        calls.append(len(values))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return render(values)

    monkeypatch.setattr(scenes, "render", interrupted)
    with pytest.raises(KeyboardInterrupt):
        scenes.write(tmp_path, frames=3000, files=2)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["scenes.json", "scenes_000.npy", "scenes_000.rows.npz"]


def test_scenes_and_values_that_cannot_be(tmp_path: Path):
    one_value: dict[str, Any] = {"positions": 1, "sizes": 1, "shapes": 1, "hues": 1, "orientations": 1}
    cases: list[tuple[dict[str, Any], str]] = [({"size": 8}, "size"), ({"shapes": 5}, "shapes"), (one_value, "varies")]
    for arguments, named in cases:
        with pytest.raises(InputError, match=named):
            FactorScenes(**arguments)
    scenes = FactorScenes(16)
    assert scenes.render(np.zeros((0, 6), int)).shape == (0, 16, 16, 3)
    for values in (np.zeros((3, 5), int), np.zeros((3, 6)), np.full((1, 6), -1)):
        with pytest.raises(InputError, match="values"):
            scenes.render(values)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="shape"):
        scenes.render(np.array([[0] * 6, [0, 0, 0, 4, 0, 0]]))
    with pytest.raises(InputError, match="frames"):
        scenes.write(tmp_path, frames=3, files=4)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file"):
        scenes.write(tmp_path / "file")
