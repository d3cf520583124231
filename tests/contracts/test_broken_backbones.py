"""The contract of backbones catches a backbone with one thing wrong; the smallest ones pass, masked and causal."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from mixar_core import Backbone, BackboneState, Condition, Grid, Guidance, MaskSplit, Step, TokenLayout, UserError, Z
from mixar_core.masking import put, take
from mixar_core.testing import check_backbone
from mixar_core.testing.backbones import TOLERANCE

LAYOUT = TokenLayout("grid", (Grid(2, 3),))
WIDTH = 8


class Masked(Backbone):
    """The smallest one: z from the sum of the known tokens, its own position, and what comes in through the doors."""

    width = guidance_width = WIDTH

    def __init__(self, *, layout: TokenLayout, token_dim: int, num_classes: int, memory=False, condition_width=0):
        super().__init__()
        self.layout, self.token_dim, self.num_classes = layout, token_dim, num_classes
        self.embed = nn.Linear(token_dim, WIDTH, bias=False)
        self.places = nn.Embedding(layout.tokens, WIDTH)
        self.classes = nn.Embedding(num_classes + 1, WIDTH)  # the last is "no class"
        self.out = nn.Linear(WIDTH, WIDTH)
        self.memory = nn.Linear(WIDTH, WIDTH) if memory else None
        self.vectors = nn.Linear(condition_width, WIDTH) if condition_width else None

    def placed(self, rows_BKC: Tensor, positions_BK: Tensor) -> Tensor:
        """Tokens with their places, (B, K, D)."""
        return self.embed(rows_BKC) * self.places(positions_BK)

    def told(self, condition: Condition, guidance: Guidance) -> Tensor:
        """What all tokens are told, (B, 1, D)."""
        labels_B = condition.labels_B
        told_B1D = self.classes(torch.where(labels_B < 0, self.num_classes, labels_B))[:, None]
        if guidance.prefix_BPD is not None:
            told_B1D = told_B1D + guidance.prefix_BPD.sum(dim=1, keepdim=True)
        if guidance.memory_BMD is not None:
            told_B1D = told_B1D + self.memory(guidance.memory_BMD).sum(dim=1, keepdim=True)
        if condition.vectors_BTF is not None:
            told_B1D = told_B1D + self.summary(condition)
        return told_B1D

    def summary(self, condition: Condition) -> Tensor:
        """Of the vectors that count, (B, 1, D)."""
        return (self.vectors(condition.vectors_BTF) * condition.counting_BT()[..., None]).sum(dim=1, keepdim=True)

    def z(self, known_BD: Tensor, positions_BK: Tensor, condition: Condition, guidance: Guidance) -> Tensor:
        """(B, K, D), from the sum of what is known: (B, D), or (B, K, D) where each knows another."""
        known_BKD = known_BD if known_BD.ndim == 3 else known_BD[:, None]
        x_BKD = known_BKD + self.places(positions_BK) + self.told(condition, guidance)
        if guidance.fill_BND is not None:
            x_BKD = x_BKD + take(guidance.fill_BND, positions_BK)
        return self.out(torch.tanh(x_BKD))

    def forward(self, tokens_BNC: Tensor, split: MaskSplit, condition: Condition, guidance: Guidance) -> Tensor:
        visible_BUD = self.placed(take(tokens_BNC, split.visible_BU), split.visible_BU)
        return self.z(visible_BUD.sum(dim=1), split.masked_BK, condition, guidance)

    def start(self, condition: Condition, guidance: Guidance, *, guided: bool) -> BackboneState:
        return State(self, condition, guidance)


class State(BackboneState):
    """The tokens that are known, zeros elsewhere."""

    def __init__(self, backbone: Masked, condition: Condition, guidance: Guidance) -> None:
        self.backbone, self.condition, self.guidance = backbone, condition, guidance
        shape, device = (len(condition), backbone.layout.tokens), condition.labels_B.device
        self.tokens_BNC = torch.zeros(*shape, backbone.token_dim, device=device)
        self.all_BN = torch.arange(shape[1], device=device).expand(shape)

    def predict(self, positions_BK: Tensor, step: Step) -> Z:
        if step.redraw:
            self.reveal(positions_BK, torch.zeros_like(take(self.tokens_BNC, positions_BK)))
        known_BD = self.backbone.placed(self.tokens_BNC, self.all_BN).sum(dim=1)
        cond_BKD = self.backbone.z(known_BD, positions_BK, self.condition, self.guidance)
        return Z(cond_BKD, positions_BK, self.uncond(known_BD, positions_BK) if step.cfg != 1.0 else None)

    def uncond(self, known_BD: Tensor, positions_BK: Tensor) -> Tensor:
        nothing = self.condition.dropped(torch.ones_like(self.condition.labels_B, dtype=torch.bool))
        return self.backbone.z(known_BD, positions_BK, nothing, self.guidance)

    def reveal(self, positions_BK: Tensor, tokens_BKC: Tensor) -> None:
        self.tokens_BNC = put(self.tokens_BNC, positions_BK, tokens_BKC)


class Causal(Masked):
    """Predicts every token of each pass, in the order of the split, from those before it."""

    masks = False

    def split(self, orders_BN: Tensor, ratio: float) -> MaskSplit:
        return MaskSplit(orders_BN[:, :0], orders_BN.flip(1))

    def before(self, placed_BKD: Tensor) -> Tensor:
        return placed_BKD.cumsum(dim=1) - placed_BKD

    def forward(self, tokens_BNC: Tensor, split: MaskSplit, condition: Condition, guidance: Guidance) -> Tensor:
        placed_BKD = self.placed(take(tokens_BNC, split.masked_BK), split.masked_BK)
        return self.z(self.before(placed_BKD), split.masked_BK, condition, guidance)


class Raster(Causal):
    """Knows one order only, and forgets nothing."""

    order = "raster"

    def start(self, condition: Condition, guidance: Guidance, *, guided: bool) -> BackboneState:
        class Stubborn(State):
            def predict(self, positions_BK: Tensor, step: Step) -> Z:
                if step.redraw:
                    raise UserError("this backbone redraws no token")
                return super().predict(positions_BK, step)

        return Stubborn(self, condition, guidance)


class Plain(Masked):
    """Has no door, and says so."""

    def told(self, condition: Condition, guidance: Guidance) -> Tensor:
        if guidance != Guidance() and (guidance.prefix_BPD is not None or guidance.memory_BMD is not None):
            raise UserError("this backbone has no such door")
        return super().told(condition, guidance)

    def z(self, known_BD: Tensor, positions_BK: Tensor, condition: Condition, guidance: Guidance) -> Tensor:
        if guidance.fill_BND is not None:
            raise UserError("this backbone has no door fill")
        return super().z(known_BD, positions_BK, condition, guidance)


def checked(backbone: Callable[..., Backbone], num_classes: int = 3) -> None:
    check_backbone(partial(backbone, layout=LAYOUT, token_dim=2, num_classes=num_classes))


@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize("backbone", [Masked, Causal, Raster, Plain])
def test_the_smallest_backbones_pass(backbone: type[Masked], num_classes: int) -> None:
    checked(backbone, num_classes)


class Peeks(Masked):
    def forward(self, tokens_BNC: Tensor, split: MaskSplit, condition: Condition, guidance: Guidance) -> Tensor:
        z_BKD = super().forward(tokens_BNC, split, condition, guidance)
        return z_BKD + 0.01 * self.embed(take(tokens_BNC, split.masked_BK))


class PeeksAhead(Causal):
    def before(self, placed_BKD: Tensor) -> Tensor:
        return placed_BKD.cumsum(dim=1)


class Blind(Causal):
    def before(self, placed_BKD: Tensor) -> Tensor:
        return 0 * placed_BKD


class DeafToLabels(Masked):
    def told(self, condition: Condition, guidance: Guidance) -> Tensor:
        return 0 * super().told(condition, guidance)


class DeafToFill(Masked):
    def z(self, known_BD: Tensor, positions_BK: Tensor, condition: Condition, guidance: Guidance) -> Tensor:
        return super().z(known_BD, positions_BK, condition, Guidance(None, guidance.prefix_BPD, guidance.memory_BMD))


class EveryVector(Masked):
    def summary(self, condition: Condition) -> Tensor:
        return self.vectors(condition.vectors_BTF).sum(dim=1, keepdim=True)


class HearsTheDropped(Masked):
    def summary(self, condition: Condition) -> Tensor:
        nothing_B11 = ~condition.counting_BT().any(dim=1)[:, None, None]
        return super().summary(condition) + nothing_B11 * condition.vectors_BTF.sum(dim=(1, 2), keepdim=True)


class BatchStatistics(Masked):
    def z(self, known_BD: Tensor, positions_BK: Tensor, condition: Condition, guidance: Guidance) -> Tensor:
        return super().z(known_BD - known_BD.mean(dim=0), positions_BK, condition, guidance)


class Unused(Masked):
    def __init__(self, **settings) -> None:
        super().__init__(**settings)
        self.spare = nn.Linear(2, 2)


class ValueDependent(Masked):
    def z(self, known_BD: Tensor, positions_BK: Tensor, condition: Condition, guidance: Guidance) -> Tensor:
        return super().z(known_BD[known_BD.sum(dim=1) == known_BD.sum(dim=1)], positions_BK, condition, guidance)


class GlobalRandom(State):
    def predict(self, positions_BK: Tensor, step: Step) -> Z:
        torch.rand(1)
        return super().predict(positions_BK, step)


class Sticky(State):
    """Keeps what it knows in the backbone, where it finds what the next state knows."""

    def __init__(self, backbone: Masked, condition: Condition, guidance: Guidance) -> None:
        super().__init__(backbone, condition, guidance)
        backbone.kept_BNC = self.tokens_BNC

    def reveal(self, positions_BK: Tensor, tokens_BKC: Tensor) -> None:
        super().reveal(positions_BK, tokens_BKC)
        self.backbone.kept_BNC = self.tokens_BNC

    def predict(self, positions_BK: Tensor, step: Step) -> Z:
        self.tokens_BNC = self.backbone.kept_BNC
        return super().predict(positions_BK, step)


class Tires(State):
    asked = 0

    def predict(self, positions_BK: Tensor, step: Step) -> Z:
        self.asked += 1
        z = super().predict(positions_BK, step)
        return z._replace(cond_BKD=z.cond_BKD + 0.1 * (self.asked > len(self.all_BN)))


class Forgets(State):
    def reveal(self, positions_BK: Tensor, tokens_BKC: Tensor) -> None:
        pass


class OtherPlaces(State):
    def predict(self, positions_BK: Tensor, step: Step) -> Z:
        return super().predict(positions_BK, step)._replace(positions_BK=positions_BK.flip(1))


class NoUncond(State):
    def predict(self, positions_BK: Tensor, step: Step) -> Z:
        return super().predict(positions_BK, step)._replace(uncond_BKD=None)


class AlwaysUncond(State):
    def predict(self, positions_BK: Tensor, step: Step) -> Z:
        z = super().predict(positions_BK, step)
        return z._replace(uncond_BKD=z.cond_BKD if z.uncond_BKD is None else z.uncond_BKD)


class CondTwice(State):
    def uncond(self, known_BD: Tensor, positions_BK: Tensor) -> Tensor:
        return self.backbone.z(known_BD, positions_BK, self.condition, self.guidance)


class DropsGuidance(State):
    def uncond(self, known_BD: Tensor, positions_BK: Tensor) -> Tensor:
        guidance, self.guidance = self.guidance, Guidance()
        uncond_BKD = super().uncond(known_BD, positions_BK)
        self.guidance = guidance
        return uncond_BKD


class OtherThanTraining(State):
    def predict(self, positions_BK: Tensor, step: Step) -> Z:
        z = super().predict(positions_BK, step)
        return Z(2 * z.cond_BKD, positions_BK, None if z.uncond_BKD is None else 2 * z.uncond_BKD)


class CountsCalls(State):
    """Tokens that come together count for less."""

    def reveal(self, positions_BK: Tensor, tokens_BKC: Tensor) -> None:
        super().reveal(positions_BK, tokens_BKC / tokens_BKC.shape[1])


class NeverForgets(State):
    def predict(self, positions_BK: Tensor, step: Step) -> Z:
        return super().predict(positions_BK, Step(cfg=step.cfg))


class Stale(State):
    """Looks at the guidance it was started with only."""

    def __init__(self, backbone: Masked, condition: Condition, guidance: Guidance) -> None:
        super().__init__(backbone, condition, guidance)
        self.first = guidance

    def predict(self, positions_BK: Tensor, step: Step) -> Z:
        self.guidance = self.first
        return super().predict(positions_BK, step)


BROKEN: list[tuple[type[Masked] | type[State], str]] = [
    (Peeks, "looks at what it must not know"),
    (PeeksAhead, "looks at what it must not know"),
    (Blind, "another token is known, yet z is the same"),
    (DeafToLabels, "another label, yet the same z"),
    (DeafToFill, "another fill, yet the same z"),
    (EveryVector, "a vector that does not count changes z"),
    (HearsTheDropped, "the vectors of a dropped condition change z"),
    (BatchStatistics, "an image depends on what shares its batch"),
    (Unused, "spare.weight gets no gradient"),
    (GlobalRandom, "torch's global generator"),
    (Sticky, "asked twice, predict says something else"),
    (Tires, "asked twice, predict says something else"),
    (Forgets, "other tokens are known, yet predict says the same"),
    (OtherPlaces, "positions_BK are not those that were asked for"),
    (NoUncond, "no unconditional z although step.cfg is not 1"),
    (AlwaysUncond, "an unconditional z although step.cfg is 1"),
    (CondTwice, "not that of a dropped condition"),
    (DropsGuidance, "not that of a dropped condition"),
    (OtherThanTraining, "predict and forward disagree"),
    (CountsCalls, "z depends on how tokens became known"),
    (NeverForgets, "a token that is redrawn is not forgotten"),
    (Stale, "the fill is replaced while sampling, yet z is the same"),
]


@pytest.mark.parametrize(("broken", "message"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_backbone_fails(broken: type[Masked] | type[State], message: str) -> None:
    class WithState(Masked):
        def start(self, condition: Condition, guidance: Guidance, *, guided: bool) -> BackboneState:
            return broken(self, condition, guidance)

    with pytest.raises(AssertionError, match=message):
        checked(broken if issubclass(broken, Masked) else WithState)


def test_shapes_must_not_depend_on_values() -> None:
    with pytest.raises(NotImplementedError, match="nonzero"):
        checked(ValueDependent)


def test_what_is_wrong_by_little_is_wrong() -> None:
    class Leaks(Masked):
        def forward(self, tokens_BNC: Tensor, split: MaskSplit, condition: Condition, guidance: Guidance) -> Tensor:
            z_BKD = super().forward(tokens_BNC, split, condition, guidance)
            return z_BKD + 30 * TOLERANCE * take(tokens_BNC, split.masked_BK).sum(dim=2, keepdim=True)

    with pytest.raises(AssertionError, match="must not know"):
        checked(Leaks)
