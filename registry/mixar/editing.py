"""Edits: tokens of a region are drawn anew, all others stay. What `mixar edit` does is what `Model.edit` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import attrs
import numpy
import torch
from PIL import Image
from torch import Tensor

from mixar.generation import Generation, Progress, batch_noise, decoded, grid_picture, label_name
from mixar.labels import Labels, checked_number
from mixar.progress import in_notebook
from mixar.regions import Canvas, Seam, filled, make_canvas, measure_seam, paste_into, pixels_of, shaded, tokens_in
from mixar.text import choices
from mixar_core.errors import UserError
from mixar_core.mixture import MASKED_CODE
from mixar_core.model import Kept, SamplingConfig
from mixar_core.noise import Noise
from mixar_core.tokenizer import ContinuousTokenizer, DiscreteTokenizer
from mixar_core.types import TokenLayout

if TYPE_CHECKING:
    from mixar.model import Model

Level = Literal["both", "latents", "codes"]


@attrs.frozen(eq=False, repr=False, kw_only=True)
class Edited(Generation):
    """Edited images, and how they came about. `codes` are those of the result.

    Args:
        level: what was drawn anew in the region.
        originals: uint8 (B, 3, H, W), the inputs as the model saw them.
        masks: bool (B, H, W), what was asked for. regions: the same, grown to the whole tokens that were drawn anew.
        raw: uint8 (B, 3, H, W), as decoded. `images` are these where nothing was pasted.
        latents: float (B, C, h, w), normalised; those of kept tokens are as encoded, bit for bit. None: they took no
            part.
        redrawn: bool (B, N), True where a continuous token was drawn anew; redrawn_codes: the same of codes. None:
            these took no part.
        seam: how `images` fit the originals; raw_seam: how `raw` does.
        notes: how an image came into the model's size, where it had another.
    """

    level: Level
    originals: Tensor
    masks: Tensor
    regions: Tensor
    raw: Tensor
    latents: Tensor | None
    redrawn: Tensor | None
    redrawn_codes: Tensor | None
    seam: Seam
    raw_seam: Seam
    notes: tuple[str, ...] = ()

    def picture(self) -> Image.Image:
        """One row an edit: the input, its region (darker: what was asked for), the raw decode, the result."""
        rows = self.originals, shaded(self.originals, self.masks, self.regions), self.raw, self.images
        names = [name for result in self.names for name in ("input", "region", "raw", result)]
        labels = [label for label in self.labels for _ in rows]
        return grid_picture(torch.stack(rows, dim=1).flatten(0, 1), names, labels, columns=len(rows), side=128)

    def _repr_png_(self) -> bytes | None:
        return self.picture()._repr_png_()

    def figures(self) -> dict[str, dict[str, float | None]]:
        """The figures of both seams, `images` and `raw`, means over the results; None where there is none."""
        return {
            name: {
                figure: None if values.isnan().all() else float(values.nanmean())
                for figure, values in attrs.asdict(seam).items()
            }
            for name, seam in (("images", self.seam), ("raw", self.raw_seam))
        }

    def report(self) -> list[str]:
        """What was drawn anew, and how well it fits; of several results the mean."""
        told = [
            f"{int(tokens[0].sum())} of {tokens.shape[1]} {what}"
            for what, tokens in (("latent tokens", self.redrawn), ("codes", self.redrawn_codes))
            if tokens is not None
        ]
        grown, asked = int(self.regions[0].sum()), int(self.masks[0].sum())
        whole = "" if grown == asked else f"; the region grew from {asked:,} to {grown:,} pixels, those of whole tokens"
        lines = [f"level {self.level}: drawn anew {' and '.join(told)}{whole}"]
        for name, seam in self.figures().items():
            if all(value is not None for value in seam.values()):
                what = "as decoded" if name == "raw" else "result"
                lines.append(
                    f"{what}, in levels of 256: kept pixels differ by {seam['kept']:.2f} ({seam['near']:.2f} near the "
                    f"region); across its edge {seam['across']:.2f}, beside it {seam['beside']:.2f}"
                )
        return lines


class RowNoise(Noise):
    """Noise of a batch each of whose rows draws from a source of its own, so that it depends on no other row."""

    def __init__(self, rows: Sequence[Noise]) -> None:
        super().__init__(rows[0].generator)
        self.rows = rows

    def _rows(self, draw: Callable[..., Tensor], shape: Sequence[int], device: torch.device | str) -> Tensor:
        assert shape[0] == len(self.rows), "a draw for other rows than the batch's"
        return torch.cat([noise._rows(draw, (1, *shape[1:]), device) for noise in self.rows])


def edit(
    model: Model,
    image: Any,
    mask: Any,
    labels: Labels,
    *,
    level: Level | None,
    outside: bool,
    place: Sequence[int] | None,
    peek: bool,
    paste: bool,
    feather: int | None,
    codes: Any,
    changes: Mapping[str, Any],
    seed: int,
    batch_size: int | None,
    progress: Progress | None,
) -> Edited:
    """What `Model.edit` says; `changes` of the settings."""
    level = _checked_level(model, level)
    settings = model.settings(**changes, of_prior=level == "codes")
    canvases, labels_B = _canvases(model, image, mask, labels, outside=outside, place=place)
    originals, masks = (torch.stack([getattr(each, key) for each in canvases]) for key in ("image_3HW", "mask_HW"))
    layouts, redrawn = _redrawn(model, level, masks)
    layout = layouts["codes" if level == "codes" else "latents"]
    regions = pixels_of(redrawn["codes" if level == "codes" else "latents"], layout, model.recipe.image_size)
    if feather is not None and not paste:
        raise UserError("feather: where nothing is pasted, nothing fades in; leave out one of the two")
    width = checked_number(feather, "feather (in pixels)", low=0, whole=True)
    if width is None:
        width = masks.shape[-2] // layout.scales[-1].height // 4
    if width > max(masks.shape[-2:]):
        raise UserError(f"feather (in pixels): {width}; allowed: 0 to {max(masks.shape[-2:])}, the image's longer side")
    if codes is not None:
        if level != "latents" or "codes" not in redrawn:
            raise UserError("codes: they stand for the image's own, at level latents of a model with codes; not here")
        codes = model.checked_codes(codes, len(labels_B))
    own_codes = level == "latents" and "codes" in redrawn and codes is None
    if own_codes and place is not None:
        raise UserError("level latents keeps the image's own codes, and it has none where the rest is to be drawn")
    seen = originals if peek or own_codes else filled(originals, masks)

    with in_notebook("editing", progress) as show:
        raw, latents, drawn_codes = _draw_all(
            model, seen, labels_B, redrawn, settings, codes, seed=seed, batch_size=batch_size, progress=show
        )
    images = paste_into(originals, raw, regions, width) if paste else raw
    numbers = tuple(labels_B.tolist())
    return Edited(
        images=images,
        labels=numbers,
        names=tuple(label_name(number, model.class_names) for number in numbers),
        codes=drawn_codes,
        recipe=model.recipe,
        level=level,
        originals=originals,
        masks=masks,
        regions=regions,
        raw=raw,
        latents=latents,
        redrawn=redrawn.get("latents"),
        redrawn_codes=redrawn.get("codes"),
        seam=measure_seam(originals, images, regions),
        raw_seam=measure_seam(originals, raw, regions),
        notes=tuple(dict.fromkeys(canvas.note for canvas in canvases if canvas.note)),
    )


def _checked_level(model: Model, level: str | None) -> Level:
    """The level asked for, or the first that the model has."""
    system = model.system
    allowed: tuple[Level, ...] = ()
    if system.model is not None:
        allowed = ("both", "latents", "codes") if system.model.injector.needs_codes else ("latents",)
        if system.model.continuous_tokenizer.needs_codes:  # with other codes, no latent would stay what it is
            allowed = ("latents", "codes")
    elif system.prior is not None:
        allowed = ("codes",)
    if not allowed:
        raise UserError(f"model {model.recipe.name}: draws no images; it trains {model.recipe.trains}")
    if level is not None and level not in allowed:
        which = {1: f"which draws {allowed[0]} only", 2: "whose latents are what its codes leave over"}
        why = f" of model {model.recipe.name}, {which[len(allowed)]}" if len(allowed) in which else ""
        raise UserError(f"level {level!r}{why}: not known; {choices(allowed, str(level))}")
    return level or allowed[0]


def _canvases(
    model: Model, image: Any, mask: Any, labels: Labels, *, outside: bool, place: Sequence[int] | None
) -> tuple[list[Canvas], Tensor]:
    """What is edited, one canvas a result, and the results' labels (B,): what is given once stands for all."""
    images, masks, labels_B = _several(image, 3), _several(mask, 2), model.labels(labels)
    count = max(len(images), len(masks), len(labels_B))
    for what, given in (("images", len(images)), ("masks", len(masks)), ("labels", len(labels_B))):
        if given not in (1, count):
            raise UserError(f"{given} {what} for {count} edits; give one, or one an edit")
    size = model.recipe.image_size
    made = [
        make_canvas(images[row % len(images)], masks[row % len(masks)], size, outside=outside, place=place)
        for row in range(max(len(images), len(masks)))
    ]
    return [made[row % len(made)] for row in range(count)], labels_B.expand(count)


