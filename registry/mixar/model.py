"""A trained model to sample from: labels in, images out. What `mixar sample` does is what `Model.generate` does."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs
import torch
from PIL import Image
from torch import Tensor

from mixar.assembly import System, build, open_data
from mixar.folder import RECIPE, Kind, find_weights, read_provenance, weights_file
from mixar.plugins import Registry, plugin_manager
from mixar.recipe import TRAINABLE, Recipe, load_recipe
from mixar.text import choices
from mixar_core.data.streams import seed_of
from mixar_core.errors import UserError
from mixar_core.model import SamplingConfig
from mixar_core.noise import Noise
from mixar_core.pictures import labelled_grid, to_pil, to_uint8
from mixar_core.types import NO_CLASS

Precision = Literal["float32", "bf16"]
Labels = Sequence[int | str] | Tensor | int | str
#: called with steps done and steps in all
Progress = Callable[[int, int], None]


@attrs.frozen(eq=False)
class Generation:
    """What `Model.generate` draws.

    Args:
        images: uint8 (B, 3, H, W).
        labels: one an image, NO_CLASS (-1) where unconditional. names: their class names, or the labels as text.
        codes: int64 (B, N), what the prior drew or was given; None for a model without discrete tokens.
        steps: uint8 (T, B, 3, H, W), the image after each step, unknown latents at their mean; None unless asked for.
    """

    images: Tensor
    labels: tuple[int, ...]
    names: tuple[str, ...]
    codes: Tensor | None = None
    steps: Tensor | None = None

    def pil(self) -> list[Image.Image]:
        """One PIL image each."""
        return [to_pil(image) for image in self.images]

    def grid(self, *, columns: int | None = None) -> Image.Image:
        """All images in one picture, each with its name."""
        return grid_picture(self.images, self.names, columns=columns)


@attrs.frozen(eq=False)
class Drawn:
    """One batch on the model's device: images uint8 (B, 3, H, W), codes (B, N), pictures uint8 (T, B, 3, H, W)."""

    images_B3HW: Tensor
    codes_BN: Tensor | None
    pictures: Tensor | None = None


