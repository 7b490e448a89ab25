"""The command line: help, mistakes in one line each, and the whole path by verbs."""

import dataclasses
import json
import os
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

import agents
from agents import read_evaluations, train_agent
from agents.store import load_agent
from latent_obs.actions import Centroids
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.util.errors import GameLostError, InputError
from latent_obs_cli import verbs
from latent_obs_cli.compare import CompareConfig
from latent_obs_cli.fit import FitConfig
from latent_obs_cli.main import VERBS, main, usage
from latent_obs_cli.quickstart import QuickstartConfig
from latent_obs_cli.removed import REMOVED_OPTIONS, REMOVED_VERBS
from tests.support import CLIPS, ROOT
from tests.support.side_env import SIDE, tiny
from vae_training import ExtractConfig, RecordConfig, TrainConfig, get_datasets
from vae_training.report import ReportConfig

CONFIGS: dict[str, Any] = {
    "quickstart": QuickstartConfig,
    "fit": FitConfig,
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
        ("quickstart --vae-epochs 3", "--vae-epochs.*--minutes"),
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


@pytest.mark.parametrize("foreign", ["agents/__init__.py", "agents.py", "vae_training/__init__.py"])
def test_as_a_command_of_its_own(tmp_path: Path, foreign: str):
    """The overview without torch, the exit status, and a foreign package of the same name, in processes."""
    file = tmp_path / foreign
    file.parent.mkdir(exist_ok=True)
    file.write_text("raise ImportError('not ours')")
    code = "import sys; from latent_obs_cli.main import main; main([]); assert 'torch' not in sys.modules\n"
    code += f"sys.path.insert(0, {str(tmp_path)!r}); sys.exit(main(['watch']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr.count("\n")) == (2, usage(), 1)
    assert str(file) in done.stderr
    assert str(ROOT / foreign.partition("/")[0].removesuffix(".py")) in done.stderr


def test_a_package_that_was_installed_over_ours(tmp_path: Path):
    """As pip's openai-agents does, whose package is called agents, too."""
    for name in ("latent_obs", "latent_obs_cli", "vae_training"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "__init__.py").write_text("class Agent: pass")
    code = f"""if True:
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        import latent_obs_cli.main as command
        command.__file__ = {str(tmp_path / "latent_obs_cli" / "main.py")!r}
        command.Path.resolve = lambda self: self  # the links stand for an installation
        sys.exit(command.main(["watch"]))"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert str(tmp_path / "agents" / "__init__.py") in done.stderr
    assert str(tmp_path / "latent_obs") in done.stderr


@pytest.mark.integration
def test_the_command_works_from_a_folder_that_has_a_package_of_the_same_name(encoder_folder: Path, tmp_path: Path):
    """With worker processes; as a script, whose folder and not the working one is on the path."""
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "__init__.py").write_text("raise ImportError('not ours')")
    script = tmp_path / "bin" / "latent-obs"
    script.parent.mkdir()
    script.write_text("from latent_obs_cli.main import entry\nif __name__ == '__main__':\n    entry()\n")
    sizes = "--envs 2 --steps 32 --n-steps 16 --batch-size 16 --eval-every 0 --device cpu"
    words = f"train-agent --env {SIDE} --encoder {encoder_folder} --out run {sizes}"
    done = subprocess.run(
        [sys.executable, str(script), *words.split()],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert load_agent(tmp_path / "run", "last", device="cpu").num_timesteps == 32


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
    (home / "frames").mkdir()
    for i in range(3):
        np.save(home / "frames" / f"{i}.npy", rng.integers(0, 256, (24, 16, 16, 3), np.uint8))
    (home / "full").mkdir()
    (home / "full" / "notes.txt").write_text("mine")
    (home / "file").write_text("a file")
    (home / "empty").touch()
    (home / "nothing").mkdir()
    (home / "loop").symlink_to(home / "loop")
    (home / "study.toml").write_text("arms = [1]\n[tasks.side]\nenv = 'Side-v0'\n")
    arrays: dict[str, Any] = {"action$vector": rng.normal(size=(400, 8)).astype(np.float32)}
    np.savez(home / "rendered.npz", **arrays)
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
        (AGENT, "encoder"),
        (AGENT + " --encoder {home}/damaged", r"encoder\.safetensors"),
        (ENCODER + " --env CartPole-v1", "uint8"),
        (ENCODER + " --env Syde-v0", "Side-v0.*my_module:Syde-v0"),
        (ENCODER + " --env no_such_module:Side-v0", "no_such_module"),
        ("train-agent --resume --out {home}/agent --gamma 0.5", "gamma"),
        ("evaluate --run {home}/nowhere", "nowhere"),
        ("evaluate --run {home}/broken", r"best\.zip"),
        ("frames record --env Side-v0 --out {home}/file", "file"),
        ("frames extract {home}/nowhere --out {new}", "nowhere"),
        ("frames stats {home}/nowhere", "nowhere"),
        ("actions fit --demonstrations {home}/frames --out {home}/file", "out.*file"),
        ("quickstart --out {home}/full", "out.*full"),
        ("quickstart --out {new} --minutes 0.01", "minutes must be at least"),
        ("fit --env Side-v0 --out {home}/full", "out.*full"),
        ("fit --env Side-v0 --out {new} --minutes 0.01", "minutes must be at least"),
        ("fit --env CartPole-v1 --out {new}", "--render.*AddRenderObservation"),
        ("fit --frames {home}/nothing --out {new}", "nothing"),
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
        ("quickstart --out {new} --minutes nan", "minutes"),
        ("fit --out {new}", "env"),
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


#: A command of every verb that would work, without --out.
GOOD = {
    "frames record": "frames record --env Side-v0 --frames 16",
    "frames extract": "frames extract {home}/frames --workers 1",
    "frames stats": "frames stats {home}/frames",
    "train-vae": FRAMES.removesuffix(" --out {new}"),
    "report": "report {encoder} --frames {home}/frames --quick",
    "train-agent": ENCODER,
    "actions fit": "actions fit --demonstrations {home}/rendered.npz --clusters 5",
    "evaluate": "evaluate --run {home}/agent --episodes 1 --no-random-policy --no-video",
    "watch": "watch --run {home}/agent --episodes 1",
    "quickstart": "quickstart",
    "fit": "fit --env Side-v0",
    "compare": "compare --env Side-v0 --encoder {encoder} --arms latent --seeds 0 --steps 32",
}
NOT_UTF_8 = os.fsdecode(b"caf\xe9")
TWENTY_DIGITS = "99999999999999999999"


@pytest.mark.parametrize("verb", GOOD)
@pytest.mark.parametrize("place", ["{home}/loop", "{home}/loop/x", "{home}/file", "{home}/file/x", NOT_UTF_8])
def test_a_place_that_cannot_be_written_is_one_line(
    call: Call, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, verb: str, place: str
):
    monkeypatch.chdir(places["home"])
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    option = {"evaluate": "--json", "watch": "--run"}.get(verb, "--out")
    if verb == "evaluate" and place == "{home}/file":
        pytest.skip("a file to write over")
    before = {f: f.read_bytes() for f in places["home"].rglob("*") if f.is_file()}
    code, out, err = call(f"{GOOD[verb]} {option} {place}".format(new="unused", **places))
    assert (code, err.strip().count("\n")) == (2, 0), out + err
    assert place.format(**places).encode(errors="backslashreplace").decode() in err
    assert {f: f.read_bytes() for f in places["home"].rglob("*") if f.is_file()} == before


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        ("frames record", "frames frames-per-file size frame-skip seed"),
        ("frames extract", "frames-per-file size workers"),
        ("frames stats", "sample"),
        ("train-vae", "epochs batch-size latent-dim super-batch seed batch-freeze half-beta-cycle widths"),
        ("report", "sample seed"),
        ("train-agent", "steps envs history n-steps n-epochs batch-size eval-every checkpoint-every net-arch seed"),
        ("actions fit", "clusters seed"),
        ("evaluate", "episodes seed"),
        ("quickstart", "minutes episodes seed"),
        ("fit", "minutes frame-skip seed"),
        ("compare", "seeds steps episodes jobs threads frame-skip"),
    ],
)
def test_a_number_of_twenty_digits_is_one_line(
    call: Call, places: dict[str, Path], tmp_path: Path, verb: str, options: str
):
    out = "" if verb == "evaluate" else f"--out {tmp_path / 'new'}"
    for option in options.split():
        words = f"{GOOD[verb]} {out} --{option} {TWENTY_DIGITS}".format(new=tmp_path / "new", **places)
        code, _, err = call(words)
        assert code == 2, option
        assert re.search(option.replace("-", ".") + "|memory", err), err
        assert "\n" not in err.strip() or "╭" in err, err


@pytest.mark.parametrize("kind", ["file", "empty", "nothing", "loop", "rendered.npz", "study.toml", "file/x"])
def test_something_else_in_place_of_a_file_or_folder_is_one_line(
    call: Call, places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    given, new, home = places["home"] / kind, tmp_path / "new", places["home"]
    commands = [
        f"evaluate --run {given} --no-video",
        f"watch --run {given}",
        f"report {given} --out {new}",
        f"report {places['encoder']} --frames {given} --out {new}",
        f"{AGENT} --encoder {given}",
        f"{AGENT} --observation pca-latent --pca {given}",
        f"compare --env Side-v0 --arms latent --encoder {given} --out {new}",
        f"compare --env Side-v0 --arms latent --frames {given} --out {new}",
        f"compare --study {given} --out {new}",
        f"compare --page-only --out {given}",
        f"frames record --agent {given} --frames 16 --out {new}",
        f"{VAE} --frames {given}",
        f"{VAE} --frames {home}/frames --start-from {given}",
        f"train-agent --resume --out {given}",
        f"train-vae --resume --out {given}",
    ]
    for command in commands:
        code, out, err = call(command.format(new=new, **places))
        assert (code, err.strip().count("\n")) == (2, 0), f"{command}: {out}{err}"
        assert kind in err or "arms" in err, f"{command}: {err}"
        assert not new.exists(), f"{command}: {list(new.rglob('*'))}"


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


@pytest.mark.integration
def test_an_environment_without_pixels_is_seen_as_it_draws_itself(call: Call, places: dict[str, Path], tmp_path: Path):
    pytest.importorskip("pygame")
    words = (ENCODER + " --eval-every 0").format(new=tmp_path / "agent", **places).replace("Side-v0", "CartPole-v1")
    for verb in (f"frames record --env CartPole-v1 --frames 6 --out {tmp_path / 'frames'}", words):
        code, _, err = call(verb)
        assert (code, err.count("\n")) == (2, 1)
        assert "--render" in err
        assert call(f"{verb} --render")[0] == 0
    assert call(f"frames record --agent {tmp_path / 'agent'} --which last --frames 6 --out {tmp_path / 'more'}")[0] == 0
    for folder in ("frames", "more"):
        assert np.load(tmp_path / folder / "CartPole-v1_000.npy").std() > 5


def test_evaluate_names_no_video_where_none_can_be_made(
    call: Call, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    def film(*_: object, **__: object) -> None:
        raise InputError("it draws nothing")

    monkeypatch.setattr(agents, "film", film)
    code, out, err = call(f"evaluate --run {places['home'] / 'agent'} --episodes 1 --no-random-policy")
    assert code == 2
    assert "mean return" in out
    assert "--no-video leaves it out: it draws nothing" in err


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
    arrays: dict[str, Any] = {"action$vector": np.repeat(centers, 80, axis=0)}
    np.savez(tmp_path / "rendered.npz", **arrays)
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
