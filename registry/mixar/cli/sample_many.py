"""`mixar sample --count N`: shared by processes, resumable, as a folder of PNG files or as ADM's `.npz`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image

from mixar.cli.common import checked_device
from mixar.cli.progress import ImageProgress
from mixar.folder import Kind
from mixar.model import Model, Precision, grid_picture, label_name, load
from mixar.plugins import Registry
from mixar.sampling import (
    MANIFEST,
    SHOWN,
    Plan,
    Store,
    all_classes,
    claim,
    describe,
    draw_chunks,
    grid_columns,
    manifest_beside,
    with_timing,
)
from mixar.stores import PNGStore, RawStore, images_crc32, write_npz, write_png
from mixar_core.distributed import PATIENT, StopSignals, join_processes, naming_lost_processes
from mixar_core.errors import UserError
from mixar_core.storage import write_text, writing


def sample_many(
    name: str,
    wanted: Callable[[Model], Sequence[int] | None],
    *,
    registry: Registry,
    count: int,
    random_labels: bool,
    steps: int | None,
    cfg: float | None,
    temperature: float | None,
    seed: int,
    out: Path | None,
    npz: Path | None,
    raw: bool,
    precision: Precision,
    batch: int,
    device: str | None,
    force: bool,
) -> None:
    """Draw `count` images and print where they are, or how to go on.

    Args:
        wanted: class numbers to draw from, of the loaded model; None for all.
        out, npz: a folder, or a file; one of them is None.

    Raises:
        UserError: both are given, or what is there already is of another call.
    """
    if out is not None and npz is not None:
        raise UserError("--npz and --out: give one of them")
    folder = _checked_npz(npz, force=force) if npz is not None else out
    assert folder is not None
    processes = join_processes(checked_device(device), timeout=PATIENT)
    weights: Kind = "raw" if raw else "ema"
    model = load(name, device=processes.device, weights=weights, precision=precision, registry=registry)
    plan = Plan(
        count=count,
        batch=batch,
        seed=seed,
        settings=model.settings(steps=steps, cfg=cfg, temperature=temperature),
        classes=tuple(dict.fromkeys(wanted(model) or all_classes(model))),
        labels="random" if random_labels else "balanced",
    )

    def prepare() -> dict[str, Any]:
        if force:
            remove_samples(folder)
        return claim(folder, describe(model, plan))

    manifest = processes.on_main(prepare)
    store: Store = RawStore(folder) if npz is not None else PNGStore(folder, plan, manifest["class_names"])
    with StopSignals() as signals, naming_lost_processes(processes), ImageProgress("sampling") as progress:
        finished = draw_chunks(model, plan, store, processes, signals=signals, report=progress)
    processes.leave()
    if not processes.is_main:
        return
    if not finished:
        there = sum(plan.rows(chunk).stop - plan.rows(chunk).start for chunk in store.done())
        print(f"stopped with {there:,} of {count:,} images in {folder}; the same command without --force goes on")
        return
    labels = f"{labels_in_words(plan)}; seed {seed}"
    if npz is not None:
        assert isinstance(store, RawStore)
        first = store.read(0)
        batches = (store.read(chunk) for chunk in range(plan.chunks))
        write_npz(npz, batches, plan.labels_N(), height=first.shape[2], width=first.shape[3])
        told = with_timing(manifest, folder) | {"arr_0_crc32": images_crc32(npz)}
        write_text(manifest_beside(npz), json.dumps(told, indent=2) + "\n")
        shutil.rmtree(folder)
        print(f"{count:,} images in {npz}, {labels}; how they were drawn in {manifest_beside(npz)}")
        return
    assert isinstance(store, PNGStore)
    columns = grid_columns(len(plan.classes))
    shown = min(count, SHOWN - SHOWN % (columns or 1))
    images = torch.stack([_read_png(folder / file) for file in store.files[:shown]])
    names = [label_name(label, manifest["class_names"]) for label in plan.labels_N()[:shown].tolist()]
    write_png(folder / "grid.png", grid_picture(images, names, columns=columns))
    print(f"{count:,} images in {folder}, {labels}; the first {shown} in {folder / 'grid.png'}")


def labels_in_words(plan: Plan) -> str:
    """How often each class is drawn."""
    classes = len(plan.classes)
    if classes == 1:
        return "no class" if plan.classes[0] < 0 else f"all of class {plan.classes[0]}"
    if plan.labels == "random":
        return f"classes drawn at random among {classes}"
    if plan.balanced:
        return f"exactly {plan.count // classes:,} of each of {classes:,} classes"
    low = plan.count // classes
    return f"{low:,} or {low + 1:,} of each of {classes:,} classes ({plan.count:,} does not divide by {classes:,})"


def remove_samples(folder: Path) -> None:
    """Remove a folder of samples, if there is one.

    Raises:
        UserError: it holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / MANIFEST).is_file():  # --force must never remove what mixar did not write
        raise UserError(f"{folder}: holds something else than samples; give another")
    with writing(folder):
        shutil.rmtree(folder)


def _checked_npz(npz: Path, *, force: bool) -> Path:
    """The folder where the images of an .npz wait until all are there."""
    if npz.suffix != ".npz":
        raise UserError(f"--npz {npz}: a file whose name ends in .npz is needed")
    parts = npz.with_name(f"{npz.name}.parts")
    begun = (parts / MANIFEST).is_file()  # with --force, and interrupted
    if npz.exists() and not force and not begun:
        raise UserError(f"--npz {npz}: is there already; give another, or --force to replace it")
    return parts


def _read_png(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(numpy.array(image.convert("RGB"))).permute(2, 0, 1)
