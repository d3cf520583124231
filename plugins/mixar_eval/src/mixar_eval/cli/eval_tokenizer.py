"""`mixar eval tokenizer`: what tokenizers lose, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixar.cli.common import Batch, Device, Json, NoPlugin, at_least, open_registry
from mixar_eval.cli.eval_common import ExtractorText, Workers, made, publish

PICTURE = "reconstructions.png"


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
        int | None, typer.Option(callback=at_least(4), help="How many of them, at random; default: all.")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="SET", help="Measure against these images or .npz statistics instead of against the originals."
        ),
    ] = None,
    extractor: ExtractorText = "efficientnet-lite0",
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the report goes.")] = Path("runs/eval_tokenizer"),
    shown: Annotated[int, typer.Option(callback=at_least(1), help="Images in the picture.")] = 10,
    seed: Annotated[
        int, typer.Option(callback=at_least(0), help="Of the choice of images, and of sampled latents.")
    ] = 0,
    batch: Batch = 16,
    workers: Workers = 0,
    device: Device = None,
    as_json: Json = False,
    no_plugin: NoPlugin = None,
) -> None:
    """Reconstruct real images with tokenizers, and measure what is lost: distances, PSNR, SSIM, codes, latents.

    Writes report.md, report.json and a picture. Examples: `mixar eval tokenizer emoji64_continuous emoji64_lfq` ·
    `mixar eval tokenizer runs/kl --data data:train --images 1000 --out reports/kl` ·
    `torchrun --nproc-per-node 8 -m mixar eval tokenizer runs/kl --extractor
    inception:weights_file=inception.pth`
    """
    import time

    from mixar.cli.common import checked_device
    from mixar.cli.progress import ImageProgress
    from mixar.stores import write_png
    from mixar_core.distributed import PATIENT, join_processes, naming_lost_processes
    from mixar_core.pictures import rows_picture
    from mixar_eval.extractors import open_extractor
    from mixar_eval.generation import REPORT, check_content, check_out
    from mixar_eval.references import open_reference
    from mixar_eval.tokenizer_report import report_of, tokenizer_text
    from mixar_eval.tokenizers import choose, compare_tokenizers, open_tokenizers, reconstruct_few

    began = time.monotonic()
    registry = open_registry(context, no_plugin)
    processes = join_processes(checked_device(device), timeout=PATIENT)
    known = (f"{REPORT}.json", f"{REPORT}.md", PICTURE)
    processes.on_main(lambda: check_content(out, known))
    entries = open_tokenizers(models, registry, processes.device)
    recipe = entries[0].recipe
    least = max(4, processes.world)  # so that halves can be measured
    chosen = choose(data, images, seed=seed, least=least, recipe=recipe, registry=registry)
    seeing = open_extractor(extractor, registry, device=processes.device)
    with naming_lost_processes(processes):
        against = None
        if reference is not None:
            with ImageProgress("reference") as bar:
                against = open_reference(
                    reference,
                    extractor=seeing,
                    registry=registry,
                    processes=processes,
                    recipe=recipe,
                    batch_size=batch,
                    workers=workers,
                    progress=lambda done, of: bar(done, of, done),
                )
        with ImageProgress("measuring") as bar:
            comparison = compare_tokenizers(
                entries,
                chosen,
                extractor=seeing,
                processes=processes,
                reference=against,
                seed=seed,
                batch_size=batch,
                workers=workers,
                progress=lambda done, of: bar(done, of, done),
            )
    processes.leave()
    if not processes.is_main:
        return
    report = report_of(comparison, entries, seeing, seed=seed, made=made(processes, began))
    text = tokenizer_text(report, picture=PICTURE)
    rows = reconstruct_few(entries, chosen, seeing, device=processes.device, seed=seed, count=shown)
    check_out(out, known)
    write_png(out / PICTURE, rows_picture(rows, scale=max(1, 96 // recipe.image_size)))
    publish(out, report, text, as_json=as_json)
