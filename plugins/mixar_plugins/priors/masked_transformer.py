"""Masked transformers over codes: of bit tokens (MaskBit, arXiv 2409.16211) and of embedded tokens (MaskGIT).

A code of `bits` bits is `splits` smaller ones ("entries").
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from attrs import field, frozen
from torch import Tensor, nn

from mixar_core.data.dataset import ImageDataset
from mixar_core.errors import UserError
from mixar_core.tables import Table
from mixar_core.tokenizer import DiscreteTokenizer
from mixar_plugins.priors import schedules
from mixar_plugins.priors.asked import not_negative, positive
from mixar_plugins.priors.masked import MaskedConfig, MaskedTransformerPrior
from mixar_plugins.priors.transformer import Transformer, layer_norm


@frozen(kw_only=True)
class MaskBitConfig(MaskedConfig):
    """Settings of MaskedConfig, whose defaults are the published 14-bit generator and its 64-step sampler, and

    Args:
        bits: bits of a code, those of the tokenizer. stride: pixels a token spans, those of the tokenizer.
        splits: into how many smaller codes a code is factorised; divides `bits`.
        prenorm: normalise before each layer instead of after it.
    """

    bits: int = field(default=14, validator=positive)
    stride: int = field(default=16, validator=positive)
    splits: int = field(default=2, validator=positive)
    prenorm: bool = False

    def __attrs_post_init__(self) -> None:
        if self.bits % self.splits:
            raise UserError(f"splits of the prior is {self.splits}; it must divide its bits, {self.bits}")
        super().__attrs_post_init__()

    def fit(self, tokenizer: DiscreteTokenizer) -> None:
        """Raise UserError unless the codes are this tokenizer's."""
        if tokenizer.codebook_size != 2**self.bits:
            raise UserError(
                f"prior.bits is {self.bits}, that is {2**self.bits} codes; the discrete tokenizer has "
                f"{tokenizer.codebook_size}"
            )
        if self.stride != tokenizer.stride:
            raise UserError(f"prior.stride is {self.stride}; the discrete tokenizer's is {tokenizer.stride}")


@frozen(kw_only=True)
class MaskGitConfig(MaskBitConfig):
    """Defaults are MaskGIT's (arXiv 2202.04200): 10-bit codes, 8 unguided steps on the cosine schedule."""

    bits: int = field(default=10, validator=positive)
    width: int = field(default=768, validator=positive)
    heads: int = field(default=8, validator=positive)
    mlp_dim: int = field(default=3072, validator=positive)
    splits: int = field(default=1, validator=positive)
    train_mask_schedule: schedules.MaskSchedule = "cosine"
    steps: int = field(default=8, validator=positive)
    mask_schedule: schedules.MaskSchedule = "cosine"
    guidance_scale: float = field(default=0.0, validator=not_negative)
    randomize_temperature: float = field(default=4.5, validator=not_negative)


class BertPrior(MaskedTransformerPrior):
    """What MaskBit's and MaskGIT's share: BERT's transformer, and a layer behind it."""

    config: MaskBitConfig

    def __init__(
        self,
        config: MaskBitConfig,
        *,
        tokenizer: DiscreteTokenizer,
        num_classes: int,
        data: ImageDataset | None = None,
    ) -> None:
        config.fit(tokenizer)
        sizes = {"bits": config.bits, "splits": config.splits}
        super().__init__(config, tokenizer=tokenizer, num_classes=num_classes, **sizes)

    def _build(self, config: MaskBitConfig) -> None:
        width = config.width
        self.first_layer = nn.Sequential(layer_norm(width), nn.Dropout(config.dropout))
        self.transformer = Transformer(
            width, config.depth, config.heads, config.mlp_dim, config.dropout, config.prenorm
        )
        self.norm_after_transformer = layer_norm(width) if config.prenorm else nn.Identity()
        self.last_layer = nn.Sequential(nn.Linear(width, width), nn.GELU(), layer_norm(width))

    def through(self, x_BTD: Tensor) -> Tensor:
        return self.last_layer(self.norm_after_transformer(self.transformer(self.first_layer(x_BTD))))


class BitTokenPrior(BertPrior):
    """Bit-token masked transformer (MaskBit): a code enters as its bits, -1 and 1, or 0 where masked."""

    bits_to_indices: Tensor

    def _build(self, config: MaskBitConfig) -> None:
        super()._build(config)
        powers = [2**bit for bit in range(config.bits // config.splits)]
        self.register_buffer("bits_to_indices", torch.tensor(powers, dtype=torch.int32))
        self.input_proj = nn.Linear(config.bits, config.width)
        self.prediction_layer = nn.Linear(config.width, config.splits * self.split_size)

    def embed(self, tokens_BNS: Tensor) -> Tensor:
        signs = ((tokens_BNS[..., None] & self.bits_to_indices) != 0).to(self.pos_emb.dtype) * 2 - 1
        return self.input_proj(signs.masked_fill((tokens_BNS == self.mask_token)[..., None], 0.0).flatten(2))

    def unembed(self, x_BND: Tensor) -> Tensor:
        return self.prediction_layer(x_BND).unflatten(-1, (self.config.splits, self.split_size))


class EmbeddingTokenPrior(BertPrior):
    """Embedding-token masked transformer (MaskGIT): the logits' weights are the embedding's, plus a bias a position."""

    def _build(self, config: MaskBitConfig) -> None:
        super()._build(config)
        self.tok_emb_list = nn.ModuleList(nn.Embedding(self.split_size + 1, config.width) for _ in range(config.splits))
        self.bias = nn.ParameterList(torch.zeros(self.layout.tokens, self.split_size) for _ in range(config.splits))

    def learned_tables(self) -> dict[str, Table]:
        """The biases' too."""
        return super().learned_tables() | {f"bias.{split}": Table(self.layout) for split in range(self.config.splits)}

    def embed(self, tokens_BNS: Tensor) -> Tensor:
        tables = zip(self.tok_emb_list, tokens_BNS.unbind(-1), strict=True)
        return torch.stack([table(tokens_BN) for table, tokens_BN in tables]).sum(dim=0)

    def unembed(self, x_BND: Tensor) -> Tensor:
        weights = [self.tok_emb_list.get_parameter(f"{split}.weight")[:-1] for split in range(self.config.splits)]
        logits = [F.linear(x_BND, weight) + bias_NV for weight, bias_NV in zip(weights, self.bias, strict=True)]
        return torch.stack(logits, dim=2)
