"""What is trained, what is drawn with it, and the figures of both: values, and jobs that do them."""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from attrs import evolve, field, frozen
from safetensors.torch import load_file, save_file
from torch import Tensor

import mixar
from benchmarks.claims.judging import judge_of
from benchmarks.claims.parts import registry_with_parts
from benchmarks.runner import Desk
from benchmarks.study import codes_alone, first_of_each, log_of, losses_of
from mixar.generation import batch_noise, batches
from mixar_core.mixture import hide_codes
from mixar_core.storage import write_text, write_whole

_BATCH = 250
#: share of the codes that the sets "resampled" and "predicted" take from the prior
HIDDEN = 0.75


@frozen
class Training:
    """A run: a recipe, what is changed in it, a seed. `{NAME}` in a change is the folder of the run NAME.

    Args:
        name: of the run and its folder.
        recipe: None: nothing is trained, the model is `shipped`, or the run that it needs.
        needs: names of the runs it builds on.
        data: digits or emoji, which says by what its images are judged.
    """

    name: str
    recipe: str | None
    changes: Mapping[str, Any] = field(factory=dict)
    seed: int = 0
    needs: tuple[str, ...] = ()
    data: str = "digits"
    shipped: str | None = None


@frozen
class Drawn:
    """A set of images of a model, as many of each class as there are real ones to give codes.

    Args:
        codes: whose: `prior`, `truth` (of real images that nobody trained on), `resampled` (of the true ones a share
            HIDDEN is drawn anew by the prior), `predicted` (the same in one pass, as TI-Mix does), or `none`.
        steps, head_steps, temperature: of the sampling.
        alone: what the codes decode to by themselves, instead.
        prior: the run whose prior draws the codes, if it is not the model's own.
    """

    codes: str = "prior"
    steps: int = 4
    head_steps: int = 25
    temperature: float = 1.0
    alone: bool = False
    prior: str | None = None

    @property
    def name(self) -> str:
        """A file's name."""
        how = "alone" if self.alone else f"{self.steps}x{self.head_steps}-t{self.temperature:g}"
        return "-".join(part for part in (self.codes, self.prior, how) if part)


@frozen
class Job:
    """A training, unless it is done, and some sets drawn with it, unless they are."""

    training: Training
    sets: tuple[Drawn, ...] = ()
    threads: int = 1

    @property
    def name(self) -> str:
        """What asks for this job."""
        return "+".join([self.training.name, *sorted(drawn.name for drawn in self.sets)])

    @property
    def run(self) -> str:
        """The run that it trains, or draws with."""
        return self.training.name

    @property
    def needs(self) -> frozenset[str]:
        """Runs that must be finished before it."""
        priors = (drawn.prior for drawn in self.sets if drawn.prior)
        return frozenset((*self.training.needs, *priors))

    def done(self, desk: Desk) -> bool:
        """Whether all its figures are there."""
        wanted = [drawn.name for drawn in self.sets] + (["training"] if self.training.recipe else [])
        return all(figures_of(self.run, of, desk).is_file() for of in wanted)

    def perform(self, desk: Desk) -> None:
        """Do what is not done yet, one thing after the other; each leaves its figures by rename."""
        training, file = self.training, figures_of(self.run, "training", desk)
        wanted = [drawn for drawn in self.sets if not figures_of(self.run, drawn.name, desk).is_file()]
        if training.recipe is not None:
            if not desk.has(self.run):
                try:
                    train(training, desk)
                except mixar.UserError as error:
                    if "finite" not in str(error):
                        raise
                    for of in ("training", *(drawn.name for drawn in wanted)):  # a result, too: it diverged
                        write_figures(figures_of(self.run, of, desk), {"diverged": str(error)})
                    return
            if not desk.has(self.run):  # it was stopped, and goes on another time
                return
            shutil.rmtree(desk.folder(self.run) / "checkpoints", ignore_errors=True)
            (desk.folder(self.run) / "weights_raw.safetensors").unlink(missing_ok=True)
            if not file.is_file():
                write_figures(file, of_training(training, desk))
        if wanted:
            draw(training, wanted, desk)


def figures_of(run: str, of: str, desk: Desk) -> Path:
    """The file of the figures of a set, or of the `training`."""
    return desk.out / "measured" / run / f"{of}.json"


