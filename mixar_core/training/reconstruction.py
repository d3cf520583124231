"""What training a tokenizer minimises: how far the decoded image lies from the image, and what its tokens cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import torch
from attrs import field, frozen
from attrs.validators import ge
from torch import Tensor

from mixar_core.noise import Noise
from mixar_core.perceptual import FeatureExtractor, perceptual_distance_B, psnr_B
from mixar_core.tokenizer import ContinuousTokenizer, DiscreteTokenizer
from mixar_core.training.adversarial import Adversary
from mixar_core.training.alignment import AlignmentConfig, alignment_of, features_at
from mixar_core.training.objective import Objective
from mixar_core.training.usage import CodeUsage, LatentUsage
from mixar_core.types import ImageBatch, Losses, Posterior, Quantized, TokenBatch


@frozen
class ReconstructionConfig:
    """Weights of a tokenizer's losses.

    Args:
        reconstruction_weight: of the difference of pixels (in [-1, 1]), a mean over them.
        loss: `l1` or `l2`, what is averaged.
        perceptual_weight: of the difference of features; 0: no extractor is run.
        kl_weight: of the posterior's KL divergence, as LDM has it: in nats, summed over the latent, a mean over
            images. LDM sums the pixels too; here they are averaged, so its 1e-6 at H x W is 1e-6 / (3 H W) here.
        quantizer_weight: of what the quantizer asks for (commitment, entropy, codebook).
        entropy_annealing_factor: how much the entropy loss counts in addition at the first step (MaskBit).
        entropy_annealing_steps: steps in which this falls linearly to nothing.
        statistics_images: a continuous tokenizer's latents are measured over so many images at the end.
    """

    reconstruction_weight: float = field(default=1.0, validator=ge(0.0))
    loss: Literal["l1", "l2"] = "l1"
    perceptual_weight: float = field(default=0.0, validator=ge(0.0))
    kl_weight: float = field(default=1e-6, validator=ge(0.0))
    quantizer_weight: float = field(default=1.0, validator=ge(0.0))
    entropy_annealing_factor: float = field(default=0.0, validator=ge(0.0))
    entropy_annealing_steps: int = field(default=2000, validator=ge(1))
    statistics_images: int = field(default=50_000, validator=ge(1))

    def entropy_factor(self, step: int) -> float:
        """How much the entropy loss counts in addition at `step`."""
        return self.entropy_annealing_factor * max(0.0, 1.0 - step / self.entropy_annealing_steps)


class Reconstruction(Objective):
    """What both kinds of tokenizer share: pixels and features of an image and its reconstruction."""

    takes_tokens = False
    #: what is reported of all steps since the last report
    usage: CodeUsage | LatentUsage

    def __init__(
        self,
        tokenizer: ContinuousTokenizer | DiscreteTokenizer,
        extractor: FeatureExtractor | None,
        config: ReconstructionConfig,
        adversary: Adversary | None = None,
    ) -> None:
        super().__init__()
        self.trained = self.tokenizer = tokenizer
        self.finish_images = config.statistics_images if isinstance(tokenizer, ContinuousTokenizer) else 0
        if config.perceptual_weight and extractor is None:
            raise ValueError("reconstruction.perceptual_weight is set, and there is no extractor")
        if adversary is not None and adversary.config.adaptive and tokenizer.last_layer is None:
            raise ValueError(f"adversarial.adaptive is set, and {type(tokenizer).__name__} has no last_layer")
        self.config = config
        if adversary is not None:
            self.beside["discriminator"] = adversary
        self.usage = (
            LatentUsage(tokenizer.latent_channels)
            if isinstance(tokenizer, ContinuousTokenizer)
            else CodeUsage(tokenizer.codebook_size)
        )
        self.extractor = extractor.requires_grad_(False).eval() if extractor and config.perceptual_weight else None

    @property
    def adversary(self) -> Adversary | None:
        """The discriminator that the tokenizer is trained against, with the losses of both."""
        return next((module for module in self.beside.values() if isinstance(module, Adversary)), None)

    def window(self, reduce: Callable[[Tensor], Tensor]) -> Mapping[str, float]:
        """How much of the codebook, or of the latents' channels, training steps used."""
        return self.usage.take(reduce)

    def compare(self, images_B3HW: Tensor, decoded_B3HW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of pixel and feature differences, and the terms: each unweighted, and the PSNR in dB."""
        config = self.config
        difference = decoded_B3HW.float() - images_B3HW
        pixels = difference.abs().mean() if config.loss == "l1" else difference.square().mean()
        total = config.reconstruction_weight * pixels
        terms = {"reconstruction": pixels.detach(), "psnr": psnr_B(images_B3HW, decoded_B3HW.detach().float()).mean()}
        if self.extractor is not None:
            perceptual = perceptual_distance_B(self.extractor, images_B3HW, decoded_B3HW).mean()
            total = total + config.perceptual_weight * perceptual
            terms["perceptual"] = perceptual.detach()
        return total, terms

    def oppose(
        self, images_B3HW: Tensor, decoded_B3HW: Tensor, reconstruction: Tensor, *, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses against a discriminator on top of what `compare` gave, and their terms, see Adversary.

        The terms begin with the discriminator's first step; without one nothing is changed.
        """
        if (adversary := self.adversary) is None:
            return reconstruction, {}
        if not adversary.learns(step):
            return reconstruction + adversary.idle(), {}
        added, terms = adversary(
            images_B3HW, decoded_B3HW, reconstruction=reconstruction, last_layer=self.tokenizer.last_layer
        )
        return reconstruction + added, terms


class ContinuousReconstruction(Reconstruction):
    """A continuous tokenizer: reconstruction from a sample of the posterior, and its KL divergence.

    Args:
        extractor: of the perceptual loss.
        aligned_to: the foundation model that latents are held to, frozen, on the CPU as the tokenizer is; None: none.
    """

    tokenizer: ContinuousTokenizer
    usage: LatentUsage

    def __init__(
        self,
        tokenizer: ContinuousTokenizer,
        extractor: FeatureExtractor | None,
        config: ReconstructionConfig,
        adversary: Adversary | None = None,
        *,
        aligned_to: FeatureExtractor | None = None,
        alignment: AlignmentConfig | None = None,
    ) -> None:
        super().__init__(tokenizer, extractor, config, adversary)
        self.aligned_to = None if aligned_to is None else aligned_to.requires_grad_(False).eval()
        if aligned_to is not None:
            self.beside["alignment"] = alignment_of(tokenizer, aligned_to, alignment or AlignmentConfig())

    def forward(self, batch: ImageBatch | TokenBatch, *, step: int, steps: int, noise: Noise) -> Losses:
        """Terms: those of `compare`, `oppose` and Alignment, and kl (nats an image)."""
        assert isinstance(batch, ImageBatch)
        posterior, raw_BChw, decoded_B3HW = self.tokenizer.reconstruct(batch.images_B3HW, noise=noise)
        return self.losses(batch.images_B3HW, posterior, raw_BChw, decoded_B3HW, step=step)

    def losses(
        self, images_B3HW: Tensor, posterior: Posterior, raw_BChw: Tensor, decoded_B3HW: Tensor, *, step: int
    ) -> Losses:
        """The losses of a posterior, a sample of it, and what that was decoded to, at this step."""
        reconstruction, terms = self.compare(images_B3HW, decoded_B3HW)
        total, opposed = self.oppose(images_B3HW, decoded_B3HW, reconstruction, step=step)
        terms |= opposed
        if self.aligned_to is not None:
            height, width = raw_BChw.shape[2:]
            features_BFhw = features_at(self.aligned_to, images_B3HW, height=height, width=width)
            layer = self.tokenizer.encoder_layer
            aligned, held = self.beside["alignment"](
                raw_BChw, features_BFhw, reconstruction=reconstruction, layer=layer
            )
            total, terms = total + aligned, {**terms, **held}
        if torch.is_grad_enabled():  # validation is measured without
            self.usage.add(posterior)
        kl = Posterior(posterior.mean_BChw.float(), posterior.logvar_BChw.float()).kl_B().mean()
        return Losses(total + self.config.kl_weight * kl, {**terms, "kl": kl.detach()})

    @torch.no_grad()
    def preview(self, images: ImageBatch, *, noise: Noise) -> Mapping[str, Tensor]:
        """The images and their reconstructions."""
        raw_BChw = self.tokenizer.posterior(images.images_B3HW).mean_BChw
        return {"real": images.images_B3HW, "decoded": self.tokenizer.decode_raw(raw_BChw).clamp(-1.0, 1.0)}

    @torch.no_grad()
    def finish(self, batches: Iterable[tuple[ImageBatch, int]], reduce: Callable[[Tensor], Tensor]) -> None:
        """Measure mean and deviation of a posterior's sample, channel by channel, into the tokenizer's buffers."""
        tokenizer = self.tokenizer
        sums_3C = tokenizer.latent_mean_C.new_zeros(3, tokenizer.latent_channels, dtype=torch.float64)
        for images, rows in batches:
            posterior = tokenizer.posterior(images.images_B3HW)
            mean = posterior.mean_BChw[:rows].double()
            second = mean.square() + posterior.logvar_BChw[:rows].double().exp()
            sums_3C += torch.stack([torch.ones_like(mean), mean, second]).sum(dim=(1, 3, 4))
        count_C, first_C, second_C = reduce(sums_3C)
        tokenizer.latent_mean_C.copy_(first_C / count_C)
        tokenizer.latent_std_C.copy_((second_C / count_C - (first_C / count_C).square()).clamp_min(1e-12).sqrt())


class DiscreteReconstruction(Reconstruction):
    """A discrete tokenizer: reconstruction from the code vectors, and what the quantizer asks for."""

    tokenizer: DiscreteTokenizer
    usage: CodeUsage

    def forward(self, batch: ImageBatch | TokenBatch, *, step: int, steps: int, noise: Noise) -> Losses:
        """Terms: those of `compare` and `oppose`, the quantizer's by its names, codes_in_use.

        The batch's entropy, and the count of different codes, are those of a process's micro-batch: unlike all other
        losses they depend on how the batch is shared out.
        """
        assert isinstance(batch, ImageBatch)
        return self.losses(batch.images_B3HW, self.tokenizer.quantize(batch.images_B3HW), step=step)

    def losses(self, images_B3HW: Tensor, quantized: Quantized, *, step: int) -> Losses:
        """The losses of quantized images at this step."""
        decoded_B3HW = self.tokenizer.decode_vectors(quantized.vectors_BEhw)
        reconstruction, terms = self.compare(images_B3HW, decoded_B3HW)
        total, opposed = self.oppose(images_B3HW, decoded_B3HW, reconstruction, step=step)
        quantizer = quantized.losses["quantizer"]
        factor = self.config.entropy_factor(step)
        if factor and "entropy" in quantized.losses:
            quantizer = quantizer + factor * quantized.losses["entropy"]
        if torch.is_grad_enabled():  # validation is measured without
            self.usage.add(quantized.codes_BN)
        # Marked and counted: the length of a list of them would be a shape that depends on values.
        met_V = total.new_zeros(self.tokenizer.codebook_size).index_fill(0, quantized.codes_BN.flatten(), 1.0)
        logged = {name: value.detach() for name, value in quantized.losses.items()}
        total = total + self.config.quantizer_weight * quantizer
        return Losses(total, {**terms, **opposed, **logged, "codes_in_use": met_V.sum()})

    @torch.no_grad()
    def preview(self, images: ImageBatch, *, noise: Noise) -> Mapping[str, Tensor]:
        """The images and what their codes decode to."""
        codes_BN = self.tokenizer.encode(images.images_B3HW)
        return {"real": images.images_B3HW, "decoded": self.tokenizer.decode(codes_BN)}
