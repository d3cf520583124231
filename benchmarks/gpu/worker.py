"""What `torchrun` starts for the part `processes`: `python -m benchmarks.gpu.worker KIND FILE DEVICE [tiny]`"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from benchmarks.gpu.exact import run_steps
from benchmarks.gpu.part import Part

if __name__ == "__main__":
    kind, file, device, *tiny = sys.argv[1:]
    chosen = torch.device(device, 0) if device == "cuda" else torch.device(device)
    torch.save(run_steps(Part(chosen, Path(file), 0.0, bool(tiny)), kind), file)
