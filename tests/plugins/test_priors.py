"""Priors: factorised codes, schedules, draws, the sampler, the prediction and the loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixar_core.data.dataset import ImageDataset
from mixar_core.errors import UserError
from mixar_core.noise import Noise
from mixar_core.tokenizer import DiscreteTokenizer
from mixar_core.types import NO_CLASS, Condition, Grid, Quantized
from mixar_plugins.networks.orders import halton
from mixar_plugins.priors.codes import combine_codes, split_codes
from mixar_plugins.priors.ground_truth import GroundTruthConfig, GroundTruthPrior
from mixar_plugins.priors.masked import MaskedTransformerPrior, masked_cross_entropy
from mixar_plugins.priors.masked_transformer import BitTokenPrior, EmbeddingTokenPrior, MaskBitConfig, MaskGitConfig
from mixar_plugins.priors.schedules import draw, guidance_scales, gumbel, masked_after_steps

SCHEDULES = ("root", "square", "cosine", "arccos", "linear")
CLASSES, BATCH, BITS, SIDE = 3, 4, 6, 4


class MeanBrightness(DiscreteTokenizer):
    """A code is how bright its patch is."""

    def quantize(self, images_B3HW: Tensor) -> Quantized:
        means_Bhw = torch.nn.functional.avg_pool2d(images_B3HW.mean(dim=1), self.stride)
        codes_BN = ((means_Bhw + 1) / 2 * self.codebook_size).long().clamp(max=self.codebook_size - 1).flatten(1)
        return Quantized(self.code_vectors(codes_BN), codes_BN, {})

    def code_vectors(self, codes_BN: Tensor) -> Tensor:
        return codes_BN[..., None].float()

    def decode_vectors(self, vectors_BEhw: Tensor) -> Tensor:
        raise NotImplementedError


class Flat(ImageDataset):
    """Images of one brightness: twice their index."""

    def __init__(self, labels: Sequence[int]) -> None:
        self._labels, self.num_classes, self.class_names = list(labels), CLASSES, ("a", "b", "c")

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((3, 8 * SIDE, 8 * SIDE), 4 * index, dtype=torch.uint8), self._labels[index]

    def labels(self) -> list[int]:
        return self._labels


def tokenizer(bits: int = BITS, *, side: int = SIDE, stride: int = 8) -> DiscreteTokenizer:
    return MeanBrightness(image_size=side * stride, stride=stride, codebook_size=2**bits, code_width=1)


def make(
    cls: type[MaskedTransformerPrior] = BitTokenPrior, *, num_classes: int = CLASSES, bits: int = BITS, **settings
) -> MaskedTransformerPrior:
    torch.manual_seed(0)
    config = MaskBitConfig(
        **{"bits": bits, "stride": 8, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 16, "steps": 5, **settings}
    )
    prior = cls(config, tokenizer=tokenizer(bits), num_classes=num_classes).eval()
    for parameter in prior.parameters():  # so that logits are neither flat nor equal for all classes
        torch.nn.init.normal_(parameter, std=0.5)
    return prior


def labels() -> Tensor:
    return torch.tensor([0, 1, 2, NO_CLASS])


def asked(labels_B: Tensor | None = None) -> Condition:
    return Condition(labels() if labels_B is None else labels_B)


both = pytest.mark.parametrize("cls", [BitTokenPrior, EmbeddingTokenPrior])


# ---------------------------------------------------------------- codes, schedules, draws


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**31))
def test_splitting_and_combining_codes_are_inverse(splits: int, bits_each: int, seed: int) -> None:
    bits = splits * bits_each
    codes_BN = torch.randint(2**bits, (2, 7), generator=torch.Generator().manual_seed(seed))
    tokens_BNS = split_codes(codes_BN, bits=bits, splits=splits)
    assert tokens_BNS.shape == (2, 7, splits) and tokens_BNS.max() < 2**bits_each and tokens_BNS.min() >= 0
    assert torch.equal(combine_codes(tokens_BNS, bits=bits), codes_BN)
    assert torch.equal(tokens_BNS[..., 0], codes_BN % 2**bits_each), "the first split holds the lowest bits"


@given(st.integers(2, 600), st.integers(1, 64), st.sampled_from(SCHEDULES))
def test_masked_counts_fall_at_every_step_down_to_one(entries: int, steps: int, schedule) -> None:
    counts = masked_after_steps(entries, steps, schedule)
    assert len(counts) == steps and counts[-1] == 1
    for before, after in zip([entries, *counts], counts, strict=False):
        assert after < before or after == 1


def test_guidance_grows_from_nothing_unless_constant() -> None:
    assert guidance_scales(2.0, 4, "none", 3.0) == [2.0] * 4
    assert guidance_scales(2.0, 4, "linear", 3.0) == [0.0, 0.5, 1.0, 1.5]
    cosine = guidance_scales(2.0, 4, "cosine", 1.0)
    assert cosine == pytest.approx([2 * (1 - np.cos(np.pi * step / 4)) / 2 for step in range(4)])


@given(st.integers(1, 9), st.integers(0, 2**31))
def test_draws_are_the_inverse_of_the_cumulative_sum(size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    p_V = (3 * torch.randn(size, generator=generator)).softmax(dim=0)
    uniform = torch.rand(50, generator=generator)
    drawn = draw(p_V.expand(50, size), uniform)
    upper = p_V.double().cumsum(0)[drawn]
    lower = upper - p_V.double()[drawn]
    assert drawn.min() >= 0 and drawn.max() < size
    assert bool(((uniform >= lower - 1e-6) & (uniform <= upper + 1e-6)).all())


def test_what_has_no_probability_is_never_drawn_and_extremes_are_safe() -> None:
    p_V = torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0])
    ends = torch.tensor([0.0, 0.25, 1 - 2**-24])
    assert draw(p_V.expand(3, 5), ends).tolist() == [1, 3, 3]
    assert bool(gumbel(ends).isfinite().all())


# ---------------------------------------------------------------- sampler


@both
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_steps_fix_the_scheduled_counts_and_never_change_a_known_code(cls, schedule) -> None:
    prior = make(cls, mask_schedule=schedule)
    known_BN = torch.full((BATCH, SIDE**2), -1)
    seen = [step.codes_BN for step in prior.sample_steps(asked(), noise=Noise.seeded(1))]
    assert len(seen) == prior.config.steps
    for codes_BN in seen:
        fixed = known_BN >= 0
        assert torch.equal(codes_BN[fixed], known_BN[fixed])
        assert (codes_BN >= 0).sum() >= fixed.sum()
        known_BN = codes_BN
    assert known_BN.dtype == torch.int64 and known_BN.min() >= 0 and known_BN.max() < 2**BITS


def test_without_splits_every_step_leaves_exactly_the_scheduled_codes_masked() -> None:
    # with all confidences equal, too: a prior whose logits are all zero, and no noise on the confidence
    prior = make(splits=1, randomize_temperature=0.0)
    torch.nn.init.zeros_(prior.prediction_layer.weight)
    torch.nn.init.zeros_(prior.prediction_layer.bias)
    steps = prior.sample_steps(asked(), noise=Noise.seeded(1))
    left = [(step.codes_BN < 0).sum(dim=1).tolist() for step in steps]
    expected = masked_after_steps(SIDE**2, 5, "arccos")[:-1]
    assert left == [[count] * BATCH for count in [*expected, 0]]


def test_in_halton_order_places_are_kept_as_they_come_in_it() -> None:
    places = halton(Grid(SIDE, SIDE))
    for drawn in make(order="halton", splits=1).sample_steps(asked(), noise=Noise.seeded(0), steps=5):
        known = set((drawn.codes_BN[0] >= 0).nonzero().flatten().tolist())
        assert known == set(places[: len(known)])


@both
def test_the_seed_decides_the_sample(cls) -> None:
    prior = make(cls)
    first, again, other = (prior.sample(asked(), noise=Noise.seeded(seed)).codes_BN for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


@both
def test_a_sample_does_not_depend_on_who_shares_the_batch(cls) -> None:
    prior = make(cls)
    whole = prior.sample(asked(), noise=Noise.seeded(5)).codes_BN
    halves = [
        prior.sample(
            asked(labels()[first : first + 2]), noise=Noise(torch.Generator().manual_seed(5), first=first, total=BATCH)
        ).codes_BN
        for first in (0, 2)
    ]
    assert torch.equal(torch.cat(halves), whole)


@settings(max_examples=20)
@given(st.integers(1, 100), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 3.0]), st.sampled_from([1, 2, 3]))
def test_any_steps_temperature_guidance_and_splits_give_codes(steps, temperature, cfg, splits) -> None:
    prior = make(splits=splits, sampling_annealing=True)
    codes_BN = prior.sample(asked(), noise=Noise.seeded(0), steps=steps, cfg=cfg, temperature=temperature).codes_BN
    assert codes_BN.shape == (BATCH, SIDE**2) and codes_BN.min() >= 0 and codes_BN.max() < 2**BITS


def test_the_unconditional_pass_is_skipped_where_it_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def spy(prior: MaskedTransformerPrior) -> MaskedTransformerPrior:
        monkeypatch.setattr(
            prior, "forward", lambda tokens, y: sizes.append(len(y)) or type(prior).forward(prior, tokens, y)
        )
        return prior

    spy(make(steps=3)).sample(asked(), noise=Noise.seeded(0))
    assert sizes == [BATCH, 2 * BATCH, 2 * BATCH], "cosine annealing starts at a scale of 0"
    sizes.clear()
    spy(make(steps=2, num_classes=0, guidance_annealing="none")).sample(
        asked(torch.full((BATCH,), NO_CLASS)), noise=Noise.seeded(0)
    )
    assert sizes == [BATCH, BATCH]


def test_guidance_moves_logits_away_from_no_class() -> None:
    prior = make(steps=1, guidance_annealing="none", splits=1)
    tokens_BNS = torch.full((1, SIDE**2, 1), prior.mask_token)
    cond, uncond = (prior(tokens_BNS, torch.tensor([label])).detach() for label in (2, NO_CLASS))
    guided = prior.sample(asked(torch.tensor([2])), noise=Noise.seeded(0), cfg=4.0, temperature=0.0).codes_BN
    assert torch.equal(guided, (cond + 4 * (cond - uncond)).argmax(-1).squeeze(-1))


def test_bad_arguments_are_refused_in_one_line() -> None:
    for arguments, words in (({"steps": 0}, "1 or more"), ({"temperature": -1.0}, "0 or more")):
        with pytest.raises(UserError, match=words):
            make().sample(asked(), noise=Noise.seeded(0), **arguments)
    for wrong, words in (({"splits": 4}, "divide its bits, 6"), ({"heads": 3}, "divide its width, 16")):
        with pytest.raises(UserError, match=words):
            make(**wrong)
    with pytest.raises(ValueError, match="steps"):
        make(steps=0)
    with pytest.raises(UserError, match="64 codes; the discrete tokenizer has 1024"):
        BitTokenPrior(MaskBitConfig(bits=6, stride=8), tokenizer=tokenizer(10), num_classes=1)
    with pytest.raises(UserError, match="stride is 4; the discrete tokenizer's is 8"):
        BitTokenPrior(MaskBitConfig(bits=6, stride=4), tokenizer=tokenizer(), num_classes=1)


def test_confidence_is_the_log_probability_of_what_was_drawn() -> None:
    prior = make(steps=1, guidance_scale=0.0, splits=1)
    drawn = prior.sample(asked(), noise=Noise.seeded(3))
    tokens_BNS = torch.full((BATCH, SIDE**2, 1), prior.mask_token)
    log_p_BNV = prior(tokens_BNS, labels()).squeeze(2).log_softmax(dim=-1)
    expected_BN = log_p_BNV.gather(-1, drawn.codes_BN[..., None]).squeeze(-1)
    assert drawn.confidence_BN is not None
    torch.testing.assert_close(drawn.confidence_BN, expected_BN.detach())


# ---------------------------------------------------------------- prediction (Eq. 10-11) and loss


@both
def test_prediction_leaves_visible_codes_and_does_not_see_masked_ones(cls) -> None:
    prior = make(cls)
    generator = torch.Generator().manual_seed(0)
    codes_BN = torch.randint(2**BITS, (BATCH, SIDE**2), generator=generator)
    masked_BN = torch.rand(BATCH, SIDE**2, generator=generator) < 0.6
    other_BN = torch.where(masked_BN, (codes_BN + 1) % 2**BITS, codes_BN)
    predicted, blind = (
        prior.predict(c, masked_BN, asked(), noise=Noise.seeded(2)).codes_BN for c in (codes_BN, other_BN)
    )
    assert torch.equal(predicted, blind)
    assert torch.equal(predicted[~masked_BN], codes_BN[~masked_BN])
    assert not torch.equal(predicted, prior.predict(codes_BN, masked_BN, asked(), noise=Noise.seeded(3)).codes_BN)


def test_prediction_says_how_likely_the_hidden_truth_was() -> None:
    prior = make(predict_temperature=2.0)
    codes_BN = torch.randint(2**BITS, (BATCH, SIDE**2), generator=torch.Generator().manual_seed(0))
    masked_BN = torch.arange(SIDE**2).expand(BATCH, -1) % 3 > 0
    first = prior.predict(codes_BN, masked_BN, asked(), noise=Noise.seeded(2))
    again = prior.predict(first.codes_BN, masked_BN, asked(), noise=Noise.seeded(2))  # its own draws as the truth
    assert first.truth_BN is not None and again.truth_BN is not None and again.confidence_BN is not None
    assert torch.equal(again.truth_BN, again.confidence_BN)
    assert not first.truth_BN[~masked_BN].any() and (first.truth_BN[masked_BN] < 0).all()
    assert not torch.equal(first.truth_BN, again.truth_BN)


def test_prediction_at_temperature_zero_takes_the_likeliest() -> None:
    prior = make(predict_temperature=0.0)
    codes_BN, masked_BN = torch.zeros(BATCH, SIDE**2, dtype=torch.long), torch.ones(BATCH, SIDE**2, dtype=torch.bool)
    tokens_BNS = torch.full((BATCH, SIDE**2, 2), prior.mask_token)
    likeliest = combine_codes(prior(tokens_BNS, labels()).argmax(-1), bits=BITS)
    assert torch.equal(prior.predict(codes_BN, masked_BN, asked(), noise=Noise.seeded(0)).codes_BN, likeliest)


def test_loss_counts_all_entries_and_reports_the_masked_ones() -> None:
    logits = torch.zeros(1, 2, 2, 4)
    logits[0, 0, 0, 3] = 100.0
    target = torch.tensor([[[3, 0], [0, 0]]])
    masked = torch.tensor([[[True, True], [False, False]]])
    losses = masked_cross_entropy(logits, target, masked, label_smoothing=0.0)
    assert losses.total.item() == pytest.approx(np.log(4) * 3 / 4)
    assert losses.terms["masked_loss"].item() == pytest.approx(np.log(4) / 2)
    assert losses.terms["masked_accuracy"].item() == 1.0  # argmax of equal logits is 0
    nothing = masked_cross_entropy(logits, target, torch.zeros_like(masked), label_smoothing=0.0)
    assert nothing.terms["masked_loss"].item() == 0.0


@both
def test_training_lowers_the_loss(cls) -> None:
    torch.manual_seed(0)
    prior = cls(
        MaskBitConfig(bits=BITS, stride=8, width=32, depth=1, heads=2, mlp_dim=32),
        tokenizer=tokenizer(),
        num_classes=CLASSES,
    )
    optimizer = torch.optim.Adam(prior.parameters(), lr=3e-3)
    codes_BN = torch.arange(CLASSES)[:, None].expand(-1, SIDE**2) * 9
    noise, history = Noise.seeded(0), []
    for _ in range(60):
        losses = prior.loss(codes_BN.repeat(8, 1), asked(torch.arange(CLASSES).repeat(8)), noise=noise)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        history.append(losses.terms["masked_loss"].item())
    assert history[-1] < 0.6 * history[0]
    drawn = prior.eval().sample(asked(torch.arange(CLASSES)), noise=noise, cfg=0.0, temperature=0.0).codes_BN
    assert (drawn == codes_BN).float().mean() > 0.9


def test_the_published_configurations() -> None:
    assert MaskBitConfig().splits == 2 and MaskGitConfig().splits == 1
    with torch.device("meta"):
        prior = EmbeddingTokenPrior(MaskGitConfig(), tokenizer=tokenizer(10, side=16, stride=16), num_classes=1000)
    assert prior(torch.zeros(2, 256, 1, dtype=torch.long), torch.zeros(2, dtype=torch.long)).shape == (2, 256, 1, 1024)


# ---------------------------------------------------------------- ground truth


def ground_truth(data: ImageDataset | None) -> GroundTruthPrior:
    return GroundTruthPrior(GroundTruthConfig(), tokenizer=tokenizer(), num_classes=CLASSES, data=data)


def test_ground_truth_draws_images_of_the_class() -> None:
    prior = ground_truth(Flat([0, 0, 1, 1, 1]))
    classes = asked(torch.tensor([0] * 20 + [1] * 20))
    codes_BN = prior.sample(classes, noise=Noise.seeded(0)).codes_BN
    assert codes_BN.shape == (40, SIDE**2) and bool((codes_BN == codes_BN[:, :1]).all())
    assert set(codes_BN[:20, 0].tolist()) == {0, 1} and set(codes_BN[20:, 0].tolist()) == {2, 3, 4}
    anything = prior.sample(asked(torch.full((60,), NO_CLASS)), noise=Noise.seeded(0)).codes_BN
    assert set(anything[:, 0].tolist()) == {0, 1, 2, 3, 4}
    assert torch.equal(codes_BN, prior.sample(classes, noise=Noise.seeded(0)).codes_BN)
    everything_BN = torch.ones_like(codes_BN, dtype=torch.bool)
    assert torch.equal(prior.predict(codes_BN, everything_BN, classes, noise=Noise.seeded(0)).codes_BN, codes_BN)
    assert not prior.state_dict() and not list(prior.children())


def test_ground_truth_says_what_is_missing() -> None:
    with pytest.raises(UserError, match="names no data"):
        ground_truth(None).sample(asked(), noise=Noise.seeded(0))
    with pytest.raises(UserError, match="no image of class 2; they have 0, 1"):
        ground_truth(Flat([0, 1])).sample(asked(torch.tensor([0, 2])), noise=Noise.seeded(0))
    with pytest.raises(TypeError, match="nothing to train"):
        ground_truth(None).loss(torch.zeros(1, 1, dtype=torch.long), asked(), noise=Noise.seeded(0))
