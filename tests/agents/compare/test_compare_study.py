"""Study files: what they may hold, which setting counts, and mistakes named by the table at fault."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("stable_baselines3")

from agents import AgentConfig
from agents.compare import Study, Task, load_study
from agents.compare.runs import check_how, check_same, plan_runs
from agents.compare.study import study_from
from latent_obs.util.atomic import write_json
from latent_obs.util.errors import InputError

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


def test_the_more_specific_setting_counts(whole: Study, tmp_path: Path):
    pixels, latent, variant = (config_of(whole, "side", arm) for arm in whole.arms)
    assert (pixels.ent_coef, latent.ent_coef, variant.ent_coef) == (0.03, 0.02, 0.02)
    assert (pixels.gamma, latent.gamma, variant.gamma) == (0.5, 0.5, 0.9), "arm_settings over those of a task"
    assert (latent.history, variant.history, config_of(whole, "other", "latent, 4 frames").history) == (1, 4, 2)
    assert [config.observation for config in (pixels, latent, variant)] == ["pixels", "latent", "latent"]
    assert config_of(whole, "other", "pixels").ent_coef == 0.01
    assert (latent.frame_skip, latent.net_arch, latent.seed, latent.env) == (4, (32, 32), 3, "Side-v0")
    assert latent.encoder == tmp_path / "enc", "paths are relative to the file"
    assert config_of(whole, "other", "latent, 4 frames").encoder == tmp_path / "other_enc"
    assert (latent.steps, config_of(whole, "other", "latent").steps) == (2_000, 500)
    assert (latent.eval_every, config_of(whole, "other", "latent").eval_every) == (200, 50)
    assert whole.tasks["side"].reference == 8.0


def test_arms_on_pixels_beside_those_of_rllib(encoder_folder: Path):
    settings: dict[str, Any] = {"engine": "rllib", "runners": 2, "address": "auto"}
    task = Task("Side-v0", encoder=encoder_folder)
    study = Study(
        {"t": task}, ("pixels", "latent"), (0,), settings=settings, arm_settings={"pixels": {"engine": "sb3"}}
    )
    latent, pixels = config_of(study, "t", "latent"), config_of(study, "t", "pixels")
    assert (latent.engine, latent.runners, latent.address) == ("rllib", 2, "auto")
    assert (pixels.engine, pixels.runners, pixels.address) == ("sb3", None, None)
    with pytest.raises(InputError, match="RLlib"):
        check_how(study, engine="ray")
    check_how(study)
    with pytest.raises(InputError, match="runners"):
        config_of(Study({"t": task}, ("latent",), (0,), settings={"runners": 2}), "t", "latent")


def test_arms_get_the_files_that_they_need(tmp_path: Path, encoder_folder: Path):
    task = Task("Side-v0", encoder=encoder_folder, pca=tmp_path / "p.safetensors")
    study = Study({"t": task}, settings={"eval_every": 30})
    files = {arm: (config_of(study, "t", arm).encoder, config_of(study, "t", arm).pca) for arm in study.arms}
    assert files == {
        "pixels": (None, None),  # the encoder's frames of 16x16 are too small for a CNN
        "latent": (encoder_folder, None),
        "random-latent": (encoder_folder, None),
        "pca-latent": (None, task.pca),
    }
    assert config_of(study, "t", "latent").eval_every == 30
    bare = Study({"side": Task("Side-v0")})
    assert config_of(bare, "side", "random-latent").encoder is None
    for arm, missing in (("latent", "encoder"), ("pca-latent", "pca")):
        with pytest.raises(InputError, match=rf"'side'.*{arm}.*{missing}"):
            config_of(bare, "side", arm)


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


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("arms = [", "arms = ", "TOML"),
        ("[tasks.side]", "[tasks.side]\nenvironment = 1", r"tasks\.side: 'environment'"),
        ('env = "Side-v0"\n', "", r"tasks\.side needs env"),
        ("seeds = [3, 5]", "seed = [3, 5]", "'seed'.*seeds"),
        ("seeds = [3, 5]", "seeds = [3, 3]", "seeds"),
        ("seeds = [3, 5]", "seeds = 3", "seeds"),
        ("steps = 500", 'steps = "500"', r"tasks\.other: steps"),
        ('"pixels", "latent",', '"pixel", "latent",', "arms: 'pixel'"),
        ('observation = "latent"', 'observation = "eyes"', "'eyes'"),
        ("frame_skip = 4", "frameskip = 4", "settings: 'frameskip'.*frame_skip"),
        ("frame_skip = 4", 'observation = "pixels"', "settings: observation"),
        ("history = 2", "steps = 2", r"tasks\.other\.arms\.latent, 4 frames: steps"),
        ("[tasks.side.arms.pixels]", "[tasks.side.arms.pixel]", r"tasks\.side\.arms .*'pixel'"),
        ("[tasks.side]", "[tasks]\nmore = 3\n[tasks.side]", r"tasks\.more"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path: Path, old: str, new: str, named: str):
    assert old in WHOLE
    with pytest.raises(InputError, match=rf"study\.toml.*{named}"):
        load_study(written(tmp_path, WHOLE.replace(old, new, 1)))


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"gamma": 3.0}, "gamma"), ({"envs": "8"}, "envs.*'8'"), ({"eval_every": 0}, "eval_every must")],
)
def test_settings_that_are_not_allowed_are_named_with_task_and_arm(
    encoder_folder: Path, settings: dict[str, Any], named: str
):
    with pytest.raises(InputError, match=rf"'side'.*'latent'.*{named}"):
        Study({"side": Task("Side-v0", encoder=encoder_folder)}, ("latent",), settings=settings)


@pytest.mark.parametrize(
    ("top", "table", "named"),
    [
        ("arms = [1]", "", "arms"),
        ("arms = 'pixels'", "", "arms"),
        ("arms = [['pixels']]", "", "arms"),
        ("seeds = [1.5]", "", "seeds"),
        ("steps = 1e5", "", "steps"),
        ("steps = 99999999999999999999", "", "steps"),
        ("episodes = true", "", "episodes"),
        ("tasks = 5", "", "tasks"),
        ("[settings]\nlearning_rate = 'fast'", "", "learning_rate"),
        ("[settings]\nnet_arch = ['x']", "", "net_arch"),
        ("[settings]\nworkers = 'x'", "", "workers"),
        ("[settings]\ndeterministic = 1", "", "deterministic"),
        ("[settings]\nenv_kwargs = [1]", "", "env_kwargs"),
        ("[record]\nframe = 1", "", None),  # those of another stage are checked by it
        ("motion = 5", "", "motion"),
        ("arms = ['latent']\n[motion]\nlatent = 8", "", "motion.*observation"),
        ("[motion]\nother = 8", "", "motion.*other"),
        ("", "env = 5", "tasks.side: env"),
        ("", "encoder = 5", "tasks.side: encoder"),
        ("", "reference = 'x'", "tasks.side: reference"),
        ("", "reference = nan", "tasks.side: reference"),
        ("", "steps = '5'", "tasks.side: steps"),
        ("", "bogus = 1", "tasks.side: 'bogus'"),
        ("", "[tasks.side.settings]\nhistory = 2.0", "history"),
        ("", "[tasks.side.arms.pixels]\nent_coef = [0.1]", "ent_coef"),
    ],
)
def test_a_value_of_another_type_is_named(tmp_path: Path, top: str, table: str, named: str | None):
    arms = "" if "arms" in top else "arms = ['pixels']"
    env = "" if "env =" in table else "env = 'Side-v0'"
    side = "" if "tasks" in top else f"[tasks.side]\n{env}\n{table}"
    file = written(tmp_path, f"{arms}\n{top}\n{side}")
    if named is None:
        load_study(file)
        return
    with pytest.raises(InputError, match=rf"study\.toml.*{named}"):
        load_study(file)


def test_a_file_and_names_that_cannot_be(tmp_path: Path):
    with pytest.raises(InputError, match=r"no\.toml"):
        load_study(tmp_path / "no.toml")
    with pytest.raises(InputError, match="tasks"):
        Study({"a b": Task("x"), "a-b": Task("x")})


def test_a_run_that_is_there_with_other_settings_is_refused(encoder_folder: Path, tmp_path: Path):
    def planned(**settings: Any) -> Any:
        study = Study({"t": Task("Side-v0", encoder=encoder_folder)}, ("latent",), (0,), 64, settings=settings)
        return plan_runs(study, tmp_path)[1]

    run = planned(history=2)
    check_same(run)  # nothing is there
    write_json(run.file(".json"), {"settings": run.signature()})
    check_same(run)
    check_same(planned(history=2, device="cpu"))
    with pytest.raises(InputError, match=r"t, latent, seed 0.*history was 2, is now 3; n_steps was 128, is now 64"):
        check_same(planned(history=3, n_steps=64))
    before = run.signature()
    del before["precision"], before["gamma"]  # a setting that came later was at its default
    write_json(run.file(".json"), {"settings": before | {"encoder": "0" * 64}})
    with pytest.raises(InputError, match=r"encoder was '0{64}', is now '[0-9a-f]{64}'") as caught:
        check_same(run)
    assert "precision" not in str(caught.value)
    run.file(".json").write_text("{")
    with pytest.raises(InputError, match=r"seed_0\.json"):
        check_same(run)


def test_settings_of_an_earlier_version_have_their_new_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (run,) = plan_runs(Study({"t": Task("Side-v0")}, ("random-latent",), (0,), 64), tmp_path)[1:]
    settings = run.signature()
    monkeypatch.setattr(AgentConfig, "RENAMED", {"discount": "gamma"})
    monkeypatch.setattr(AgentConfig, "REMOVED", {"glasses": (0, "leave it out")})
    study = study_from({"settings": {"discount": 0.7}, "tasks": {"t": {"env": "Side-v0"}}}, tmp_path)
    assert config_of(study, "t", "pixels").gamma == 0.7
    before = settings | {"discount": settings["gamma"], "glasses": 0}
    del before["gamma"]
    write_json(run.file(".json"), {"settings": before})
    check_same(run)
    for changed in ({"glasses": 1}, {"discount": 0.1}):
        write_json(run.file(".json"), {"settings": before | changed})
        with pytest.raises(InputError, match=r"glasses|gamma"):
            check_same(run)
