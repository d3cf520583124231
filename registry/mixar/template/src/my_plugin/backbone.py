"""A backbone: output vectors z for tokens that are to be predicted, from those that are known."""

from __future__ import annotations

import torch
from attrs import field, frozen
from attrs.validators import and_, ge, le
from mixar_core import (
    NO_CLASS,
    Backbone,
    BackboneState,
    Condition,
    Guidance,
    MaskSplit,
    Step,
    TokenLayout,
    UserError,
    Z,
)
from torch import Tensor, nn


@frozen
class MyPluginBackboneConfig:
    """Sizes of the transformer.

    Args:
        width, depth, heads: of the transformer.
        label_dropout: share of labels that are dropped in training, for guidance.
    """

    width: int = field(default=64, validator=ge(1))
    depth: int = field(default=2, validator=ge(1))
    heads: int = field(default=4, validator=ge(1))
    label_dropout: float = field(default=0.1, validator=and_(ge(0.0), le(1.0)))

    def __attrs_post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")


class MyPluginBackbone(Backbone):
    """One transformer over the class and all tokens, of which those that are not known are a mask token or a fill."""

    def __init__(
        self,
        config: MyPluginBackboneConfig,
        *,
        layout: TokenLayout,
        token_dim: int,
        num_classes: int,
        memory: bool,
        condition_width: int,
    ) -> None:
        if memory or condition_width:
            lacks = "an injector with a memory" if memory else "a conditioner"
            raise UserError(f"backbone my-plugin does not go with {lacks}: it has no cross-attention")
        super().__init__()
        width = config.width
        self.layout, self.token_dim, self.num_classes = layout, token_dim, num_classes
        self.width, self.guidance_width, self.label_dropout = width, width, config.label_dropout
        self.classes = nn.Embedding(num_classes + 1, width)  # the last is no class
        self.embed = nn.Linear(token_dim, width)
        self.mask_D = nn.Parameter(0.02 * torch.randn(width))
        self.positions_ND = nn.Parameter(0.02 * torch.randn(layout.tokens, width))
        layer = nn.TransformerEncoderLayer(
            width, config.heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.trunk = nn.TransformerEncoder(layer, config.depth, nn.LayerNorm(width), enable_nested_tensor=False)

    def z_BND(self, tokens_BNC: Tensor, known_BN: Tensor, condition: Condition, guidance: Guidance) -> Tensor:
        """z (B, N, D) of all tokens, from those that are known."""
        fill_BND = self.mask_D if guidance.fill_BND is None else guidance.fill_BND + 0.0 * self.mask_D
        x_BND = torch.where(known_BN[..., None], self.embed(tokens_BNC), fill_BND) + self.positions_ND
        labels_B = torch.where(condition.labels_B == NO_CLASS, self.num_classes, condition.labels_B)
        before = [self.classes(labels_B)[:, None].to(x_BND.dtype)]
        if guidance.prefix_BPD is not None:
            before.append(guidance.prefix_BPD.to(x_BND.dtype))
        out_BTD: Tensor = self.trunk(torch.cat([*before, x_BND], dim=1))
        return out_BTD[:, -self.layout.tokens :]

    def forward(self, tokens_BNC: Tensor, split: MaskSplit, condition: Condition, guidance: Guidance) -> Tensor:
        """z (B, K, D) of the masked tokens."""
        return _take(self.z_BND(tokens_BNC, ~split.masked_BN, condition, guidance), split.masked_BK)

    def start(self, condition: Condition, guidance: Guidance, *, guided: bool) -> BackboneState:
        """No token is known."""
        return MyPluginState(self, condition, guidance)


class MyPluginState(BackboneState):
    """What is known of a batch; everything is computed anew in each step."""

    def __init__(self, backbone: MyPluginBackbone, condition: Condition, guidance: Guidance) -> None:
        self.backbone, self.condition, self.guidance = backbone, condition, guidance
        size, device = (len(condition), backbone.layout.tokens), condition.labels_B.device
        self.tokens_BNC = torch.zeros(*size, backbone.token_dim, device=device)
        self.known_BN = torch.zeros(size, dtype=torch.bool, device=device)

    def predict(self, positions_BK: Tensor, step: Step) -> Z:
        """z of these tokens, also without the condition where there is guidance."""
        if step.redraw:
            self.known_BN = self.known_BN.scatter(1, positions_BK, False)
        cond_BKD, uncond_BKD = self._z(positions_BK, self.condition), None
        if step.cfg != 1.0:
            nobody_B = torch.ones_like(self.condition.labels_B, dtype=torch.bool)
            uncond_BKD = self._z(positions_BK, self.condition.dropped(nobody_B))
        return Z(cond_BKD, positions_BK, uncond_BKD, self.tokens_BNC, self.known_BN)

    def reveal(self, positions_BK: Tensor, tokens_BKC: Tensor) -> None:
        """From now on these tokens are known."""
        index_BKC = positions_BK[..., None].expand_as(tokens_BKC)
        self.tokens_BNC = self.tokens_BNC.scatter(1, index_BKC, tokens_BKC)
        self.known_BN = self.known_BN.scatter(1, positions_BK, True)

    def _z(self, positions_BK: Tensor, condition: Condition) -> Tensor:
        return _take(self.backbone.z_BND(self.tokens_BNC, self.known_BN, condition, self.guidance), positions_BK)


def _take(x_BND: Tensor, positions_BK: Tensor) -> Tensor:
    return x_BND.gather(1, positions_BK[..., None].expand(-1, -1, x_BND.shape[2]))
