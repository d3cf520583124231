"""Training a MixAR together with its tokenizers: its loss reaches them through the tokens."""

from __future__ import annotations

from mixar_core.data.tokens import FrozenTokenizers
from mixar_core.model import MixAR, SamplingConfig
from mixar_core.noise import Noise
from mixar_core.perceptual import FeatureExtractor
from mixar_core.training.objective import MixARObjective, plus
from mixar_core.training.reconstruction import ContinuousReconstruction, DiscreteReconstruction, ReconstructionConfig
from mixar_core.types import ImageBatch, Losses, Posterior, TokenBatch


class JointObjective(MixARObjective):
    """MixAR.loss on tokens that carry a gradient, plus the own losses of the tokenizers that are trained.

    Latents are normalised by the statistics that the tokenizer began with: they are not measured anew at the end,
    because the MixAR has learned latents of that scale. Codes carry no gradient; what of the codebook is learned gets
    that of the injector.

    Args:
        model: with one of its tokenizers, or both, among what is trained.
        extractor, config: of the tokenizers' losses.
    """

    takes_tokens = False

    def __init__(
        self,
        model: MixAR,
        sampling: SamplingConfig,
        extractor: FeatureExtractor | None,
        config: ReconstructionConfig,
    ) -> None:
        super().__init__(model, sampling)
        self.continuous = self.codes = None
        if "continuous_tokenizer" in model.trained:
            self.continuous = ContinuousReconstruction(model.continuous_tokenizer, extractor, config)
        if "discrete_tokenizer" in model.trained and model.discrete_tokenizer is not None:
            self.codes = DiscreteReconstruction(model.discrete_tokenizer, extractor, config)

    def forward(self, batch: ImageBatch | TokenBatch, *, step: int, steps: int, noise: Noise) -> Losses:
        """Terms: MixAR's, and the tokenizers' and the prior's under their names (`continuous_tokenizer/psnr`)."""
        assert isinstance(batch, ImageBatch)
        images_B3HW, own = batch.images_B3HW, {}
        frozen: FrozenTokenizers | None = getattr(self, "tokenizers", None)
        tokens = None if frozen is None else frozen.draw(frozen.encode(batch), noise=noise)
        latents_BChw, codes_BN = (None, None) if tokens is None else (tokens.latents_BChw, tokens.codes_BN)
        if self.continuous is not None:
            found, tokenizer = self.continuous.tokenizer.posterior(images_B3HW), self.continuous.tokenizer
            posterior = Posterior(found.mean_BChw.float(), found.logvar_BChw.float())
            raw_BChw = tokenizer.sample_posterior(posterior, noise)
            latents_BChw = tokenizer.normalise(raw_BChw)
            own["continuous_tokenizer"] = self.continuous.losses(images_B3HW, posterior, raw_BChw)
        if self.codes is not None:
            quantized = self.codes.tokenizer.quantize(images_B3HW)
            codes_BN = quantized.codes_BN
            own["discrete_tokenizer"] = self.codes.losses(images_B3HW, quantized, step=step)
        assert latents_BChw is not None
        tokens = TokenBatch(latents_BChw, codes_BN, batch.labels_B)
        losses = super().forward(tokens, step=step, steps=steps, noise=noise)
        for name, added in own.items():
            losses = plus(losses, name, added)
        return losses
