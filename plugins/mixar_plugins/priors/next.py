"""What priors that draw codes one after the other share: the loop of sampling, guidance, filtering, and given codes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from attrs import field, frozen
from torch import Tensor

from mixar_core.errors import UserError
from mixar_core.mixture import MASKED_CODE
from mixar_core.noise import Noise
from mixar_core.prior import DiscretePrior
from mixar_core.types import NO_CLASS, Condition, DrawnCodes, Losses
from mixar_plugins.networks.transformer import KeyValueCache
from mixar_plugins.priors.asked import check_asked, count, not_negative, positive, share, up_to_one
from mixar_plugins.priors.schedules import draw

#: LlamaGen divides logits by at least this
_COLDEST = 1e-5


@frozen(kw_only=True)
class NextConfig:
    """What all of them are told.

    Args:
        width, depth, heads: of the transformer.
        dropout: of activations, in training. class_dropout: share of labels dropped in training, for guidance.
        guidance_scale: logits are unconditional + scale * (conditional - unconditional): 1 is no guidance.
        temperature: of the draws; 0 takes the likeliest.
        top_k: only the so many likeliest codes are drawn, and what is as likely as the last of them; 0: all.
        top_p: only the likeliest codes that together are as probable as this, up to the one that exceeds it; 1: all.
    """

    width: int = field(default=768, validator=positive)
    depth: int = field(default=12, validator=positive)
    heads: int = field(default=12, validator=positive)
    dropout: float = field(default=0.1, validator=share)
    class_dropout: float = field(default=0.1, validator=share)
    guidance_scale: float = field(default=1.0, validator=not_negative)
    temperature: float = field(default=1.0, validator=not_negative)
    top_k: int = field(default=0, validator=count)
    top_p: float = field(default=1.0, validator=up_to_one)

    def __attrs_post_init__(self) -> None:
        if self.width % self.heads:
            raise UserError(f"heads of the prior is {self.heads}; it must divide its width, {self.width}")


class NextState:
    """A batch that is being drawn: its classes, with guidance those of both halves, and what each block remembers.

    `free_BN` says in their order which codes are not given.
    """

    free_BN: Tensor

    def __init__(self, classes_R: Tensor, blocks: int, capacity: int, orders_BN: Tensor | None) -> None:
        self.classes_R, self.orders_BN = classes_R, orders_BN
        self.caches = [KeyValueCache(capacity) for _ in range(blocks)]

    def both(self, x: Tensor) -> Tensor:
        """A batch's tensor (B, ...) for every row: once, or for both halves."""
        return x.repeat(len(self.classes_R) // len(x), *[1] * (x.ndim - 1))


class NextPrior(DiscretePrior):
    """Codes come in an order, one or several a step, and each step sees all that came before it.

    In its order: a span is (first, until), the codes of a step.
    """

    config: NextConfig

    @abstractmethod
    def begin(self, classes_R: Tensor, orders_BN: Tensor | None) -> NextState:
        """Begin to sample for these class indices (`num_classes`: no class)."""

    @abstractmethod
    def logits(self, state: NextState, codes_BN: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
        """Logits (R, K, V) of the codes of the last of these spans; those before it are what was drawn so far."""

    def spans(self, steps: int | None) -> list[tuple[int, int]]:
        """The codes of each step: one a step, however many are asked for."""
        return [(at, at + 1) for at in range(self.layout.tokens)]

    def orders(self, given_BN: Tensor | None, batch: int, noise: Noise) -> Tensor | None:
        """In which order (B, N) codes are drawn; None: as they stand."""
        return None

    def guidance(self, cfg: float | None, spans: Sequence[tuple[int, int]]) -> list[tuple[float, ...]]:
        """The guidance scale of each step, of every draw in it."""
        return [(self.config.guidance_scale if cfg is None else cfg,)] * len(spans)

    def class_indices(self, labels_B: Tensor) -> Tensor:
        """Labels (B,) as indices; without classes, labelled images may train it."""
        return labels_B.masked_fill((labels_B == NO_CLASS) | (self.num_classes == 0), self.num_classes)

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
        """Codes (B, N) after each step, -1 where they are still to be drawn.

        Args:
            steps: of a prior that draws as many codes a step as it likes; the others take as many as they must.
            cfg: the guidance scale; 1 is none, see the config.
            given_BN: in every image, codes that come before all that are drawn; a prior of random order takes any.

        Raises:
            UserError: less than 1 step, a negative temperature, or codes are given that come later.
        """
        check_asked(steps, temperature)
        device, batch = next(self.parameters()).device, len(condition)
        spans = self.spans(steps)
        codes_BN = torch.full((batch, self.layout.tokens), MASKED_CODE, device=device)
        orders_BN = self.orders(given_BN, batch, noise)
        if orders_BN is not None:
            orders_BN = orders_BN.to(device)
        if given_BN is not None:
            codes_BN = given_BN.to(device) if orders_BN is None else given_BN.to(device).gather(1, orders_BN)
            if orders_BN is None:
                _check_first(codes_BN, spans)
        confidence_BN = torch.zeros(codes_BN.shape, device=device)
        scales = self.guidance(cfg, spans) if self.num_classes else [(1.0,) * 2] * len(spans)
        doubled = list(accumulate((any(scale != 1.0 for scale in each) for each in reversed(scales)), max))[::-1]
        classes_B = self.class_indices(condition.labels_B.to(device))
        none_B = torch.full_like(classes_B, self.num_classes)
        state = self.begin(torch.cat([classes_B, none_B]) if doubled[0] else classes_B, orders_BN)
        state.free_BN = codes_BN == MASKED_CODE
        for step, (first, until) in enumerate(spans):
            if not doubled[step]:  # nor will any later one be
                state.classes_R = classes_B
            drawn_BK, sure_BK = self.step(state, codes_BN, spans[: step + 1], scales[step], temperature, noise)
            free_BK = state.free_BN[:, first:until]
            codes_BN = _put(codes_BN, first, torch.where(free_BK, drawn_BK, codes_BN[:, first:until]))
            confidence_BN = _put(confidence_BN, first, sure_BK.masked_fill(~free_BK, 0.0))
            if orders_BN is None:
                yield DrawnCodes(codes_BN, confidence_BN)
            else:
                in_place = (torch.zeros_like(x).scatter(1, orders_BN, x) for x in (codes_BN, confidence_BN))
                yield DrawnCodes(*in_place)

    def step(
        self,
        state: NextState,
        codes_BN: Tensor,
        spans: Sequence[tuple[int, int]],
        scales: tuple[float, ...],
        temperature: float | None,
        noise: Noise,
    ) -> tuple[Tensor, Tensor]:
        """Codes (B, K) of the last of these spans, and their log-probabilities."""
        config = self.config
        logits_BKV = guided(self.logits(state, codes_BN, spans), scales[0], len(codes_BN))
        temperature = config.temperature if temperature is None else temperature
        return self.draw(logits_BKV, temperature, config.top_k, config.top_p, noise)

    def draw(
        self, logits_BKV: Tensor, temperature: float, top_k: int, top_p: float, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """Codes (B, K) drawn from logits after temperature and filters, and their log-probabilities."""
        kept_BKV = filtered(logits_BKV / max(temperature, _COLDEST), top_k=top_k, top_p=top_p)
        log_p_BKV = kept_BKV.log_softmax(dim=-1)
        codes_BK = self.choose(log_p_BKV.exp(), noise)
        return codes_BK, log_p_BKV.gather(-1, codes_BK[..., None]).squeeze(-1)

    def choose(self, probabilities_BKV: Tensor, noise: Noise) -> Tensor:
        """Codes (B, K) with these probabilities."""
        shape, device = probabilities_BKV.shape[:-1], probabilities_BKV.device
        return draw(probabilities_BKV, noise.uniform(shape, device, name="prior.draw"))

    def dropped(self, condition: Condition, device: torch.device, noise: Noise) -> Tensor:
        """Class indices (B,) for training: some become "no class"."""
        dropped_B = noise.uniform((len(condition),), device, name="prior.drop") < self.config.class_dropout
        return self.class_indices(condition.dropped(dropped_B).labels_B)


def check_head(width: int, multiple: int) -> None:
    """See that a head's numbers can be turned by positions.

    Raises:
        UserError: it is not a multiple of this many wide.
    """
    if width % multiple:
        of = " of a grid" if multiple == 4 else ""
        raise UserError(
            f"a head of the prior is {width} wide; with rotary positions{of}, give a multiple of {multiple}"
        )


def cross_entropy(logits_BNV: Tensor, codes_BN: Tensor, label_smoothing: float = 0.0) -> Losses:
    """Mean cross-entropy in float32; its term `accuracy` is the share of codes that are the likeliest."""
    logits_BNV = logits_BNV.float()
    loss = F.cross_entropy(logits_BNV.flatten(0, 1), codes_BN.flatten(), label_smoothing=label_smoothing)
    return Losses(loss, {"accuracy": (logits_BNV.argmax(dim=-1) == codes_BN).float().mean()})


def guided(logits_RKV: Tensor, scale: float, batch: int) -> Tensor:
    """Logits (B, K, V), float32: of the conditional half, moved away from the unconditional one where there is one."""
    logits_RKV = logits_RKV.float()
    if len(logits_RKV) == batch or scale == 1.0:
        return logits_RKV[:batch]
    cond, uncond = logits_RKV.chunk(2)
    return uncond + scale * (cond - uncond)


def filtered(logits_V: Tensor, *, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Logits (..., V) with -inf where top-k, then top-p (see NextConfig) leave a code out."""
    if 0 < top_k < logits_V.shape[-1]:
        least = logits_V.topk(top_k, dim=-1).values[..., -1:]
        logits_V = logits_V.masked_fill(logits_V < least, -torch.inf)
    if top_p < 1.0:
        sorted_V, order_V = logits_V.sort(dim=-1, descending=True, stable=True)
        probability_V = sorted_V.softmax(dim=-1)
        out_V = F.pad(probability_V.cumsum(dim=-1)[..., :-1], (1, 0)) > top_p  # what is before it was enough
        logits_V = logits_V.masked_fill(torch.zeros_like(out_V).scatter(-1, order_V, out_V), -torch.inf)
    return logits_V


def _put(x_BN: Tensor, first: int, here_BK: Tensor) -> Tensor:
    return torch.cat([x_BN[:, :first], here_BK, x_BN[:, first + here_BK.shape[1] :]], dim=1)


def _check_first(codes_BN: Tensor, spans: Sequence[tuple[int, int]]) -> None:
    """Raise UserError unless in each image the given codes are those of the first steps."""
    if codes_BN.is_meta:
        return
    step_N = torch.tensor([step for step, (first, until) in enumerate(spans) for _ in range(first, until)])
    given_BN = (codes_BN != MASKED_CODE).cpu()
    last_B = torch.where(given_BN, step_N, -1).amax(dim=1)
    next_B = torch.where(given_BN, len(spans), step_N).amin(dim=1)
    if (last_B >= next_B).any():
        raise UserError(
            "this prior draws codes step by step in one order: it cannot keep codes that come after some that it is to "
            "draw, or in one step with them; keep those of the first steps alone, or choose a prior of any order, such "
            "as maskbit, maskgit or randar"
        )
