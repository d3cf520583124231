"""Weights by hub name: `hf://owner/name/file` or, pinned to a branch, tag or commit, `hf://owner/name/file@revision`."""

from __future__ import annotations

import os
import re
from pathlib import Path

from attrs import frozen

from mixar_core.errors import UserError
from mixar_registry.text import one_line

PREFIX = "hf://"
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

    Raises:
        UserError: no such repository, revision or file, no access, no network, or offline and not in the cache.
    """
    found = _NAME.fullmatch(name)
    if not found:
        raise UserError(f"{name}: not of the form hf://owner/name/file or hf://owner/name/file@revision")
    # takes a fifth of a second to import, and only those who name it need it
    from huggingface_hub import errors, hf_hub_download

    repository, revision = found["repository"], found["revision"] or "main"
    try:
        path = hf_hub_download(
            repository, found["file"], revision=revision, local_files_only=offline(), library_name="mixar"
        )
    except errors.GatedRepoError as error:  # a kind of RepositoryNotFoundError, so it comes first
        raise UserError(f"{name}: access to {repository} has to be asked for at the hub, by its user") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"{name}: the hub has no repository {repository}, or none that this user may see") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{name}: {repository} has no revision {revision}") from error
    except errors.LocalEntryNotFoundError as error:  # a kind of EntryNotFoundError, so it comes first
        reason = "and offline" if offline() else "and the hub cannot be reached"
        raise UserError(f"{name}: not in the cache of this machine, {reason}") from error
    except errors.EntryNotFoundError as error:
        raise UserError(f"{name}: {repository} has no file {found['file']} at revision {revision}") from error
    except (errors.HFValidationError, ValueError, OSError) as error:
        raise UserError(f"{name}: cannot be fetched: {one_line(error)}") from error
    return HubFile(Path(path), _commit(Path(path)))


def _commit(path: Path) -> str:
    """The cache lays files out as snapshots/COMMIT/FILE."""
    parts = path.parts
    return parts[len(parts) - parts[::-1].index("snapshots")] if "snapshots" in parts else ""
