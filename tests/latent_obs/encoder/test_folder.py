"""The encoder folder: round trip, damage of any kind, interrupted writing, and a self-check that finds other pixels."""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import latent_obs.encoder.folder
import latent_obs.util.atomic
from latent_obs.encoder.folder import (
    copy_encoder_folder,
    make_selfcheck,
    read_encoder_folder,
    write_encoder_folder,
)
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.encoder.statistics import LatentStatistics
from latent_obs.pixels import PixelContract
from latent_obs.util.errors import EncoderFolderError, InputError
from latent_obs.util.hub import hub_address
from tests.support.tiny import random_frames, tiny_architecture, tiny_cvae
from vae_training.training.export import export_encoder

FILES = ["SHA256SUMS", "config.json", "decoder.safetensors", "encoder.safetensors", "selfcheck.safetensors"]
CONTRACT = PixelContract(16, 16, 3)


def load(folder: Path) -> FrozenEncoder:
    return FrozenEncoder.load(folder, device="cpu")


def seal(folder: Path) -> None:
    """Write SHA256SUMS anew, as someone would who edits a folder by hand."""
    files = sorted(f for f in folder.iterdir() if f.name != "SHA256SUMS")
    lines = [f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.name}\n" for f in files]
    (folder / "SHA256SUMS").write_text("".join(lines))


def change_tensors(folder: Path, name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name)
    seal(folder)


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture
def folder(encoder_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(encoder_folder, tmp_path / "copy"))


def test_round_trip(encoder_folder: Path, folder: Path):
    assert sorted(f.name for f in encoder_folder.iterdir()) == FILES
    seal(folder)
    assert everything_in(folder) == everything_in(encoder_folder)
    assert encoder_folder.stat().st_mode & 0o777 == 0o755  # others may read it
    assert all(f.stat().st_mode & 0o777 == 0o644 for f in encoder_folder.iterdir())
    read, model = read_encoder_folder(encoder_folder), tiny_cvae()
    assert read.architecture == model.architecture
    assert read.contract == CONTRACT
    assert read.provenance["made_by"] == "the tests"
    assert read.provenance["packages"]["torch"] == torch.__version__
    assert read.has_decoder
    for saved, original in ((read.encoder, model.encoder), (read.decoder(), model.decoder)):
        assert set(saved) == set(original.state_dict())
        assert all(torch.equal(saved[name], value) for name, value in original.state_dict().items())


