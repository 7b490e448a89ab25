"""Two processes on one model, started by torchrun: the run of one process with the doubled batch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from latent_obs.util.errors import InputError
from tests.support.tiny import picture
from tests.support.training_runs import (
    EVERYTHING,
    PREAMBLE,
    config_for,
    log_every_step,
    module_frames,
    run,
    torchrun,
)
from vae_training.data.loader import BatchParts
from vae_training.training.config import TrainConfig
from vae_training.training.logs import read_log

SCRIPT = f"""{PREAMBLE}
from latent_obs.util.errors import LatentObsError
settings, resume, die_at = json.loads(sys.argv[1])
t._SAVE_EVERY_SECONDS = 0.0
step = t.Trainer.step
def watched(self, batch):
    global loss
    loss = self.loss
    if os.environ["RANK"] == "1" and self.progress.step == die_at:
        os._exit(7)
    return step(self, batch)
t.Trainer.step = watched
try:
    t.train(TrainConfig.from_json(settings), resume=resume, progress_bar=False)
except LatentObsError as error:
    print(type(error).__name__, error, flush=True)
    os._exit(2)
state = torch.cat([v.detach().double().flatten() for v in loss.state_dict().values()])
digest = hashlib.sha256(state.numpy().tobytes()).hexdigest()
Path(settings["out"]).with_name(f"state_{{os.environ['RANK']}}.txt").write_text(digest)
sys.stdout.flush()
os._exit(0)  # gloo's threads at times abort an interpreter that ends by itself
"""
PAIR: dict[str, Any] = {"epochs": 2, "batch_size": 8, "super_batch": 67, "scale_losses": True}


@pytest.fixture(scope="module")
def many_frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many") / "frames"
    folder.mkdir()
    for number in range(3):
        np.save(folder / f"{number}.npy", np.stack([picture(number, step, 16, 16) for step in range(34)]))
    return folder


def train_pair(config: TrainConfig, *, resume: bool = False, die_at: int = -1) -> Any:
    script = config.out.with_name("script.py")
    script.write_text(SCRIPT)
    return torchrun(script, json.dumps([config.to_json(), resume, die_at]))


def states(out: Path) -> list[str]:
    return [out.with_name(f"state_{rank}.txt").read_text() for rank in (0, 1)]


def curve(out: Path, name: str) -> list[float]:
    return [row[name] for row in read_log(out) if name in row]


@pytest.fixture(scope="module")
def pair(many_frames: Path) -> tuple[Path, str]:
    """Two epochs of 67 frames in batches of 2 x 8; of the last one of an epoch they get two and one."""
    out = many_frames.parent / "pair"
    done = train_pair(config_for(many_frames, out, **PAIR))
    assert done.returncode == 0, done.stderr
    return out, done.stdout


@pytest.mark.integration
@pytest.mark.usefixtures("log_every_step")
def test_two_processes_are_one_with_the_doubled_batch(many_frames: Path, pair: tuple[Path, str], tmp_path: Path):
    single = tmp_path / "single"
    run(config_for(many_frames, single, **{**PAIR, "batch_size": 16}))
    for name in ("loss/total", "loss/reconstruction", "loss/kl_nats", "schedule/beta", "held_out/loss_at_fixed_beta"):
        np.testing.assert_allclose(curve(pair[0], name), curve(single, name), rtol=1e-4, err_msg=name)
    assert len(curve(single, "loss/total")) == 10
    one, two = (load_file(out / "checkpoints" / "latest.safetensors") for out in (single, pair[0]))
    assert one.keys() == two.keys()
    for name in one:
        if not name.startswith("optimizer"):
            np.testing.assert_allclose(one[name].numpy(), two[name].numpy(), atol=2e-5, rtol=0, err_msg=name)
    assert (one["rng/cpu"] == two["rng/cpu"]).all()
    assert len(set(states(pair[0]))) == 1
    assert pair[1].count("Training on 2 files") == 1  # process 0 alone prints
    assert pair[1].count("Encoder:") == 1
    with pytest.raises(InputError, match="process"):
        run(TrainConfig(out=pair[0], epochs=9), resume=True)


@pytest.mark.integration
def test_a_process_that_dies_ends_the_run_which_resumes_the_same(
    many_frames: Path, pair: tuple[Path, str], tmp_path: Path
):
    config = config_for(many_frames, tmp_path / "pair", **PAIR)
    died = train_pair(config, die_at=7)
    assert died.returncode != 0
    assert "RankLostError" in died.stdout
    assert "--resume" in died.stdout
    script = str(config.out.with_name("script.py"))
    assert not [p for p in psutil.process_iter(["cmdline"]) if script in (p.info["cmdline"] or [])]
    assert train_pair(config, resume=True).returncode == 0
    one, two = (load_file(out / "checkpoints" / "latest.safetensors") for out in (pair[0], config.out))
    assert all((one[name] == two[name]).all() for name in one)


@pytest.mark.integration
def test_a_mistake_is_reported_once(many_frames: Path, tmp_path: Path):
    done = train_pair(config_for(many_frames, tmp_path / "out", batch_size=8, super_batch=10_000))
    assert done.returncode != 0
    assert done.stdout.count("InputError super_batch") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.integration
@pytest.mark.usefixtures("log_every_step")
def test_two_processes_train_a_loss_with_everything(module_frames: Path, tmp_path: Path):
    more = {**EVERYTHING, "super_batch": 41, "epochs": 1}
    config = config_for(module_frames, tmp_path / "pair", batch_size=8, **more)
    done = train_pair(config)
    assert done.returncode == 0, done.stderr
    assert len(set(states(config.out))) == 1
    rows = [row for row in read_log(config.out) if "loss/total" in row]
    assert len(rows) == 3
    run(config_for(module_frames, tmp_path / "single", batch_size=16, **more))
    first = read_log(tmp_path / "single")[0]
    for name in ("reconstruction", "kl_nats"):
        assert rows[0][f"loss/{name}"] == pytest.approx(first[f"loss/{name}"], rel=1e-4), name


@given(size=st.integers(1, 60), batch=st.integers(1, 20), ranks=st.integers(1, 5))
@settings(max_examples=80, deadline=None)
def test_shards_make_up_each_batch(size: int, batch: int, ranks: int):
    parts = [BatchParts(size, batch, rank, ranks) for rank in range(ranks)]
    assert {len(p) for p in parts} == {-(-size // batch)}
    for number in range(len(parts[0])):
        first, total = number * batch, min(batch, size - number * batch)
        seen: list[int] = []
        for part in parts:
            share, places = part.shares[number], part.places[part.rows[number]].tolist()
            assert share.total == total
            assert places == list(range(first + share.start, first + share.start + share.count))
            assert share.weight == pytest.approx((share.count if share.weight else 0) * ranks / total)
            seen += places if share.weight else []
        assert seen == list(range(first, first + total))
        assert sum(p.shares[number].weight for p in parts) == pytest.approx(ranks)
