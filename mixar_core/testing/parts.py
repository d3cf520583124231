"""A part amid stand-ins: built as a recipe would build it, for the contract of its kind."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mixar_core.backbone import Backbone
from mixar_core.conditioner import Conditioner
from mixar_core.data.dataset import ImageDataset
from mixar_core.discriminator import Discriminator
from mixar_core.errors import UserError
from mixar_core.head import ContinuousHead
from mixar_core.injector import GuidanceInjector
from mixar_core.perceptual import FeatureExtractor
from mixar_core.plan import Sampler
from mixar_core.prior import DiscretePrior
from mixar_core.testing.backbones import check_backbone
from mixar_core.testing.common import taking_pairs
from mixar_core.testing.data import check_callback, check_dataset, check_extractor
from mixar_core.testing.discriminators import check_discriminator
from mixar_core.testing.heads import check_head
from mixar_core.testing.injectors import check_conditioner, check_injector
from mixar_core.testing.optimizers import check_optimizer
from mixar_core.testing.priors import check_prior
from mixar_core.testing.report import BUILT, topic
from mixar_core.testing.samplers import check_sampler
from mixar_core.testing.tokenizers import check_continuous_tokenizer, check_discrete_tokenizer
from mixar_core.tokenizer import ContinuousTokenizer, DiscreteTokenizer
from mixar_core.training.callback import Callback
from mixar_core.training.optimizer import Optimizer
from mixar_core.types import Grid, Quantized, TokenLayout

#: what a part stands beside: images of this size, a backbone this wide, latents and classes
IMAGE_SIZE, WIDTH, TOKEN_DIM, CLASSES = 16, 16, 4, 3
OBLONG = (IMAGE_SIZE, 24)
LAYOUT = TokenLayout("grid", (Grid(2, 3),))
#: for a backbone that refuses a grid
PYRAMID = TokenLayout("pyramid", (Grid(1, 1), Grid(1, 2), Grid(2, 3)))
#: of which a tokenizer gets the first that it takes and that is two tokens high
_SIZES = (IMAGE_SIZE, 32, 64, 128, 256, 512)


class StandInTokenizer(DiscreteTokenizer):
    """64 codes: signs of the pooled colours and of their differences, one for 4 x 4 pixels. It learns nothing."""

    def __init__(self, *, image_size: int = IMAGE_SIZE) -> None:
        super().__init__(image_size=image_size, stride=4, codebook_size=64, code_width=6)

    def quantize(self, images_B3HW: Tensor) -> Quantized:
        """Three colours, and each minus the next."""
        pooled = F.avg_pool2d(images_B3HW, self.stride)
        bits = (torch.cat([pooled, pooled - pooled.roll(1, dims=1)], dim=1) > 0).long()
        powers = 2 ** torch.arange(6, device=bits.device)
        codes_BN = (bits * powers[:, None, None]).sum(dim=1).flatten(1)
        return Quantized(bits * 2.0 - 1.0, codes_BN, {"quantizer": pooled.new_zeros(())})

    def code_vectors(self, codes_BN: Tensor) -> Tensor:
        """The signs (B, N, 6)."""
        powers = 2 ** torch.arange(6, device=codes_BN.device)
        return ((codes_BN[..., None] & powers) != 0).float() * 2.0 - 1.0

    def decode_vectors(self, vectors_BEhw: Tensor) -> Tensor:
        """The signs of the colours, as they are."""
        return F.interpolate(vectors_BEhw[:, :3], scale_factor=float(self.stride))


class StandInImages(ImageDataset):
    """Twelve images, each of one brightness, of three classes in turn."""

    num_classes = CLASSES
    class_names = ("a", "b", "c")

    def __init__(self, *, image_size: int = IMAGE_SIZE) -> None:
        self.image_size = image_size

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label = self.labels()[index]
        return torch.full((3, self.image_size, self.image_size), 20 * index, dtype=torch.uint8), label

    def labels(self) -> list[int]:
        """0, 1, 2, 0, ..."""
        return [index % CLASSES for index in range(len(self))]


def check_part(component: type, config: Any) -> None:
    """Run the contract of its kind on a component with these settings, built as a recipe builds it, amid stand-ins.

    These are small: images of 16 x 16 pixels (a tokenizer gets the smallest that are two of its tokens high), 64 codes
    on a grid of 4 x 4, latents of 4 channels on one of 2 x 3, a backbone 16 wide, three classes.

    Args:
        component: derived from the abstract class of its kind.

    Raises:
        AssertionError: it breaks its contract.
        UserError: it refuses its settings, or what it stands beside; or there is no contract for it.
    """
    topic(BUILT)
    check = next((check for base, check in _CHECKS.items() if issubclass(component, base)), None)
    if check is None:
        raise UserError(f"{component.__name__} derives from no abstract class that has a contract")
    check(component, config)


def _tokenizer(check: Callable[..., None], component: Any, config: Any) -> None:
    if getattr(component, "needs_codes", False):
        check(lambda: component(config, image_size=IMAGE_SIZE, tokenizer=_frozen()), tokenizer=_frozen())
        return

    def fits(size: int) -> bool:
        stride: int = component(config, image_size=size).stride
        return size % stride == 0 and size >= 2 * stride

    size = _smallest(fits)
    check(partial(component, config, image_size=size))


def _smallest(fits: Callable[[int], bool]) -> int:
    """The first image size that fits, and that it does not refuse."""

    def does(size: int) -> bool:
        try:
            return fits(size)
        except UserError:
            return False

    return next((size for size in _SIZES if does(size)), _SIZES[-1])


def _prior(component: Any, config: Any) -> None:
    data = StandInImages()
    check_prior(partial(component, config, tokenizer=_frozen(), num_classes=CLASSES, data=data))


def _discriminator(component: Any, config: Any) -> None:
    size = _smallest(lambda size: component(config, image_size=size) is not None)
    check_discriminator(partial(component, config, image_size=size), image_size=size)
    if not component.squares_only:
        topic("images that are not square")
        with taking_pairs():
            check_discriminator(partial(component, config, image_size=(size, 2 * size)), image_size=(size, 2 * size))


def _injector(component: Any, config: Any) -> None:
    tokenizer = _frozen()
    if not component.opens:
        component(config, tokenizer=None, width=WIDTH)
    make = partial(component, config, tokenizer=tokenizer, width=WIDTH)
    check_injector(make, tokenizer=tokenizer, width=WIDTH)


def _backbone(component: Any, config: Any) -> None:
    layout = LAYOUT if _takes(component, config, LAYOUT) else PYRAMID
    for num_classes in (0, CLASSES):
        sizes = {"layout": layout, "token_dim": TOKEN_DIM, "num_classes": num_classes}
        check_backbone(partial(component, config, **sizes))


def _takes(component: Any, config: Any, layout: TokenLayout) -> bool:
    try:
        component(config, layout=layout, token_dim=TOKEN_DIM, num_classes=0, memory=False, condition_width=0)
    except UserError:
        return False
    return True


def _head(component: Any, config: Any) -> None:
    make = partial(component, config, token_dim=TOKEN_DIM, width=WIDTH, layout=LAYOUT)
    check_head(make, width=WIDTH, layout=LAYOUT)


def _conditioner(component: Any, config: Any) -> None:
    check_conditioner(partial(component, config, num_classes=CLASSES), num_classes=CLASSES)


def _dataset(component: Any, config: Any) -> None:
    for split in ("train", "validation"):
        check_dataset(component(config, split=split, image_size=IMAGE_SIZE), image_size=IMAGE_SIZE)
    if not component.squares_only:
        with taking_pairs():
            check_dataset(component(config, split="train", image_size=OBLONG), image_size=OBLONG)


def _callback(component: Any, config: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        check_callback(partial(component, config), Path(folder))


def _alone(check: Callable[..., None], component: Any, config: Any) -> None:
    check(partial(component, config))


def _frozen() -> DiscreteTokenizer:
    return StandInTokenizer().eval().requires_grad_(False)


_CHECKS: Mapping[type, Callable[[Any, Any], None]] = {
    ContinuousTokenizer: partial(_tokenizer, check_continuous_tokenizer),
    DiscreteTokenizer: partial(_tokenizer, check_discrete_tokenizer),
    DiscretePrior: _prior,
    Backbone: _backbone,
    GuidanceInjector: _injector,
    ContinuousHead: _head,
    Sampler: partial(_alone, check_sampler),
    Conditioner: _conditioner,
    ImageDataset: _dataset,
    FeatureExtractor: partial(_alone, check_extractor),
    Discriminator: _discriminator,
    Optimizer: partial(_alone, check_optimizer),
    Callback: _callback,
}