class Model:
    """A MixAR, a MAR or a discrete prior with its weights, ready to sample from. `load` makes one.

    Args:
        class_names: one name a class, in label order; empty where they are not known.
        files: weights file of every part that has one, by its recipe key (what is trained, and what is frozen).
        weights: which of a run's weights these are.
        precision: what all but the decoders compute in; these need float32 for an image's 256 levels.
    """

    def __init__(
        self,
        system: System,
        class_names: Sequence[str],
        device: torch.device,
        *,
        files: Mapping[str, Path] | None = None,
        weights: Kind = "ema",
        precision: Precision = "float32",
    ) -> None:
        self.system, self.device, self.weights, self.precision = system, device, weights, precision
        self.class_names, self.files = tuple(class_names), dict(files or {})

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return self.system.recipe

    def generate(
        self,
        labels: Labels,
        *,
        steps: int | None = None,
        cfg: float | None = None,
        temperature: float | None = None,
        seed: int = 0,
        codes: Tensor | None = None,
        keep_steps: bool = False,
        batch_size: int | None = None,
        progress: Progress | None = None,
    ) -> Generation:
        """Draw one image a label. The same seed, labels and batch size give the same images, bit for bit.

        The noise of batch k is seeded by the seed and k (`batch_noise`), so that a batch does not depend on those
        before it: `mixar sample --count` draws the same images, however many processes share them.

        Args:
            labels: class numbers or names, one or several; NO_CLASS (-1) for no class.
            steps: autoregressive steps (of a prior folder: the prior's steps). cfg: guidance scale. temperature: of the
                noise. What is None is as the recipe says.
            codes: int64 (B, N) to use instead of drawing them from the prior.
            keep_steps: also give the image after every step (MixAR only).
            batch_size: images at a time; None draws all at once.
            progress: called after every step with steps done and steps in all.

        Raises:
            UserError: no such class, or the model draws no images.
        """
        labels_B = self.labels(labels)
        if codes is not None:
            codes = self._checked_codes(codes, len(labels_B))
        size = batch_size or len(labels_B)
        batches = labels_B.split(size)
        settings = self.settings(steps=steps, cfg=cfg, temperature=temperature)
        drawn: list[Drawn] = []
        for index, labels_of_batch in enumerate(batches):

            def report(done: int, of: int, index: int = index) -> None:
                if progress is not None:
                    progress(index * of + done, len(batches) * of)

            drawn.append(
                self.draw(
                    labels_of_batch,
                    settings=settings,
                    noise=batch_noise(seed, index),
                    codes_BN=None if codes is None else codes[index * size : (index + 1) * size],
                    keep_steps=keep_steps,
                    progress=report,
                )
            )
        numbers = tuple(labels_B.tolist())
        return Generation(
            images=torch.cat([batch.images_B3HW.cpu() for batch in drawn]),
            labels=numbers,
            names=tuple(label_name(label, self.class_names) for label in numbers),
            codes=_joined([batch.codes_BN for batch in drawn], dim=0),
            steps=_joined([batch.pictures for batch in drawn], dim=1),
        )

    def settings(
        self, *, steps: int | None = None, cfg: float | None = None, temperature: float | None = None
    ) -> SamplingConfig:
        """The recipe's sampling, changed where something is given; of a prior folder, the prior's three settings.

        Raises:
            UserError: a value is not allowed.
        """
        return self._changed("prior_" if self.system.model is None else "", steps, cfg, temperature)

    def _changed(self, prefix: str, steps: int | None, cfg: float | None, temperature: float | None) -> SamplingConfig:
        given = {"steps": steps, "cfg": cfg, "temperature": temperature}
        changes: dict[str, Any] = {prefix + key: value for key, value in given.items() if value is not None}
        try:
            return attrs.evolve(self.recipe.sampling, **changes)
        except ValueError as error:
            raise UserError(f"sampling: {error}") from error

    @torch.no_grad()
    def draw(
        self,
        labels_B: Tensor,
        *,
        settings: SamplingConfig,
        noise: Noise,
        codes_BN: Tensor | None = None,
        keep_steps: bool = False,
        progress: Progress | None = None,
    ) -> Drawn:
        """One batch, of labels (B,) as `labels` gives them; what `generate` does once a batch.

        Raises:
            UserError: the model draws no images, or ones that are not finite.
        """
        model = self.system.model
        if model is None:
            if codes_BN is None:
                codes_BN = self._draw_codes(labels_B, settings, noise)
            images = self.decode_codes(codes_BN)
            if progress is not None:
                progress(1, 1)
            return Drawn(images, codes_BN)
        decode = model.continuous_tokenizer.decode
        pictures: list[Tensor] = []
        steps = model.generation_steps(labels_B, settings=settings, noise=noise, codes_BN=codes_BN)
        while True:
            with self._computing():
                if (next_step := next(steps, None)) is None:
                    break
            step = next_step
            if keep_steps:
                pictures.append(_pixels(decode(step.latents_BChw)))
            if progress is not None:
                progress(step.index + 1, step.count)
        images = pictures[-1] if keep_steps else _pixels(decode(step.latents_BChw))
        return Drawn(images, step.codes_BN, torch.stack(pictures) if keep_steps else None)

    def sample_codes(
        self,
        labels: Labels,
        *,
        steps: int | None = None,
        cfg: float | None = None,
        temperature: float | None = None,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> Tensor:
        """Codes int64 (B, N), those `generate` would draw with this seed and batch size. The settings are the prior's.

        Raises:
            UserError: no such class, a setting is not allowed, or there is no prior.
        """
        labels_B, settings = self.labels(labels), self._changed("prior_", steps, cfg, temperature)
        batches = labels_B.split(batch_size or len(labels_B))
        return torch.cat([self._draw_codes(part, settings, batch_noise(seed, k)) for k, part in enumerate(batches)])

    def decode_codes(self, codes: Tensor) -> Tensor:
        """What the discrete tokenizer alone makes of codes (B, N): images uint8 (B, 3, H, W)."""
        tokenizer = self.system.discrete_tokenizer
        if tokenizer is None:
            raise UserError(
                f"model {self.recipe.name}: has no discrete_tokenizer, so there is nothing to decode codes with"
            )
        with torch.no_grad():
            return _pixels(tokenizer.decode(self._checked_codes(codes, len(codes)))).cpu()

    def labels(self, labels: Labels) -> Tensor:
        """Class numbers int64 (B,) on the model's device, of numbers or names.

        Raises:
            UserError: no such class; says which there are.
        """
        several: Sequence[int | str]
        if isinstance(labels, Tensor):
            several = labels.reshape(-1).tolist()
        else:
            several = [labels] if isinstance(labels, int | str) else labels
        if not several:
            raise UserError("no labels given; one image is drawn for each")
        return torch.tensor([self._label(label) for label in several], dtype=torch.int64, device=self.device)

    def _label(self, label: int | str) -> int:
        count = self.recipe.num_classes
        if isinstance(label, str):
            if label in self.class_names:
                return self.class_names.index(label)
            known = choices(self.class_names, label) if self.class_names else "the names are not known; give numbers"
            raise UserError(f'unknown class "{label}"; {known}')
        if label != NO_CLASS and not 0 <= label < count:
            allowed = f"0 to {count - 1}, or " if count else ""
            raise UserError(f"unknown label {label}; allowed: {allowed}{NO_CLASS} for no class")
        return int(label)

    @torch.no_grad()
    def _draw_codes(self, labels_B: Tensor, settings: SamplingConfig, noise: Noise) -> Tensor:
        if self.system.prior is None:
            raise UserError(
                f"model {self.recipe.name}: has no prior to draw codes from; it trains {self.recipe.trains}"
            )
        with self._computing():
            return self.system.prior.sample(
                labels_B,
                noise=noise,
                steps=settings.prior_steps,
                cfg=settings.prior_cfg,
                temperature=settings.prior_temperature,
            )

    def _computing(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _checked_codes(self, codes: Tensor, images: int) -> Tensor:
        tokenizer = self.system.discrete_tokenizer
        if tokenizer is None:
            raise UserError(f"model {self.recipe.name}: has no discrete_tokenizer, so it takes no codes")
        expected = (images, tokenizer.grid.tokens)
        if tuple(codes.shape) != expected or codes.is_floating_point():
            raise UserError(f"codes are {codes.dtype} {tuple(codes.shape)}; needed: whole numbers {expected}")
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < tokenizer.codebook_size:
            raise UserError(f"codes lie outside 0 to {tokenizer.codebook_size - 1}")
        return codes.to(self.device, torch.int64)


def label_name(label: int, names: Sequence[str]) -> str:
    """A class's name, or its number where names are not known."""
    return names[label] if 0 <= label < len(names) else ("no class" if label == NO_CLASS else str(label))


def batch_noise(seed: int, index: int) -> Noise:
    """The noise of the batch with this index: of no other batch, and the same wherever it is drawn."""
    return Noise.seeded(seed_of(seed, index))


def grid_picture(images_B3HW: Tensor, names: Sequence[str], *, columns: int | None = None) -> Image.Image:
    """uint8 images (B, 3, H, W) in one picture, each with its name; small ones enlarged so that the name fits."""
    columns = columns or math.ceil(math.sqrt(len(names)))
    return labelled_grid(images_B3HW, names, columns=columns, scale=max(1, 96 // images_B3HW.shape[-1]))


def _pixels(images_B3HW: Tensor) -> Tensor:
    """Decoded images as uint8. (One that is not finite would become a black one, and be measured as that.)

    Raises:
        UserError: there is one.
    """
    bad = ~images_B3HW.isfinite().flatten(1).all(dim=1)
    if bad.any():
        raise UserError(
            f"{int(bad.sum())} of {len(bad)} images drawn are not finite: try float32, a bound on the head's x_0 "
            "(head.clip), or other weights"
        )
    return to_uint8(images_B3HW)


def _joined(batches: Sequence[Tensor | None], *, dim: int) -> Tensor | None:
    there = [batch.cpu() for batch in batches if batch is not None]
    return torch.cat(there, dim=dim) if there else None


def load(
    name_or_path: str | Path,
    *,
    device: torch.device | str | None = None,
    weights: Kind = "ema",
    precision: Precision = "float32",
    registry: Registry | None = None,
) -> Model:
    """A model to sample from: a shipped one by name, a model folder, or the folder of a run.

    Args:
        device: None takes the GPU if there is one.
        weights: averaged over training (ema) or those of the last step (raw; a run folder has both).
        precision: bf16 computes all but the decoders under autocast: about twice as fast, and other images.

    Raises:
        UserError: no such model, or its weights are missing, truncated or do not fit.
    """
    registry = plugin_manager() if registry is None else registry
    folder = registry.find_model(name_or_path)
    recipe = load_recipe(folder / RECIPE, registry)
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    data = open_data(recipe, registry, "train") if prior_draws_from_data(recipe) and recipe.data else None
    trained = weights_file(folder, weights)
    system = build(recipe, registry, device=chosen, trained_weights=trained, data=data)
    files = {
        key: find_weights(choice.weights, registry)
        for key in TRAINABLE
        if getattr(system, key) is not None and (choice := getattr(recipe, key)).weights is not None
    }
    names = class_names(recipe, folder, registry)
    return Model(system, names, chosen, files=files | {recipe.trains: trained}, weights=weights, precision=precision)


def prior_draws_from_data(recipe: Recipe) -> bool:
    """Whether codes may have to come from the data: only a prior without weights of its own can (ground-truth)."""
    return recipe.trains == "mixar" and recipe.prior is not None and recipe.prior.weights is None


def class_names(recipe: Recipe, folder: Path, registry: Registry) -> tuple[str, ...]:
    """Class names as the model's provenance has them, or else its data; empty where neither does."""
    if recipe.num_classes == 0:  # labelled images may have trained it
        return ()
    noted = read_provenance(folder).get("class_names")
    if isinstance(noted, list) and len(noted) == recipe.num_classes:
        return tuple(map(str, noted))
    if recipe.data is None:
        return ()
    try:
        return tuple(open_data(recipe, registry, "train").class_names)
    except UserError:  # the data need not be on the machine that samples
        return ()
