"""An agent at play, step by step, each step drawn as one picture: for videos and for the live window."""

import dataclasses
import functools
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from stable_baselines3.common.vec_env import VecNormalize

from agents.evaluation import evaluation_env, load_run
from agents.play.policy import Decision, action_names, choices_of, decide
from agents.store import check_spaces, restore_statistics
from latent_obs.encoder.pca import read_pca
from latent_obs.util.errors import EncoderFolderError, InputError

Picture = NDArray[np.uint8]

#: Standard deviations that a full bar of a latent stands for.
_DEVIATIONS = 3.0


class EpisodeEnd(NamedTuple):
    """How an episode ended."""

    total: float
    """Its return, in the game's own rewards."""
    length: int
    success: bool | None
    """None where the task defines none."""

    def __str__(self) -> str:
        word = {None: "", True: ", a success", False: ", no success"}[self.success]
        return f"return {self.total:.1f}{word}"


class Show:
    """Plays an agent of a run folder, with the wrappers and statistics that it was trained with.

    Args:
        run: The run folder.
        which: "best", "last" or the step of a kept checkpoint.
        seed: Seed of the environment.
        device: Where to encode.
        deterministic: The most likely action rather than a sample; by default as in the run's settings.
        success_return: As for `evaluate_agent`.

    Attributes:
        config: The settings.
        frames_per_second: Agent steps in a second of the game.
        ended: The episodes played to their end.
        step_number: Steps of the current episode.
        total: Its return so far.

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
    ) -> None:
        config, model, self._encoder = load_run(run, which, device)
        arguments = {**config.env_kwargs, "render_mode": "rgb_array"}
        self.config = config = dataclasses.replace(config, workers="serial", env_kwargs=arguments)
        self._model: Any = model
        self._deterministic = config.deterministic if deterministic is None else deterministic
        self._pca = read_pca(config.pca) if config.observation == "pca-latent" and config.pca is not None else None
        self._largest = 0.0
        self.ended: list[EpisodeEnd] = []
        self._venv = self._make_venv(seed, success_return)
        try:
            check_spaces(Path(run), which, model, self._venv)
            restore_statistics(Path(run), which, self._venv)
            env = self._venv.get_attr("env")[0]
            self._names, self._choices = action_names(env), choices_of(env)
            self.frames_per_second = float(env.metadata.get("render_fps") or 30) / (config.frame_skip or 1)
            self.restart()
            self._game_picture()  # raises now where the environment cannot draw itself
        except BaseException:
            self._venv.close()
            raise

    def _make_venv(self, seed: int, success_return: float | None) -> VecNormalize:
        config = self.config
        try:
            with warnings.catch_warnings():  # an error says it below
                warnings.filterwarnings("ignore", message=".*not in the possible render_modes")
                return evaluation_env(config, 1, seed, 0, encoder=self._encoder, success_return=success_return)
        except InputError as error:
            if "render_mode" in str(error):
                raise InputError(f"{config.env} cannot be shown: render_mode='rgb_array' fails: {error}") from None
            raise

    def restart(self) -> None:
        """Begin another episode; the current one does not count."""
        self._observation: Any = self._venv.reset()
        self._begin()

    def _begin(self) -> None:
        self._state, self._begins, self.step_number, self.total = None, True, 0, 0.0
        self._decided: tuple[NDArray[Any], Any, Decision] | None = None

    def _decide(self) -> tuple[NDArray[Any], Any, Decision]:
        if self._decided is None:  # once a step: a policy that samples would decide differently the second time
            self._decided = decide(
                self._model,
                self._observation,
                self._state,
                self._begins,
                deterministic=self._deterministic,
                names=self._names,
                choices=self._choices,
            )
        return self._decided

    @property
    def decision(self) -> Decision:
        """What the agent does next, and its estimates of the other actions."""
        return self._decide()[2]

    def step(self) -> EpisodeEnd | None:
        """Do what was decided; returns how the episode ended, if it did."""
        actions, self._state, _ = self._decide()
        self._observation, rewards, dones, infos = self._venv.step(actions)
        self._decided, self._begins = None, False
        self.step_number += 1
        self.total += float(rewards[0])
        if not dones[0]:
            return None
        success = infos[0].get("is_success")
        self.ended.append(EpisodeEnd(self.total, self.step_number, None if success is None else bool(success)))
        self._begin()
        return self.ended[-1]

    def picture(self, *, footer: str | None = None, scale: float = 1) -> Picture:
        """Draw the next step: the game, what the agent sees of it, its latent, and its decision.

        The reconstruction is decoded from the very latent that the agent acts on.

        Args:
            footer: A line below everything else.
            scale: 2 for a picture twice as large.

        Returns:
            uint8 (height, width, 3), always of the same size.
        """
        latent = self._latent() if self._encoder is not None and self.config.observation != "pixels" else None
        seen, caption = self._seen(latent)
        episode, env = len(self.ended) + 1, self.config.env
        title = f"{env}    episode {episode}    step {self.step_number}    return {self.total:.1f}"
        if self.ended:
            title += f"    (last episode: {self.ended[-1]})"
        return compose(
            self._game_picture(),
            title=title,
            seen=seen,
            seen_caption=caption,
            latent=None if latent is None else self._latent_picture(latent),
            decision=self.decision,
            footer=footer,
            scale=scale,
        )

    def close(self) -> None:
        """Close the environment."""
        self._venv.close()

    def _game_picture(self) -> Picture:
        picture = self._venv.env_method("render")[0]
        if not isinstance(picture, np.ndarray) or picture.ndim != 3:
            raise InputError(
                f"{self.config.env} cannot be shown: render() returns {type(picture).__name__}, expected an array "
                "(H, W, channels)"
            )
        return picture

    def _pixel_entry(self, observation: Any) -> NDArray[Any]:
        """The entry of an observation, a batch of one, that holds pixels or latents."""
        return observation[self._venv.get_attr("reader")[0].key] if isinstance(observation, dict) else observation

    def _newest(self, observation: Any) -> NDArray[np.float32]:
        """The newest latent of an observation: after the older ones, and before the other entries of a flat vector."""
        assert self._encoder is not None
        size, history = self._encoder.latent_dim, self.config.history
        return self._pixel_entry(observation)[0, (history - 1) * size : history * size]

    def _latent(self) -> NDArray[np.float32]:
        """float32 (latent_dim,), as the encoder gave it, before normalization."""
        return self._newest(self._venv.get_original_obs())

    def _seen(self, latent: NDArray[np.float32] | None) -> tuple[Picture | None, str]:
        """A picture of what the agent sees, and its caption; None where there is nothing to show."""
        if latent is None:
            frames = self._pixel_entry(self._venv.get_original_obs())
            if frames.ndim != 4:
                return None, ""
            newest = frames[0, ..., -(frames.shape[-1] // self.config.history) :]
            return newest.astype(np.uint8), f"seen{' (the last frame)' if self.config.history > 1 else ''}"
        if self._pca is not None:
            pixels = (self._pca.centre + latent @ self._pca.components).clip(0, 1) * 255
            return pixels.round().astype(np.uint8).reshape(self._pca.contract.shape), "reconstructed from the latent"
        if self._encoder is None or self.config.observation == "random-latent":
            return None, ""
        try:
            return self._encoder.decode(latent), "decoded from the latent"
        except EncoderFolderError:
            if self._encoder.path is not None and (self._encoder.path / "decoder.safetensors").exists():
                raise  # there is a decoder, and it is damaged
            return None, ""

    def _latent_picture(self, latent: NDArray[np.float32]) -> "LatentPicture":
        """In standard deviations over the encoder's training frames, or over what the agent saw in training."""
        assert self._encoder is not None
        architecture, statistics = self._encoder.architecture, self._encoder.statistics
        shape = architecture.latent_map if architecture is not None and architecture.bottleneck == "spatial" else None
        size = f"{' x '.join(map(str, shape))} = {len(latent)}" if shape else f"{len(latent)}"
        unit = f"full at {_DEVIATIONS:g} deviations of"
        if statistics is not None:
            values, unit = statistics.standardize(latent), f"{unit} the training frames"
        elif self._venv.norm_obs:
            values, unit = self._newest(self._observation), f"{unit} the agent's training"
        else:
            self._largest = max(self._largest, float(np.abs(latent).max()), 1e-12)
            values, unit = latent * (_DEVIATIONS / self._largest), "full at the largest so far"
        return LatentPicture(values / _DEVIATIONS, shape, f"latent, {size} values: {unit}, blue up, orange down")


