"""The command line: help, mistakes in one line each, and the whole path by verbs."""

import ast
import dataclasses
import inspect
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

from agents import AgentConfig, read_evaluations, train_agent
from agents.store import load_agent
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs_cli import main as main_module
from latent_obs_cli.main import VERBS, main
from latent_obs_cli.quickstart import QuickstartConfig
from latent_obs_cli.removed import REMOVED_VERBS
from tests.support.side_env import tiny
from vae_training import ExtractConfig, RecordConfig, TrainConfig
from vae_training.report import ReportConfig

CONFIGS: dict[str, Any] = {
    "quickstart": QuickstartConfig,
    "frames record": RecordConfig,
    "frames extract": ExtractConfig,
    "train-vae": TrainConfig,
    "report": ReportConfig,
    "train-agent": AgentConfig,
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
        return code, out, err

    return run


def plain(text: str) -> str:
    """Text without colours, frames and line breaks."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", text).split())


def described(config: type[Any]) -> dict[str, str]:
    """Each field of a dataclass, with the string below it."""
    (definition,) = [n for n in ast.parse(inspect.getsource(config)).body if isinstance(n, ast.ClassDef)]
    texts: dict[str, str] = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            texts[field.target.id] = " ".join(str(below.value.value).split())
    return texts


@pytest.mark.parametrize("words", ["", "--help", "-h", "help"])
def test_the_overview_names_every_verb(call: Call, words: str):
    code, out, err = call(words)
    assert (code, err) == (0, "")
    for verb, (_, text) in VERBS.items():
        assert verb in out
        assert text in out


@pytest.mark.parametrize("verb", list(CONFIGS))
def test_help_tells_every_option(call: Call, monkeypatch: pytest.MonkeyPatch, verb: str):
    monkeypatch.setenv("COLUMNS", "240")
    code, out, _ = call(f"{verb} --help")
    assert code == 0
    config, text = CONFIGS[verb], plain(out)
    texts = described(config)
    assert set(texts) == {f.name for f in dataclasses.fields(config)}
    for name, meaning in texts.items():
        assert f"--{name.replace('_', '-')}" in text or name in ("recordings", "encoder")  # which are named without one
        assert " ".join(meaning.split()[:5]) in text, name
    assert f"latent-obs {verb}" in text


def test_help_of_evaluate(call: Call, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "240")
    code, out, _ = call("evaluate --help")
    assert code == 0
    for option, meaning in {
        "--run": "The folder that train-agent wrote.",
        "--episodes": "Episodes to play.",
        "--which {best,last,STEP}": "best (by the evaluations during training), last, or a kept checkpoint by its step.",
        "--no-video": "Film some episodes",
        "--no-random-policy": "the least that an agent has to beat",
        "--seed": "Seed of the environments.",
        "--device": "Where to encode",
    }.items():
        assert option in plain(out)
        assert meaning in plain(out)


def test_version(call: Call):
    assert re.fullmatch(r"latent-obs \d+\.\d+\S*\n", call("--version")[1])


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("frames", "Did you mean: frames record, frames extract, frames stats?"),
        ("train", "Did you mean: train-vae, train-agent?"),
        ("dance", "quickstart"),
    ],
)
def test_an_unknown_verb(call: Call, words: str, hint: str):
    code, out, err = call(words)
    assert (code, out) == (2, "")
    assert f"unknown verb {words!r}" in err
    assert hint in err
    assert err.count("\n") == 1


def test_a_removed_verb_names_what_to_run(call: Call):
    assert not REMOVED_VERBS.keys() & VERBS.keys()
    code, out, err = call("alternate --env Side-v0 --out runs/turns")
    assert (code, out, err.count("\n")) == (2, "", 1)
    for word in ("alternate", "frames record --agent", "train-vae --start-from", "train-agent"):
        assert word in err


@pytest.mark.parametrize(
    "words", ["train-vae --no-such-option 3", "train-agent --steps many", "evaluate", "frames record"]
)
def test_an_option_that_cannot_be_read(call: Call, words: str):
    code, _, err = call(words)
    assert code == 2
    assert "Traceback" not in err
    assert len(err) > 20


def test_as_a_command_of_its_own():
    command = [sys.executable, "-m", "latent_obs_cli.main"]
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == main_module.usage()
    wrong = subprocess.run([*command, "dance"], capture_output=True, text=True, timeout=60, check=False)
    assert wrong.returncode == 2


def test_the_overview_needs_no_torch():
    code = "import sys; from latent_obs_cli.main import main; main(['--help']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, timeout=60, check=True)


def test_ctrl_c_and_bugs(call: Call, monkeypatch: pytest.MonkeyPatch):
    import latent_obs_cli.verbs as verbs

    def raises(error: BaseException) -> None:
        def run(words: list[str]) -> None:
            raise error

        monkeypatch.setattr(verbs, "evaluate", run)

    raises(KeyboardInterrupt())
    assert call("evaluate")[0] == 130
    raises(OSError(28, "No space left on device", "runs/file"))
    code, _, err = call("evaluate")
    assert (code, err) == (2, "latent-obs evaluate: runs/file: No space left on device\n")
    raises(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):  # a bug keeps its traceback
        call("evaluate")


@pytest.fixture(scope="module")
def places(encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the mistakes are made with: good frames and a good encoder and agent, and each of them spoilt."""
    home = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    for name, shape in (("frames", (24, 16, 16, 3)), ("odd", (24, 17, 16, 3)), ("sixty", (8, 64, 64, 3))):
        (home / name).mkdir()
        for i in range(3):
            np.save(home / name / f"{i}.npy", rng.integers(0, 256, shape, np.uint8))
    (home / "empty").mkdir()
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
AGENT = "train-agent --env Side-v0 --envs 2 --workers serial --steps 32 --n-steps 16 --batch-size 16 --out {new}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (VAE + " --frames {home}/nowhere", r"nowhere"),
        (VAE + " --frames {home}/empty", r"empty"),
        (VAE + " --frames {home}/frames --out {home}/full", r"full is not empty.*--resume"),
        (VAE + " --frames {home}/frames --out {home}/file", r"file"),
        (VAE + " --frames {home}/frames --device cuda:63", r"device 'cuda:63' was asked for"),
        (VAE + " --frames {home}/frames --device warp", r"device 'warp'"),
        (VAE + " --frames {home}/frames --dataset-weights 1 2 3", r"3 entries.*2"),
        (VAE + " --frames {home}/frames --dataset-weights 1 -2", r"zero or more, got -2"),
        (VAE + " --frames {home}/frames --dataset-weights 0 0", r"above zero"),
        (VAE + " --frames {home}/frames --super-batch 5000", r"super_batch 5,000 is more than the 48 frames"),
        (VAE + " --frames {home}/frames --held-out 3", r"held"),
        (VAE + " --frames {home}/frames --resume", r"holds no training run"),
        ("train-vae --frames {home}/odd --out {new}", r"\(17, 16, 3\).*square image"),
        (
            "train-vae --frames {home}/sixty --out {new} --bottleneck spatial --latent-dim 100",
            r"latent_dim 100.*64 or 128",
        ),
        (
            "train-vae --frames {home}/frames --out {new} --widths 4 4 --strides 2",
            r"widths \(4, 4\) and strides \(2,\)",
        ),
        (AGENT + " --encoder {home}/nowhere", r"nowhere"),
        (AGENT, r"needs an encoder folder: --encoder"),
        (AGENT + " --encoder {home}/damaged", r"encoder\.safetensors is damaged"),
        (AGENT + " --encoder {encoder} --device cuda:63", r"device 'cuda:63' was asked for"),
        (AGENT + " --encoder {encoder} --env CartPole-v1", r"uint8"),
        (AGENT + " --encoder {encoder} --env Syde-v0", r"Did you mean.*Side-v0"),
        (AGENT + " --encoder {encoder} --env no_such_module_here:Side-v0", r"no_such_module_here"),
        (AGENT + " --encoder {encoder} --env-kwargs colour 3", r"does not take the arguments .*colour"),
        (AGENT + " --encoder {encoder} --out {home}/full", r"full is not empty.*--resume"),
        (AGENT + " --observation pixels --encoder {encoder}", r"16"),
        ("train-agent --resume --out {home}/empty", r"holds no agent"),
        ("train-agent --resume --out {home}/agent --gamma 0.5", r"gamma is 0\.99 in the run to resume"),
        ("evaluate --run {home}/nowhere", r"nowhere holds no agent"),
        ("evaluate --run {home}/agent --which worst", r"worst\.zip; found \['best', 'last'\]"),
        ("evaluate --run {home}/agent --episodes 0", r"episodes must be 1 or more"),
        ("evaluate --run {home}/agent --device cuda:63", r"device 'cuda:63' was asked for"),
        ("evaluate --run {home}/broken", r"best\.zip cannot be loaded"),
        ("frames record --env Syde-v0 --out {new}", r"Did you mean.*Side-v0"),
        ("frames record --env CartPole-v1 --out {new}", r"no picture"),
        ("frames record --env Side-v0 --out {home}/file", r"is a file, expected a folder"),
        ("frames record --env Side-v0 --out {home}/frames --size 8", r"frames of shape"),
        ("quickstart --out {home}/full", r"full is not empty and holds no quickstart"),
    ],
)
def test_a_mistake_is_one_clear_line(call: Call, places: dict[str, Path], tmp_path: Path, words: str, message: str):
    home = places["home"]
    before = {f: f.read_bytes() for f in home.rglob("*") if f.is_file()}
    code, out, err = call(words.format(new=tmp_path / "new", **places))
    assert code == 2, out
    verb = next(v for v in VERBS if words.startswith(v))
    assert err.startswith(f"latent-obs {verb}: ")
    assert re.search(message, err)
    assert err.strip().count("\n") == 0, "one line"
    assert "Traceback" not in err
    assert {f: f.read_bytes() for f in home.rglob("*") if f.is_file()} == before
    assert not list((tmp_path / "new").glob("*")), "nothing is left behind"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (VAE + " --frames {home}/frames --super-batch 4", r"super_batch must hold a batch"),
        (VAE + " --frames {home}/frames --beta nan", r"beta"),
        (AGENT + " --encoder {encoder} --batch-size 1", r"batch"),
        (AGENT + " --encoder {encoder} --gamma 2", r"gamma"),
        ("frames record --env Side-v0 --out {new} --frames 0", r"frames must be a positive integer"),
        ("quickstart --out {new} --episodes 1", r"episodes must be 2 or more"),
    ],
)
def test_a_setting_that_cannot_be_is_told_by_the_parser(
    call: Call, places: dict[str, Path], tmp_path: Path, words: str, message: str
):
    code, _, err = call(words.format(new=tmp_path / "new", **places))
    assert code == 2
    assert re.search(message, plain(err))
    assert "Traceback" not in err
    assert not (tmp_path / "new").exists()


