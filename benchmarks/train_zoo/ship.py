"""Puts what a family trained into the zoo: `python -m benchmarks.train_zoo.ship emoji64_lfq=d8 emoji64_prior=p8 ...`

For each recipe of the zoo the run that trained it, frozen parts first. A recipe must say what was trained, but for
names and ways of sampling; then the run's weights go into its model folder as they are, with its provenance, and the
first steps of its log become the recipe's reference curves. What went on with a run (`longer`, `c16d`) trains other
steps than the recipe says: `RECIPE=RUN+FURTHER` ships its weights, and provenance says so under `continued`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import typer
from torch import Tensor

import mixar
from benchmarks.reference_curves import STEPS, digest
from mixar.folder import RECIPE, WEIGHTS, read_provenance, save_model, sha256
from mixar.plugins import plugin_manager
from mixar.recipe import TRAINABLE, to_plain, to_yaml
from mixar.reference import curves_beside
from mixar.structure import differences, flat
from mixar_core.storage import read_weights
from mixar_core.training.reference import Reference
from mixar_zoo.publish import MODELS, finished

#: what does not enter the weights
_FREE = re.compile(
    r"(name|summary|sampling|callbacks)(\..*)?|(continuous|discrete)_tokenizer\.weights|training\..*_every"
    r"|prior\.(steps|guidance_.*|scale_pow|softmax_temperature|randomize_temperature|order|sampling_annealing)"
)
#: what a further run's provenance says of its training
_SAID = ("steps", "batch_size", "learning_rate", "schedule")
#: measured of what the encoder gives, so they stay where it does: bit for bit, since MixARs were trained on them
_OF_ENCODER = ("latent_mean_C", "latent_std_C")


def main(
    pairs: list[str],
    models: Path = Path("runs/zoo/models"),
    runs: Path = Path("runs/zoo/runs"),
) -> None:
    """Ship RECIPE=RUN or RECIPE=RUN+FURTHER+... pairs; further runs lie in `--runs`, or are paths."""
    for name, run in (pair.split("=") for pair in pairs):
        first, *further = run.split("+")
        check(name, models / first)
        copy(name, models / first, [runs / each for each in further])
        curves(name, runs / first.removesuffix(".early") / "log.jsonl")
        print(f"{name}: {run}, {(MODELS / name / WEIGHTS).stat().st_size / 1e6:.1f} MB")


def check(name: str, folder: Path) -> None:
    """See that the recipe of this name is the one that was trained."""
    shipped, trained = flat(plain_of(name)), flat(plain_of(folder / RECIPE))
    for plain in (shipped, trained):
        beside = plain["trains"] == "mixar"  # a MixAR that is trained with true codes alone needs no prior for it
        for key in [key for key in plain if _FREE.fullmatch(key) or (beside and key.startswith("prior"))]:
            del plain[key]
    if changed := differences(trained, shipped):
        raise typer.BadParameter(f"{name} is not what {folder} trained: {'; '.join(changed)}")


def plain_of(recipe: str | Path) -> dict[str, Any]:
    """A recipe as it is written out."""
    return to_plain(mixar.load_recipe(recipe))


def copy(name: str, folder: Path, further: Sequence[Path]) -> None:
    """The weights under the zoo's recipe; the digests of frozen parts are those of the zoo's."""
    recipe, facts = mixar.load_recipe(name), read_provenance(folder)
    used = {key: getattr(recipe, key) for key in TRAINABLE}
    frozen = {key: sha256(MODELS / part.weights / WEIGHTS) for key, part in used.items() if part and part.weights}
    facts |= {"trained_by": f"mixar train {name}", "frozen": frozen}
    del facts["sha256"]  # is that of the file written now
    tensors, continued = dict(read_weights(folder / WEIGHTS)), []
    for run in further:
        trained, said = went_on(run)
        tensors |= trained
        continued.append(said)
    if continued:
        facts["continued"] = continued
    if (MODELS / name / "presets").is_dir():
        print(f"{name}: its presets go, they were found on other weights: mixar tune finds new ones")
    save_model(
        MODELS / name, recipe_yaml=to_yaml(recipe), tensors=tensors, facts=facts, dtype=torch.bfloat16, replace=True
    )


def went_on(run: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Of a run that began with another's weights: the tensors that it trained, and how."""
    recipe = mixar.load_recipe(run / RECIPE)
    assert recipe.init is not None
    freeze = recipe.init.freeze
    stays = (*freeze, *(_OF_ENCODER if "encoder" in freeze else ()))
    plain = to_plain(recipe)
    said = {key: plain["training"][key] for key in _SAID} | {"finished": finished(run)}
    said |= {key: plain[key] for key in ("ti_mix", "reconstruction") if key in plain}
    tensors = {
        key: tensor
        for key, tensor in read_weights(run / WEIGHTS).items()
        if not any(key == entry or key.startswith(f"{entry}.") for entry in stays)
    }
    return tensors, said | ({"only": sorted({key.split(".")[0] for key in tensors})} if freeze else {})


def curves(name: str, log: Path) -> None:
    """Bands of the first steps of the run."""
    (path,) = plugin_manager().recipes()[name]
    with TemporaryDirectory() as folder:
        first = Path(folder) / "log.jsonl"
        first.write_text("".join(lines_until(log, STEPS[name])))
        date = read_provenance(MODELS / name)["finished"]
        Reference.of([first], recipe=digest(path), seeds=[0], date=date).write(curves_beside(path))


def lines_until(log: Path, step: int) -> Iterator[str]:
    """The log's lines of the first steps."""
    return (line for line in log.read_text().splitlines(keepends=True) if json.loads(line)["step"] <= step)


if __name__ == "__main__":
    typer.run(main)
