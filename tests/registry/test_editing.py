"""Edits of a model in miniature: what is kept stays, what is drawn depends on the level, the seed and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mixar
from mixar.assembly import build
from mixar.editing import Level
from mixar.model import Model
from mixar.plugins import Registry
from mixar.recipe import load_recipe
from mixar.regions import filled, pixels_of, tokens_in
from mixar_core.types import Grid, TokenLayout
from tests.tiny import CLASSES

SIZE, TOKENS = 16, 16
LAYOUT = TokenLayout("grid", (Grid(4, 4),))
BOX = (4, 4, 4, 8)  # two of the 4 x 4 tokens


@pytest.fixture(scope="module")
def model(family: Path) -> mixar.Model:
    return mixar.load(family / "models/mixar", device="cpu")


def untrained(family: Path, registry: Registry, changes: dict[str, object]) -> mixar.Model:
    """The recipe of the family's MixAR, changed, with fresh weights."""
    recipe = load_recipe(family / "recipes/mixar.yaml", changes, registry=registry)
    torch.manual_seed(0)
    return Model(build(recipe, registry), CLASSES, torch.device("cpu"))


@pytest.fixture(scope="module")
def plain(family: Path, registry: Registry) -> mixar.Model:
    """A MAR: no codes at all."""
    return untrained(family, registry, {"discrete_tokenizer": None, "prior": None, "injector": {"type": "none"}})