def test_the_whole_path_by_verbs(call: Call, tmp_path: Path):
    pytest.importorskip("vizdoom")
    pytest.importorskip("av")
    frames, vae, agent = tmp_path / "frames", tmp_path / "vae", tmp_path / "agent"
    game = "--env VizdoomBasic-v1 --frame-skip 4"

    code, out, err = call(f"frames record {game} --out {frames} --frames 64 --frames-per-file 32")
    assert (code, "Traceback" in err) == (0, False)
    assert f"next: latent-obs train-vae --frames {frames}" in out
    files = sorted(frames.glob("*.npy"))
    assert [np.load(f).shape for f in files] == [(32, 64, 64, 3)] * 2
    assert all(np.load(f).std() > 5 for f in files)

    code, out, _ = call(
        f"train-vae --frames {frames} --out {vae} {DENSE} --latent-dim 8 --epochs 1 --batch-size 8 --device cpu"
    )
    assert code == 0
    assert "32 frames of 64x64x3" in out
    encoder = FrozenEncoder.load(vae / "encoder", device="cpu")
    assert encoder.encode(np.load(files[0])).shape == (32, 8)

    code, out, _ = call(
        f"train-agent {game} --encoder {vae} --out {agent} --latent-only --envs 2 --workers serial --steps 64 --n-steps 32 "
        "--batch-size 32 --n-epochs 1 --eval-every 64 --eval-episodes 2 --device cpu"
    )
    assert code == 0
    assert "latent, (8,) observations" in out
    assert load_agent(agent, "last", device="cpu").num_timesteps == 64
    (row,) = read_evaluations(agent)
    assert row["step"] == 64

    code, out, _ = call(f"evaluate --run {agent} --episodes 2")
    assert code == 0
    assert re.search(
        r"VizdoomBasic-v1, best agent \(latent\): mean return -?[\d.]+ ± [\d.]+ \(standard error, 2 episodes\)", out
    )
    assert re.search(r"VizdoomBasic-v1, random policy: mean return -?[\d.]+ ±", out)
    assert re.search(r"The agent is (-?[\d.]+|-?inf) standard errors above the random policy", out)
    assert (agent / "agent.mp4").stat().st_size > 10_000
    assert f"Video: {agent / 'agent.mp4'}" in out


def test_evaluate_does_what_it_is_asked_and_no_more(call: Call, places: dict[str, Path]):
    run = places["home"] / "agent"
    code, out, _ = call(f"evaluate --run {run} --episodes 3 --which last --no-video --no-random-policy")
    assert code == 0
    first = r"Side-v0, last agent \(latent\): mean return \d\.\d ± \d\.\d \(standard error, 3 episodes\)\n"
    assert re.fullmatch(first + r"  95% interval .*\n  steps in an episode: .*\n", out)
    assert not (run / "agent.mp4").exists()
    code, out, _ = call(f"evaluate --run {run} --episodes 1 --no-video")
    assert code == 0
    assert "inf" not in out, "one episode proves nothing"


def test_resume_by_verbs(call: Call, places: dict[str, Path], tmp_path: Path):
    run = tmp_path / "run"
    words = AGENT.format(new=run) + f" --encoder {places['encoder']} --eval-every 0"
    assert call(words)[0] == 0
    assert call(f"train-agent --out {run} --resume --steps 64")[0] == 0
    assert load_agent(run, "last", device="cpu").num_timesteps == 64
    assert json.loads((run / "config.json").read_text())["steps"] == 64
