"""The whole path on MineRL's real client: record, train a CVAE, train PPO in worker processes, evaluate, with crashes.

The game is the stand-in of `tests/support/minerl_server`. That the agent learns shows that pictures, actions, rewards
and ends of episodes arrive.
"""

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from agents import AgentConfig, evaluate_agent, evaluate_random, film, train_agent
from agents.store import load_agent
from latent_obs_cli.main import main
from tests.support.minerl_server import StandInGame, WorldSettings
from vae_training import RecordConfig, TrainConfig, record, train

pytest.importorskip("minerl", reason="minerl 0.4.4 installs on Python 3.11 only", exc_type=ImportError)
pytestmark = pytest.mark.integration
ENVS = 2


@contextmanager
def games(count: int, settings: WorldSettings | None = None, **kwargs: float) -> Iterator[list[StandInGame]]:
    """Stand-ins on ports that follow one another."""
    for _ in range(50):
        with ExitStack() as stack, socket.create_server(("127.0.0.1", 0)) as free:
            base = free.getsockname()[1]
            free.close()
            try:
                made = [
                    stack.enter_context(StandInGame(base + i, settings or WorldSettings.easy(), **kwargs))  # pyright: ignore
                    for i in range(count)
                ]
            except (OSError, OverflowError):  # one of them is taken
                continue
            yield made
            return
    raise RuntimeError("no free ports that follow one another")


def agent_config(out: Path, port: int, **kwargs: object) -> AgentConfig:
    base = AgentConfig(
        env="MineRLTreechop-v0",
        env_kwargs={"port": port},
        out=out,
        envs=ENVS,
        n_steps=64,
        batch_size=64,
        eval_every=0,
        eval_episodes=4,
        device="cpu",
    )
    return replace(base, **kwargs)  # pyright: ignore[reportArgumentType]


def quiet(_: str) -> None:
    pass


def test_from_recording_to_an_agent_that_chops(tmp_path: Path):
    # Games 0 and 1 to train in, 2 and 3 to evaluate in meanwhile.
    with games(2 * ENVS) as running:
        port = running[0].port
        record(RecordConfig("MineRLTreechop-v0", tmp_path / "frames", 1_200, 400, env_kwargs={"port": port}))
        recorded = len(running[0].seeds)
        train(
            TrainConfig(
                frames=tmp_path / "frames",
                out=tmp_path / "vae",
                bottleneck="spatial",
                latent_dim=64,
                widths=(8, 16, 16),
                strides=(2, 2, 2),
                super_batch=800,
                epochs=4,
                batch_freeze=1,
                half_beta_cycle=1,
                beta=0.02,
                device="cpu",
            ),
            progress_bar=False,
            say=quiet,
        )
        config = agent_config(
            tmp_path / "agent", port, encoder=tmp_path / "vae" / "encoder", steps=7_000, eval_every=6_000, seed=1
        )
        train_agent(config, progress_bar=False, say=quiet)
        assert all(game.steps > 0 for game in running), "each environment has a game of its own"
        assert not set(running[0].seeds[recorded:]) & set(running[1].seeds), "other worlds in each"
        agent = evaluate_agent(config.out, episodes=10, device="cpu")
        chance = evaluate_random(config, episodes=10)
        assert agent.mean > 4 * max(chance.mean, 1.0), (agent, chance)
        assert agent.sigmas_above(chance) > 5
        assert any("camera 0.0 10.0" in command and "attack 1" in command for command in running[0].commands)
        video, _ = film(config.out, tmp_path / "video.mp4", episodes=1, seconds=1)
        assert video.stat().st_size > 1_000


def test_training_goes_on_through_crashes(tmp_path: Path):
    with games(ENVS, revive_after_s=0.2) as running:
        running[0].schedule("crash", at_step=100)
        running[1].schedule("drop", at_step=150)
        running[1].schedule("short", at_step=200)
        config = agent_config(tmp_path / "agent", running[0].port, observation="random-latent", steps=512, n_epochs=1)
        train_agent(config, progress_bar=False, say=quiet)
        assert running[0].connections > 1
    rows = [json.loads(line) for line in next((config.out / "logs").rglob("progress.json")).read_text().splitlines()]
    assert max(row.get("env/faults", 0) for row in rows) >= 3
    assert load_agent(config.out, "last", device="cpu").num_timesteps == 512


def test_a_game_that_stays_lost_is_one_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with games(ENVS) as running:
        running[1].schedule("crash", at_step=50)
        words = "train-agent --env MineRLTreechop-v0 --observation random-latent --steps 200 --eval-every 0"
        ports = ["--device", "cpu", "--env-kwargs", "port", str(running[0].port), "faults_in_a_row", "1"]
        assert main([*words.split(), "--envs", str(ENVS), "--out", str(tmp_path / "agent"), *ports]) == 2
    printed = capsys.readouterr().err
    assert "environment 1" in printed
    assert "lost 1 times in a row" in printed
    assert "Traceback" not in printed


def test_nothing_listens_and_unknown_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["train-agent", "--observation", "random-latent", "--out", str(tmp_path / "agent"), "--device", "cpu"]
    assert main([*words, "--env", "MineRLTreechop-v0", "--env-kwargs", "port", str(port)]) == 2
    assert f"localhost:{port}" in capsys.readouterr().err
    assert main([*words, "--env", "MineRLTreeChop-v1", "--env-kwargs", "port", str(port)]) == 2
    assert "MineRLTreechop-v0" in capsys.readouterr().err
    assert not (tmp_path / "agent").exists()
