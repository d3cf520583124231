"""`mixar eval`: how good images are, and whether the number is comparable with a paper's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mixar.cli import common
from mixar_core.errors import UserError
from mixar_eval.cli_shared import (
    ExtractorText,
    Out,
    ReferenceText,
    Seed,
    Workers,
    load_model,
    measuring,
    numbers,
    publish,
)

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
        int | None, typer.Option(callback=common.at_least(2), help="Images to draw of a model; default: 50,000.")
    ] = None,
    extractor: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="As `inception:weights_file=FILE`; `mixar plugins` lists them. The first judges, others stand beside "
            "it and in FDr-k. Default: the first of efficientnet-lite0, -lite1 and -lite2 that no loss of the model "
            "has seen, and beside it those that one has.",
        ),
    ] = None,
    out: Out = Path("runs/eval_generation"),
    steps: common.Steps = None,
    cfg: common.Cfg = None,
    temperature: common.Temperature = None,
    seed: Seed = 0,
    seeds: Annotated[
        int,
        typer.Option(callback=common.at_least(1), help="Sets to draw, with seeds from --seed on; shows the spread."),
    ] = 1,
    random_labels: Annotated[
        bool, typer.Option("--random-labels", help="Draw each image's class at random, instead of all equally often.")
    ] = False,
    codes_too: Annotated[
        bool | None,
        typer.Option(
            "--codes-too/--no-codes-too", help="Also measure the codes' own decoding; default: where there are codes."
        ),
    ] = None,
    nearest: Annotated[
        bool, typer.Option("--nearest", help="Also show the training images nearest to samples.")
    ] = False,
    raw: common.Raw = False,
    precision: common.Precision = "float32",
    batch: common.Batch = 64,
    workers: Workers = 0,
    device: common.Device = None,
    as_json: common.Json = False,
    no_plugin: common.NoPlugin = None,
) -> None:
    """FID, Inception Score, KID, precision and recall, with all that they depend on, in report.json and report.md.

    A call that was interrupted goes on when it is repeated; processes started by torchrun share the work. Examples:
    `mixar eval generation emoji64 --reference data:train --count 999 --out eval/emoji` ·
    `torchrun --nproc-per-node 8 -m mixar eval generation models/mar_b --reference
    VIRTUAL_imagenet256_labeled.npz --extractor inception:weights_file=pt_inception-2015-12-05-6726825d.pth` ·
    `mixar eval generation theirs.npz --reference data.npz`
    """
    settings = {"steps": steps, "cfg": cfg, "temperature": temperature}
    with measuring(context, several=True) as run:
        import attrs

        from mixar_eval import generation, images, references, report, views

        run.processes.on_main(lambda: report.check_folder(out, *generation.KNOWN))
        title, labels = f"Generation: {Path(samples).name}", "random" if random_labels else "balanced"
        model, sets = None, list[views.Drawn]()
        if generation.is_model(samples, run.registry):
            model = load_model(samples, run, context)
            plan = generation.plan(model, count=count or COUNT, batch=batch, seed=seed, labels=labels, **settings)
            known: dict[str, Any] = {"recipe": model.recipe, "num_classes": model.recipe.num_classes}
        else:
            flags = {f"--{name}": value is not None for name, value in settings.items()}
            flags |= {"--raw": raw, "--random-labels": random_labels, "--precision": precision != "float32"}
            flags |= {"--codes-too": codes_too is not None, "--seeds": seeds != 1}
            if given := [flag for flag, is_given in flags.items() if is_given]:
                raise UserError(f"{given[0]}: says how a model is sampled, and {samples} holds images already")
            there = images.open_images(samples, run.registry, option="samples")
            if count is not None and count != len(there):
                raise UserError(f"--count {count}: {samples} holds {len(there):,} images, and all are measured")
            known, sets = {"image_size": there.image_size}, [views.Drawn(there)]
        cache = out / generation.FEATURES
        known |= {"cache": cache}
        encoders, left_out = [(run, references.open_reference(reference, run, **known))], list[str]()
        for seeing in run.beside:
            try:
                encoders.append((seeing, references.open_reference(reference, seeing, **known)))
            except UserError as error:  # statistics are one extractor's
                if extractor:
                    raise
                left_out.append(f"{seeing.extractor.label} does not stand beside the judge: {error}")
        if model is not None:
            sets = generation.draw_sets(model, plan, out, run, seeds=seeds, codes_too=codes_too)
        found = generation.measure(sets, encoders, cache=cache, title=title, nearest=nearest)
        publish(attrs.evolve(found, notes=[*found.notes, *left_out]), run, context, brief=True)


@eval_app.command("tokenizer")
def tokenizer_command(
    context: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="Shipped models, model folders or runs; of a MixAR both tokenizers."),
    ],
    data: Annotated[
        str,
        typer.Option(
            metavar="SET",
            help="Images to reconstruct: data:validation or data:train (the first model's), a folder of PNGs, an .npz.",
        ),
    ] = "data:validation",
    images: Annotated[
        int | None, typer.Option(callback=common.at_least(4), help="How many of them, at random; default: all.")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="SET", help="Measure against these images or .npz statistics instead of against the originals."
        ),
    ] = None,
    extractor: ExtractorText = None,
    out: Out = Path("runs/eval_tokenizer"),
    shown: Annotated[int, typer.Option(callback=common.at_least(1), help="Images in the picture.")] = 10,
    seed: Annotated[
        int, typer.Option(callback=common.at_least(0), help="Of the choice of images, and of sampled latents.")
    ] = 0,
    batch: common.Batch = 16,
    workers: Workers = 0,
    device: common.Device = None,
    as_json: common.Json = False,
    no_plugin: common.NoPlugin = None,
) -> None:
    """Reconstruct real images with tokenizers, and measure what is lost: distances, PSNR, SSIM, codes, latents.

    Writes report.md, report.json and a picture. Examples: `mixar eval tokenizer emoji64_continuous emoji64_lfq` ·
    `mixar eval tokenizer runs/kl --data data:train --images 1000 --out reports/kl` ·
    `torchrun --nproc-per-node 8 -m mixar eval tokenizer runs/kl --extractor
    inception:weights_file=inception.pth`
    """
    with measuring(context) as run:
        from mixar_eval import references, report, tokenizers

        run.processes.on_main(lambda: report.check_folder(out, tokenizers.PICTURE))
        entries = tokenizers.open_tokenizers(models, run.registry, run.processes.device)
        recipe = entries[0].recipe
        chosen = tokenizers.choose(data, images, seed=seed, least=4, recipe=recipe, registry=run.registry)
        against = None if reference is None else references.open_reference(reference, run, recipe=recipe)
        found = tokenizers.compare_tokenizers(entries, chosen, run, reference=against, seed=seed, shown=shown)
        publish(found, run, context)


@eval_app.command("statistics")
def statistics_command(
    context: typer.Context,
    images: Annotated[
        str,
        typer.Argument(
            metavar="SET",
            help="Real images: data:train (of --recipe), NAME:SPLIT, a folder of PNGs, an .npz of images.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE", parser=common.as_path, help="An .npz file, to give as --reference.")
    ],
    recipe: Annotated[
        str | None, typer.Option(metavar="RECIPE", help="Whose data and image size these are: name or path.")
    ] = None,
    settings: common.Set = None,
    size: Annotated[
        Any, typer.Option(metavar="SIDE|HxW", parser=common.size_of_text, help="Pixels of NAME:SPLIT without a recipe.")
    ] = None,
    extractor: ExtractorText = None,
    batch: common.Batch = 64,
    workers: Workers = 0,
    device: common.Device = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there already.")] = False,
    no_plugin: common.NoPlugin = None,
) -> None:
    """Mean and covariance of real images' features, and of up to 50,000 images the features, in a file for --reference.

    Processes started by torchrun share the work. Examples: `mixar eval statistics data:train --recipe emoji64 --out
    emoji64.npz` · `torchrun --nproc-per-node 8 -m mixar eval statistics data:train --recipe mixar_l --set
    data.path=/data/imagenet --extractor inception:weights_file=inception.pth --out imagenet256.npz`
    """
    if out.suffix != ".npz":
        raise UserError(f"--out {out}: a file whose name ends in .npz is needed")
    if out.exists() and not force:
        raise UserError(f"--out {out}: is there already; give another, or --force to replace it")
    if settings and recipe is None:
        raise UserError("--set: changes a recipe's settings; give --recipe")
    with measuring(context) as run:
        from mixar.recipe import load_recipe
        from mixar_eval.references import open_reference

        resolved = None if recipe is None else load_recipe(recipe, registry=run.registry, overrides=settings or ())
        found = open_reference(images, run, recipe=resolved, image_size=size, option="SET")
        if run.processes.is_main:
            found.save(out)
            notes = "".join(f"note: {note}\n" for note in found.notes)
            print(f"{found.description}\n{run.extractor.identity}\n{notes}statistics: {out}")


@eval_app.command("guidance")
def guidance_command(
    context: typer.Context,
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Runs, model folders or shipped models; one an injector.")
    ],
    reference: ReferenceText,
    count: Annotated[
        int | None, typer.Option(callback=common.at_least(50), help="Images of each row; default: 50,000.")
    ] = None,
    steps: Annotated[
        str, typer.Option(metavar="A,B", help="Numbers of steps, a row for each; default: each recipe's.")
    ] = "",
    cfg: Annotated[
        float | None, typer.Option(callback=common.at_least(0), help="Guidance scale of all; default: each recipe's.")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(callback=common.at_least(0), help="Scale of the noise of all; default: each recipe's."),
    ] = None,
    extractor: ExtractorText = None,
    out: Out = Path("runs/eval_guidance"),
    seed: Seed = 0,
    raw: common.Raw = False,
    precision: common.Precision = "float32",
    batch: common.Batch = 64,
    workers: Workers = 0,
    device: common.Device = None,
    as_json: common.Json = False,
    no_plugin: common.NoPlugin = None,
) -> None:
    """The paper's comparison: no guidance, DC-Mix, DC-SA, DC-CA; distance against tokens, parameters and time.

    Takes any trained models of one size and one list of classes, and labels them by their injectors. Interrupted, it
    goes on when it is repeated; processes started by torchrun share the work. Example:
    `mixar eval guidance runs/mar runs/dc_mix runs/dc_sa runs/dc_ca --steps 16,64 --count 5000 --reference data:train`
    """
    step_counts = numbers(steps, int, "--steps")
    with measuring(context) as run:
        from mixar_eval import generation, guidance, points, references, report

        names = [Path(name).name for name in models]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"two models are called {twice}; rows and folders are named after them")
        loaded = {Path(name).name: load_model(name, run, context) for name in models}
        guidance.check_models(loaded)
        run.processes.on_main(lambda: report.check_folder(out, points.POINTS, guidance.TABLE, guidance.PICTURE))
        plans = {
            (name, some): generation.plan(
                model, count=count or COUNT, batch=batch, seed=seed, steps=some, cfg=cfg, temperature=temperature
            )
            for name, model in loaded.items()
            for some in step_counts or [model.recipe.sampling.steps]
        }
        recipe = next(iter(loaded.values())).recipe
        against = references.open_reference(reference, run, recipe=recipe, num_classes=recipe.num_classes)
        found = guidance.compare_guidance(loaded, plans, out / points.POINTS, against, run)
        publish(found, run, context)


@eval_app.command("sweep")
def sweep_command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run, a model folder, or a shipped model's name.")],
    reference: ReferenceText,
    budget: Annotated[int, typer.Option(callback=common.at_least(1), help="Images to draw in all, over all points.")],
    cfg: Annotated[str, typer.Option(metavar="A,B", help="Guidance scales; default: the recipe's.")] = "",
    temperature: Annotated[str, typer.Option(metavar="A,B", help="Temperatures; default: the recipe's.")] = "",
    steps: Annotated[str, typer.Option(metavar="A,B", help="Numbers of steps; default: the recipe's.")] = "",
    by: Annotated[
        Literal["frechet", "kernel"],
        typer.Option(help="What is best; `kernel` is less biased where points have few images."),
    ] = "frechet",
    extractor: ExtractorText = None,
    out: Out = Path("runs/eval_sweep"),
    seed: Seed = 0,
    raw: common.Raw = False,
    precision: common.Precision = "float32",
    batch: common.Batch = 64,
    workers: Workers = 0,
    device: common.Device = None,
    as_json: common.Json = False,
    no_plugin: common.NoPlugin = None,
) -> None:
    """Measure a model over a grid of settings, each point with the same share of a budget of images.

    Writes a CSV file, a plot with the best point, and a report. Interrupted, it goes on when it is repeated; processes
    started by torchrun share the work. Example:
    `mixar eval sweep emoji64 --cfg 1,1.5,2,3 --temperature 0.6,1 --budget 4000 --reference data:train`
    """
    axes = numbers(cfg, float, "--cfg"), numbers(temperature, float, "--temperature"), numbers(steps, int, "--steps")
    with measuring(context) as run:
        import attrs

        from mixar_eval import generation, points, references, report
        from mixar_eval import sweep as sweeps

        loaded = load_model(model, run, context)
        plans = sweeps.grid(loaded, generation.plan(loaded, count=budget, batch=batch, seed=seed), *axes)
        if len(plans) < 2:
            raise UserError("nothing to sweep over: give several values of --cfg, --temperature or --steps")
        each = points.images_per_point(budget, len(plans), loaded.recipe.num_classes)
        plans = {name: attrs.evolve(plan, count=each) for name, plan in plans.items()}
        run.processes.on_main(lambda: report.check_folder(out, points.POINTS, sweeps.TABLE, sweeps.PICTURE))
        against = references.open_reference(reference, run, recipe=loaded.recipe, num_classes=loaded.recipe.num_classes)
        title = f"Sweep of {Path(model).name}"
        found = sweeps.sweep(loaded, plans, out / points.POINTS, against, run, by=by, title=title)
        publish(found, run, context)
