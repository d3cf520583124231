"""Weights files of feature extractors that no package carries, filled at random: the architecture, not the figures."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch_fidelity import feature_extractor_inceptionv3 as fidelity

#: a tiny model that timm keeps for tests
TIMM_MODEL = "test_vit"


def write_inception(path: Path) -> Path:
    """Random weights of torch-fidelity's Inception-v3, scaled so that activations neither vanish nor explode."""
    with (
        mock.patch.object(fidelity, "load_state_dict_from_url", return_value={}),
        mock.patch.object(fidelity.FeatureExtractorInceptionV3, "load_state_dict"),
    ):
        network = fidelity.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    torch.save(network.state_dict(), path)
    return path


def write_timm(path: Path) -> Path:
    """Random weights of TIMM_MODEL, classifier included, as timm publishes them."""
    torch.manual_seed(0)
    save_file(timm.create_model(TIMM_MODEL).state_dict(), path)
    return path
