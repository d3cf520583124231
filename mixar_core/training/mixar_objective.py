"""What training a MixAR (or a MAR) minimises: the diffusion loss of masked tokens, with TI-Mix's falling lambda."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor, nn

from mixar_core.data.tokens import FrozenTokenizers
from mixar_core.model import MixAR, SamplingConfig
from mixar_core.noise import Noise
from mixar_core.training.objective import Objective
from mixar_core.types import ImageBatch, Losses, TokenBatch


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
        # the discrete tokenizer runs only where its codes go somewhere
        discrete = model.discrete_tokenizer if model.injector.needs_codes else None
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
        model = self.model
        rows = {"real": images.images_B3HW}
        if self.tokenizers.discrete is not None:
            codes_BN = self.tokenizers.discrete.encode(images.images_B3HW)
            rows["codes alone"] = self.tokenizers.discrete.decode(codes_BN)
            rows["from true codes"] = model.generate(
                images.labels_B, settings=self.sampling, noise=noise, codes_BN=codes_BN
            ).images_B3HW
        if model.prior is not None or not model.injector.needs_codes:
            rows["sampled"] = model.generate(images.labels_B, settings=self.sampling, noise=noise).images_B3HW
        return rows

    def no_weight_decay(self) -> Collection[str]:
        """The head, as in MAR's released code."""
        return ("head",)

    def blocks(self) -> Iterator[nn.Module]:
        """Every block of the backbone, and the head's network."""
        yield from self.model.backbone.encoder_blocks
        yield from self.model.backbone.decoder_blocks
        yield from self.model.head.children()
