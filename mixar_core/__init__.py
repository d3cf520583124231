"""The library: what an author of components derives from, gets and gives.

    from mixar_core import ContinuousHead, Noise, UserError

These names are the promise (docs/api.md); modules beside them may change. Names are imported when they are first used,
so that `import mixar_core.errors` need not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixar_core.data.dataset import EncodedImage, ImageDataset, ImageStream, empty_classes
    from mixar_core.data.folders import list_images
    from mixar_core.data.images import read_image, to_rgb
    from mixar_core.errors import UserError
    from mixar_core.head import ContinuousHead
    from mixar_core.injector import Door, GuidanceInjector
    from mixar_core.model import MixAR
    from mixar_core.noise import Noise
    from mixar_core.perceptual import FeatureExtractor, Outputs
    from mixar_core.prior import DiscretePrior
    from mixar_core.storage import user_path
    from mixar_core.tokenizer import ContinuousTokenizer, DiscreteTokenizer, Tokenizer
    from mixar_core.training.callback import Callback, RunInfo, StepReport
    from mixar_core.types import (
        NO_CLASS,
        DiscreteTokens,
        Grid,
        Guidance,
        ImageBatch,
        Losses,
        Posterior,
        Quantized,
        TokenBatch,
    )

__all__ = [
    "NO_CLASS",
    "Callback",
    "ContinuousHead",
    "ContinuousTokenizer",
    "DiscretePrior",
    "DiscreteTokenizer",
    "DiscreteTokens",
    "Door",
    "EncodedImage",
    "FeatureExtractor",
    "Grid",
    "Guidance",
    "GuidanceInjector",
    "ImageBatch",
    "ImageDataset",
    "ImageStream",
    "Losses",
    "MixAR",
    "Noise",
    "Outputs",
    "Posterior",
    "Quantized",
    "RunInfo",
    "StepReport",
    "TokenBatch",
    "Tokenizer",
    "UserError",
    "empty_classes",
    "list_images",
    "read_image",
    "to_rgb",
    "user_path",
]

_HOMES = {
    "data.dataset": ("EncodedImage", "ImageDataset", "ImageStream", "empty_classes"),
    "data.folders": ("list_images",),
    "data.images": ("read_image", "to_rgb"),
    "errors": ("UserError",),
    "head": ("ContinuousHead",),
    "injector": ("Door", "GuidanceInjector"),
    "model": ("MixAR",),
    "noise": ("Noise",),
    "perceptual": ("FeatureExtractor", "Outputs"),
    "prior": ("DiscretePrior",),
    "storage": ("user_path",),
    "tokenizer": ("ContinuousTokenizer", "DiscreteTokenizer", "Tokenizer"),
    "training.callback": ("Callback", "RunInfo", "StepReport"),
    "types": (
        "NO_CLASS",
        "DiscreteTokens",
        "Grid",
        "Guidance",
        "ImageBatch",
        "Losses",
        "Posterior",
        "Quantized",
        "TokenBatch",
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