def _several(value: Any, ndim: int) -> list[Any]:
    """What a list holds, or the rows of what has more dimensions than one picture; else the value alone."""
    if isinstance(value, list) or (isinstance(value, Tensor | numpy.ndarray) and value.ndim > ndim):
        if not len(value):
            raise UserError("an empty list; give one image or mask, or several")
        return list(value)
    return [value]


def _redrawn(model: Model, level: Level, masks: Tensor) -> tuple[dict[str, TokenLayout], dict[str, Tensor]]:
    """By `latents` and `codes`, where they take part: their layout, and which are drawn anew, bool (B, N)."""
    system, layouts, redrawn = model.system, {}, {}
    if system.model is not None and level != "codes":
        layouts["latents"] = system.model.backbone.layout
        redrawn["latents"] = tokens_in(masks, layouts["latents"])
    if system.discrete_tokenizer is not None and (system.model is None or system.model.injector.needs_codes):
        layouts["codes"] = layout = system.discrete_tokenizer.layout
        stay = torch.zeros(len(masks), layout.tokens, dtype=torch.bool)
        redrawn["codes"] = stay if level == "latents" else tokens_in(masks, layout)
    if torch.cat([*redrawn.values()], dim=1).all(dim=1).any():
        touched = " and ".join(f"{layouts[key].tokens} {key}" for key in redrawn)
        raise UserError(
            f"the mask touches every token ({touched}): nothing would be kept, and that is sampling; "
            "give a mask, region or place that leaves some"
        )
    return layouts, redrawn


