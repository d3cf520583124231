"""A MixAR that is trained together with its tokenizers or its prior."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mixar.freeze import freeze
from mixar.joint import JointObjective
from mixar_core.mixture import TIMixConfig
from mixar_core.model import MixAR, SamplingConfig
from mixar_core.noise import Noise
from mixar_core.training.objective import MixARObjective
from mixar_core.training.reconstruction import ReconstructionConfig
from mixar_core.types import ImageBatch
from mixar_plugins.priors.masked_transformer import EmbeddingTokenPrior, MaskGitConfig
from tests.core.test_training import Watch, assert_same_weights, losses
from tests.core.test_training_reconstruction import LearntSigns, LinearTokenizer
from tests.core.training_toys import ToyImages, toy_run
from tests.toys import small_mixar

LATENTS, CODES = "continuous_tokenizer", "discrete_tokenizer"
NOTHING_OF_ITS_OWN = ReconstructionConfig(reconstruction_weight=0.0, kl_weight=0.0, quantizer_weight=0.0)


def joint_mixar(*also_trained: str, **backbone: float) -> MixAR:
    """The small MixAR around tokenizers and a prior that can be trained."""
    model = small_mixar(**backbone)
    torch.manual_seed(0)
    discrete = LearntSigns()
    sizes = {"bits": 3, "stride": 4, "width": 8, "depth": 1, "heads": 2, "mlp_dim": 8, "dropout": 0.0}
    return MixAR(
        backbone=model.backbone,
        injector=model.injector,
        head=model.head,
        sampler=model.sampler,
        continuous_tokenizer=LinearTokenizer(),
        discrete_tokenizer=discrete,
        prior=EmbeddingTokenPrior(MaskGitConfig(**sizes), tokenizer=discrete, num_classes=5),
        ti_mix=TIMixConfig(schedule="linear"),
        also_trained=also_trained,
    )


def joint(*also_trained: str, config: ReconstructionConfig | None = None, **backbone: float) -> MixARObjective:
    return JointObjective(
        joint_mixar(*also_trained, **backbone), SamplingConfig(), None, config or ReconstructionConfig()
    )


def one_step(objective: MixARObjective):
    """Its losses on four images, with gradients."""
    images = ImageBatch(torch.stack([ToyImages()[k][0] for k in range(4)]) / 127.5 - 1.0, torch.arange(4))
    objective.train()
    noise = Noise.seeded(0)
    batch = images if not objective.takes_tokens else objective.tokenize(images, noise=noise)
    found = objective(batch, step=0, steps=1, noise=noise)
    found.total.backward()
    return found


def gradient(module: nn.Module) -> float:
    return sum(p.grad.abs().sum().item() for p in module.parameters() if p.grad is not None)


def test_one_step_of_mixars_loss_reaches_a_tokenizer():
    """Its own losses weigh nothing here: what gradient there is came through the latents."""
    objective = joint(LATENTS, config=NOTHING_OF_ITS_OWN)
    one_step(objective)
    model = objective.model
    assert gradient(model.continuous_tokenizer) > 0 and gradient(model.backbone) > 0 and gradient(model.head) > 0
    assert gradient(model.prior) == gradient(model.discrete_tokenizer) == 0


def test_by_default_none_is_reached():
    model = joint_mixar()
    one_step(MixARObjective(model, SamplingConfig()))
    assert not any(p.requires_grad for p in model.continuous_tokenizer.parameters())
    assert gradient(model.backbone) > 0 and gradient(model.continuous_tokenizer) == 0


def test_the_losses_are_summed():
    objective = joint(LATENTS, CODES, "prior", config=ReconstructionConfig(reconstruction_weight=2.0, kl_weight=0.5))
    found = one_step(objective)
    terms = found.terms
    expected = terms["diffusion"] + terms["prior/mlm"] + 2.0 * terms[f"{LATENTS}/reconstruction"]
    expected = expected + 0.5 * terms[f"{LATENTS}/kl"] + 2.0 * terms[f"{CODES}/reconstruction"] + 1.0
    torch.testing.assert_close(found.total.detach(), expected)
    assert all(gradient(part) > 0 for part in objective.trained.children() if [*part.parameters()])


def test_a_prior_may_be_trained_on_tokens():
    objective = joint("prior")
    assert objective.takes_tokens
    assert {"prior/mlm", "diffusion"} <= one_step(objective).terms.keys() and gradient(objective.model.prior) > 0


def test_a_prior_that_is_trained_predicts_for_ti_mix_as_it_will_while_sampling(monkeypatch: pytest.MonkeyPatch):
    objective, heard = joint("prior").train(), []
    prior = objective.model.prior
    predict = prior.predict
    monkeypatch.setattr(prior, "predict", lambda *a, **k: heard.append(prior.training) or predict(*a, **k))
    objective.model.ti_mix = TIMixConfig(start=0.5)
    one_step(objective)
    assert heard == [False] and prior.training and not [m for m in prior.modules() if not m.training]


@pytest.mark.parametrize("also_trained", [(LATENTS,), ("prior",)])
def test_a_joint_run_is_like_any_other(tmp_path, also_trained):
    """Micro-batches change nothing, a resumed run ends with the same bits, and the weights hold what was trained."""
    settings = {"flip": True, "validation": ToyImages(12), "evaluate_every": 2, "preview_every": 3}

    def run(name: str, **more):
        objective = joint(*also_trained, dropout=0.0 if "micro" in name else 0.1)
        return toy_run(tmp_path / name, objective=objective, **settings, **more)

    run("one_micro")
    run("micro", micro_batch=3)
    for kind in ("train", "validation"):
        assert losses(tmp_path / "micro", kind) == pytest.approx(losses(tmp_path / "one_micro", kind), rel=1e-5)
    run("whole")
    assert run("parts", callbacks=[Watch(stop_at=3)]).stopped
    run("parts", resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


def test_statistics_stay_as_the_mixar_learned_them(tmp_path: Path):
    objective = joint(LATENTS)
    objective.model.continuous_tokenizer.latent_std_C.fill_(0.25)
    toy_run(tmp_path / "run", objective=objective)
    assert objective.model.continuous_tokenizer.latent_std_C.tolist() == [0.25] * 3


def test_what_is_frozen_of_what_is_trained_stays(tmp_path: Path):
    objective = joint(LATENTS)
    freeze(objective.trained, ["backbone.encoder_blocks", "continuous_tokenizer"])
    before = {name: tensor.clone() for name, tensor in objective.trained.state_dict().items()}
    toy_run(tmp_path / "run", objective=objective)
    for name, tensor in objective.trained.state_dict().items():
        stays = name.startswith(("backbone.encoder_blocks.", "continuous_tokenizer."))
        assert torch.equal(tensor, before[name]) == stays, name
