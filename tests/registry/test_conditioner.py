"""A text condition as a plugin's part: from the recipe into training, guidance, the prior and a model folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import attrs
import pytest
import torch
from torch import Tensor

from mixar.assembly import build
from mixar.cost import estimate
from mixar.model import load
from mixar.plugins import Registry, plugin_manager
from mixar.recipe import Recipe, load_recipe
from mixar.run import make_objective, train
from mixar_core import NO_CLASS, Condition, MixAR, Noise, TokenBatch, UserError
from mixar_core.mixture import TIMixConfig
from mixar_core.model import SamplingConfig
from mixar_core.testing import check_conditioner
from tests.tiny import CLASSES
from tests.toy_text import ToyText, ToyTextConfig

TEXT = {"conditioner": {"type": "toy-text", "captions": list(CLASSES)}}


@pytest.fixture
def texts(with_plugin: Callable[[str], Registry]) -> Registry:
    """The registry with the toy's plugin installed."""
    return with_plugin("tests.toy_text")


@pytest.fixture
def recipe(family: Path, texts: Registry) -> Recipe:
    return load_recipe(family / "recipes/mixar.yaml", TEXT, registry=texts)


@pytest.fixture
def model(recipe: Recipe, texts: Registry) -> MixAR:
    """With random weights, none of them zero: a fresh head is deaf to what it is told."""
    torch.manual_seed(0)
    model = build(recipe, texts).model
    assert model is not None
    with torch.no_grad():
        for parameter in model.trained.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def batch_of(model: MixAR) -> TokenBatch:
    assert model.discrete_tokenizer is not None
    images = Noise.seeded(0).uniform((6, 3, 16, 16), "cpu") * 2 - 1
    labels_B = torch.tensor([0, 1, 2, 0, 1, NO_CLASS])
    return TokenBatch(model.continuous_tokenizer.encode(images), model.discrete_tokenizer.encode(images), labels_B)


@pytest.mark.parametrize("learned", [False, True])
def test_it_keeps_its_contract(learned: bool) -> None:
    make = partial(ToyText, ToyTextConfig(("cat", "owl", "horse"), learned=learned), num_classes=3)
    check_conditioner(make, num_classes=3)


def test_a_step_of_training_reaches_the_conditions_embedding_with_what_was_dropped_dropped(model: MixAR) -> None:
    heard: list[Condition] = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[2]))
    model.backbone.label_dropout = 0.5
    model.train().loss(batch_of(model), noise=Noise.seeded(3)).total.backward()
    (condition,) = heard
    dropped_B = condition.labels_B == NO_CLASS
    assert 1 < dropped_B.sum() < 6 and not condition.counting_BT()[dropped_B].any()
    assert condition.counting_BT()[~dropped_B].all()
    embedding = model.backbone.condition
    for name, parameter in embedding.named_parameters():  # the vectors' map, and what stands for a dropped one
        assert parameter.grad is not None and parameter.grad.any(), name
    assert all(not parameter.requires_grad for parameter in model.conditioner.parameters())


def test_the_text_encoder_itself_can_be_trained(model: MixAR) -> None:
    parts = {name: getattr(model, name) for name in ("backbone", "injector", "head", "sampler")}
    frozen = {name: getattr(model, name) for name in ("continuous_tokenizer", "discrete_tokenizer", "prior")}
    text = ToyText(ToyTextConfig(CLASSES, learned=True), num_classes=3)
    joint = MixAR(**parts, **frozen, conditioner=text, also_trained=["conditioner"]).train()
    joint.loss(batch_of(joint), noise=Noise.seeded(0)).total.backward()
    used = sorted({ord(letter) - ord("a") for caption in CLASSES for letter in caption})
    assert text.vectors_VF.grad is not None and text.vectors_VF.grad.any(dim=1).nonzero().flatten().tolist() == used
    assert "conditioner.vectors_VF" in joint.trained.state_dict()


def test_sampling_follows_the_text_and_guidance_moves_towards_it(model: MixAR) -> None:
    labels_B, codes_BN = torch.tensor([0, 1, 2]), torch.zeros(3, 16, dtype=torch.int64)

    def drawn(condition: Condition, cfg: float) -> Tensor:
        settings = SamplingConfig(steps=3, cfg=cfg, cfg_schedule="constant", temperature=0.0)
        return (
            model.eval().generate(condition, settings=settings, noise=Noise.seeded(0), codes_BN=codes_BN).latents_BChw
        )

    said = model.condition(labels_B)
    assert said.vectors_BTF is not None
    other = attrs.evolve(said, vectors_BTF=said.vectors_BTF.flip(0))
    silent = said.dropped(torch.ones(3, dtype=torch.bool))
    plain, guided = drawn(said, 1.0), drawn(said, 3.0)
    assert not torch.equal(plain, drawn(other, 1.0)), "the same classes, another text"
    assert not torch.equal(plain, guided)
    torch.testing.assert_close(drawn(silent, 3.0), drawn(silent, 1.0), rtol=1e-5, atol=1e-5)  # nothing to move towards
    torch.testing.assert_close(
        drawn(said, 0.0), drawn(silent, 1.0), rtol=1e-5, atol=1e-5
    )  # a scale of 0 is the unconditional half


