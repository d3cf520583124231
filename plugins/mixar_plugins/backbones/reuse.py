"""Steps of sampling that reuse what earlier ones computed: LazyMAR (arXiv 2503.12450) and ReCAP, on MAR's transformer.

Both keep every block's keys and values from a full pass. A step in between runs the encoder over the class buffer and
the tokens that became known since, and the decoder over fewer tokens than there are; those look at all that is kept,
with their own keys and values in their places.

In between, `lazymar` computes the conditional half of the guidance and adds the difference that the halves had in the
last full pass; from block 3 on its decoder goes on with a share of the tokens, those whose values changed most. `recap`
computes both halves, of what is predicted and what became known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from mixar_core.blocks import Block, KeysValues
from mixar_core.masking import put, take
from mixar_core.types import Step

if TYPE_CHECKING:
    from mixar_plugins.backbones.masked import MaskedBackbone
    from mixar_plugins.backbones.masked_state import Shared

#: what a block's cross-attention looks at; None: there is no memory, or the block does not look at one
Memory: TypeAlias = Tensor | KeysValues | None

#: LazyMAR's released code: the block whose attention decides which tokens go on, and how many do beyond the needed ones
PRUNING_BLOCK, SPARE = 3, 15


class KeptBlock:
    """A block, and the keys and values that its tokens had."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.k = self.v = torch.empty(0)

    def fill(self, x: Tensor, memory: Memory, rows: int) -> Tensor:
        """The block over (B, T, D); keeps the keys and values of the first `rows` of the batch."""
        q, k, v = self.block.attn.split(self.block.norm1(x))
        self.k, self.v = k[:rows], v[:rows]
        return self.block.rest(x + self.block.attn.looking(q, k, v), memory)

    def fill_last(self, x: Tensor, rows: int) -> KeysValues:
        """The same of a last block, whose output is wanted of few tokens: keys and values of the whole batch."""
        k, v = self.block.attn.keys_values(self.block.norm1(x))
        self.k, self.v = k[:rows], v[:rows]
        return k, v

    def look(self, x: Tensor, memory: Memory, among: KeysValues) -> Tensor:
        """The block over tokens (B, R, D) that look at these keys and values."""
        q = self.block.attn.queries(self.block.norm1(x))
        return self.block.rest(x + self.block.attn.looking(q, *among), memory)

    def append(self, x: Tensor, memory: Memory, front: int) -> Tensor:
        """The block over new tokens behind a front (B, front + K, D): the front's are replaced, the others added."""
        q, k, v = self.block.attn.split(self.block.norm1(x))
        self.k = torch.cat([k[:, :, :front], self.k[:, :, front:], k[:, :, front:]], dim=2)
        self.v = torch.cat([v[:, :, :front], self.v[:, :, front:], v[:, :, front:]], dim=2)
        return self.block.rest(x + self.block.attn.looking(q, self.k, self.v), memory)

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

    def replace(self, x: Tensor, memory: Memory, where_BR: Tensor) -> Tensor:
        """The block over tokens (B, R, D) that stand at these places among all."""
        return self.block.rest(self.attend(x, where_BR)[0], memory)


