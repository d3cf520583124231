"""Importers: what a kind of published file is, told by a map of names and the recipes that such files fill."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from attrs import frozen
from torch import Tensor

from mixar_core.errors import UserError


@frozen
class ImporterConfig:
    """No settings: an importer's class says all, and sizes are those of a recipe."""


class Importer:
    """One kind of published file. Registered as a Part (kind `importer`) and built as `Class(config)`.

    A file has the sizes of one of `recipes`, or of one that the user names: it is that whose trained module has exactly
    the names and shapes of `translate`. Who calls an importer opens and checks the file, and takes from its names what
    says nothing: names of entries and wrappers (`entries.state_dicts`).
    """

    #: shipped recipes whose files these may be; empty where none is shipped, and `--recipe` must name one
    recipes: ClassVar[tuple[str, ...]] = ()
    #: published beginning of a name -> ours; the first that fits is replaced, and other names stay
    names: ClassVar[Mapping[str, str]] = {}
    #: beginnings of names that only the authors' training needed
    left_out: ClassVar[tuple[str, ...]] = ()
    #: the entry that holds the state dict, as the authors write it, and that of averaged weights where they write both
    entry: ClassVar[str | None] = None
    averaged_entry: ClassVar[str | None] = None
    #: the recipe's key of the tokenizer whose folder the user must name
    tokenizer_key: ClassVar[Literal["continuous_tokenizer", "discrete_tokenizer"] | None] = None
    #: whether statistics of the latents may be given
    takes_statistics: ClassVar[bool] = False

    def __init__(self, config: ImporterConfig) -> None:
        self.config = config

    @classmethod
    def rename(cls, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by our names, of a state dict by published ones.

        Raises:
            UserError: two become one.
        """
        ours: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            old = next((old for old in cls.names if name.startswith(old)), "")
            new = cls.names.get(old, "") + name.removeprefix(old)
            if new in ours:
                raise UserError(f"has two tensors that are {new} here, one of them {name}")
            ours[new] = tensor
        return ours

    def translate(
        self, tensors: Mapping[str, Tensor], statistics: Mapping[str, Tensor] | None = None
    ) -> tuple[dict[str, Tensor], list[str]]:
        """What the trained module gets, by our names, and what the user should read: what was left out or assumed.

        Args:
            tensors: the published state dict.
            statistics: `mean` and `std` of the latents, one value a channel; None where none were given.

        Raises:
            UserError: two names become one, or the statistics are not what they should be.
        """
        kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(self.left_out)}
        remarks = []
        for old in self.left_out:
            if count := sum(name.startswith(old) for name in tensors):
                remarks.append(f"{count} tensors {old}* dropped: the authors' training alone needed them")
        return self.rename(kept), remarks

    def sizes(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Where no shipped recipe has a file's sizes: "key=value" over the first of `recipes`, for kinds whose shapes
        tell all of them.

        Args:
            tensors: by our names.
        """
        return []
