"""Workers without the main script, which may import torch: they do without, and still find what they need of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from latent_obs.envs.main_script import Maker, _is_of_unknown_name, withheld
from tests.support import ROOT

pytest.importorskip("stable_baselines3")

#: A script as users have them: it imports much at its top, and its environments are its own.
SCRIPT = """
import sys
from functools import partial
import gymnasium as gym
import numpy as np
import users_library  # as heavy as torch

class Colour:
    pass

class Mine(gym.Env):
    observation_space = action_space = gym.spaces.Discrete(2)
    colour = None
    def reset(self, *, seed=None, options=None):
        return 0, {}
    def imports(self, *modules):
        return [module in sys.modules for module in modules]
    def kind(self):
        return type(self.colour).__name__

gym.register("Mine-v0", entry_point=Mine)
MODULES = ("users_library", "torch")

def main():
    from latent_obs import ProcessVecEnv
    from latent_obs.envs.main_script import Maker, withheld

    venv = ProcessVecEnv([Mine] * 2, sys.argv[1])
    print(venv.env_method("imports", *MODULES))
    venv.set_attr("colour", Colour(), indices=0)  # by its name, which is in the script
    print(venv.env_method("kind"), venv.env_method("imports", *MODULES))
    venv.close()
    venv = ProcessVecEnv([lambda: gym.make("Mine-v0")], sys.argv[1])
    print(venv.env_method("imports", *MODULES), venv.reset())
    venv.close()
    with withheld():
        venv = gym.vector.AsyncVectorEnv([Maker(partial(gym.make, "Mine-v0"))], context=sys.argv[1])
    print(venv.call("imports", *MODULES), venv.reset()[0])
    venv.close()
    try:
        ProcessVecEnv([lambda: gym.make("Yours-v0")], sys.argv[1])
    except RuntimeError as error:
        print(str(error).splitlines()[0])
"""


def run(folder: Path, text: str, *words: str) -> list[str]:
    (folder / "users_script.py").write_text(text)
    (folder / "users_library.py").touch()
    path = os.pathsep.join(filter(None, [str(folder), str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, *(words or [str(folder / "users_script.py")]), "forkserver"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=True, env={**os.environ, "PYTHONPATH": path}
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize("words", [(), ("-m", "users_script")])
def test_a_worker_imports_the_script_only_for_what_is_in_it(tmp_path: Path, words: tuple[str, ...]):
    said = run(tmp_path, SCRIPT + "\n\nif __name__ == '__main__':\n    main()\n", *words)
    none, some = [False, False], [True, False]
    assert said[0] == str([none, none])
    assert said[1] == f"{['Colour', 'NoneType']} {[some, none]}"
    assert said[2] == f"{[some]} [0]"
    assert said[3] == f"{(some,)} [0]"
    assert "environment 0 raised NameNotFound" in said[4]


def test_a_script_that_asks_not_for_its_name_is_told_so_where_it_is_imported(tmp_path: Path):
    with pytest.raises(subprocess.CalledProcessError) as error:
        run(
            tmp_path,
            SCRIPT
            + "\nfrom latent_obs import ProcessVecEnv\nProcessVecEnv([lambda: gym.make('Mine-v0')], sys.argv[1])\n",
        )
    assert "An attempt has been made to start a new process before" in error.value.stderr


def test_the_script_is_there_again_afterwards():
    main = vars(sys.modules["__main__"])
    before = {name: main.get(name) for name in ("__spec__", "__file__")}
    whole = Maker(lambda: 7).main
    with withheld(), withheld():
        assert Maker(lambda: 7).main == whole
        assert main["__spec__"] is None
        assert "__file__" not in main
    assert {name: main.get(name) for name in ("__spec__", "__file__")} == before
    with pytest.raises(OSError, match="on the way"), withheld():
        raise OSError("on the way")
    assert {name: main.get(name) for name in ("__spec__", "__file__")} == before


def test_in_the_process_that_made_it_a_maker_is_the_function():
    assert Maker(lambda: 7)() == 7
    assert "__getattr__" not in vars(sys.modules["__main__"])


def test_other_errors_do_not_import_the_script():
    assert not _is_of_unknown_name(ValueError("no"))
    assert not _is_of_unknown_name(None)