class Reuse:
    """What one full pass left, and the passes that build on it.

    Args:
        shared: what the steps have in common. method: lazymar or recap.
    """

    def __init__(self, backbone: MaskedBackbone, shared: Shared, method: str) -> None:
        self.backbone, self.shared, self.method = backbone, shared, method
        kept = [KeptBlock(cast(Block, block)) for block in backbone.blocks()]
        depth = len(backbone.encoder_blocks)
        self.encoder = [*zip(kept[:depth], shared.memory[:depth], strict=True)]
        self.decoder = [*zip(kept[depth:], shared.memory[depth:], strict=True)]
        #: what the decoder saw, of the halves that steps in between compute
        self.seen_BTD = torch.empty(0)
        #: what its last block saw in the full pass, of both halves, and the keys and values there
        self.last_BTD, self.last_kv = torch.empty(0), (torch.empty(0), torch.empty(0))
        self.guided = False

    @property
    def copies(self) -> int:
        """How many halves of the guidance a step in between computes."""
        return 2 if self.guided and self.method == "recap" else 1

    def full(self, tokens_BNC: Tensor, visible_BU: Tensor, positions_BK: Tensor, *, guided: bool) -> Tensor:
        """z (B, K, D) as the backbone has it, both halves below each other where `guided`; keeps what it computed."""
        rows = len(tokens_BNC)
        self.guided = guided
        if guided and self.method == "lazymar":
            rows //= 2
        x = self.shared.encoder_input(tokens_BNC, visible_BU)
        for kept, memory in self.encoder:
            x = kept.fill(x, memory, rows)
        x = self.shared.decoder_input(self.backbone.encoder_norm(x), visible_BU)
        self.seen_BTD = x[:rows]
        for kept, memory in self.decoder[:-1]:
            x = kept.fill(x, memory, rows)
        self.last_BTD, self.last_kv = x, self.decoder[-1][0].fill_last(x, rows)
        return self.z_of_full(positions_BK)

    def z_of_full(self, positions_BK: Tensor) -> Tensor:
        """z (B, K, D) of these tokens in the full pass."""
        return self.backbone.z_of(self._last(positions_BK), positions_BK)

    def _last(self, positions_BK: Tensor) -> Tensor:
        """What the last block gave these tokens (B, K, D) in the full pass, of the halves that it computed."""
        wanted_BK = positions_BK + (self.last_BTD.shape[1] - self.backbone.layout.tokens)
        kept, memory = self.decoder[-1]
        return kept.look(take(self.last_BTD, wanted_BK), memory, self.last_kv)

    def between(self, tokens_BNC: Tensor, recent_BK: Tensor, positions_BK: Tensor, step: Step) -> Tensor:
        """z (B, K, D) of a step that reuses, both halves below each other where the step is guided.

        Args:
            tokens_BNC: with what is known; of the halves that the method computes, as the others.
            recent_BK: what became known since the pass before.
            positions_BK: what is to be predicted.
        """
        backbone = self.backbone
        # What is neither recent nor in front is not looked at: it stays as it was seen.
        recent_BK = recent_BK.sort(dim=1).values
        x = self.shared.encoder_input(tokens_BNC, recent_BK)
        front = x.shape[1] - recent_BK.shape[1]
        for kept, memory in self.encoder:
            x = kept.append(x, memory, front)
        new_BTD = self.shared.decoder_input(backbone.encoder_norm(x), recent_BK)
        places_BF = torch.arange(front, device=x.device).expand(len(x), -1)
        changed_BR = torch.cat([places_BF, front + recent_BK], dim=1)
        self.seen_BTD = put(self.seen_BTD, changed_BR, take(new_BTD, changed_BR))
        needed_BR = torch.cat([front + recent_BK, front + positions_BK], dim=1)
        if self.method == "recap":
            where_BR = torch.cat([places_BF, needed_BR], dim=1)
            x = take(self.seen_BTD, where_BR)
            for kept, memory in self.decoder:
                x = kept.replace(x, memory, where_BR)
        else:
            x, where_BR = self._pruned(needed_BR, step.share)
        x = put(torch.zeros_like(self.seen_BTD), where_BR, x)
        return self.z_between(x, positions_BK, guided=step.cfg != 1.0)

    def z_between(self, x_BTD: Tensor, positions_BK: Tensor, *, guided: bool) -> Tensor:
        """z (B, K, D) of these tokens, of what the decoder's last block gave in a step in between."""
        x = take(x_BTD, positions_BK + (x_BTD.shape[1] - self.backbone.layout.tokens))
        if guided and self.method == "lazymar":  # the halves differ as they did
            positions_BK = positions_BK.repeat(2, 1)
            cond, uncond = self._last(positions_BK).chunk(2)
            x = torch.cat([x, x + (uncond - cond)])
        return self.backbone.z_of(x, positions_BK)

    def _pruned(self, needed_BR: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """LazyMAR's decoder: all tokens up to the pruning block's attention, then those that changed most.

        Returns:
            the last block's output (B, R, D) of the tokens that went on, and their places (B, R).
        """
        x, tokens = self.seen_BTD, self.seen_BTD.shape[1]
        where_BR = torch.arange(tokens, device=x.device).expand(len(x), -1)
        pruning = min(PRUNING_BLOCK, len(self.decoder) - 1)
        kept_tokens = min(tokens, max(needed_BR.shape[1] + SPARE, int(tokens * share)))
        for index, (kept, memory) in enumerate(self.decoder):
            x, like_BT = kept.attend(x, where_BR)
            if index == pruning and kept_tokens < tokens:
                like_BT = like_BT.scatter(1, needed_BR, 0.0)
                where_BR = like_BT.topk(kept_tokens, dim=1, largest=False).indices.sort(dim=1).values
                x = take(x, where_BR)
            x = kept.block.rest(x, memory)
        return x, where_BR
