"""Architecture rules: which package may import which, what starts without torch, and that nothing unpickles."""

import ast
import importlib
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import pytest

import latent_obs
from latent_obs.util import errors
from latent_obs.util.errors import LatentObsError, MissingExtraError, require

ROOT = Path(latent_obs.__file__).parents[1]
PACKAGES = ("latent_obs", "vae_training", "agents")
#: The packages that each may import, besides itself.
MAY_IMPORT = {"latent_obs": set[str](), "vae_training": {"latent_obs"}, "agents": {"latent_obs"}}
PLACES = {*PACKAGES, "latent_obs_cli", "tests", "benchmarks"}


def files_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports_of(file: Path, *, at_import_only: bool = False, names: bool = False) -> set[str]:
    """Full names of the modules that a file imports, those inside functions too, and those named to `require`.

    With `names`, each `from a import b` counts as `a.b` too, as `b` may be a module; imports for type checkers do not.
    """
    found: set[str] = set()
    package = ".".join(file.relative_to(ROOT).with_suffix("").parts[:-1])

    def visit(node: ast.AST) -> None:
        if at_import_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            return
        if (at_import_only or names) and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                visit(child)
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            found.add(".".join(filter(None, [base, node.module])))
            if names:
                found.update(f"{node.module}.{alias.name}" for alias in node.names)
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


def test_imports_are_found():
    assert all((ROOT / package / "__init__.py").exists() for package in PACKAGES)
    assert "torch" in imports_of(ROOT / "latent_obs" / "encoder" / "frozen.py")
    assert "latent_obs.encoder.folder" in imports_of(ROOT / "vae_training" / "training" / "export.py")
    assert "vizdoom.gymnasium_wrapper" in imports_of(ROOT / "latent_obs" / "envs" / "factory.py")


@pytest.mark.parametrize("package", PACKAGES)
def test_who_may_import_whom(package: str):
    forbidden = PLACES - {package} - MAY_IMPORT[package]
    for file in files_of(package):
        assert not top(imports_of(file)) & forbidden, file


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_unpickles(package: str):
    unpicklers = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for file in files_of(package):
        nodes = list(ast.walk(ast.parse(file.read_text())))
        if file.name == "minestudio.py":  # the one that has to: by a class of its own that builds plain values only
            used = {
                node.attr for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle"
            }
            assert (top(imports_of(file)) & unpicklers, used) == ({"pickle"}, {"Unpickler"})
        else:
            assert not top(imports_of(file)) & unpicklers, file
        for node in nodes:
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in ("torch.load", "torch.save", "eval", "exec"), file
                for keyword in node.keywords:
                    if keyword.arg == "allow_pickle":
                        assert ast.unparse(keyword.value) == "False", file


@pytest.mark.parametrize(
    ("module", "about_it"),
    [("stable_baselines3", {"sb3.py", "sb3_bridge.py"}), ("sb3_contrib", set()), ("ray", {"rllib.py"})],
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
    optional = {
        "vizdoom",
        "av",
        "matplotlib",
        "tensorboard",
        "huggingface_hub",
        "minerl",
        "ray",
        "rich",
        "skimage",
        "sklearn",
    }
    for file in files_of(package):
        own = {"ray"} if file.name == "rllib.py" else set()  # classes that inherit from RLlib's
        assert not top(imports_of(file, at_import_only=True)) & (optional - own), file


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


LIGHT = [
    "",
    ".pixels",
    ".actions",
    ".envs.faults",
    ".envs.old_gym",
    ".envs.factory",
    ".envs.workers",
    ".minerl.env",
    ".minerl.installation",
    ".util.device",
    ".util.errors",
    ".wrappers.features",
    ".wrappers.observation",
]


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


LAZY = ["latent_obs", "vae_training", "vae_training.report", "agents", "agents.compare"]


@pytest.mark.parametrize("package", LAZY)
def test_every_public_name_is_there(package: str):
    module = importlib.import_module(package)
    names: list[str] = vars(module)["__all__"]
    assert names
    assert set(names) <= set(dir(module)), "what a shell completes"
    for name in names:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError):
        module.Latentz  # noqa: B018


def modules_of(package: str) -> dict[str, Path]:
    return {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in files_of(package)}


@pytest.mark.parametrize("package", [*PACKAGES, "latent_obs_cli"])
def test_no_module_has_the_name_of_a_public_function(package: str):
    public = set(dir(importlib.import_module(package)))
    exported = {name for name in public if callable(getattr(importlib.import_module(package), name))}
    for name in modules_of(package):
        assert name.rpartition(".")[2] not in exported, name


@pytest.mark.parametrize("package", [*PACKAGES, "latent_obs_cli"])
def test_no_private_name_is_imported_from_another_module(package: str):
    for file in files_of(package):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                private = [alias.name for alias in node.names if alias.name.startswith("_")]
                assert not private or (node.module or "").split(".")[0] not in PLACES, (file, private)


def test_there_is_no_import_circle():
    files = {name: file for package in PLACES - {"tests", "benchmarks"} for name, file in modules_of(package).items()}
    graph = {name: (imports_of(file, names=True) & files.keys()) - {name} for name, file in files.items()}
    while graph:
        leaves = {name for name, needed in graph.items() if not needed}
        assert leaves, f"these import each other: {sorted(graph)}"
        graph = {name: needed - leaves for name, needed in graph.items() if name not in leaves}


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
        (
            ["stable_baselines3"],
            lambda: importlib.import_module("latent_obs.wrappers.sb3"),
            MissingExtraError,
            "agents",
        ),
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
    monkeypatch.delitem(sys.modules, "latent_obs.wrappers.sb3", raising=False)
    monkeypatch.delitem(sys.modules, "latent_obs.envs.sb3_bridge", raising=False)
    monkeypatch.delitem(vars(latent_obs), "ProcessVecEnv", raising=False)
    monkeypatch.delitem(gym.registry, "VizdoomBasic-v1", raising=False)  # registered by another test
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


def test_the_version_is_the_same_everywhere():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert (ROOT / "CHANGELOG.md").read_text().startswith(f"# Changelog\n\n## {version}\n")
