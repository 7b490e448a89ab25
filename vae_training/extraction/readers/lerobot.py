"""Datasets in the form of Hugging Face's LeRobot, versions 2 and 3, without its package: one recording per episode.

    meta/info.json               version, frames per second, what each column is, and where the files are
    meta/episodes/…/….parquet    length of each episode, in which files it is, and where it begins (version 3)
    meta/episodes.jsonl          length of each episode (version 2)
    data/…/….parquet             a row per frame: action, state, time; pictures, where they are not in videos
    videos/…/….mp4               the pictures of a camera; of many episodes in version 3, of one in version 2

Row i belongs to the picture that the video shows at its timestamp, as in LeRobot's own loader (`lerobot_dataset.py`,
`_query_videos`).
"""

import functools
import io
import json
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from latent_obs.util.errors import parse_json, require
from latent_obs.util.words import counted
from vae_training.data.frames import Frames
from vae_training.extraction.readers.base import Damaged, Recording, choose_camera, reading
from vae_training.extraction.readers.images import decode_pictures
from vae_training.extraction.readers.video import decode_at

_EPISODE, _TASK, _TIME = "episode_index", "task_index", "timestamp"
_NO_ROWS = (_EPISODE, _TASK, _TIME, "frame_index", "index")
_PLAIN = re.compile(r"u?int\d+|float\d+|bool|string")  # types of the columns that become rows
_ROW_NAMES = {"next.reward": "reward", "next.done": "terminated", "next.truncated": "truncated"}
_STATE = "observation.state"
_PICTURES_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True)
class LeRobotRecording(Recording):
    """An episode of a dataset.

    Attributes:
        info: The dataset's info.json.
        episode: Number of the episode.
        length: Number of its rows.
        camera: Name of the column of pictures.
        data: The table that it is in, perhaps with others.
        video: The video that it is in, perhaps with others; None if the pictures are in the table.
        start: Second of the video at which it begins.
    """

    kind: ClassVar[str] = "lerobot"
    info: Mapping[str, Any]
    episode: int
    length: int
    camera: str
    data: Path
    video: Path | None
    start: float

    def chunks(self) -> Generator[Frames]:
        """As of a recording: a frame for each row of the table."""
        if self.video is None:
            return decode_pictures((f"{self.data}, {self.camera}", picture) for picture in self._pictures())
        with reading(self.data):
            seconds = self.start + _array(self._table([_TIME]), _TIME).astype(np.float64)
        return decode_at(self.video, seconds.tolist(), 0.25 / self.info["fps"], self.threads)

    def rows(self) -> Mapping[str, NDArray[Any]]:
        """The columns of numbers and texts.

        Returns:
            `first`, `acted` (every frame has an action), and what the dataset has of these: `action`, `reward`,
            `terminated` (next.done), `state$<name>` for each value of observation.state, `task` (text), and other
            columns under their names with $ for a dot.
        """
        features: dict[str, Any] = self.info["features"]
        rows: dict[str, NDArray[Any]] = {"first": np.arange(self.length) == 0, "acted": np.ones(self.length, np.bool_)}
        with reading(self.source / "meta"):
            names = [name for name, feature in features.items() if _is_row(name, feature)]
            tasks = _tasks(self.source) if _TASK in features else {}
        table = self._table([*names, *([_TASK] if tasks else [])])
        with reading(self.data):
            for name in names:
                values = _array(table, name)
                if name == _STATE:
                    values = values.reshape(len(values), -1)
                    parts = _names_of(features[name], values.shape[1])
                    rows |= {f"state${part}": column for part, column in zip(parts, values.T, strict=True)}
                else:
                    rows[_ROW_NAMES.get(name) or name.replace(".", "$")] = values
            if tasks:
                rows["task"] = np.array([tasks[task] for task in table[_TASK].to_pylist()])
        return rows

    @property
    def files(self) -> list[Path]:
        """The table and the video."""
        return [self.data, *([self.video] if self.video else [])]

    def _stated_frames(self) -> int:
        return self.length

    def _table(self, columns: list[str]) -> Any:
        """The episode's rows."""
        with reading(self.data):
            table = _parquet(self.data, [*columns, _EPISODE]).to_table(columns, filter=self._is_ours())
            if len(table) != self.length:
                raise ValueError(f"it has {len(table)} rows of {self.part}, expected {self.length} by meta/")
            return table

    def _pictures(self) -> Iterator[io.BytesIO]:
        """The encoded pictures in the table."""
        with reading(self.data):
            few = {"batch_size": _PICTURES_AT_ONCE, "batch_readahead": 1, "use_threads": False}
            table = _parquet(self.data, [self.camera, _EPISODE])
            for batch in table.to_batches([self.camera], filter=self._is_ours(), **few):
                for picture in batch.column(0).to_pylist():
                    if not picture["bytes"]:
                        raise ValueError(f"it names {picture['path']}, expected the content of the picture")
                    yield io.BytesIO(picture["bytes"])

    def _is_ours(self) -> Any:
        """The condition that a row of the table is the episode's."""
        return _arrow().field(_EPISODE) == self.episode


def is_lerobot(path: Path) -> bool:
    """Whether a path is the folder of a dataset."""
    return (path / "meta" / "info.json").is_file()


