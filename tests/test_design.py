"""The rules of the house: which package may import which, what starts without torch, and that nothing unpickles."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import latent_obs
from latent_obs import errors
from latent_obs.errors import LatentObsError, MissingExtraError, require

ROOT = Path(latent_obs.__file__).parents[1]
PACKAGES = ("latent_obs", "vae_training", "agents")
#: The rooms that each package may enter, itself apart.
MAY_IMPORT = {"latent_obs": set[str](), "vae_training": {"latent_obs"}, "agents": {"latent_obs"}}
ROOMS = {*PACKAGES, "latent_obs_cli", "tests", "benchmarks"}


def files_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports_of(file: Path, *, at_import_only: bool = False) -> set[str]:
    """Full names of the modules that a file imports, those inside functions too, and those named to `require`."""
    found: set[str] = set()
    package = ".".join(file.relative_to(ROOT).with_suffix("").parts[:-1])

    def visit(node: ast.AST) -> None:
        if at_import_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            return
        if at_import_only and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                visit(child)
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            found.add(".".join(filter(None, [base, node.module])))
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func).split(".")[-1]
            if name in ("require", "import_module", "__import__", "importorskip") and node.args:
                first = node.args[0]
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    found.add(first.value)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(file.read_text()))
    return found


def top(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def test_the_packages_are_where_they_are_looked_for():
    assert all((ROOT / package / "__init__.py").exists() for package in PACKAGES)
    assert "torch" in imports_of(ROOT / "latent_obs" / "frozen.py")
    assert "latent_obs.folder" in imports_of(ROOT / "vae_training" / "export.py")
    assert "vizdoom.gymnasium_wrapper" in imports_of(ROOT / "latent_obs" / "environments.py")


@pytest.mark.parametrize("package", PACKAGES)
def test_who_may_import_whom(package: str):
    forbidden = ROOMS - {package} - MAY_IMPORT[package]
    for file in files_of(package):
        assert not top(imports_of(file)) & forbidden, file


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_unpickles(package: str):
    unpicklers = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for file in files_of(package):
        assert not top(imports_of(file)) & unpicklers, file
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in ("torch.load", "torch.save", "eval", "exec"), file
                for keyword in node.keywords:
                    if keyword.arg == "allow_pickle":
                        assert ast.unparse(keyword.value) == "False", file


@pytest.mark.parametrize(
    ("module", "about_it"),
    [("stable_baselines3", {"sb3.py", "sb3_bridge.py", "process_vec_env.py"}), ("sb3_contrib", set()), ("ray", set())],
)
def test_optional_packages_stay_in_the_files_that_are_about_them(module: str, about_it: set[str]):
    # Elsewhere within functions only, for those who have asked for it.
    users = {file.name for file in files_of("latent_obs") if module in top(imports_of(file, at_import_only=True))}
    assert users == about_it


def test_minerl_is_looked_for_in_one_file_only():
    users = [file for file in files_of("latent_obs") if "minerl" in top(imports_of(file))]
    assert len(users) <= 1, users


@pytest.mark.parametrize("package", PACKAGES)
def test_optional_packages_are_imported_late(package: str):
    optional = {"vizdoom", "av", "matplotlib", "tensorboard", "huggingface_hub", "minerl", "ray", "rich", "skimage", "sklearn"}
    for file in files_of(package):
        assert not top(imports_of(file, at_import_only=True)) & optional, file


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


LIGHT = [
    "", ".reader", ".pixels", ".environments", ".last_frame", ".errors", ".features", ".faults", ".old_gym", ".actions",
    ".env_worker", ".main_script", ".small_frames",
    ".minerl_game.make", ".minerl_game.env", ".minerl_game.installation",
]  # fmt: skip


def test_what_worker_processes_need_starts_without_torch():
    modules = [f"latent_obs{name}" for name in LIGHT]
    code = f"import importlib, sys\nfor m in {modules!r}:\n    importlib.import_module(m)\n"
    code += "assert 'torch' not in sys.modules, 'torch'\nassert 'stable_baselines3' not in sys.modules\n"
    code += "assert not {'gym', 'minerl', 'scipy'} & sys.modules.keys()\n"
    code += "import latent_obs\nlatent_obs.PixelContract, latent_obs.ContractObservation, latent_obs.make_pixel_env\n"
    code += "assert 'torch' not in sys.modules, 'torch, by name'\n"
    code += "latent_obs.FrozenEncoder\nassert 'torch' in sys.modules\n"
    code += "assert 'stable_baselines3' not in sys.modules\n"
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there():
    names = latent_obs.__all__
    assert names == sorted(names, key=lambda name: (not name.isupper(), name.islower(), name)), "as the linter wants them"
    assert set(names) == set(latent_obs._HOMES)
    for name in latent_obs.__all__:
        if name != "VecLatentObservation":
            assert getattr(latent_obs, name).__module__ == f"latent_obs.{latent_obs._HOMES[name]}"
    with pytest.raises(AttributeError, match="Latents"):
        latent_obs.Latents  # pyright: ignore[reportAttributeAccessIssue]  # noqa: B018


def test_a_missing_package_names_its_extra():
    with pytest.raises(MissingExtraError, match=r"'no_such_package'.*play.*--extra games.*latent-obs\[games\]"):
        require("no_such_package.inner", extra="games", purpose="play")
    assert require("json", extra="games", purpose="play").dumps(1) == "1"


def test_an_installed_package_that_is_broken_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "broken_package.py").write_text("import something_else_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="something_else") as error:
        require("broken_package", extra="games", purpose="play")
    assert not isinstance(error.value, MissingExtraError)


def load_from_hub() -> None:
    latent_obs.FrozenEncoder.load("somebody/encoder", device="cpu")


@pytest.mark.parametrize(
    ("modules", "use", "error", "extra"),
    [
        (["stable_baselines3"], lambda: importlib.import_module("latent_obs.sb3"), MissingExtraError, "agents"),
        (["stable_baselines3"], lambda: latent_obs.ProcessVecEnv, MissingExtraError, "agents"),
        (
            ["vizdoom", "vizdoom.gymnasium_wrapper"],
            lambda: latent_obs.make_pixel_env("VizdoomBasic-v1"),
            MissingExtraError,
            "vizdoom",
        ),
        (["huggingface_hub"], load_from_hub, errors.EncoderFolderError, "hub"),
    ],
)
def test_each_optional_package_names_its_extra(
    modules: list[str],
    use: Callable[[], object],
    error: type[Exception],
    extra: str,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.delitem(sys.modules, "latent_obs.sb3", raising=False)
    monkeypatch.delitem(sys.modules, "latent_obs.process_vec_env", raising=False)
    monkeypatch.delitem(vars(latent_obs), "ProcessVecEnv", raising=False)
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(error, match=rf"'{modules[0]}' is needed to.*--extra {extra} .*latent-obs\[{extra}\]"):
        use()


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.InputError, ValueError),
        (errors.EncoderFolderError, ValueError),
        (errors.DeviceError, RuntimeError),
        (errors.MissingExtraError, ImportError),
        (errors.TrainingDivergedError, ArithmeticError),
    ],
)
def test_errors_are_also_the_builtin_that_one_expects(error: type[Exception], builtin: type[Exception]):
    assert issubclass(error, LatentObsError)
    assert issubclass(error, builtin)