def write_figures(file: Path, figures: Any) -> None:
    """By rename."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(figures) + "\n")


def train(training: Training, desk: Desk) -> None:
    """One run, from where it was stopped."""
    folder = desk.folder(training.name)
    changes = {"callbacks": [], "training.seed": training.seed, "training.log_every": 5, "training.preview_every": 0}
    text = json.dumps(training.changes)
    for name in training.needs:
        text = text.replace(f'"{{{name}}}"', json.dumps(str(desk.folder(name))))
    changes |= json.loads(text)
    if desk.quick:
        changes |= {"training.steps": 2, "training.batch_size": 8, "training.log_every": 1, "training.cache": "none"}
        changes |= {"training.evaluate_every": 2, "training.evaluate_batches": 1, "training.warmup_steps": 0}
    assert training.recipe is not None
    registry = registry_with_parts()
    recipe = mixar.load_recipe(training.recipe, changes, registry=registry)
    mixar.train(recipe, folder, resume=folder.exists(), device=desk.device, registry=registry)


def of_training(training: Training, desk: Desk) -> dict[str, Any]:
    """What a run's log says: losses by step, seconds of its steps, gradient norms; and its size."""
    folder = desk.folder(training.name)
    trained, validation = log_of(folder, "train"), losses_of(folder)
    recipe = mixar.load_recipe(folder / "recipe.yaml", registry=registry_with_parts())
    assert recipe.training is not None
    # the median: what else the machine does slows single reports, and a run that was stopped begins slowly
    per_step = recipe.training.batch_size / statistics.median(line["images_per_second"] for line in trained)
    found: dict[str, Any] = {
        "steps": trained[-1]["step"],
        "seconds_a_step": per_step,
        "losses": [line["losses"]["loss"] for line in trained],
        "norms": [line["gradient_norm"] for line in trained],
    }
    if recipe.trains == "mixar":
        own = load_file(folder / "weights.safetensors")
        found["parameters"] = sum(tensor.numel() for tensor in own.values())
        found["head_parameters"] = sum(tensor.numel() for name, tensor in own.items() if name.startswith("head."))
        found["curve"] = {step: losses["ema/loss"] for step, losses in validation.items()}
        found["loss"] = validation[max(validation)]["ema/loss"]
    return found


@torch.no_grad()
def draw(training: Training, sets: Iterable[Drawn], desk: Desk) -> None:
    """Draw and measure; of seed 0 a few images of each set stay."""
    of = training.shipped or desk.folder(training.name if training.recipe else training.needs[0])
    judge = judge_of(training.data, desk)
    model = mixar.load(of, precision="bf16", device=desk.device, registry=registry_with_parts())
    (real_B3HW, classes_B), labels_B = judge.given, model.labels(judge.given[1])
    for drawn in sets:
        codes_BN = None
        if drawn.codes != "none":
            source = model
            if drawn.prior:
                source = mixar.load(desk.folder(drawn.prior), precision="bf16", device=desk.device)
            codes_BN = _codes(drawn, source, labels_B, real_B3HW, training.seed, desk)
        began = time.process_time()
        if drawn.alone:
            assert codes_BN is not None
            images = codes_alone(model, codes_BN, _BATCH)
        else:
            settings = evolve(model.recipe.sampling, steps=drawn.steps, head_steps=drawn.head_steps)
            settings, parts = evolve(settings, temperature=drawn.temperature, cfg=1.0), []
            for rows, noise in batches(len(labels_B), training.seed, _BATCH):
                codes = None if codes_BN is None else codes_BN[rows]
                parts.append(model.draw(labels_B[rows], settings, noise, codes)[0])
            images = torch.cat(parts)
        seconds = (time.process_time() - began) / len(labels_B)
        grid = model.system.model.backbone.layout.shape if model.system.model else None
        figures = judge.figures(images, token=real_B3HW.shape[2] // (grid.height if grid else 1))
        if training.seed == 0:
            few = first_of_each(images, classes_B, 2)
            _keep(desk.out / "samples" / training.name / f"{drawn.name}.safetensors", "images", few)
        write_figures(figures_of(training.name, drawn.name, desk), {**figures, "seconds_an_image": seconds})


def _codes(drawn: Drawn, model: mixar.Model, labels_B: Tensor, real_B3HW: Tensor, seed: int, desk: Desk) -> Tensor:
    """Codes (B, N), the same for all models that share a prior, whoever draws them first."""
    name = drawn.prior
    if name is None:
        assert model.recipe.prior is not None
        name = Path(str(model.recipe.prior.weights)).name
    file = desk.out / "codes" / f"{name}-{drawn.codes}-{seed}.safetensors"
    if not file.is_file():
        prior, tokenizer = model.system.prior, model.system.discrete_tokenizer
        assert prior is not None and tokenizer is not None
        if drawn.codes == "prior":
            codes_BN = model.sample_codes(labels_B, seed=seed, batch_size=_BATCH)
        else:
            x_B3HW = real_B3HW.to(desk.device).float() / 127.5 - 1.0
            codes_BN = torch.cat([tokenizer.encode(part) for part in x_B3HW.split(_BATCH)])
            noise, condition = batch_noise(seed, 0), model.system.condition(labels_B)
            masked_BN = noise.uniform(codes_BN.shape, codes_BN.device, name="hidden") < HIDDEN
            if drawn.codes == "resampled":
                codes_BN = model.draw_codes(labels_B, model.settings(), noise, hide_codes(codes_BN, masked_BN))
            elif drawn.codes == "predicted":
                with model.computing():
                    predicted_BN = prior.predict(codes_BN, masked_BN, condition, noise=noise).codes_BN
                codes_BN = torch.where(masked_BN, predicted_BN, codes_BN)
        _keep(file, "codes", codes_BN.cpu())
    return load_file(file)["codes"].to(desk.device)


def _keep(file: Path, name: str, tensor: Tensor) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, lambda path: save_file({name: tensor.contiguous()}, path))
