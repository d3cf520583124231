from __future__ import annotations

import pytest

from mixar_core.testing.optimizers import check_optimizer
from mixar_core.training.optimizer import AdamW
from mixar_plugins.optimizers.muon import Muon, MuonConfig
from mixar_plugins.optimizers.schedule_free import ScheduleFree, ScheduleFreeConfig


@pytest.mark.parametrize("make", [AdamW, lambda: Muon(MuonConfig()), lambda: ScheduleFree(ScheduleFreeConfig())])
def test_contract(make):
    check_optimizer(make)