def _draw_all(
    model: Model,
    seen: Tensor,
    labels_B: Tensor,
    redrawn: dict[str, Tensor],
    settings: SamplingConfig,
    codes_BN: Tensor | None,
    *,
    seed: object,
    batch_size: object,
    progress: Progress,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What `_draw` gives, of all images: those are drawn at once in which as many tokens are drawn anew."""
    first = checked_number(seed, "seed", low=0, whole=True, needed=True)
    size = checked_number(batch_size, "batch_size", low=1, whole=True) or len(seen)
    alike: dict[tuple[int, ...], list[int]] = {}
    for row, counts in enumerate(zip(*(each.sum(dim=1).tolist() for each in redrawn.values()), strict=True)):
        alike.setdefault(counts, []).append(row)
    batches = [rows[start : start + size] for rows in alike.values() for start in range(0, len(rows), size)]
    drawn = []
    for index, rows in enumerate(batches):

        def report(done: int, of: int, index: int = index) -> None:
            progress(index * of + done, len(batches) * of)

        some = {key: each[rows].to(model.device) for key, each in redrawn.items()}
        given = None if codes_BN is None else codes_BN[rows]
        noise = RowNoise([batch_noise(first, row) for row in rows])
        drawn.append(_draw(model, seen[rows], labels_B[rows], some, settings, noise, given, report))
    raw, latents, codes = zip(*drawn, strict=True)
    back = torch.tensor([row for rows in batches for row in rows]).argsort()
    return (
        torch.cat(raw)[back],
        None if latents[0] is None else torch.cat(latents)[back],
        None if codes[0] is None else torch.cat(codes)[back],
    )


def _encoded(
    tokenizer: ContinuousTokenizer | DiscreteTokenizer, images_B3HW: Tensor, codes_BN: Tensor | None = None
) -> Tensor:
    """Codes, or latents of images with these codes, one image after the other.

    Rounding, and with it a code, may depend on those beside it.
    """
    if not isinstance(tokenizer, ContinuousTokenizer) or codes_BN is None:
        return torch.cat([tokenizer.encode(image) for image in images_B3HW.split(1)])
    pairs = zip(images_B3HW.split(1), codes_BN.split(1), strict=True)
    return torch.cat([tokenizer.beside(codes).encode(image) for image, codes in pairs])


@torch.no_grad()
def _draw(
    model: Model,
    seen: Tensor,
    labels_B: Tensor,
    redrawn: dict[str, Tensor],
    settings: SamplingConfig,
    noise: Noise,
    codes_BN: Tensor | None,
    progress: Progress,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """One batch: images uint8 (B, 3, H, W) as decoded, latents, codes; all on the CPU."""
    images_B3HW = seen.to(model.device).float() / 127.5 - 1.0
    mixar, tokenizer, given_BN = model.system.model, model.system.discrete_tokenizer, None
    if "codes" in redrawn and tokenizer is not None:
        own_BN = _encoded(tokenizer, images_B3HW) if codes_BN is None else codes_BN
        given_BN = own_BN.masked_fill(redrawn["codes"], MASKED_CODE)
    if mixar is None or "latents" not in redrawn:
        assert given_BN is not None and tokenizer is not None
        drawn_BN = model.draw_codes(labels_B, settings, noise, given_BN)
        progress(1, 1)
        return decoded(tokenizer, drawn_BN), None, drawn_BN.cpu()
    all_codes_BN = None if given_BN is None or redrawn["codes"].any() else given_BN
    latents_BChw = _encoded(mixar.continuous_tokenizer, images_B3HW, all_codes_BN)
    kept_BN = ~redrawn["latents"]
    positions_BK = kept_BN.nonzero()[:, 1].view(len(kept_BN), -1)
    kept = Kept(latents_BChw, positions_BK) if positions_BK.shape[1] else None
    with model.computing():
        for step in mixar.generation_steps(
            mixar.condition(labels_B),
            settings=settings,
            noise=noise,
            codes_BN=all_codes_BN,
            given_BN=given_BN,
            kept=kept,
        ):
            progress(step.index + 1, step.count)
    images = decoded(mixar.continuous_tokenizer, step.latents_BChw, step.codes_BN)
    return images, step.latents_BChw.cpu(), None if step.codes_BN is None else step.codes_BN.cpu()
