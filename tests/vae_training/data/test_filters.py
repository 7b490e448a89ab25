"""Which frames are kept: laws of the filters, above all that it does not matter how a recording is cut into chunks."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from latent_obs.util.errors import InputError
from vae_training.data.filters import BLACK, FrameFilters, grey_levels, small_version

OPTIONS = st.fixed_dictionaries(
    {
        "stride": st.integers(1, 7),
        "drop_black": st.booleans(),
        "drop_duplicates": st.none() | st.floats(0.5, 60),
        "limit": st.none() | st.integers(1, 20),
    }
)


def kept(frames: np.ndarray, cuts: list[int], **options) -> list[int]:
    """Positions of the frames that are kept when a recording comes in chunks that end at the cuts."""
    filters, found, first = FrameFilters(**options), [], 0
    for chunk in np.split(frames, sorted(cuts)):
        positions = filters.take(len(chunk))
        mask = filters.keep(chunk[positions])
        found += (positions[mask] + first).tolist()
        first += len(chunk)
    assert filters.kept == len(found)
    assert filters.done == (options.get("limit") == len(found))
    return found


def by_hand(
    frames: np.ndarray, stride: int, drop_black: bool, drop_duplicates: float | None, limit: int | None
) -> list[int]:
    """The same, a frame at a time and in floats."""
    found, last = [], None
    for i, frame in enumerate(frames):
        grey = (frame @ np.array([77.0, 150.0, 29.0])) // 256
        if i % stride or (drop_black and grey.max() <= BLACK) or len(found) == limit:
            continue
        if drop_duplicates is not None and last is not None and np.abs(grey - last).mean() < drop_duplicates:
            continue
        found.append(i)
        last = grey
    return found


def walk(seed: int, count: int) -> np.ndarray:
    """Frames that stay, change a little, change much, and go black."""
    rng = np.random.default_rng(seed)
    frames = [rng.integers(0, 256, (8, 12, 3))]
    for _ in range(count - 1):
        step = rng.choice([0, 3, 40, 300])
        frames.append(np.clip(frames[-1] + rng.integers(-step, step + 1, (8, 12, 3)), 0, 255))
    stack = np.array(frames, np.uint8)
    stack[rng.random(count) < 0.2] //= 30
    return stack


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(1, 40), st.lists(st.integers(0, 40), max_size=6), OPTIONS)
def test_chunks_do_not_matter(seed: int, count: int, cuts: list[int], options: dict):
    frames = walk(seed, count)
    cuts = [cut for cut in cuts if cut <= count]
    assert kept(frames, cuts, **options) == by_hand(frames, **options)


def test_black_and_duplicates_at_their_thresholds():
    frames = np.zeros((4, 8, 8, 3), np.uint8)
    frames[1], frames[2, 5, 5], frames[3] = BLACK, 255, BLACK + 1
    assert kept(frames, [2], drop_black=True) == [2, 3]
    # A slow fade changes by less than the threshold from frame to frame, and is kept in steps of the threshold.
    fade = np.repeat(np.arange(40, dtype=np.uint8), 16 * 16 * 3).reshape(40, 16, 16, 3)
    assert kept(fade, [7], drop_duplicates=5.0) == list(range(0, 40, 5))


@pytest.mark.parametrize("shape", [(2, 360, 640), (3, 7, 50), (1, 1, 1)])
def test_small_version_keeps_the_mean_of_each_cell(shape: tuple[int, ...]):
    grey = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    small = small_version(grey)
    assert small.shape == (shape[0], min(32, shape[1]), min(32, shape[2]))
    bottom, right = shape[1] // small.shape[1], shape[2] // small.shape[2]
    np.testing.assert_allclose(small[0, 0, 0], grey[0, :bottom, :right].mean(), rtol=1e-6)


def test_grey_is_about_pillows():
    frames = np.random.default_rng(0).integers(0, 256, (2, 9, 9, 3), np.uint8)
    frames[0, 0] = 255
    pillow = np.array([np.asarray(Image.fromarray(frame).convert("L")) for frame in frames])
    assert np.abs(grey_levels(frames).astype(int) - pillow).max() <= 1


def test_wrong_options():
    wrong: dict[str, Any] = {"stride": 0, "limit": 0, "drop_duplicates": float("nan")}
    for name, value in wrong.items():
        with pytest.raises(InputError, match=name):
            FrameFilters(**{name: value})
