"""The three methods that whoever knows the Hugging Face hub looks for, with their usual meaning there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mixar.hub import PREFIX

if TYPE_CHECKING:
    from mixar.model import Model


class Pretrained:
    """From and to a folder or the hub: `load` and `mixar publish` under other names."""

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path, *, revision: str | None = None, **settings: Any) -> Model:
        """The model of a folder that is there, or else of the hub's `owner/name`.

        Args:
            revision: branch, tag or commit at the hub.
            settings: as `load` takes them: device, precision, preset and so on.

        Raises:
            UserError: as `load`.
        """
        from mixar.model import load
        from mixar_core.storage import user_path

        if str(name_or_folder).startswith(PREFIX) or user_path(name_or_folder).is_dir():
            return load(name_or_folder, **settings)
        return load(f"{PREFIX}{name_or_folder}{'@' if revision else ''}{revision or ''}", **settings)

    def save_pretrained(self, folder: str | Path, **settings: Any) -> str:
        """Write the model with its frozen parts and a card into a folder; gives it back.

        Args:
            settings: as `mixar.publish.publish` takes them: licence, report, replace.

        Raises:
            UserError: as `mixar publish`.
        """
        from mixar.publish import publish

        return publish(self._folder(), folder, weights=self._model.weights, **settings)

    def push_to_hub(self, repo_id: str, *, revision: str | None = None, private: bool = False, **settings: Any) -> str:
        """Put the same into the hub's repository `owner/name`, which is made if there is none; gives its hf:// name.

        Raises:
            UserError: as `mixar publish`.
        """
        from mixar.publish import publish

        name = f"{PREFIX}{repo_id}{'@' if revision else ''}{revision or ''}"
        return publish(self._folder(), name, weights=self._model.weights, private=private, **settings)

    @property
    def _model(self) -> Model:
        return cast("Model", self)

    def _folder(self) -> Path:
        """Where it was loaded from: a file lies in it, a checkpoint's folder under checkpoints/step-00001000."""
        trained = self._model.files[self._model.recipe.trains]
        return trained.parents[2] if trained.is_dir() else trained.parent
