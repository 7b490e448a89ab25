"""Changed pictures: by the noise alone, within range, and each change the one that was asked for."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_training.model.augmentation import augment, images_to_tensor

QUICK = settings(max_examples=30, deadline=None)
MIRROR, FULL = 1, 20.0  # this far out, the normal distribution is at its end


def noise(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 10, generator=torch.Generator().manual_seed(seed))


def images(count: int, seed: int = 0, channels: int = 3, size: tuple[int, int] = (16, 16)) -> torch.Tensor:
    return torch.rand(count, channels, *size, generator=torch.Generator().manual_seed(seed))


def nothing(count: int = 1) -> torch.Tensor:
    """The noise that stands for no change: in the middle of everything, and not mirrored."""
    none = torch.zeros(count, 10)
    none[:, MIRROR] = FULL
    return none


@given(seed=st.integers(0, 999), strength=st.floats(0, 1), channels=st.integers(1, 4), height=st.integers(2, 20))
@QUICK
def test_any_picture_stays_a_picture(seed: int, strength: float, channels: int, height: int):
    before = images(3, seed, channels, (height, 12))
    after = augment(before, strength, noise(3, seed))
    assert after.shape == before.shape
    assert 0 <= float(after.min()) <= float(after.max()) <= 1
    assert after.is_contiguous(memory_format=torch.channels_last) or not strength
    assert torch.equal(after, augment(before, strength, noise(3, seed)))
    assert augment(before, 0.0, noise(3)) is before
    assert torch.equal(before, images(3, seed, channels, (height, 12)))


@given(seed=st.integers(0, 999), strength=st.floats(0.1, 1))
@QUICK
def test_each_picture_is_changed_by_its_own_noise(seed: int, strength: float):
    before, changes = images(4, seed), noise(4, seed)
    after = augment(before, strength, changes)
    for i in range(4):
        np.testing.assert_allclose(augment(before[i : i + 1], strength, changes[i : i + 1])[0], after[i], atol=1e-5)
    twins = augment(torch.cat([before, before.flip(0)]), strength, torch.cat([changes, changes]))
    assert torch.equal(twins[:4], after)  # so neighboring frames are changed alike


def test_the_middle_of_all_changes_is_none_and_strength_is_proportional():
    before = images(2)
    np.testing.assert_allclose(augment(before, 1.0, nothing(2)), before, atol=1e-5)
    ramp = torch.linspace(0.3, 0.7, 16).expand(1, 1, 16, 16)
    changed = nothing()
    changed[:, 7:] = FULL  # offset of the colours
    for strength in (0.25, 0.5, 1.0):
        np.testing.assert_allclose(augment(ramp, strength, changed), ramp + 0.1 * strength, atol=1e-5)
    changed = nothing()
    changed[:, 4:7] = -FULL  # gain
    np.testing.assert_allclose(augment(ramp, 1.0, changed), 0.8 * ramp, atol=1e-5)


def test_a_quarter_is_the_farthest_and_what_is_missing_is_mirrored():
    before = images(1)
    moved = nothing()
    moved[:, 2] = FULL
    after = augment(before, 1.0, moved)
    np.testing.assert_allclose(after[..., :12], before[..., 4:], atol=1e-4)
    np.testing.assert_allclose(after[..., 12:], before[..., 12:].flip(3), atol=1e-4)
    moved = nothing()
    moved[:, 3] = -FULL
    np.testing.assert_allclose(augment(before, 1.0, moved)[..., 4:, :], before[..., :12, :], atol=1e-4)
    np.testing.assert_allclose(augment(before, 0.5, moved)[..., 2:, :], before[..., :14, :], atol=1e-4)
    disc = torch.zeros(1, 1, 40, 40)
    disc[..., 10:30, 10:30] = 1
    scaled = nothing()
    scaled[:, 0] = FULL
    assert augment(disc, 1.0, scaled).sum().item() == pytest.approx(float(disc.sum()) / 1.2**2, rel=0.05)


def test_the_share_that_is_mirrored():
    strength, share = 0.4, 0.2
    before = torch.linspace(0.2, 0.8, 8).expand(4000, 1, 4, 8)
    changes = nothing(4000)
    changes[:, MIRROR] = noise(4000)[:, 0]
    after = augment(before, strength, changes)
    mirrored = after[:, 0, 0, 0] > after[:, 0, 0, 7]
    assert float(mirrored.float().mean()) == pytest.approx(share, abs=0.03)
    np.testing.assert_allclose(after[mirrored], before[mirrored].flip(3), atol=1e-5)


def test_images_to_tensor_against_numpy():
    frames = np.random.default_rng(0).integers(0, 256, (4, 6, 8, 3), np.uint8)
    before = frames.copy()
    tensor = images_to_tensor(torch.from_numpy(frames))
    np.testing.assert_allclose(tensor.numpy(), frames.transpose(0, 3, 1, 2) / np.float32(255), rtol=1e-6)
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(frames, before)
