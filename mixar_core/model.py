"""MixAR: the whole flow in reading order. Training is `loss`, sampling is `generate`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Literal, cast

import torch
from attrs import field, frozen
from attrs.validators import ge, gt, in_, optional
from einops import rearrange
from torch import Tensor, nn

from mixar_core.backbone import Backbone, take
from mixar_core.errors import UserError
from mixar_core.head import ContinuousHead
from mixar_core.injector import GuidanceInjector, check_guidance
from mixar_core.masking import (
    MaskingConfig,
    cfg_at_step,
    masked_after_step,
    masked_count,
    random_orders,
    split_by_order,
)
from mixar_core.mixture import TIMixConfig, ti_mixture
from mixar_core.noise import Noise
from mixar_core.prior import DiscretePrior
from mixar_core.tokenizer import ContinuousTokenizer, DiscreteTokenizer
from mixar_core.types import NO_CLASS, DiscreteTokens, Guidance, Losses, MaskSplit, TokenBatch


@frozen
class SamplingConfig:
    """How images are drawn.

    Args:
        steps: autoregressive steps (MAR: 256; MixAR: 64 or 256).
        cfg: classifier-free guidance scale of the head, 1 for none (MAR-B/L/H: 2.9, 3.0, 3.2). Ignored without classes.
        cfg_schedule: linear (rises with the share of tokens known) or constant.
        temperature: scale of the noise in the head's sampling.
        head_steps: diffusion steps a token, at least two; None is what the head's config says.
        prior_steps, prior_cfg, prior_temperature: the prior's sampler; None is what the prior's config says.
    """

    steps: int = field(default=64, validator=ge(1))
    cfg: float = field(default=1.0, validator=ge(0.0))
    cfg_schedule: Literal["linear", "constant"] = field(default="linear", validator=in_(("linear", "constant")))
    temperature: float = field(default=1.0, validator=ge(0.0))
    head_steps: int | None = field(default=None, validator=optional(ge(2)))
    prior_steps: int | None = field(default=None, validator=optional(ge(1)))
    prior_cfg: float | None = field(default=None, validator=optional(ge(0.0)))
    prior_temperature: float | None = field(default=None, validator=optional(gt(0.0)))


@frozen(eq=False)
class GenerationStep:
    """The state after one step: `index` of `count` steps, latents so far (zero where unknown), what is known."""

    index: int
    count: int
    latents_BChw: Tensor
    known_BN: Tensor
    codes_BN: Tensor | None


@frozen(eq=False)
class Generated:
    """What `generate` draws: images float (B, 3, H, W) in [-1, 1], their latents, and the codes that guided them."""

    images_B3HW: Tensor
    latents_BChw: Tensor
    codes_BN: Tensor | None


class MixAR(nn.Module):
    """Backbone, injector and head (trained together) around frozen tokenizers and a frozen prior.

    Without a discrete tokenizer and with an injector that opens no door, this is MAR. All that is trained, and all
    that a MixAR's weights file holds, lives in `trained`; the frozen parts keep their own files.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        injector: GuidanceInjector,
        head: ContinuousHead,
        continuous_tokenizer: ContinuousTokenizer,
        discrete_tokenizer: DiscreteTokenizer | None = None,
        prior: DiscretePrior | None = None,
        masking: MaskingConfig | None = None,
        ti_mix: TIMixConfig | None = None,
    ) -> None:
        super().__init__()
        self.trained = nn.ModuleDict({"backbone": backbone, "injector": injector, "head": head})
        self.continuous_tokenizer = continuous_tokenizer
        self.discrete_tokenizer = discrete_tokenizer
        self.prior = prior
        self.masking, self.ti_mix = masking or MaskingConfig(), ti_mix or TIMixConfig()
        for part in self._frozen():
            part.requires_grad_(False)
        self.train(self.training)

    @property
    def backbone(self) -> Backbone:
        """The masked autoregressive transformer."""
        return cast(Backbone, self.trained["backbone"])

    @property
    def injector(self) -> GuidanceInjector:
        """What lets the codes in."""
        return cast(GuidanceInjector, self.trained["injector"])

    @property
    def head(self) -> ContinuousHead:
        """What draws a token's latent from z."""
        return cast(ContinuousHead, self.trained["head"])

    def train(self, mode: bool = True) -> MixAR:
        """Training mode for what is trained; the frozen parts stay in evaluation mode."""
        super().train(mode)
        for part in self._frozen():
            part.eval()
        return self

    # ---------------------------------------------------------------- training

    def loss(self, batch: TokenBatch, *, lam: float = 1.0, noise: Noise) -> Losses:
        """The training loss: mask, mix, predict, diffuse (MixAR, Sec. 3).

        Args:
            batch: latents, codes and labels of the images.
            lam: TI-Mix's lambda of this step (Eq. 12), 1 for ground-truth codes only.

        Returns:
            the mean over masked tokens of the head's loss.
        """
        tokens_BNC = self.patchify(batch.latents_BChw)
        size, device = len(batch), tokens_BNC.device
        grid = self.backbone.grid

        ratio = self.masking.ratio(noise.scalar(name="ratio"))
        orders_BN = random_orders(size, grid.tokens, noise=noise, device=device)
        split = split_by_order(orders_BN, masked_count(ratio, grid.tokens))
        dropped_B = noise.uniform((size,), device, name="label_drop") < self.backbone.config.label_dropout
        labels_B = batch.labels_B.masked_fill(dropped_B, NO_CLASS)

        codes_BN = batch.codes_BN
        if codes_BN is not None and self.injector.needs_codes and lam < 1.0:
            codes_BN = self.mixed_codes(codes_BN, split, batch.labels_B, lam=lam, noise=noise)
        z_BND = self.backbone(tokens_BNC, split, labels_B, self.guidance(codes_BN))

        z_BKD, target_BKC = take(z_BND, split.masked_BK), take(tokens_BNC, split.masked_BK)
        loss_BK = self.head.loss(z_BKD, target_BKC, noise=noise)
        return Losses(total=loss_BK.mean())

    @torch.no_grad()
    def mixed_codes(self, codes_BN: Tensor, split: MaskSplit, labels_B: Tensor, *, lam: float, noise: Noise) -> Tensor:
        """Eq. 10-12: a share 1 - lambda of the masked positions takes what the prior predicts there."""
        if self.prior is None:
            raise UserError("TI-Mix (ti_mix.schedule other than constant) needs a prior; the recipe has none")
        masked_BN = split.masked_BN
        predicted_BN = self.prior.predict(codes_BN, masked_BN, labels_B, noise=noise)
        rho_BN = noise.uniform(codes_BN.shape, codes_BN.device, name="rho")
        return ti_mixture(codes_BN, predicted_BN, masked_BN, rho_BN, lam)

    def guidance(self, codes_BN: Tensor | None) -> Guidance:
        """What the injector makes of codes (B, N); empty for plain MAR.

        Raises:
            UserError: there are no codes, or the injector opens other doors than it announced, or one in a wrong shape.
        """
        if not self.injector.needs_codes:
            return Guidance()
        if codes_BN is None or self.discrete_tokenizer is None:
            raise UserError(f"injector {type(self.injector).__name__} needs codes, and there is no discrete_tokenizer")
        with torch.no_grad():
            vectors_BNE = self.discrete_tokenizer.code_vectors(codes_BN)
        guidance: Guidance = self.injector(DiscreteTokens(codes_BN, vectors_BNE))
        (images, tokens), encoder, decoder = codes_BN.shape, self.backbone.config.width, self.backbone.width
        check_guidance(guidance, self.injector, images=images, tokens=tokens, fill_width=decoder, width=encoder)
        return guidance

    # ---------------------------------------------------------------- sampling

    @torch.no_grad()
    def generate(
        self, labels_B: Tensor, *, settings: SamplingConfig, noise: Noise, codes_BN: Tensor | None = None
    ) -> Generated:
        """Images for labels: draw codes from the prior (unless given), fill in the latents, decode them."""
        steps = self.generation_steps(labels_B, settings=settings, noise=noise, codes_BN=codes_BN)
        last = deque(steps, maxlen=1).pop()
        images = self.continuous_tokenizer.decode(last.latents_BChw)
        return Generated(images, last.latents_BChw, last.codes_BN)

    @torch.no_grad()
    def sample_codes(self, labels_B: Tensor, *, settings: SamplingConfig, noise: Noise) -> Tensor:
        """Codes (B, N) from the prior.

        Raises:
            UserError: there is no prior.
        """
        if self.prior is None:
            raise UserError("sampling with guidance needs codes: give them, or a recipe with a prior")
        return self.prior.sample(
            labels_B,
            noise=noise,
            steps=settings.prior_steps,
            cfg=settings.prior_cfg,
            temperature=settings.prior_temperature,
        )

    @torch.no_grad()
    def generation_steps(
        self, labels_B: Tensor, *, settings: SamplingConfig, noise: Noise, codes_BN: Tensor | None = None
    ) -> Iterator[GenerationStep]:
        """The steps of `generate`, one at a time, for a progress bar or a viewer.

        Every image has its own random order; a step fixes the same number of tokens in all (MAR, Sec. 3.4).
        """
        if codes_BN is None and self.injector.needs_codes:
            codes_BN = self.sample_codes(labels_B, settings=settings, noise=noise)
        guidance = self.guidance(codes_BN)
        guided = settings.cfg != 1.0 and self.backbone.num_classes > 0
        if guided:
            guidance = guidance.repeat(2)
            input_labels = torch.cat([labels_B, torch.full_like(labels_B, NO_CLASS)])
        else:
            input_labels = labels_B

        batch, tokens = labels_B.shape[0], self.backbone.grid.tokens
        latents_BNC = torch.zeros(batch, tokens, self.backbone.token_dim, device=labels_B.device)
        orders_BN = random_orders(batch, tokens, noise=noise, device=labels_B.device)
        masked, schedule = tokens, masked_after_step(tokens, settings.steps)
        for index, masked_next in enumerate(schedule):
            if masked_next < masked:
                split = split_by_order(orders_BN, masked)
                chosen_BK = orders_BN[:, masked_next:masked].sort(dim=1).values
                z_BND = self._forward_for_sampling(latents_BNC, split, input_labels, guidance, guided)
                z = take(z_BND, chosen_BK.repeat(2, 1) if guided else chosen_BK).flatten(0, 1)
                z_RD, z_uncond_RD = z.chunk(2) if guided else (z, None)
                drawn_RC = self.head.sample(
                    z_RD,
                    z_uncond_RD=z_uncond_RD,
                    cfg=cfg_at_step(settings.cfg, tokens, masked_next, settings.cfg_schedule),
                    temperature=settings.temperature,
                    steps=settings.head_steps,
                    noise=noise,
                )
                drawn_BKC = drawn_RC.unflatten(0, (batch, -1)).to(latents_BNC.dtype)
                latents_BNC = latents_BNC.scatter(1, chosen_BK[..., None].expand_as(drawn_BKC), drawn_BKC)
                masked = masked_next
            known_BN = ~split_by_order(orders_BN, masked).masked_BN
            yield GenerationStep(index, len(schedule), self.unpatchify(latents_BNC), known_BN, codes_BN)

    def _forward_for_sampling(
        self, latents_BNC: Tensor, split: MaskSplit, labels: Tensor, guidance: Guidance, guided: bool
    ) -> Tensor:
        if guided:
            latents_BNC = latents_BNC.repeat(2, 1, 1)
            split = MaskSplit(split.visible_BU.repeat(2, 1), split.masked_BK.repeat(2, 1))
        return self.backbone(latents_BNC, split, labels, guidance)

    # ---------------------------------------------------------------- shapes

    def patchify(self, latents_BChw: Tensor) -> Tensor:
        """Latents (B, C, h, w) to tokens (B, N, C * p^2), row by row."""
        p = self.backbone.config.patch_size
        return rearrange(latents_BChw, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)

    def unpatchify(self, tokens_BNC: Tensor) -> Tensor:
        """Tokens (B, N, C * p^2) to latents (B, C, h, w)."""
        p, grid = self.backbone.config.patch_size, self.backbone.grid
        return rearrange(tokens_BNC, "b (h w) (c p q) -> b c (h p) (w q)", h=grid.height, w=grid.width, p=p, q=p)

    def _frozen(self) -> list[nn.Module]:
        return [p for p in (self.continuous_tokenizer, self.discrete_tokenizer, self.prior) if p is not None]
