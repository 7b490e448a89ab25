"""Arrays and folders of pictures: all forms of frames come out as RGB, what cannot be frames is named."""

import re
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from latent_obs.util.errors import InputError
from tests.support.recording_files import Evil, read, read_until_damage
from vae_training.data.frames import get_datasets
from vae_training.extraction.readers import base
from vae_training.extraction.readers.arrays import NpyRecording, NpzRecording, read_npz
from vae_training.extraction.readers.base import DamagedRecordingError, Recording, natural_key
from vae_training.extraction.readers.find import find_recordings
from vae_training.extraction.readers.images import PicturesRecording

KINDS = ["npy", "npz", "compressed"]


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


FRAMES, OTHER = noise(6, 16, 16, 3), noise(6, 16, 16, 3, seed=1)


def is_refused(path: Path) -> None:
    """The one thing that a search finds is damaged, and its file is named."""
    recordings, (damaged,) = find_recordings([path])
    assert recordings == []
    assert str(damaged.source) in damaged.reason


def saved(file: Path, array: np.ndarray, kind: str) -> Recording:
    if kind == "npy":
        np.save(file.with_suffix(".npy"), array)
        return NpyRecording("a", file.with_suffix(".npy"))
    (np.savez if kind == "npz" else np.savez_compressed)(file.with_suffix(".npz"), frames=array)
    return NpzRecording("a", file.with_suffix(".npz"))


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    form=st.sampled_from(["rgb", "rgba", "grey axis", "grey", "first rgb", "first grey"]),
    shape=st.tuples(st.sampled_from([1, 2, 5, 11, 30]), st.integers(8, 12), st.integers(8, 12)),
    chunk=st.integers(1, 40),
)
def test_every_form_of_frames_comes_out_as_rgb(
    tmp_path_factory: pytest.TempPathFactory, kind: str, form: str, shape: tuple[int, int, int], chunk: int
):
    rgb, count = noise(*shape, 3), shape[0]
    grey = rgb[..., :1]
    array = {
        "rgb": rgb,
        "rgba": np.concatenate([rgb, np.full_like(grey, 255)], axis=3),
        "grey axis": grey,
        "grey": grey[..., 0],  # of 3 or 4, it could be a picture or a stack
        "first rgb": rgb.transpose(0, 3, 1, 2),
        "first grey": grey.transpose(0, 3, 1, 2),
    }[form]
    recording = saved(tmp_path_factory.mktemp("law") / "a", np.ascontiguousarray(array), kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "CHUNK_BYTES", chunk * array[0].nbytes)
        got = read(recording)
        assert [len(c) for c in recording.chunks()][:-1] == [chunk] * (-(-count // chunk) - 1)
    np.testing.assert_array_equal(got, np.repeat(grey, 3, axis=3) if "grey" in form else rgb)
    assert recording.expected_frames == count


@pytest.mark.parametrize("kind", KINDS)
def test_memory_does_not_depend_on_the_length(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(base, "CHUNK_BYTES", 1 << 16)
    recording = saved(tmp_path / "a", noise(1000, 32, 32, 3), kind)
    tracemalloc.start()
    assert sum(len(chunk) for chunk in recording.chunks()) == 1000
    assert tracemalloc.get_traced_memory()[1] < 1_000_000  # of 3 MB
    tracemalloc.stop()


@pytest.mark.parametrize("kind", ["npy", "npz"])
@pytest.mark.parametrize(
    "array",
    [
        np.zeros((5, 16, 16, 3), np.float32),
        np.zeros((5, 16, 16, 3), object),
        np.zeros((16, 16, 3), np.uint8),
        np.zeros((3, 16, 16), np.uint8),
        np.zeros((5, 16, 16, 2), np.uint8),
        np.zeros((0, 16, 16, 3), np.uint8),
        np.asfortranarray(FRAMES),
    ],
)
def test_what_cannot_be_frames(kind: str, array: np.ndarray, tmp_path: Path):
    assert read_until_damage(saved(tmp_path / "walk", array, kind), rf"walk\.{kind}") is None
    is_refused(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(kind: str, tmp_path: Path):
    array = noise(20, 16, 16, 3)
    recording = saved(tmp_path / "walk", array, kind)
    data = recording.source.read_bytes()
    recording.source.write_bytes(data[: len(data) // 2])
    good = read_until_damage(recording, r"walk\.np")
    if kind == "npy":
        np.testing.assert_array_equal(good, array[:9])
        assert recording.expected_frames == 20
    else:
        assert good is None
        assert recording.expected_frames is None
        is_refused(tmp_path)
        flipped = bytearray(data)
        flipped[len(data) // 2] ^= 0xFF
        recording.source.write_bytes(flipped)
        read_until_damage(recording, r"walk\.npz")
    for content in (b"not an array", b""):
        recording.source.write_bytes(content)
        is_refused(recording.source)


@pytest.mark.parametrize(
    ("arrays", "key"),
    [
        ({"obs": FRAMES, "arr_0": OTHER}, "obs"),
        ({"arr_0": FRAMES, "masks": OTHER}, "arr_0"),
        ({"pov": FRAMES, "frames": np.zeros((6, 16, 16, 3), np.float32), "masks": OTHER[..., 0]}, "pov"),
        ({"grey": FRAMES[..., 0]}, "grey"),
    ],
)
def test_which_array_of_an_archive_is_its_frames(arrays: dict[str, Any], key: str, tmp_path: Path):
    np.savez(tmp_path / "a.npz", **arrays)
    recording = NpzRecording("a", tmp_path / "a.npz")
    assert recording.key == key
    np.testing.assert_array_equal(read(recording)[..., 0], FRAMES[..., 0])
    np.savez(tmp_path / "a.npz", left=FRAMES, right=OTHER)
    is_refused(tmp_path)


def test_other_arrays_of_that_length_are_rows_and_nothing_is_unpickled(tmp_path: Path):
    evil = np.array([Evil(tmp_path / "mark")] * 6, dtype=object)
    more = {"action": np.arange(6), "text": np.array(list("abcdef")), "masks": OTHER}
    np.savez(tmp_path / "a.npz", frames=FRAMES, evil=evil, short=np.arange(5), scalar=3, **more)
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("README.txt", "hello")
    recording = NpzRecording("a", tmp_path / "a.npz")
    rows = recording.rows()
    assert rows.keys() == more.keys()
    for name, array in rows.items():
        np.testing.assert_array_equal(array, more[name])
    np.testing.assert_array_equal(read(recording), FRAMES)
    assert all(name in recording.notes[0] for name in ("evil", "short", "scalar"))
    with pytest.raises(DamagedRecordingError, match=r"a\.npz"):
        read_npz(tmp_path / "a.npz", ["evil"])
    np.save(tmp_path / "b.npy", evil)
    is_refused(tmp_path / "b.npy")
    assert read_until_damage(NpyRecording("b", tmp_path / "b.npy"), "objects") is None
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_what_would_be_cut_or_taken_for_something_else_is_refused(kind: str, tmp_path: Path):
    """Stacks of four grey frames are no RGBA, and several arrays in one file are more than the first."""
    stacks = saved(tmp_path / "atari", noise(5, 84, 84, 4), kind)
    for array in (noise(5, 84, 84, 4), noise(5, 4, 84, 84)):
        stacks = saved(tmp_path / "atari", array, kind)
        assert read_until_damage(stacks, rf"atari\.{kind}") is None
    saved(tmp_path / "atari", noise(5, 84, 84, 4)[..., 3:], kind)  # as the error advises
    assert read(stacks).shape == (5, 84, 84, 3)
    if kind == "npy":
        with (tmp_path / "walk.npy").open("wb") as file:
            for _ in range(3):
                np.save(file, FRAMES)
        assert read_until_damage(NpyRecording("a", tmp_path / "walk.npy"), r"walk\.npy") is not None
        with (tmp_path / "walk.npy").open("rb") as file:
            np.save(tmp_path / "all.npy", np.concatenate([np.load(file) for _ in range(3)]))  # as the error advises
        assert len(read(NpyRecording("a", tmp_path / "all.npy"))) == 18
    else:
        np.savez(tmp_path / "walk.npz", frames=FRAMES)
        np.save(tmp_path / "frames.npy", OTHER)
        with zipfile.ZipFile(tmp_path / "walk.npz", "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
            archive.write(tmp_path / "frames.npy", "frames.npy")
        is_refused(tmp_path / "walk.npz")


@pytest.mark.parametrize(
    "wrong",
    [
        FRAMES > 99,
        FRAMES.astype(np.uint16) * 257,
        FRAMES.astype(np.uint16),
        FRAMES.astype(np.int64),
        (FRAMES / 255).astype(np.float32),
        FRAMES.astype(np.float64),
    ],
)
def test_the_advice_on_other_types_keeps_the_picture(wrong: np.ndarray, tmp_path: Path):
    white = {"b": 1, "f": 1.0 if wrong.max() <= 1 else 255.0}.get(wrong.dtype.kind, 65535)
    right = (FRAMES > 99) * 255 if wrong.dtype == bool else FRAMES
    np.save(tmp_path / "a.npy", wrong)
    with pytest.raises(InputError) as of_training:
        get_datasets(tmp_path)
    for message in (find_recordings([tmp_path])[1][0].reason, str(of_training.value)):
        advised = re.findall(r"(?:frames|\(frames [^\n]*?\)\)\.round\(\))\.astype\(numpy\.uint8\)(?: \* 255)?", message)
        code = advised[-1] if wrong.max() > 255 else advised[0]
        np.testing.assert_array_equal(eval(code, {"numpy": np, "frames": wrong, "white": white}), right)


# ---- pictures


def save_pictures(folder: Path, pictures: dict[str, np.ndarray]) -> PicturesRecording:
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels in pictures.items():
        Image.fromarray(pixels.squeeze()).save(folder / name)
    return PicturesRecording("a", folder)


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(1, 25)), zeros=st.integers(0, 3), chunk=st.integers(1, 30))
def test_pictures_come_in_the_order_of_their_numbers(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], zeros: int, chunk: int
):
    pictures = {f"img_{n:0{zeros}d}.png": np.full((8, 10, 3), n, np.uint8) for n in order}
    recording = save_pictures(tmp_path_factory.mktemp("pictures"), pictures)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "CHUNK_BYTES", chunk * 240)
        assert read(recording)[:, 0, 0, 0].tolist() == sorted(order)
    assert recording.expected_frames == 24


@settings(max_examples=30, deadline=None)
@given(names=st.lists(st.text(alphabet="ab12_09.٣²", max_size=8), max_size=12, unique=True))
def test_natural_order_is_an_order(names: list[str]):
    turned = list(reversed(names))
    assert sorted(turned, key=natural_key) == sorted(names, key=natural_key)
    assert len({str(natural_key(name)) for name in names}) == len(names)


def test_kinds_of_pictures(tmp_path: Path):
    rgb, alpha = noise(8, 10, 3), noise(8, 10, 1, seed=1)
    grey = rgb[..., :1]
    exact = {
        "1.png": rgb,
        "2.bmp": rgb,
        "3.PNG": np.concatenate([rgb, alpha], axis=2),
        "4.png": grey,
        "5.png": np.concatenate([grey, alpha], axis=2),
    }
    got = read(save_pictures(tmp_path, exact))
    np.testing.assert_array_equal(got[:3], np.stack([rgb] * 3))
    np.testing.assert_array_equal(got[3:], np.stack([np.repeat(grey, 3, axis=2)] * 2))
    smooth = np.full((8, 10, 3), (200, 100, 50), np.uint8)
    got = read(save_pictures(tmp_path / "lossy", {"1.jpg": smooth, "2.jpeg": smooth, "3.webp": smooth}))
    assert np.abs(got.astype(int) - smooth).max() <= 6
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by a quarter to show"
    shown = np.array([[[200] * 3, [0] * 3]] * 2, np.uint8).repeat(8, 0).repeat(8, 1)  # bright on the left
    (tmp_path / "phone").mkdir()
    stored, behind = Image.fromarray(np.rot90(shown)), Image.fromarray(smooth)
    stored.save(tmp_path / "phone" / "1.jpg", exif=exif)
    stored.save(tmp_path / "phone" / "2.png", exif=exif)
    # A camera's file that has a preview behind the picture.
    stored.save(tmp_path / "phone" / "3.jpg", "MPO", save_all=True, append_images=[behind], exif=exif)
    for picture in read(PicturesRecording("a", tmp_path / "phone")):
        assert np.abs(picture.astype(int) - shown).max() <= 6
    assert "2 pictures" in PicturesRecording("a", tmp_path).notes[0]
    assert PicturesRecording("a", tmp_path / "phone").notes == []


def test_damaged_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pictures = {f"{n}.png": np.full((32, 32, 3), n, np.uint8) for n in range(6)}
    recording, bad = save_pictures(tmp_path, pictures), tmp_path / "4.png"
    still = [Image.fromarray(noise(32, 32, 3, seed=s)) for s in range(3)]
    half = (tmp_path / "3.png").read_bytes()[:40]
    for damage in (
        lambda: Image.fromarray(noise(10, 8, 3)).save(bad),  # of another size
        lambda: bad.write_bytes(half),
        lambda: Image.fromarray(noise(32, 32).astype(np.uint16) * 200).save(bad),  # of 16 bits
        lambda: still[0].save(bad, save_all=True, append_images=still[1:]),  # an animation
    ):
        damage()
        good = read_until_damage(recording, r"4\.png.*4 good frames")
        assert good is not None
        assert good[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    for limit in (1000, 400):  # Pillow warns above the limit, and refuses above twice that
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        read_until_damage(recording, r"0\.png")
    for file in tmp_path.iterdir():
        file.unlink()
    assert read_until_damage(recording, tmp_path.name) is None
