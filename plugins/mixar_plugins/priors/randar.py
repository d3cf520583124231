"""RandAR (arXiv 2412.01827): codes in a random order, several a step; a token says which position comes next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from attrs import field, frozen, validators
from torch import Tensor, nn

from mixar_core.data.dataset import ImageDataset
from mixar_core.mixture import MASKED_CODE
from mixar_core.noise import Noise
from mixar_core.tokenizer import DiscreteTokenizer
from mixar_core.types import Condition, DrawnCodes, Losses
from mixar_plugins.networks.transformer import through, turn
from mixar_plugins.priors.asked import not_negative
from mixar_plugins.priors.llamagen import Llama, LlamaConfig
from mixar_plugins.priors.next import NextState, cross_entropy

_ONE_OR_MORE: Any = validators.optional(validators.ge(1))


@frozen(kw_only=True)
class RandARConfig(LlamaConfig):
    """Defaults are the published sampling. As LlamaConfig, and

    Args:
        steps: of sampling; they take few codes first and more later, as (1 - cos) does. None: a code a step.
        guidance_start: the guidance scale where no code is known; it rises to `guidance_scale` with the share known.
        predict_temperature: of the draws of `predict` (TI-Mix); 0 takes the likeliest.
    """

    guidance_scale: float = field(default=4.0, validator=not_negative)
    guidance_start: float = field(default=1.0, validator=not_negative)
    steps: int | None = field(default=88, validator=_ONE_OR_MORE)
    predict_temperature: float = field(default=1.0, validator=not_negative)


class RandARPrior(Llama):
    """LlamaGen's network over [class, instruction, code, instruction, code, ...]; instructions say what they predict.

    An instruction is one learned vector, turned by its position's angles. Codes that are given come first, in any
    number; those that a step draws together do not see each other, nor given ones that share its step.
    """

    config: RandARConfig

    def __init__(
        self,
        config: RandARConfig,
        *,
        tokenizer: DiscreteTokenizer,
        num_classes: int,
        data: ImageDataset | None = None,
    ) -> None:
        super().__init__(config, tokenizer=tokenizer, num_classes=num_classes, data=data)
        self.pos_instruct_embeddings = nn.Parameter(nn.init.normal_(torch.empty(1, config.width), std=0.02))

    def instructions(self, positions_BK: Tensor) -> Tensor:
        """Tokens (B, K, D) that ask for these positions."""
        heads = self.pos_instruct_embeddings.view(self.config.heads, -1)
        return turn(heads, self.table[1 + positions_BK][:, :, None]).flatten(2)

    def forward(self, codes_BN: Tensor, classes_B: Tensor, orders_BN: Tensor, known: Tensor | None = None) -> Tensor:
        """Logits (B, N, V) of codes in this order, each after those before it; `codes_BN` stand as in the image.

        Args:
            known: bool (B, N) in that order; codes that nobody sees but where it is True. None: all are seen.
        """
        tokens, table = self._pairs(codes_BN.gather(1, orders_BN), orders_BN)
        x = torch.cat([self.cls_embedding(classes_B)[:, None], tokens[:, :-1]], dim=1)
        table = torch.cat([self.table[:1].expand(len(x), -1, -1, -1), table[:, :-1]], dim=1)
        count = x.shape[1]
        mask = torch.ones(count, count, dtype=torch.bool, device=x.device).tril()
        if known is not None:  # an instruction sees itself and no other; a code is seen where it is known
            seen_BT = torch.stack([torch.zeros_like(known), known], dim=2).flatten(1)[:, :-1]
            seen_BT = torch.cat([torch.ones_like(seen_BT[:, :1]), seen_BT], dim=1)
            own = torch.eye(count, dtype=torch.bool, device=x.device)
            mask = (mask & seen_BT[:, None] | own)[:, None]
        x = through(self.layers, self.tok_dropout(x), table=table, mask=mask)
        return self.output(self.norm(x[:, 1::2]))

    def logits(self, state: NextState, codes_BN: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
        orders_BN, (first, until) = state.orders_BN, spans[-1]
        assert orders_BN is not None
        new_BK = orders_BN[:, first:until]
        x, table = self.instructions(new_BK), self.table[1 + new_BK]
        if len(spans) == 1:
            table = torch.cat([self.table[:1].expand(len(x), -1, -1, -1), table], dim=1)
            x = torch.cat([self.cls_embedding(state.classes_R)[:, None], state.both(x)], dim=1)
        else:
            last = slice(*spans[-2])
            # the last step's instructions but the first had seen each other: they come again, between their codes
            for cache in state.caches:
                cache.length -= spans[-2][1] - spans[-2][0] - 1
            pairs, turns = self._pairs(codes_BN[:, last], orders_BN[:, last])
            x = state.both(torch.cat([pairs[:, 1:], x], dim=1))
            table = torch.cat([turns[:, 1:], table], dim=1)
        return self.output(self.run(x, state.both(table), state.caches)[:, -new_BK.shape[1] :])

    def begin(self, classes_R: Tensor, orders_BN: Tensor | None) -> NextState:
        return NextState(classes_R, len(self.layers), 1 + 2 * self.layout.tokens, orders_BN)

    def orders(self, given_BN: Tensor | None, batch: int, noise: Noise) -> Tensor:
        """A random order for each image, in which given codes come first."""
        device = self.table.device
        key_BN = noise.uniform((batch, self.layout.tokens), device, name="orders")
        if given_BN is not None:
            key_BN = key_BN - (given_BN.to(device) != MASKED_CODE).float()
        return key_BN.argsort(dim=1)

    def spans(self, steps: int | None) -> list[tuple[int, int]]:
        steps, tokens = steps or self.config.steps, self.layout.tokens
        if steps is None or steps >= tokens:
            return super().spans(steps)
        ends, at = [0, 1 if steps > 1 else tokens], 1
        while ends[-1] < tokens:
            at += 1
            wanted = int((1 - math.cos(math.pi / 2 * at / steps)) * tokens + 1)
            ends.append(max(min(wanted, tokens), ends[-1] + 1))
        return [*pairwise(ends)]

    def guidance(self, cfg: float | None, spans: Sequence[tuple[int, int]]) -> list[tuple[float, ...]]:
        start, end = self.config.guidance_start, self.config.guidance_scale
        if cfg is not None:
            start, end = min(start, cfg), cfg
        if end <= 1.0:
            return [(1.0,)] * len(spans)
        return [(start + (end - start) * first / self.layout.tokens,) for first, _ in spans]

    @torch.no_grad()
    def predict(self, codes_BN: Tensor, masked_BN: Tensor, condition: Condition, *, noise: Noise) -> DrawnCodes:
        """Eq. 10-11 in one pass: codes that are seen come first, and every masked one is asked for after them alone."""
        orders_BN = masked_BN.int().argsort(dim=1, stable=True)
        known_BN = ~masked_BN.gather(1, orders_BN)
        classes_B = self.class_indices(condition.labels_B)
        logits_BNV = self(codes_BN.masked_fill(masked_BN, 0), classes_B, orders_BN, known_BN).float()
        temperature = self.config.predict_temperature
        log_p_BNV = (logits_BNV / (temperature or 1.0)).log_softmax(dim=-1)
        drawn_BN = self.choose(log_p_BNV.exp(), noise) if temperature else log_p_BNV.argmax(dim=-1)
        truth_BN = codes_BN.gather(1, orders_BN)
        sure = (
            log_p_BNV.gather(-1, each[..., None]).squeeze(-1).masked_fill(known_BN, 0.0)
            for each in (drawn_BN, truth_BN)
        )
        found = (torch.where(known_BN, truth_BN, drawn_BN), *sure)
        drawn_BN, confidence_BN, true_p_BN = (torch.zeros_like(x).scatter(1, orders_BN, x) for x in found)
        return DrawnCodes(drawn_BN, confidence_BN, truth_BN=true_p_BN)

    def loss(self, codes_BN: Tensor, condition: Condition, *, noise: Noise) -> Losses:
        """Cross-entropy of every code after those before it in a random order."""
        classes_B = self.dropped(condition, codes_BN.device, noise)
        orders_BN = self.orders(None, len(codes_BN), noise)
        return cross_entropy(self(codes_BN, classes_B, orders_BN), codes_BN.gather(1, orders_BN))

    def _pairs(self, codes_BK: Tensor, positions_BK: Tensor) -> tuple[Tensor, Tensor]:
        """[instruction, code, instruction, code, ...] (B, 2 K, D), and their rotary tables."""
        tokens = torch.stack([self.instructions(positions_BK), self.tok_embeddings(codes_BK)], dim=2).flatten(1, 2)
        return tokens, self.table[1 + positions_BK].repeat_interleave(2, dim=1)
