"""What is checked before a cluster is used, and on each node of it. Tests that need Ray are in tests/ray."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from latent_obs.util.errors import InputError, MissingExtraError
from latent_obs.util.ray import _for_nodes, _version, joined  # pyright: ignore[reportPrivateUsage]

CALL = [(pow, (2, 5), {})]


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"latent-obs\[ray\]"), joined("ray", None):
        pass


def test_an_address_needs_the_engine_that_has_one():
    with joined("local", None) as ray:
        assert ray is None
    with pytest.raises(InputError, match=r"address host:1.*--engine ray"), joined("local", "host:1"):
        pass
    with pytest.raises(InputError, match="engine"), joined("dask", None):  # pyright: ignore[reportArgumentType]
        pass


def test_a_node_that_lacks_something_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("socket.gethostname", lambda: "node-7")
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=lambda reference: reference))
    cwd = str(Path.cwd())
    assert _for_nodes(cwd, {tmp_path: tmp_path}, _version())(CALL) == ("", 32)
    problem, _ = _for_nodes(cwd, {tmp_path / ".token": tmp_path}, _version())(CALL)
    assert f"node-7 does not see {tmp_path};" in problem
    problem, _ = _for_nodes(cwd, {}, "0.1")(CALL)
    assert "node-7" in problem
    assert "0.1" in problem
    monkeypatch.setattr("importlib.metadata.distributions", lambda name: iter(()))
    assert "node-7 has no latent-obs" in _for_nodes(cwd, {}, "0.1")(CALL)[0]
