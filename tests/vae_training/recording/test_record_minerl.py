"""Recording MineRL's environments: what they tell beside the picture, by the names that its dataset uses."""

from pathlib import Path

import numpy as np
import pytest

from tests.support.minerl_games import SPECS  # skips this module where minerl is not installed
from tests.support.minerl_server import StandInGame
from vae_training.data.rows import load_rows, targets_of, transitions_of
from vae_training.recording.recorder import RecordConfig, record


@pytest.mark.parametrize(
    ("env_id", "some", "actions"),
    [
        ("MineRLNavigateDense-v0", {"observation$compass$angle": (), "observation$inventory$dirt": ()}, ()),
        (
            "MineRLObtainDiamond-v0",
            {"observation$inventory$log": (), "observation$equipped_items$mainhand$damage": ()},
            (),
        ),
        ("MineRLObtainDiamondVectorObf-v0", {"observation$vector": (64,)}, (64,)),
    ],
)
def test_numbers_of_minerl(tmp_path: Path, env_id: str, some: dict[str, tuple[int, ...]], actions: tuple[int, ...]):
    assert env_id in SPECS
    with StandInGame() as game:
        record(RecordConfig(env_id, tmp_path, frames=12, env_kwargs={"port": game.port}))
    (file,) = tmp_path.glob("*.npy")
    rows = load_rows(file)
    assert some.items() <= {name: column.shape[1:] for name, column in rows.items()}.items()
    assert not any("pov" in name for name in rows)
    assert (rows["action"].shape, rows["first"].sum()) == ((12, *actions), 1)
    assert transitions_of(rows).tolist() == list(range(11))
    assert all(np.isfinite(column).all() for column in targets_of(rows).values())
