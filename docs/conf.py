"""The documentation site: `sphinx-build -W --keep-going docs docs/_build`, from the root of the repository."""

import importlib
import pathlib
from importlib.metadata import version as version_of
from typing import Any, get_args, get_origin

import numpy as np
import sphinx.util.inspect
import sphinx.util.typing
from docutils import nodes
from numpy.typing import ArrayLike
from sphinx.application import Sphinx

REPOSITORY = "https://github.com/latent-obs/latent-obs"
PACKAGES = ("latent_obs", "vae_training", "agents")

project, author, copyright = "latent-obs", "The latent-obs authors", "The latent-obs authors"
version = release = version_of("latent-obs")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme, html_title = "furo", "latent-obs"
html_theme_options = {"source_repository": REPOSITORY, "source_branch": "main", "source_directory": "docs/"}
html_copy_source = False
html_static_path = html_css_files = ["site.css"]
myst_heading_anchors = 3  # links to headings work here as on GitHub
autodoc_default_options = {"members": True}
autodoc_mock_imports = ["ray"]  # it has an environment of its own
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True  # as in the source
autodoc_typehints = "description"  # below the signature, which stays short
autodoc_typehints_description_target = "documented"
toc_object_entries_show_parents = "hide"
python_use_unqualified_type_names = True
pathlib.PosixPath.__repr__ = lambda self: f'Path("{self}")'  # as the source writes a default
default_role = "py:obj"  # `make` in a docstring is code, and a link where it is a public name


in_full = sphinx.util.typing.stringify_annotation


def in_short(annotation: Any, *args: Any, **options: Any) -> str:
    """A type in words, where numpy's types have the short names that the source has."""
    parts = get_args(annotation)
    if set(parts) >= set(get_args(ArrayLike)):
        others = (in_full(part, *args, **options) for part in parts if part not in get_args(ArrayLike))
        return " | ".join(["ArrayLike", *others])
    if get_origin(annotation) is np.ndarray:
        (dtype,) = get_args(parts[1])
        return f"NDArray[{in_full(dtype, *args, **options)}]"
    return in_full(annotation, *args, **options)


sphinx.util.typing.stringify_annotation = in_short
sphinx.util.inspect.stringify_annotation = in_short  # pyright: ignore[reportPrivateImportUsage]


def link_to_repository(app: Sphinx, page: str, source: list[str]) -> None:
    """Let links to files outside docs, which GitHub resolves, lead to the repository."""
    if "/" not in page:
        source[0] = source[0].replace("](../", f"]({REPOSITORY}/blob/main/")


def link_to_public_name(app: Sphinx, env: Any, reference: nodes.Element, text: nodes.Element) -> nodes.Element | None:
    """Let a type of a signature, which is known by its own module, lead to its public name."""
    module, _, name = reference.get("reftarget", "").rpartition(".")
    for package in PACKAGES:
        if module.partition(".")[0] in ("", *PACKAGES) and name in importlib.import_module(package).__all__:
            domain = env.domains["py"]
            page = reference["refdoc"]
            return domain.resolve_xref(env, page, app.builder, "obj", f"{package}.{name}", reference, text)
    return None


def keep_colons(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep napoleon from taking what stands before the first colon of an attribute's docstring for its type."""
    if what in ("attribute", "property"):
        lines[:0] = ["..", ""]  # an empty comment


def setup(app: Sphinx) -> None:
    """Connect the functions above."""
    app.connect("autodoc-process-docstring", keep_colons, priority=400)  # before napoleon's
    app.connect("source-read", link_to_repository)
    app.connect("missing-reference", link_to_public_name)
