"""A trained model to sample from: labels in, images out. What `mixar sample` does is what `Model.generate` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import attrs
import torch
from torch import Tensor

from mixar.assembly import System, build, open_data
from mixar.folder import RECIPE, Kind, find_weights, read_provenance, weights_file
from mixar.generation import Generation, joined, label_name
from mixar.labels import Labels, checked_number, class_numbers, code_tensor
from mixar.plugins import Registry, plugin_manager
from mixar.recipe import TRAINABLE, Recipe, load_recipe
from mixar.text import choices
from mixar_core.data.streams import seed_of
from mixar_core.distributed import available_device
from mixar_core.errors import UserError
from mixar_core.model import SamplingConfig
from mixar_core.noise import Noise
from mixar_core.pictures import to_uint8

Precision = Literal["float32", "bf16"]
#: called with steps done and steps in all
Progress = Callable[[int, int], None]


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
        codes: Any = None,
        keep_steps: bool = False,
        batch_size: int | None = None,
        progress: Progress | None = None,
    ) -> Generation:
        """Draw one image a label. The same seed, labels and batch size give the same images.

        Bit for bit on the same kind of device with as many threads: elsewhere sums are taken in another order. The
        noise of batch k is seeded by the seed and k (`batch_noise`), so that a batch does not depend on those before
        it: `mixar sample --count` draws the same images, however many processes share them.

        Args:
            labels: class numbers or names, one or several (a list, a range, a 1-D array); NO_CLASS (-1) for no class.
            steps, cfg, temperature: see `settings`. What is None is as the recipe says.
            codes: whole numbers (B, N) to use instead of drawing them from the prior.
            keep_steps: also give the image after every step (MixAR only).
            batch_size: images at a time; None draws all at once.
            progress: called after every step with steps done and steps in all.

        Raises:
            UserError: no such class, a value that is not allowed, or the model draws no images.
        """
        labels_B = self.labels(labels)
        settings = self.settings(steps=steps, cfg=cfg, temperature=temperature)
        if codes is not None:
            codes = self._checked_codes(codes, len(labels_B))
        size, seed = _batch_size(batch_size, len(labels_B)), checked_number(seed, "seed", low=0, whole=True)
        batches, drawn = labels_B.split(size), []
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
        return joined(drawn)

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
    ) -> Generation:
        """One batch on the model's device, of labels (B,) as `labels` gives them; what `generate` does once a batch.

        Raises:
            UserError: the model draws no images, or ones that are not finite.
        """
        pictures: list[Tensor] = []
        if self.system.model is None:
            if codes_BN is None:
                codes_BN = self._draw_codes(labels_B, settings, noise)
            images_B3HW = self.decode_codes(codes_BN)
            if progress is not None:
                progress(1, 1)
        else:
            decode = self.system.model.continuous_tokenizer.decode
            steps = self.system.model.generation_steps(labels_B, settings=settings, noise=noise, codes_BN=codes_BN)
            while True:
                with self._computing():
                    if (next_step := next(steps, None)) is None:
                        break
                step = next_step
                if keep_steps:
                    pictures.append(_pixels(decode(step.latents_BChw)))
                if progress is not None:
                    progress(step.index + 1, step.count)
            images_B3HW = pictures[-1] if keep_steps else _pixels(decode(step.latents_BChw))
            codes_BN = step.codes_BN
        labels = tuple(labels_B.tolist())
        names = tuple(label_name(label, self.class_names) for label in labels)
        return Generation(images_B3HW, labels, names, codes_BN, torch.stack(pictures) if pictures else None)

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
        seed = checked_number(seed, "seed", low=0, whole=True)
        batches = labels_B.split(_batch_size(batch_size, len(labels_B)))
        return torch.cat([self._draw_codes(part, settings, batch_noise(seed, k)) for k, part in enumerate(batches)])

    def decode_codes(self, codes: Any) -> Tensor:
        """What the discrete tokenizer alone makes of codes (B, N): images uint8 (B, 3, H, W).

        Raises:
            UserError: there is none, or these are no codes of it.
        """
        codes_BN = self._checked_codes(codes, None)
        assert self.system.discrete_tokenizer is not None
        with torch.no_grad():
            return _pixels(self.system.discrete_tokenizer.decode(codes_BN)).cpu()

    def labels(self, labels: Labels) -> Tensor:
        """Class numbers int64 (B,) on the model's device, of numbers or names.

        Raises:
            UserError: no such class; says which there are.
        """
        numbers = class_numbers(labels, self.recipe.num_classes, self.class_names)
        return torch.tensor(numbers, dtype=torch.int64, device=self.device)

    def settings(
        self, *, steps: int | None = None, cfg: float | None = None, temperature: float | None = None
    ) -> SamplingConfig:
        """The recipe's sampling, changed where something is given; of a prior folder, the prior's three settings.

        Args:
            steps: autoregressive ones; of a prior folder, the prior's.
            cfg: guidance scale, 1 for none: of the head; of a prior folder, the prior's, whose own scale (`prior_cfg`
                in a recipe) is one less.
            temperature: of the noise.

        Raises:
            UserError: a value is not allowed.
        """
        return self._changed(self._prefix, steps, cfg, temperature)

    def given(self, settings: SamplingConfig) -> dict[str, float | None]:
        """Steps, cfg and temperature of these settings as `settings` takes them; None: as the prior says."""
        found = {key: getattr(settings, self._prefix + key) for key in ("steps", "cfg", "temperature")}
        if self._prefix and found["cfg"] is not None:
            found["cfg"] += 1.0
        return found

    @property
    def _prefix(self) -> str:
        """Of the three settings that a caller changes, in SamplingConfig."""
        return "prior_" if self.system.model is None else ""

    def _changed(self, prefix: str, steps: object, cfg: object, temperature: object) -> SamplingConfig:
        scale = checked_number(cfg, "cfg (1 is no guidance)", low=1 if prefix else 0)
        if prefix and scale is not None:
            scale -= 1.0  # c + s (c - u) with s = 0 for none, where the head has u + w (c - u) with w = 1
        given = {
            "steps": checked_number(steps, "steps", low=1, whole=True),
            "cfg": scale,
            "temperature": checked_number(temperature, "temperature", low=0),
        }
        changes: dict[str, Any] = {prefix + key: value for key, value in given.items() if value is not None}
        try:
            return attrs.evolve(self.recipe.sampling, **changes)
        except ValueError as error:
            raise UserError(f"sampling: {error}") from error

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

    def _checked_codes(self, codes: object, images: int | None) -> Tensor:
        tokenizer = self.system.discrete_tokenizer
        if tokenizer is None:
            raise UserError(
                f"model {self.recipe.name}: has no discrete_tokenizer, so it neither takes nor decodes codes"
            )
        return code_tensor(codes, images, tokenizer.grid.tokens, tokenizer.codebook_size).to(self.device)


def batch_noise(seed: int, index: int) -> Noise:
    """The noise of the batch with this index: of no other batch, and the same wherever it is drawn."""
    return Noise.seeded(seed_of(seed, index))


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


def _batch_size(given: object, images: int) -> int:
    size: int | None = checked_number(given, "batch_size", low=1, whole=True)
    return images if size is None else size


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
        UserError: no such model, its weights are missing, truncated or do not fit, or an argument is not one of these.
    """
    for what, value, allowed in (("weights", weights, get_args(Kind)), ("precision", precision, get_args(Precision))):
        if value not in allowed:
            raise UserError(f"{what} {value!r}: not known; {choices(allowed, str(value))}")
    registry = plugin_manager() if registry is None else registry
    folder = registry.find_model(name_or_path)
    recipe = load_recipe(folder / RECIPE, registry=registry)
    chosen = available_device(("cuda" if torch.cuda.is_available() else "cpu") if device is None else device)
    data = open_data(recipe, registry, "train") if prior_draws_from_data(recipe) and recipe.data else None
    trained = weights_file(folder, weights)
    try:
        system = build(recipe, registry, device=chosen, trained_weights=trained, data=data)
    except UserError as error:  # a frozen part that was moved: the key, and the file to write its new place into
        raise UserError(f"{folder / RECIPE}: {error}") from error
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
