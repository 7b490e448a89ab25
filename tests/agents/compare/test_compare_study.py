"""Study files: what they may hold, which setting counts, and mistakes named in one line."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("stable_baselines3")

from agents import AgentConfig
from agents.compare import Study, Task, load_study
from agents.compare.runs import check_same, plan_runs
from agents.compare.study import study_from
from latent_obs.util.atomic import write_json
from latent_obs.util.errors import InputError
from latent_obs_cli.compare import study_of

WHOLE = """
arms = ["pixels", "latent", "latent, 4 frames"]
seeds = [3, 5]
steps = 2_000
episodes = 7

[settings]
frame_skip = 4
ent_coef = 0.01
net_arch = [32, 32]

[arm_settings."latent, 4 frames"]
observation = "latent"
history = 4
gamma = 0.9

[tasks.side]
env = "Side-v0"
encoder = "enc"
reference = 8.0

[tasks.side.settings]
ent_coef = 0.02
gamma = 0.5

[tasks.side.arms.pixels]
ent_coef = 0.03

[tasks.other]
env = "Story-v0"
encoder = "enc"
steps = 500

[tasks.other.arms."latent, 4 frames"]
history = 2
encoder = "other_enc"
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "study.toml"
    file.write_text(text)
    return file


def linked(folder: Path, encoder_folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).symlink_to(encoder_folder)


@pytest.fixture
def whole(tmp_path: Path, encoder_folder: Path) -> Study:
    linked(tmp_path, encoder_folder, "enc", "other_enc")
    return load_study(written(tmp_path, WHOLE))


def config_of(study: Study, task: str, arm: str) -> AgentConfig:
    return study.config(task, arm, 3, Path("run"))


def test_the_more_particular_setting_counts(whole: Study, tmp_path: Path):
    pixels, latent, variant = (config_of(whole, "side", arm) for arm in whole.arms)
    assert (pixels.ent_coef, latent.ent_coef, variant.ent_coef) == (0.03, 0.02, 0.02)
    assert (pixels.gamma, latent.gamma, variant.gamma) == (0.5, 0.5, 0.9), (
        "what a variant is counts over what a task is"
    )
    assert (latent.history, variant.history, config_of(whole, "other", "latent, 4 frames").history) == (1, 4, 2)
    assert [config.observation for config in (pixels, latent, variant)] == ["pixels", "latent", "latent"]
    assert config_of(whole, "other", "pixels").ent_coef == 0.01
    assert latent.frame_skip == 4
    assert latent.net_arch == (32, 32)
    assert (latent.seed, latent.env) == (3, "Side-v0")
    assert latent.encoder == tmp_path / "enc", "paths count from the file"
    assert config_of(whole, "other", "latent, 4 frames").encoder == tmp_path / "other_enc"
    assert (latent.steps, config_of(whole, "other", "latent").steps) == (2_000, 500)
    assert (latent.eval_every, config_of(whole, "other", "latent").eval_every) == (200, 50)
    assert whole.tasks["side"].reference == 8.0


def test_a_pixel_agent_needs_no_encoder_and_an_own_evaluation_rate_counts(encoder_folder: Path):
    study = Study({"t": Task("Side-v0", encoder=encoder_folder)}, settings={"eval_every": 30})
    assert config_of(study, "t", "pixels").encoder is None, "this one eats 16x16, too small for a CNN"
    assert config_of(study, "t", "random-latent").encoder == encoder_folder
    assert config_of(study, "t", "latent").eval_every == 30


def test_principal_components_need_no_encoder(tmp_path: Path, encoder_folder: Path):
    study = Study({"t": Task("Side-v0", encoder=encoder_folder, pca=tmp_path / "p.safetensors")})
    config = config_of(study, "t", "pca-latent")
    assert (config.encoder, config.pca) == (None, tmp_path / "p.safetensors")
    assert config_of(study, "t", "latent").pca is None


def test_a_study_is_written_and_read(whole: Study, tmp_path: Path):
    again = study_from(json.loads(json.dumps(whole.to_json())), tmp_path / "elsewhere")
    assert again == whole


def test_runs_go_seed_by_seed(whole: Study, tmp_path: Path):
    runs = plan_runs(whole, tmp_path)
    assert [run.kind for run in runs[:3]] == ["random", "random", "train"]
    names = [(run.seed, run.task, run.arm) for run in runs[2:]]
    assert names == [(seed, task, arm) for seed in (3, 5) for task in ("side", "other") for arm in whole.arms]
    assert len({run.config.out for run in runs}) == len(runs)
    assert runs[4].config.out == tmp_path / "runs" / "side" / "latent-4-frames" / "seed_3"
    assert runs[4].file(".json") == tmp_path / "runs" / "side" / "latent-4-frames" / "seed_3.json"


