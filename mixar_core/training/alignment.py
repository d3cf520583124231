"""VA-VAE: a tokenizer's latents are held to what a vision foundation model says of the image (Yao et al. 2025)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from attrs import field, frozen
from attrs.validators import and_, ge, gt, lt
from torch import Tensor, nn

from mixar_core.errors import UserError
from mixar_core.perceptual import FeatureExtractor
from mixar_core.precision import full_precision
from mixar_core.tokenizer import ContinuousTokenizer
from mixar_core.training.adversarial import gradient_ratio
from mixar_core.training.beside import Beside
from mixar_core.types import Grid


@frozen
class AlignmentConfig:
    """How strongly latents are held to features. Defaults are VA-VAE's of 50 epochs.

    Its released weights were made in three parts: weight 0.5 and no margins for 100 epochs, weight 0.1 and no margins
    for 15, weight 0.1 and these margins for 15.

    Args:
        weight: of the loss (w_hyper).
        adaptive: `weight` is times the ratio of two gradients at the encoder's last layer, of the reconstruction
            (pixels and features) to this loss (w_adaptive). Taken anew in every pass of a process over its micro-batch;
            of a tokenizer that does not say which layer that is, at the latents.
        margin_cos: how far from 1 the cosine of latent and feature may be for nothing (m1).
        margin_dist: how far the cosine of two places' latents may be from that of their features for nothing (m2).
    """

    weight: float = field(default=0.1, validator=gt(0.0))
    adaptive: bool = True
    margin_cos: float = field(default=0.5, validator=and_(ge(0.0), lt(2.0)))
    margin_dist: float = field(default=0.25, validator=and_(ge(0.0), lt(2.0)))


class Alignment(Beside):
    """The loss, and the linear projection of latents to the width of the features, which is trained with it.

    Args:
        channels: of a latent. features: of the foundation model's map.
    """

    def __init__(self, channels: int, features: int, config: AlignmentConfig) -> None:
        super().__init__()
        self.config = config
        self.projection = nn.Conv2d(channels, features, 1, bias=False)

    def forward(
        self, latents_BChw: Tensor, features_BFhw: Tensor, *, reconstruction: Tensor, layer: nn.Parameter | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What is added to the tokenizer's loss, and terms for the log, unweighted.

        Args:
            latents_BChw: a sample of the posterior, raw. features_BFhw: of the same places.
            reconstruction: the loss by pixels and features, and `layer` the encoder's last: for an adaptive weight.
                In evaluation mode nothing is added: what weighs the loss there are gradients.

        Returns:
            The sum, and `alignment_cos`, `alignment_dist`, in training `alignment_weight`.
        """
        cos, dist = self.losses(latents_BChw, features_BFhw)
        terms, added = {"alignment_cos": cos.detach(), "alignment_dist": dist.detach()}, torch.zeros_like(cos)
        if self.training:
            weight = cos.new_full((), self.config.weight)
            if self.config.adaptive:
                at = latents_BChw if layer is None else layer
                weight = weight * gradient_ratio(reconstruction, cos + dist, at, most=1e8)
            added, terms["alignment_weight"] = weight * (cos + dist), weight.detach()
        return added, terms

    def losses(self, latents_BChw: Tensor, features_BFhw: Tensor) -> tuple[Tensor, Tensor]:
        """L_mcos, of each place's latent and feature, and L_mdms, of the cosines between all places of an image.

        Both see the projected latents Z' = WZ, as VA-VAE's released code has it.
        """
        with full_precision(latents_BChw.device):
            latents_BFN = F.normalize(self.projection(latents_BChw.float()).flatten(2), dim=1)
            features_BFN = F.normalize(features_BFhw.float().flatten(2), dim=1)
            cosine_BN = (latents_BFN * features_BFN).sum(dim=1)
            apart_BNN = (latents_BFN.mT @ latents_BFN - features_BFN.mT @ features_BFN).abs()
        cos = F.relu(1.0 - self.config.margin_cos - cosine_BN).mean()
        return cos, F.relu(apart_BNN - self.config.margin_dist).mean()


@torch.no_grad()
def features_at(extractor: FeatureExtractor, images_B3HW: Tensor, *, height: int, width: int) -> Tensor:
    """Features (B, F, height, width) of an image's places: the deepest map that is as fine as they are, resized."""
    maps = extractor.maps(images_B3HW)
    fine = [each for each in maps if each.shape[2] >= height and each.shape[3] >= width]
    found_BFhw = (fine or maps)[-1].float()
    if found_BFhw.shape[2:] == (height, width):
        return found_BFhw
    return F.interpolate(found_BFhw, (height, width), mode="bilinear", antialias=True)


def alignment_of(tokenizer: ContinuousTokenizer, extractor: FeatureExtractor, config: AlignmentConfig) -> Alignment:
    """An alignment whose projection fits both, which are on the CPU.

    Raises:
        UserError: the latents have no places, or what an adaptive weight looks at is frozen.
    """
    layout = tokenizer.layout
    if layout.kind != "grid":
        raise UserError(f"latents in a {layout} have no places whose features they could be held to")
    if config.adaptive and tokenizer.encoder_layer is not None and not tokenizer.encoder_layer.requires_grad:
        raise UserError(
            "the encoder's last layer is frozen, by whose gradient it is weighed; set alignment.adaptive=false"
        )
    pixels, places = Grid.of_pixels(tokenizer.image_size), layout.shape
    blank_B3HW = torch.zeros(1, 3, pixels.height, pixels.width)
    features = features_at(extractor, blank_B3HW, height=places.height, width=places.width).shape[1]
    return Alignment(tokenizer.latent_channels, features, config)
