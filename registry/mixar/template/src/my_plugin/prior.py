"""A discrete prior: a model of the codes, given a class."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from attrs import field, frozen
from attrs.validators import and_, ge, le
from mixar_core import (
    MASKED_CODE,
    NO_CLASS,
    Condition,
    DiscretePrior,
    DiscreteTokenizer,
    DrawnCodes,
    ImageDataset,
    Losses,
    Noise,
)
from torch import Tensor, nn


@frozen
class MyPluginPriorConfig:
    """Sizes, training and sampling.

    Args:
        width, depth, heads: of the transformer.
        class_dropout: share of classes that are dropped in training, for guidance.
        steps: in which the codes are drawn.
        cfg: guidance scale, 1 for none.
        temperature: of the draws.
    """

    width: int = field(default=64, validator=ge(1))
    depth: int = field(default=2, validator=ge(1))
    heads: int = field(default=4, validator=ge(1))
    class_dropout: float = field(default=0.1, validator=and_(ge(0.0), le(1.0)))
    steps: int = field(default=8, validator=ge(1))
    cfg: float = field(default=1.0, validator=ge(0.0))
    temperature: float = field(default=1.0, validator=ge(0.0))

    def __attrs_post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")


class MyPluginPrior(DiscretePrior):
    """A masked transformer: it learns to fill in hidden codes, and draws them in random order, some in each step."""

    def __init__(
        self,
        config: MyPluginPriorConfig,
        *,
        tokenizer: DiscreteTokenizer,
        num_classes: int,
        data: ImageDataset | None = None,
    ) -> None:
        codes, width = tokenizer.codebook_size, config.width
        super().__init__(layout=tokenizer.layout, codebook_size=codes, num_classes=num_classes)
        self.config = config
        self.codes = nn.Embedding(codes + 1, width)  # the last is the mask token
        self.classes = nn.Embedding(num_classes + 1, width)  # the last is no class
        self.positions = nn.Parameter(0.02 * torch.randn(self.layout.tokens, width))
        layer = nn.TransformerEncoderLayer(width, config.heads, 4 * width, 0.0, "gelu", batch_first=True)
        self.trunk = nn.TransformerEncoder(layer, config.depth, enable_nested_tensor=False)
        self.out = nn.Linear(width, codes)

    def logits_BNV(self, codes_BN: Tensor, condition: Condition, cfg: float = 1.0) -> Tensor:
        """Logits (B, N, V), float32, of all codes; those that are MASKED_CODE are hidden."""
        labels_B = condition.labels_B
        classes_B1D = self.classes(torch.where(labels_B == NO_CLASS, self.num_classes, labels_B))[:, None]
        hidden_BN = torch.where(codes_BN == MASKED_CODE, self.codebook_size, codes_BN)
        x_BND = self.codes(hidden_BN) + self.positions + classes_B1D
        logits_BNV: Tensor = self.out(self.trunk(x_BND)).float()
        if cfg != 1.0:
            nobody_B = torch.ones_like(labels_B, dtype=torch.bool)
            uncond_BNV = self.logits_BNV(codes_BN, condition.dropped(nobody_B))
            logits_BNV = uncond_BNV + cfg * (logits_BNV - uncond_BNV)
        return logits_BNV

    def drawn(self, logits_BNV: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """A code for every place, and its log-probability: (B, N) each."""
        log_p_BNV = logits_BNV.log_softmax(dim=-1)
        uniform_BN = noise.uniform(logits_BNV.shape[:2], logits_BNV.device)
        below_BNV = log_p_BNV.exp().cumsum(dim=-1) < uniform_BN[..., None]
        codes_BN = below_BNV.sum(dim=-1).clamp(max=self.codebook_size - 1)
        return codes_BN, log_p_BNV.gather(-1, codes_BN[..., None])[..., 0]

    def sample_steps(
        self,
        condition: Condition,
        *,
        noise: Noise,
        steps: int | None = None,
        cfg: float | None = None,
        temperature: float | None = None,
        given_BN: Tensor | None = None,
    ) -> Iterator[DrawnCodes]:
        """Draw codes (B, N); those of `given_BN` stay, and are seen by all others."""
        steps = steps or self.config.steps
        cfg = self.config.cfg if cfg is None else cfg
        temperature = self.config.temperature if temperature is None else temperature
        shape, device = (len(condition), self.layout.tokens), condition.labels_B.device
        codes_BN = torch.full(shape, MASKED_CODE, device=device) if given_BN is None else given_BN
        confidence_BN = torch.zeros(shape, device=device)
        ranks_BN = noise.uniform(shape, device).argsort(dim=1).argsort(dim=1)
        for step in range(1, steps + 1):
            logits_BNV = self.logits_BNV(codes_BN, condition, cfg) / max(temperature, 1e-4)
            drawn_BN, sure_BN = self.drawn(logits_BNV, noise)
            now_BN = (codes_BN == MASKED_CODE) & (ranks_BN * steps < step * shape[1])
            codes_BN = torch.where(now_BN, drawn_BN, codes_BN)
            confidence_BN = torch.where(now_BN, sure_BN, confidence_BN)
            yield DrawnCodes(codes_BN, confidence_BN)

    def predict(self, codes_BN: Tensor, masked_BN: Tensor, condition: Condition, *, noise: Noise) -> DrawnCodes:
        """What stands where `masked_BN` says so, drawn in one pass from the other codes; for TI-Mix alone."""
        logits_BNV = self.logits_BNV(codes_BN.masked_fill(masked_BN, MASKED_CODE), condition)
        drawn_BN, sure_BN = self.drawn(logits_BNV, noise)
        return DrawnCodes(torch.where(masked_BN, drawn_BN, codes_BN), sure_BN * masked_BN)

    def loss(self, codes_BN: Tensor, condition: Condition, *, noise: Noise) -> Losses:
        """Cross-entropy, in nats, of hidden codes; of each image another share is hidden."""
        (size, _), device = codes_BN.shape, codes_BN.device
        condition = condition.dropped(noise.uniform((size,), device) < self.config.class_dropout)
        masked_BN = noise.uniform(codes_BN.shape, device) <= noise.uniform((size, 1), device)
        logits_BNV = self.logits_BNV(codes_BN.masked_fill(masked_BN, MASKED_CODE), condition)
        each_BN = F.cross_entropy(logits_BNV.transpose(1, 2), codes_BN, reduction="none")
        return Losses((each_BN * masked_BN).sum() / masked_BN.sum().clamp(min=1))
