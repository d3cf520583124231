"""What masked transformers over codes share: the sampler, the prediction, and the training loss.

A code is one or several smaller ones ("entries"); entries are masked, predicted and drawn independently.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from attrs import field, frozen, validators
from torch import Tensor, nn

from mixar_core.errors import UserError
from mixar_core.mixture import MASKED_CODE
from mixar_core.noise import Noise
from mixar_core.prior import DiscretePrior
from mixar_core.tables import Table
from mixar_core.tokenizer import DiscreteTokenizer
from mixar_core.types import NO_CLASS, Condition, DrawnCodes, Losses
from mixar_plugins.networks.orders import halton
from mixar_plugins.priors import schedules
from mixar_plugins.priors.asked import check_asked, not_negative, positive, share
from mixar_plugins.priors.codes import combine_codes, split_codes
from mixar_plugins.priors.transformer import SelfAttention, init_weights


@frozen(kw_only=True)
class MaskedConfig:
    """Settings of all masked transformers.

    Args:
        width, depth, heads, mlp_dim: of the transformer.
        dropout: of the transformer's activations, in training. label_smoothing: of the training loss.
        class_dropout: share of labels dropped in training, for guidance.
        train_mask_schedule: how uniform numbers become shares of masked entries in training.
        steps, mask_schedule: the sampler's steps, and what stays masked after each.
        guidance_scale: logits are conditional + scale * (conditional - unconditional): 0 is no guidance.
        guidance_annealing, scale_pow: how the scale grows from 0 over the steps, and the cosine's power.
        softmax_temperature: of the draws.
        sampling_annealing: that temperature falls from 1.3 to 0.5 over the steps instead.
        randomize_temperature: of the Gumbel noise on the confidence that decides what stays masked; falls to 0.
        predict_temperature: of the draws of `predict` (TI-Mix); 0 takes the likeliest.
        order: what a step keeps of what it draws. confidence: the surest entries (MaskGIT). halton: places spread out
            evenly at every moment (arXiv 2503.17076), the same for every image; the codes must stand on a grid.
    """

    width: int = field(default=1024, validator=positive)
    depth: int = field(default=24, validator=positive)
    heads: int = field(default=16, validator=positive)
    mlp_dim: int = field(default=4096, validator=positive)
    dropout: float = field(default=0.1, validator=share)
    class_dropout: float = field(default=0.1, validator=share)
    label_smoothing: float = field(default=0.1, validator=share)
    train_mask_schedule: schedules.MaskSchedule = "arccos"
    steps: int = field(default=64, validator=positive)
    mask_schedule: schedules.MaskSchedule = "arccos"
    guidance_scale: float = field(default=7.1, validator=not_negative)
    guidance_annealing: schedules.GuidanceAnnealing = "cosine"
    scale_pow: float = field(default=3.0, validator=not_negative)
    softmax_temperature: float = field(default=1.0, validator=not_negative)
    sampling_annealing: bool = False
    randomize_temperature: float = field(default=7.8, validator=not_negative)
    predict_temperature: float = field(default=1.0, validator=not_negative)
    order: Literal["confidence", "halton"] = field(
        default="confidence", validator=validators.in_(("confidence", "halton"))
    )

    def __attrs_post_init__(self) -> None:
        if self.width % self.heads:
            raise UserError(f"heads of the prior is {self.heads}; it must divide its width, {self.width}")


class MaskedTransformerPrior(DiscretePrior):
    """What all have in common: the transformer, the sampler, the prediction and the training loss.

    `forward` takes entries (B, N, S) in [0, V], V being the mask token, and labels (B,); it gives logits (B, N, S, V).

    Args:
        bits, splits: of a code, and into how many smaller ones it is factorised.
    """

    transformer: nn.Module
    rank_N: Tensor | None
    #: how visible entries count in the training loss, masked ones counting 1
    visible_weight: ClassVar[float] = 1.0

    def __init__(
        self, config: MaskedConfig, *, tokenizer: DiscreteTokenizer, num_classes: int, bits: int, splits: int
    ) -> None:
        layout = tokenizer.layout
        super().__init__(layout=layout, codebook_size=tokenizer.codebook_size, num_classes=num_classes)
        self.config, self.bits, self.splits = config, bits, splits
        #: V, codes of one split, and the index that stands for a masked entry
        self.split_size = self.mask_token = tokenizer.codebook_size if splits == 1 else 2 ** (bits // splits)

        width = config.width
        self.class_emb = nn.Embedding(num_classes + 1, width)  # the last is "no class"
        self.pos_emb = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, layout.tokens + 1, width), std=0.02))
        self._build(config)
        self.apply(init_weights)
        rank_N = None
        if config.order == "halton":
            if layout.kind != "grid":
                raise UserError(f"prior.order: halton; it needs codes on a grid, and these are a {layout}")
            rank_N = torch.tensor(halton(layout.scales[0])).argsort()
        self.register_buffer("rank_N", rank_N, persistent=False)

    def learned_tables(self) -> dict[str, Table]:
        """Of classes, then "no class"; and of positions, then the class token's."""
        return {"class_emb.weight": Table(self.num_classes), "pos_emb": Table(self.layout, dim=1)}

    held = False
    """Whether it is held in bfloat16, and computes in it wherever it is asked."""

    @abstractmethod
    def _build(self, config: Any) -> None:
        """Make the modules that `embed`, `through` and `unembed` need."""

    @abstractmethod
    def embed(self, tokens_BNS: Tensor) -> Tensor:
        """Entries (B, N, S) in [0, V], V where masked, to vectors (B, N, D)."""

    @abstractmethod
    def through(self, x_BTD: Tensor) -> Tensor:
        """The transformer: vectors of the tokens and then of the class, with their positions, (B, N + 1, D) to such."""

    @abstractmethod
    def unembed(self, x_BND: Tensor) -> Tensor:
        """The transformer's vectors (B, N, D) to logits (B, N, S, V)."""

    def forward(self, tokens_BNS: Tensor, labels_B: Tensor) -> Tensor:
        """Logits (B, N, S, V) of entries (B, N, S), V where masked; without classes, labels (B,) are ignored."""
        unlabelled_B = (labels_B == NO_CLASS) | (self.num_classes == 0)  # labelled images may train it without classes
        class_B = labels_B.masked_fill(unlabelled_B, self.num_classes)
        with torch.autocast(tokens_BNS.device.type, torch.bfloat16) if self.held else nullcontext():
            x = torch.cat([self.embed(tokens_BNS), self.class_emb(class_B)[:, None]], dim=1) + self.pos_emb
            return self.unembed(self.through(x)[:, :-1])

    def hold_bf16(self) -> None:
        """The matrices of the transformer in bfloat16: what autocast casts them to at every product."""
        self.held = True
        for module in self.transformer.modules():
            if isinstance(module, nn.Linear | SelfAttention):
                module.to(torch.bfloat16)

    @torch.no_grad()
    def sample_steps(
        self,
        condition: Condition,
        *,
        noise: Noise,
        steps: int | None = None,
        cfg: float | None = None,
        temperature: float | None = None,
        given_BN: Tensor | None = None,
    ) -> Iterator[DrawnCodes]:
        """Codes (B, N) after each step of the published sampler, -1 where an entry is still masked.

        Args:
            steps: at most N * S are taken, because a step fixes at least one entry.
            cfg: the guidance scale: 0 is none (logits are conditional + scale * (conditional - unconditional)).
            temperature: of the softmax, and then not annealed; 0 takes the likeliest.

        Raises:
            UserError: less than 1 step, or a negative temperature.
        """
        config, device = self.config, self.pos_emb.device
        steps = config.steps if steps is None else steps
        cfg = config.guidance_scale if cfg is None else cfg
        annealed = config.sampling_annealing and temperature is None
        temperature = config.softmax_temperature if temperature is None else temperature
        check_asked(steps, temperature)

        labels_B = condition.labels_B.to(device)
        shape = (len(labels_B), self.layout.tokens, self.splits)
        tokens_BNS = torch.full(shape, self.mask_token, device=device)
        entries = shape[1] * shape[2]
        share_B1 = torch.ones(shape[0], 1, device=device)  # of the entries that are to be drawn
        steps = min(steps, entries)
        if given_BN is not None:
            known_BNS = (given_BN != MASKED_CODE)[..., None].expand(shape).to(device)
            tokens_BNS = torch.where(known_BNS, self._entries(given_BN.to(device).clamp(min=0)), tokens_BNS)
            unknown_B1 = (~known_BNS).flatten(1).sum(dim=1, keepdim=True)
            share_B1 = unknown_B1 / entries
        counts = self.masked_after_steps(entries, steps)
        scales = schedules.guidance_scales(cfg, steps, config.guidance_annealing, config.scale_pow)
        fixing = [True] * steps if given_BN is None else _fixing(counts, share_B1, entries)
        drawn_p_BNS = torch.zeros(shape, device=device)
        for step, (count, scale) in enumerate(zip(counts, scales, strict=True)):
            left = 1 - (step + 1) / steps
            if annealed:
                temperature = 0.5 + 0.8 * left
            if fixing[step]:
                logits_BNSV = self._guided(tokens_BNS, labels_B, scale)
            else:  # nothing is kept of what it draws: only its noise is drawn
                logits_BNSV = tokens_BNS.new_zeros(*shape, self.split_size, dtype=torch.float32)
            last = step == steps - 1
            drawn_BNS, log_p_BNS, confidence_BNS = self.drawn(logits_BNSV, temperature, left, noise=noise, last=last)
            masked_BNS = tokens_BNS == self.mask_token
            tokens_BNS = torch.where(masked_BNS, drawn_BNS, tokens_BNS)
            drawn_p_BNS = torch.where(masked_BNS, log_p_BNS, drawn_p_BNS)
            if last:
                break
            if self.rank_N is not None:
                confidence_BNS = -self.rank_N[:, None].expand(shape).float()
            # What was drawn least confidently, or stands last, goes back to being masked; what was known stays.
            confidence_BNS = confidence_BNS.masked_fill(~masked_BNS, torch.inf)
            # By rank and not by threshold as published: the counts hold under ties, too.
            least = confidence_BNS.flatten(1).argsort(dim=1, stable=True)
            again = torch.arange(entries, device=device) < (count * share_B1).floor()
            again_BNS = torch.zeros_like(again).scatter(1, least, again).view(shape)
            tokens_BNS = tokens_BNS.masked_fill(again_BNS, self.mask_token)
            codes_BN = combine_codes(tokens_BNS, bits=self.bits)
            masked_BN = (tokens_BNS == self.mask_token).any(dim=-1)
            yield DrawnCodes(codes_BN.masked_fill(masked_BN, MASKED_CODE), drawn_p_BNS.sum(dim=-1))
        yield DrawnCodes(combine_codes(tokens_BNS, bits=self.bits), drawn_p_BNS.sum(dim=-1))

    @torch.no_grad()
    def predict(self, codes_BN: Tensor, masked_BN: Tensor, condition: Condition, *, noise: Noise) -> DrawnCodes:
        """Eq. 10-11: all splits of masked codes become the mask token, and one forward pass predicts them."""
        tokens_BNS = self._entries(codes_BN).masked_fill(masked_BN[..., None], self.mask_token)
        temperature = self.config.predict_temperature
        log_p_BNSV = _log_p(self(tokens_BNS, condition.labels_B), temperature)
        drawn_BNS, log_p_BNS = self._draw(log_p_BNSV, temperature, noise)
        true_p_BNS = log_p_BNSV.gather(-1, self._entries(codes_BN)[..., None]).squeeze(-1)
        drawn_BN = combine_codes(drawn_BNS, bits=self.bits)
        confidence_BN, truth_BN = (p.sum(dim=-1).masked_fill(~masked_BN, 0.0) for p in (log_p_BNS, true_p_BNS))
        return DrawnCodes(torch.where(masked_BN, drawn_BN, codes_BN), confidence_BN, truth_BN=truth_BN)

    def _entries(self, codes_BN: Tensor) -> Tensor:
        """Codes as entries (B, N, S)."""
        return split_codes(codes_BN, bits=self.bits, splits=self.splits)

    def loss(self, codes_BN: Tensor, condition: Condition, *, noise: Noise) -> Losses:
        """Masked cross-entropy as MaskBit trains it; see `masked_cross_entropy` for the terms."""
        config, device = self.config, codes_BN.device
        target_BNS = self._entries(codes_BN)
        batch = len(codes_BN)
        masked_BNS = self.hidden(target_BNS, noise=noise)
        dropped_B = noise.uniform((batch,), device, name="prior.drop") < config.class_dropout
        labels_B = condition.dropped(dropped_B).labels_B
        logits_BNSV = self(target_BNS.masked_fill(masked_BNS, self.mask_token), labels_B)
        return masked_cross_entropy(
            logits_BNSV,
            target_BNS,
            masked_BNS,
            label_smoothing=config.label_smoothing,
            visible_weight=self.visible_weight,
        )

    def masked_after_steps(self, entries: int, steps: int) -> list[int]:
        """How many of the entries stay masked after each step of sampling."""
        return schedules.masked_after_steps(entries, steps, self.config.mask_schedule)

    def drawn(
        self, logits_BNSV: Tensor, temperature: float, left: float, *, noise: Noise, last: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of a step's logits: entries (B, N, S), their log-probabilities, and the confidence that keeps them.

        Args:
            left: share of the steps that comes after this one. last: it is the last, which keeps all.
        """
        drawn_BNS, log_p_BNS = self._draw(_log_p(logits_BNSV, temperature), temperature, noise)
        if last:
            return drawn_BNS, log_p_BNS, log_p_BNS
        jitter_BNS = schedules.gumbel(noise.uniform(drawn_BNS.shape, drawn_BNS.device, name="prior.confidence"))
        return drawn_BNS, log_p_BNS, log_p_BNS + self.config.randomize_temperature * left * jitter_BNS

    def hidden(self, target_BNS: Tensor, *, noise: Noise) -> Tensor:
        """Which entries (B, N, S) training hides: each with the share that is drawn for its image."""
        device = target_BNS.device
        uniform_B = noise.uniform((len(target_BNS),), device, name="prior.ratio")
        share_B = schedules.mask_share(uniform_B, self.config.train_mask_schedule)
        return noise.uniform(target_BNS.shape, device, name="prior.mask") < share_B[:, None, None]

    def _guided(self, tokens_BNS: Tensor, labels_B: Tensor, scale: float) -> Tensor:
        """Logits with guidance; where that changes nothing, the unconditional half is not computed."""
        if scale == 0 or self.num_classes == 0:
            return self(tokens_BNS, labels_B)
        labels_2B = torch.cat([labels_B, torch.full_like(labels_B, NO_CLASS)])
        cond, uncond = self(tokens_BNS.repeat(2, 1, 1), labels_2B).float().chunk(2)
        return cond + scale * (cond - uncond)

    def _draw(self, log_p_BNSV: Tensor, temperature: float, noise: Noise) -> tuple[Tensor, Tensor]:
        """Entries (B, N, S) drawn, or at temperature 0 the likeliest, and their log-probabilities."""
        if temperature == 0:
            drawn_BNS = log_p_BNSV.argmax(dim=-1)
        else:
            uniform_BNS = noise.uniform(log_p_BNSV.shape[:-1], log_p_BNSV.device, name="prior.draw")
            drawn_BNS = schedules.draw(log_p_BNSV.exp(), uniform_BNS)
        return drawn_BNS, log_p_BNSV.gather(-1, drawn_BNS[..., None]).squeeze(-1)


def _fixing(counts: Sequence[int], share_B1: Tensor, entries: int) -> list[bool]:
    """Whether each step of sampling fixes an entry of any image: beside given codes there may be fewer than steps.

    Args:
        counts: how many of `entries` stay masked after each step; share_B1: of them are drawn in each image.
    """
    if share_B1.is_meta:
        return [True] * len(counts)
    share_B1 = share_B1.cpu()
    masked = [(entries * share_B1).round(), *((count * share_B1).floor() for count in [*counts[:-1], 0])]
    return [bool((after < before).any()) for before, after in pairwise(masked)]


def _log_p(logits_BNSV: Tensor, temperature: float) -> Tensor:
    """Log-probabilities (B, N, S, V) of a softmax at this temperature, at 0 of the plain one; float32."""
    return (logits_BNSV.float() / (temperature or 1.0)).log_softmax(dim=-1)


def masked_cross_entropy(
    logits_BNSV: Tensor,
    target_BNS: Tensor,
    masked_BNS: Tensor,
    *,
    label_smoothing: float,
    visible_weight: float = 1.0,
) -> Losses:
    """Cross-entropy over all entries, masked or not, as MaskBit trains it; TiTok weighs visible ones less.

    Terms: `mlm` is that loss, `masked_loss` the same over masked entries alone, `masked_accuracy` their share that is
    guessed right. In float32 whatever the autocast.
    """
    logits_BNSV = logits_BNSV.float()
    loss_BNS = F.cross_entropy(
        logits_BNSV.flatten(0, 2), target_BNS.flatten(), label_smoothing=label_smoothing, reduction="none"
    ).view_as(target_BNS)
    total = loss_BNS.mean()
    if visible_weight != 1.0:
        counts_BNS = masked_BNS + visible_weight * ~masked_BNS
        total = (loss_BNS * counts_BNS).sum() / (counts_BNS.sum() + 1e-8)
    weight_BNS = masked_BNS / masked_BNS.sum().clamp(min=1)
    right_BNS = (logits_BNSV.argmax(dim=-1) == target_BNS).float()
    terms = {
        "mlm": total.detach(),
        "masked_loss": (loss_BNS.detach() * weight_BNS).sum(),
        "masked_accuracy": (right_BNS * weight_BNS).sum(),
    }
    return Losses(total, terms)
