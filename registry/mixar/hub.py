"""Weights by hub name: `hf://owner/name/file` or, pinned to a branch, tag or commit, `hf://owner/name/file@revision`."""

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


@frozen
class HubFile:
    """A file of the hub's cache on this machine, and the commit it is from."""

    path: Path
    commit: str


def is_file(weights: str) -> bool:
    """Whether a recipe's `weights:` names a file, by path or at the hub, and not a model."""
    return weights.startswith(PREFIX) or weights.endswith(".safetensors")


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
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    repository, file, revision = found["repository"], found["file"], found["revision"] or "main"
    refusals = {  # the first kind that fits; the first is a kind of the second
        errors.GatedRepoError: f"access to {repository} has to be asked for at the hub",
        errors.RepositoryNotFoundError: f"the hub has no repository {repository}, or none that you may see",
        errors.RevisionNotFoundError: f"{repository} has no revision {revision}",
        errors.RemoteEntryNotFoundError: f"{repository} has no file {file} at revision {revision}",
        errors.HFValidationError: "",  # says itself what is wrong with the name
    }
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")  # which `--offline` sets
    cached = None
    try:
        cached = try_to_load_from_cache(repository, file, revision=revision)
        if not (offline or (isinstance(cached, str) and _COMMIT.fullmatch(revision))):
            # Asked for first: the download itself would try for half a minute to reach a hub that cannot be reached.
            get_hf_file_metadata(hf_hub_url(repository, file, revision=revision), library_name="mixar")
            cached = hf_hub_download(repository, file, revision=revision, library_name="mixar")
    except Exception as error:  # no connection: the classes are the HTTP client's, which changes with the library
        said = next((text or one_line(error) for kind, text in refusals.items() if isinstance(error, kind)), None)
        if said is None and not isinstance(cached, str):
            said = f"not in the cache of this machine, and cannot be fetched: {one_line(error)}"
        if said is not None:
            raise UserError(f"{name}: {said}") from error
    if not isinstance(cached, str):
        raise UserError(f"{name}: not in the cache of this machine, and offline")
    commit = re.search("/snapshots/([^/]+)/", Path(cached).as_posix())  # where the cache keeps a commit's files
    return HubFile(Path(cached), commit[1] if commit else "")
