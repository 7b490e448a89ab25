"""`latent-obs fit` on a tiny environment of one's own: what it leaves, going on, and what its last lines do."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")
pytest.importorskip("matplotlib")
pytest.importorskip("skimage")
pytest.importorskip("sklearn")

from agents import evaluate_agent
from latent_obs import PCA
from latent_obs.util.errors import InputError
from latent_obs_cli import stages
from latent_obs_cli.fit import FitConfig, FitResult, fit
from latent_obs_cli.main import main
from latent_obs_cli.plan import Sizes, vae_settings
from tests.support import ROOT
from tests.support.side_env import SIDE
from vae_training import get_datasets

pytestmark = pytest.mark.integration
SIZES = Sizes(frames=320, epochs=1)

OWN = """
import gymnasium as gym
import numpy as np

class Dot(gym.Env):
    observation_space = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(56))
        return self.look(), {}

    def look(self):
        picture = np.zeros((64, 64, 3), np.uint8)
        picture[28:36, self.place : self.place + 8] = 255
        return picture

    def step(self, action):
        self.place = min(max(self.place + 2 * int(action) - 1, 0), 56)
        return self.look(), float(action), False, False, {}

gym.register("Dot-v0", entry_point=Dot, max_episode_steps=20)
"""


class Fitted(NamedTuple):
    """A `fit` that came to its end."""

    config: FitConfig
    result: FitResult
    text: str


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    home = tmp_path_factory.mktemp("fit")
    (home / "own_dots.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(home)
        config = FitConfig(env="own_dots:Dot-v0", out=home / "run", env_kwargs={"max_episode_steps": 9}, device="cpu")
        with contextlib.redirect_stdout(io.StringIO()) as said:
            result = fit(config, SIZES)
    return Fitted(config, result, said.getvalue())


def test_what_it_leaves(fitted: Fitted):
    out = fitted.config.out
    encoder, pca = out / "encoder", out / "pca.safetensors"
    assert fitted.result[:3] == (encoder, out / "report" / "report.html", pca)
    found = json.loads((out / "report" / "report.json").read_text())
    assert fitted.result.better == (encoder if found["worth"]["better"] == "vae" else pca)
    assert found["worth"]["sentence"] in " ".join(fitted.text.split())
    assert PCA.load(pca).provenance["frames"] == found["frames"]["fitted_on"] == 280, "nothing that is held out"
    assert "280" in found["reconstruction"]["notes"]["pca"]
    assert fitted.result.page.stat().st_size > 10_000
    assert sum(map(len, get_datasets(out / "frames"))) == 320
    assert (out / "frames.png").read_bytes().startswith(b"\x89PNG")
    assert all(f"[{stage}/3]" in fitted.text for stage in (1, 2, 3))
    assert str(out / "frames.png") in fitted.text


def test_its_last_lines_can_be_executed(fitted: Fitted, capfd: pytest.CaptureFixture[str]):
    lines = [line.strip() for line in fitted.text.splitlines()]
    config, result = fitted.config, fitted.result
    is_pca = result.better == result.pca
    begin = lines.index(f"Use {'PCA' if is_pca else 'the VAE'} in Python:") + 1
    dims = {result.encoder: 256, result.pca: PCA.load(result.pca).latent_dim}
    names: dict[str, object] = {}
    assert lines[begin : begin + 2] == config.python(result.better)
    assert lines[-1] == config.train_agent(result.better)
    for encoder, dim in dims.items():  # those of the other one work, too
        exec("\n".join(config.python(encoder)), names)
        env: object = names["env"]
        assert env.get_wrapper_attr("observation_encoder").options.standardize  # pyright: ignore
        assert env.reset()[0].shape == (dim,)  # pyright: ignore
        env.close()  # pyright: ignore
        command = config.train_agent(encoder).split()
        assert command[:2] == ["latent-obs", "train-agent"]
        tiny = "--steps 16 --n-steps 8 --batch-size 8 --envs 2 --workers serial --eval-every 0 --device cpu"
        assert main([*command[1:], *tiny.split(), "--out", f"{config.out}-{dim}"]) == 0


def test_small_frames_are_not_enlarged(tmp_path: Path):
    small, large = (FitConfig(env=env, out=tmp_path, device="cpu") for env in (SIDE, "own_dots:Dot-v0"))
    for config, side in ((small, None), (large, 64)):
        vae = vae_settings(tmp_path, tmp_path / "vae", 1, 0, "cpu")
        speeds, found = stages.measure(tmp_path / "m", config.recording(8, None), vae)
        assert found == side
        assert speeds.frame > 0
        assert speeds.gradient_step > 0
    assert not list(tmp_path.iterdir())


def test_again_it_computes_nothing_anew(fitted: Fitted, monkeypatch: pytest.MonkeyPatch):
    files = {f: f.stat().st_mtime_ns for f in (fitted.config.out / "frames").glob("*.npy")}

    def never(*_: object) -> None:
        raise AssertionError("computed anew")

    monkeypatch.setattr("vae_training.training.trainer.Trainer.step", never)
    assert fit(fitted.config) == fitted.result
    assert {f: f.stat().st_mtime_ns for f in (fitted.config.out / "frames").glob("*.npy")} == files
    with pytest.raises(InputError, match=r"out.*\(seed\)"):
        fit(FitConfig(**{**vars(fitted.config), "seed": 7}))


def test_from_recordings(tmp_path: Path, fitted: Fitted, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stages, "record", lambda *_, **__: pytest.fail("recorded"))
    config = FitConfig(frames=fitted.config.out / "frames", out=tmp_path / "run", device="cpu")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        result = fit(config, SIZES)
    assert not (tmp_path / "run" / "frames").exists()
    assert "Or train an agent" not in said.getvalue()
    assert str(result.better) in said.getvalue()
    frames = np.load(next((fitted.config.out / "frames").glob("*.npy")))[:2]
    for encoder, dim in ((result.encoder, 256), (result.pca, PCA.load(result.pca).latent_dim)):
        names: dict[str, object] = {}
        exec("\n".join(config.python(encoder)), names)
        assert names["encoder"].encode(frames).shape == (2, dim)  # pyright: ignore


def test_other_recordings_of_the_same_relative_path_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "run").mkdir()
    for place in ("here", "there"):
        (tmp_path / place / "frames").mkdir(parents=True)
        np.save(tmp_path / place / "frames" / "some.npy", np.zeros((8, 64, 64, 3), np.uint8))

    def begin(place: str) -> stages.Walk:
        monkeypatch.chdir(tmp_path / place)
        config = FitConfig(frames=Path("frames"), out=tmp_path / "run", device="cpu")
        what = {"recording": None, "vae": config.vae(1), "knots": [SIZES], "sizes": SIZES}
        return stages.begin(config.out / "fit.json", {"frames": config.frames}, **what)

    assert begin("here").sizes == begin("here").sizes == SIZES
    with pytest.raises(InputError, match=r"out.*\(frames\)"):
        begin("there")


def command(*words: str, folder: Path) -> subprocess.Popen[str]:
    """Start the console command, whose script is elsewhere, in a folder."""
    code = "import sys; sys.path.pop(0); from latent_obs_cli.main import entry; entry()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_an_environment_of_ones_own_killed_and_used_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    (home / "dots.py").write_text(OWN)
    plan = {
        "plan": {"frames": 320, "epochs": 5, "steps": 0, "episodes": 0},
        "speeds": None,
        "seconds": {},
        "frame_side": 64,
    }
    plan["estimates"] = {"Record frames": 5.0, "Train the CVAE": 5.0, "Write the report": 5.0}
    config = FitConfig(env="dots:Dot-v0", out=Path("run"), device="cpu")
    settings = {name: value for name, value in vars(config).items() if name != "out"}
    (home / "run").mkdir()
    (home / "run" / "fit.json").write_text(json.dumps({**settings, **plan}))
    words = ("fit", "--env", "dots:Dot-v0", "--out", "run", "--device", "cpu")
    with command(*words, folder=home) as process:  # killed in training
        while process.poll() is None and not (home / "run" / "vae" / "log.jsonl").exists():
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    with command(*words, folder=home) as process:
        assert process.wait() == 0, process.stdout.read() if process.stdout else ""
    assert (home / "run" / "report" / "report.html").exists()

    tiny = "--steps 16 --n-steps 8 --batch-size 8 --envs 2 --eval-every 0 --device cpu --out ../agent"
    with command("train-agent", "--env", "dots:Dot-v0", "--encoder", "run", *tiny.split(), folder=home) as process:
        assert process.wait() == 0, process.stdout.read() if process.stdout else ""
    play = ("evaluate", "--run", "../agent", "--episodes", "1", "--no-video")
    with command(*play, folder=elsewhere) as process:
        assert process.wait() == 0, process.stdout.read() if process.stdout else ""
    (home / "dots.py").unlink()
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(InputError, match=f"dots.*{home}"):
        evaluate_agent(tmp_path / "agent", episodes=1, device="cpu")
