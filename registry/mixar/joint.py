"""Training a MixAR together with its tokenizers or its prior: its loss reaches them through the tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor, nn

from mixar_core.blocks import blocks_in
from mixar_core.data.tokens import FrozenTokenizers
from mixar_core.model import MixAR, SamplingConfig
from mixar_core.noise import Noise
from mixar_core.perceptual import FeatureExtractor
from mixar_core.training.objective import MixARObjective
from mixar_core.training.reconstruction import ContinuousReconstruction, DiscreteReconstruction, ReconstructionConfig
from mixar_core.training.usage import under
from mixar_core.types import ImageBatch, Losses, Posterior, TokenBatch


class JointObjective(MixARObjective):
    """MixAR.loss, on tokens that carry a gradient, plus the own losses of the parts that are trained with it.

    Latents are normalised by the statistics that the tokenizer began with: they are not measured anew at the end,
    because the MixAR has learned latents of that scale. Codes carry no gradient; what of the codebook is learned gets
    that of the injector.

    Args:
        model: with some of its parts, beside backbone, injector and head, among what is trained.
        extractor, config: of the tokenizers' losses.
    """

    def __init__(
        self, model: MixAR, sampling: SamplingConfig, extractor: FeatureExtractor | None, config: ReconstructionConfig
    ) -> None:
        flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        super().__init__(model, sampling)
        for parameter, flag in flags:  # which tokenizers of an objective on tokens lose
            parameter.requires_grad_(flag)
        self.continuous = self.codes = None
        continuous, discrete = model.continuous_tokenizer, model.discrete_tokenizer
        if "continuous_tokenizer" in model.trained:
            self.continuous = ContinuousReconstruction(continuous, extractor, config)
        if "discrete_tokenizer" in model.trained and discrete is not None:
            self.codes = DiscreteReconstruction(discrete, extractor, config)
        self.takes_tokens = self.continuous is None and self.codes is None
        frozen = (
            continuous if self.continuous is None else None,
            self.tokenizers.discrete if self.codes is None else None,
        )
        self.frozen = None if frozen == (None, None) else FrozenTokenizers(*frozen)

    def forward(self, batch: ImageBatch | TokenBatch, *, step: int, steps: int, noise: Noise) -> Losses:
        """Terms: MixAR's, and under their names (`continuous_tokenizer/psnr`) those of the parts trained with it."""
        own: dict[str, Losses] = {}
        tokens = self._encode(batch, own, step=step, noise=noise) if isinstance(batch, ImageBatch) else batch
        total, terms = super().forward(tokens, step=step, steps=steps, noise=noise)
        if "prior" in self.model.trained and self.model.prior is not None:
            assert tokens.codes_BN is not None
            condition = self.model.condition(tokens.labels_B)
            own["prior"] = self.model.prior.loss(tokens.codes_BN, condition, noise=noise)
        for name, added in own.items():
            total = total + added.total
            terms = {**terms, **{f"{name}/{term}": value for term, value in added.terms.items()}}
        return Losses(total, terms)

    def window(self, reduce: Callable[[Tensor], Tensor]) -> Mapping[str, float]:
        """Those of the tokenizers that are trained with it."""
        return {
            **under("continuous_tokenizer", self.continuous.window(reduce) if self.continuous else {}),
            **under("discrete_tokenizer", self.codes.window(reduce) if self.codes else {}),
        }

    def blocks(self) -> Iterator[nn.Module]:
        """The MixAR's, and of the parts trained with it every child, and of a list of blocks every block."""
        yield from super().blocks()
        for key, part in self.trained.named_children():
            if key not in ("backbone", "injector", "head"):
                yield from blocks_in(part)

    def _encode(self, images: ImageBatch, own: dict[str, Losses], *, step: int, noise: Noise) -> TokenBatch:
        """Tokens, with a gradient of those tokenizers that are trained, whose losses are put into `own`."""
        latents_BChw = codes_BN = None
        if self.frozen is not None:
            drawn = self.frozen.draw(self.frozen.encode(images), noise=noise)
            latents_BChw, codes_BN = drawn.latents_BChw, drawn.codes_BN
        if self.continuous is not None:
            tokenizer, found = self.continuous.tokenizer, self.continuous.tokenizer.posterior(images.images_B3HW)
            posterior = Posterior(found.mean_BChw.float(), found.logvar_BChw.float())
            raw_BChw = tokenizer.sample_posterior(posterior, noise)
            latents_BChw = tokenizer.normalise(raw_BChw)
            decoded_B3HW = tokenizer.decode_raw(raw_BChw)
            own["continuous_tokenizer"] = self.continuous.losses(
                images.images_B3HW, posterior, raw_BChw, decoded_B3HW, step=step
            )
        if self.codes is not None:
            quantized = self.codes.tokenizer.quantize(images.images_B3HW)
            codes_BN = quantized.codes_BN
            own["discrete_tokenizer"] = self.codes.losses(images.images_B3HW, quantized, step=step)
        assert latents_BChw is not None
        return TokenBatch(latents_BChw, codes_BN, images.labels_B)
