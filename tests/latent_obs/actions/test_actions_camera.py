"""CameraBins: symmetric, monotone, exact at zero, and its own inverse; VPT's bins as the oracle."""

import dataclasses
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from latent_obs.actions import CameraBins
from latent_obs.util.errors import InputError

QUICK = settings(max_examples=30, deadline=None)
CAMERAS = st.builds(
    CameraBins,
    bins=st.integers(1, 30).map(lambda half: 2 * half + 1),
    max_degrees=st.floats(0.5, 180),
    rule=st.sampled_from(["mu-law", "linear"]),
    mu=st.floats(0.01, 255),
)
DEGREES = st.lists(st.floats(-400, 400), min_size=1, max_size=30).map(np.array)


def vpt_bins(camera: CameraBins, degrees: NDArray[np.float64]) -> NDArray[np.int64]:
    """VPT's quantizer, as its paper and code describe it."""
    size = 2 * camera.max_degrees / (camera.bins - 1)
    clipped = np.clip(degrees, -camera.max_degrees, camera.max_degrees)
    if camera.rule == "mu-law":
        share = clipped / camera.max_degrees
        share = np.sign(share) * (np.log(1.0 + camera.mu * np.abs(share)) / np.log(1.0 + camera.mu))
        clipped = share * camera.max_degrees
    return np.round((clipped + camera.max_degrees) / size).astype(np.int64)


def vpt_degrees(camera: CameraBins, bins: NDArray[np.int64]) -> NDArray[Any]:
    degrees = bins * (2 * camera.max_degrees / (camera.bins - 1)) - camera.max_degrees
    if camera.rule == "mu-law":
        share = degrees / camera.max_degrees
        share = np.sign(share) * (1.0 / camera.mu) * ((1.0 + camera.mu) ** np.abs(share) - 1.0)
        degrees = share * camera.max_degrees
    return degrees


def test_the_default_bins_are_those_of_vpt():
    assert CameraBins().values.round(2).tolist() == [-10, -5.81, -3.22, -1.61, -0.62, 0, 0.62, 1.61, 3.22, 5.81, 10]
    assert CameraBins(rule="linear").values.tolist() == pytest.approx(list(range(-10, 11, 2)))


@QUICK
@given(CAMERAS)
def test_bins_are_symmetric_monotone_and_exact_at_zero_and_at_the_ends(camera: CameraBins):
    values = camera.values
    assert len(values) == camera.bins
    assert values[camera.center] == 0.0
    assert not np.signbit(values[camera.center])
    assert (values[0], values[-1]) == (-camera.max_degrees, camera.max_degrees)
    np.testing.assert_array_equal(values, -values[::-1])
    assert (np.diff(values.astype(np.float32)) > 0).all()
    np.testing.assert_allclose(values, vpt_degrees(camera, np.arange(camera.bins)), rtol=1e-6, atol=1e-9)
    if camera.rule == "mu-law":  # finer near zero
        assert (np.diff(values[camera.center :], 2) > 0).all()


@QUICK
@given(CAMERAS)
def test_to_degrees_and_back_is_the_identity(camera: CameraBins):
    bins = np.arange(camera.bins)
    np.testing.assert_array_equal(camera.to_bins(camera.to_degrees(bins)), bins)
    # Through float32 too, which is what an action is made of.
    np.testing.assert_array_equal(camera.to_bins(camera.to_degrees(bins).astype(np.float32)), bins)


@QUICK
@given(CAMERAS, DEGREES)
def test_degrees_go_to_the_nearest_bin(camera: CameraBins, degrees: NDArray[np.float64]):
    bins = camera.to_bins(degrees)
    assert bins.dtype == np.int64
    np.testing.assert_array_equal(camera.to_bins(-degrees), camera.bins - 1 - bins)
    assert (np.diff(camera.to_bins(np.sort(degrees))) >= 0).all()
    np.testing.assert_array_equal([int(camera.to_bins(one)) for one in degrees], bins)
    np.testing.assert_array_equal(camera.to_bins(degrees.reshape(-1, 1))[:, 0], bins)

    def companded(values: NDArray[np.float64]) -> NDArray[np.float64]:
        share = np.clip(values / camera.max_degrees, -1, 1)
        if camera.rule == "linear":
            return share
        return np.sign(share) * np.log(1 + camera.mu * np.abs(share)) / np.log(1 + camera.mu)

    distances = np.abs(companded(degrees)[:, None] - companded(camera.values))
    chosen = distances[np.arange(len(bins)), bins]
    np.testing.assert_allclose(chosen, distances.min(axis=1), atol=1e-9)
    other = vpt_bins(camera, degrees)
    ties = np.isclose(np.sort(distances, axis=1)[:, 0], np.sort(distances, axis=1)[:, 1], atol=1e-9)
    np.testing.assert_array_equal(bins[~ties], other[~ties])


def test_infinity_is_an_outermost_bin():
    assert CameraBins().to_bins([-np.inf, np.inf]).tolist() == [0, 10]
    assert CameraBins().to_bins(np.array([-128], np.int8)).tolist() == [0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bins", 10),
        ("bins", 1),
        ("bins", 1001),
        ("bins", 11.0),
        ("max_degrees", 0),
        ("max_degrees", 181),
        ("max_degrees", float("nan")),
        ("rule", "mu_law"),
        ("mu", float("inf")),
        ("mu", 1e300),
    ],
)
def test_wrong_arguments(name: str, value: Any):
    with pytest.raises(InputError, match=name):
        CameraBins(**{name: value})


def test_wrong_values():
    for wrong in (-1, 11, 5.0, [0, 11], "5", True):
        with pytest.raises(InputError, match="bins"):
            CameraBins().to_degrees(wrong)
    for wrong in (float("nan"), [0.0, np.nan], "left", True):
        with pytest.raises(InputError, match="degrees"):
            CameraBins().to_bins(wrong)


def test_a_value_object():
    camera = CameraBins(5, 20.0, "linear")
    assert camera == CameraBins(5, 20.0, "linear") != CameraBins(5, 20.0)
    assert hash(camera) == hash(CameraBins(5, 20.0, "linear"))
    assert pickle.loads(pickle.dumps(camera)) == camera
    assert dataclasses.replace(camera, bins=3).values.tolist() == [-20, 0, 20]
    with pytest.raises(ValueError, match="read-only"):
        camera.values[0] = 1
