"""One round of alternating training: record, fine-tune, align, judge, exchange; each stage is done once."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.config import AgentConfig
from agents.encoders import swap_encoder
from agents.evaluate import Evaluation, evaluation_env, play, run_config
from agents.play_policy import load_policy
from agents.store import load_agent, restore_statistics
from latent_obs.atomic import write_json
from latent_obs.errors import InputError
from latent_obs.folder import read_encoder_folder
from latent_obs.torch_threads import torch_threads
from vae_training.config import TrainConfig
from vae_training.datasets import get_datasets
from vae_training.export_aligned import export_aligned, picture_error
from vae_training.fine_tune import (
    MixedFrames,
    check_can_start_from,
    fine_tune_settings,
    link_files,
    mix_frames,
    settings_of,
)
from vae_training.record import record
from vae_training.record_config import RecordConfig
from vae_training.split import split_held_out
from vae_training.train import train

_FILES = 5  # recordings of a round; one of them is held out
_HELD_OUT_SHARE = 0.1  # of a round's frames at least, where a recording that was interrupted has made small files
_SEED = 3_000_017  # of the episodes at an exchange: none of training's or of other evaluations'

Say = Callable[[str], object]


@dataclass(frozen=True)
class Base:
    """What the first encoder was trained with.

    Attributes:
        frames: Folder of its frames.
        settings: Of its training; each round keeps its objective.
    """

    frames: Path
    settings: TrainConfig

    def save(self, folder: Path) -> None:
        """Note it in `base.json`, once: an encoder of a later round names other frames."""
        file = folder / "base.json"
        if not file.exists():
            write_json(file, {"frames": str(self.frames.resolve()), "settings": self.settings.to_json()})

    def split(self) -> tuple[list[Path], list[Path]]:
        """Files that the encoder was trained on, and those held out; a file of which a part was held out is of the first."""
        datasets = get_datasets(self.frames)
        training, _ = split_held_out(datasets, self.settings.held_out)
        trained = {str(getattr(d, "filename", "")) for d in training}
        files = [Path(str(d.filename)) for d in datasets]
        return [f for f in files if str(f) in trained], [f for f in files if str(f) not in trained]


def base_of(agent: AgentConfig, frames: Path | None, folder: Path) -> Base:
    """What alternating training begins with, or why it cannot; nothing is written.

    Args:
        agent: Settings of the agent.
        frames: Its encoder's frames; by default as its provenance has it.
        folder: `alternate/` of the run.

    Raises:
        InputError: No encoder, or one that cannot be trained on, or its frames are not there or of another size.
        EncoderFolderError: The encoder is missing or damaged.
    """
    saved = AgentConfig.load(agent.out).observation if (agent.out / "config.json").exists() else agent.observation
    if saved != "latent":
        raise InputError(f"alternating training is for agents on latents, and this one is on {saved!r}: use train-agent")
    file = folder / "base.json"
    if file.exists():
        try:
            values = json.loads(file.read_text())
            return Base(frames or Path(values["frames"]), TrainConfig.from_json(values["settings"]))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{file} cannot be read ({error}); remove it, and the encoder's provenance is asked again"
            ) from None
    inside = agent.out / "encoder"
    source = inside if inside.exists() else agent.encoder
    if source is None:
        raise InputError("alternating training needs an encoder folder to begin with: --encoder runs/… (train-vae makes one)")
    check_can_start_from(source)
    encoder = read_encoder_folder(source)
    settings = settings_of(encoder)
    named = encoder.provenance.get("settings")
    if frames is None and not named:
        raise InputError(f"{source} does not tell which frames it was trained on; name their folder: --frames FOLDER")
    try:
        datasets = get_datasets(frames or settings.frames)
    except InputError as error:
        if frames is not None:
            raise
        raise InputError(f"{error}. {source} was trained on these; where they are now, say with --frames FOLDER") from None
    if datasets[0].shape[1:] != encoder.contract.shape:
        raise InputError(
            f"{frames or settings.frames} has frames of shape {datasets[0].shape[1:]}, and {source} takes "
            f"{encoder.contract.shape}; name the frames that it was trained on: --frames FOLDER"
        )
    return Base(frames or settings.frames, settings)


class Round:
    """One round.

    Args:
        folder: Its folder.
        run: The agent's run folder.
        base: What the first encoder was trained with.
    """

    def __init__(self, folder: Path, run: Path, base: Base) -> None:
        self.folder, self.run, self.base = folder, run, base
        self._file = folder / "round.json"
        self._frames = folder.parent / "frames"
        try:
            self.notes: dict[str, Any] = json.loads(self._file.read_text()) if self._file.exists() else {}
        except ValueError as error:
            raise InputError(f"{self._file} cannot be read ({error}); remove it, and the round begins anew") from None

    @property
    def is_done(self) -> bool:
        """Whether all stages are."""
        return "swapped" in self.notes

    def _note(self, **values: Any) -> None:
        """What is finished; last, so that nothing half-done is taken for whole."""
        self.notes.update(values)
        write_json(self._file, self.notes)

    def begin(self, step: int, *, add_frames: int) -> None:
        """Note how many frames there are to be in the end, before the first of them."""
        if "began" in self.notes:
            return
        if not self._frames.exists():
            link_files(self._frames, {f.name: f for f in (Path(str(d.filename)) for d in get_datasets(self.base.frames))})
        self._note(began={"step": step, "files_before": self._recorded(), "add_frames": add_frames})

    def record(self, device: str, say: Say) -> None:
        """Record the last agent.

        Raises:
            KeyboardInterrupt: It was interrupted; the frames are kept.
        """
        if "recorded" in self.notes:
            return
        began = self.notes["began"]
        config, size = run_config(self.run), read_encoder_folder(self.run / "encoder").contract
        linked = {f.name for f in self._frames.glob("*.npy") if f.is_symlink()}
        before = self._count(linked | set(began["files_before"]), RecordConfig(env=config.env).slug)
        settings = RecordConfig(
            env=config.env, out=self._frames, frames=before + began["add_frames"], seed=config.seed,
            frames_per_file=-(-began["add_frames"] // _FILES), size=size.height if size.height == size.width else None,
        )  # fmt: skip
        policy = load_policy(self.run, "last", device=device)
        record(settings, policy=policy, say=lambda text: None if text.startswith("next:") else say(text))
        files = [name for name in self._recorded() if name not in began["files_before"]]
        added = sum(len(d) for d in get_datasets(self._frames) if Path(str(d.filename)).name in files)
        if added < began["add_frames"]:
            raise KeyboardInterrupt  # record() takes Ctrl-C as the end of a recording, and returns
        self._note(recorded={"files": files, "frames": added, "held_out": self._last_tenth(files)})

    def fine_tune(
        self, *, new_share: float, epochs: int, learning_rate: float | None, device: str, progress_bar: bool | None, say: Say
    ) -> None:
        """Train the CVAE on, from the weights that the agent's encoder has.

        Raises:
            KeyboardInterrupt: It was interrupted; its checkpoint is kept.
        """
        if "fine_tuned" in self.notes:
            return
        old, old_held_out, new, new_held_out = self._split()
        mixed: MixedFrames = mix_frames(self.folder / "mixed", old, new, [*old_held_out, *new_held_out], new_share=new_share)
        settings = fine_tune_settings(
            self.base.settings, mixed, self.run / "encoder", self.folder / "vae", epochs=epochs,
            learning_rate=learning_rate, device=device, seed=self.base.settings.seed + self.notes["began"]["step"],
        )  # fmt: skip
        begun = (settings.out / "checkpoints" / "latest.safetensors").exists()
        result = train(settings, resume=begun, progress_bar=progress_bar, say=say)
        if result.interrupted:
            raise KeyboardInterrupt
        self._note(fine_tuned={"steps": result.steps, "held_out": dataclasses.asdict(result.held_out)})

    def align(self, ridge: float) -> None:
        """Write the new encoder with latents that mean what those of the old one do, and measure both on held-out frames."""
        if "aligned" in self.notes:
            return
        old, old_held_out, new, new_held_out = (_datasets(files) for files in self._split())
        before, after = self.run / "encoder", self.folder / "encoder"
        quality = export_aligned(
            after, self.folder / "vae", before, [old, new], [*old_held_out, *new_held_out], ridge=ridge,
            keep_scale=run_config(self.run).standardise,
            provenance={"alternating": {"agent": str(self.run), "round": self.folder.name, **self.notes["began"]}},
        )  # fmt: skip
        errors = {
            name: [picture_error(folder, held_out) for folder in (before, after)] if held_out else None
            for name, held_out in (("agent_error", new_held_out), ("old_error", old_held_out))
        }
        self._note(aligned={**errors, "ridge": ridge, **quality.to_json()})

    def judge(self, episodes: int, device: str) -> None:
        """Let the agent play with the old encoder and with the new one, the same episodes."""
        if "judged" in self.notes:
            return
        returns: list[dict[str, Any]] = []
        if episodes and self.is_better:
            for encoder in (self.run / "encoder", self.folder / "encoder"):
                played = _play(self.run, encoder, episodes, device)
                returns.append({"mean": played.mean, "standard_error": played.standard_error, "returns": list(played.returns)})
        self._note(judged=returns)

    @property
    def is_better(self) -> bool:
        """Whether the new encoder shows held-out frames of the agent with less error than the old one."""
        before, after = self.notes["aligned"]["agent_error"]
        return after < before

    def swap(self) -> None:
        """Put the new encoder in the place of the old one, where it is better."""
        if self.is_done:
            return
        if self.is_better:
            swap_encoder(self.run, self.folder / "encoder")
        self._note(swapped=self.is_better)

    def told(self) -> str:
        """The round in a few sentences."""
        row = self.row(self.notes)
        assert row is not None
        before, after = row["agent_error"]
        text = (
            f"Squared error of a pixel on held-out frames of the agent: {before:.5f} before, {after:.5f} now. New latents tell "
            f"the old ones with R² {row['r2_median'][1]:.3f} (median), {row['r2_worst'][1]:.3f} (worst); without the alignment "
            f"it would be {row['r2_median'][0]:.3f}, {row['r2_worst'][0]:.3f}."
        )
        if not row["swapped"]:
            return f"{text}\nThe new encoder is no better there, and the agent keeps the old one."
        if row["returns"] is None:
            return text
        return f"{text}\nMean return with the old encoder {row['returns'][0]:.1f}, with the new one {row['returns'][1]:.1f}."

    @staticmethod
    def row(notes: dict[str, Any]) -> dict[str, Any] | None:
        """What the table has of a round; None of one that is not finished. Pairs are before and after."""
        if "swapped" not in notes:
            return None
        aligned, judged = notes["aligned"], notes["judged"]
        return {
            "step": notes["began"]["step"], "frames_added": notes["recorded"]["frames"], "agent_error": aligned["agent_error"],
            "old_error": aligned["old_error"], "r2_worst": [aligned["worst_before"], aligned["worst_after"]],
            "r2_median": [aligned["median_before"], aligned["median_after"]],
            "returns": [part["mean"] for part in judged] or None,
            "standard_errors": [part["standard_error"] for part in judged] or None, "swapped": notes["swapped"],
        }  # fmt: skip

    def _recorded(self) -> list[str]:
        """Names of the agent's recordings so far, in order."""
        return sorted(f.name for f in self._frames.glob("[!.]*.npy") if not f.is_symlink())

    def _count(self, names: set[str], slug: str) -> int:
        """Frames in files of these names that `record` counts as of its environment."""
        datasets = [d for d in get_datasets(self._frames) if Path(str(d.filename)).name in names]
        return sum(len(d) for d in datasets if Path(str(d.filename)).stem.rpartition("_")[0] == slug)

    def _last_tenth(self, files: list[str]) -> list[str]:
        """The last recordings, with a tenth of the frames at least; one is left to train on."""
        lengths = {Path(str(d.filename)).name: len(d) for d in get_datasets(self._frames)}
        wanted = _HELD_OUT_SHARE * sum(lengths[name] for name in files)
        count = next(n for n in range(1, len(files) + 1) if sum(lengths[f] for f in files[-n:]) >= wanted)
        return files[-min(count, len(files) - 1) :]

    def _split(self) -> tuple[list[Path], list[Path], list[Path], list[Path]]:
        """Old files to train on and held out, and the agent's, of this and all earlier rounds."""
        new: list[Path] = []
        held_out: list[Path] = []
        for file in sorted(self.folder.parent.glob("round_*/round.json")):
            if file.parent.name <= self.folder.name and "recorded" in (notes := json.loads(file.read_text())):
                for name in notes["recorded"]["files"]:
                    (held_out if name in notes["recorded"]["held_out"] else new).append(self._frames / name)
        return *self.base.split(), new, held_out


def _datasets(files: list[Path]) -> list[Any]:
    """Arrays of files, which may lie in several folders."""
    by_folder = {folder: get_datasets(folder) for folder in {f.parent.resolve() for f in files}}
    arrays = {str(d.filename): d for datasets in by_folder.values() for d in datasets}
    return [arrays[str(f.resolve())] for f in files]


def _play(run: Path, encoder: Path, episodes: int, device: str) -> Evaluation:
    """The last agent, on latents of any encoder."""
    config = dataclasses.replace(run_config(run), encoder=encoder, device=device)
    venv = evaluation_env(config, episodes, _SEED)
    try:
        restore_statistics(run, "last", venv)
        with torch_threads(1):
            return play(load_agent(run, "last", device="cpu"), venv, episodes, deterministic=config.deterministic)
    finally:
        venv.close()
