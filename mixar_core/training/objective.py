"""Objectives: what one kind of training minimises. The trainer knows nothing else about what it trains.

Those of a MixAR and of a prior are here; those of tokenizers in reconstruction.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Self

import torch
from torch import Tensor, nn

from mixar_core.blocks import blocks_in
from mixar_core.data.tokens import CachedTokens, FrozenTokenizers
from mixar_core.model import MixAR, SamplingConfig
from mixar_core.noise import Noise
from mixar_core.prior import DiscretePrior
from mixar_core.tokenizer import DiscreteTokenizer
from mixar_core.types import Condition, ImageBatch, Losses, TokenBatch


class Objective(nn.Module, ABC):
    """A loss over a batch, and a picture to look at. Frozen parts inside it have `requires_grad=False`.

    `self.training` tells a training step from a measurement on the validation split.
    """

    trained: nn.Module
    """The module whose weights are trained, averaged (EMA) and saved."""
    takes_tokens: bool
    """Whether `forward` takes tokens (TokenBatch) or images (ImageBatch)."""
    needs_length: bool = False
    """Whether its loss depends on the length of the run, so that a resumed run must have the same."""
    finish_images: int = 0
    """How many images of the training split `finish` is to see; 0: it is not called."""
    beside: nn.ModuleDict
    """What its loss trains beside `trained`, by name: a discriminator, say."""
    tokenizers: FrozenTokenizers
    """What makes tokens of images; objectives on images do not have it."""

    def __init__(self) -> None:
        super().__init__()
        self.beside = nn.ModuleDict()

    @abstractmethod
    def forward(self, batch: ImageBatch | TokenBatch, *, step: int, steps: int, noise: Noise) -> Losses:
        """The loss of step `step` of `steps` (both count from 0), randomness drawn from `noise`.

        The loss must be a mean over the batch's rows, so that it is the same however the batch is shared out.
        """

    def tokenize(self, batch: ImageBatch | CachedTokens, *, noise: Noise) -> TokenBatch:
        """Images, or what was kept of them, through the frozen tokenizers, without gradient."""
        cached = self.tokenizers.encode(batch) if isinstance(batch, ImageBatch) else batch
        return self.tokenizers.draw(cached, noise=noise)

    @torch.no_grad()
    def detokenize(self, cached: CachedTokens, *, noise: Noise) -> ImageBatch:
        """What tokens decode to: the pictures that stand for images where only their tokens are at hand."""
        tokens = self.tokenizers.draw(cached, noise=noise)
        continuous, discrete = self.tokenizers.continuous, self.tokenizers.discrete
        if continuous is not None:
            return ImageBatch(continuous.beside(tokens.codes_BN).decode(tokens.latents_BChw), tokens.labels_B)
        assert discrete is not None and tokens.codes_BN is not None
        return ImageBatch(discrete.decode(tokens.codes_BN), tokens.labels_B)

    @abstractmethod
    def preview(self, images: ImageBatch, *, noise: Noise) -> Mapping[str, Tensor]:
        """Rows of pictures by name, float (B, 3, H, W) in [-1, 1] each: originals, reconstructions, samples."""

    def no_weight_decay(self) -> Collection[str]:
        """Parameters or modules of `trained`, by name, whose matrices are not decayed either."""
        return ()

    def window(self, reduce: Callable[[Tensor], Tensor]) -> Mapping[str, float]:
        """Figures of all steps since it was last called, for reports: what no single step shows.

        Args:
            reduce: the sum of a tensor over the processes, all of which call it.
        """
        return {}

    def finish(self, batches: Iterable[tuple[ImageBatch, int]], reduce: Callable[[Tensor], Tensor]) -> None:
        """After the last step, before the weights are written: measure what belongs beside them.

        Args:
            batches: this process's share of `finish_images` images of the training split in random order, each once;
                and how many of a batch's rows count: the rest fills up. All processes get equally many batches.
            reduce: the sum of a tensor over the processes.
        """

    def train(self, mode: bool = True) -> Self:
        """Training mode for what is trained alone; the frozen parts stay in evaluation mode."""
        super().train(False)
        self.trained.train(mode)
        self.beside.train(mode)
        self.training = mode
        return self

    def blocks(self) -> Iterator[nn.Module]:
        """The modules of `trained` that are compiled, one by one: its children, and in a list of blocks every block."""
        yield from blocks_in(self.trained)

    def compile_parts(self) -> None:
        """torch.compile every block, in place."""
        torch._dynamo.config.cache_size_limit = max(64, torch._dynamo.config.cache_size_limit)
        if self.beside:  # an adaptive weight goes back through a block before the loss does
            torch._functorch.config.donated_buffer = False
        for block in self.blocks():
            block.compile()


class MixARObjective(Objective):
    """MixAR.loss on what the frozen tokenizers make of the images.

    Args:
        model: with its frozen parts.
        sampling: how previews are drawn.
    """

    takes_tokens = True

    def __init__(self, model: MixAR, sampling: SamplingConfig) -> None:
        super().__init__()
        self.model, self.sampling = model, sampling
        self.trained = model.trained
        self.needs_length = model.ti_mix.schedule != "constant"  # lambda falls towards the last step
        discrete = model.discrete_tokenizer if model.learns_codes else None
        self.tokenizers = FrozenTokenizers(model.continuous_tokenizer, discrete)

    def forward(self, batch: ImageBatch | TokenBatch, *, step: int, steps: int, noise: Noise) -> Losses:
        """The loss of step `step` of `steps`; a measurement on the validation split sees ground-truth codes only."""
        assert isinstance(batch, TokenBatch)
        lam = self.model.ti_mix.lambda_at(step / steps) if self.training else 1.0
        losses = self.model.loss(batch, lam=lam, noise=noise)
        return Losses(losses.total, {"diffusion": losses.total.detach(), "lambda": losses.total.new_full((), lam)})

    @torch.no_grad()
    def preview(self, images: ImageBatch, *, noise: Noise) -> Mapping[str, Tensor]:
        """The images; where there are codes, these decoded alone, and samples from them; samples for the labels."""
        model, condition = self.model, self.model.condition(images.labels_B)
        rows = {"real": images.images_B3HW}
        if self.tokenizers.discrete is not None:
            codes_BN = self.tokenizers.discrete.encode(images.images_B3HW)
            rows["codes alone"] = self.tokenizers.discrete.decode(codes_BN)
            rows["from true codes"] = model.generate(
                condition, settings=self.sampling, noise=noise, codes_BN=codes_BN
            ).images_B3HW
        if model.prior is not None or not model.injector.needs_codes:
            rows["sampled"] = model.generate(condition, settings=self.sampling, noise=noise).images_B3HW
        return rows

    def no_weight_decay(self) -> Collection[str]:
        """The head, as in MAR's released code, where it has a network of its own."""
        return () if self.model.head.denoises else ("head",)

    def blocks(self) -> Iterator[nn.Module]:
        """Every block of the backbone, and the head's networks and blocks."""
        yield from self.model.backbone.blocks()
        yield from blocks_in(self.model.head)


