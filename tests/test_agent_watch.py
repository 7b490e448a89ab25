"""An agent shown step by step, and the live window: real pygame on SDL's dummy display, with keys pressed by events."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")
pytest.importorskip("pygame")

import pygame
import torch
from gymnasium import spaces
from side_env import tiny

import agents.watch as watch_module
from agents.decision import decide
from agents.evaluate import evaluate_agent
from agents.panel import LatentPicture
from agents.show import Show
from agents.store import load_agent
from agents.train import train_agent
from agents.watch import watch_agent
from latent_obs.errors import InputError
from latent_obs.frozen import FrozenEncoder


def quiet(text: str) -> None:
    """Where messages go that a test does not read."""


def train(folder: Path, encoder: Path | None, **settings: Any) -> Path:
    return train_agent(tiny(encoder=encoder, out=folder, **{"steps": 32, "eval_every": 0, **settings}), say=quiet).run


@pytest.fixture(scope="module")
def run(encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("watched") / "run", encoder_folder)


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Press keys at chosen moments: the name of one, or None for a look at the window, by the number of the look."""
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")

    def plan(presses: dict[int, list[int | Any]]) -> list[int]:
        looks = [0]
        obey = watch_module._Window._obey

        def pressed(self: Any) -> bool:
            for key in presses.get(looks[0], []):
                pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=key) if isinstance(key, int) else key(self))
            looks[0] += 1
            assert looks[0] < 5_000, "it does not end"
            return obey(self)

        monkeypatch.setattr(watch_module._Window, "_obey", pressed)
        return looks

    return plan


def test_a_show_plays_as_an_evaluation_does(run: Path):
    with contextlib.closing(Show(run, seed=1_000_003, device="cpu", success_return=4.0)) as show:
        while len(show.ended) < 4:
            show.step()
    played = evaluate_agent(run, episodes=1, seed=1_000_003, device="cpu", success_return=4.0)
    assert show.ended[0] == (played.returns[0], played.lengths[0], played.successes is not None and played.successes[0])
    assert [end.length for end in show.ended] == [8] * 4
    assert all(end.success == (end.total >= 4) for end in show.ended)


def test_pictures_change_nothing(run: Path):
    stories = []
    for draw in (False, True):
        with contextlib.closing(Show(run, seed=5, device="cpu", deterministic=False)) as show:
            torch.manual_seed(0)
            for _ in range(20):
                if draw:
                    assert np.array_equal(show.picture(), show.picture())
                show.step()
            stories.append(show.ended)
    assert stories[0] == stories[1]


