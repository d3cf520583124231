"""A Part: one component under one name, with the class of its settings. And the kinds there are."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from mixar_core.data.dataset import ImageDataset
from mixar_core.evaluation.extractor import FeatureExtractor
from mixar_core.head import ContinuousHead
from mixar_core.importer import Importer
from mixar_core.injector import GuidanceInjector
from mixar_core.prior import DiscretePrior
from mixar_core.tokenizer import ContinuousTokenizer, DiscreteTokenizer
from mixar_core.training.callback import Callback


class Demo:
    """Something to show, run by `mixar demo`. Built as `Class(config)`."""

    def run(self, *, out: Any, seed: int) -> None:
        """Make the pictures under the folder `out` and print what was reached."""
        raise NotImplementedError


#: kind -> the abstract class its components derive from
KINDS: dict[str, type] = {
    "continuous-tokenizer": ContinuousTokenizer,
    "discrete-tokenizer": DiscreteTokenizer,
    "prior": DiscretePrior,
    "injector": GuidanceInjector,
    "head": ContinuousHead,
    "dataset": ImageDataset,
    "extractor": FeatureExtractor,
    "callback": Callback,
    "importer": Importer,
    "demo": Demo,
}


@frozen
class Part:
    """One component that recipes can name.

    Args:
        kind: one of KINDS.
        name: what a recipe writes behind `type:`; lower case, digits and hyphens.
        component: the class, derived from KINDS[kind] and built as that class's docstring says.
        config: a frozen attrs class with its settings; every field is a key of the recipe.
    """

    kind: str
    name: str
    component: type
    config: type

    @property
    def summary(self) -> str:
        """First line of the component's docstring."""
        return (self.component.__doc__ or "").strip().splitlines()[0] if self.component.__doc__ else ""
