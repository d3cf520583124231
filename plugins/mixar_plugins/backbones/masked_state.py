"""Sampling from MAR's transformer: what is known, and what the steps share, computed once."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

from mixar_core.backbone import BackboneState
from mixar_core.blocks import CrossAttention
from mixar_core.masking import put, split_known, take
from mixar_core.precision import full_precision
from mixar_core.types import Condition, Guidance, Step, Z
from mixar_plugins.backbones.reuse import Memory, Reuse

if TYPE_CHECKING:
    from mixar_plugins.backbones.masked import MaskedBackbone


class Shared:
    """What no step changes, as long as the guidance is the same: positions, class, prefix, fill, keys of a memory.

    Tokens come as (B, ...), or as (2 B, ...) with the unconditional half of the guidance below the conditional one.
    """

    def __init__(self, backbone: MaskedBackbone, condition: Condition, guidance: Guidance) -> None:
        self.backbone, self.condition, self.guidance = backbone, condition, guidance
        self._fronts: dict[int, Tensor] = {}
        device = condition.labels_B.device
        #: in what the backbone's first product gives, as autocast has it
        self.dtype = backbone.z_proj(torch.zeros(1, 0, backbone.token_dim, device=device, dtype=backbone.dtype)).dtype
        self._fill_BND: Tensor | None = None
        #: what each block's cross-attention looks at
        self.memory = [self._looked_at(getattr(block, "cross", None)) for block in backbone.blocks()]

    def _looked_at(self, cross: CrossAttention | None) -> Memory:
        if cross is None or self.guidance.memory_BMD is None:
            return None
        memory_BMD = self.guidance.memory_BMD.to(self.backbone.dtype)
        # weights that processes share (torch's DTensor) are there only while their block runs
        return memory_BMD if hasattr(cross.kv.weight, "to_local") else cross.keys_values(memory_BMD)

    def encoder_input(self, tokens_BNC: Tensor, visible_BU: Tensor) -> Tensor:
        """What the encoder's first block sees: [prefix, class buffer, visible tokens]."""
        backbone = self.backbone
        visible_BUD = backbone.z_proj(take(tokens_BNC, visible_BU).to(backbone.dtype))
        front = self._front(len(tokens_BNC) // len(self.condition))
        return torch.cat([front, backbone.z_proj_ln(backbone.placed(visible_BUD, visible_BU))], dim=1)

    def _front(self, copies: int) -> Tensor:
        if copies not in self._fronts:
            condition = self.condition if copies == 1 else self.condition.guided()
            prefix_BPD = self.guidance.repeat(copies).prefix_BPD
            self._fronts[copies] = self.backbone.z_proj_ln(self.backbone.front(condition, prefix_BPD, self.dtype))
        return self._fronts[copies]

    def decoder_input(self, encoded: Tensor, visible_BU: Tensor) -> Tensor:
        """What the decoder's first block sees: [prefix, class buffer, all tokens], the others masked or filled."""
        backbone, buffer = self.backbone, self.backbone.config.buffer
        x, positions = backbone.decoder_embed(encoded), backbone.decoder_pos_embed_learned
        front, places = x.shape[1] - visible_BU.shape[1], positions[:, buffer:].expand(len(x), -1, -1)
        if self._fill_BND is None:
            masked_BND = backbone.mask_token if self.guidance.fill_BND is None else self.guidance.fill_BND
            fill_BND = masked_BND.to(x.dtype) + positions[:, buffer:]
            self._fill_BND = fill_BND.expand(len(self.condition), -1, -1)
        tokens_BND = self._fill_BND.repeat(len(x) // len(self.condition), 1, 1)
        tokens_BND = put(tokens_BND, visible_BU, x[:, front:] + take(places, visible_BU))
        prefix, buffered = x[:, : front - buffer], x[:, front - buffer : front] + positions[:, :buffer]
        return torch.cat([prefix, buffered, tokens_BND], dim=1)


class MaskedState(BackboneState):
    """What is known so far. A prediction computes encoder and decoder anew, unless its step reuses (see `Reuse`)."""

    def __init__(self, backbone: MaskedBackbone, condition: Condition, guidance: Guidance) -> None:
        self.backbone, self.condition, self.guidance = backbone, condition, guidance
        shape, device = (len(condition), backbone.layout.tokens), condition.labels_B.device
        self.tokens_BNC = torch.zeros(*shape, backbone.token_dim, device=device)
        self.known_BN = torch.zeros(shape, dtype=torch.bool, device=device)
        self.known = 0
        self.shared: Shared | None = None
        #: what a step that reuses builds on, and what became known since
        self.reuse: Reuse | None = None
        self.recent_BK = torch.zeros(shape[0], 0, dtype=torch.int64, device=device)

    def predict(self, positions_BK: Tensor, step: Step) -> Z:
        """z of these tokens. The visible ones are looked at in ascending order, however they became known.

        A step that is to reuse computes all anew where there is nothing to build on: no full pass before it, none with
        both halves, or other guidance since.
        """
        if step.redraw:
            self.known_BN, self.known = (
                self.known_BN.scatter(1, positions_BK, False),
                self.known - positions_BK.shape[1],
            )
        # weights in bf16 compute in it by themselves
        with full_precision(positions_BK.device) if self.backbone.dtype == torch.bfloat16 else nullcontext():
            z_BKD = self._predict(positions_BK, step)
        self.recent_BK = self.recent_BK[:, :0]
        if step.cfg == 1.0:
            return Z(z_BKD[: len(positions_BK)], positions_BK)
        cond_BKD, uncond_BKD = z_BKD.chunk(2)
        return Z(cond_BKD, positions_BK, uncond_BKD)

    def _predict(self, positions_BK: Tensor, step: Step) -> Tensor:
        """z (B, K, D), or both halves below each other where the step is guided."""
        if self.shared is None or self.shared.guidance is not self.guidance:
            self.shared = Shared(self.backbone, self.condition, self.guidance)
            self.reuse = None
        if step.reuse is None or step.redraw:
            self.reuse = None
        elif self.reuse is None or self.reuse.method != step.reuse:
            self.reuse = Reuse(self.backbone, self.shared, step.reuse)
            step = attrs.evolve(step, refresh=True)
        guided = step.cfg != 1.0
        if self.reuse is not None and not step.refresh and (self.reuse.guided or not guided):
            copies = self.reuse.copies
            tokens_BNC, recent_BK = self.tokens_BNC.repeat(copies, 1, 1), self.recent_BK.repeat(copies, 1)
            return self.reuse.between(tokens_BNC, recent_BK, positions_BK.repeat(copies, 1), step)
        split, copies = split_known(self.known_BN, self.known), 1 + guided
        tokens_BNC, positions_BK = self.tokens_BNC.repeat(copies, 1, 1), positions_BK.repeat(copies, 1)
        visible_BU = split.visible_BU.repeat(copies, 1)
        if self.reuse is not None:
            return self.reuse.full(tokens_BNC, visible_BU, positions_BK, guided=guided)
        return self._lean(self.shared, tokens_BNC, visible_BU, positions_BK)

    def _lean(self, shared: Shared, tokens_BNC: Tensor, visible_BU: Tensor, positions_BK: Tensor) -> Tensor:
        """A full pass; of the decoder's last block only what is to be predicted, which looks at all."""
        backbone, depth = self.backbone, len(self.backbone.encoder_blocks)
        x = shared.encoder_input(tokens_BNC, visible_BU)
        for block, memory in zip(backbone.encoder_blocks, shared.memory[:depth], strict=True):
            x = block(x, memory)
        x = shared.decoder_input(backbone.encoder_norm(x), visible_BU)
        *most, last = zip(backbone.decoder_blocks, shared.memory[depth:], strict=True)
        for block, memory in most:
            x = block(x, memory)
        block, memory = last
        return backbone.z_of(block(x, memory, positions_BK + (x.shape[1] - backbone.layout.tokens)), positions_BK)

    def reveal(self, positions_BK: Tensor, tokens_BKC: Tensor) -> None:
        """These tokens are known."""
        self.tokens_BNC = put(self.tokens_BNC, positions_BK, tokens_BKC)
        self.known_BN, self.known = self.known_BN.scatter(1, positions_BK, True), self.known + positions_BK.shape[1]
        self.recent_BK = torch.cat([self.recent_BK, positions_BK], dim=1)