def test_what_is_shown_is_done_and_a_restart_does_not_count(run: Path):
    with contextlib.closing(Show(run, device="cpu", deterministic=False)) as show:
        show.step()
        show.step()
        assert (show.step_number, show.ended) == (2, [])
        show.restart()
        assert (show.step_number, show.total, show.ended) == (0, 0.0, [])
        for _ in range(8):
            decided, side = show.decision, show._venv.get_attr("side")[0]
            before = show.total
            end = show.step()
            total = end.total if end else show.total
            assert total - before == float(decided.chosen[side])
        assert len(show.ended) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"history": 3}, {"standardise": True}, {"env_kwargs": {"kind": "dict"}},
        {"env_kwargs": {"kind": "dict"}, "flatten": True, "history": 2}, {"normalize_observation": "off"},
    ],
)  # fmt: skip
def test_the_newest_latent_is_what_is_drawn_and_decoded(
    encoder_folder: Path, tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    from latent_obs.folder import read_encoder_folder, write_encoder_folder
    from latent_obs.statistics import LatentStatistics

    plain, folder = read_encoder_folder(encoder_folder), encoder_folder
    statistics = None
    if settings.get("standardise"):
        statistics = LatentStatistics.from_latents(np.random.default_rng(0).normal(0.4, 2.0, (500, 6)))
        folder = write_encoder_folder(
            tmp_path / "with", architecture=plain.architecture, contract=plain.contract, encoder=plain.encoder,
            selfcheck=plain.selfcheck, decoder=plain.decoder(), statistics=statistics,
        )  # fmt: skip
    run = train(tmp_path / "run", folder, **settings)
    encoder = FrozenEncoder.load(encoder_folder, device="cpu")
    drawn: list[dict[str, Any]] = []
    monkeypatch.setattr("agents.show.compose", lambda game, **parts: drawn.append({"game": game, **parts}))
    with contextlib.closing(Show(run, device="cpu")) as show:
        for _ in range(10):
            show.picture()
            observation = show._observation
            show.step()
            latent = encoder(np.ascontiguousarray(drawn[-1]["game"][::3, ::4]))
            np.testing.assert_allclose(drawn[-1]["seen"].astype(int), encoder.decode(latent).astype(int), atol=1)
            picture: LatentPicture = drawn[-1]["latent"]
            assert picture.shape is None
            if statistics is not None:
                expected = (latent - statistics.mean) / statistics.scale / 3
                assert "training frames" in picture.caption
            elif settings.get("normalize_observation") != "off":
                seen = observation["pov"] if isinstance(observation, dict) else observation
                size = 6 * settings.get("history", 1)
                expected = seen[0, size - 6 : size] / 3
                assert "saw in training" in picture.caption
            else:
                expected = latent * (picture.values[0] / latent[0])
                assert np.abs(picture.values).max() <= 1
                assert "largest so far" in picture.caption
            np.testing.assert_allclose(picture.values, expected, atol=1e-3)


def test_an_encoder_without_a_decoder_leaves_the_reconstruction_out(encoder_folder: Path, tmp_path: Path):
    from latent_obs.folder import read_encoder_folder, write_encoder_folder

    plain = read_encoder_folder(encoder_folder)
    folder = write_encoder_folder(
        tmp_path / "bare", architecture=plain.architecture, contract=plain.contract, encoder=plain.encoder,
        selfcheck=plain.selfcheck,
    )  # fmt: skip
    with contextlib.closing(Show(train(tmp_path / "run", folder), device="cpu")) as show:
        assert show.picture().shape == (380, 528, 3)


def test_principal_components_are_put_together_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from conftest import IMG_SHAPE, random_frames

    from latent_obs.pca import fit_pca, read_pca, save_pca
    from latent_obs.pixels import PixelContract

    frames = random_frames(300)
    file = save_pca(tmp_path / "pca.safetensors", fit_pca(frames, 16, PixelContract(*IMG_SHAPE)))
    run = train(tmp_path / "run", None, observation="pca-latent", pca=file)
    drawn: list[Any] = []
    monkeypatch.setattr("agents.show.compose", lambda game, seen, **_: drawn.append((game, seen)))
    with contextlib.closing(Show(run, device="cpu")) as show:
        show.picture()
    game, seen = drawn[0]
    pca = read_pca(file)
    frame = game[::3, ::4].reshape(-1) / 255
    expected = pca.centre + pca.components.T @ (pca.components @ (frame - pca.centre))
    np.testing.assert_allclose(seen.reshape(-1), np.clip(expected, 0, 1) * 255, atol=1)
    assert np.abs(expected * 255 - frame * 255).mean() > 1, "16 values do not hold it all"


def test_a_memory_is_carried_within_an_episode_and_dropped_between(encoder_folder: Path, tmp_path: Path):
    pytest.importorskip("sb3_contrib")
    run = train(tmp_path / "run", encoder_folder, algorithm="recurrent-ppo")
    model: Any = load_agent(run, "best", device="cpu")
    state, forgetful = None, []
    with contextlib.closing(Show(run, device="cpu", deterministic=True)) as show:
        for step in range(20):
            begins = step % 8 == 0
            observation = show._observation
            tensor, _ = model.policy.obs_to_tensor(observation)
            with torch.inference_mode():
                shape = model.policy.lstm_hidden_state_shape
                zero = (torch.zeros(shape[0], 1, *shape[2:]),) * 2
                memory = zero if state is None or begins else tuple(map(torch.as_tensor, state))
                # One distribution object for all: its numbers are read before the next call.
                one, _ = model.policy.get_distribution(tensor, memory, torch.tensor([float(begins)]))
                remembering = one.distribution.probs[0].tolist()
                other, _ = model.policy.get_distribution(tensor, zero, torch.ones(1))
                forgetful.append(np.abs(np.subtract(other.distribution.probs[0].tolist(), remembering)).max())
            np.testing.assert_allclose(show.decision.levels, remembering, atol=1e-6)
            action, state = model.predict(observation, state, np.array([begins]), deterministic=True)
            assert show.decision.chosen[int(action[0])]
            show.step()
    assert max(forgetful) > 1e-5, "memory makes a difference"


def test_another_encoder_is_refused(run: Path, encoder_folder: Path, tmp_path: Path):
    import shutil

    from conftest import random_frames, tiny_cvae

    from vae_training.export import export_encoder

    copied = Path(shutil.copytree(run, tmp_path / "copied"))
    shutil.rmtree(copied / "encoder")
    export_encoder(copied / "encoder", tiny_cvae(seed=5), random_frames(6), provenance={})
    for look in (lambda: evaluate_agent(copied, episodes=1, device="cpu"), lambda: Show(copied, device="cpu")):
        with pytest.raises(InputError, match="was trained with an encoder"):
            look()


def test_the_window_plays_until_it_is_told_to_quit(run: Path, keys: Callable[..., Any]):
    looks = keys({40: [pygame.K_q]})
    ended = watch_agent(run, speed=64, device="cpu")
    assert looks[0] == 41
    assert all(end.length == 8 for end in ended)
    assert not pygame.display.get_init()


@pytest.mark.parametrize("how", [pygame.K_q, pygame.K_ESCAPE, lambda _: pygame.event.Event(pygame.QUIT)])
def test_ways_to_quit(run: Path, keys: Callable[..., Any], how: Any):
    looks = keys({3: [how]})
    watch_agent(run, device="cpu")
    assert looks[0] == 4


def test_so_many_episodes_at_the_games_own_speed(run: Path, keys: Callable[..., Any]):
    import time

    keys({})
    began = time.perf_counter()
    ended = watch_agent(run, episodes=1, speed=2, device="cpu")  # 8 steps of a game of 10 a second
    assert len(ended) == 1
    assert time.perf_counter() - began > 7 / 20


def test_a_pause_and_single_steps(run: Path, keys: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    steps: list[int] = []
    at: list[int] = []
    step = Show.step
    looks = keys({10: [pygame.K_n], 20: [pygame.K_RIGHT], 30: [pygame.K_r], 40: [pygame.K_SPACE], 4_000: []})

    def count(self: Show) -> Any:
        steps.append(self.step_number)
        at.append(looks[0])
        if looks[0] > 41:
            pygame.event.post(pygame.event.Event(pygame.QUIT))
        return step(self)

    monkeypatch.setattr(Show, "step", count)
    watch_agent(run, paused=True, speed=64, device="cpu")
    assert at[:2] == [11, 21], "one step each"
    assert steps[:2] == [0, 1]
    assert at[2] >= 41, "paused until space"
    assert steps[2] == 0, "r began anew"


def test_one_step_while_it_plays_pauses_it(run: Path, keys: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    at: list[int] = []
    step = Show.step
    looks = keys({10: [pygame.K_n], 60: [pygame.K_q]})
    monkeypatch.setattr(Show, "step", lambda self: at.append(looks[0]) or step(self))
    watch_agent(run, speed=64, device="cpu")
    assert at[-1] == 11
    assert len(at) > 1


def test_speed_by_keys(run: Path, keys: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    windows: list[Any] = []
    made = watch_module._Window.__init__
    monkeypatch.setattr(watch_module._Window, "__init__", lambda self, *a: windows.append(self) or made(self, *a))
    plus, minus = pygame.K_PLUS, pygame.K_MINUS
    keys({1: [plus, pygame.K_KP_PLUS, pygame.K_EQUALS], 2: [minus], 3: [pygame.K_q]})
    watch_agent(run, device="cpu")
    assert windows[0].speed == 4
    keys({1: [pygame.K_KP_MINUS] * 20, 2: [pygame.K_q]})
    watch_agent(run, device="cpu")
    assert windows[1].speed == 1 / 16
    keys({1: [lambda _: pygame.event.Event(pygame.KEYDOWN, key=0, unicode="+")] * 20, 2: [pygame.K_q]})
    watch_agent(run, device="cpu")
    assert windows[2].speed == 64


def test_the_window_shows_the_picture_and_the_keys(run: Path, keys: Callable[..., Any]):
    seen: list[Any] = []

    def look(window: Any) -> Any:
        seen.append((pygame.surfarray.array3d(window.surface).swapaxes(0, 1), window.picture, pygame.display.get_caption()[0]))
        return pygame.event.Event(pygame.QUIT)

    keys({2: [look]})
    watch_agent(run, paused=True, device="cpu")
    shown, picture, caption = seen[0]
    np.testing.assert_array_equal(shown, picture)
    assert "paused" in caption
    assert picture[-20:].max() > 100, "the keys are written below"


def test_a_window_of_another_size_shows_all_of_it(run: Path, keys: Callable[..., Any]):
    seen: list[Any] = []

    def larger(window: Any) -> Any:
        window.surface = pygame.display.set_mode((900, 300), pygame.RESIZABLE)
        return pygame.event.Event(pygame.WINDOWEXPOSED)

    def look(window: Any) -> Any:
        seen.append(pygame.surfarray.array3d(window.surface).swapaxes(0, 1))
        return pygame.event.Event(pygame.QUIT)

    keys({2: [larger], 4: [look]})
    watch_agent(run, paused=True, device="cpu")
    (shown,) = seen
    assert shown.shape == (300, 900, 3)
    columns = shown.max(axis=(0, 2)) > 0
    assert not columns[0]
    assert not columns[-1]
    assert 400 < columns.sum() < 700, "letterboxed: the height decides"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="displays are named so on Linux")
@pytest.mark.parametrize(
    ("variables", "found"),
    [({}, "neither DISPLAY nor WAYLAND_DISPLAY"), ({"SDL_VIDEODRIVER": "nothing"}, "SDL_VIDEODRIVER=nothing"),
     ({"DISPLAY": ":4242"}, "DISPLAY=:4242")],
)  # fmt: skip
def test_without_a_display_it_says_so(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], found: str):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=rf"{found}.*latent-obs evaluate"):
        watch_agent("nowhere")
    assert not pygame.display.get_init()


def test_pygames_banner_is_not_printed():
    code = "from agents.watch import watch_agent\ntry: watch_agent('nowhere')\nexcept ValueError as error: print(error)"
    environment = {k: v for k, v in os.environ.items() if k != "PYGAME_HIDE_SUPPORT_PROMPT"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**environment, "SDL_VIDEODRIVER": "dummy", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert re.fullmatch(r"nowhere holds no agent .*\n", done.stdout)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"speed": 0.0}, "speed must be"), ({"speed": float("nan")}, "speed must be"), ({"episodes": 0}, "episodes must be 1"),
     ({"which": "third"}, "no agent")],
)  # fmt: skip
def test_what_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], message: str):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    with pytest.raises(InputError, match=message):
        watch_agent(run, device="cpu", **settings)
    assert not pygame.display.get_init()


