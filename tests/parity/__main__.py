"""`python -m tests.parity CASE_DIR [CASE_DIR ...] [--device cuda]`: golden values of the published systems, and ours.

Prints a line a tensor, `case tensor error`, the error being ||a - b|| / ||b||; the last line is the worst. Exits 1 if
that is above 1e-4, else 2 if a folder is not a case.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from mixar_core.distributed import available_device
from mixar_core.errors import UserError
from tests.parity.case import Mismatch, NotACase, load_case, relative_error
from tests.parity.runners import run_case

TOLERANCE = 1e-4


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="CASE_DIR")
    parser.add_argument("--device", default="cpu", help="where it is computed, without TF32 (default: cpu)")
    worst: tuple[float, str] | None = None
    refused, given = False, parser.parse_args(arguments)
    try:
        device = available_device(given.device)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    for folder in given.folders:
        try:
            errors = errors_of(folder, device=device)
        except (NotACase, UserError) as error:
            print(f"{folder}: not a case: {error}", file=sys.stderr)
            refused = True
            continue
        for label, error in errors:
            print(f"{label:<52} {error:.2e}")
            if worst is None or error > worst[0]:
                worst = error, label
    if worst is None:
        return 2
    print(f"worst: {worst[0]:.2e} ({worst[1]})")
    return 1 if worst[0] > TOLERANCE else 2 if refused else 0


def errors_of(folder: Path, *, device: torch.device | str = "cpu", bf16: bool = False) -> list[tuple[str, float]]:
    """`case tensor` and relative error of every expected output; infinite where nothing was computed."""
    case = load_case(folder)
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # products are exact as it is
            expected, computed = run_case(case, device=device, bf16=bf16)
    except Mismatch as error:
        return [(f"{case.name} weights ({error})", float("inf"))]
    return [
        (
            f"{case.name} {name}",
            float("inf") if (got := computed[name]) is None else relative_error(got, expected[name]),
        )
        for name in sorted(expected)
    ]


if __name__ == "__main__":
    sys.exit(main())
