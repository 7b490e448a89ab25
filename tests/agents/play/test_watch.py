"""The live window on an agent: real pygame on SDL's dummy display, with keys pressed by events."""

# ruff: noqa: F401, F811  # the fixture is imported, and arguments have its name

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")
pytest.importorskip("pygame")

import pygame

import agents.play.watch as watch_module
from agents.play.show import Show
from agents.play.watch import KEYS, watch_agent
from latent_obs.util.errors import InputError
from latent_obs_cli.main import main
from tests.agents.play.test_show import run


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Press keys at chosen moments: the name of one, or None for a look at the window, by the number of the look."""
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")

    def plan(presses: dict[int, list[int | Any]]) -> list[int]:
        looks = [0]
        handle = watch_module._Window._handle_events

        def pressed(self: Any) -> bool:
            for key in presses.get(looks[0], []):
                pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=key) if isinstance(key, int) else key(self))
            looks[0] += 1
            assert looks[0] < 5_000, "it does not end"
            return handle(self)

        monkeypatch.setattr(watch_module._Window, "_handle_events", pressed)
        return looks

    return plan


@pytest.mark.parametrize("how", [pygame.K_q, pygame.K_ESCAPE, lambda _: pygame.event.Event(pygame.QUIT)])
def test_the_window_plays_until_the_user_quits(run: Path, keys: Callable[..., Any], how: Any):
    looks = keys({20: [how]})
    ended = watch_agent(run, speed=64, device="cpu")
    assert looks[0] == 21
    assert all(end.length == 8 for end in ended)
    assert not pygame.display.get_init()


def test_so_many_episodes_at_the_games_own_speed(run: Path, keys: Callable[..., Any]):
    keys({})
    began = time.perf_counter()
    ended = watch_agent(run, episodes=1, speed=2, device="cpu")  # 8 steps of a game of 10 a second
    assert len(ended) == 1
    assert time.perf_counter() - began > 7 / 20


def test_a_pause_and_single_steps(run: Path, keys: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    steps: list[tuple[int, int]] = []
    step = Show.step
    looks = keys({10: [pygame.K_n], 20: [pygame.K_RIGHT], 30: [pygame.K_r], 40: [pygame.K_SPACE]})

    def count(self: Show) -> Any:
        steps.append((looks[0], self.step_number))
        if looks[0] > 41:
            pygame.event.post(pygame.event.Event(pygame.QUIT))
        return step(self)

    monkeypatch.setattr(Show, "step", count)
    watch_agent(run, paused=True, speed=64, device="cpu")
    assert steps[:2] == [(11, 0), (21, 1)], "one step each"
    assert steps[2][0] >= 41, "paused until space"
    assert steps[2][1] == 0, "r began another episode"


def test_speed_by_keys(run: Path, keys: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    windows: list[Any] = []
    made = watch_module._Window.__init__
    monkeypatch.setattr(watch_module._Window, "__init__", lambda self, *a: windows.append(self) or made(self, *a))
    typed = lambda _: pygame.event.Event(pygame.KEYDOWN, key=0, unicode="+")  # noqa: E731
    for pressed, speed in (
        ([pygame.K_PLUS, pygame.K_KP_PLUS, pygame.K_EQUALS, pygame.K_MINUS], 4),
        ([pygame.K_KP_MINUS] * 20, 1 / 16),
        ([typed] * 20, 64),
    ):
        keys({1: pressed, 3: [pygame.K_q]})
        watch_agent(run, device="cpu")
        assert windows[-1].speed == speed


def test_the_window_shows_the_picture_and_the_keys_at_any_size(run: Path, keys: Callable[..., Any]):
    seen: list[Any] = []

    def look(window: Any) -> Any:
        picture = window.show.picture(footer=f"paused   |   {KEYS}", scale=window.scale)
        seen.append((pygame.surfarray.array3d(window.surface).swapaxes(0, 1), picture, pygame.display.get_caption()[0]))
        return pygame.event.Event(pygame.NOEVENT)

    def wider(window: Any) -> Any:
        window.surface = pygame.display.set_mode((900, 300), pygame.RESIZABLE)
        return pygame.event.Event(pygame.WINDOWEXPOSED)

    keys({2: [look], 4: [wider], 6: [look], 8: [pygame.K_q]})
    watch_agent(run, paused=True, device="cpu")
    (shown, picture, caption), (letterboxed, _, _) = seen
    np.testing.assert_array_equal(shown, picture)
    assert "paused" in caption
    assert picture[-20:].max() > 100, "the keys are written below"
    assert letterboxed.shape == (300, 900, 3)
    columns = letterboxed.max(axis=(0, 2)) > 0
    assert not columns[0]
    assert not columns[-1]
    assert 400 < columns.sum() < 700, "the height decides"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="displays are named so on Linux")
@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, "DISPLAY"),
        ({"SDL_VIDEODRIVER": "nothing"}, "SDL_VIDEODRIVER=nothing"),
        ({"DISPLAY": ":4242"}, "DISPLAY=:4242"),
    ],
)
def test_without_a_display_it_says_so(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], found: str):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=found):
        watch_agent("nowhere")
    assert not pygame.display.get_init()


@pytest.mark.parametrize(
    ("name", "value"),
    [("speed", 0.0), ("speed", float("nan")), ("episodes", 0), ("which", "third"), ("run", "nowhere")],
)
def test_what_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: Any):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    with pytest.raises(InputError, match=value if isinstance(value, str) else name):
        watch_agent(**{"run": run, "device": "cpu", name: value})
    assert not pygame.display.get_init()


def test_the_verb(run: Path, keys: Callable[..., Any], capsys: pytest.CaptureFixture[str]):
    keys({})
    assert main(["watch", "--run", str(run), "--episodes", "2", "--speed", "64", "--device", "cpu"]) == 0
    assert "2 whole episodes: mean return" in capsys.readouterr().out
    assert main(["watch", "--run", str(run), "--speed", "-1"]) == 2
    assert "speed" in capsys.readouterr().err
