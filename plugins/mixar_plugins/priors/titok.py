"""TiTok's masked generators (arXiv 2406.07550): BERT, and a transformer with long skips (`titok-uvit`)."""

from __future__ import annotations

import numpy as np
import torch
from attrs import field, frozen
from torch import Tensor, nn

from mixar_core.data.dataset import ImageDataset
from mixar_core.noise import Noise
from mixar_core.tokenizer import DiscreteTokenizer
from mixar_plugins.priors import schedules
from mixar_plugins.priors.asked import not_negative, positive
from mixar_plugins.priors.masked import MaskedConfig, MaskedTransformerPrior
from mixar_plugins.priors.transformer import Transformer, block, layer_norm


@frozen(kw_only=True)
class TiTokPriorConfig(MaskedConfig):
    """Settings of MaskedConfig; the defaults are the published generator's for TiTok-L-32, and its sampler's."""

    width: int = field(default=768, validator=positive)
    mlp_dim: int = field(default=3072, validator=positive)
    steps: int = field(default=8, validator=positive)
    guidance_scale: float = field(default=4.5, validator=not_negative)
    guidance_annealing: schedules.GuidanceAnnealing = "linear"
    randomize_temperature: float = field(default=9.5, validator=not_negative)


@frozen(kw_only=True)
class TiTokUViTConfig(MaskedConfig):
    """Settings of MaskedConfig; the defaults are the published generator's for TiTok-S-128, and its sampler's.

    The published scale 6.9 moves from the unconditional logits, so that 1 is no guidance there; here 0 is.
    """

    depth: int = field(default=20, validator=positive)
    guidance_scale: float = field(default=5.9, validator=not_negative)
    randomize_temperature: float = field(default=2.8, validator=not_negative)


class TiTokPrior(MaskedTransformerPrior):
    """TiTok's generator: BERT over codes in a sequence; a code's logit with Gumbel noise decides what is kept."""

    visible_weight = 0.1

    def __init__(
        self,
        config: TiTokPriorConfig | TiTokUViTConfig,
        *,
        tokenizer: DiscreteTokenizer,
        num_classes: int,
        data: ImageDataset | None = None,
    ) -> None:
        bits = (tokenizer.codebook_size - 1).bit_length()
        super().__init__(config, tokenizer=tokenizer, num_classes=num_classes, bits=bits, splits=1)

    def _build(self, config: MaskedConfig) -> None:
        width = config.width
        self.tok_emb = nn.Embedding(self.split_size + 1, width)  # the last is the mask token
        self.type_emb = nn.Embedding(2, width)  # BERT's two types of tokens, of which only the first occurs
        self.first_layer = nn.Sequential(layer_norm(width), nn.Dropout(config.dropout))
        self.transformer = Transformer(width, config.depth, config.heads, config.mlp_dim, config.dropout, prenorm=False)
        self.lm_head = nn.Linear(width, self.split_size)

    def embed(self, tokens_BNS: Tensor) -> Tensor:
        return self.tok_emb(tokens_BNS[..., 0])

    def through(self, x_BTD: Tensor) -> Tensor:
        return self.transformer(self.first_layer(x_BTD + self.type_emb.weight[0]))

    def unembed(self, x_BND: Tensor) -> Tensor:
        return self.lm_head(x_BND)[:, :, None]

    def masked_after_steps(self, entries: int, steps: int) -> list[int]:
        """In float64, as published."""
        return schedules.masked_after_steps(entries, steps, self.config.mask_schedule, exact=np.float64)

    def drawn(
        self, logits_BNSV: Tensor, temperature: float, left: float, *, noise: Noise, last: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The likeliest under Gumbel noise, and so the confidence, the logit itself; both kinds of noise fall to 0."""
        device, scale = logits_BNSV.device, self.config.randomize_temperature * left
        logits_BNSV = logits_BNSV.float() / (temperature or 1.0)
        spread = scale if temperature else 0.0
        noise_BNSV = schedules.gumbel(noise.uniform(logits_BNSV.shape, device, name="prior.draw"))
        drawn_BNS1 = (logits_BNSV + spread * noise_BNSV).argmax(dim=-1, keepdim=True)
        own_BNS, log_p_BNS = (
            values.gather(-1, drawn_BNS1).squeeze(-1) for values in (logits_BNSV, logits_BNSV.log_softmax(dim=-1))
        )
        jitter_BNS = schedules.gumbel(noise.uniform(own_BNS.shape, device, name="prior.confidence"))
        return drawn_BNS1.squeeze(-1), log_p_BNS, own_BNS + scale * jitter_BNS

    def hidden(self, target_BNS: Tensor, *, noise: Noise) -> Tensor:
        """Of each image the count that its share says, at least one."""
        device, (batch, tokens, _) = target_BNS.device, target_BNS.shape
        uniform_B = noise.uniform((batch,), device, name="prior.ratio")
        count_B = (tokens * schedules.mask_share(uniform_B, self.config.train_mask_schedule)).round().clamp(min=1)
        rank_BN = noise.uniform((batch, tokens), device, name="prior.mask").argsort(dim=-1)
        return (rank_BN < count_B[:, None])[..., None]


class TiTokUViTPrior(TiTokPrior):
    """TiTok's larger generator: the same with U-ViT's transformer (arXiv 2209.12152)."""

    def _build(self, config: MaskedConfig) -> None:
        self.tok_emb = nn.Embedding(self.split_size + 1, config.width)  # the last is the mask token
        self.transformer = UViT(config)
        self.lm_head = nn.Linear(config.width, self.split_size)

    def through(self, x_BTD: Tensor) -> Tensor:
        return self.transformer(x_BTD)


class UViT(nn.Module):
    """Half of the blocks, one, and as many, each of which is given what the mirrored one of the first half made too."""

    def __init__(self, config: MaskedConfig) -> None:
        super().__init__()
        width, half = config.width, config.depth // 2

        def layer() -> nn.Sequential:
            sizes = (width, config.heads, config.mlp_dim, config.dropout)
            return block(*sizes, prenorm=True, bias=False, eps=1e-5)

        def joining() -> nn.Sequential:
            return nn.Sequential(nn.Linear(2 * width, width), *layer())

        self.in_blocks = nn.ModuleList(layer() for _ in range(half))
        self.mid_block = layer()
        self.out_blocks = nn.ModuleList(joining() for _ in range(half))
        self.norm = layer_norm(width, 1e-5)

    def forward(self, x_BTD: Tensor) -> Tensor:
        skips = []
        for entering in self.in_blocks:
            skips.append(x_BTD := entering(x_BTD))
        x_BTD = self.mid_block(x_BTD)
        for leaving in self.out_blocks:
            x_BTD = leaving(torch.cat([x_BTD, skips.pop()], dim=-1))
        return self.norm(x_BTD)
