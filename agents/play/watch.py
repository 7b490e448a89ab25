"""A live window in which an agent plays at the game's own speed."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from agents.play.show import EpisodeEnd, Picture, Show
from latent_obs.util.device import torch_threads
from latent_obs.util.errors import InputError, require

KEYS = "space: pause   n or right: one step   + / -: speed   r: new episode   q or Esc: quit"
_SLOWEST, _FASTEST = 1 / 16, 64.0
_SCREEN_SHARE = 0.9  # of the screen that the window takes at most
_PAUSED_MS, _WAIT_MS = 20, 5
_DISPLAY_VARIABLES = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")


def watch_agent(
    run: str | Path,
    *,
    which: str = "best",
    speed: float = 1.0,
    seed: int = 3_000_017,
    episodes: int | None = None,
    deterministic: bool | None = None,
    device: str = "auto",
    success_return: float | None = None,
    paused: bool = False,
) -> list[EpisodeEnd]:
    """Watch a trained agent play, live in a window: the game, what it sees of it, its latent and its action.

    Keys: space pauses, n or the right arrow takes one step, + and - double and halve the speed, r begins another
    episode, q or Esc (or closing the window) quits. Needs a display; without one, `latent-obs evaluate` writes a video
    of the same.

    Args:
        run: The folder that train-agent wrote.
        which: best (by the evaluations during training) or last.
        speed: 1 for the game's own speed, 2 for twice as fast.
        seed: Seed of the environment.
        episodes: End after this many; by default it goes on until you press q.
        deterministic: True for the most likely action, False for a sample; by default as in the run's settings.
        device: Where to encode: auto, cpu, cuda, cuda:N, mps.
        success_return: An episode is a success if its return reaches this, in place of the task's own rule.
        paused: Start paused.

    Returns:
        How each whole episode ended.

    Raises:
        InputError: There is no display or no such agent, the environment cannot draw itself, or `speed` or `episodes`
            is out of range.
        MissingExtraError: pygame is not installed.
    """
    if not _SLOWEST <= speed <= _FASTEST:
        raise InputError(f"speed must be from {_SLOWEST:g} to {_FASTEST:g}, 1 being the game's own, got {speed}")
    if episodes is not None and episodes < 1:
        raise InputError(f"episodes must be 1 or more (or left out, to go on until q is pressed), got {episodes}")
    with (
        _display() as pygame,
        torch_threads(1),
        contextlib.closing(
            Show(run, which=which, seed=seed, device=device, deterministic=deterministic, success_return=success_return)
        ) as show,
    ):
        _Window(pygame, show, speed, paused).play(episodes)
        return show.ended


@contextlib.contextmanager
def _display() -> Iterator[Any]:
    """Initialize pygame's display, and end it afterwards. Raises `InputError` where there is no display."""
    instead = "A video needs no display: latent-obs evaluate --run … writes one"
    driver = os.environ.get("SDL_VIDEODRIVER")
    if sys.platform.startswith("linux") and not driver and not any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY"))):
        # Without either, SDL would draw on the console itself.
        raise InputError(
            f"there is no display to open a window on: neither DISPLAY nor WAYLAND_DISPLAY is set. {instead}"
        )
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # or it prints a banner
    pygame: Any = require("pygame", extra="watch", purpose="open a window")
    problem = "SDL found none that shows anything"
    try:
        pygame.display.init()
    except pygame.error as error:
        problem = str(error)
    # Where every display fails, SDL falls back to one that shows nothing, which is right only if it was asked for.
    if not pygame.display.get_init() or (pygame.display.get_driver() in ("offscreen", "dummy") and not driver):
        pygame.display.quit()
        found = [f"{name}={os.environ[name]}" for name in _DISPLAY_VARIABLES if name in os.environ]
        raise InputError(f"no window can be opened ({', '.join(found)}): {problem}. {instead}")
    try:
        yield pygame
    finally:
        pygame.display.quit()


class _Window:
    """The window and its keys."""

    def __init__(self, pygame: Any, show: Show, speed: float, paused: bool) -> None:
        self.pygame, self.show, self.speed, self.paused = pygame, show, speed, paused
        self.open, self.one_step = True, False
        self.scale = self._scale()
        self.picture = self._draw()
        height, width = self.picture.shape[:2]
        self.surface = pygame.display.set_mode((width, height), pygame.RESIZABLE)

    def _scale(self) -> float:
        """Twice the size, or as much as fits on the screen."""
        height, width = self.show.picture(footer="").shape[:2]
        screen = self.pygame.display.Info()
        if screen.current_w < 1 or screen.current_h < 1:
            return 1
        return max(1.0, min(2.0, _SCREEN_SHARE * screen.current_w / width, _SCREEN_SHARE * screen.current_h / height))

    def play(self, episodes: int | None) -> None:
        """Play until the window is closed, or for so many episodes."""
        due = time.perf_counter()
        self._present()
        while self.open and (episodes is None or len(self.show.ended) < episodes):
            changed = self._handle_events()
            now = time.perf_counter()
            if self.open and (self.one_step or (not self.paused and now >= due)):
                self.show.step()
                # A late step is caught up on, a long pause is not.
                due = max(due, now - self._seconds_a_step) + self._seconds_a_step
                self.one_step, changed = False, True
            if changed:
                self.picture = self._draw()
                self._present()
            elif self.open:
                self.pygame.time.wait(_PAUSED_MS if self.paused else _WAIT_MS)

    @property
    def _seconds_a_step(self) -> float:
        return 1 / (self.show.frames_per_second * self.speed)

    def _handle_events(self) -> bool:
        """Handle keys and mouse; returns whether the picture changes."""
        pygame, changed = self.pygame, False
        for event in pygame.event.get():
            changed = True
            if event.type == pygame.QUIT:
                self.open = False
            elif event.type == pygame.KEYDOWN:
                self._press(event.key, getattr(event, "unicode", ""))
            else:
                changed = event.type in (pygame.VIDEORESIZE, pygame.WINDOWEXPOSED)
        return changed

    def _press(self, key: int, text: str) -> None:
        pygame = self.pygame
        if key in (pygame.K_q, pygame.K_ESCAPE):
            self.open = False
        elif key == pygame.K_SPACE:
            self.paused = not self.paused
        elif key in (pygame.K_n, pygame.K_RIGHT):
            self.paused = self.one_step = True
        elif key == pygame.K_r:
            self.show.restart()
        elif text == "+" or key in (pygame.K_PLUS, pygame.K_EQUALS, pygame.K_KP_PLUS):
            self.speed = min(_FASTEST, self.speed * 2)
        elif text == "-" or key in (pygame.K_MINUS, pygame.K_KP_MINUS):
            self.speed = max(_SLOWEST, self.speed / 2)

    def _draw(self) -> Picture:
        state = "paused" if self.paused else f"speed {self.speed:g}"
        self.pygame.display.set_caption(f"{self.show.config.env}: {state}")
        return self.show.picture(footer=f"{state}   |   {KEYS}", scale=self.scale)

    def _present(self) -> None:
        """Show the picture in the window, as large as it fits."""
        pygame = self.pygame
        height, width = self.picture.shape[:2]
        image = pygame.image.frombuffer(np.ascontiguousarray(self.picture), (width, height), "RGB")
        window_width, window_height = self.surface.get_size()
        share = min(window_width / width, window_height / height)
        if share != 1:
            image = pygame.transform.smoothscale(image, (max(1, round(width * share)), max(1, round(height * share))))
        self.surface.fill((0, 0, 0))
        self.surface.blit(image, ((window_width - image.get_width()) // 2, (window_height - image.get_height()) // 2))
        pygame.display.flip()
