"""What does guidance gain, and at what cost? `python -m benchmarks.guidance [--steps 600] [--count 500]`

Trains recipe `digits_quick` four times from the same seed, for the same steps, as plain MAR, DC-Mix, DC-SA and DC-CA,
and hands the runs to `mixar eval guidance`: distance to the real validation digits against tokens, parameters and time.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import mixar
from mixar_eval.cli import eval_app

INJECTORS = ("none", "dc-mix", "dc-sa", "dc-ca")


def main() -> None:
    """Train all that are not trained yet, then compare them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps of each training")
    parser.add_argument("--count", type=int, default=500, help="digits drawn of each")
    parser.add_argument("--sampling-steps", default="1,4,16", help="numbers of sampling steps")
    parser.add_argument("--out", type=Path, default=Path("runs/guidance"), help="folder of the runs and the report")
    arguments = parser.parse_args()

    for injector in INJECTORS:
        folder = arguments.out / injector
        if (folder / "weights.safetensors").is_file():
            continue
        changes = {
            "injector": {"type": injector},
            "training.steps": arguments.steps,
            "callbacks": [{"type": "progress"}],
        }
        mixar.train(mixar.load_recipe("digits_quick", changes), folder, resume=folder.exists())
    runs = [str(arguments.out / injector) for injector in INJECTORS]
    options = ["--count", str(arguments.count), "--steps", arguments.sampling_steps, "--reference", "data:validation"]
    eval_app(["guidance", *runs, *options, "--out", str(arguments.out / "report")], standalone_mode=False)


if __name__ == "__main__":
    main()