# --- drawing: lengths in pixels, at a scale of 1 ---

_EDGE, _TITLE, _CAPTION, _FOOTER, _FONT_SIZE = 6, 18, 15, 17, 11
_PICTURE_HEIGHT, _DECISION_WIDTH, _LATENT_HEIGHT = 240, 190, 80
_ROW, _TALLEST_ROW = 17, 26

_GROUND, _FRAME, _DIM, _TEXT = (18, 18, 22), (42, 42, 50), (150, 150, 160), (232, 232, 236)
_UP, _DOWN = (92, 164, 255), (255, 150, 64)  # a blue and an orange that color-blind people can distinguish
_CHOSEN = (255, 210, 80)


@dataclass(frozen=True)
class LatentPicture:
    """A latent, ready to be drawn."""

    values: NDArray[np.floating]
    """float (latent_dim,); a full bar is 1, and larger values are clipped."""
    shape: tuple[int, int, int] | None
    """(channels, height, width) of a spatial latent; None for a vector."""
    caption: str


def compose(
    game: Picture,
    *,
    title: str,
    seen: Picture | None = None,
    seen_caption: str = "what the agent sees",
    latent: LatentPicture | None = None,
    decision: Decision | None = None,
    footer: str | None = None,
    scale: float = 1,
) -> Picture:
    """Put the parts of a step into one picture, uint8 (height, width, 3); a part that is None takes no space.

    Args:
        game: uint8 (H, W, C), the game's own picture.
        title: A line above.
        seen: uint8 (h, w, c): a reconstruction, or the resized frame.
        seen_caption: What that is.
        latent: The latent that the agent acts on.
        decision: What it does.
        footer: A line below.
        scale: 2 for a window twice as large, with sharp text. Height and width stay even, as video needs.
    """
    edge, caption = _pixels(_EDGE, scale), _pixels(_CAPTION, scale)
    high, panel = _pixels(_PICTURE_HEIGHT, scale), _pixels(_DECISION_WIDTH, scale)
    parts = [(_enlarged(game, high), "the game")]
    if seen is not None:
        parts.append((_enlarged(seen, high), seen_caption))
    width = edge + sum(image.width + edge for image, _ in parts) + (panel + edge if decision else 0)
    top = _pixels(_TITLE, scale) + edge
    body = top + caption
    below = body + high + (_pixels(_CAPTION + _LATENT_HEIGHT, scale) if latent else 0) + edge
    height = below + (_pixels(_FOOTER, scale) if footer is not None else 0)
    sheet = Image.new("RGB", (width + width % 2, height + height % 2), _GROUND)
    draw, font = ImageDraw.Draw(sheet), _font(scale)

    def write(x: int, y: int, text: str, space: int, color: tuple[int, int, int] = _DIM) -> None:
        draw.text((x, y), _fit(text, font, space), color, font)

    write(edge, _pixels(5, scale), title, width - 2 * edge, _TEXT)
    left = edge
    for image, text in parts:
        write(left, top, text, image.width)
        sheet.paste(image, (left, body))
        left += image.width + edge
    if decision:
        write(left, top, decision.caption, panel)
        _draw_decision(draw, decision, left, body, panel, high, scale)
    if latent:
        write(edge, body + high, latent.caption, width - 2 * edge)
        drawn = draw_latent(latent, width - 2 * edge, _pixels(_LATENT_HEIGHT, scale))
        sheet.paste(Image.fromarray(drawn), (edge, body + high + caption))
    if footer is not None:
        write(edge, below, footer, width - 2 * edge)
    return np.asarray(sheet)


