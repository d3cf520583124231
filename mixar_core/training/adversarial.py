"""Adversarial training of a tokenizer: what it and a discriminator minimise by each other, in one step.

Both losses are in one sum with one backward pass. The tokenizer's goes through the discriminator with its weights
detached, the discriminator's sees the reconstruction detached: no gradient of one reaches the other's weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from attrs import field, frozen
from attrs.validators import ge, gt, lt, optional
from torch import Tensor, nn
from torch.func import functional_call

from mixar_core.discriminator import Discriminator
from mixar_core.training.beside import Beside


@frozen
class AdversarialConfig:
    """How a tokenizer is trained against a discriminator. Defaults are latent diffusion's autoencoders'.

    Args:
        weight: of the tokenizer's adversarial loss.
        adaptive: `weight` is times the ratio of two gradients at the tokenizer's last layer, of the reconstruction
            (pixels and features) to the adversarial loss (VQGAN, Esser et al. 2021, Eq. 7). Taken anew in every pass of
            a process over its micro-batch.
        adaptive_limit: of that ratio. VQGAN's 10,000 is for a reconstruction loss that is a mean over pixels, as here.
        loss: the discriminator's: `hinge` (Lim and Ye 2017) or `vanilla` (Goodfellow et al. 2014), half the sum over
            real and reconstructed, averaged over all logits; `non-saturating`, cross-entropy of an image's mean logit.
        generator_loss: the tokenizer's: `hinge`, minus the mean logit; `non-saturating`, cross-entropy of an image's
            mean logit (MAGVIT-v2).
        start_step: of both. Before it the discriminator is not run.
        lecam_weight: of LeCam regularisation (Tseng et al. 2021, Eq. 4), for few images; 0: none.
        lecam_decay: of the moving means of logits that it holds logits to.
        learning_rate: the discriminator's, as `training.learning_rate` is given and with its schedule; None: that one.
    """

    weight: float = field(default=0.5, validator=gt(0.0))
    adaptive: bool = True
    adaptive_limit: float = field(default=1e4, validator=gt(0.0))
    loss: Literal["hinge", "vanilla", "non-saturating"] = "hinge"
    generator_loss: Literal["hinge", "non-saturating"] = "hinge"
    start_step: int = field(default=0, validator=ge(0))
    lecam_weight: float = field(default=0.0, validator=ge(0.0))
    lecam_decay: float = field(default=0.999, validator=[ge(0.0), lt(1.0)])
    learning_rate: float | None = field(default=None, validator=optional(gt(0.0)))


def gradient_ratio(loss: Tensor, other: Tensor, weight: Tensor, *, most: float = 1e4) -> Tensor:
    """How much larger a loss's gradient at `weight` is than another's, detached, from 0 to `most` (VQGAN, Eq. 7)."""
    norms = [torch.autograd.grad(each, weight, retain_graph=True)[0].float().norm() for each in (loss, other)]
    return (norms[0] / (norms[1] + 1e-4)).clamp(0.0, most).detach()


class Adversary(Beside):
    """A discriminator, the losses on both sides, and the moving means of its logits, which are buffers.

    Batch norm in a discriminator normalises over what a process computes in one pass (its micro-batch), images and
    reconstructions each by themselves. The moving means are those of the whole batch over all processes; within a step,
    every pass sees them moved by its own logits.
    """

    mean_real: Tensor
    mean_fake: Tensor

    def __init__(self, discriminator: Discriminator, config: AdversarialConfig) -> None:
        super().__init__()
        self.discriminator, self.config, self.learning_rate = discriminator, config, config.learning_rate
        self.register_buffer("mean_real", torch.zeros(()))
        self.register_buffer("mean_fake", torch.zeros(()))

    def learns(self, step: int) -> bool:
        """From `start_step` on, the tokenizer against it, too."""
        return step >= self.config.start_step

    def forward(
        self, images_B3HW: Tensor, decoded_B3HW: Tensor, *, reconstruction: Tensor, last_layer: nn.Parameter | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What is added to the tokenizer's loss: its part and the discriminator's, and terms for the log, unweighted.

        Args:
            reconstruction: the loss by pixels and features, and `last_layer` the tokenizer's: for an adaptive weight.
                In evaluation mode nothing is added: an opponent that moves is no measure.

        Returns:
            The sum, and `adversarial`, `adversarial_weight`, `discriminator`, `logits_real`, `logits_fake`, `lecam`.
        """
        config, decoded_B3HW = self.config, decoded_B3HW.float()
        adversarial = self.generator_loss(self.judge_detached(decoded_B3HW))
        weight = adversarial.new_full((), config.weight)
        if self.training and config.adaptive and last_layer is not None:
            weight = weight * gradient_ratio(reconstruction, adversarial, last_layer, most=config.adaptive_limit)
        real, fake = self.judge(images_B3HW), self.judge(decoded_B3HW.detach())
        own = discriminator = self.discriminator_loss(real, fake)
        terms = {"adversarial": adversarial, "discriminator": discriminator}
        terms |= {"logits_real": real.mean(), "logits_fake": fake.mean()}
        if self.training:
            terms["adversarial_weight"] = weight
        if config.lecam_weight:
            terms["lecam"] = lecam = self.lecam(real, fake)
            own = own + config.lecam_weight * lecam
        added = weight * adversarial + own if self.training else torch.zeros_like(own)
        return added, {name: term.detach() for name, term in terms.items()}

    def idle(self) -> Tensor:
        """Nothing, in the form of a loss that has a gradient of every weight."""
        return 0.0 * torch.stack([parameter.sum() for parameter in self.parameters()]).sum()

    def judge(self, images_B3HW: Tensor) -> Tensor:
        """Logits, float32 also under autocast."""
        logits: Tensor = self.discriminator(images_B3HW)
        return logits.float()

    def judge_detached(self, images_B3HW: Tensor) -> Tensor:
        """The same, without a gradient of the discriminator's own weights."""
        weights = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        logits: Tensor = functional_call(self.discriminator, weights, (images_B3HW,))
        return logits.float()

    def generator_loss(self, fake: Tensor) -> Tensor:
        """The tokenizer's, of the logits of its reconstructions."""
        return -fake.mean() if self.config.generator_loss == "hinge" else F.softplus(-fake.flatten(1).mean(1)).mean()

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """The discriminator's, of the logits of images and of reconstructions."""
        if self.config.loss == "non-saturating":
            return F.softplus(-real.flatten(1).mean(1)).mean() + F.softplus(fake.flatten(1).mean(1)).mean()
        surplus = F.softplus if self.config.loss == "vanilla" else _hinge
        return 0.5 * (surplus(-real).mean() + surplus(fake).mean())

    def lecam(self, real: Tensor, fake: Tensor) -> Tensor:
        """LeCam regularisation: squares of what logits of one kind exceed the other kind's moving mean by."""
        mean_real, mean_fake = self.moved(real.detach().mean(), fake.detach().mean())
        return F.relu(real - mean_fake).square().mean() + F.relu(mean_real - fake).square().mean()

    def moved(self, real: Tensor | float, fake: Tensor | float) -> tuple[Tensor, Tensor]:
        """The moving means once they have moved towards these means of logits."""
        decay = self.config.lecam_decay
        return self.mean_real * decay + (1 - decay) * real, self.mean_fake * decay + (1 - decay) * fake

    @torch.no_grad()
    def learned(self, losses: Mapping[str, float]) -> None:
        """Move the moving means towards those of the step's logits."""
        mean_real, mean_fake = self.moved(losses["logits_real"], losses["logits_fake"])
        self.mean_real.copy_(mean_real)
        self.mean_fake.copy_(mean_fake)


def _hinge(logits: Tensor) -> Tensor:
    return F.relu(1.0 + logits)
