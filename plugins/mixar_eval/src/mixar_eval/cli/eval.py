"""`mixar eval`: how good images are, and whether the number is comparable with a paper's."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mixar.cli.common import (
    Batch,
    Cfg,
    Device,
    Json,
    NoPlugin,
    Precision,
    Raw,
    Steps,
    Temperature,
    at_least,
    checked_device,
    open_registry,
)
from mixar_eval.cli.eval_common import (
    ExtractorText,
    Out,
    ReferenceText,
    Seed,
    Workers,
    made,
    measuring,
)
from mixar_eval.cli.eval_guidance import guidance_command
from mixar_eval.cli.eval_statistics import statistics_command
from mixar_eval.cli.eval_sweep import sweep_command
from mixar_eval.cli.eval_tokenizer import tokenizer_command

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mixar.plugins import Registry

#: drawn of a model where nothing is said: what published figures are of
COUNT = 50_000

eval_app = typer.Typer(
    no_args_is_help=True,
    help="Measure images: of a model against real ones (`generation`), of tokenizers, over guidance and settings.",
)


@eval_app.command("generation")
def generation_command(
    context: typer.Context,
    samples: Annotated[
        str,
        typer.Argument(
            metavar="RUN|FOLDER|NPZ", help="A run, a model folder or name; or images: a folder of PNGs, an .npz."
        ),
    ],
    reference: ReferenceText,
    count: Annotated[
        int | None, typer.Option(callback=at_least(2), help="Images to draw of a model; default: 50,000.")
    ] = None,
    extractor: ExtractorText = "efficientnet-lite0",
    out: Out = Path("runs/eval_generation"),
    steps: Steps = None,
    cfg: Cfg = None,
    temperature: Temperature = None,
    seed: Seed = 0,
    random_labels: Annotated[
        bool, typer.Option("--random-labels", help="Draw each image's class at random, instead of all equally often.")
    ] = False,
    raw: Raw = False,
    precision: Precision = "float32",
    batch: Batch = 64,
    workers: Workers = 0,
    device: Device = None,
    as_json: Json = False,
    no_plugin: NoPlugin = None,
) -> None:
    """FID, Inception Score, KID, precision and recall, with all that they depend on, in report.json and report.md.

    A call that was interrupted goes on when it is repeated; processes started by torchrun share the work. Examples:
    `mixar eval generation emoji64 --reference data:train --count 999 --out eval/emoji` ·
    `torchrun --nproc-per-node 8 -m mixar eval generation models/mar_b --reference
    VIRTUAL_imagenet256_labeled.npz --extractor inception:weights_file=pt_inception-2015-12-05-6726825d.pth` ·
    `mixar eval generation theirs.npz --reference data.npz`
    """
    from mixar.cli.common import print_json
    from mixar.model import load
    from mixar.sampling import Plan, all_classes
    from mixar_core.distributed import PATIENT, join_processes
    from mixar_core.errors import UserError
    from mixar_eval.generation import (
        FEATURES,
        PICTURE,
        REPORT,
        SAMPLES,
        check_content,
        check_out,
        draw_samples,
        floor_for,
        measure_samples,
        open_samples,
        report_of,
        write_report,
    )
    from mixar_eval.markdown import generation_text

    began, registry = time.monotonic(), open_registry(context, no_plugin)
    drawn = _is_model(samples, registry)
    given: Mapping[str, Any] = {"--steps": steps, "--cfg": cfg, "--temperature": temperature}
    if not drawn:
        flags = [name for name, value in given.items() if value is not None]
        flags += ["--raw"] * raw + ["--random-labels"] * random_labels
        flags += ["--precision"] * (precision != "float32")
        if flags:
            raise UserError(f"{flags[0]}: says how a model is sampled, and {samples} holds images already")
    processes = join_processes(checked_device(device), timeout=PATIENT)
    if drawn:
        weights: Literal["ema", "raw"] = "raw" if raw else "ema"
        model = load(samples, device=processes.device, weights=weights, precision=precision, registry=registry)
        plan = Plan(
            count=count or COUNT,
            batch=batch,
            seed=seed,
            settings=model.settings(steps=steps, cfg=cfg, temperature=temperature),
            classes=all_classes(model),
            labels="random" if random_labels else "balanced",
        )
        recipe, size, classes, there = model.recipe, model.recipe.image_size, model.recipe.num_classes, None
    else:
        there = open_samples(samples, registry, reference=reference)
        if count is not None and count != len(there.images):
            raise UserError(f"--count {count}: {samples} holds {len(there.images):,} images, and all are measured")
        if there.images.height != there.images.width:
            raise UserError(f"{samples}: images of {there.images.width}x{there.images.height}; needed: square ones")
        recipe, size, classes = None, there.images.height, 0
    known = (SAMPLES, FEATURES, PICTURE, f"{REPORT}.json", f"{REPORT}.md")
    processes.on_main(lambda: check_content(out, known))
    with measuring(
        processes,
        registry,
        out=out,
        reference=reference,
        extractor=extractor,
        recipe=recipe,
        size=size,
        classes=classes or None,
        batch=batch,
        workers=workers,
    ) as means:
        processes.on_main(lambda: check_out(out, known))
        if there is None:
            there = draw_samples(model, plan, out / SAMPLES, means, source=samples, what="sampling")
        found = measure_samples(there, out / FEATURES, means, what="features")
        floor = floor_for(means, len(there.images), size, recipe)
        if found is not None:
            report = report_of(there, found, floor, means, made=made(processes, began))
            title = f"Generation: {Path(samples).name}"
            write_report(out, report, generation_text(report, title=title, picture=PICTURE), there)
            if as_json:
                print_json(report)
            else:
                _say(report, out)


def _is_model(text: str, registry: Registry) -> bool:
    """Whether this names a model, and not images.

    Raises:
        UserError: it names neither.
    """
    path = Path(text)
    if (path / "recipe.yaml").is_file():
        return True
    if path.is_dir() or (path.suffix == ".npz" and path.is_file()):
        return False
    registry.find_model(text)
    return True


def _say(report: Mapping[str, Any], out: Path) -> None:
    from mixar.cli.common import print_table
    from mixar_eval.markdown import score_columns, score_rows

    print_table(f"Samples of {report['samples']['source']}", score_columns(report), score_rows(report), right=(1, 2))
    print(f"comparable with ADM-protocol FID: {report['comparable with ADM-protocol FID']}")
    classes = report["samples"]["classes"]
    if classes is not None and classes["missing"]:
        print(f"{len(classes['missing'])} of {classes['known']} classes have no image: {', '.join(classes['missing'])}")
    print(f"report: {out / 'report.md'}")


eval_app.command("tokenizer")(tokenizer_command)
eval_app.command("statistics")(statistics_command)
eval_app.command("guidance")(guidance_command)
eval_app.command("sweep")(sweep_command)
