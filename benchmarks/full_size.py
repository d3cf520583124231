"""Published files at full size, from file to image: `python -m benchmarks.full_size [--only kl16,mar_base]`

Writes a file of each published kind from its list of tensors (tests/parity/manifests) with seeded weights, wrapped as
its authors wrap it, imports it with `mixar weights import`, and draws an image in a few steps with `mixar sample`.
Prints a line a model: size of the file, seconds and peak resident memory of both commands. The memory counts mapped
pages of the file, which the system takes back when it needs to. Seeded weights draw noise: it is time and memory that
this measures, and that every step works at full size.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch
import typer
from torch import Tensor

from benchmarks.study import names
from mixar.assembly import build
from mixar.folder import save_model
from mixar.plugins import plugin_manager
from mixar.recipe import load_recipe, to_yaml
from tests.parity.case import read_manifest, seeded

MANIFESTS = Path(__file__).parents[1] / "tests" / "parity" / "manifests"
FEW = 4
BITS = (10, 12, 14, 16, 18)
_VQ, _MASKGIT, _MAGVIT = "llamagen_vq_ds16_c2i", "maskgit_vqgan_imagenet_f16_256", "magvit2_imagenet_256_L"
#: lists of tensors -> importer, the tokenizer that is needed, and steps of sampling where they are not the recipe's
MODELS: dict[str, tuple[str, str | None, int | None]] = {
    "kl16": ("kl16", None, None),
    "vavae_f16d32": ("vavae", None, None),
    **{f"mar_{size}": ("mar", "kl16", FEW) for size in ("base", "large", "huge")},
    "detok_bb": ("detok", None, None),
    **{f"detok_mar_{size}": ("detok-mar", "detok_bb", FEW) for size in ("base", "large")},
    **{f"flowar_{size}": ("flowar", "kl16", None) for size in ("s", "l", "h")},
    **{f"maskbit_tokenizer_{bits}bit": ("maskbit-tokenizer", None, None) for bits in BITS},
    **{f"maskbit_generator_{n}bit": ("maskbit-generator", f"maskbit_tokenizer_{n}bit", FEW) for n in BITS},
    _VQ: ("llamagen-tokenizer", None, None),
    **{f"llamagen_gpt_{size}": ("llamagen", _VQ, None) for size in ("b", "l", "xl", "xxl", "3b")},
    **{f"randar_{size}": ("randar", _VQ, FEW) for size in ("l_0.3b", "xl_0.7b")},
    "var_vae_ch160v4096z32": ("var-tokenizer", None, None),
    **{f"var_d{depth}": ("var", "var_vae_ch160v4096z32", None) for depth in (16, 20, 24, 30)},
    _MASKGIT: ("maskgit-vqgan-tokenizer", None, None),
    **{f"rar_{size}": ("rar", _MASKGIT, None) for size in ("b", "l", "xl", "xxl")},
    _MAGVIT: ("open-magvit2-tokenizer", None, None),
    **{f"magvit2_AR_256_{size}": ("open-magvit2-ar", _MAGVIT, None) for size in ("B", "L", "XL")},
    **{f"titok_{size}_tokenizer": ("titok-tokenizer", None, None) for size in ("l32", "b64", "s128")},
    **{  # with the steps that are published of them
        f"titok_{size}_generator": ("titok-generator", f"titok_{size}_tokenizer", steps)
        for size, steps in {"l32": 8, "b64": 8, "s128": 64}.items()
    },
}
#: entries of a kind's files: of one the weights, of two the last step's and the averaged ones; others are bare
ENTRIES = {
    **dict.fromkeys(("mar", "detok", "detok-mar"), ("model", "model_ema")),
    **dict.fromkeys(("kl16", "llamagen-tokenizer", "llamagen"), ("model",)),
    **dict.fromkeys(("vavae", "open-magvit2-tokenizer", "open-magvit2-ar"), ("state_dict",)),
}
#: MaskBit's pair, a MixAR-L with fresh weights, and VA-VAE: the whole of the paper's system
MIXAR = "mixar_l"
#: `mixar`, noting its own peak (kB) when it ends: what the system counts for a child begins with its parent's
_COMMAND = """
import atexit, re, sys
from pathlib import Path
from mixar.cli import main

