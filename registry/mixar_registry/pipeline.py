"""A trained model to sample from: labels in, images out. What `mixar sample` does is what `Model.generate` does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import torch
from PIL import Image
from torch import Tensor

from mixar_core.errors import UserError
from mixar_core.model import MixAR, SamplingConfig
from mixar_core.noise import Noise
from mixar_core.pictures import labelled_grid, to_pil, to_uint8
from mixar_core.types import NO_CLASS
from mixar_registry.assembly import System, build, open_data
from mixar_registry.manager import Registry, plugin_manager
from mixar_registry.recipe import Recipe, load_recipe
from mixar_registry.text import choices
from mixar_registry.weights import RECIPE, Kind, read_provenance, weights_file

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


class Model:
    """A MixAR, a MAR or a discrete prior with its weights, ready to sample from. `load` makes one."""

    def __init__(self, system: System, class_names: Sequence[str], device: torch.device) -> None:
        self.system, self.device = system, device
        #: one name a class, in label order; empty where they are not known
        self.class_names = tuple(class_names)

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
        noise = Noise.seeded(seed)
        if codes is not None:
            codes = self._checked_codes(codes, len(labels_B))
        size = batch_size or len(labels_B)
        starts = range(0, len(labels_B), size)
        settings = self._settings(steps, cfg, temperature)
        batches: list[tuple[Tensor, Tensor | None, Tensor | None]] = []
        for index, start in enumerate(starts):
            rows = slice(start, start + size)

            def report(done: int, of: int, index: int = index) -> None:
                if progress is not None:
                    progress(index * of + done, len(starts) * of)

            given = None if codes is None else codes[rows]
            if self.system.model is None:
                drawn = given
                if drawn is None:
                    drawn = self._draw_codes(labels_B[rows], noise, steps=steps, cfg=cfg, temperature=temperature)
                batches.append((self.decode_codes(drawn), drawn, None))
                report(1, 1)
            else:
                batches.append(
                    self._draw_images(self.system.model, labels_B[rows], noise, settings, given, keep_steps, report)
                )
        images, drawn_codes, pictures = zip(*batches, strict=True)
        numbers = tuple(labels_B.tolist())
        return Generation(
            images=torch.cat(images).cpu(),
            labels=numbers,
            names=tuple(self._name(label) for label in numbers),
            codes=_joined(drawn_codes, dim=0),
            steps=_joined(pictures, dim=1),
        )

    def _settings(self, steps: int | None, cfg: float | None, temperature: float | None) -> SamplingConfig:
        default = self.recipe.sampling
        try:
            return attrs.evolve(
                default,
                steps=default.steps if steps is None else steps,
                cfg=default.cfg if cfg is None else cfg,
                temperature=default.temperature if temperature is None else temperature,
            )
        except ValueError as error:
            raise UserError(f"sampling: {error}") from error

    def _draw_images(
        self,
        model: MixAR,
        labels_B: Tensor,
        noise: Noise,
        settings: SamplingConfig,
        codes_BN: Tensor | None,
        keep_steps: bool,
        report: Progress,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Images, codes, and the pictures (T, B, 3, H, W) after every step if they are kept."""
        decode = model.continuous_tokenizer.decode
        pictures: list[Tensor] = []
        with torch.no_grad():
            for step in model.generation_steps(labels_B, settings=settings, noise=noise, codes_BN=codes_BN):
                if keep_steps:
                    pictures.append(to_uint8(decode(step.latents_BChw)))
                report(step.index + 1, step.count)
            images = pictures[-1] if keep_steps else to_uint8(decode(step.latents_BChw))
        return images, step.codes_BN, torch.stack(pictures) if keep_steps else None

    def sample_codes(
        self,
        labels: Labels,
        *,
        steps: int | None = None,
        cfg: float | None = None,
        temperature: float | None = None,
        seed: int = 0,
    ) -> Tensor:
        """Codes int64 (B, N), those `generate` would draw with this seed. The arguments are the prior's."""
        return self._draw_codes(self.labels(labels), Noise.seeded(seed), steps=steps, cfg=cfg, temperature=temperature)

    def decode_codes(self, codes: Tensor) -> Tensor:
        """What the discrete tokenizer alone makes of codes (B, N): images uint8 (B, 3, H, W)."""
        tokenizer = self.system.discrete_tokenizer
        if tokenizer is None:
            raise UserError(
                f"model {self.recipe.name}: has no discrete_tokenizer, so there is nothing to decode codes with"
            )
        with torch.no_grad():
            return to_uint8(tokenizer.decode(self._checked_codes(codes, len(codes)))).cpu()

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

    def _draw_codes(
        self, labels_B: Tensor, noise: Noise, *, steps: int | None, cfg: float | None, temperature: float | None
    ) -> Tensor:
        if self.system.prior is None:
            raise UserError(
                f"model {self.recipe.name}: has no prior to draw codes from; it trains {self.recipe.trains}"
            )
        set_in_recipe = self.recipe.sampling
        with torch.no_grad():
            return self.system.prior.sample(
                labels_B,
                noise=noise,
                steps=set_in_recipe.prior_steps if steps is None else steps,
                cfg=set_in_recipe.prior_cfg if cfg is None else cfg,
                temperature=set_in_recipe.prior_temperature if temperature is None else temperature,
            )

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

    def _name(self, label: int) -> str:
        if label == NO_CLASS:
            return "no class"
        return self.class_names[label] if self.class_names else str(label)


def grid_picture(images_B3HW: Tensor, names: Sequence[str], *, columns: int | None = None) -> Image.Image:
    """uint8 images (B, 3, H, W) in one picture, each with its name; small ones enlarged so that the name fits."""
    columns = columns or math.ceil(math.sqrt(len(names)))
    return labelled_grid(images_B3HW, names, columns=columns, scale=max(1, 96 // images_B3HW.shape[-1]))


def _joined(batches: Sequence[Tensor | None], *, dim: int) -> Tensor | None:
    there = [batch.cpu() for batch in batches if batch is not None]
    return torch.cat(there, dim=dim) if there else None


def load(
    name_or_path: str | Path,
    *,
    device: torch.device | str | None = None,
    weights: Kind = "ema",
    registry: Registry | None = None,
) -> Model:
    """A model to sample from: a shipped one by name, a model folder, or the folder of a run.

    Args:
        device: None takes the GPU if there is one.
        weights: averaged over training (ema) or those of the last step (raw; a run folder has both).

    Raises:
        UserError: no such model, or its weights are missing, truncated or do not fit.
    """
    registry = plugin_manager() if registry is None else registry
    folder = registry.find_model(name_or_path)
    recipe = load_recipe(folder / RECIPE, registry)
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    # Only a prior without weights of its own may have to draw from the data (ground-truth).
    draws = recipe.trains == "mixar" and recipe.prior is not None and recipe.prior.weights is None
    data = open_data(recipe, registry, "train") if draws and recipe.data else None
    system = build(recipe, registry, device=chosen, trained_weights=weights_file(folder, weights), data=data)
    return Model(system, class_names(recipe, folder, registry), chosen)


def class_names(recipe: Recipe, folder: Path, registry: Registry) -> tuple[str, ...]:
    """Class names as the model's provenance has them, or else its data; empty where neither does."""
    noted = read_provenance(folder).get("class_names")
    if isinstance(noted, list) and len(noted) == recipe.num_classes:
        return tuple(map(str, noted))
    if recipe.data is None:
        return ()
    try:
        return tuple(open_data(recipe, registry, "train").class_names)
    except UserError:  # the data need not be on the machine that samples
        return ()
