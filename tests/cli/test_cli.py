"""The command line: help, mistakes in one line each, and the whole path by verbs."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

from agents import read_evaluations, train_agent
from agents.store import load_agent
from latent_obs.actions import Centroids
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.util.errors import GameLostError
from latent_obs_cli import verbs
from latent_obs_cli.compare import CompareConfig
from latent_obs_cli.main import VERBS, main, usage
from latent_obs_cli.quickstart import QuickstartConfig
from latent_obs_cli.removed import REMOVED_OPTIONS, REMOVED_VERBS
from tests.support import CLIPS, ROOT
from tests.support.side_env import tiny
from vae_training import ExtractConfig, RecordConfig, TrainConfig, get_datasets
from vae_training.report import ReportConfig

CONFIGS: dict[str, Any] = {
    "quickstart": QuickstartConfig,
    "frames record": RecordConfig,
    "frames extract": ExtractConfig,
    "train-vae": TrainConfig,
    "report": ReportConfig,
    "compare": CompareConfig,
}
Call = Callable[[str], tuple[int, str, str]]


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Call:
    """Run a command line; its exit status, and what it wrote to stdout and stderr."""

    def run(words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            code = main(words.split())
        except SystemExit as error:  # how argument parsers leave
            code = int(error.code or 0)
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return run


def plain(text: str) -> str:
    """Text without colours, frames and line breaks."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", text).split())


def test_the_overview_names_every_verb(call: Call):
    code, out, err = call("--help")
    assert (code, err) == (0, "")
    assert out == call("")[1]
    for verb, (_, text) in VERBS.items():
        assert verb in out
        assert text in out


@pytest.mark.parametrize("verb", list(VERBS))
def test_help_describes_every_option(call: Call, monkeypatch: pytest.MonkeyPatch, verb: str):
    monkeypatch.setenv("COLUMNS", "240")
    code, out, _ = call(f"{verb} --help")
    assert code == 0
    assert f"latent-obs {verb}" in plain(out)
    for field in dataclasses.fields(CONFIGS[verb]) if verb in CONFIGS else ():
        name = f"--{field.name.replace('_', '-')}"
        assert name in plain(out) or field.name in ("recordings", "encoder"), "which are named without their option"


@pytest.mark.parametrize(("words", "hints"), [("train", ["train-vae", "train-agent"]), ("dance", list(VERBS))])
def test_an_unknown_verb(call: Call, words: str, hints: list[str]):
    code, out, err = call(words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    for hint in (words, *hints):
        assert hint in err


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("alternate --env Side-v0 --out runs/turns", "frames record --agent.*train-vae --start-from.*train-agent"),
        ("train-vae --ramp cosine", "--ramp.*linearly"),
        ("compare --no-normalize-reward", r"normalize_reward under \[settings\]"),
        ("compare --seed=3", "--seed was.*--seeds"),
    ],
)
def test_a_removed_verb_or_option_names_what_to_use(call: Call, words: str, advice: str):
    code, out, err = call(words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.search(advice, err)


def test_nothing_is_removed_and_there():
    assert not REMOVED_VERBS.keys() & VERBS.keys()
    for verb in CONFIGS.keys() & REMOVED_OPTIONS.keys():
        there = {f.name.replace("_", "-") for f in dataclasses.fields(CONFIGS[verb])}
        assert not there & REMOVED_OPTIONS[verb].keys(), verb


def test_as_a_command_of_its_own(tmp_path: Path):
    """The overview without torch, the exit status, and a foreign package of the same name, in processes."""
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "__init__.py").touch()
    code = "import sys; from latent_obs_cli.main import main; main([]); assert 'torch' not in sys.modules\n"
    code += f"sys.path.insert(0, {str(tmp_path)!r}); sys.exit(main(['watch']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr.count("\n")) == (2, usage(), 1)
    assert str(tmp_path / "agents") in done.stderr
    assert str(ROOT / "agents") in done.stderr


