"""Steps of sampling that reuse what earlier ones computed: LazyMAR (arXiv 2503.12450) and ReCAP, on MAR's transformer.

Both keep every block's keys and values from a full pass. A step in between runs the encoder over the class buffer and
the tokens that became known since, and the decoder over fewer tokens than there are; those look at all that is kept,
with their own keys and values in their places.

In between, `lazymar` computes the conditional half of the guidance and adds the difference that the halves had in the
last full pass; from block 3 on its decoder goes on with a share of the tokens, those whose values changed most. `recap`
computes both halves, of what is predicted and what became known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from mixar_core.blocks import Block
from mixar_core.masking import put, split_known, take
from mixar_core.types import Condition, Guidance, MaskSplit, Step

if TYPE_CHECKING:
    from mixar_plugins.backbones.masked import MaskedBackbone

#: LazyMAR's released code: the block whose attention decides which tokens go on, and how many do beyond the needed ones
PRUNING_BLOCK, SPARE = 3, 15


class KeptBlock:
    """A block, and the keys and values that its tokens had."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.k = self.v = torch.empty(0)

    def fill(self, x: Tensor, memory_BMD: Tensor | None, rows: int) -> Tensor:
        """The block over (B, T, D); keeps the keys and values of the first `rows` of the batch."""
        q, k, v = self.block.attn.split(self.block.norm1(x))
        self.k, self.v = k[:rows], v[:rows]
        return self.block.rest(x + self.block.attn.looking(q, k, v), memory_BMD)

    def append(self, x: Tensor, memory_BMD: Tensor | None, front: int) -> Tensor:
        """The block over new tokens behind a front (B, front + K, D): the front's are replaced, the others added."""
        q, k, v = self.block.attn.split(self.block.norm1(x))
        self.k = torch.cat([k[:, :, :front], self.k[:, :, front:], k[:, :, front:]], dim=2)
        self.v = torch.cat([v[:, :, :front], self.v[:, :, front:], v[:, :, front:]], dim=2)
        return self.block.rest(x + self.block.attn.looking(q, self.k, self.v), memory_BMD)

    def attend(self, x: Tensor, where_BR: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of tokens (B, R, D) at these places among all; and how like their values are to those before.

        Returns:
            (B, R, D); cosine similarity of new and kept values, a mean over heads, (B, R).
        """
        q, k, v = self.block.attn.split(self.block.norm1(x))
        index = where_BR[:, None, :, None].expand_as(k)
        like = F.cosine_similarity(v, self.v.gather(2, index), dim=-1).mean(dim=1)
        self.k, self.v = self.k.scatter(2, index, k), self.v.scatter(2, index, v)
        return x + self.block.attn.looking(q, self.k, self.v), like

    def replace(self, x: Tensor, memory_BMD: Tensor | None, where_BR: Tensor) -> Tensor:
        """The block over tokens (B, R, D) that stand at these places among all."""
        return self.block.rest(self.attend(x, where_BR)[0], memory_BMD)


class Reuse:
    """What one full pass left, and the passes that build on it.

    Args:
        method: lazymar or recap.
    """

    def __init__(self, backbone: MaskedBackbone, method: str) -> None:
        self.backbone, self.method = backbone, method
        self.encoder = [KeptBlock(cast(Block, block)) for block in backbone.encoder_blocks]
        self.decoder = [KeptBlock(cast(Block, block)) for block in backbone.decoder_blocks]
        #: what the decoder saw, of the halves that steps in between compute; and LazyMAR's difference of the halves
        self.seen_BTD = torch.empty(0)
        self.difference_BTD: Tensor | None = None
        self.guided = False

    @property
    def copies(self) -> int:
        """How many halves of the guidance a step in between computes."""
        return 2 if self.guided and self.method == "recap" else 1

    def full(
        self, tokens_BNC: Tensor, split: MaskSplit, condition: Condition, guidance: Guidance, *, guided: bool
    ) -> Tensor:
        """z (B, N, D) as the backbone has it, both halves below each other where `guided`; keeps what it computed."""
        backbone, rows = self.backbone, len(tokens_BNC)
        self.guided = guided
        if guided and self.method == "lazymar":
            rows //= 2
        memory_BMD = guidance.memory_BMD
        x = backbone.encoder_input(tokens_BNC, split, condition, guidance)
        memory_BMD = None if memory_BMD is None else memory_BMD.to(x.dtype)
        for kept in self.encoder:
            x = kept.fill(x, memory_BMD, rows)
        x = backbone.decoder_input(backbone.encoder_norm(x), split, guidance)
        self.seen_BTD = x[:rows]
        for kept in self.decoder:
            x = kept.fill(x, memory_BMD, rows)
        self.difference_BTD = x[rows:] - x[:rows] if guided and self.method == "lazymar" else None
        return backbone.decoder_output(x)

    def between(
        self,
        tokens_BNC: Tensor,
        recent_BK: Tensor,
        positions_BK: Tensor,
        condition: Condition,
        guidance: Guidance,
        step: Step,
    ) -> Tensor:
        """z (B, N, D) of a step that reuses; right at the tokens it is to predict, elsewhere not to be used.

        Args:
            tokens_BNC: with what is known; for the halves that the method computes, as `condition` and `guidance`.
            recent_BK: what became known since the pass before.
            positions_BK: what is to be predicted.
        """
        backbone = self.backbone
        memory_BMD = guidance.memory_BMD
        # What is neither recent nor in front is not looked at: it stays as it was seen.
        none_BN = torch.zeros(*tokens_BNC.shape[:2], dtype=torch.bool, device=tokens_BNC.device)
        split = split_known(none_BN.scatter(1, recent_BK, True), recent_BK.shape[1])
        recent_BK = split.visible_BU
        x = backbone.encoder_input(tokens_BNC, split, condition, guidance)
        memory_BMD = None if memory_BMD is None else memory_BMD.to(x.dtype)
        front = x.shape[1] - recent_BK.shape[1]
        for kept in self.encoder:
            x = kept.append(x, memory_BMD, front)
        new_BTD = backbone.decoder_input(backbone.encoder_norm(x), split, guidance)
        places_BF = torch.arange(front, device=x.device).expand(len(x), -1)
        changed_BR = torch.cat([places_BF, front + recent_BK], dim=1)
        self.seen_BTD = put(self.seen_BTD, changed_BR, take(new_BTD, changed_BR))
        needed_BR = torch.cat([front + recent_BK, front + positions_BK], dim=1)
        if self.method == "recap":
            where_BR = torch.cat([places_BF, needed_BR], dim=1)
            x = take(self.seen_BTD, where_BR)
            for kept in self.decoder:
                x = kept.replace(x, memory_BMD, where_BR)
        else:
            x, where_BR = self._pruned(needed_BR, memory_BMD, step.share)
        x = put(torch.zeros_like(self.seen_BTD), where_BR, x)
        if self.difference_BTD is not None and step.cfg != 1.0:
            x = torch.cat([x, x + self.difference_BTD])
        return backbone.decoder_output(x)

    def _pruned(self, needed_BR: Tensor, memory_BMD: Tensor | None, share: float) -> tuple[Tensor, Tensor]:
        """LazyMAR's decoder: all tokens up to the pruning block's attention, then those that changed most.

        Returns:
            the last block's output (B, R, D) of the tokens that went on, and their places (B, R).
        """
        x, tokens = self.seen_BTD, self.seen_BTD.shape[1]
        where_BR = torch.arange(tokens, device=x.device).expand(len(x), -1)
        pruning = min(PRUNING_BLOCK, len(self.decoder) - 1)
        kept_tokens = min(tokens, max(needed_BR.shape[1] + SPARE, int(tokens * share)))
        for index, kept in enumerate(self.decoder):
            x, like_BT = kept.attend(x, where_BR)
            if index == pruning and kept_tokens < tokens:
                like_BT = like_BT.scatter(1, needed_BR, 0.0)
                where_BR = like_BT.topk(kept_tokens, dim=1, largest=False).indices.sort(dim=1).values
                x = take(x, where_BR)
            x = kept.block.rest(x, memory_BMD)
        return x, where_BR