def pictures(count: int, seed: int = 0) -> Tensor:
    return torch.randint(256, (count, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def latents_and_codes(model: mixar.Model, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
    """What the tokenizers say of images, one by one."""
    system, floats = model.system, images_B3HW.float() / 127.5 - 1.0
    assert system.continuous_tokenizer is not None and system.discrete_tokenizer is not None
    parts = system.continuous_tokenizer, system.discrete_tokenizer
    with torch.no_grad():
        latents_BChw, codes_BN = (torch.cat([part.encode(image) for image in floats.split(1)]) for part in parts)
    return latents_BChw, codes_BN


@st.composite
def some_masks(draw: st.DrawFn) -> Tensor:
    """Three masks, each of which touches some tokens and not all."""
    tokens = [draw(st.lists(st.booleans(), min_size=TOKENS, max_size=TOKENS)) for _ in range(3)]
    chosen_BN = torch.tensor([[True, *row[1:-1], False] for row in tokens])
    whole_BHW = pixels_of(chosen_BN, LAYOUT, SIZE)
    thin_BHW = whole_BHW & (torch.arange(SIZE) % 4 == draw(st.integers(0, 3)))  # one column of each token
    return thin_BHW if draw(st.booleans()) else whole_BHW


@settings(max_examples=15)
@given(some_masks(), st.sampled_from(["both", "latents", "codes"]), st.booleans(), st.integers(0, 2**31))
def test_what_is_kept_is_bit_equal_and_the_rest_is_drawn(
    model: mixar.Model, masks: Tensor, level: Level, peek: bool, seed: int
) -> None:
    images = pictures(3, seed)
    edited = model.edit(images, masks, ["cat", 2, -1], level=level, seed=seed, feather=1, peek=peek)
    seen = images if peek or level == "latents" else filled(images, masks)
    latents_BChw, codes_BN = latents_and_codes(model, seen)
    redrawn_BN = tokens_in(masks, LAYOUT)
    assert torch.equal(edited.originals, images) and torch.equal(edited.masks, masks)
    assert edited.names == ("cat", "owl", "no class") and edited.level == level

    assert edited.codes is not None and edited.redrawn_codes is not None
    if level == "latents":
        assert torch.equal(edited.codes, codes_BN) and not edited.redrawn_codes.any()
    else:
        assert torch.equal(edited.redrawn_codes, redrawn_BN)
        assert torch.equal(edited.codes[~redrawn_BN], codes_BN[~redrawn_BN])
        assert edited.codes.min() >= 0 and edited.codes.max() < 4
    if level == "codes":
        assert edited.latents is None and edited.redrawn is None
        apart = edited.raw.int() - model.decode_codes(edited.codes).int()
        assert apart.abs().max() <= 1, "but for rounding, which depends on how many are decoded at once"
    else:
        assert edited.latents is not None and torch.equal(edited.redrawn, redrawn_BN)
        kept_Bhw = ~redrawn_BN.unflatten(1, (4, 4))
        same = (edited.latents == latents_BChw).all(dim=1)
        assert same[kept_Bhw].all() and not same[~kept_Bhw].any()

    region_BHW = pixels_of(redrawn_BN, LAYOUT, SIZE)
    assert torch.equal(edited.regions, region_BHW)
    far_BHW = torch.nn.functional.max_pool2d(region_BHW[:, None].float(), 3, 1, 1)[:, 0] == 0
    for where, source in ((far_BHW, images), (region_BHW, edited.raw)):
        differs = (edited.images != source).any(dim=1)
        assert not (differs & where).any()


def test_without_pasting_the_result_is_as_decoded(model: mixar.Model) -> None:
    pasted, bare = (model.edit(pictures(1), BOX, 0, seed=3, paste=paste) for paste in (True, False))
    assert torch.equal(pasted.raw, bare.raw) and torch.equal(bare.images, bare.raw)
    assert pasted.seam.kept.item() < bare.seam.kept.item() == bare.raw_seam.kept.item() == pasted.raw_seam.kept.item()
    hard = model.edit(pictures(1), BOX, 0, seed=3, feather=0)
    assert hard.seam.kept.item() == 0 and pasted.seam.kept.item() > 0  # a quarter of a token's side is one pixel
    assert pasted.seam.kept.item() == pytest.approx(model.edit(pictures(1), BOX, 0, seed=3, feather=1).seam.kept.item())
    with pytest.raises(
        mixar.UserError, match=r"feather \(in pixels\): 10{9}; allowed: 0 to 16, the image's longer side"
    ):
        model.edit(pictures(1), BOX, 0, seed=3, feather=10**9)


@pytest.mark.parametrize("level", ["both", "latents", "codes"])
def test_a_seed_decides_and_the_state_of_torch_does_not(model: mixar.Model, level: Level) -> None:
    state = torch.random.get_rng_state()
    one, same, other = (model.edit(pictures(2), BOX, 1, level=level, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(one.raw, same.raw) and torch.equal(one.codes, same.codes)
    assert not torch.equal(one.raw, other.raw)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("level", ["both", "codes"])
def test_an_edit_does_not_depend_on_those_beside_it(model: mixar.Model, level: Level) -> None:
    masks = torch.zeros(4, SIZE, SIZE, dtype=torch.bool)
    masks[0, :9, :5], masks[1, 3, 3], masks[2, 8:, 8:], masks[3, :4] = True, True, True, True
    together = model.edit(pictures(4), masks, [0, 1, 2, 0], level=level, seed=2)
    singly = model.edit(pictures(4), masks, [0, 1, 2, 0], level=level, seed=2, batch_size=1)
    less = model.edit(pictures(4)[:3], masks[:3], [0, 1, 2], level=level, seed=2)
    other = model.edit(pictures(4), masks.flip(0), [1, 1, 1, 0], level=level, seed=2)
    for index in range(3):
        for another in (singly, less):
            assert torch.equal(another.codes[index], together.codes[index])
            assert (another.raw[index].int() - together.raw[index].int()).abs().max() <= 1
    assert not torch.equal(other.raw[0], together.raw[0])
    if together.latents is not None:
        torch.testing.assert_close(singly.latents, together.latents, rtol=1e-4, atol=1e-4)


def test_one_image_or_mask_or_label_stands_for_all(model: mixar.Model) -> None:
    four = model.edit(pictures(1), BOX, [1, 1, 2, 2], seed=1)
    assert four.images.shape == (4, 3, SIZE, SIZE) and torch.equal(four.originals, pictures(1).expand(4, -1, -1, -1))
    assert len({bytes(image.numpy().tobytes()) for image in four.raw}) == 4
    three = model.edit([*pictures(3)], [BOX], 2, seed=1)
    assert three.labels == (2, 2, 2) and three.picture().height > 3 * SIZE
    with pytest.raises(mixar.UserError, match="2 masks for 3 edits"):
        model.edit([*pictures(3)], [BOX, BOX], 0)
    with pytest.raises(mixar.UserError, match="an empty list"):
        model.edit([], BOX, 0)


def test_all_of_the_latents_to_codes_given_is_what_generate_draws(model: mixar.Model) -> None:
    codes = model.sample_codes([1], seed=9)
    drawn = model.generate([1], codes=codes, seed=4)
    edited = model.edit(pictures(1), None, 1, level="latents", codes=codes, seed=4)
    assert torch.equal(edited.raw, drawn.images) and torch.equal(edited.codes, codes)
    assert torch.equal(edited.images, edited.raw) and edited.seam.kept.isnan().all()


def test_codes_drawn_first_can_be_finished(model: mixar.Model) -> None:
    drafts = model.edit(pictures(1), BOX, [2] * 3, level="codes", seed=1)
    done = model.edit(pictures(1), BOX, [2] * 3, level="latents", codes=drafts.codes, seed=1)
    assert torch.equal(done.codes, drafts.codes)
    own = model.edit(pictures(1), BOX, [2] * 3, level="latents", seed=1)
    changed = (drafts.codes != own.codes).any(dim=1)
    assert changed.any() and not torch.equal(done.raw, own.raw)
    for level, codes, message in (
        ("both", drafts.codes, "at level latents"),
        ("latents", drafts.codes[:2], r"needed: whole numbers \(3, 16\)"),
    ):
        with pytest.raises(mixar.UserError, match=message):
            model.edit(pictures(1), BOX, [2] * 3, level=level, codes=codes)


def test_settings_are_those_of_what_is_drawn(model: mixar.Model) -> None:
    asked = [model.edit(pictures(1), BOX, 0, seed=1, **changes) for changes in ({}, {"cfg": 4.0}, {"temperature": 0.1})]
    assert len({each.raw.numpy().tobytes() for each in asked}) == 3
    codes = [
        model.edit(pictures(1), None, [0] * 8, place=(4, 4, 4), level="codes", seed=1, temperature=temperature).codes
        for temperature in (0.01, 50.0)
    ]
    assert not torch.equal(*codes)
    with pytest.raises(mixar.UserError, match="steps"):
        model.edit(pictures(1), BOX, 0, steps=0)
    with pytest.raises(mixar.UserError, match="feather"):
        model.edit(pictures(1), BOX, 0, feather=-1)


def test_progress_counts_the_steps_of_every_batch(model: mixar.Model) -> None:
    seen: list[tuple[int, int]] = []
    model.edit(pictures(3), BOX, 0, batch_size=2, steps=2, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_mar_draws_latents_and_a_prior_codes(plain: mixar.Model, family: Path) -> None:
    edited = plain.edit(pictures(2), BOX, [0, 1], seed=1)
    assert edited.level == "latents" and edited.codes is None and edited.redrawn_codes is None
    assert edited.redrawn is not None and edited.redrawn.sum(dim=1).tolist() == [2, 2]
    with pytest.raises(mixar.UserError, match="level 'both' of model mixar, which draws latents only: not known"):
        plain.edit(pictures(1), BOX, 0, level="both")
    with pytest.raises(mixar.UserError, match=r"touches every token \(16 latents\)"):
        plain.edit(pictures(1), None, 0)
    prior = mixar.load(family / "models/prior", device="cpu")
    drawn = prior.edit(pictures(1), BOX, 0, seed=1)
    assert drawn.level == "codes" and drawn.redrawn is None and torch.equal(drawn.raw, prior.decode_codes(drawn.codes))
    with pytest.raises(mixar.UserError, match="draws no images; it trains discrete_tokenizer"):
        mixar.load(family / "models/discrete").edit(pictures(1), BOX, 0)


@pytest.mark.parametrize("level", ["both", "codes"])
def test_the_old_content_of_a_region_is_seen_by_those_who_peek_only(model: mixar.Model, level: Level) -> None:
    mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    mask[2:9, 3:11] = True
    other = torch.where(mask, 255 - pictures(1), pictures(1))
    for peek in (False, True) if level == "both" else (False,):  # two bits a code may say the same of both
        one, two = (model.edit(image, mask, 0, level=level, seed=1, peek=peek).raw for image in (pictures(1), other))
        assert torch.equal(one, two) != peek


@pytest.mark.parametrize("order", ["random", "raster"])
def test_a_causal_backbone_keeps_what_its_order_lets_it(family: Path, registry: Registry, order: str) -> None:
    backbone = {"type": "causal", "width": 8, "depth": 1, "heads": 2, "buffer": 1, "order": order}
    sampler = {"type": "cosine", "order": order, "tokens_per_step": 1}
    model = untrained(family, registry, {"backbone": backbone, "sampler": sampler})
    edited = model.edit(pictures(1), (0, 8, 16, 8), 0, seed=1, peek=True)
    latents_BChw, _ = latents_and_codes(model, pictures(1))
    assert edited.latents is not None and torch.equal(edited.latents[:, :, :2], latents_BChw[:, :, :2])
    if order == "random":
        model.edit(pictures(1), BOX, 0)
    else:
        with pytest.raises(mixar.UserError, match="can keep the first tokens only, row by row"):
            model.edit(pictures(1), BOX, 0)


@pytest.mark.parametrize(
    ("codes", "drawn"),
    [
        ({"type": "rvq", "codebook_size": 4, "depth": 2}, 4),
        ({"type": "pyramid", "codebook_size": 4, "scales": [1, 2, 4]}, 1 + 2 + 2),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else "",
)
def test_codes_of_a_depth_and_of_a_pyramid(
    family: Path, registry: Registry, codes: dict[str, object], drawn: int
) -> None:
    sizes = {"code_width": 4, "channels": 4, "channel_multipliers": [1, 1, 1], "blocks": 1, "norm": "none"}
    prior = {"type": "maskgit", "bits": 2, "stride": 4, "width": 8, "depth": 1, "heads": 2, "mlp_dim": 8, "steps": 3}
    changes = {"discrete_tokenizer": {**codes, **sizes}, "prior": prior, "injector": {"type": "dc-sa"}}
    model = untrained(family, registry, changes)
    _, own_BN = latents_and_codes(model, pictures(1))
    for level in ("both", "codes"):
        edited = model.edit(pictures(1), BOX, 0, level=level, seed=1, peek=True)
        kept_BN = ~edited.redrawn_codes
        assert (~kept_BN).sum() == drawn and torch.equal(edited.codes[kept_BN], own_BN[kept_BN])
        assert edited.regions.sum() == 32
        assert torch.equal(edited.images[:, :, :, 10:], pictures(1)[:, :, :, 10:])


def test_what_keeps_nothing_or_means_nothing_is_refused(model: mixar.Model) -> None:
    dots = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    dots[1::4, 1::4] = True
    for level, mask in (("both", None), ("codes", None), ("both", dots)):
        with pytest.raises(mixar.UserError, match=r"touches every token .* that is sampling"):
            model.edit(pictures(1), mask, 0, level=level)
    assert model.edit(pictures(1), dots, 0, level="latents").redrawn.all()  # the codes are kept
    with pytest.raises(mixar.UserError, match="it has none where the rest is to be drawn"):
        model.edit(pictures(1), None, 0, place=(4, 4, 4), level="latents")
    with pytest.raises(mixar.UserError, match="feather: where nothing is pasted"):
        model.edit(pictures(1), BOX, 0, paste=False, feather=0)
    for place in (None, (4, 4, 4)):
        with pytest.raises(mixar.UserError, match="outside: says that a mask"):
            model.edit(pictures(1), None, 0, outside=True, place=place)
    with pytest.raises(mixar.UserError, match="level 'pixels': not known; allowed: both, codes, latents"):
        model.edit(pictures(1), BOX, 0, level="pixels")  # type: ignore[arg-type]


def test_bf16_keeps_the_latents_too(family: Path) -> None:
    half = mixar.load(family / "models/mixar", device="cpu", precision="bf16")
    edited = half.edit(pictures(1), BOX, 0, seed=1, peek=True)
    latents_BChw, _ = latents_and_codes(half, pictures(1))
    kept_Bhw = ~edited.redrawn.unflatten(1, (4, 4))
    assert torch.equal(edited.latents.movedim(1, -1)[kept_Bhw], latents_BChw.movedim(1, -1)[kept_Bhw])