def test_no_run_to_watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    with pytest.raises(InputError, match="holds no agent"):
        watch_agent(tmp_path)


def test_the_verb(run: Path, keys: Callable[..., Any], capsys: pytest.CaptureFixture[str]):
    from latent_obs_cli.main import main

    keys({})
    assert main(["watch", "--run", str(run), "--episodes", "2", "--speed", "64", "--device", "cpu"]) == 0
    assert "2 whole episodes: mean return" in capsys.readouterr().out
    assert main(["watch", "--run", str(run), "--speed", "-1"]) == 2
    assert "latent-obs watch: speed must be" in capsys.readouterr().err


def test_decisions_of_agents_that_have_no_distribution():
    class Silent:
        action_space = spaces.Box(-2.0, 2.0, (2,))

        class policy:
            @staticmethod
            def set_training_mode(mode: bool) -> None: ...

            @staticmethod
            def obs_to_tensor(observation: Any) -> Any:
                return torch.zeros(1), True

        def predict(self, observation: Any, state: Any, episode_start: Any, deterministic: bool) -> Any:
            return np.array([[1.0, -2.0]]), "remembered"

    actions, state, decision = decide(Silent(), np.zeros(1), None, True, deterministic=True, names=("gas", "wheel"))
    assert (actions.tolist(), state) == ([[1.0, -2.0]], "remembered")
    assert (decision.levels, decision.texts, decision.signed) == ((0.5, -1.0), ("+1.00", "-2.00"), True)