def lerobot_recordings(root: Path, camera: str | None) -> Iterator[Recording | Damaged]:
    """The episodes of a dataset with the pictures of one camera; those whose files are missing are one `Damaged`.

    Raises:
        InputError: There is no such camera, or there are several and `camera` is None.
        DamagedRecordingError: Its metadata cannot be read, are of another version, or it has no pictures.
    """
    with reading(root / "meta" / "info.json"):
        info: dict[str, Any] = parse_json((root / "meta" / "info.json").read_bytes(), dict[str, Any], "it")
        if not str(info["codebase_version"]).startswith(("v2.", "v3.")):
            raise ValueError(
                f"its codebase_version is {info['codebase_version']}, expected v2.0, v2.1 or v3.0; convert it with "
                "the scripts of the lerobot package"
            )
        kinds = {name: feature["dtype"] for name, feature in info["features"].items()}
    camera = choose_camera(root, [name for name, kind in kinds.items() if kind in ("video", "image")], camera)
    video = f"videos/{camera}/" if kinds[camera] == "video" else None
    found: list[LeRobotRecording] = []
    with reading(root / "meta"):
        info["fps"] = float(info["fps"])
        for each in _episodes(root, info, video):
            found.append(
                LeRobotRecording(
                    name="",
                    source=root,
                    part=f"episode_{each[_EPISODE]:06d}",
                    info=info,
                    episode=each[_EPISODE],
                    length=each["length"],
                    camera=camera,
                    data=_file(root, info["data_path"], each, "data/"),
                    video=_file(root, info["video_path"], each, video, video_key=camera) if video else None,
                    start=each[f"{video}from_timestamp"] if video else 0.0,
                )
            )
    files = {file for recording in found for file in recording.files}
    if missing := {file for file in files if not file.is_file()}:
        reason = f"{counted(len(missing), 'file')} that meta/ names are missing, such as {min(missing)}"
        yield Damaged("", root, f"{reason}; download them, and give the same command again")
    yield from (recording for recording in found if missing.isdisjoint(recording.files))


def _episodes(root: Path, info: Mapping[str, Any], video: str | None) -> list[dict[str, Any]]:
    """What is known of each episode, by the names of version 3."""
    if info["codebase_version"].startswith("v2."):
        lines = _lines(root / "meta" / "episodes.jsonl")
        added = {f"{video}from_timestamp": 0.0}
        return [{**line, **added, "episode_chunk": line[_EPISODE] // info["chunks_size"]} for line in lines]
    needed = [f"data/{number}" for number in ("chunk_index", "file_index")]
    if video:
        needed += [f"{video}{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
    columns = [_EPISODE, "length", *needed]
    return _parquet(root / "meta" / "episodes", columns).to_table(columns).to_pylist()


def _file(root: Path, template: str, episode: Mapping[str, Any], prefix: str, **more: str) -> Path:
    """An episode's file; the fields of the template of its path are columns of the episode, with a prefix in version 3.

    It may be a link (in a cache of the hub), but its path may not lead out of the dataset: it could be any file.
    """
    path = template.format(**{name.removeprefix(prefix): value for name, value in episode.items()}, **more)
    file = root / path
    if not file.is_relative_to(root) or ".." in file.relative_to(root).parts:
        raise ValueError(f"info.json names {path}, expected a path inside the dataset, without ..")
    return file


@functools.lru_cache(maxsize=1)  # for the next episode
def _tasks(root: Path) -> dict[int, str]:
    """Texts of the tasks by number."""
    if (file := root / "meta" / "tasks.jsonl").is_file():
        return {line[_TASK]: line["task"] for line in _lines(file)}
    table = _parquet(root / "meta" / "tasks.parquet", [_TASK]).to_table()
    (text,) = set(table.column_names) - {_TASK}  # the index of a table of pandas, whose name has changed
    return dict(zip(table[_TASK].to_pylist(), table[text].to_pylist(), strict=True))


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines() if line.strip()]


def _arrow() -> Any:
    return require("pyarrow.dataset", extra="formats", purpose="read LeRobot datasets")


def _parquet(path: Path, needed: Sequence[str]) -> Any:
    """A Parquet file, or all that are in a folder, of which nothing is read yet; `ValueError` if it lacks a column."""
    table = _arrow().dataset(path, format="parquet")
    if missing := [name for name in needed if name not in table.schema.names]:
        raise ValueError(f"{path.name} has no column {', '.join(missing)}")
    return table


def _is_row(name: str, feature: Mapping[str, Any]) -> bool:
    return name not in _NO_ROWS and len(feature["shape"]) <= 1 and bool(_PLAIN.fullmatch(feature["dtype"]))


def _array(table: Any, name: str) -> NDArray[Any]:
    """A column as numbers or texts, (N,), or (N, k) if it has k in each row."""
    values, lists = table[name].combine_chunks(), False
    while values.type.num_fields and not values.null_count:
        if len(lengths := values.value_lengths().unique()) > 1:
            raise ValueError(f"its {name} has lists of {lengths[0]} and of {lengths[1]} values, expected one length")
        values, lists = values.flatten(), True
    if values.null_count:
        raise ValueError(f"its {name} lacks {counted(values.null_count, 'value')}, expected one in each row")
    array = values.to_numpy(zero_copy_only=False)
    if array.dtype.hasobject:
        array = array.astype(str)
    return array.reshape(len(table), -1) if lists else array


def _names_of(feature: Mapping[str, Any], count: int) -> Sequence[str]:
    """Names of the values of a vector: a list, a dict of lists, or a dict of their places; else their numbers."""
    names = feature.get("names") or ()
    if isinstance(names, dict) and all(isinstance(part, list) for part in names.values()):
        names = [name for part in names.values() for name in part]
    names = [str(name) for name in names]
    return names if len(names) == count == len(set(names)) else [str(i) for i in range(count)]