def draw_latent(latent: LatentPicture, width: int, height: int) -> Picture:
    """Draw a latent as bars up (blue) and down (orange), or a spatial one as maps of its channels where they fit."""
    values = np.clip(np.nan_to_num(np.asarray(latent.values, np.float64)), -1, 1)
    maps = None if latent.shape is None else _draw_maps(values.reshape(latent.shape), width, height)
    return _draw_bars(values, width, height) if maps is None else maps


def _draw_bars(values: NDArray[np.float64], width: int, height: int) -> Picture:
    sheet = np.full((height, width, 3), _GROUND, np.uint8)
    rows = math.ceil(2 * len(values) / width)  # at least two pixels a bar, in as many rows as that takes
    per_row = math.ceil(len(values) / rows)
    edges = np.linspace(0, width, per_row + 1).round().astype(int)
    for row in range(rows):
        part = values[row * per_row : (row + 1) * per_row]
        top, bottom = row * height // rows, (row + 1) * height // rows - (1 if rows > 1 else 0)
        half = max((bottom - top - 1) // 2, 0)
        zero = top + half
        sheet[zero, : edges[len(part)]] = _FRAME
        for value, left, right in zip(part, edges, edges[1:], strict=False):
            right = max(left + 1, right - 1)  # a gap between bars, where there is space for one
            length = round(abs(value) * half)
            if value > 0:
                sheet[zero - length : zero, left:right] = _UP
            else:
                sheet[zero + 1 : zero + 1 + length, left:right] = _DOWN
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
    colors = np.where(values[..., None] > 0, np.array(_UP), np.array(_DOWN))
    cells = ((1 - strength) * np.array(_FRAME) + strength * colors).round().astype(np.uint8)
    for i, cell in enumerate(cells):
        top, left = (i // across) * (side * rows + gap), (i % across) * (side * columns + gap)
        sheet[top : top + side * rows, left : left + side * columns] = cell.repeat(side, 0).repeat(side, 1)
    return sheet


def _draw_decision(
    draw: ImageDraw.ImageDraw, decision: Decision, left: int, top: int, width: int, height: int, scale: float
) -> None:
    """A row for each action: its name, a bar under it, and a number; those that do not fit are counted."""
    row = min(max(height // len(decision.names), _pixels(_ROW, scale)), _pixels(_TALLEST_ROW, scale))
    font, fit = _font(scale), height // row
    shown = list(range(len(decision.names)))
    if len(shown) > fit:
        # The strongest, and what is done, in their own order, which stays the same from step to step.
        done = [chosen and not decision.signed for chosen in decision.chosen]
        shown = sorted(sorted(shown, key=lambda i: (not done[i], -abs(decision.levels[i])))[: fit - 1])
        draw.text((left, top + (fit - 1) * row), f"and {len(decision.names) - len(shown)} others", _DIM, font)
    for line, i in enumerate(shown):
        y, level, text = top + line * row, decision.levels[i], decision.texts[i]
        color = _CHOSEN if decision.chosen[i] else _DIM
        name = _fit(decision.names[i], font, width - round(font.getlength(text)) - _pixels(6, scale))
        draw.text((left, y), name, color, font)
        draw.text((left + width - font.getlength(text), y), text, color, font)
        bar_top, bar_bottom = y + _pixels(14, scale), y + row - _pixels(2, scale)
        draw.rectangle((left, bar_top, left + width - 1, bar_bottom), _FRAME)
        if decision.signed:
            low, high = sorted((left + width // 2, left + width // 2 + round(level * (width // 2 - 1))))
            draw.rectangle((low, bar_top, high, bar_bottom), _UP if level > 0 else _DOWN)
        elif round(level * width):
            fill = _CHOSEN if decision.chosen[i] else _UP
            draw.rectangle((left, bar_top, left + round(level * width) - 1, bar_bottom), fill)


def _enlarged(image: Picture, high: int) -> Image.Image:
    """A picture at a height; of a stack of frames the last three channels, one channel as gray."""
    rgb = np.repeat(image[..., :1], 3, axis=-1) if image.shape[-1] < 3 else image[..., -3:]
    picture = Image.fromarray(np.ascontiguousarray(rgb))
    size = (max(1, round(picture.width * high / picture.height)), high)
    return picture.resize(size, Image.Resampling.NEAREST if high >= picture.height else Image.Resampling.BOX)


def _fit(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """A text cut to a width."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..." if text else ""


@functools.cache
def _font(scale: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(_FONT_SIZE * scale)


def _pixels(length: float, scale: float) -> int:
    return max(1, round(length * scale))
