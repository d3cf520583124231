from __future__ import annotations

import pytest
import torch

import mixar

pytest.importorskip("mixar_zoo", reason="plugins/mixar_zoo is not installed")

from benchmarks.train_zoo.ship import went_on
from mixar_core.storage import read_weights
from mixar_zoo.publish import publish

TINY = {
    "continuous_tokenizer.channels": 4,
    "continuous_tokenizer.blocks": 1,
    "reconstruction.perceptual_weight": 0.0,
    "extractor": None,
    "training.steps": 2,
    "training.batch_size": 4,
    "training.evaluate_every": 0,
    "training.preview_every": 0,
    "training.cache": "none",
    "callbacks": [],
}


@pytest.mark.parametrize("freeze", [[], ["encoder", "quant_conv"]])
def test_what_goes_on_with_a_run_ships_what_it_trained_alone(tmp_path, freeze):
    """Latents of a frozen encoder, and their statistics, stay bit for bit: MixARs were trained on them."""
    mixar.train(mixar.load_recipe("digits_continuous", TINY), tmp_path / "first", device="cpu")
    before = read_weights(publish(tmp_path / "first", tmp_path / "model") / "weights.safetensors")
    init = {"from": str(tmp_path / "model"), "freeze": freeze}
    changes = {**TINY, "init": init, "reconstruction.statistics_images": 8}
    mixar.train(mixar.load_recipe("digits_continuous", changes), tmp_path / "further", device="cpu")
    tensors, said = went_on(tmp_path / "further")
    halves = {key.split(".")[0] for key in tensors}
    assert said["steps"] == 2 and said.get("only") == (["decoder", "post_quant_conv"] if freeze else None)
    assert halves == {"decoder", "post_quant_conv"} if freeze else tensors.keys() == before.keys()
    changed = {key for key in tensors if not torch.equal(tensors[key], before[key].float())}
    assert "decoder.conv_out.weight" in changed and ("latent_std_C" in changed) is not bool(freeze)
