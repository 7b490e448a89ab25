"""The composed picture: what is where, how large, and that a latent's numbers can be read off it."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

pytest.importorskip("stable_baselines3")

from agents.play.policy import Decision
from agents.play.show import _CHOSEN, _DOWN, _FRAME, _GROUND, _UP, LatentPicture, Picture, compose, draw_latent

GAME = np.full((48, 64, 3), (200, 30, 90), np.uint8)
SEEN = np.full((16, 16, 3), (10, 220, 30), np.uint8)


def latent(values: Any, shape: tuple[int, int, int] | None = None) -> LatentPicture:
    return LatentPicture(np.asarray(values, np.float64), shape, "latent")


def decision(levels: list[float], chosen: int = 0, signed: bool = False) -> Decision:
    count = len(levels)
    names = tuple(f"action {i}" for i in range(count))
    return Decision("action", names, tuple(levels), ("",) * count, tuple(i == chosen for i in range(count)), signed)


def of_colour(picture: Picture, colour: tuple[int, int, int]) -> NDArray[np.bool_]:
    return np.asarray(np.equal(picture, np.array(colour)).all(axis=-1))


def test_pictures_stand_where_they_belong():
    sheet = compose(
        GAME, title="a title", seen=SEEN, latent=latent(np.ones(4)), decision=decision([0.5, 0.5]), footer="keys"
    )
    assert sheet.shape == (398, 774, 3)
    assert of_colour(sheet[39:279, 6:326], (200, 30, 90)).all()
    assert of_colour(sheet[39:279, 332:572], (10, 220, 30)).all()
    assert not of_colour(sheet[:39], _GROUND).all()
    assert of_colour(sheet[294:374], _UP).any()
    assert not of_colour(sheet[380:], _GROUND).all(), "the footer"
    bare = compose(GAME, title="")
    assert bare.shape == (286, 332, 3)
    assert of_colour(bare[39:279, 6:326], (200, 30, 90)).all()


@settings(deadline=None, max_examples=20)
@given(
    st.sampled_from([(48, 64, 3), (240, 320, 3), (600, 500, 3), (64, 64, 1), (84, 84, 4), (7, 300, 3)]),
    st.booleans(),
    st.sampled_from([None, 1, 7, 64, 256, 5_000]),
    st.sampled_from([0, 1, 4, 17, 60]),
    st.sampled_from([1, 1.37, 2]),
)
def test_any_parts_make_a_picture_that_video_takes(
    shape: tuple[int, int, int], seen: bool, size: int | None, actions: int, scale: float
):
    sheet = compose(
        np.zeros(shape, np.uint8),
        title="x" * 300,
        seen=SEEN if seen else None,
        latent=None if size is None else latent(np.linspace(-2, 2, size)),
        footer="y" * 300,
        scale=scale,
        decision=decision([1 / actions] * actions) if actions else None,
    )
    assert sheet.dtype == np.uint8
    assert sheet.shape[0] % 2 == sheet.shape[1] % 2 == 0
    assert sheet.shape[0] >= 286 * scale - 4


def test_twice_the_scale_is_twice_the_size():
    parts: dict[str, Any] = {"title": "", "seen": SEEN, "latent": latent(np.ones(8)), "decision": decision([1.0])}
    one, two = compose(GAME, **parts), compose(GAME, scale=2, **parts)
    assert two.shape == (2 * one.shape[0], 2 * one.shape[1], 3)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=128), st.integers(256, 800), st.integers(20, 120))
def test_bars_are_as_high_as_their_values(values: list[float], width: int, height: int):
    sheet = draw_latent(latent(values), width, height)
    assert sheet.shape == (height, width, 3)
    half = (height - 1) // 2
    edges = np.linspace(0, width, len(values) + 1).round().astype(int)
    for value, left in zip(values, edges, strict=False):
        up, down = of_colour(sheet[:, left], _UP).sum(), of_colour(sheet[:, left], _DOWN).sum()
        assert abs(up - half * max(value, 0)) <= 0.5 + 1e-9
        assert abs(down - half * max(-value, 0)) <= 0.5 + 1e-9


def test_256_bars_can_be_told_apart():
    sheet = draw_latent(latent(np.ones(256)), 762, 80)
    assert np.count_nonzero(of_colour(sheet[5:6], _UP)) >= 256
    columns = np.asarray(of_colour(sheet, _UP).any(axis=0))
    assert (np.diff(columns.astype(int)) == 1).sum() + columns[0] >= 200, "gaps between most of them"


def test_thousands_of_values_stand_in_rows():
    values = np.zeros(2_000)
    values[[0, 1_999]] = 1.0
    sheet = of_colour(draw_latent(latent(values), 400, 80), _UP)
    assert sheet[:8, :2].any()
    assert sheet[70:, 390:].any()
    assert sheet.sum() < 40


def test_values_beyond_the_scale_and_none_at_all():
    np.testing.assert_array_equal(draw_latent(latent([5.0, -7.0]), 100, 50), draw_latent(latent([1.0, -1.0]), 100, 50))
    np.testing.assert_array_equal(draw_latent(latent([np.nan]), 100, 50), draw_latent(latent([0.0]), 100, 50))


@pytest.mark.parametrize("shape", [(4, 8, 8), (1, 2, 3), (16, 4, 4), (3, 15, 20)])
def test_maps_show_each_value_where_it_is(shape: tuple[int, int, int]):
    for place in ((0, 0, 0), tuple(n - 1 for n in shape), (shape[0] // 2, shape[1] // 2, 0)):
        for value, colour in ((1.0, _UP), (-1.0, _DOWN)):
            values = np.zeros(shape)
            values[place] = value
            sheet = draw_latent(latent(values.ravel(), shape), 700, 80)
            assert sheet.shape == (80, 700, 3)
            lit = of_colour(sheet, colour)
            rows, columns = np.nonzero(lit)
            side = rows.max() - rows.min() + 1
            assert lit.sum() == side**2 == (columns.max() - columns.min() + 1) ** 2, "one square"
            # The other cells of its map, and of all others, are at zero.
            assert of_colour(sheet, _FRAME).sum() == side**2 * (values.size - 1)


def test_maps_are_as_large_as_they_fit():
    values = np.ones(256)
    assert of_colour(draw_latent(latent(values, (4, 8, 8)), 762, 80), _UP).sum() == 4 * 80 * 80
    assert of_colour(draw_latent(latent(np.ones(1024), (16, 8, 8)), 762, 80), _UP).sum() == 1024 * 5**2
    assert of_colour(draw_latent(latent(np.ones(4096), (64, 8, 8)), 762, 80), _UP).sum() == 4096 * 3**2, (
        "in three lines"
    )


def test_maps_that_do_not_fit_are_bars():
    shape = (600, 8, 8)
    values = np.linspace(-1, 1, 600 * 64)
    np.testing.assert_array_equal(draw_latent(latent(values, shape), 700, 80), draw_latent(latent(values), 700, 80))


def panel_of(given: Decision) -> Picture:
    """The part of the picture that actions are in."""
    return compose(np.zeros((240, 320, 3), np.uint8), title="", decision=given)[39:279, 332:522]


def test_probabilities_are_as_long_as_they_are():
    panel = panel_of(decision([0.25, 0.5, 1.0], chosen=1))
    lengths = [int(of_colour(panel[y], _UP).sum() + of_colour(panel[y], _CHOSEN).sum()) for y in (20, 46, 72)]
    np.testing.assert_allclose(lengths, [190 / 4, 190 / 2, 190], atol=1)
    assert of_colour(panel[46], _CHOSEN).any()
    assert not of_colour(panel[[20, 72]], _CHOSEN).any()


def test_signed_numbers_go_both_ways_from_the_middle():
    panel = panel_of(decision([1.0, -0.5], chosen=0, signed=True))
    up, down = np.nonzero(of_colour(panel[20], _UP))[0], np.nonzero(of_colour(panel[46], _DOWN))[0]
    assert (up.min(), down.max()) == (95, 95)
    assert up.max() >= 188
    assert down.min() == pytest.approx(48, abs=1)


@pytest.mark.parametrize("chosen", [0, 33, 59])
def test_of_many_actions_the_likeliest_and_the_one_that_is_done_are_shown(chosen: int):
    levels = [0.0] * 60
    levels[20] = levels[40] = 0.5
    panel = panel_of(decision(levels, chosen))
    red, _, blue = np.moveaxis(panel.astype(int), -1, 0)
    assert (red - blue > 120).any(), "its name, in yellow"
    assert of_colour(panel, _UP).sum() >= 2 * 94
    assert not of_colour(panel[-17:], _GROUND).all(), "how many others"


def test_many_numbers_are_thin_bars():
    panel = panel_of(decision(np.linspace(-1, 1, 64).tolist(), signed=True))
    assert of_colour(panel, _DOWN)[:120, :95].sum() > 1_000
    assert of_colour(panel, _UP)[120:, 95:].sum() > 1_000
    assert not of_colour(panel, _UP)[:110].any()
