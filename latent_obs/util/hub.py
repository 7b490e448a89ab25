"""Repositories of Hugging Face: their addresses, a download into the cache, and a push with a card.

Every way in which the hub can fail is an `InputError` of one line. Nothing here reads what it transfers.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from latent_obs.util.errors import InputError, one_line, require
from latent_obs.util.words import counted

#: "hf://user/name" and the web address, with a revision and a folder inside; a `Path` has one slash for the two.
_ADDRESS = re.compile(
    r"(?:hf:/+(?:models/)?|(?:https?:/+)?(?:www\.)?(?:huggingface\.co|hf\.co)/)"
    r"([\w.-]+/[\w.-]+)(?:@([^/]+))?(?:/tree/([^/]+))?(?:/(.+?))?/*"
)
_NAME = re.compile(r"([\w-][\w.-]*/[\w.-]+)(?:@([^/]+))?")
#: What a push writes besides the card. Files of an earlier push that the next one lacks are removed.
_PUSHED = re.compile(
    r"(?:encoder/)?(?:config\.json|SHA256SUMS|(?:encoder|decoder|selfcheck|statistics|pca)\.safetensors)"
    r"|(?:best|last)\.zip|evaluations\.jsonl|replay\.mp4|report/(?:report\.html|pictures/reconstructions\.png)"
)


class HubAddress(NamedTuple):
    """A repository of Hugging Face, and a folder in it."""

    repo_id: str
    revision: str | None = None
    inner: str = ""


def hub_address(text: str) -> HubAddress | None:
    """The repository that a text names; None if it names a path.

    "user/name" is a repository if neither it nor a folder "user" is here; "hf://user/name" always is.

    Example:
        >>> hub_address("somebody/doom@v2")
        HubAddress(repo_id='somebody/doom', revision='v2', inner='')
        >>> hub_address("hf://somebody/doom/runs/a").inner
        'runs/a'
    """
    if address := _ADDRESS.fullmatch(text):
        name, at, branch, inner = address.groups()
        return HubAddress(name, at or branch, inner or "")
    if (name := _NAME.fullmatch(text)) and not Path(text).parent.exists():
        return HubAddress(*name.groups())
    return None


def with_revision(address: HubAddress, revision: str | None) -> HubAddress:
    """The address at a revision that was given besides it; an `InputError` if it names another one itself."""
    if revision is not None and address.revision not in (None, revision):
        raise InputError(
            f"revision {revision!r}: {address.repo_id}@{address.revision} has one already; give one of them"
        )
    return address._replace(revision=revision or address.revision)


def download(address: HubAddress, patterns: Sequence[str]) -> Path:
    """The local copy of a repository's files that match the patterns, or of a folder in it.

    A revision that is in the cache needs no network. A commit in the cache is not even asked for.

    Raises:
        InputError: The hub cannot be reached, there is no such repository or revision, or it may not be read.
        MissingExtraError: huggingface_hub is not installed.
    """
    hub = require("huggingface_hub", extra="hub", purpose=f"load {address.repo_id!r} from Hugging Face")
    inside = [f"{address.inner}/{pattern}" if address.inner else pattern for pattern in patterns]
    try:
        folder = hub.snapshot_download(address.repo_id, revision=address.revision, allow_patterns=inside)
    except Exception as error:  # the hub client raises errors of several libraries
        raise InputError(_in_words(error, address)) from error
    return Path(folder) / address.inner


@dataclass(frozen=True)
class Push:
    """What goes into a repository."""

    repo_id: str
    files: dict[str, Path | bytes]
    """By their path in the repository; the card is not among them."""
    card: Callable[[str], Any]
    """The `ModelCard`, given the commit of the files."""
    notes: Sequence[str] = ()
    """What is to be known of it, such as what the card lacks and why."""

    def __str__(self) -> str:
        sizes = {name: len(f) if isinstance(f, bytes) else f.stat().st_size for name, f in self.files.items()}
        width = max(map(len, sizes))
        return "\n".join(
            [f"{counted(len(sizes) + 1, 'file')} for {self.repo_id}:", f"  {'README.md':<{width}}  the card"]
            + [f"  {name:<{width}}  {size:>11,} bytes" for name, size in sizes.items()]
            + list(self.notes)
        )


class Pushed(NamedTuple):
    """Where a push went."""

    url: str
    """Page of the commit."""
    commit: str
    """Hash of the commit that holds the files, which the card names."""


def push(what: Push, *, private: bool, revision: str | None = None, commit_message: str) -> Pushed:
    """Push files, and in a second commit the card that names the first one; the repository is made if needed.

    Raises:
        InputError: The hub cannot be reached or rejects it, or the repository is there with another visibility.
    """
    hub = require("huggingface_hub", extra="hub", purpose="push to Hugging Face")
    api, address, commit = hub.HfApi(), HubAddress(what.repo_id, revision), None

    def card(commit: str) -> Any:
        return hub.CommitOperationAdd("README.md", str(what.card(commit)).encode())

    first = card(revision or "main")  # before a repository is made: a card that cannot be made ends it here
    try:
        api.create_repo(what.repo_id, private=private, exist_ok=True)
        if bool(api.model_info(what.repo_id).private) != private:
            found, how = ("public", "with") if private else ("private", "without")
            raise InputError(
                f"repository {what.repo_id} is {found}: push to it {how} --public (private={not private}), change it "
                f"on {_url(what.repo_id)}/settings, or choose another name"
            )
        if revision is not None:
            api.create_branch(what.repo_id, branch=revision, exist_ok=True)
        there = api.list_repo_files(what.repo_id, revision=revision)
        stale = [name for name in there if _PUSHED.fullmatch(name) and name not in what.files]
        changes: list[Any] = [hub.CommitOperationDelete(name) for name in stale]
        changes += [hub.CommitOperationAdd(name, file) for name, file in what.files.items()]
        options: dict[str, Any] = {"revision": revision, "commit_message": commit_message}
        # With a card, which the client validates before it uploads anything.
        commit = api.create_commit(what.repo_id, [*changes, first], **options)
        last = api.create_commit(what.repo_id, [card(commit.oid)], **options, parent_commit=commit.oid)
    except InputError:
        raise
    except Exception as error:
        done = f"nothing could be pushed to {what.repo_id}"
        if commit is not None:
            done = f"the files are at {commit.commit_url}, but the card could not be changed to name it; push again"
        raise InputError(f"{done}: {_in_words(error, address)}") from error
    return Pushed(last.commit_url, commit.oid)


def push_target(repo_id: str, license: str | None) -> HubAddress:
    """The repository to push to, checked with the license before any work.

    Raises:
        InputError: It is a folder here, or no repository's name; or no license is given.
    """
    address = hub_address(repo_id)
    if address is None and Path(repo_id).exists():
        raise InputError(
            f"repository: {repo_id!r} is a file or folder here; what is pushed comes first, then the repository, as in "
            f"latent-obs push RUN user/name. If the repository has this name, write hf://{repo_id}"
        )
    if address is None and (name := _NAME.fullmatch(repo_id)):  # beside a folder of the user's name
        address = HubAddress(*name.groups())
    if address is None or address.inner:
        raise InputError(f"repository: got {repo_id!r}, expected user/name of Hugging Face, or user/name@branch")
    if not license or not license.strip():
        raise InputError(
            "license must be given: what others may do with it, and what the frames allow. For example --license mit, "
            "cc-by-4.0 or other (all names: https://huggingface.co/docs/hub/repositories-licenses)"
        )
    return address


def card_of(template: Path, data: Any, values: dict[str, Any]) -> Any:
    """A `ModelCard` of a template of Markdown, whose {{ front_matter }} is `data`, a `ModelCardData`."""
    import jinja2

    hub = require("huggingface_hub", extra="hub", purpose="write a model card")
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters["counted"] = counted
    text = environment.from_string(template.read_text(encoding="utf-8")).render(values)
    return hub.ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text.strip()}\n")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown; the first column is text, the others are numbers.

    Example:
        >>> print(table(["of", "error"], [["PCA", "0.1"]]))
        | of | error |
        | :-- | --: |
        | PCA | 0.1 |
    """
    cells = [[str(cell).replace("|", r"\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [heads, [":--", *["--:"] * (len(heads) - 1)], *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _url(repo_id: str) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{repo_id}"


def _in_words(error: Exception, address: HubAddress) -> str:
    """Why the hub failed, and what to do."""
    from huggingface_hub import constants, errors

    if type(error) is RuntimeError and isinstance(error.__cause__, Exception):  # of one file's upload
        error = error.__cause__
    name, url = address.repo_id, _url(address.repo_id)
    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    if isinstance(error, errors.GatedRepoError):
        return f"{url} is gated: ask for access on its page, and {log_in}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no repository {name} at {constants.ENDPOINT}, or it is private. Check the name, or {log_in}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{url} has no revision {address.revision!r}: name a branch, a tag or a commit of it"
    if isinstance(error, errors.HFValidationError):
        return f"{name!r} is no name of a repository: {one_line(error)}"
    cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ else error
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if status in (401, 403):
        return f"you have no permission for {url} (status {status}): ask its owner, or {log_in}"
    if isinstance(error, errors.LocalEntryNotFoundError):
        at = f"revision {address.revision or constants.DEFAULT_REVISION!r} of {name}"
        return (
            f"{constants.ENDPOINT} cannot be reached ({one_line(cause, 100)}), and {at} is not in the cache "
            f"{constants.HF_HUB_CACHE}, or not all of it. Load it once with a connection"
        )
    if type(cause).__module__.startswith(("httpx", "httpcore")) or isinstance(cause, errors.OfflineModeIsEnabled):
        return f"{constants.ENDPOINT} cannot be reached ({one_line(cause, 100)}). Check the connection, and try again"
    return one_line(error)
