"""Weights and models by hub name: `hf://owner/name/file`, `hf://owner/name`; `@revision` pins branch, tag or commit."""

from __future__ import annotations

import os
import re
from pathlib import Path

from attrs import frozen

from mixar.text import one_line
from mixar_core.errors import UserError

PREFIX = "hf://"
_COMMIT = re.compile("[0-9a-f]{40}")
_NAME = re.compile(r"hf://(?P<repository>[\w.-]+/[\w.-]+)/(?P<file>[^@\s]+)(@(?P<revision>[\w./-]+))?")
_WHOLE = re.compile(r"hf://(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


@frozen
class HubFile:
    """A file of the hub's cache on this machine, and the commit it is from."""

    path: Path
    commit: str


def is_file(weights: str) -> bool:
    """Whether a recipe's `weights:` names a file, by path or at the hub, and not a model."""
    return bool(_NAME.fullmatch(weights)) if weights.startswith(PREFIX) else weights.endswith(".safetensors")


def repository(name: str) -> tuple[str, str | None]:
    """`owner/name` and revision of a whole repository's name, `hf://owner/name[@revision]`.

    Raises:
        UserError: it is of another form.
    """
    found = _WHOLE.fullmatch(name)
    if not found:
        raise UserError(f"{name}: not of the form hf://owner/name or hf://owner/name@revision")
    return found["repository"], found["revision"]


def fetch(name: str) -> HubFile:
    """The file behind `hf://owner/name/file[@revision]`, from the cache or downloaded into it.

    A branch or tag is asked for at the hub, and served from the cache where the hub cannot be reached; a commit that is
    in the cache is not asked for.

    Raises:
        UserError: no such repository, revision or file, no access, no network, or offline and not in the cache.
    """
    found = _NAME.fullmatch(name)
    if not found:
        raise UserError(f"{name}: not of the form hf://owner/name/file or hf://owner/name/file@revision")
    # takes a fifth of a second to import, and only those who name it need it
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    repository, file, revision = found["repository"], found["file"], found["revision"] or "main"
    offline, cached = _offline(), None
    try:
        cached = try_to_load_from_cache(repository, file, revision=revision)
        if not (offline or (isinstance(cached, str) and _COMMIT.fullmatch(revision))):
            # Asked for first: the download itself would try for half a minute to reach a hub that cannot be reached.
            get_hf_file_metadata(hf_hub_url(repository, file, revision=revision), library_name="mixar")
            cached = hf_hub_download(repository, file, revision=revision, library_name="mixar")
    except Exception as error:  # no connection: the classes are the HTTP client's, which changes with the library
        said = _refusal(error, repository, revision, file)
        if said is None and not isinstance(cached, str):
            said = f"not in the cache of this machine, and cannot be fetched: {one_line(error)}"
        if said is not None:
            raise UserError(f"{name}: {said}") from error
    if not isinstance(cached, str):
        raise UserError(f"{name}: not in the cache of this machine, and offline")
    commit = re.search("/snapshots/([^/]+)/", Path(cached).as_posix())  # where the cache keeps a commit's files
    return HubFile(Path(cached), commit[1] if commit else "")


def fetch_model(name: str) -> Path:
    """The model folder behind `hf://owner/name[@revision]`, in the cache; files of other kinds are not fetched.

    Raises:
        UserError: as for `fetch`, or the repository is no model of mixar's.
    """
    repository_id, revision = repository(name)
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            repository_id,
            revision=revision,
            allow_patterns=[f"*.{ending}" for ending in ("yaml", "json", "safetensors", "md", "png")],
            local_files_only=_offline(),
            library_name="mixar",
        )
    except Exception as error:  # see `fetch`
        said = _refusal(error, repository_id, revision or "main")
        missing = "not in the cache of this machine, and "
        said = said or missing + ("offline" if _offline() else f"cannot be fetched: {one_line(error)}")
        raise UserError(f"{name}: {said}") from error
    if not (Path(found) / "recipe.yaml").is_file():
        raise UserError(f"{name}: no model of mixar's: it has no recipe.yaml")
    return Path(found)


def upload(folder: Path, name: str, *, private: bool = False) -> None:
    """Put a folder's files into a repository, which is made if there is none; one commit.

    Args:
        name: `hf://owner/name`, with `@branch` into that branch. private: of a repository that is made.

    Raises:
        UserError: nobody is logged in, or the hub refuses or cannot be reached.
    """
    repository_id, branch = repository(name)
    from huggingface_hub import HfApi

    hub = HfApi(library_name="mixar")
    try:
        hub.create_repo(repository_id, private=private, exist_ok=True)
        if branch:
            hub.create_branch(repository_id, branch=branch, exist_ok=True)
        hub.upload_folder(repo_id=repository_id, folder_path=folder, revision=branch, commit_message="mixar publish")
    except Exception as error:  # see `fetch`
        said = _refusal(error, repository_id, branch or "main") or one_line(error)
        raise UserError(f"{name}: cannot be uploaded: {said}") from error


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")  # which `--offline` sets


def _refusal(error: Exception, repository: str, revision: str, file: str = "") -> str | None:
    """What the hub's refusal means; None if it is none."""
    from huggingface_hub import errors

    refusals = {  # the first kind that fits; the first is a kind of the second
        errors.GatedRepoError: f"access to {repository} has to be asked for at the hub",
        errors.RepositoryNotFoundError: f"the hub has no repository {repository}, or none that you may see",
        errors.RevisionNotFoundError: f"{repository} has no revision {revision}",
        errors.RemoteEntryNotFoundError: f"{repository} has no file {file} at revision {revision}",
        errors.HFValidationError: "",  # says itself what is wrong with the name
    }
    return next((text or one_line(error) for kind, text in refusals.items() if isinstance(error, kind)), None)
