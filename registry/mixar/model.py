"""A trained model to sample from: labels in, images out. What `mixar sample` does is what `Model.generate` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import attrs
import torch
from torch import Tensor

from mixar.assembly import System, build, class_names, frozen_weights, open_data, prior_draws_from_data
from mixar.editing import Edited, Level, edit
from mixar.folder import RECIPE, Kind, weights_file
from mixar.generation import Generation, Progress, batches, decoded, label_name
from mixar.labels import Labels, checked_number, class_numbers, code_tensor
from mixar.parts import check_frozen
from mixar.plugins import Registry, registry_without
from mixar.presets import preset_of
from mixar.pretrained import Pretrained
from mixar.progress import in_notebook
from mixar.recipe import TRAINABLE, Recipe, load_recipe
from mixar.speed import Precision, hasten
from mixar.text import choices
from mixar_core.distributed import available_device
from mixar_core.errors import UserError
from mixar_core.model import SamplingConfig
from mixar_core.noise import Noise
from mixar_core.storage import state_sha256
from mixar_core.types import NO_CLASS


@attrs.frozen(eq=False, repr=False)
class Model(Pretrained):
    """A MixAR, a MAR or a discrete prior with its weights, ready to sample from. `load` makes one.

    Args:
        class_names: one name a class, in label order; empty where they are not known.
        files: weights file of every part that has one, by its recipe key (what is trained, and what is frozen).
        weights: which of a run's weights these are.
        precision: what all but the decoders compute in; these need float32 for an image's 256 levels.
        compiled: whether blocks are. notices: what was asked to be faster and is not, a line each.
    """

    system: System
    class_names: tuple[str, ...]
    device: torch.device
    files: Mapping[str, Path] = attrs.field(factory=dict)
    weights: Kind = "ema"
    precision: Precision = "float32"
    compiled: bool = False
    notices: Sequence[str] = ()

    def __repr__(self) -> str:
        return f"Model({self.recipe.name}: {self.recipe.summary}; on {self.device})"

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
            progress: called after every step with steps done and steps in all; None: a bar in a notebook.

        Raises:
            UserError: no such class, a value that is not allowed, or the model draws no images.
        """
        labels_B, settings = self.labels(labels), self.settings(steps=steps, cfg=cfg, temperature=temperature)
        codes_BN = None if codes is None else self.checked_codes(codes, len(labels_B))
        parts = batches(len(labels_B), seed, batch_size)
        drawn = []
        with in_notebook("sampling", progress) as show:
            for index, (rows, noise) in enumerate(parts):

                def report(done: int, of: int, index: int = index) -> None:
                    show(index * of + done, len(parts) * of)

                given = None if codes_BN is None else codes_BN[rows]
                drawn.append(self.draw(labels_B[rows], settings, noise, given, keep_steps=keep_steps, progress=report))
        numbers = tuple(labels_B.tolist())
        images, used, pictures = zip(*drawn, strict=True)
        return Generation(
            images=torch.cat(images),
            labels=numbers,
            names=tuple(label_name(number, self.class_names) for number in numbers),
            codes=None if used[0] is None else torch.cat(used),
            steps=torch.cat([torch.stack(each) for each in pictures], dim=1) if pictures[0] else None,
            recipe=self.recipe,
        )

    def edit(
        self,
        image: Any,
        mask: Any = None,
        labels: Labels = NO_CLASS,
        *,
        level: Level | None = None,
        outside: bool = False,
        place: Sequence[int] | None = None,
        peek: bool = False,
        paste: bool = True,
        feather: int | None = None,
        steps: int | None = None,
        cfg: float | None = None,
        temperature: float | None = None,
        seed: int = 0,
        codes: Any = None,
        batch_size: int | None = None,
        progress: Progress | None = None,
    ) -> Edited:
        """Draw a region of an image anew. A token is drawn anew if any of its pixels lies in the region.

        The latents of all other tokens stay as they are. Decoding changes their pixels nevertheless, so these come
        from the input. What is drawn for an image depends on the seed and its place among the images, and on no other.

        Args:
            image, mask, outside, place: see `mixar.regions.make_canvas`; several in a list. One stands for all.
            labels: one an image, or one for all: what is drawn. Several for one image: as many results.
            level: both: codes and latents (the default where there are codes). latents: the codes are the image's own
                (the default where there are none). codes: these alone, and `raw` is what they decode to; of a prior
                this is the only level.
            peek: what the region held is seen by the encoders, whose other tokens then tell of it. Else it is filled in
                smoothly for them; but not where the image's own codes are kept.
            paste: take the pixels outside the region from the input. False: the result as decoded.
            feather: pixels outside the region over which the input fades in; None: a quarter of a token's side.
            steps, cfg, temperature: see `settings`; those of the prior at level codes.
            codes: whole numbers (B, N) to stand for the image's own, at level latents.
            batch_size: results at a time; None draws all at once that have as many tokens to draw.
            progress: called after every step with steps done and steps in all; None: a bar in a notebook.

        Raises:
            UserError: an image or mask cannot be read, or does not fit; the mask touches no pixel, or every token; or
                the model cannot keep these tokens.
        """
        return edit(
            self,
            image,
            mask,
            labels,
            level=level,
            outside=outside,
            place=place,
            peek=peek,
            paste=paste,
            feather=feather,
            changes={"steps": steps, "cfg": cfg, "temperature": temperature},
            seed=seed,
            codes=codes,
            batch_size=batch_size,
            progress=progress,
        )

    @torch.inference_mode()
    def draw(
        self,
        labels_B: Tensor,
        settings: SamplingConfig,
        noise: Noise,
        codes_BN: Tensor | None = None,
        *,
        keep_steps: bool = False,
        progress: Progress = lambda done, of: None,
    ) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """One batch, of labels (B,) as `labels` gives them: images, codes, and the images after each step, on the CPU.

        Raises:
            UserError: the model draws no images, or ones that are not finite.
        """
        model, pictures = self.system.model, []
        if model is None:
            if codes_BN is None:
                codes_BN = self.draw_codes(labels_B, settings, noise)
            images_B3HW = self.decode_codes(codes_BN)
            progress(1, 1)
        else:
            with self.computing():
                condition = model.condition(labels_B)
                for step in model.generation_steps(condition, settings=settings, noise=noise, codes_BN=codes_BN):
                    if keep_steps:
                        pictures.append(decoded(model.continuous_tokenizer, step.latents_BChw, step.codes_BN))
                    progress(step.index + 1, step.count)
            last, codes_BN = step.latents_BChw, step.codes_BN
            images_B3HW = pictures[-1] if pictures else decoded(model.continuous_tokenizer, last, codes_BN)
        return images_B3HW, None if codes_BN is None else codes_BN.cpu(), pictures

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
        settings = self.settings(steps=steps, cfg=cfg, temperature=temperature, of_prior=True)
        parts = batches(len(labels_B := self.labels(labels)), seed, batch_size)
        return torch.cat([self.draw_codes(labels_B[rows], settings, noise) for rows, noise in parts])

    @torch.no_grad()
    def decode_codes(self, codes: Any) -> Tensor:
        """What the discrete tokenizer alone makes of codes (B, N): images uint8 (B, 3, H, W).

        Raises:
            UserError: there is none, or these are no codes of it.
        """
        codes_BN = self.checked_codes(codes, None)
        assert self.system.discrete_tokenizer is not None
        return decoded(self.system.discrete_tokenizer, codes_BN)

    def labels(self, labels: Labels) -> Tensor:
        """Class numbers int64 (B,) on the model's device, of numbers or names.

        Raises:
            UserError: no such class; says which there are.
        """
        return torch.tensor(class_numbers(labels, self.recipe.num_classes, self.class_names), device=self.device)

    def settings(
        self,
        *,
        steps: int | None = None,
        cfg: float | None = None,
        temperature: float | None = None,
        of_prior: bool = False,
    ) -> SamplingConfig:
        """The recipe's sampling, changed where something is given.

        Args:
            steps: autoregressive ones. temperature: of the noise.
            cfg: guidance scale of the head, 1 for none.
            of_prior: change the prior's three instead, as is always done of a prior folder. The prior's own scale
                (`prior_cfg` in a recipe) is one less than `cfg`.

        Raises:
            UserError: a value is not allowed.
        """
        prefix = "prior_" if of_prior else self._prefix
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
        except ValueError as error:  # a prior's temperature of 0
            raise UserError(f"sampling: {error}") from error

    def given(self, settings: SamplingConfig) -> dict[str, float | None]:
        """Steps, cfg and temperature of these settings as `settings` takes them; None: as the prior says."""
        found = {key: getattr(settings, self._prefix + key) for key in ("steps", "cfg", "temperature")}
        if self._prefix and found["cfg"] is not None:
            found["cfg"] += 1.0
        return found

    @property
    def _prefix(self) -> str:
        return "prior_" if self.system.model is None else ""

    @torch.no_grad()
    def draw_codes(
        self, labels_B: Tensor, settings: SamplingConfig, noise: Noise, given_BN: Tensor | None = None
    ) -> Tensor:
        """Codes (B, N) from the prior; of `given_BN` those that are not MASKED_CODE stay.

        Raises:
            UserError: there is no prior.
        """
        recipe, prior = self.recipe, self.system.prior
        if prior is None:
            raise UserError(f"model {recipe.name}: has no prior to draw codes from; it trains {recipe.trains}")
        with self.computing():
            return prior.sample(
                self.system.condition(labels_B),
                noise=noise,
                steps=settings.prior_steps,
                cfg=settings.prior_cfg,
                temperature=settings.prior_temperature,
                given_BN=given_BN,
            ).codes_BN

    def computing(self) -> torch.autocast:
        """What all but the tokenizers run under."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def checked_codes(self, codes: object, images: int | None) -> Tensor:
        """Codes int64 (B, N) on the model's device; `images` is what B must be, None: any.

        Raises:
            UserError: they are none of this model's.
        """
        if (tokenizer := self.system.discrete_tokenizer) is None:
            raise UserError(
                f"model {self.recipe.name}: has no discrete_tokenizer, so it neither takes nor decodes codes"
            )
        return code_tensor(codes, images, tokenizer.layout.tokens, tokenizer.codebook_size).to(self.device)


def load(
    name_or_path: str | Path,
    *,
    device: torch.device | str | None = None,
    weights: Kind = "ema",
    precision: Precision | None = None,
    registry: Registry | None = None,
    preset: str | None = None,
    compile: bool = False,
    graphs: bool = False,
    without_plugins: Sequence[str] = (),
) -> Model:
    """A model to sample from: a shipped one by name, a model folder, or the folder of a run.

    Args:
        device: None takes the GPU if there is one.
        weights: averaged over training (ema) or those of the last step (raw; a run has both if it keeps an average).
        precision: bf16 computes all but the decoders in it, from weights that are held in it: about twice as fast, and
            other images. The head's noisiest steps stay in float32. None: as the preset says, or else float32.
        preset: how it samples, by name (`mixar presets`): one that it carries, or of those that every model can take.
        compile, graphs: see `mixar.speed.hasten`; what does not work here is in the model's `notices`.
        without_plugins: names of installed plugins to leave out.

    Raises:
        UserError: no such model, its weights are missing, truncated or do not fit, or an argument is not one of these.
    """
    known = (("weights", weights, get_args(Kind)), ("precision", precision or "float32", get_args(Precision)))
    for what, value, allowed in known:
        if value not in allowed:
            raise UserError(f"{what} {value!r}: not known; {choices(allowed, str(value))}")
    registry = registry_without(registry, without_plugins)
    folder = registry.find_model(name_or_path)
    changes, own = preset_of(preset, registry, folder)
    recipe = load_recipe(folder / RECIPE, changes, registry=registry)
    chosen = available_device(("cuda" if torch.cuda.is_available() else "cpu") if device is None else device)
    data = open_data(recipe, registry, "train") if prior_draws_from_data(recipe) and recipe.data else None
    weights = "raw" if recipe.training is not None and recipe.training.ema_decay is None else weights
    trained = weights_file(folder, weights)
    try:
        system = build(recipe, registry, device=chosen, trained_weights=trained, data=data)
    except UserError as error:  # a frozen part that was moved: the key, and the file to write its new place into
        raise UserError(f"{folder / RECIPE}: {error}") from error
    frozen = [key for key in system.brought if key not in recipe.trained_parts and getattr(recipe, key).weights is None]
    brought = {key: state_sha256(system.brought[key]) for key in frozen}
    check_frozen(folder, brought, "it draws as it was trained with those alone")
    files = frozen_weights(recipe, registry, [key for key in TRAINABLE if getattr(system, key) is not None])
    precision = precision or own or "float32"
    compiled, notices = hasten(system.model or system.prior, precision=precision, compile=compile, graphs=graphs)
    files[recipe.trains] = trained
    return Model(system, class_names(recipe, folder, registry), chosen, files, weights, precision, compiled, notices)
