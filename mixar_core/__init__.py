"""The library: what an author of components derives from, gets and gives.

    from mixar_core import ContinuousHead, Noise, UserError

These names are the promise (docs/api.md); modules beside them may change. Names are imported when they are first used,
so that `import mixar_core.errors` need not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixar_core.backbone import Backbone, BackboneState
    from mixar_core.conditioner import Conditioner
    from mixar_core.data.dataset import EncodedImage, ImageDataset, ImageStream, empty_classes
    from mixar_core.data.folders import list_images
    from mixar_core.data.images import read_image, to_rgb
    from mixar_core.errors import UserError
    from mixar_core.head import ContinuousHead
    from mixar_core.injector import Door, GuidanceInjector
    from mixar_core.mixture import MASKED_CODE
    from mixar_core.model import MixAR
    from mixar_core.noise import Noise
    from mixar_core.perceptual import FeatureExtractor, Outputs
    from mixar_core.plan import Plan, PlannedStep, Sampler, Task
    from mixar_core.prior import DiscretePrior
    from mixar_core.storage import user_path
    from mixar_core.tables import Table
    from mixar_core.tokenizer import ContinuousTokenizer, DiscreteTokenizer, Tokenizer
    from mixar_core.training.callback import Callback, RunInfo, StepReport
    from mixar_core.training.optimizer import Optimizer, Weight
    from mixar_core.types import (
        NO_CLASS,
        Condition,
        DiscreteTokens,
        DrawnCodes,
        Grid,
        Guidance,
        ImageBatch,
        Losses,
        MaskSplit,
        Posterior,
        Quantized,
        Step,
        TokenBatch,
        TokenLayout,
        Z,
    )

#: The version of these classes and values. A plugin says which one it was written for: `MIXAR_INTERFACE = 2` in its
#: module. What changed from one to the next stands in docs/plugins.md.
INTERFACE = 2

__all__ = [
    "INTERFACE",
    "MASKED_CODE",
    "NO_CLASS",
    "Backbone",
    "BackboneState",
    "Callback",
    "Condition",
    "Conditioner",
    "ContinuousHead",
    "ContinuousTokenizer",
    "DiscretePrior",
    "DiscreteTokenizer",
    "DiscreteTokens",
    "Door",
    "DrawnCodes",
    "EncodedImage",
    "FeatureExtractor",
    "Grid",
    "Guidance",
    "GuidanceInjector",
    "ImageBatch",
    "ImageDataset",
    "ImageStream",
    "Losses",
    "MaskSplit",
    "MixAR",
    "Noise",
    "Optimizer",
    "Outputs",
    "Plan",
    "PlannedStep",
    "Posterior",
    "Quantized",
    "RunInfo",
    "Sampler",
    "Step",
    "StepReport",
    "Table",
    "Task",
    "TokenBatch",
    "TokenLayout",
    "Tokenizer",
    "UserError",
    "Weight",
    "Z",
    "empty_classes",
    "list_images",
    "read_image",
    "to_rgb",
    "user_path",
]

_HOMES = {
    "backbone": ("Backbone", "BackboneState"),
    "conditioner": ("Conditioner",),
    "data.dataset": ("EncodedImage", "ImageDataset", "ImageStream", "empty_classes"),
    "data.folders": ("list_images",),
    "data.images": ("read_image", "to_rgb"),
    "errors": ("UserError",),
    "head": ("ContinuousHead",),
    "injector": ("Door", "GuidanceInjector"),
    "mixture": ("MASKED_CODE",),
    "model": ("MixAR",),
    "noise": ("Noise",),
    "perceptual": ("FeatureExtractor", "Outputs"),
    "plan": ("Plan", "PlannedStep", "Sampler", "Task"),
    "prior": ("DiscretePrior",),
    "storage": ("user_path",),
    "tables": ("Table",),
    "tokenizer": ("ContinuousTokenizer", "DiscreteTokenizer", "Tokenizer"),
    "training.callback": ("Callback", "RunInfo", "StepReport"),
    "training.optimizer": ("Optimizer", "Weight"),
    "types": (
        "NO_CLASS",
        "Condition",
        "DiscreteTokens",
        "DrawnCodes",
        "Grid",
        "Guidance",
        "ImageBatch",
        "Losses",
        "MaskSplit",
        "Posterior",
        "Quantized",
        "Step",
        "TokenBatch",
        "TokenLayout",
        "Z",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
