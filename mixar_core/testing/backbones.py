"""The contract of backbones: what training asks of one, and the conversation of sampling."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from attrs import evolve, frozen
from torch import Tensor

from mixar_core.backbone import Backbone, BackboneState
from mixar_core.errors import UserError
from mixar_core.masking import put, random_orders, raster_orders, take
from mixar_core.noise import Noise
from mixar_core.testing.common import (
    BATCH,
    build,
    check_gradients,
    check_module,
    expect,
    expect_alone,
    expect_tensor,
    labels_of,
    near,
    normal,
    topic,
    unchanged,
)
from mixar_core.types import Condition, Guidance, MaskSplit, Step, Z

#: how far two ways to compute the same may lie apart, relative to the largest value
TOLERANCE = 1e-5
_PLAIN, _GUIDED = Step(), Step(cfg=2.0)
#: what may reach z beside tokens and labels: three doors, and vectors (B, 3, 5) of a condition
_DOORS = {"fill": "fill_BND", "prefix": "prefix_BPD", "memory": "memory_BMD"}
_VECTORS = "vectors"


def check_backbone(make: Callable[..., Backbone]) -> None:
    """Raise AssertionError where a backbone breaks its contract.

    Training: z for every token that is to be predicted, from what is known and nothing else. Sampling: what `start`,
    `predict` and `reveal` say agrees with `forward`; asking changes nothing; both halves of the guidance are what they
    are alone. Of a backbone that masks (`masks`), z depends on which tokens are known, not on how and in which order
    they became so. One that predicts a token after the other promises to agree where one is revealed at a time. A door
    that it does not have, and a token that it cannot forget, it refuses with UserError.

    Args:
        make: takes the keywords `memory` and `condition_width` and builds one for a layout of about 6 to 16 tokens:
            `partial(Class, config, layout=..., token_dim=..., num_classes=...)`.
    """
    backbone, found = check_module(lambda: make(memory=False, condition_width=0), _exercise)
    for name, tensor in found.items():
        expect_tensor(name, tensor, (BATCH, tensor.shape[1], _said_width(backbone)))
    asked = _Asked.of(backbone)
    with torch.no_grad():
        _check_forward(asked, found)
        topic("what z must not know")
        _check_secrets(asked)
        topic("the conversation of sampling")
        _check_conversation(asked)
        topic("sampling agrees with training")
        _check_agreement(asked)
        topic("tokens that are kept or redrawn")
        _check_known(asked)
        _check_redraw(asked)
        topic("doors")
        doors = {door for door in (*_DOORS, _VECTORS) if _has_door(make, door)}
    _check_training(_built(make, doors), doors)


@frozen
class _Asked:
    """A backbone, and what it is asked: latents, in which order, for whom, with which guidance."""

    backbone: Backbone
    tokens_BNC: Tensor
    split: MaskSplit
    condition: Condition
    guidance: Guidance = Guidance()

    @classmethod
    def of(cls, backbone: Backbone, device: str = "cpu", *, rows: int = BATCH) -> _Asked:
        tokens = backbone.layout.tokens
        # of order "groups", too, whose own order `split` gives
        orders_BN = raster_orders(BATCH, tokens, device=device)
        if backbone.order == "any":
            orders_BN = random_orders(BATCH, tokens, noise=Noise.seeded(0), device=device)
        tokens_BNC = normal(BATCH, tokens, backbone.token_dim, device=device)
        condition = Condition(labels_of(backbone.num_classes, device)[:rows])
        return cls(backbone, tokens_BNC[:rows], backbone.split(orders_BN[:rows], 0.6), condition)

    @property
    def order_BN(self) -> Tensor:
        """All positions: those that are known first, then those that are predicted."""
        return torch.cat([self.split.visible_BU, self.split.masked_BK], dim=1)

    @property
    def steps(self) -> list[Tensor]:
        """The positions in that order as they are asked for: one by one, or group by group."""
        groups = self.backbone.groups
        return [*self.order_BN.split(1 if groups is None else [*map(len, groups)], dim=1)]

    def z(self) -> Tensor:
        """What `forward` says."""
        z = self.backbone(self.tokens_BNC, self.split, self.condition, self.guidance)
        return self.heard(z if isinstance(z, Z) else Z(z, self.split.masked_BK)).cond_BKD

    def heard(self, z: Z) -> Z:
        """With what is said in place of z where the backbone denoises: of the same noised tokens, always."""
        if z.denoise is None:
            return z
        (images, tokens), halves = z.positions_BK.shape, 1 if z.uncond_BKD is None else 2
        noised_11C = normal(1, 1, self.backbone.token_dim, device=str(z.positions_BK.device))
        noised_RKC = noised_11C.expand(halves * images, tokens, -1)
        answers_RKC = z.denoise.predict(noised_RKC, z.positions_BK.new_full((halves * images, z.denoise.groups), 500))
        cond_BKC = answers_RKC[:images]
        return Z(cond_BKC, z.positions_BK, None if halves == 1 else answers_RKC[images:])

    def ask(self, state: BackboneState, positions_BK: Tensor, step: Step) -> Z:
        """What a state says of these tokens."""
        return self.heard(state.predict(positions_BK, step))

    def start(self, *, guided: bool = False) -> BackboneState:
        return self.backbone.start(self.condition, self.guidance, guided=guided)

    def talk(self, step: Step = _PLAIN, *, until: int | None = None) -> tuple[BackboneState, list[Z]]:
        """A state of which token after token was asked and then revealed, and what it said of each; `until`: steps."""
        state, answers = self.start(guided=step.cfg != 1.0), []
        for positions_BK in self.steps[:until]:
            answers.append(self.ask(state, positions_BK, step))
            self.reveal(state, positions_BK)
        return state, answers

    def reveal(self, state: BackboneState, positions_BK: Tensor) -> None:
        state.reveal(positions_BK, take(self.tokens_BNC, positions_BK))

    def other(self, positions_BK: Tensor) -> _Asked:
        """The same with other latents there."""
        rows_BKC = take(self.tokens_BNC, positions_BK) + 1.0
        return evolve(self, tokens_BNC=put(self.tokens_BNC, positions_BK, rows_BKC))


def _said_width(backbone: Backbone) -> int:
    """Numbers that are said of a token."""
    return backbone.token_dim if backbone.denoises else backbone.width


def _exercise(module: Backbone, device: str) -> dict[str, Tensor]:
    asked = _Asked.of(module, device)
    with unchanged(tokens_BNC=asked.tokens_BNC, order_BN=asked.order_BN, labels_B=asked.condition.labels_B):
        found = {"z": asked.z(), "z without guidance": asked.ask(asked.start(), asked.steps[0], _PLAIN).cond_BKD}
        for index, z in enumerate(asked.talk(_GUIDED)[1]):
            found |= {f"z of step {index}": z.cond_BKD, f"unconditional z of step {index}": _uncond(z)}
    return found


def _uncond(z: Z) -> Tensor:
    expect(z.uncond_BKD is not None, "predict gives no unconditional z although step.cfg is not 1")
    assert z.uncond_BKD is not None
    return z.uncond_BKD


def _expect_near(a: Tensor, b: Tensor, message: str) -> None:
    expect(near(a, b, rtol=TOLERANCE), message)


def _expect_differ(a: Tensor, b: Tensor, message: str) -> None:
    expect(not near(a, b, rtol=TOLERANCE), message)


def _check_forward(asked: _Asked, found: Mapping[str, Tensor]) -> None:
    backbone, wanted = asked.backbone, asked.split.masked_BK.shape[1]
    expect(found["z"].shape[1] == wanted, f"forward gives z of {found['z'].shape[1]} tokens; {wanted} are asked for")
    expect_alone(found, {"z": _Asked.of(backbone, rows=1).z()})
    topic("what it depends on")
    if backbone.num_classes:
        other = Condition((asked.condition.labels_B + 1) % backbone.num_classes)
        _expect_differ(evolve(asked, condition=other).z(), found["z"], "another label, yet the same z")
    topic("under bf16 autocast")
    with torch.autocast("cpu", torch.bfloat16):
        expect_tensor("z under autocast", asked.z().float(), found["z"].shape)


def _check_secrets(asked: _Asked) -> None:
    """No z knows its own token, nor one that is predicted with it or after it; all know what comes before."""
    z_BKD, masked_BK, masks = asked.z(), asked.split.masked_BK, asked.backbone.masks
    for first in range(1 if masks else masked_BK.shape[1]):
        until = None if masks else first + 1
        seen_BKD = asked.other(masked_BK[:, first:]).z()
        _expect_near(seen_BKD[:, :until], z_BKD[:, :until], "z looks at what it must not know")
    known = asked.other(asked.order_BN[:, :1]).z()
    _expect_differ(known, z_BKD, "another token is known, yet z is the same")


def _check_conversation(asked: _Asked) -> None:
    """Asking changes nothing; states know nothing of one another, and an image knows nothing of its batch."""
    backbone = asked.backbone
    later_BK, until = asked.order_BN[:, 2:], 2
    if backbone.order != "any":
        until = 2 if backbone.groups is None else 1
        later_BK = asked.steps[until]
    state, _ = asked.talk(_GUIDED, until=until)
    z = asked.ask(state, later_BK, _GUIDED)
    expect(torch.equal(z.positions_BK, later_BK), "Z.positions_BK are not those that were asked for")
    shape = (*later_BK.shape, _said_width(backbone))
    expect_tensor("a step's z", z.cond_BKD, shape)
    expect_tensor("a step's unconditional z", _uncond(z), shape)
    other = asked.ask(asked.other(asked.order_BN[:, :1]).talk(_GUIDED, until=until)[0], later_BK, _PLAIN)
    _expect_differ(other.cond_BKD, z.cond_BKD, "other tokens are known, yet predict says the same")
    again, plain = (asked.ask(state, later_BK, step) for step in (_GUIDED, _PLAIN))
    _expect_near(again.cond_BKD, z.cond_BKD, "asked twice, predict says something else")
    _expect_near(plain.cond_BKD, z.cond_BKD, "z is another where no guidance is asked for")
    expect(plain.uncond_BKD is None, "predict gives an unconditional z although step.cfg is 1")
    expect_tensor("z of a step that may reuse", asked.ask(state, later_BK, Step(refresh=False)).cond_BKD, shape)
    alone = asked.ask(_Asked.of(backbone, rows=1).talk(_GUIDED, until=until)[0], later_BK[:1], _GUIDED)
    expect_alone({"z": z.cond_BKD, "uncond": _uncond(z)}, {"z": alone.cond_BKD, "uncond": _uncond(alone)})


def _check_agreement(asked: _Asked) -> None:
    """Sampling knows what training knew; the unconditional half is what a batch without its condition is told."""
    visible, masked_BK = asked.split.visible_BU.shape[1], asked.split.masked_BK
    if asked.backbone.masks:
        said_BKD = asked.ask(asked.talk(until=visible)[0], masked_BK, _PLAIN).cond_BKD
    else:
        said_BKD = torch.cat([z.cond_BKD for z in asked.talk()[1]], dim=1)[:, visible:]
    _expect_near(said_BKD, asked.z(), "predict and forward disagree")
    dropped = evolve(asked, condition=asked.condition.dropped(torch.ones(BATCH, dtype=torch.bool)))
    for z, alone in zip(asked.talk(_GUIDED)[1], dropped.talk()[1], strict=True):
        _expect_near(_uncond(z), alone.cond_BKD, "the unconditional z is not that of a dropped condition")


def _check_known(asked: _Asked) -> None:
    """Tokens may be known from the start; one that masks does not care how and in which order they became so."""
    backbone, count = asked.backbone, len(asked.steps) // 2
    kept_BK, next_BK, state = torch.cat(asked.steps[:count], dim=1), asked.steps[count], asked.start(guided=True)
    asked.reveal(state, kept_BK)
    z = asked.ask(state, next_BK, _GUIDED)
    expect_tensor("z after tokens that were kept", z.cond_BKD, (*next_BK.shape, _said_width(backbone)))
    if backbone.masks:
        backwards = evolve(asked, split=MaskSplit(kept_BK.flip(1), next_BK))
        found = asked.ask(backwards.talk(_GUIDED, until=count)[0], next_BK, _GUIDED)
        for a, b in ((found.cond_BKD, z.cond_BKD), (_uncond(found), _uncond(z))):
            _expect_near(a, b, "z depends on how tokens became known, not only on which are")


def _check_redraw(asked: _Asked) -> None:
    """A token that is redrawn is forgotten first; a backbone that cannot forget refuses."""
    last_BK, next_BK = asked.steps[1:3]
    state, before = asked.talk(until=2)[0], asked.talk(until=1)[0]
    try:
        z = asked.ask(state, last_BK, Step(redraw=True))
    except UserError:
        return
    _expect_near(z.cond_BKD, asked.ask(before, last_BK, _PLAIN).cond_BKD, "a token that is redrawn is not forgotten")
    for each in (state, before):
        asked.other(last_BK).reveal(each, last_BK)
    a, b = (asked.ask(each, next_BK, _PLAIN).cond_BKD for each in (state, before))
    _expect_near(a, b, "after a redraw, z is not that of the token as it is now")


def _built(make: Callable[..., Backbone], doors: set[str]) -> Backbone:
    return build(lambda: make(memory="memory" in doors, condition_width=5 if _VECTORS in doors else 0))


def _with_door(asked: _Asked, door: str, *, seed: int) -> _Asked:
    """With something random coming in there; of vectors, the last of the last image does not count."""
    backbone, seed = asked.backbone, 10 * seed + [*_DOORS, _VECTORS].index(door)
    if door == _VECTORS:
        mask_BT = torch.arange(3 * BATCH).view(BATCH, 3) < 3 * BATCH - 1
        return evolve(asked, condition=Condition(asked.condition.labels_B, normal(BATCH, 3, 5, seed=seed), mask_BT))
    size = (backbone.layout.tokens, backbone.width) if door == "fill" else (2, backbone.guidance_width)
    return evolve(asked, guidance=evolve(asked.guidance, **{_DOORS[door]: normal(BATCH, *size, seed=seed)}))


def _has_door(make: Callable[..., Backbone], door: str) -> bool:
    """Whether it has the door; what comes in there then reaches z, in training and in sampling."""
    try:
        backbone = _built(make, {door})
        some, other = (_with_door(_Asked.of(backbone), door, seed=seed) for seed in (1, 2))
        said = some.talk(_GUIDED)[1]
    except UserError:
        return False
    _expect_differ(some.z(), other.z(), f"another {door}, yet the same z")
    found = said[-1].cond_BKD
    _expect_differ(found, other.talk(_GUIDED)[1][-1].cond_BKD, f"another {door}, yet predict says the same")
    _check_agreement(some)
    if door == _VECTORS:
        _check_counting(some, other)
    else:
        _check_replaced(some, other, door)
    return True


def _check_counting(some: _Asked, other: _Asked) -> None:
    """A vector that does not count does not matter, and none of a dropped condition does."""
    a, b, mask_BT = some.condition.vectors_BTF, other.condition.vectors_BTF, some.condition.counting_BT()
    assert a is not None and b is not None
    idle = evolve(some, condition=evolve(some.condition, vectors_BTF=torch.where(mask_BT[..., None], a, b)))
    _expect_near(some.z(), idle.z(), "a vector that does not count changes z")
    everyone_B = torch.ones(BATCH, dtype=torch.bool)
    first, second = (evolve(asked, condition=asked.condition.dropped(everyone_B)).z() for asked in (some, other))
    _expect_near(first, second, "the vectors of a dropped condition change z")


def _check_replaced(some: _Asked, other: _Asked, door: str) -> None:
    """An injector that follows the sampling replaces `guidance`: that is heard at once, or refused."""
    last_BK, state = some.steps[-1], some.talk(until=len(some.steps) - 1)[0]
    before = some.ask(state, last_BK, _PLAIN).cond_BKD
    try:
        state.guidance = other.guidance
        after = some.ask(state, last_BK, _PLAIN).cond_BKD
    except UserError:
        return
    _expect_differ(after, before, f"the {door} is replaced while sampling, yet z is the same")


def _check_training(backbone: Backbone, doors: set[str]) -> None:
    """Every weight learns; so do the known tokens and what comes through the doors."""
    asked = _Asked.of(backbone.train())
    for door in sorted(doors):
        asked = _with_door(asked, door, seed=1)
    through = [getattr(asked.guidance, name) for name in _DOORS.values()]
    inputs = [x.requires_grad_() for x in (asked.tokens_BNC, asked.condition.vectors_BTF, *through) if x is not None]
    z_BKD = asked.z()
    check_gradients(backbone, (normal(*z_BKD.shape) * z_BKD).sum(), *inputs)
