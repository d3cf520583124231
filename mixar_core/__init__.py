"""The library: what an author of components derives from, gets and gives.

    from mixar_core import ContinuousHead, Noise, UserError

These names are the promise (docs/api.md); modules beside them may change. Names are imported when they are first used,
so that `import mixar_core.errors` need not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `as`: this module exports them
    from mixar_core.backbone import Backbone as Backbone
    from mixar_core.backbone import BackboneState as BackboneState
    from mixar_core.conditioner import Conditioner as Conditioner
    from mixar_core.data.dataset import EncodedImage as EncodedImage
    from mixar_core.data.dataset import ImageDataset as ImageDataset
    from mixar_core.data.dataset import ImageStream as ImageStream
    from mixar_core.data.dataset import empty_classes as empty_classes
    from mixar_core.data.folders import list_images as list_images
    from mixar_core.data.images import read_image as read_image
    from mixar_core.data.images import to_rgb as to_rgb
    from mixar_core.discriminator import Discriminator as Discriminator
    from mixar_core.errors import UserError as UserError
    from mixar_core.head import ContinuousHead as ContinuousHead
    from mixar_core.injector import Door as Door
    from mixar_core.injector import GuidanceInjector as GuidanceInjector
    from mixar_core.mixture import MASKED_CODE as MASKED_CODE
    from mixar_core.model import MixAR as MixAR
    from mixar_core.noise import Noise as Noise
    from mixar_core.perceptual import FeatureExtractor as FeatureExtractor
    from mixar_core.perceptual import Outputs as Outputs
    from mixar_core.plan import Plan as Plan
    from mixar_core.plan import PlannedStep as PlannedStep
    from mixar_core.plan import Sampler as Sampler
    from mixar_core.plan import Task as Task
    from mixar_core.prior import DiscretePrior as DiscretePrior
    from mixar_core.storage import user_path as user_path
    from mixar_core.tables import Table as Table
    from mixar_core.tokenizer import ContinuousTokenizer as ContinuousTokenizer
    from mixar_core.tokenizer import DiscreteTokenizer as DiscreteTokenizer
    from mixar_core.tokenizer import Tokenizer as Tokenizer
    from mixar_core.training.callback import Callback as Callback
    from mixar_core.training.callback import RunInfo as RunInfo
    from mixar_core.training.callback import StepReport as StepReport
    from mixar_core.training.optimizer import Optimizer as Optimizer
    from mixar_core.training.optimizer import Weight as Weight
    from mixar_core.training.reference import Reference as Reference
    from mixar_core.types import NO_CLASS as NO_CLASS
    from mixar_core.types import Condition as Condition
    from mixar_core.types import Denoise as Denoise
    from mixar_core.types import DiscreteTokens as DiscreteTokens
    from mixar_core.types import DrawnCodes as DrawnCodes
    from mixar_core.types import Grid as Grid
    from mixar_core.types import Guidance as Guidance
    from mixar_core.types import ImageBatch as ImageBatch
    from mixar_core.types import ImageSize as ImageSize
    from mixar_core.types import Losses as Losses
    from mixar_core.types import MaskSplit as MaskSplit
    from mixar_core.types import Posterior as Posterior
    from mixar_core.types import Quantized as Quantized
    from mixar_core.types import Step as Step
    from mixar_core.types import TokenBatch as TokenBatch
    from mixar_core.types import TokenLayout as TokenLayout
    from mixar_core.types import Z as Z

#: The version of these classes and values. A plugin says which one it was written for: `MIXAR_INTERFACE = 2` in its
#: module. What changed from one to the next stands in docs/plugins.md.
INTERFACE = 2

_HOMES = {
    "backbone": ("Backbone", "BackboneState"),
    "conditioner": ("Conditioner",),
    "data.dataset": ("EncodedImage", "ImageDataset", "ImageStream", "empty_classes"),
    "data.folders": ("list_images",),
    "data.images": ("read_image", "to_rgb"),
    "discriminator": ("Discriminator",),
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
    "training.reference": ("Reference",),
    "training.optimizer": ("Optimizer", "Weight"),
    "types": (
        "NO_CLASS",
        "Condition",
        "DiscreteTokens",
        "Denoise",
        "DrawnCodes",
        "Grid",
        "Guidance",
        "ImageBatch",
        "ImageSize",
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
    return sorted(["INTERFACE", *_HOME_OF])


if not TYPE_CHECKING:  # type checkers read the imports above
    __all__ = __dir__()
