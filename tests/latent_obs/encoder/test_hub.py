"""Encoders from and to Hugging Face: the real client against a small server that speaks the hub's HTTP interface."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from latent_obs.encoder.card import encoder_push
from latent_obs.encoder.folder import copy_encoder_folder
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.pixels import PixelContract
from latent_obs.util.errors import EncoderFolderError, InputError
from latent_obs_cli.main import main
from tests.support import ROOT
from tests.support.hub_server import Hub, Repository
from tests.support.hub_server import hub as hub
from tests.support.tiny import random_frames, tiny_cvae
from vae_training.training.export import export_encoder

constants: Any = pytest.importorskip("huggingface_hub.constants")

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the client itself
FILES = ["SHA256SUMS", "config.json", "decoder.safetensors", "encoder.safetensors", "selfcheck.safetensors"]
REPO = "somebody/doom"


@pytest.fixture
def run(encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder, in a current folder of its own."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    copy_encoder_folder(encoder_folder, Path("runs/tiny/encoder"))
    return Path("runs/tiny")


def load(name: str, **how: Any) -> FrozenEncoder:
    return FrozenEncoder.load(name, device="cpu", **how)


def snapshot(encoder: FrozenEncoder) -> Path:
    """The folder in the cache that an encoder was loaded from; its name is the commit."""
    assert encoder.path is not None
    return encoder.path


def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_what_is_pushed_is_what_is_loaded(hub: Hub, run: Path):
    (run / "best.pkl").write_bytes(b"a pickle")
    (run / "encoder" / "best.pkl").write_bytes(b"a pickle")
    encoder, frames = load(str(run)), random_frames(3)
    url = encoder.push_to_hub(REPO, license="mit")
    assert sorted(hub.files(REPO)) == [".gitattributes", "README.md", *FILES]
    assert all(hub.files(REPO)[name] == (run / "encoder" / name).read_bytes() for name in FILES)
    assert hub.repositories[REPO].private
    assert url.startswith(f"{hub.url}/{REPO}/commit/")
    loaded = load(REPO)
    assert (loaded(frames) == encoder(frames)).all()
    assert not (snapshot(loaded) / "README.md").exists(), "only what an encoder needs is downloaded"


def test_the_card_pins_the_commit_that_has_the_files(hub: Hub, run: Path):
    load(str(run)).push_to_hub(REPO, license="mit", commit_message="The first one")
    repository = hub.repositories[REPO]
    _, files, card = repository.commits
    assert repository.messages[files] == "The first one"
    assert f'FrozenEncoder.load("{REPO}", revision="{files}")' in hub.files(REPO)["README.md"].decode()
    assert "encoder.safetensors" in repository.commits[files]
    assert snapshot(load(REPO, revision=files)).name == files
    assert snapshot(load(f"{REPO}@{card}")).name == card


def test_revisions_stay_what_they_were(hub: Hub, run: Path):
    first, frames = load(str(run)), random_frames(3)
    first.push_to_hub(REPO, license="mit", revision="v1")
    export_encoder(run / "encoder", tiny_cvae(seed=5), random_frames(2), overwrite=True, with_decoder=False)
    second = load(str(run))
    assert main(["push", str(run), f"{REPO}@v2", "--license", "mit"]) == 0
    assert (load(REPO, revision="v1")(frames) == first(frames)).all()
    assert (load(f"hf://{REPO}@v2")(frames) == second(frames)).all()
    assert set(hub.repositories[REPO].branches) == {"main", "v1", "v2"}
    with pytest.raises(InputError, match="revision 'v1'"):
        load(f"{REPO}@v2", revision="v1")


def test_files_of_an_earlier_push_go_and_those_of_others_stay(hub: Hub, run: Path):
    load(str(run)).push_to_hub(REPO, license="mit")
    hub.files(REPO)["notes.txt"] = b"mine"
    export_encoder(run / "encoder", tiny_cvae(seed=5), random_frames(2), overwrite=True, with_decoder=False)
    load(str(run)).push_to_hub(REPO, license="mit")
    assert "decoder.safetensors" not in hub.files(REPO)
    assert "notes.txt" in hub.files(REPO)
    assert (load(REPO)(random_frames(3)) == load(str(run))(random_frames(3))).all()


def test_what_is_in_the_cache_loads_without_a_network(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch):
    load(str(run)).push_to_hub(REPO, license="mit")
    commit = snapshot(load(REPO)).name
    hub.requests.clear()
    load(REPO, revision=commit)
    assert hub.requests == [], "a commit cannot change"
    go_offline(monkeypatch)
    assert snapshot(load(REPO)).name == commit
    assert snapshot(load(f"{REPO}@{commit}")).name == commit
    with pytest.raises(EncoderFolderError, match=r"'v1' of somebody/doom is not in the cache"):
        load(REPO, revision="v1")
    with pytest.raises(EncoderFolderError, match=r"127\.0\.0\.1:9 cannot be reached.*'main' of somebody/other"):
        load("somebody/other")
    with pytest.raises(InputError, match=r"127\.0\.0\.1:9 cannot be reached"):
        load(str(run)).push_to_hub(REPO, license="mit")


def test_what_cannot_be_loaded_is_one_line_that_says_why(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch):
    load(str(run)).push_to_hub(REPO, license="mit")
    pictures = hub.repositories["somebody/pictures"] = Repository(private=False)
    pictures.commit("main", {"config.json": b"{}", "model.safetensors": b"", "best.zip": b""}, "a model")
    gated = hub.repositories["somebody/gated"] = Repository(private=False, gated=True)
    gated.commit("main", hub.files(REPO), "an encoder")
    Path("user/empty").mkdir(parents=True)
    cases = {
        "somebody/typo": "no folder 'somebody/typo' here, and there is no repository somebody/typo",
        f"{REPO}@v9": "no revision 'v9'",
        f"hf://{REPO}/inner": "holds no encoder",
        "somebody/pictures": "holds no encoder",
        "somebody/gated": "is gated: ask for access",
        "runs/typo": "no encoder folder 'runs/typo'",  # its folder is here: a slip, which nobody else should see
        "user/empty": "write hf://user/empty",
        "some--body/doom": "no name of a repository",
    }
    hub.requests.clear()
    for name, why in cases.items():
        with pytest.raises(EncoderFolderError, match=r"^[^\n]*$") as error:
            load(name)
        assert why.lower() in str(error.value).lower()
    assert not any("typo" in request and "runs" in request for request in hub.requests)
    assert not any("model.safetensors" in request or "best.zip" in request for request in hub.requests)
    with pytest.raises(EncoderFolderError, match="revision 'main': 'runs/tiny' is a folder here"):
        load("runs/tiny", revision="main")
    monkeypatch.setenv("HF_TOKEN", "of another user")
    shutil.rmtree(constants.HF_HUB_CACHE)
    with pytest.raises(EncoderFolderError, match=r"no repository somebody/doom.*or it is private.*hf auth login"):
        load(REPO)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("runs/tiny somebody/doom", "license must be given"),
        ("runs/typo somebody/doom --license mit", "run: there is no folder runs/typo"),
        ("runs/tiny runs/tiny --license mit", "repository: 'runs/tiny' is a file or folder here"),
        ("runs/tiny doom --license mit", "repository: got 'doom', expected user/name"),
        ("runs/tiny hf://somebody/doom/inner --license mit", "repository: got"),
        ("runs somebody/doom --license mit", "config.json"),
        ("runs/tiny other/doom --license mit", "no permission for"),
        (
            "runs/tiny somebody/public --license mit",
            "somebody/public is public: push to it with --public (private=False)",
        ),
        ("runs/tiny somebody/doom --license my-own", "license is unknown"),
    ],
)
def test_what_cannot_be_pushed_is_one_line(
    hub: Hub, run: Path, capfd: pytest.CaptureFixture[str], words: str, why: str
):
    hub.repositories["somebody/public"] = Repository(private=False)
    hub.repositories["somebody/public"].commit("main", {}, "initial commit")
    hub.reject_card = "license is unknown" if "my-own" in words else None
    assert main(["push", *words.split()]) == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert why in line
    assert not any("/commit/" in request or "/lfs/" in request for request in hub.requests), "nothing was pushed"


def test_a_dry_run_shows_the_card_and_the_files_and_asks_for_nothing(
    hub: Hub, run: Path, capfd: pytest.CaptureFixture[str]
):
    assert main(["push", str(run), REPO, "--license", "mit", "--dry-run"]) == 0
    out, _ = capfd.readouterr()
    assert hub.requests == []
    assert front_matter(out)["license"] == "mit"
    assert all(name in out for name in ["README.md", *FILES])
    assert "latent-obs report runs/tiny" in out, "what the card lacks, and what makes it"


@pytest.mark.integration
def test_the_environment_variables_of_the_hub_are_those_of_its_client(hub: Hub, run: Path, tmp_path: Path):
    code = "import sys; from latent_obs_cli.main import main; code = main(sys.argv[1:]); "
    code += (
        "from latent_obs import FrozenEncoder; print(FrozenEncoder.load('somebody/doom', 'cpu').path); sys.exit(code)"
    )
    words = ["push", str(run), REPO, "--license", "mit"]
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    env = {**os.environ, **own, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, *words], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "home") in done.stdout.splitlines()[-1]
    assert sorted(hub.files(REPO)) == [".gitattributes", "README.md", *FILES]


def test_a_public_repository_has_to_be_asked_for(hub: Hub, run: Path):
    assert main(["push", str(run), REPO, "--license", "mit", "--public"]) == 0
    assert not hub.repositories[REPO].private
    assert main(["push", str(run), REPO, "--license", "mit", "--public"]) == 0, "again"


def test_the_card_has_the_frames_and_nothing_of_this_machine(run: Path, tmp_path: Path):
    frames = tmp_path / "here" / "frames" / "doom"
    frames.mkdir(parents=True)
    recorded = {"env": "VizdoomBasic-v1", "policy": "sticky", "agent": None, "frame_skip": 4}
    index = {"files": {"a.npy": recorded, "b.npy": recorded, "held_out.npy": {**recorded, "env": "Other-v0"}}}
    (frames / "recording.json").write_text(json.dumps(index))
    source = "hf://datasets/user/{}@v1/clip.mp4".format
    entries = {name: {"source": source(name), "kind": "video", "files": [{"file": f"{name}.npy"}]} for name in "xy"}
    (frames / "frames.shard-1-of-2.json").write_text(json.dumps({"recordings": entries}))
    trained_on = [{"file": name, "frames": count} for name, count in (("a.npy", 1_000), ("b.npy", 20), ("x.npy", 4))]
    provenance = {"trained_on": trained_on, "settings": {"frames": str(frames)}}
    export_encoder(run / "encoder", tiny_cvae(), random_frames(2), overwrite=True, provenance=provenance)
    card = str(encoder_push(run, REPO, "mit").card("c0ffee"))
    assert "1,024 frames of 3 files: recorded in VizdoomBasic-v1 (policy sticky, frame_skip 4)" in card
    assert "VizdoomBasic-v1" in front_matter(card)["tags"]
    assert "Other-v0" not in card
    assert front_matter(card)["datasets"] == ["user/x"]
    assert f'make("VizdoomBasic-v1", "{REPO}@c0ffee")' in card
    assert str(tmp_path) not in card


def test_an_encoder_of_a_module_is_saved_first_and_needs_its_code(hub: Hub, tmp_path: Path):
    import torch

    network = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 8, 8), torch.nn.Flatten())
    encoder = FrozenEncoder.from_module(network, PixelContract(32, 32, 3), device="cpu")
    encoder.push_to_hub(REPO, license="mit", private=False)
    card = hub.files(REPO)["README.md"].decode()
    assert "module=network" in card
    frames = random_frames(3, (32, 32, 3))
    assert (load(REPO, module=network)(frames) == encoder(frames)).all()
    with pytest.raises(EncoderFolderError, match="module"):
        load(REPO)
