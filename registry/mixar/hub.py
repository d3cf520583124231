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


def offline() -> bool:
    """Whether nothing may be fetched: HF_HUB_OFFLINE is set, which `--offline` does."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


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
    try:
        cached = try_to_load_from_cache(repository, file, revision=revision)
        at_hand = HubFile(Path(cached), _commit(Path(cached))) if isinstance(cached, str) else None
        if at_hand and (offline() or _COMMIT.fullmatch(revision)):
            return at_hand
        if offline():
            raise UserError(f"{name}: not in the cache of this machine, and offline")
        # Asked for first: the download itself would try for half a minute to reach a hub that cannot be reached.
        get_hf_file_metadata(hf_hub_url(repository, file, revision=revision), library_name="mixar")
        path = Path(hf_hub_download(repository, file, revision=revision, library_name="mixar"))
        return HubFile(path, _commit(path))
    except UserError:
        raise
    except errors.GatedRepoError as error:  # a kind of RepositoryNotFoundError, so it comes first
        raise UserError(f"{name}: access to {repository} has to be asked for at the hub") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"{name}: the hub has no repository {repository}, or none that you may see") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{name}: {repository} has no revision {revision}") from error
    except errors.RemoteEntryNotFoundError as error:
        raise UserError(f"{name}: {repository} has no file {file} at revision {revision}") from error
    except errors.HFValidationError as error:
        raise UserError(f"{name}: {one_line(error)}") from error
    except Exception as error:  # no connection: the classes are the HTTP client's, which changes with the library
        if at_hand:
            return at_hand
        raise UserError(
            f"{name}: not in the cache of this machine, and cannot be fetched: {one_line(error)}"
        ) from error


def _commit(path: Path) -> str:
    """The cache lays files out as snapshots/COMMIT/FILE."""
    parts = path.parts
    return parts[len(parts) - parts[::-1].index("snapshots")] if "snapshots" in parts else ""