def variant(old: str, new: str) -> str:
    assert old in WHOLE
    return WHOLE.replace(old, new, 1)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("arms = [", "no TOML"),
        (variant("[tasks.side]", "[tasks.side]\nenvironment = 1"), "tasks.side: unknown 'environment'"),
        (variant('env = "Side-v0"\n', ""), "tasks.side needs env"),
        (variant("seeds = [3, 5]", "seed = [3, 5]"), "did you mean seeds"),
        (variant("seeds = [3, 5]", "seeds = [3, 3]"), "seeds must differ"),
        (variant("seeds = [3, 5]", "seeds = [-1]"), "0 or more"),
        (variant("seeds = [3, 5]", "seeds = 3"), "seeds must be a list"),
        (variant("seeds = [3, 5]", "seeds = []"), "needs seeds"),
        (variant("episodes = 7", "episodes = 0"), "episodes of a study must be 1 or more"),
        (variant("steps = 500", 'steps = "500"'), "tasks.other.steps must be 1 or more"),
        (variant('"pixels", "latent",', '"pixel", "latent",'), "arm 'pixel': expected one of latent, random-latent"),
        (variant('observation = "latent"', 'observation = "eyes"'), "its observation is 'eyes'"),
        (variant('observation = "latent"\n', ""), "that has observation = one of them"),
        (variant("frame_skip = 4", "frameskip = 4"), "no setting 'frameskip' (did you mean frame_skip"),
        (variant("frame_skip = 4", 'env = "x"'), "settings: env cannot be set here"),
        (variant("frame_skip = 4", 'observation = "pixels"'), "observation cannot be set here"),
        (variant("history = 2", "steps = 2"), "steps cannot be set here"),
        (variant("[tasks.side.arms.pixels]", "[tasks.side.arms.pixel]"), "tasks.side.arms has ['pixel']"),
        (variant("[settings]", "[settings.more]\n[nothing]"), "unknown 'nothing'"),
        ("tasks = 3", "tasks must be a table"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path: Path, text: str, says: str):
    with pytest.raises(InputError) as caught:
        load_study(written(tmp_path, text))
    assert says in str(caught.value)
    assert "study.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"gamma": 3.0}, "task 'side', arm 'latent': gamma must be"),
        ({"envs": "8"}, "given as text: {'envs': '8'}"),
        ({"eval_every": 0}, "learning curves are made of evaluations"),
    ],
)
def test_settings_that_will_not_do_are_named_with_task_and_arm(
    encoder_folder: Path, settings: dict[str, Any], says: str
):
    study = Study({"side": Task("Side-v0", encoder=encoder_folder)}, settings=settings)
    with pytest.raises(InputError) as caught:
        config_of(study, "side", "latent")
    assert says in str(caught.value)


def test_an_arm_without_its_encoder_is_named():
    study = Study({"side": Task("Side-v0")})
    with pytest.raises(InputError, match="task 'side', arm 'latent': there is no encoder"):
        config_of(study, "side", "latent")
    with pytest.raises(InputError, match="arm 'pca-latent': there is no pca"):
        config_of(study, "side", "pca-latent")
    assert config_of(study, "side", "random-latent").encoder is None


def test_names_that_would_share_a_folder_are_refused():
    with pytest.raises(InputError, match="become folders"):
        Study({"a b": Task("x"), "a-b": Task("x")})


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(InputError, match="there is no study"):
        load_study(tmp_path / "no.toml")


def test_a_run_that_is_there_with_other_settings_is_refused(encoder_folder: Path, tmp_path: Path):
    def planned(**settings: Any) -> Any:
        study = Study({"t": Task("Side-v0", encoder=encoder_folder)}, ("latent",), (0,), 64, settings=settings)
        return plan_runs(study, tmp_path)[1]

    run = planned(history=2)
    check_same(run)  # nothing is there
    write_json(run.file(".json"), {"settings": run.signature()})
    check_same(run)
    check_same(planned(history=2, device="cpu"))
    with pytest.raises(InputError, match=r"t, latent, seed 0: .*history was 2, is now 3; n_steps was 128, is now 64"):
        check_same(planned(history=3, n_steps=64))
    with pytest.raises(InputError, match="history was 2, is now 1"):
        check_same(planned())
    before = run.signature()
    del before["precision"], before["gamma"]
    before["encoder"] = "0" * 64
    write_json(run.file(".json"), {"settings": before})
    with pytest.raises(InputError, match=r"encoder was 0000000000…, is now [0-9a-f]{10}…\. ") as caught:
        check_same(run)
    assert "precision" not in str(caught.value), "a setting that came later was at its default"
    run.file(".json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        check_same(run)


def test_settings_left_to_the_algorithm_are_compared_by_what_they_are(encoder_folder: Path, tmp_path: Path):
    study = Study({"t": Task("Side-v0", encoder=encoder_folder)}, ("pixels", "latent"), (0,), 64)
    signatures = [run.signature() for run in plan_runs(study, tmp_path)[1:]]
    assert all(isinstance(signature["learning_rate"], float) for signature in signatures)
    assert "encoder" not in signatures[0]
    assert len(signatures[1]["encoder"]) == 64


def test_one_environment_by_options():
    config = AgentConfig(env="here:Side-v0", encoder=Path("e"), steps=10, history=3, out=Path("anywhere"))
    study = study_of(config, Path("f"), ["pixels", "latent"], [4], 9)
    assert study.tasks == {"Side-v0": Task("here:Side-v0", encoder=Path("e"), frames=Path("f"))}
    assert (study.arms, study.seeds, study.steps, study.episodes) == (("pixels", "latent"), (4,), 10, 9)
    assert study.settings == {"history": 3}
    for wrong, instead in ((AgentConfig(seed=3), "--seeds"), (AgentConfig(observation="pixels"), "--arms")):
        with pytest.raises(InputError, match=instead):
            study_of(wrong, None, ["pixels"], [0], 1)
