"""What is trained, what is drawn with it, and the figures of both: values, and one function that does one of them."""

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
from benchmarks.claims.judging import Judge, judge_of
from benchmarks.claims.parts import registry_with_parts
from mixar.generation import batch_noise
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
        recipe: None: nothing is trained, `shipped` is the model.
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

    @property
    def threads(self) -> int:
        """Threads that it computes with."""
        return 1

    def done(self, desk: Desk) -> bool:
        """Whether all its figures are there."""
        wanted = [drawn.name for drawn in self.sets] + (["training"] if self.training.recipe else [])
        return all(desk.figures(self.run, of).is_file() for of in wanted)


@frozen
class Desk:
    """Where jobs work.

    Args:
        out: the folder: `runs` with weights, `measured` and `samples` with what is worth keeping.
        quick: everything in miniature.
    """

    out: Path
    quick: bool = False
    device: str = "cpu"

    def folder(self, run: str) -> Path:
        """Of a run."""
        return (self.out / "runs" / run).resolve()

    def has(self, run: str) -> bool:
        """Whether a run is finished and its weights are there."""
        return (self.folder(run) / "weights.safetensors").is_file()

    def figures(self, training: str, of: str) -> Path:
        """The file of the figures of a set, or of the `training`."""
        return self.out / "measured" / training / f"{of}.json"

    def judge(self, data: str) -> Judge:
        """Who judges images of these data."""
        return judge_of(data, self.out / "judges", quick=self.quick, device=self.device)


def perform(job: Job, desk: Desk) -> None:
    """Do what is not done yet of a job, one thing after the other; each leaves its figures by rename."""
    training, file = job.training, desk.figures(job.run, "training")
    wanted = [drawn for drawn in job.sets if not desk.figures(job.run, drawn.name).is_file()]
    if training.recipe is not None:
        if not desk.has(job.run):
            try:
                train(training, desk)
            except mixar.UserError as error:
                if "finite" not in str(error):
                    raise
                for of in ("training", *(drawn.name for drawn in wanted)):  # a result, too: it diverged
                    _write(desk.figures(job.run, of), {"diverged": str(error)})
                return
        if not desk.has(job.run):  # it was stopped, and goes on another time
            return
        shutil.rmtree(desk.folder(job.run) / "checkpoints", ignore_errors=True)
        (desk.folder(job.run) / "weights_raw.safetensors").unlink(missing_ok=True)
        if not file.is_file():
            _write(file, of_training(training, desk))
    if wanted:
        draw(training, wanted, desk.judge(training.data), desk)


def train(training: Training, desk: Desk) -> None:
    """One run, from where it was stopped."""
    folder = desk.folder(training.name)
    inserted = {f"{{{name}}}": str(desk.folder(name)) for name in training.needs}
    changes = {"callbacks": [], "training.seed": training.seed, "training.log_every": 5, "training.preview_every": 0}
    changes |= _with(training.changes, inserted)
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
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    trained = [line for line in lines if line["kind"] == "train"]
    validation = {line["step"]: line["losses"] for line in lines if line["kind"] == "validation"}
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
def draw(training: Training, sets: Iterable[Drawn], judge: Judge, desk: Desk) -> None:
    """Draw and measure; of seed 0 a few images of each set stay."""
    registry = registry_with_parts()
    of = training.shipped or desk.folder(training.name)
    model = mixar.load(of, precision="bf16", device=desk.device, registry=registry)
    labels_B = model.labels(judge.given.labels_B)
    for drawn in sets:
        codes_BN = None
        if drawn.codes != "none":
            source = model
            if drawn.prior:
                source = mixar.load(desk.folder(drawn.prior), precision="bf16", device=desk.device)
            codes_BN = _codes(drawn, source, labels_B, judge, training.seed, desk)
        began = time.process_time()
        if drawn.alone:
            assert codes_BN is not None
            images = torch.cat([model.decode_codes(part) for part in codes_BN.split(_BATCH)])
        else:
            settings = evolve(
                model.recipe.sampling,
                steps=drawn.steps,
                head_steps=drawn.head_steps,
                temperature=drawn.temperature,
                cfg=1.0,
            )
            parts = []
            for k, rows in enumerate(torch.arange(len(labels_B)).split(_BATCH)):
                codes = None if codes_BN is None else codes_BN[rows]
                parts.append(model.draw(labels_B[rows], settings, batch_noise(training.seed, k), codes)[0])
            images = torch.cat(parts)
        seconds = (time.process_time() - began) / len(labels_B)
        grid = model.system.model.backbone.layout.shape if model.system.model else None
        figures = judge.figures(images, token=judge.given.images_B3HW.shape[2] // (grid.height if grid else 1))
        if training.seed == 0:
            _keep(desk.out / "samples" / training.name / f"{drawn.name}.safetensors", "images", judge.few(images))
        _write(desk.figures(training.name, drawn.name), {**figures, "seconds_an_image": seconds})


def _codes(drawn: Drawn, model: mixar.Model, labels_B: Tensor, judge: Judge, seed: int, desk: Desk) -> Tensor:
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
            images = judge.given.images_B3HW.to(desk.device).float() / 127.5 - 1.0
            codes_BN = torch.cat([tokenizer.encode(part) for part in images.split(_BATCH)])
            noise, condition = batch_noise(seed, 0), model.system.condition(labels_B)
            masked_BN = noise.uniform(codes_BN.shape, codes_BN.device, name="hidden") < HIDDEN
            if drawn.codes == "resampled":
                codes_BN = model.draw_codes(labels_B, model.settings(), noise, hide_codes(codes_BN, masked_BN))
            elif drawn.codes == "predicted":
                with model.computing():
                    predicted_BN = prior.predict(codes_BN, masked_BN, condition, noise=noise).codes_BN
                codes_BN = torch.where(masked_BN, predicted_BN, codes_BN)
        _keep(file, "codes", codes_BN.cpu().contiguous())
    return load_file(file)["codes"].to(desk.device)


def _with(changes: Mapping[str, Any], inserted: Mapping[str, str]) -> dict[str, Any]:
    """The changes with the folders of other runs in them."""

    def value(old: Any) -> Any:
        if isinstance(old, Mapping):
            return {key: value(inner) for key, inner in old.items()}
        return inserted.get(old, old) if isinstance(old, str) else old

    return {key: value(old) for key, old in changes.items()}


def _keep(file: Path, name: str, tensor: Tensor) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, lambda path: save_file({name: tensor}, path))


def _write(file: Path, figures: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(figures) + "\n")
