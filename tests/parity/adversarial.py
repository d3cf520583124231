"""Open-MAGVIT2's discriminator, and the losses on both sides of it, from images and their stored reconstructions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mixar.plugins import plugin_manager
from mixar_core.training.adversarial import AdversarialConfig, Adversary
from tests.parity.case import load_strictly

#: where the original's state dict has the discriminator
PREFIX = "loss.discriminator."
#: moving statistics, which training does not read and ours does not keep
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def run(config: Mapping[str, Any], weights: Mapping[str, Tensor], io: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A step in training mode; `train_g_loss` is weighted, `train_disc_loss` the sum with LeCam."""
    settings = config["lossconfig"]["params"]
    part = plugin_manager().part("discriminator", "patchgan")
    images, decoded = io["images"], io["decoded"]
    discriminator = part.component(part.config(channels=settings["disc_ndf"]), image_size=images.shape[2])
    found = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items() if name.startswith(PREFIX)}
    load_strictly(discriminator, {name: t for name, t in found.items() if not name.endswith(STATISTICS)})
    lossy = AdversarialConfig(
        weight=settings["gen_loss_weight"],
        adaptive=False,
        generator_loss="non-saturating",
        lecam_weight=settings["lecam_loss_weight"],
    )
    added, terms = Adversary(discriminator, lossy).train()(images, decoded, reconstruction=images, last_layer=None)
    generator = terms["adversarial_weight"] * terms["adversarial"]
    return {
        "logits_real_mean": terms["logits_real"][None],
        "logits_fake_mean": terms["logits_fake"][None],
        "train_g_loss": generator[None],
        "train_hinge_loss": terms["discriminator"][None],
        "train_lecam_loss": terms["lecam"][None],
        "train_disc_loss": (added - generator)[None],
    }
