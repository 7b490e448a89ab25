"""An agent at play, each step drawn as one picture, and videos of it: game, reconstruction, latent and decision."""

import contextlib
import dataclasses
import functools
import itertools
import math
import os
import warnings
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont

from agents.evaluation import evaluation_env, load_run
from agents.hub import run_folder
from agents.play import EpisodeEnd
from agents.play.policy import Decision, action_names, choices_of, decide
from agents.store import restore_statistics
from latent_obs.encoder.pca import PCA
from latent_obs.util.atomic import atomic_write
from latent_obs.util.colors import COLORS
from latent_obs.util.device import torch_threads
from latent_obs.util.errors import InputError, check_count, require

Picture = NDArray[np.uint8]

_DEVIATIONS = 3.0  # standard deviations that a full bar of a latent stands for
_MOST_SECONDS = 60  # of a video


class Show:
    """Plays an agent of a run folder, with the wrappers and statistics that it was trained with.

    Args:
        run: The run folder.
        which: "best" or "last".
        seed: Seed of the environment.
        device: Where to encode.
        deterministic: The most likely action rather than a sample; by default as in the run's settings.
        success_return: As for `evaluate_agent`.
        trust: As for `evaluate_agent`.

    Attributes:
        config: The settings.
        frames_per_second: Agent steps in a second of the game.
        ended: The episodes played to their end.
        step_number: Steps of the current episode.
        total: Its return so far.
        decision: What the agent does next, and its estimates of the other actions.

    Raises:
        InputError: There is no such agent, or its environment has no `render_mode="rgb_array"`.

    Example::

        with contextlib.closing(Show("runs/agent")) as show:
            while not show.ended:
                save(show.picture())
                show.step()
    """

    def __init__(
        self,
        run: str | Path,
        *,
        which: str = "best",
        seed: int = 2_000_003,
        device: str = "auto",
        deterministic: bool | None = None,
        success_return: float | None = None,
        trust: bool = False,
    ) -> None:
        run = run_folder(run, trust)
        config, self._model, self._encoder = load_run(run, which, device)
        arguments = {**config.env_kwargs, "render_mode": "rgb_array"}
        self.config = config = dataclasses.replace(config, workers="serial", env_kwargs=arguments)
        self._deterministic = config.deterministic if deterministic is None else deterministic
        self._pca = PCA.load(config.pca) if config.observation == "pca-latent" and config.pca is not None else None
        self._largest = 1e-12
        self.ended: list[EpisodeEnd] = []
        with warnings.catch_warnings():  # an environment that cannot draw itself is an error below
            warnings.filterwarnings("ignore", message=".*not in the possible render_modes")
            venv = evaluation_env(config, 1, seed, encoder=self._encoder, success_return=success_return)
        with contextlib.ExitStack() as on_error:
            on_error.callback(venv.close)
            restore_statistics(run, which, venv, self._model)
            self._venv, env = venv, venv.get_attr("env")[0]
            self._names, self._choices = action_names(env), choices_of(env)
            self.frames_per_second = float(env.metadata.get("render_fps") or 30) / (config.frame_skip or 1)
            self.restart()
            self._game_picture()  # raises now where the environment cannot draw itself
            on_error.pop_all()

    def restart(self) -> None:
        """Begin another episode; the current one does not count."""
        self._observation: Any = self._venv.reset()
        self._state, self.step_number, self.total = None, 0, 0.0
        self._decide()

    def _decide(self) -> None:
        """Decide once a step: a policy that samples would decide differently the second time."""
        names, begins = (self._names, self._choices), self.step_number == 0
        self._actions, self._state, self.decision = decide(
            self._model, self._observation, self._state, begins, self._deterministic, *names
        )

    def step(self) -> EpisodeEnd | None:
        """Do what was decided; returns how the episode ended, if it did."""
        self._observation, rewards, dones, infos = self._venv.step(self._actions)
        self.step_number += 1
        self.total += float(rewards[0])
        end = None
        if dones[0]:
            success = infos[0].get("is_success")
            end = EpisodeEnd(self.total, self.step_number, None if success is None else bool(success))
            self.ended.append(end)
            self._state, self.step_number, self.total = None, 0, 0.0
        self._decide()
        return end

    def picture(self, *, footer: str | None = None, scale: float = 1) -> Picture:
        """Draw the next step: the game, what the agent sees of it, its latent, and its decision.

        The reconstruction is decoded from the very latent that the agent acts on.

        Args:
            footer: A line below everything else.
            scale: 2 for a picture twice as large.

        Returns:
            uint8 (height, width, 3), always of the same size.
        """
        title = f"{self.config.env}    episode {len(self.ended) + 1}    step {self.step_number}    return "
        title += f"{self.total:.1f}" + (f"    (last episode: {self.ended[-1]})" if self.ended else "")
        seen, latent = self._views()
        how: dict[str, Any] = {"title": title, "footer": footer, "scale": scale}
        return compose(self._game_picture(), seen=seen, latent=latent, decision=self.decision, **how)

    def close(self) -> None:
        """Close the environment."""
        self._venv.close()

    def _game_picture(self) -> Picture:
        picture = self._venv.env_method("render")[0]
        if not isinstance(picture, np.ndarray) or picture.ndim != 3:
            raise InputError(
                f"{self.config.env} cannot be shown: render() with render_mode='rgb_array' returns "
                f"{type(picture).__name__}, expected an array (H, W, channels)"
            )
        return picture

    def _views(self) -> tuple[Picture | None, "LatentPicture | None"]:
        """What the agent sees: the newest frame; or its latent, and what that decodes to where there is a decoder."""
        config, encoder, seen = self.config, self._encoder, self._venv.get_original_obs()
        if isinstance(seen, dict):
            seen = seen[self._venv.get_attr("reader")[0].key]
        if config.observation == "pixels" or encoder is None:
            return seen[0, ..., -(seen.shape[-1] // config.history) :].astype(np.uint8), None
        # The newest latent comes after older ones, and before the other entries of a flat vector.
        latent = seen[0, : config.history * encoder.latent_dim][-encoder.latent_dim :]
        picture = None
        if self._pca is not None:
            pixels = (self._pca.centre + latent @ self._pca.components).clip(0, 1) * 255
            picture = pixels.round().astype(np.uint8).reshape(encoder.contract.shape)
        elif encoder.path is not None and (encoder.path / "decoder.safetensors").exists():
            picture = encoder.decode(latent)
        # In standard deviations over the encoder's training frames, where they are known.
        self._largest = max(self._largest, float(np.abs(latent).max()))
        values, unit = latent / self._largest, "the largest so far"
        if encoder.statistics is not None:
            values = (latent - encoder.statistics.mean) / encoder.statistics.scale / _DEVIATIONS
            unit = f"{_DEVIATIONS:g} deviations of the training frames"
        layout = encoder.architecture
        shape = layout.latent_map if layout is not None and layout.bottleneck == "spatial" else None
        size = f"{len(latent)}"
        if layout is not None and shape is not None:
            besides = f"{layout.components} + " if layout.components else ""
            size = f"{besides}{' x '.join(map(str, shape))} = {len(latent)}"
        return picture, LatentPicture(values, shape, f"latent, {size} values: full at {unit}, teal up, pink down")


class LatentPicture(NamedTuple):
    """A latent, ready to be drawn."""

    values: NDArray[np.floating]
    """float (latent_dim,); a full bar is 1, and larger values are clipped."""
    shape: tuple[int, int, int] | None
    """(channels, height, width) of the learned values of a spatial latent, the last ones; None for a vector."""
    caption: str


_GROUND, _FRAME, _DIM, _TEXT = (18, 18, 22), (42, 42, 50), (150, 150, 160), (232, 232, 236)
_UP, _DOWN = (ImageColor.getrgb(COLORS[sign])[:3] for sign in ("above", "below"))
_CHOSEN = (255, 210, 80)
#: Pixels at a scale of 1.
_LAYOUT = {"edge": 6, "title": 18, "caption": 15, "picture": 240, "decision": 190, "latent": 80, "footer": 17}


def compose(
    game: Picture,
    *,
    title: str,
    seen: Picture | None = None,
    latent: LatentPicture | None = None,
    decision: Decision | None = None,
    footer: str | None = None,
    scale: float = 1,
) -> Picture:
    """Put the parts of a step into one picture, uint8 (height, width, 3); a part that is None takes no space.

    Height and width are even, as video needs. `scale` is 2 for a picture twice as large, with sharp text.
    """
    size = {name: round(length * scale) for name, length in _LAYOUT.items()}
    edge, caption, high = size["edge"], size["caption"], size["picture"]
    parts = [(_enlarged(game, high), "the game")]
    if seen is not None:
        parts.append((_enlarged(seen, high), "what the agent sees"))
    if decision is not None:
        parts.append((_draw_decision(decision, size["decision"], high, scale), decision.caption))
    width = edge + sum(image.width + edge for image, _ in parts)
    top = size["title"] + edge
    below = top + caption + high  # of what the parts take
    bottom = below + (caption + size["latent"] if latent is not None else 0) + edge
    height = bottom + (size["footer"] if footer is not None else 0)
    sheet = Image.new("RGB", (width + width % 2, height + height % 2), _GROUND)
    _write(sheet, edge, edge, title, width - 2 * edge, _TEXT, scale)
    left = edge
    for image, text in parts:
        _write(sheet, left, top, text, image.width, _DIM, scale)
        sheet.paste(image, (left, top + caption))
        left += image.width + edge
    if latent is not None:
        _write(sheet, edge, below, latent.caption, width - 2 * edge, _DIM, scale)
        drawn = draw_latent(latent, width - 2 * edge, size["latent"])
        sheet.paste(Image.fromarray(drawn), (edge, below + caption))
    if footer is not None:
        _write(sheet, edge, bottom, footer, width - 2 * edge, _DIM, scale)
    return np.asarray(sheet)


def draw_latent(latent: LatentPicture, width: int, height: int) -> Picture:
    """Draw a latent as bars up (teal) and down (pink), or a spatial one as maps of its channels where they fit.

    Principal components, which come before the map, are bars to the left of the maps.
    """
    values = np.clip(np.nan_to_num(np.asarray(latent.values, np.float64)), -1, 1)
    if latent.shape is None:
        return _draw_bars(values, width, height)
    components = len(values) - math.prod(latent.shape)
    left = round(width * components / len(values))
    maps = _draw_maps(values[components:].reshape(latent.shape), width - left, height)
    if maps is None:
        return _draw_bars(values, width, height)
    gap = 2 * _LAYOUT["edge"]
    if left <= gap:
        return maps
    between = np.full((height, gap, 3), _GROUND, np.uint8)
    bars = np.full((height, left - gap, 3), _GROUND, np.uint8)
    drawn = _draw_bars(values[:components], left - gap, height)
    bars[: len(drawn)] = drawn
    return np.concatenate([bars, between, maps], axis=1)


def _draw_bars(values: NDArray[np.float64], width: int, height: int) -> Picture:
    """Bars of at least two pixels, in as many rows as that takes, where they fit."""
    rows = min(math.ceil(2 * len(values) / width), height // 3)
    per_row, tall = math.ceil(len(values) / rows), height // rows
    half = (tall - 1) // 2
    lengths = np.rint(np.pad(values, (0, rows * per_row - len(values))) * half).reshape(rows, 1, per_row)
    above = half - np.arange(tall)[:, None]  # pixels above the zero line
    cells = np.full((rows, tall, per_row, 3), _GROUND, np.uint8)
    cells[:, half] = _FRAME
    cells[(above > 0) & (above <= lengths)] = _UP
    cells[(above < 0) & (above >= lengths)] = _DOWN
    edges = np.linspace(0, width, per_row + 1).round().astype(int)
    sheet = cells.reshape(rows * tall, per_row, 3).repeat(np.diff(edges), axis=1)
    if width >= 3 * per_row:
        sheet[:, edges[1:] - 1] = _GROUND  # a gap between bars
    return sheet


def _draw_maps(values: NDArray[np.float64], width: int, height: int) -> Picture | None:
    """Each channel as a small picture, as large as they fit in side by side; None where they do not fit."""
    channels, rows, columns = values.shape
    gap = max(2, height // 20)

    def side_with(lines: int) -> int:  # pixels of a cell, with the channels in so many lines
        across = math.ceil(channels / lines)
        return min((width - gap * (across - 1)) // (across * columns), (height - gap * (lines - 1)) // (lines * rows))

    lines = max(range(1, channels + 1), key=side_with)
    side, across = side_with(lines), math.ceil(channels / lines)
    if side < 1:
        return None
    sheet = np.full((height, width, 3), _GROUND, np.uint8)
    strength = np.abs(values)[..., None]
    cells = (1 - strength) * _FRAME + strength * np.where(values[..., None] > 0, _UP, _DOWN)
    for i, cell in enumerate(cells.round().astype(np.uint8)):
        top, left = (i // across) * (side * rows + gap), (i % across) * (side * columns + gap)
        sheet[top : top + side * rows, left : left + side * columns] = cell.repeat(side, 0).repeat(side, 1)
    return sheet


def _draw_decision(decision: Decision, width: int, height: int, scale: float) -> Image.Image:
    """A row for each action: its name, a bar under it, and a number; those that do not fit are counted."""
    sheet = Image.new("RGB", (width, height), _GROUND)
    draw, count = ImageDraw.Draw(sheet), len(decision.names)
    row = min(max(height // max(count, 1), round(17 * scale)), round(26 * scale))
    shown, fit = list(range(count)), height // row
    if count > fit:
        # The strongest, and what is done, in their own order, which stays the same from step to step.
        done = [chosen and not decision.signed for chosen in decision.chosen]
        shown = sorted(sorted(shown, key=lambda i: (not done[i], -abs(decision.levels[i])))[: fit - 1])
        _write(sheet, 0, (fit - 1) * row, f"and {count - len(shown)} others", width, _DIM, scale)
    for line, i in enumerate(shown):
        top, level, text, chosen = line * row, decision.levels[i], decision.texts[i], decision.chosen[i]
        color, space = _CHOSEN if chosen else _DIM, round(_font(scale).getlength(text))
        _write(sheet, 0, top, decision.names[i], width - space - round(6 * scale), color, scale)
        _write(sheet, width - space, top, text, space + 1, color, scale)
        above, below = top + round(14 * scale), top + row - round(2 * scale)
        draw.rectangle((0, above, width - 1, below), _FRAME)
        zero = width // 2 if decision.signed else 0
        low, high = sorted((zero, zero + round(level * (width - 1 - zero))))
        if high > low:
            fill = (_UP if level > 0 else _DOWN) if decision.signed else _CHOSEN if chosen else _UP
            draw.rectangle((low, above, high, below), fill)
    return sheet


def _enlarged(image: Picture, height: int) -> Image.Image:
    """A picture at a height; of a stack of frames the last three channels, one channel as gray."""
    rgb = np.repeat(image[..., :1], 3, axis=-1) if image.shape[-1] < 3 else image[..., -3:]
    picture = Image.fromarray(np.ascontiguousarray(rgb))
    size = (max(1, round(picture.width * height / picture.height)), height)
    return picture.resize(size, Image.Resampling.NEAREST if height >= picture.height else Image.Resampling.BOX)


@functools.cache
def _font(scale: float) -> Any:
    return ImageFont.load_default(11 * scale)


def _write(
    sheet: Image.Image, left: int, top: int, text: str, width: int, color: tuple[int, int, int], scale: float
) -> None:
    """Write a text, cut to a width."""
    font, cut = _font(scale), text
    while cut and font.getlength(cut + "..." * (cut != text)) > width:
        cut = cut[:-1]
    ImageDraw.Draw(sheet).text((left, top), cut + "..." * (cut != text), color, font)


def film(
    run: str | Path,
    video: str | Path | None = None,
    *,
    episodes: int = 3,
    seconds: float = 15.0,
    which: str = "best",
    seed: int = 2_000_003,
    device: str = "auto",
    trust: bool = False,
) -> tuple[Path, list[float]]:
    """Play an agent for some episodes and write an MP4 of the pictures of `Show.picture`.

    Args:
        run: The run folder, or with `trust` a repository of Hugging Face.
        video: The file to write; by default agent.mp4 in the run folder, or in the current one for a repository.
        episodes: Whole episodes to film at least, but never more than a minute.
        seconds: Length to film at least: short episodes are followed by more of them.
        which: "best" or "last".
        seed: Seed of the environment.
        device: Where to encode.
        trust: As for `evaluate_agent`.

    Returns:
        The file, and the return of each episode that was filmed to its end.

    Raises:
        InputError: There is no such agent, its environment cannot draw itself, or the file cannot be written; raised
            before anything is played.
        MissingExtraError: PyAV is not installed.
    """
    require("av", extra="video", purpose="write a video")
    check_count("episodes", episodes)
    place = Path(run) if Path(run).is_dir() else Path()
    target = check_writable(Path(video) if video is not None else place / "agent.mp4")
    # One frame at a time: more threads would only wait for each other.
    with torch_threads(1), contextlib.closing(Show(run, which=which, seed=seed, device=device, trust=trust)) as show:

        def pictures() -> Iterator[Picture]:
            for frame in range(math.ceil(show.frames_per_second * _MOST_SECONDS)):
                if len(show.ended) >= episodes and frame >= show.frames_per_second * seconds:
                    return
                yield show.picture()
                show.step()

        write_video(target, pictures(), frames_per_second=show.frames_per_second)
    return target, [end.total for end in show.ended]


def check_writable(path: Path) -> Path:
    """Raise `InputError` if a file cannot be written, before the work whose result goes into it."""
    there = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    special = os.path.lexists(path) and not path.is_file()  # a folder, a device, a link to nothing
    if special or not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{path} cannot be written: it must name a file in a folder with permission to write")
    return path


def write_video(path: Path, frames: Iterable[Picture], *, frames_per_second: float) -> Path:
    """Write uint8 (H, W, 3) frames, of even height and width, as an H.264 MP4 that browsers play.

    Args:
        path: The file; it appears whole or not at all.
        frames: The pictures, at least one, all of one size.
        frames_per_second: Speed of play.

    Raises:
        InputError: There is no frame.
        MissingExtraError: PyAV is not installed.
    """
    av = require("av", extra="video", purpose="write a video")
    pictures = iter(frames)
    first = next(pictures, None)
    if first is None:
        raise InputError(f"frames: there is none to write to {path}")
    with atomic_write(path) as aside, av.open(str(aside), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(frames_per_second).limit_denominator(1000))
        stream.height, stream.width, stream.pix_fmt = *first.shape[:2], "yuv420p"
        stream.options = {"crf": "23", "preset": "veryfast"}
        for picture in itertools.chain([first], pictures):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode())
    return path
