"""An agent shown step by step: it plays as in an evaluation, and what is drawn is what it saw and did."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

import torch

from agents.evaluation import evaluate_agent
from agents.play.show import LatentPicture, Show
from agents.store import load_agent
from agents.training import train_agent
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.util.errors import InputError
from tests.support.side_env import tiny


def quiet(text: str) -> None:
    """Where messages go that a test does not read."""


def train(folder: Path, encoder: Path | None, **settings: Any) -> Path:
    return train_agent(tiny(encoder=encoder, out=folder, **{"steps": 32, "eval_every": 0, **settings}), say=quiet).run


@pytest.fixture(scope="module")
def run(encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("watched") / "run", encoder_folder)


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
        {},
        {"history": 3},
        {"with_statistics": True},
        {"env_kwargs": {"kind": "dict"}},
        {"env_kwargs": {"kind": "dict"}, "flatten": True, "history": 2},
        {"normalize_observation": "off"},
    ],
)
def test_the_newest_latent_is_what_is_drawn_and_decoded(
    encoder_folder: Path, tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    from latent_obs.encoder.folder import read_encoder_folder, write_encoder_folder
    from latent_obs.encoder.statistics import LatentStatistics

    plain, folder = read_encoder_folder(encoder_folder), encoder_folder
    statistics = None
    settings = dict(settings)
    if settings.pop("with_statistics", False):
        statistics = LatentStatistics.from_latents(np.random.default_rng(0).normal(0.4, 2.0, (500, 6)))
        folder = write_encoder_folder(
            tmp_path / "with",
            architecture=plain.architecture,
            contract=plain.contract,
            encoder=plain.encoder,
            selfcheck=plain.selfcheck,
            decoder=plain.decoder(),
            statistics=statistics,
        )
    run = train(tmp_path / "run", folder, **settings)
    encoder = FrozenEncoder.load(encoder_folder, device="cpu")
    drawn: list[dict[str, Any]] = []
    monkeypatch.setattr("agents.play.show.compose", lambda game, **parts: drawn.append({"game": game, **parts}))
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
            elif settings.get("normalize_observation") != "off":
                seen = observation["pov"] if isinstance(observation, dict) else observation
                size = 6 * settings.get("history", 1)
                expected = seen[0, size - 6 : size] / 3
            else:
                expected = latent * (picture.values[0] / latent[0])
                assert np.abs(picture.values).max() <= 1
            np.testing.assert_allclose(picture.values, expected, atol=1e-3)


def test_an_encoder_without_a_decoder_leaves_the_reconstruction_out(encoder_folder: Path, tmp_path: Path):
    from latent_obs.encoder.folder import read_encoder_folder, write_encoder_folder

    plain = read_encoder_folder(encoder_folder)
    folder = write_encoder_folder(
        tmp_path / "bare",
        architecture=plain.architecture,
        contract=plain.contract,
        encoder=plain.encoder,
        selfcheck=plain.selfcheck,
    )
    with contextlib.closing(Show(train(tmp_path / "run", folder), device="cpu")) as show:
        assert show._seen(show._latent()) == (None, "")


def test_principal_components_are_put_together_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from latent_obs.encoder.pca import fit_pca, read_pca, save_pca
    from latent_obs.pixels import PixelContract
    from tests.support.tiny import IMG_SHAPE, random_frames

    frames = random_frames(300)
    file = save_pca(tmp_path / "pca.safetensors", fit_pca(frames, 16, PixelContract(*IMG_SHAPE)))
    run = train(tmp_path / "run", None, observation="pca-latent", pca=file)
    drawn: list[Any] = []
    monkeypatch.setattr("agents.play.show.compose", lambda game, seen, **_: drawn.append((game, seen)))
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

    from tests.support.tiny import random_frames, tiny_cvae
    from vae_training.training.export import export_encoder

    copied = Path(shutil.copytree(run, tmp_path / "copied"))
    shutil.rmtree(copied / "encoder")
    export_encoder(copied / "encoder", tiny_cvae(seed=5), random_frames(6), provenance={})
    for look in (lambda: evaluate_agent(copied, episodes=1, device="cpu"), lambda: Show(copied, device="cpu")):
        with pytest.raises(InputError, match="was trained with an encoder"):
            look()