def test_a_run_folder_is_understood(folder: Path, tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    folder.rename(run / "encoder")
    (run / "config.json").write_text(json.dumps({"latent_dim": 6, "out": "run"}))  # as training leaves it there
    assert load(run).path == run / "encoder"


# Damage


@pytest.fixture(scope="module")
def full_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With statistics as well."""
    statistics = LatentStatistics.from_latents(random_frames(6).reshape(-1, 6))
    folder = tmp_path_factory.mktemp("full") / "encoder"
    return export_encoder(folder, tiny_cvae(), random_frames(4), statistics=statistics)


@given(
    name=st.sampled_from([*FILES, "statistics.safetensors"]),
    where=st.floats(0, 1, exclude_max=True),
    flip=st.one_of(st.none(), st.integers(1, 255)),
)
@example(name="SHA256SUMS", where=1 - 1e-9, flip=ord("\n") ^ ord("\r"))
@example(name="config.json", where=0.0, flip=1)
@settings(max_examples=80, deadline=None)
def test_any_damaged_byte_and_any_cut_is_found(full_folder: Path, name: str, where: float, flip: int | None):
    folder = full_folder.parent / "damaged"
    shutil.copytree(full_folder, folder, dirs_exist_ok=True)
    data = bytearray((folder / name).read_bytes())
    if flip is None:
        del data[int(where * (len(data) - 1)) :]
    else:
        data[int(where * len(data))] ^= flip
    (folder / name).write_bytes(data)
    with pytest.raises(EncoderFolderError) as error:
        load(folder)
    assert str(folder) in str(error.value)


def test_statistics_that_went_missing_or_that_no_checksum_covers(full_folder: Path, tmp_path: Path):
    folder = Path(shutil.copytree(full_folder, tmp_path / "copy"))
    (folder / "statistics.safetensors").rename(tmp_path / "aside")
    with pytest.raises(EncoderFolderError, match=r"statistics\.safetensors"):
        load(folder)
    seal(folder)
    assert load(folder).statistics is None  # as in the first folders
    (tmp_path / "aside").rename(folder / "statistics.safetensors")
    with pytest.raises(EncoderFolderError, match=r"statistics\.safetensors"):
        load(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder: Path, name: str):
    (folder / name).unlink()
    with pytest.raises(EncoderFolderError, match=name):
        load(folder)


def test_a_decoder_is_optional_and_a_folder_is_not(tmp_path: Path):
    folder = export_encoder(tmp_path / "encoder", tiny_cvae(), random_frames(2), with_decoder=False)
    assert not read_encoder_folder(folder).has_decoder
    with pytest.raises(EncoderFolderError, match=r"decoder\.safetensors"):
        load(folder).decode(np.zeros((1, 6), np.float32))
    with pytest.raises(EncoderFolderError, match="nowhere"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: c.update(format_version=99, pixels={"new": 1}), "version"),
        (lambda c: c.update(format_version="1"), "version"),
        (lambda c: c.update(format="another-encoder"), "format"),
        (lambda c: c.pop("format"), "format"),
        (lambda c: c.pop("architecture"), "architecture"),
        (lambda c: c["architecture"].update(latent_dim=7), "weights"),
        *((lambda c, v=v: c["architecture"].update(widths=v), "widths") for v in (4, None, "4", [4, None])),
        (lambda c: c["architecture"].update(latent_dim=10**30), "latent_dim"),
        (lambda c: c["architecture"].update(latent_dim=10**6, img_shape=[60_000, 60_000, 3]), "pixels"),
        (lambda c: c["architecture"].update(widths=[4, 60_000]), "weights"),
        *((lambda c, name=name: c.update({name: [1]}), name) for name in ("architecture", "pixels", "provenance")),
        (lambda c: c["pixels"].update(height=32), "pixels"),
        (lambda c: c["pixels"].update(colour="BGR"), "BGR"),
    ],
)
def test_a_config_of_another_kind_is_rejected(folder: Path, change: Callable[[dict[str, Any]], object], named: str):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    seal(folder)
    if config.get("format_version") == 99:  # which may have other files
        (folder / "SHA256SUMS").write_text((folder / "SHA256SUMS").read_text() + f"{'0' * 64}  more.safetensors\n")
    with pytest.raises(EncoderFolderError, match=named):
        load(folder)


@pytest.mark.parametrize("text", ["", "[]", "3", "{", "[" * 100_000])
def test_a_config_that_is_no_config(folder: Path, text: str):
    (folder / "config.json").write_text(text)
    seal(folder)
    with pytest.raises(EncoderFolderError, match="config"):
        load(folder)


@pytest.mark.parametrize("missing", ["encoder:mean_head.bias", "selfcheck:frames", "selfcheck:raw_latents"])
def test_a_missing_tensor_is_found(folder: Path, missing: str):
    file, name = missing.split(":")
    change_tensors(folder, f"{file}.safetensors", lambda tensors: tensors.pop(name))
    with pytest.raises(EncoderFolderError, match=name):
        load(folder)


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["encoder.safetensors", "decoder.safetensors", "selfcheck.safetensors"])
def test_pickled_content_is_never_loaded(folder: Path, tmp_path: Path, name: str):
    bomb = Bomb(tmp_path / "boom")
    if name.startswith("encoder"):
        (folder / name).write_bytes(pickle.dumps(bomb))
    else:
        torch.save({"mean_head.bias": bomb}, folder / name)
    seal(folder)
    with pytest.raises(EncoderFolderError, match=name):
        load(folder).decode(np.zeros((1, 6), np.float32))
    assert not bomb.mark.exists()


# The self-check


def folder_with_check(path: Path, check: dict[str, torch.Tensor]) -> Path:
    weights = tiny_cvae().encoder.state_dict()
    return write_encoder_folder(
        path, architecture=tiny_architecture(), contract=CONTRACT, encoder=weights, selfcheck=check
    )


def test_weights_that_are_not_finite_fail_the_self_check(folder: Path):
    change_tensors(folder, "encoder.safetensors", lambda tensors: tensors["mean_head.bias"][0].fill_(float("nan")))
    with pytest.raises(EncoderFolderError, match="self-check"):
        load(folder)


@pytest.mark.parametrize(
    "made_with", [{}, *({"resize_filter": f} for f in ("box", "bicubic", "lanczos")), {"crop": "center-square"}]
)
def test_the_self_check_finds_another_resize_filter_or_crop(tmp_path: Path, made_with: dict[str, Any]):
    frames = (random_frames(6) // 2 + 60).astype(np.uint8)  # less contrast than noise, as pictures have
    check = make_selfcheck(tiny_cvae().encoder, PixelContract(16, 16, 3, **made_with), frames)
    folder = folder_with_check(tmp_path / "encoder", check)
    if made_with:
        with pytest.raises(EncoderFolderError, match="self-check"):
            load(folder)
    else:
        assert load(folder).latent_dim == 6


@pytest.mark.parametrize("grey", [False, True])
def test_the_self_check_finds_swapped_colors(tmp_path: Path, grey: bool):
    frames, encoder = random_frames(4), tiny_cvae().encoder
    if grey:  # in grey pictures no colors can be swapped: the noise on the raw frames has to show it
        frames[:] = frames.mean(axis=-1, keepdims=True).astype(np.uint8)
    check = make_selfcheck(encoder, CONTRACT, frames)
    for name in ("frames", "raw_frames"):
        check[name] = check[name].flip(-1).contiguous()
    with pytest.raises(EncoderFolderError, match="self-check"):
        load(folder_with_check(tmp_path / "swapped", check))
    with pytest.raises(InputError, match="sample_frames"):
        make_selfcheck(encoder, CONTRACT, random_frames(0))


# Writing

FAILING_WRITES = [
    *((target, latent_obs.encoder.folder, "save_file", call) for target in ("new", "old") for call in (1, 3)),
    ("new", Path, "write_text", 2),
    ("old", os, "fsync", 2),
    ("new", Path, "rename", 1),
    ("old", latent_obs.util.atomic, "_exchange", 1),
    *(("old without exchange", Path, "rename", call) for call in (1, 2)),
]


@pytest.mark.parametrize(("target", "owner", "name", "call"), FAILING_WRITES)
def test_nothing_is_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, owner: Any, name: str, call: int
):
    place = tmp_path / "place"
    place.mkdir()
    if target != "new":
        export_encoder(place / "encoder", tiny_cvae(seed=1), random_frames(2))
    if target == "old without exchange":
        monkeypatch.setattr(latent_obs.util.atomic, "_exchange", lambda *_: False)
    before, original, calls = everything_in(place), getattr(owner, name), [0]

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            raise OSError(28, "No space left on device")
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing)
        with pytest.raises(OSError, match="No space left"):
            export_encoder(place / "encoder", tiny_cvae(seed=2), random_frames(2), overwrite=True)
    assert everything_in(place) == before
    assert sorted(f.name for f in place.iterdir()) == ([] if target == "new" else ["encoder"])


def test_a_folder_that_is_exchanged_while_it_is_read_and_what_killed_exports_left(tmp_path: Path):
    folder, model = tmp_path / "encoder", tiny_cvae()
    kept = tmp_path / ".encoder-original"  # a user's own
    (kept / "mine").mkdir(parents=True)
    export_encoder(folder, model, random_frames(2))
    for left in (".encoder-a_cdefg8/new", ".encoder.old", ".encoder.part-abcdefgh/old"):
        (tmp_path / left).mkdir(parents=True)
    script = (
        "import sys\nfrom tests.support.tiny import *\nfrom vae_training.training.export import export_encoder\n"
        "frames, models = random_frames(2), [tiny_cvae(seed=seed) for seed in (0, 1)]\nprint('ready', flush=True)\n"
        "while True:\n    for model in models: export_encoder(sys.argv[1], model, frames, overwrite=True)\n"
    )
    expected = [tiny_cvae(seed=seed).encoder.mean_of_frames(random_frames(2)) for seed in (0, 1)]
    with subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE) as exporter:
        assert exporter.stdout is not None
        assert exporter.stdout.readline() == b"ready\n"
        seen: set[int] = set()
        for _ in range(2_000):
            encoder = load(folder)
            found = encoder(random_frames(2))
            seen |= {seed for seed in (0, 1) if np.allclose(found, expected[seed], atol=1e-5)}
            assert encoder.decode(found).shape == (2, 16, 16, 3)
            if len(seen) == 2:
                break
        exporter.kill()
    assert len(seen) == 2
    read_encoder_folder(folder)
    export_encoder(folder, model, random_frames(2), overwrite=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == [".encoder-original", "encoder"]


def test_an_encoder_and_its_decoder_are_of_one_export(folder: Path):
    encoder, z = load(folder), np.ones((1, 6), np.float32)
    before = load(folder).decode(z)
    export_encoder(folder, tiny_cvae(seed=9), random_frames(2), overwrite=True)
    assert (encoder.decode(z) == before).all()
    assert (load(folder).decode(z) != before).any()


def test_only_listed_files_are_read_and_copied(folder: Path, tmp_path: Path):
    (tmp_path / "secret").write_text("secret")
    (folder / "notes.txt").symlink_to(tmp_path / "secret")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "more").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    (tmp_path / "elsewhere").mkdir()  # as in a folder of Hugging Face: listed files are links
    (folder / "encoder.safetensors").rename(tmp_path / "elsewhere" / "blob")
    (folder / "encoder.safetensors").symlink_to(tmp_path / "elsewhere" / "blob")
    frames = random_frames(2)
    copy_encoder_folder(folder, tmp_path / "run" / "encoder")
    copied = list((tmp_path / "run" / "encoder").iterdir())
    assert sorted(file.name for file in copied) == FILES
    assert all(file.is_file() and not file.is_symlink() for file in copied)
    assert (load(tmp_path / "run")(frames) == load(folder)(frames)).all()
    (folder / "selfcheck.safetensors").unlink()
    os.mkfifo(folder / "selfcheck.safetensors")
    with pytest.raises(EncoderFolderError, match="selfcheck"):
        load(folder)
    with pytest.raises(EncoderFolderError, match="selfcheck"):
        copy_encoder_folder(folder, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_overwriting_has_to_be_asked_for(folder: Path):
    before = everything_in(folder)
    with pytest.raises(InputError, match="overwrite"):
        export_encoder(folder, tiny_cvae(seed=3), random_frames(2))
    assert everything_in(folder) == before
    export_encoder(folder, tiny_cvae(seed=3), random_frames(2), overwrite=True, with_decoder=False)
    assert sorted(f.name for f in folder.iterdir()) == [n for n in FILES if not n.startswith("decoder")]
    assert [f.name for f in folder.parent.iterdir()] == ["copy"]
    weights = read_encoder_folder(folder).encoder
    assert all(torch.equal(weights[name], value) for name, value in tiny_cvae(seed=3).encoder.state_dict().items())


@pytest.mark.parametrize("what", ["file", "a training run"])
def test_what_is_no_encoder_folder_is_never_overwritten(tmp_path: Path, what: str):
    target = tmp_path / "target"
    if what == "file":
        target.write_text("mine")
    else:
        (target / "checkpoints").mkdir(parents=True)
        (target / "config.json").write_text(json.dumps({"latent_dim": 32}))
        (target / "checkpoints" / "latest.safetensors").write_bytes(b"weeks of work")
    before = everything_in(tmp_path)
    with pytest.raises(InputError, match="target"):
        export_encoder(target, tiny_cvae(), random_frames(2), overwrite=True)
    assert everything_in(tmp_path) == before


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("somebody/doom", ("somebody/doom", None, "")),
        ("somebody/doom@v2", ("somebody/doom", "v2", "")),
        ("hf://somebody/doom", ("somebody/doom", None, "")),
        ("hf://somebody/doom@v2", ("somebody/doom", "v2", "")),
        ("hf://somebody/doom/runs/a", ("somebody/doom", None, "runs/a")),
        ("https://huggingface.co/somebody/doom/", ("somebody/doom", None, "")),
        ("https://huggingface.co/somebody/doom/tree/main/runs/a", ("somebody/doom", "main", "runs/a")),
        ("hf.co/somebody/doom", ("somebody/doom", None, "")),
    ],
)
@pytest.mark.parametrize("kind", [str, Path])
def test_addresses_of_hugging_face(address: str, expected: tuple[Any, ...], kind: Any):
    assert hub_address(str(kind(address))) == expected


@pytest.mark.parametrize("address", ["hf://somebody", "https://example.com/somebody/doom", "some/where/else"])
def test_what_is_no_address_of_hugging_face(address: str):
    with pytest.raises(EncoderFolderError, match="hf://"):
        read_encoder_folder(address)
