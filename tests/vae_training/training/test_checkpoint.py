"""Checkpoints: everything is restored bit by bit, and what cannot be used is refused with the file's name."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import vae_training.training.checkpoint
from latent_obs.util.errors import InputError
from tests.support.tiny import tiny_cvae
from vae_training.model.cvae import CVAE
from vae_training.training.checkpoint import Progress, load_checkpoint, read_about, save_checkpoint


def trained(steps: int = 3, seed: int = 0) -> tuple[CVAE, torch.optim.Optimizer]:
    model = tiny_cvae(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for i in range(steps):
        x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(i))
        model.compute_apply_gradients(x, optimizer)
    return model, optimizer


@pytest.fixture(scope="module")
def whole_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "latest.safetensors"
    save_checkpoint(path, *trained(), Progress(step=3))
    return path


def test_round_trip_is_exact(tmp_path: Path):
    torch.manual_seed(9)
    progress = Progress(step=7, best_loss=0.1 + 0.2, best_step=5, seconds=1 / 3)
    model, optimizer = trained()
    random_state = torch.get_rng_state()
    path = tmp_path / "checkpoints" / "latest.safetensors"
    save_checkpoint(path, model, optimizer, progress)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert path.stat().st_mode & 0o777 == 0o644  # others may read it
    expected_noise = torch.rand(5)
    other = tiny_cvae(seed=1)
    other_optimizer = torch.optim.Adam(other.parameters(), lr=0.01)
    assert load_checkpoint(path, other, other_optimizer) == progress
    assert torch.equal(torch.rand(5), expected_noise)  # the random state came back as well
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    one, two = optimizer.state_dict(), other_optimizer.state_dict()
    assert one["param_groups"] == two["param_groups"]
    assert one["state"].keys() == two["state"].keys()
    for index, state in one["state"].items():
        assert state.keys() == two["state"][index].keys()
        assert all(torch.equal(value, two["state"][index][key]) for key, value in state.items())
    x = torch.rand(4, 3, 16, 16)
    torch.manual_seed(1)
    a = model.compute_apply_gradients(x, optimizer)
    torch.manual_seed(1)
    b = other.compute_apply_gradients(x, other_optimizer)
    assert torch.equal(a.total, b.total)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_without_an_optimizer_the_random_state_is_left_alone(whole_checkpoint: Path):
    torch.manual_seed(4)
    before, model = torch.get_rng_state(), tiny_cvae(seed=2)
    load_checkpoint(whole_checkpoint, model)
    assert torch.equal(torch.get_rng_state(), before)
    saved = load_file(whole_checkpoint)
    assert all(torch.equal(value, saved[f"model/{name}"]) for name, value in model.state_dict().items())


@given(share=st.floats(0, 1, exclude_max=True))
@settings(max_examples=10, deadline=None)
def test_a_cut_file_is_refused_by_name(whole_checkpoint: Path, share: float):
    data, cut = whole_checkpoint.read_bytes(), whole_checkpoint.with_name("cut.safetensors")
    cut.write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError, match=r"cut\.safetensors"):
        load_checkpoint(cut, tiny_cvae())


@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
@settings(max_examples=40, deadline=None)
def test_a_flipped_bit_is_refused_by_name(whole_checkpoint: Path, place: int, bit: int):
    data, flipped = bytearray(whole_checkpoint.read_bytes()), whole_checkpoint.with_name("flipped.safetensors")
    data[place % len(data)] ^= 1 << bit
    flipped.write_bytes(data)
    model = tiny_cvae()
    with pytest.raises(InputError, match=r"flipped\.safetensors"):
        load_checkpoint(flipped, model, torch.optim.Adam(model.parameters()))


def test_other_and_missing_files_are_refused(tmp_path: Path):
    save_file({"a": torch.zeros(1)}, tmp_path / "c.safetensors")
    for name in ("c", "gone"):
        with pytest.raises(InputError, match=rf"{name}\.safetensors"):
            load_checkpoint(tmp_path / f"{name}.safetensors", tiny_cvae())


@pytest.mark.parametrize("progress", ["", "[]", "{", '{"step": "3"}', '{"step": NaN}', '{"steps": 3}', "null"])
def test_progress_of_another_type_is_refused_by_name(whole_checkpoint: Path, tmp_path: Path, progress: str):
    path = tmp_path / "latest.safetensors"
    metadata = {"format": "latent-obs-checkpoint-1", "progress": progress, "about": progress}  # without a checksum
    save_file(load_file(whole_checkpoint), path, metadata)
    with pytest.raises(InputError, match=r"latest\.safetensors.*(progress|step)"):
        load_checkpoint(path, tiny_cvae())
    if progress != "null":
        with pytest.raises(InputError, match=r"latest\.safetensors.*about"):
            read_about(path, dict[str, list[int]])


def test_another_architecture_is_one_line(whole_checkpoint: Path):
    with pytest.raises(InputError, match=r"latest\.safetensors") as error:
        load_checkpoint(whole_checkpoint, tiny_cvae(widths=(4, 12)))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


class Bomb:
    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize("by_torch", [False, True])
def test_pickled_content_is_never_loaded(tmp_path: Path, by_torch: bool):
    bomb, path = Bomb(str(tmp_path / "boom")), tmp_path / "latest.safetensors"
    if by_torch:
        torch.save({"model": bomb}, path)
    else:
        path.write_bytes(pickle.dumps(bomb))
    with pytest.raises(InputError, match=r"latest\.safetensors"):
        load_checkpoint(path, tiny_cvae())
    assert not (tmp_path / "boom").exists()


def test_a_write_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "latest.safetensors"
    save_checkpoint(path, *trained(), Progress(step=3))
    before = path.read_bytes()

    def half(tensors: object, file: str, metadata: object) -> None:
        Path(file).write_bytes(before[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(vae_training.training.checkpoint, "save_file", half)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, *trained(seed=5), Progress(step=4))
    assert path.read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["latest.safetensors"]