def test_a_reader_that_ends_early_is_no_error():
    command = [sys.executable, "-m", "latent_obs_cli.main", "train-vae", "--help"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


def test_ctrl_c_and_bugs(call: Call, monkeypatch: pytest.MonkeyPatch):
    def raises(error: BaseException) -> None:
        def run() -> None:
            raise error

        monkeypatch.setattr(verbs, "actions_fit", run)

    raises(KeyboardInterrupt())
    assert call("actions fit")[0] == 130
    raises(OSError(28, "No space left on device", "runs/file"))
    assert call("actions fit") == (2, "", "latent-obs actions fit: runs/file: No space left on device\n")
    raises(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):  # a bug keeps its traceback
        call("actions fit")


@pytest.fixture(scope="module")
def places(encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the mistakes are made with: good frames and a good encoder and agent, and each of them damaged."""
    home = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    for name, shape in (("frames", (24, 16, 16, 3)), ("odd", (24, 17, 16, 3))):
        (home / name).mkdir()
        for i in range(3):
            np.save(home / name / f"{i}.npy", rng.integers(0, 256, shape, np.uint8))
    (home / "full").mkdir()
    (home / "full" / "notes.txt").write_text("mine")
    (home / "file").write_text("a file")
    damaged = shutil.copytree(encoder_folder, home / "damaged")
    data = bytearray((damaged / "encoder.safetensors").read_bytes())
    data[-7] ^= 1
    (damaged / "encoder.safetensors").write_bytes(data)
    agent = home / "agent"
    train_agent(tiny(encoder=encoder_folder, out=agent, steps=32), say=lambda text: None)
    broken = shutil.copytree(agent, home / "broken")
    (broken / "best.zip").write_bytes((broken / "best.zip").read_bytes()[:2_000])
    return {"home": home, "encoder": encoder_folder}


DENSE = "--bottleneck dense --widths 4 8"
VAE = f"train-vae {DENSE} --latent-dim 6 --epochs 1 --batch-size 8 --device cpu --out {{new}}"
FRAMES = VAE + " --frames {home}/frames"
AGENT = "train-agent --env Side-v0 --envs 2 --workers serial --steps 32 --n-steps 16 --batch-size 16 --out {new}"
ENCODER = AGENT + " --encoder {encoder}"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (VAE + " --frames {home}/nowhere", "nowhere"),
        (FRAMES + " --out {home}/full", "full.*--resume"),
        (FRAMES + " --device cuda:63", "cuda:63"),
        (FRAMES + " --resume", "new"),
        ("train-vae --frames {home}/odd --out {new}", r"\(17, 16, 3\)"),
        (AGENT, "encoder"),
        (AGENT + " --encoder {home}/damaged", r"encoder\.safetensors"),
        (ENCODER + " --env CartPole-v1", "uint8"),
        (ENCODER + " --env Syde-v0", "Side-v0"),
        ("train-agent --resume --out {home}/agent --gamma 0.5", "gamma"),
        ("evaluate --run {home}/nowhere", "nowhere"),
        ("evaluate --run {home}/broken", r"best\.zip"),
        ("frames record --env Side-v0 --out {home}/file", "file"),
        ("frames extract {home}/nowhere --out {new}", "nowhere"),
        ("frames stats {home}/nowhere", "nowhere"),
        ("actions fit --demonstrations {home}/frames --out {home}/file", "out.*file"),
        ("quickstart --out {home}/full", "out.*full"),
        ("compare --out {new} --page-only", r"out.*study\.json"),
        ("compare --out {new} --study no.toml --frame-skip 4 --seeds 3", "--seeds, --frame-skip.*no.toml"),
        ("compare --out {new} --arms pixel", "arms: 'pixel'"),
        ("compare --out {new} --arms pixels --frame-skip 0", "frame_skip"),
    ],
)
def test_a_mistake_is_one_clear_line(call: Call, places: dict[str, Path], tmp_path: Path, words: str, named: str):
    home = places["home"]
    before = {f: f.read_bytes() for f in home.rglob("*") if f.is_file()}
    code, out, err = call(words.format(new=tmp_path / "new", **places))
    assert code == 2, out
    verb = next(v for v in VERBS if words.startswith(v))
    assert err.startswith(f"latent-obs {verb}: ")
    assert re.search(named, err)
    assert err.strip().count("\n") == 0, "one line"
    assert {f: f.read_bytes() for f in home.rglob("*") if f.is_file()} == before
    assert not list((tmp_path / "new").glob("*")), "nothing is left behind"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (FRAMES + " --beta nan", "beta"),
        (ENCODER + " --gamma 2", "gamma"),
        ("quickstart --out {new} --episodes 1", "episodes"),
        ("train-vae --no-such-option 3", "no-such-option"),
        ("train-agent --steps many", "steps"),
    ],
)
def test_a_setting_that_is_not_allowed_is_named(
    call: Call, places: dict[str, Path], tmp_path: Path, words: str, named: str
):
    code, _, err = call(words.format(new=tmp_path / "new", **places))
    assert code == 2
    assert re.search(named, plain(err))
    assert not (tmp_path / "new").exists()


@pytest.mark.integration
def test_the_whole_path_by_verbs(call: Call, tmp_path: Path):
    pytest.importorskip("vizdoom")
    pytest.importorskip("av")
    frames, vae, agent = tmp_path / "frames", tmp_path / "vae", tmp_path / "agent"
    game = "--env VizdoomBasic-v1 --frame-skip 4"
    code, out, _ = call(f"frames record {game} --out {frames} --frames 64 --frames-per-file 32")
    assert code == 0
    assert f"latent-obs train-vae --frames {frames}" in out
    files = sorted(frames.glob("*.npy"))
    assert [np.load(f).shape for f in files] == [(32, 64, 64, 3)] * 2
    assert all(np.load(f).std() > 5 for f in files)

    sizes = f"{DENSE} --latent-dim 8 --epochs 1 --batch-size 8 --device cpu"
    assert call(f"train-vae --frames {frames} --out {vae} {sizes}")[0] == 0
    encoder = FrozenEncoder.load(vae / "encoder", device="cpu")
    assert encoder.encode(np.load(files[0])).shape == (32, 8)

    sizes = "--envs 2 --workers serial --steps 64 --n-steps 32 --batch-size 32 --n-epochs 1 --eval-every 64"
    words = f"train-agent {game} --encoder {vae} --out {agent} --latent-only {sizes} --eval-episodes 2 --device cpu"
    assert call(words)[0] == 0
    model = load_agent(agent, "last", device="cpu")
    assert (model.num_timesteps, model.observation_space.shape) == (64, (8,))
    assert [row["step"] for row in read_evaluations(agent)] == [64]

    code, out, _ = call(f"evaluate --run {agent} --episodes 2")
    assert code == 0
    assert re.search(r"best agent \(latent\): mean return -?[\d.]+ ± [\d.]+", out)
    assert re.search(r"random policy: mean return -?[\d.]+ ±", out)
    assert str(agent / "agent.mp4") in out


def test_evaluate_does_what_is_asked_and_resume_goes_on(call: Call, places: dict[str, Path]):
    run = places["home"] / "agent"
    code, out, _ = call(f"evaluate --run {run} --episodes 3 --which last --no-video --no-random-policy")
    assert code == 0
    assert re.search(r"last agent \(latent\): mean return \d\.\d ± \d\.\d .*3 episodes", out)
    assert "random policy" not in out
    assert not (run / "agent.mp4").exists()
    code, out, _ = call(f"evaluate --run {run} --episodes 1 --no-video")
    assert code == 0
    assert "inf" not in out, "one episode shows nothing"
    assert call(f"train-agent --out {run} --resume --steps 64")[0] == 0
    assert load_agent(run, "last", device="cpu").num_timesteps == 64
    assert json.loads((run / "config.json").read_text())["steps"] == 64


def test_from_a_video_to_sheets(call: Call, tmp_path: Path):
    pytest.importorskip("av")
    frames = tmp_path / "frames"
    extract = f"frames extract {CLIPS} --out {frames} --workers 1 --size"
    code, out, err = call(f"{extract} 32")
    assert (code, err) == (0, "")
    assert f"latent-obs train-vae --frames {frames}" in out
    (dataset,) = get_datasets(frames)
    assert dataset.shape == (90, 32, 32, 3)
    before = {file: file.stat().st_mtime_ns for file in frames.rglob("*.npy")}
    assert call(f"{extract} 32")[0] == 0
    assert {file: file.stat().st_mtime_ns for file in before} == before, "not made again"
    code, _, err = call(f"{extract} 48")
    assert (code, "size" in err) == (2, True)
    code, out, _ = call(f"frames stats {frames}")
    assert code == 0
    for picture in ("contact_sheet.png", "mean_images.png"):
        assert (tmp_path / "frames_stats" / picture).stat().st_size > 1_000
        assert picture in out
    (frames / "cut.npy").write_bytes(b"\x93NUMPY")
    code, out, _ = call(f"frames stats {frames} --json --out {tmp_path / 'sheets'}")
    assert code == 1
    assert "cut.npy" in json.dumps(json.loads(out)["refused"])
    assert (tmp_path / "sheets" / "contact_sheet.png").exists()


def test_centroids_of_demonstrated_actions(call: Call, tmp_path: Path):
    centers = np.eye(5, 64, dtype=np.float32)
    np.savez(tmp_path / "rendered.npz", **{"action$vector": np.repeat(centers, 80, axis=0)})
    file = tmp_path / "centroids.safetensors"
    code, out, _ = call(f"actions fit --demonstrations {tmp_path} --clusters 5 --out {file}")
    assert code == 0
    assert "5 centroids of 400 actions" in out
    assert {tuple(vector) for vector in Centroids.load(file).vectors} == {tuple(center) for center in centers}


def test_a_game_that_is_lost_for_good_shows_where_it_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def lost(*_: Any) -> None:
        try:
            raise RuntimeError("the engine is gone")
        except RuntimeError as error:
            raise GameLostError("the game was lost 10 times in a row") from error

    monkeypatch.setattr("latent_obs_cli.main._run", lost)
    assert main(["train-agent"]) == 2
    *trace, last = capsys.readouterr().err.splitlines()
    assert trace[-1] == "RuntimeError: the engine is gone"
    assert any("in lost" in line for line in trace)
    assert "10 times" in last
