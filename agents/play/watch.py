"""A live window in which an agent plays at the game's own speed."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.play import EpisodeEnd
from latent_obs.util.device import torch_threads
from latent_obs.util.errors import InputError, check_count, require

if TYPE_CHECKING:  # the help of latent-obs watch needs none of what this imports
    from agents.play.show import Show

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
    trust: bool = False,
) -> list[EpisodeEnd]:
    """Watch a trained agent play, live in a window: the game, what it sees of it, its latent and its action.

    Keys: space pauses, n or the right arrow takes one step, + and - double and halve the speed, r begins another
    episode, q or Esc (or closing the window) quits. Needs a display; without one, `latent-obs evaluate` writes a video
    of the same.

    Args:
        run: The folder that train-agent wrote, or with trust a repository of Hugging Face: user/name.
        which: best (by the evaluations during training) or last.
        speed: 1 for the game's own speed, 2 for twice as fast.
        seed: Seed of the environment.
        episodes: End after this many; by default it goes on until you press q.
        deterministic: True for the most likely action, False for a sample; by default as in the run's settings.
        device: Where to encode: auto, cpu, cuda, cuda:N, mps.
        success_return: An episode is a success if its return reaches this, in place of the task's own rule.
        paused: Start paused.
        trust: Load an agent of Hugging Face, whose pickled settings can run any code.

    Returns:
        How each whole episode ended.

    Raises:
        InputError: There is no display or no such agent, it is not trusted, the environment cannot draw itself, or
            `speed` or `episodes` is out of range.
        MissingExtraError: pygame is not installed.
    """
    from agents.hub import run_folder
    from agents.play.show import Show

    run = run_folder(run, trust)
    if not _SLOWEST <= speed <= _FASTEST:
        raise InputError(f"speed must be from {_SLOWEST:g} to {_FASTEST:g}, got {speed}")
    if episodes is not None:
        check_count("episodes", episodes)
    how: dict[str, Any] = {"which": which, "seed": seed, "device": device}
    how |= {"deterministic": deterministic, "success_return": success_return}
    with _display() as pygame, torch_threads(1), contextlib.closing(Show(run, **how)) as show:
        _Window(pygame, show, speed, paused).play(episodes)
        return show.ended


@contextlib.contextmanager
def _display() -> Iterator[Any]:
    """Initialize pygame's display, and end it afterwards. Raises `InputError` where there is no display."""
    found = [f"{name}={os.environ[name]}" for name in _DISPLAY_VARIABLES if os.environ.get(name)]
    error = InputError(
        f"no window can be opened: no display shows anything ({', '.join(found) or 'DISPLAY is not set'}). "
        "A video needs none: latent-obs evaluate --run … writes one"
    )
    if sys.platform.startswith("linux") and not found:  # SDL would draw on the console itself
        raise error
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # or it prints a banner
    pygame: Any = require("pygame", extra="watch", purpose="open a window")
    asked_for = os.environ.get("SDL_VIDEODRIVER")
    with contextlib.suppress(pygame.error):
        pygame.display.init()
    try:
        # Where every display fails, SDL falls back to one that shows nothing, which is right only if it was asked for.
        if not pygame.display.get_init() or (pygame.display.get_driver() in ("offscreen", "dummy") and not asked_for):
            raise error
        yield pygame
    finally:
        pygame.display.quit()


class _Window:
    """The window and its keys."""

    def __init__(self, pygame: Any, show: "Show", speed: float, paused: bool) -> None:
        self.pygame, self.show, self.speed, self.paused = pygame, show, speed, paused
        self.open, self.one_step = True, False
        # Twice the size, or as much as fits on the screen.
        height, width = show.picture(footer="").shape[:2]
        screen = pygame.display.Info()
        fits = _SCREEN_SHARE * min(screen.current_w / width, screen.current_h / height)
        self.scale = max(1.0, min(2.0, fits))
        height, width = show.picture(footer="", scale=self.scale).shape[:2]
        self.surface = pygame.display.set_mode((width, height), pygame.RESIZABLE)

    def play(self, episodes: int | None) -> None:
        """Play until the window is closed, or for so many episodes."""
        due, changed = time.perf_counter(), True
        while self.open and (episodes is None or len(self.show.ended) < episodes):
            if changed:
                self._draw()
            changed = self._handle_events()
            now, step_s = time.perf_counter(), 1 / (self.show.frames_per_second * self.speed)
            if self.open and (self.one_step or (not self.paused and now >= due)):
                self.show.step()
                # A late step is caught up on, a long pause is not.
                due = max(due, now - step_s) + step_s
                self.one_step, changed = False, True
            elif self.open and not changed:
                self.pygame.time.wait(_PAUSED_MS if self.paused else _WAIT_MS)

    def _handle_events(self) -> bool:
        """Handle keys and mouse; returns whether the picture changes."""
        pygame, changed = self.pygame, False
        for event in pygame.event.get():
            if event.type == pygame.QUIT:
                self.open = False
            elif event.type == pygame.KEYDOWN:
                self._press(event.key, getattr(event, "unicode", ""))
            changed |= event.type in (pygame.KEYDOWN, pygame.VIDEORESIZE, pygame.WINDOWEXPOSED)
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

    def _draw(self) -> None:
        """Draw the next step into the window, as large as it fits."""
        pygame, state = self.pygame, "paused" if self.paused else f"speed {self.speed:g}"
        pygame.display.set_caption(f"{self.show.config.env}: {state}")
        picture = self.show.picture(footer=f"{state}   |   {KEYS}", scale=self.scale)
        image = pygame.image.frombuffer(picture.tobytes(), picture.shape[1::-1], "RGB")
        place = image.get_rect().fit(self.surface.get_rect())
        self.surface.fill((0, 0, 0))
        self.surface.blit(pygame.transform.smoothscale(image, place.size), place)
        pygame.display.flip()