def note(file=sys.argv.pop(1)):
    Path(file).write_text(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

atexit.register(note)
main()
"""
_MIXAR_NEEDS = ("vavae_f16d32", "maskbit_tokenizer_14bit", "maskbit_generator_14bit")


def main(only: str = ",".join([*MODELS, MIXAR]), threads: str = "2") -> None:
    """Run what `--only` names (a list with commas); `--threads`: of each command."""
    wanted = set(names(only, [*MODELS, MIXAR]))
    if MIXAR in wanted:
        wanted |= set(_MIXAR_NEEDS)
    wanted |= {MODELS[name][1] or "" for name in wanted - {MIXAR}}
    os.environ["OMP_NUM_THREADS"] = threads

    print(f"{'model':26} {'file MB':>8} {'import s':>9} {'peak MB':>8} {'sample s':>9} {'peak MB':>8}")
    with tempfile.TemporaryDirectory(prefix="mixar-full-size-") as scratch:
        for name in MODELS:
            if name in wanted:
                run(name, Path(scratch))
        if MIXAR in wanted:
            run_mixar(Path(scratch))


def run(name: str, folder: Path) -> None:
    """Write, import, and where it can draw, draw; prints the line."""
    kind, tokenizer, steps = MODELS[name]
    file, out = folder / "published.pt", folder / name
    write(name, kind, file)
    size = file.stat().st_size / 1e6
    over = ("--tokenizer", str(folder / tokenizer)) if tokenizer else ()
    imported = measured("weights", "import", kind, str(file), str(out), *over)
    file.unlink()
    report(name, size, imported, draw(out, folder, steps) if tokenizer else None)


def run_mixar(folder: Path) -> None:
    """A MixAR-L with fresh weights between the imported MaskBit pair and VA-VAE."""
    vavae, tokenizer, prior = (folder / name for name in _MIXAR_NEEDS)
    registry = plugin_manager()
    overrides = [
        f"continuous_tokenizer={{weights: {vavae}}}",
        f"discrete_tokenizer={{weights: {tokenizer}}}",
        f"prior={{weights: {prior}}}",
    ]
    recipe = load_recipe(MIXAR, registry=registry, overrides=overrides)
    torch.manual_seed(0)
    trained = build(recipe, registry, load_weights=False).trained
    save_model(folder / MIXAR, recipe_yaml=to_yaml(recipe), tensors=trained.state_dict())
    size = (folder / MIXAR / "weights.safetensors").stat().st_size / 1e6
    del trained
    report(MIXAR, size, None, draw(folder / MIXAR, folder, FEW))


def draw(model: Path, folder: Path, steps: int | None) -> tuple[float, float]:
    """Seconds and peak memory of drawing one image; head and prior take FEW steps, not the published 100 and 64."""
    recipe = model / "recipe.yaml"
    text = recipe.read_text()
    for key in ("head_steps", "prior_steps"):
        text = text.replace(f"{key}: null", f"{key}: {FEW}")
    recipe.write_text(text)
    options = () if steps is None else ("--steps", str(steps))
    return measured("sample", str(model), "--labels", "207", "--force", "--out", str(folder / "samples"), *options)


def report(name: str, size: float, imported: tuple[float, float] | None, drawn: tuple[float, float] | None) -> None:
    """A line of the table."""
    figures = (imported, drawn)
    cells = [f"{each[0]:9.1f} {each[1]:8.0f}" if each else f"{'-':>9} {'-':>8}" for each in figures]
    print(f"{name:26} {size:8.0f} {cells[0]} {cells[1]}", flush=True)


def write(name: str, kind: str, file: Path) -> None:
    """The file as its authors' code saves it."""
    tensors = {key: fill(key, tensor) for key, tensor in read_manifest(MANIFESTS / f"{name}.txt").items()}
    content: Mapping[str, object] = tensors
    if kind == "vavae":
        tensors["loss.logvar"] = torch.zeros(())
    if entries := ENTRIES.get(kind):
        *others, own = entries
        last = {key: torch.zeros_like(tensor) for key, tensor in tensors.items()}
        content = {**dict.fromkeys(others, last), own: tensors}
        if others:
            args = argparse.Namespace(model=name, blr=1e-4, lr=None, pin_mem=True)
            content = {**content, "optimizer": {}, "epoch": 799, "scaler": {}, "args": args}
    torch.save(content, file)


def fill(name: str, listed: Tensor) -> Tensor:
    """A seeded tensor in place of a listed one; what a quantizer computes for itself is what it computes."""
    if name.endswith("bits_to_indices"):
        return 2 ** torch.arange(len(listed), dtype=listed.dtype)
    if name == "quantize.codebook":
        codes, bits = listed.shape
        return ((torch.arange(codes)[:, None] & 2 ** torch.arange(bits)) != 0).float() * 2 - 1
    return seeded(name, tuple(listed.shape), "full size").to(listed.dtype)


def measured(*arguments: str) -> tuple[float, float]:
    """Seconds and peak resident memory (MB) of a run of `mixar`; ends the program if it fails."""
    with tempfile.NamedTemporaryFile("r") as peak:
        started = time.perf_counter()
        command = [sys.executable, "-c", _COMMAND, peak.name, *arguments]
        if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
            sys.exit(f"failed: mixar {' '.join(arguments)}")
        return time.perf_counter() - started, float(peak.read()) / 1000


if __name__ == "__main__":
    typer.run(main)
