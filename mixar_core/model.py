"""MixAR: the whole flow in reading order. Training is `loss`, sampling is `generate`."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from typing import Literal, cast

import torch
from attrs import field, frozen
from attrs.validators import and_, ge, gt, in_, le, optional
from einops import rearrange
from torch import Tensor, nn

from mixar_core.backbone import Backbone, check_plan
from mixar_core.conditioner import Conditioner
from mixar_core.errors import UserError
from mixar_core.head import ContinuousHead, sample_parts
from mixar_core.injector import GuidanceInjector, check_guidance
from mixar_core.masking import MaskingConfig, put, random_orders, raster_orders, take
from mixar_core.mixture import TIMixConfig, ti_mixture
from mixar_core.noise import Noise
from mixar_core.plan import Plan, Sampler, Task
from mixar_core.prior import DiscretePrior
from mixar_core.tokenizer import ContinuousTokenizer, DiscreteTokenizer
from mixar_core.types import Condition, DiscreteTokens, DrawnCodes, Guidance, Losses, MaskSplit, TokenBatch, Z

#: More steps of any kind are a slip of the pen, and would be computed for days.
_MOST = le(2**16)


@frozen
class SamplingConfig:
    """How images are drawn. Steps of each kind are at most 65,536.

    Args:
        steps: autoregressive steps (MAR: 256; MixAR: 64 or 256).
        cfg: classifier-free guidance scale of the head, 1 for none (MAR-B/L/H: 2.9, 3.0, 3.2). Ignored without classes.
        cfg_schedule: linear (rises with the share of tokens known) or constant.
        temperature: scale of the noise in the head's sampling.
        head_steps: steps of the head's sampler, at least two; None is what the head's config says.
        prior_steps, prior_cfg, prior_temperature: the prior's sampler; None is what the prior's config says.
    """

    steps: int = field(default=64, validator=and_(ge(1), _MOST))
    cfg: float = field(default=1.0, validator=ge(0.0))
    cfg_schedule: Literal["linear", "constant"] = field(default="linear", validator=in_(("linear", "constant")))
    temperature: float = field(default=1.0, validator=ge(0.0))
    head_steps: int | None = field(default=None, validator=optional(and_(ge(2), _MOST)))
    prior_steps: int | None = field(default=None, validator=optional(and_(ge(1), _MOST)))
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


@frozen(eq=False)
class Kept:
    """Continuous tokens that stay as they are while the others are drawn.

    Args:
        latents_BChw: normalised; looked at only where kept.
        positions_BK: of the tokens that are kept, int64, equally many in every image.
    """

    latents_BChw: Tensor
    positions_BK: Tensor


class MixAR(nn.Module):
    """Backbone, injector and head around tokenizers and a prior.

    Without a discrete tokenizer and with an injector that opens no door, this is MAR. What a MixAR's weights file holds
    lives in `trained`: backbone, injector, head, and what else is trained with them. The other parts are frozen and
    keep their own files.

    Args:
        also_trained: names of parts (`continuous_tokenizer`, `discrete_tokenizer`, `prior`, `conditioner`) that are
            trained, too.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        injector: GuidanceInjector,
        head: ContinuousHead,
        sampler: Sampler,
        continuous_tokenizer: ContinuousTokenizer,
        discrete_tokenizer: DiscreteTokenizer | None = None,
        prior: DiscretePrior | None = None,
        conditioner: Conditioner | None = None,
        masking: MaskingConfig | None = None,
        ti_mix: TIMixConfig | None = None,
        also_trained: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.trained = nn.ModuleDict({"backbone": backbone, "injector": injector, "head": head})
        self.continuous_tokenizer = continuous_tokenizer
        self.discrete_tokenizer = discrete_tokenizer
        self.prior, self.conditioner, self.sampler = prior, conditioner, sampler
        self.masking, self.ti_mix = masking or MaskingConfig(), ti_mix or TIMixConfig()
        self.trained.update({name: getattr(self, name) for name in also_trained})
        for part in self._frozen():
            part.requires_grad_(False)
        self.train(self.training)

    @property
    def backbone(self) -> Backbone:
        """The autoregressive transformer."""
        return cast(Backbone, self.trained["backbone"])

    @property
    def injector(self) -> GuidanceInjector:
        """What lets the codes in."""
        return cast(GuidanceInjector, self.trained["injector"])

    @property
    def head(self) -> ContinuousHead:
        """What draws a token's latent from z."""
        return cast(ContinuousHead, self.trained["head"])

    @property
    def learns_codes(self) -> bool:
        """Whether training needs the images' codes: to let them in, or for a part about codes that is trained, too."""
        return self.injector.needs_codes or not {"discrete_tokenizer", "prior"}.isdisjoint(self.trained.keys())

    def train(self, mode: bool = True) -> MixAR:
        """Training mode for what is trained; the frozen parts stay in evaluation mode."""
        super().train(mode)
        for part in self._frozen():
            part.eval()
        return self

    def condition(self, labels_B: Tensor) -> Condition:
        """What images of these labels int64 (B,) are drawn for."""
        return Condition(labels_B) if self.conditioner is None else self.conditioner(labels_B)

    # ---------------------------------------------------------------- training

    def loss(self, batch: TokenBatch, *, lam: float = 1.0, noise: Noise) -> Losses:
        """The training loss: mask, mix, predict, diffuse (MixAR, Sec. 3).

        Args:
            batch: latents, codes and labels of the images.
            lam: TI-Mix's lambda of this step (Eq. 12), 1 for ground-truth codes only.

        Returns:
            the mean over masked tokens of the head's loss.
        """
        tokens_BNC, backbone = self.patchify(batch.latents_BChw), self.backbone
        size, device, tokens = len(batch), tokens_BNC.device, backbone.layout.tokens

        ratio = self.masking.ratio(noise.scalar(name="ratio"))
        if backbone.order != "any":
            orders_BN = raster_orders(size, tokens, device=device)
        else:
            orders_BN = random_orders(size, tokens, noise=noise, device=device)
        split = backbone.split(orders_BN, ratio)
        dropped_B = noise.uniform((size,), device, name="label_drop") < backbone.label_dropout
        condition = self.condition(batch.labels_B)

        codes = None if batch.codes_BN is None else DrawnCodes(batch.codes_BN)
        if codes is not None and self.injector.needs_codes and lam < 1.0:
            codes = self.mixed_codes(codes.codes_BN, split, condition, lam=lam, noise=noise)
        guidance = self.guidance(codes, known=split.visible_BU.shape[1] / tokens)
        z = backbone(tokens_BNC, split, condition.dropped(dropped_B), guidance)
        z = z if isinstance(z, Z) else Z(z, split.masked_BK)
        z = z._replace(tokens_BNC=tokens_BNC, known_BN=~split.masked_BN)
        loss_BK = self.head.loss(z, take(tokens_BNC, split.masked_BK), noise=noise)
        if loss_BK.shape != split.masked_BK.shape:
            shapes = f"its loss has shape {(*loss_BK.shape,)}, not one a token: {(*split.masked_BK.shape,)}"
            raise UserError(f"head {type(self.head).__name__}: {shapes}")
        return Losses(total=loss_BK.mean())

    @torch.no_grad()
    def mixed_codes(
        self, codes_BN: Tensor, split: MaskSplit, condition: Condition, *, lam: float, noise: Noise
    ) -> DrawnCodes:
        """Eq. 10-12: a share 1 - lambda of the masked positions takes what the prior predicts there.

        Codes of a depth stand on one position together; in other layouts than these and a grid they stand on none.
        """
        if self.prior is None or not self.prior.predicts:
            lacks = "a prior; the recipe has none" if self.prior is None else "a prior that can predict codes"
            raise UserError(f"TI-Mix (ti_mix.schedule other than constant) needs {lacks}")
        masked_BN = split.masked_BN.repeat_interleave(self.prior.layout.depth, dim=1)
        training = self.prior.training
        self.prior.eval()  # one that is trained, too, predicts as it will while sampling: without dropout
        predicted = self.prior.predict(codes_BN, masked_BN, condition, noise=noise)
        self.prior.train(training)
        rho_BN = noise.uniform(codes_BN.shape, codes_BN.device, name="rho")
        mixed_BN = ti_mixture(codes_BN, predicted.codes_BN, masked_BN, rho_BN, lam)
        if predicted.confidence_BN is None:
            return DrawnCodes(mixed_BN)
        truth_BN = torch.zeros_like(predicted.confidence_BN) if predicted.truth_BN is None else predicted.truth_BN
        return DrawnCodes(mixed_BN, ti_mixture(truth_BN, predicted.confidence_BN, masked_BN, rho_BN, lam))

    def guidance(self, codes: DrawnCodes | None, *, known: float = 0.0) -> Guidance:
        """What the injector makes of codes; empty for plain MAR.

        Args:
            known: share of the continuous tokens that are known.

        Raises:
            UserError: there are no codes, or the injector opens other doors than it announced, or one in a wrong shape.
        """
        injector, tokenizer = self.injector, self.discrete_tokenizer
        if not injector.needs_codes:
            return Guidance()
        if codes is None or tokenizer is None:
            raise UserError(f"injector {type(injector).__name__} needs codes, and there is no discrete_tokenizer")
        with torch.set_grad_enabled(torch.is_grad_enabled() and "discrete_tokenizer" in self.trained):
            vectors_BNE = tokenizer.code_vectors(codes.codes_BN)
            on_grid_BNE: Tensor | None = vectors_BNE
            if tokenizer.layout.kind != "grid":
                placed = tokenizer.layout.grid is not None
                on_grid_BNE = tokenizer.vectors_on_grid(codes.codes_BN) if placed else None
        tokens = DiscreteTokens(codes.codes_BN, vectors_BNE, on_grid_BNE, codes.confidence_BN, known)
        guidance: Guidance = injector(tokens)
        check_guidance(
            guidance,
            injector,
            images=len(vectors_BNE),
            tokens=self.backbone.layout.tokens,
            fill_width=self.backbone.width,
            width=self.backbone.guidance_width,
        )
        return guidance

    # ---------------------------------------------------------------- sampling

    @torch.no_grad()
    def generate(
        self,
        condition: Condition,
        *,
        settings: SamplingConfig,
        noise: Noise,
        codes_BN: Tensor | None = None,
        given_BN: Tensor | None = None,
        kept: Kept | None = None,
    ) -> Generated:
        """Images for a condition: draw codes from the prior (unless given), fill in the latents, decode them."""
        steps = self.generation_steps(
            condition, settings=settings, noise=noise, codes_BN=codes_BN, given_BN=given_BN, kept=kept
        )
        last = deque(steps, maxlen=1).pop()
        images = self.continuous_tokenizer.beside(last.codes_BN).decode(last.latents_BChw)
        return Generated(images, last.latents_BChw, last.codes_BN)

    @torch.no_grad()
    def sample_codes(
        self, condition: Condition, *, settings: SamplingConfig, noise: Noise, given_BN: Tensor | None = None
    ) -> DrawnCodes:
        """Codes (B, N) from the prior, given ones (not MASKED_CODE) kept.

        Raises:
            UserError: there is no prior.
        """
        if self.prior is None:
            raise UserError("sampling with guidance needs codes: give them, or a recipe with a prior")
        return self.prior.sample(
            condition,
            noise=noise,
            steps=settings.prior_steps,
            cfg=settings.prior_cfg,
            temperature=settings.prior_temperature,
            given_BN=given_BN,
        )

    @torch.no_grad()
    def generation_steps(
        self,
        condition: Condition,
        *,
        settings: SamplingConfig,
        noise: Noise,
        codes_BN: Tensor | None = None,
        given_BN: Tensor | None = None,
        kept: Kept | None = None,
    ) -> Iterator[GenerationStep]:
        """The loop of `generate`, one step at a time, without decoding (MAR, Sec. 3.4): any plan, any backbone.

        Args:
            codes_BN: codes instead of those the prior draws.
            given_BN: codes that the prior keeps and draws the others to; MASKED_CODE (-1) where it is to draw.
            kept: tokens that are known from the start.

        Raises:
            UserError: guidance needs codes, and there is neither a prior nor codes; or the sampler cannot plan this.
        """
        codes = None if codes_BN is None else DrawnCodes(codes_BN)
        if codes is None and self.injector.needs_codes:
            codes = self.sample_codes(condition, settings=settings, noise=noise, given_BN=given_BN)
            codes_BN = codes.codes_BN
        images, tokens, device = len(condition), self.backbone.layout.tokens, condition.labels_B.device
        known_BN = torch.zeros(images, tokens, dtype=torch.bool, device=device)
        latents_BNC = torch.zeros(images, tokens, self.backbone.token_dim, device=device)
        plan, known = self.plan(condition, settings, noise=noise, kept=kept, codes=codes), 0
        if kept is not None:
            known, kept_BKC = kept.positions_BK.shape[1], take(self.patchify(kept.latents_BChw), kept.positions_BK)
            latents_BNC = put(latents_BNC, kept.positions_BK, kept_BKC)
            known_BN = known_BN.scatter(1, kept.positions_BK, True)

        guidance = self.guidance(codes, known=known / tokens)
        guided = any(planned.step.cfg != 1.0 for planned in plan.steps)
        state = self.backbone.start(condition, guidance, guided=guided)
        if kept is not None:
            state.reveal(kept.positions_BK, kept_BKC)
        for index, planned in enumerate(plan.steps):
            positions_BK, step = planned.positions_BK, planned.step
            if step.redraw:
                known_BN, known = known_BN.scatter(1, positions_BK, False), known - positions_BK.shape[1]
            if self.injector.follows and index:
                state.guidance = self.guidance(codes, known=known / tokens)
            z = state.predict(positions_BK, step)._replace(tokens_BNC=latents_BNC, known_BN=known_BN)
            drawn_BKC = self.project(sample_parts(self.head, z, step, noise=noise))
            state.reveal(positions_BK, drawn_BKC)
            latents_BNC = put(latents_BNC, positions_BK, drawn_BKC)
            known_BN, known = known_BN.scatter(1, positions_BK, True), known + positions_BK.shape[1]
            yield GenerationStep(index, len(plan), self.unpatchify(latents_BNC), known_BN, codes_BN)
        if not plan.steps:  # all of it is kept
            yield GenerationStep(0, 1, self.unpatchify(latents_BNC), known_BN, codes_BN)

    def plan(
        self,
        condition: Condition,
        settings: SamplingConfig,
        *,
        noise: Noise,
        kept: Kept | None = None,
        codes: DrawnCodes | None = None,
    ) -> Plan:
        """What the sampler plans for these settings; without a condition there is nothing to guide by."""
        backbone, confidence_BN = self.backbone, None
        if codes is not None and self.discrete_tokenizer is not None:
            of = self.discrete_tokenizer.layout
            placed = of.kind in ("grid", "depth") and backbone.layout.kind == "grid" and of.grid == backbone.layout.grid
            if codes.confidence_BN is not None and placed:
                confidence_BN = codes.confidence_BN.unflatten(1, (-1, of.depth)).sum(dim=2)
        conditional = backbone.num_classes > 0 or condition.vectors_BTF is not None
        task = Task(
            images=len(condition),
            layout=backbone.layout,
            device=condition.labels_B.device,
            steps=settings.steps,
            cfg=settings.cfg if conditional else 1.0,
            cfg_schedule=settings.cfg_schedule,
            temperature=settings.temperature,
            head_steps=settings.head_steps,
            order=backbone.order,
            known_BK=None if kept is None else kept.positions_BK,
            confidence_BN=confidence_BN,
            groups=backbone.groups,
        )
        plan = self.sampler.plan(task, noise=noise)
        check_plan(plan, backbone)
        return plan

    # ---------------------------------------------------------------- shapes

    def patchify(self, latents_BChw: Tensor) -> Tensor:
        """Latents (B, C, h, w) to tokens (B, N, C * p^2), row by row."""
        p = self.backbone.patch_size
        return rearrange(latents_BChw, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)

    def unpatchify(self, tokens_BNC: Tensor) -> Tensor:
        """Tokens (B, N, C * p^2) to latents (B, C, h, w)."""
        p, shape = self.backbone.patch_size, self.backbone.layout.shape
        return rearrange(tokens_BNC, "b (h w) (c p q) -> b c (h p) (w q)", h=shape.height, w=shape.width, p=p, q=p)

    def project(self, tokens_BKC: Tensor) -> Tensor:
        """Sampled tokens (B, K, C * p^2) as the continuous tokenizer lets them be."""
        p2 = self.backbone.patch_size**2
        projected = self.continuous_tokenizer.project(rearrange(tokens_BKC, "b k (c p) -> b k p c", p=p2))
        return rearrange(projected, "b k p c -> b k (c p)")

    def _frozen(self) -> list[nn.Module]:
        parts = (self.continuous_tokenizer, self.discrete_tokenizer, self.prior, self.conditioner)
        trained = set(map(id, self.trained.values()))
        return [part for part in parts if part is not None and id(part) not in trained]
