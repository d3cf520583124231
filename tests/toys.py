"""The smallest parts that keep the contracts, for tests of what stands around them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mixar_core.injector import GuidanceInjector
from mixar_core.model import MixAR
from mixar_core.noise import Noise
from mixar_core.prior import DiscretePrior
from mixar_core.tokenizer import ContinuousTokenizer, DiscreteTokenizer
from mixar_core.types import Condition, DrawnCodes, Losses, Posterior, Quantized
from mixar_plugins.backbones.masked import MaskedBackbone, MaskedConfig
from mixar_plugins.heads.diffusion import DiffusionHead, DiffusionHeadConfig
from mixar_plugins.injectors.dc_mix import DCMix, DCMixConfig
from mixar_plugins.injectors.embedding import DCCA, DCSA, CodeEmbeddingConfig
from mixar_plugins.injectors.none import NoGuidance, NoGuidanceConfig
from mixar_plugins.samplers.cosine import CosineConfig, CosineSampler


class PoolTokenizer(ContinuousTokenizer):
    """Latents are the pooled pixels; decoding repeats them."""

    def __init__(self, image_size: int = 16, stride: int = 4) -> None:
        super().__init__(image_size=image_size, stride=stride, latent_channels=3)

    def posterior(self, images_B3HW: Tensor) -> Posterior:
        mean = F.avg_pool2d(images_B3HW, self.stride)
        return Posterior(mean, torch.full_like(mean, -10.0))

    def decode_raw(self, latents_BChw: Tensor) -> Tensor:
        return F.interpolate(latents_BChw, scale_factor=float(self.stride))


class SignTokenizer(DiscreteTokenizer):
    """Codes are the signs of the pooled channels: three bits."""

    def __init__(self, image_size: int = 16, stride: int = 4) -> None:
        super().__init__(image_size=image_size, stride=stride, codebook_size=8, code_width=3)

    def quantize(self, images_B3HW: Tensor) -> Quantized:
        pooled = F.avg_pool2d(images_B3HW, self.stride)
        bits = (pooled > 0).long()
        powers = torch.tensor([1, 2, 4], device=bits.device)
        codes = (bits * powers[:, None, None]).sum(1).flatten(1)
        return Quantized(bits * 2.0 - 1.0, codes, {"quantizer": pooled.new_zeros(())})

    def code_vectors(self, codes_BN: Tensor) -> Tensor:
        powers = torch.tensor([1, 2, 4], device=codes_BN.device)
        return ((codes_BN[..., None] & powers) != 0).float() * 2 - 1

    def decode_vectors(self, vectors_BEhw: Tensor) -> Tensor:
        return F.interpolate(vectors_BEhw, scale_factor=float(self.stride))


class UniformPrior(DiscretePrior):
    """Knows nothing: every code is as likely."""

    def sample_steps(
        self, condition: Condition, *, noise: Noise, steps=None, cfg=None, temperature=None, given_BN=None
    ):
        shape = (len(condition), self.layout.tokens)
        codes_BN = noise.integers(self.codebook_size, shape, condition.labels_B.device)
        yield DrawnCodes(codes_BN if given_BN is None else torch.where(given_BN < 0, codes_BN, given_BN))

    def predict(self, codes_BN: Tensor, masked_BN: Tensor, condition: Condition, *, noise: Noise) -> DrawnCodes:
        drawn = noise.integers(self.codebook_size, codes_BN.shape, codes_BN.device)
        return DrawnCodes(torch.where(masked_BN, drawn, codes_BN))

    def loss(self, codes_BN: Tensor, condition: Condition, *, noise: Noise) -> Losses:
        raise TypeError("the uniform prior has nothing to train")


def injector(name: str, tokenizer: DiscreteTokenizer, width: int) -> GuidanceInjector:
    if name == "none":
        return NoGuidance(NoGuidanceConfig(), tokenizer=None, width=width)
    if name.startswith("dc-mix"):
        return DCMix(DCMixConfig(projection=name.endswith("projected")), tokenizer=tokenizer, width=width)
    return {"dc-sa": DCSA, "dc-ca": DCCA}[name](CodeEmbeddingConfig(), tokenizer=tokenizer, width=width)


def small_mixar(
    name: str = "dc-mix", *, num_classes: int = 5, image_size: int = 16, seed: int = 0, **backbone
) -> MixAR:
    """A MixAR of a few thousand parameters on a grid of image_size / 4, output layers not zero."""
    torch.manual_seed(seed)
    continuous, discrete = PoolTokenizer(image_size), SignTokenizer(image_size)
    inject = injector(name, discrete, 16)
    config = MaskedConfig(
        **({"width": 16, "depth": 2, "heads": 2, "buffer": 3, "dropout": 0.0, "attention_dropout": 0.0} | backbone)
    )
    memory = "memory" in inject.opens
    body = MaskedBackbone(config, layout=discrete.layout, token_dim=3, num_classes=num_classes, memory=memory)
    head = DiffusionHead(
        DiffusionHeadConfig(depth=1, width=16, samples_per_token=2, sampling_steps=5),
        token_dim=3,
        width=body.width,
        layout=discrete.layout,
    )
    for parameter in head.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    prior = UniformPrior(layout=discrete.layout, codebook_size=8, num_classes=num_classes)
    return MixAR(
        backbone=body,
        injector=inject,
        head=head,
        sampler=CosineSampler(CosineConfig()),
        continuous_tokenizer=continuous,
        discrete_tokenizer=discrete,
        prior=prior,
    )