class PriorObjective(Objective):
    """DiscretePrior.loss on the codes that `tokenizer`, frozen, gives the images.

    Args:
        condition: what labels (B,) stand for; a Conditioner is a frozen part, too.
    """

    takes_tokens = True

    def __init__(
        self, prior: DiscretePrior, tokenizer: DiscreteTokenizer, condition: Callable[[Tensor], Condition] = Condition
    ) -> None:
        super().__init__()
        self.condition = condition
        self.trained = self.prior = prior
        self.tokenizers = FrozenTokenizers(None, tokenizer)
        self.tokenizer = tokenizer

    def forward(self, batch: ImageBatch | TokenBatch, *, step: int, steps: int, noise: Noise) -> Losses:
        """The prior's loss; it masks codes and drops labels by itself."""
        assert isinstance(batch, TokenBatch) and batch.codes_BN is not None
        return self.prior.loss(batch.codes_BN, self.condition(batch.labels_B), noise=noise)

    @torch.no_grad()
    def preview(self, images: ImageBatch, *, noise: Noise) -> Mapping[str, Tensor]:
        """The images, what their codes decode to, and samples for their labels, decoded."""
        sampled_BN = self.prior.sample(self.condition(images.labels_B), noise=noise).codes_BN
        return {
            "real": images.images_B3HW,
            "codes alone": self.tokenizer.decode(self.tokenizer.encode(images.images_B3HW)),
            "sampled": self.tokenizer.decode(sampled_BN),
        }