def test_text_is_guided_without_classes_too(model: MixAR) -> None:
    """Labels that number captions need no class embedding beside them."""
    condition = model.condition(torch.tensor([0, 1]))
    model.backbone.num_classes = 0
    settings = SamplingConfig(steps=3, cfg=3.0, cfg_schedule="constant")
    assert all(planned.step.cfg == 3.0 for planned in model.plan(condition, settings, noise=Noise.seeded(0)).steps)
    labels = Condition(condition.labels_B)
    assert all(planned.step.cfg == 1.0 for planned in model.plan(labels, settings, noise=Noise.seeded(0)).steps)


def test_the_prior_is_told_the_text(model: MixAR, monkeypatch: pytest.MonkeyPatch) -> None:
    prior, heard = model.prior, []
    assert prior is not None
    steps, predict = prior.sample_steps, prior.predict

    def hear_steps(condition: Condition, **settings):
        heard.append(condition)
        return steps(condition, **settings)

    def hear_predict(codes_BN: Tensor, masked_BN: Tensor, condition: Condition, *, noise: Noise):
        heard.append(condition)
        return predict(codes_BN, masked_BN, condition, noise=noise)

    monkeypatch.setattr(prior, "sample_steps", hear_steps)
    monkeypatch.setattr(prior, "predict", hear_predict)
    condition = model.condition(torch.tensor([2, 0]))
    model.eval().generate(condition, settings=SamplingConfig(steps=2), noise=Noise.seeded(0))
    model.ti_mix = TIMixConfig("constant", start=0.5)
    model.train().loss(batch_of(model), lam=0.5, noise=Noise.seeded(0))
    asked, mixed = heard
    assert asked is condition and mixed.vectors_BTF is not None and len(mixed) == 6


def test_from_a_recipe_to_a_model_that_draws(recipe: Recipe, texts: Registry, tmp_path: Path) -> None:
    train(recipe, tmp_path / "run", registry=texts)
    model = load(tmp_path / "run", registry=texts)
    assert model.recipe.conditioner == recipe.conditioner
    one, other = (model.generate(["cat", "owl"], seed=0, cfg=cfg).images for cfg in (1.0, 4.0))
    assert one.shape == other.shape == (2, 3, 16, 16)
    with pytest.raises(UserError, match="conditioner"):  # without the plugin there is no such part
        load(tmp_path / "run", registry=plugin_manager(blocked=["toy-text"]))


def test_a_prior_is_trained_and_drawn_from_with_the_text(family: Path, texts: Registry, tmp_path: Path) -> None:
    chosen = {**TEXT, "prior": {"type": "toy-reader"}, "training.steps": 6, "training.learning_rate": 0.2}
    recipe = load_recipe(family / "recipes/prior.yaml", chosen, registry=texts)
    train(recipe, tmp_path / "run", registry=texts)
    model = load(tmp_path / "run", registry=texts)
    assert model.system.prior is not None
    said = [model.system.prior.log_p_BV(model.system.condition(torch.tensor([label]))) for label in (0, 2, NO_CLASS)]
    assert not torch.allclose(said[0], said[1], atol=1e-3)  # cat and owl
    assert model.generate(["cat", "owl"], seed=0).codes.shape == (2, 16)
    silent = load_recipe(family / "recipes/prior.yaml", {"prior": {"type": "toy-reader"}}, registry=texts)
    with pytest.raises(UserError, match="toy-reader needs a condition with vectors"):
        train(silent, tmp_path / "silent", registry=texts)


def test_what_does_not_fit_is_said(family: Path, texts: Registry) -> None:
    few = load_recipe(
        family / "recipes/mixar.yaml", {"conditioner": {"type": "toy-text", "captions": ["cat"]}}, registry=texts
    )
    with pytest.raises(UserError, match=r"conditioner.*captions: 1; there are 3 classes"):
        build(few, texts, meta=True)


def test_the_text_goes_where_the_prior_goes(family: Path, texts: Registry) -> None:
    system = build(load_recipe(family / "recipes/prior.yaml", TEXT, registry=texts), texts, meta=True)
    objective = make_objective(system, texts)
    assert system.conditioner in [*objective.modules()]
    assert not objective.train().condition.training


def test_a_frozen_text_encoder_takes_memory(recipe: Recipe, texts: Registry) -> None:
    found = estimate(build(recipe, texts, meta=True))
    (part,) = [part for part in found.parts if part.part == "conditioner"]
    assert (part.type, part.parameters, part.trained) == ("toy-text", 26 * 6, False)
    frozen = sum(part.parameters for part in found.parts if not part.trained)
    assert found.memory_gb["frozen_weights"] == pytest.approx(4e-9 * frozen)
