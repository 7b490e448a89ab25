"""The composed picture: any parts make a frame that video takes, and a latent's numbers can be read off it."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

pytest.importorskip("stable_baselines3")

from agents.play.policy import Decision
from agents.play.show import LatentPicture, Picture, compose, draw_latent

GAME = np.full((48, 64, 3), (200, 30, 90), np.uint8)
SEEN = np.full((16, 16, 3), (10, 220, 30), np.uint8)


def latent(values: Any, shape: tuple[int, int, int] | None = None) -> LatentPicture:
    return LatentPicture(np.asarray(values, np.float64), shape, "latent")


def decision(levels: list[float], chosen: int = 0, signed: bool = False) -> Decision:
    count = len(levels)
    names = tuple(f"action {i}" for i in range(count))
    return Decision("action", names, tuple(levels), ("",) * count, tuple(i == chosen for i in range(count)), signed)


def bluish(picture: Picture) -> NDArray[np.bool_]:
    """Where bars go up: blue, and at full strength."""
    return np.asarray((picture[..., 2] > 200) & (picture[..., 0] < 150))


def orange(picture: Picture) -> NDArray[np.bool_]:
    """Where bars go down."""
    return np.asarray((picture[..., 0] > 200) & (picture[..., 2] < 100) & (picture[..., 1] < 180))


@settings(deadline=None, max_examples=10)
@given(
    st.sampled_from([(48, 64, 3), (240, 320, 3), (600, 500, 3), (64, 64, 1), (84, 84, 4), (7, 300, 3)]),
    st.booleans(),
    st.sampled_from([None, 1, 7, 64, 256, 5_000]),
    st.sampled_from([0, 1, 4, 17, 60]),
    st.booleans(),
    st.sampled_from([1, 1.37, 2]),
)
def test_any_parts_make_a_picture_that_video_takes(
    shape: tuple[int, int, int], seen: bool, size: int | None, actions: int, signed: bool, scale: float
):
    sheet = compose(
        np.zeros(shape, np.uint8),
        title="x" * 300,
        seen=SEEN if seen else None,
        latent=None if size is None else latent(np.linspace(-2, 2, size)),
        footer="y" * 300,
        scale=scale,
        decision=decision([1 / actions] * actions, signed=signed) if actions else None,
    )
    assert sheet.dtype == np.uint8
    assert sheet.shape[0] % 2 == sheet.shape[1] % 2 == 0


def test_every_part_is_there_and_a_missing_one_takes_no_space():
    parts: dict[str, Any] = {
        "seen": SEEN,
        "latent": latent(np.ones(4)),
        "decision": decision([0.5, 0.5]),
        "footer": "f",
    }
    whole = compose(GAME, title="", **parts)
    assert (whole == GAME[0, 0]).all(-1).any()
    assert (whole == SEEN[0, 0]).all(-1).any()
    for name in parts:
        without = compose(GAME, title="", **{**parts, name: None})
        assert without.shape[0] * without.shape[1] < whole.shape[0] * whole.shape[1]
    double = compose(GAME, title="", **{**parts, "footer": None}, scale=2)
    once = compose(GAME, title="", **{**parts, "footer": None})
    assert double.shape == (2 * once.shape[0], 2 * once.shape[1], 3)


@settings(deadline=None, max_examples=15)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=128), st.integers(256, 800), st.integers(20, 120))
def test_bars_are_as_high_as_their_values(values: list[float], width: int, height: int):
    sheet = draw_latent(latent(values), width, height)
    assert sheet.shape == (height, width, 3)
    half = (height - 1) // 2
    edges = np.linspace(0, width, len(values) + 1).round().astype(int)
    for value, left in zip(values, edges, strict=False):
        assert abs(bluish(sheet[:, left]).sum() - half * max(value, 0)) <= 0.5 + 1e-9
        assert abs(orange(sheet[:, left]).sum() - half * max(-value, 0)) <= 0.5 + 1e-9


def test_thousands_of_values_are_in_rows():
    values = np.zeros(2_000)
    values[[0, 1_999]] = 1.0
    sheet = bluish(draw_latent(latent(values), 400, 80))
    assert sheet[:8, :2].any()
    assert sheet[70:, 390:].any()
    assert sheet.sum() < 40


def test_values_beyond_the_scale_and_nan():
    np.testing.assert_array_equal(draw_latent(latent([5.0, -7.0]), 100, 50), draw_latent(latent([1.0, -1.0]), 100, 50))
    np.testing.assert_array_equal(draw_latent(latent([np.nan]), 100, 50), draw_latent(latent([0.0]), 100, 50))


@pytest.mark.parametrize("shape", [(1, 2, 3), (16, 4, 4), (3, 15, 20)])
def test_maps_show_each_value_where_it_is(shape: tuple[int, int, int]):
    seen = set()
    for place in ((0, 0, 0), tuple(n - 1 for n in shape), (shape[0] // 2, shape[1] // 2, 0)):
        for value, mark in ((1.0, bluish), (-1.0, orange)):
            values = np.zeros(shape)
            values[place] = value
            sheet = draw_latent(latent(values.ravel(), shape), 700, 80)
            rows, columns = np.nonzero(mark(sheet))
            side = rows.max() - rows.min() + 1
            assert len(rows) == side**2 == (columns.max() - columns.min() + 1) ** 2, "one square"
        seen.add((rows.min(), columns.min()))
    assert len(seen) == len({(0, 0, 0), tuple(n - 1 for n in shape), (shape[0] // 2, shape[1] // 2, 0)})


def test_maps_that_do_not_fit_are_bars():
    shape = (600, 8, 8)
    values = np.linspace(-1, 1, 600 * 64)
    np.testing.assert_array_equal(draw_latent(latent(values, shape), 700, 80), draw_latent(latent(values), 700, 80))


def test_probabilities_are_as_long_as_they_are():
    lengths = [bluish(compose(GAME, title="", decision=decision([0, p], chosen=0))).sum() for p in (0.25, 0.5, 1.0)]
    assert lengths[1] == pytest.approx(2 * lengths[0], rel=0.05)
    assert lengths[2] == pytest.approx(4 * lengths[0], rel=0.05)


def test_signed_numbers_go_both_ways():
    sheet = compose(GAME, title="", decision=decision([1.0, -0.5], signed=True))
    assert bluish(sheet).sum() == pytest.approx(2 * orange(sheet).sum(), rel=0.1)


@pytest.mark.parametrize("chosen", [0, 59])
def test_of_many_actions_the_likeliest_and_the_chosen_are_shown(chosen: int):
    levels = [0.0] * 60
    levels[20] = levels[40] = 0.5
    sheet = compose(GAME, title="", decision=decision(levels, chosen)).astype(int)
    assert ((sheet[..., 0] > 200) & (sheet[..., 1] > 150) & (sheet[..., 2] < 130)).any(), "its name, in yellow"
    assert bluish(sheet.astype(np.uint8)).sum() > 100
