from __future__ import annotations

import sys

import pytest
import torch
from torch.optim import AdamW as TorchAdamW
from torch.optim import Muon as TorchMuon

from mixar_core.errors import UserError
from mixar_core.training.optimizer import Updates
from mixar_core.training.settings import TrainingConfig
from mixar_plugins.optimizers.muon import Muon, MuonConfig
from mixar_plugins.optimizers.schedule_free import ScheduleFree, ScheduleFreeConfig
from tests.core.training_toys import ToyNet
from tests.toys import small_mixar

CONFIG = TrainingConfig(steps=1, weight_decay=0.3)


def test_muon_has_the_matrices_of_hidden_layers_and_adamw_the_rest():
    trained = small_mixar("dc-ca").trained
    updates = Updates(Muon(MuonConfig()), trained, CONFIG, ["head"])
    names = {id(parameter): name for name, parameter in trained.named_parameters()}
    muon, adamw = ({names[id(p)] for group in each.param_groups for p in group["params"]} for each in updates.torch)
    assert [type(each) for each in updates.torch] == [TorchMuon, TorchAdamW]
    assert muon | adamw == set(names.values()) and not muon & adamw
    assert {"backbone.encoder_blocks.0.attn.qkv.weight", "backbone.decoder_blocks.1.cross.kv.weight"} <= muon
    assert any(name.startswith("head.net.res_blocks.0.") for name in muon)
    outside = {"backbone.class_emb.weight", "backbone.z_proj.weight", "backbone.decoder_embed.weight"}
    assert outside | {"backbone.fake_latent", "injector.embed.weight", "head.net.input_proj.weight"} <= adamw
    assert all(trained.get_parameter(name).ndim == 2 for name in muon)
    assert {name.startswith("head") for group in updates.param_groups if not group["weight_decay"]
            for name in map(names.get, map(id, group["params"])) if name in muon} == {True}  # fmt: skip


def test_muons_step_is_as_large_as_adamws():
    """0.2 sqrt(max(rows, columns)) times an orthogonal matrix has a root mean square of about 0.2."""
    trained = small_mixar().trained
    before = {name: weight.clone() for name, weight in trained.state_dict().items()}
    updates = Updates(Muon(MuonConfig()), trained, TrainingConfig(steps=1, weight_decay=0.0))
    for parameter in updates.parameters.values():
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    updates.step(1e-2)
    name = "backbone.encoder_blocks.0.mlp.fc1.weight"
    size = (trained.state_dict()[name] - before[name]).square().mean().sqrt().item()
    assert 0.1 * 1e-2 < size < 0.3 * 1e-2


def test_what_an_optimizer_cannot_do_is_refused(monkeypatch):
    with pytest.raises(UserError, match=r"^what is trained has no matrices in blocks"):
        Updates(Muon(MuonConfig()), ToyNet(), CONFIG)
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    with pytest.raises(UserError, match=r"needs the package schedulefree: pip install 'mixar\[schedulefree\]'"):
        ScheduleFree(ScheduleFreeConfig())
    for settings in ({"momentum": 1.0}, {"iterations": 0}, {"iterations": 100}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            MuonConfig(**settings)


def test_schedule_free_needs_two_points():
    pytest.importorskip("schedulefree")
    with pytest.raises(UserError, match=r"training\.betas"):
        Updates(ScheduleFree(ScheduleFreeConfig()), ToyNet(), TrainingConfig(steps=1, betas=(0.0, 0.9)))
