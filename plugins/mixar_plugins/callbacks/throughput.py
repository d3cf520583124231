"""How fast a run is, measured against what its devices can do."""

from __future__ import annotations

import re
import sys
from typing import Literal, get_args

import torch
from attrs import field, frozen
from attrs.validators import gt, optional

from mixar_core.training.callback import Callback, RunInfo, StepReport
from mixar_core.training.log import RunLog

Format = Literal["bf16", "tf32", "float32"]

#: Words of a device's name -> dense TFLOP/s of matrix products in bf16 (summed in float32), TF32 and float32, as the
#: vendors publish them; of figures with sparsity it is the half. The first entry that fits counts.
PEAKS: dict[str, tuple[float, float, float]] = {
    "B200": (2250, 1100, 75),  # NVIDIA Blackwell data sheet, HGX B200
    "H200 NVL": (835.5, 417.5, 60),  # NVIDIA H200 data sheet, as the next
    "H200": (989.5, 494.5, 67),
    "GH200": (989.5, 494.5, 67),  # NVIDIA GH200 data sheet
    "H100 NVL": (835.5, 417.5, 60),  # NVIDIA H100 data sheets, as the next two
    "H100 PCIE": (756.5, 378, 51),
    "H100": (989.5, 494.5, 67),
    "A100": (312, 156, 19.5),  # NVIDIA A100 data sheet
    "A40": (149.7, 74.8, 37.4),  # NVIDIA A40 data sheet
    "L40S": (362, 183, 91.6),  # NVIDIA L40S data sheet
    "L40": (181, 90.5, 90.5),  # NVIDIA L40 data sheet
    "L4": (121, 60, 30.3),  # NVIDIA L4 data sheet
    "RTX 5090": (209.5, 104.8, 104.8),  # NVIDIA RTX Blackwell architecture white paper
    "RTX 4090": (165.2, 82.6, 82.6),  # NVIDIA Ada architecture white paper
    "RTX 3090": (71, 35.6, 35.6),  # NVIDIA GA102 architecture white paper
    "MI300X": (1307.4, 653.7, 163.4),  # AMD Instinct MI300X data sheet
}
#: words of devices that are slower or faster than their name's other words say: slices and variants
_OTHERS = frozenset({"MIG", "LAPTOP", "MOBILE", "MAX", "D", "TI"})


def peak_tflops(name: str, precision: Format) -> float | None:
    """Dense TFLOP/s of the device that torch calls `name`; None where it is not in the table."""
    words = {*re.split(r"[\s\-_]+", name.upper())}
    fitting = (peaks for known, peaks in PEAKS.items() if words.issuperset(known.split()) and not words & _OTHERS)
    return next((peaks[get_args(Format).index(precision)] for peaks in fitting), None)


@frozen
class ThroughputConfig:
    """Args: peak_tflops: dense TFLOP/s of one device at the run's precision; None: by its name, where that is known."""

    peak_tflops: float | None = field(default=None, validator=optional(gt(0.0)))


class Throughput(Callback):
    """Writes throughput.jsonl: images/s, steps/s, model FLOP utilisation (MFU), waiting for data, GPU memory.

    MFU is images/s x FLOP an image / (peak FLOP/s of a device x processes), of the steps alone: evaluations, previews
    and checkpoints are between them. FLOP are the model's (forward and backward, nothing recomputed counted twice), the
    peak is that of the format the products are computed in. A line at the end sums up, without the first report, in
    which a run warms up. The other callbacks behind this one in the list find the figures in `StepReport.extra`.
    Memory is the most that torch had allocated on the main process's GPU since its start.
    """

    def __init__(self, config: ThroughputConfig) -> None:
        self.config = config
        #: steps, seconds, seconds of waiting, one entry a report
        self._reports: list[tuple[int, float, float]] = []

    def on_start(self, run: RunInfo) -> None:
        self._log = RunLog(run.folder, "throughput.jsonl")
        if run.first_step:
            self._log.forget_after(run.first_step)
        self._last = run.first_step
        self._device = torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else run.device.type
        exact = torch.get_float32_matmul_precision() == "highest"
        self._format: Format = "bf16" if run.precision == "bf16" else "float32" if exact else "tf32"
        self._peak = self.config.peak_tflops or peak_tflops(self._device, self._format)

    def on_step(self, run: RunInfo, report: StepReport) -> None:
        steps, self._last = report.step - self._last, report.step
        seconds = steps * run.batch_size / report.images_per_second
        self._reports.append((steps, seconds, seconds * report.waiting_share))
        new = {
            "steps_per_second": report.images_per_second / run.batch_size,
            "mfu": self._mfu(run, report.images_per_second),
            "gpu_memory_gb": _gpu_memory_gb(run.device),
        }
        known = {"images_per_second": report.images_per_second, "waiting_share": report.waiting_share}
        self._log.write("throughput", report.step, **{k: v and round(v, 5) for k, v in (known | new).items()})
        report.extra.update({name: value for name, value in new.items() if value is not None})

    def on_end(self, run: RunInfo, step: int) -> None:
        if not self._reports:
            return
        counted = self._reports[1:] or self._reports
        steps, seconds, waiting = (sum(column) for column in zip(*counted, strict=True))
        rate, memory = steps * run.batch_size / seconds, _gpu_memory_gb(run.device)
        parts = [f"{rate:.4g} images/s", f"{steps / seconds:.3g} steps/s", self._words(run, rate)]
        parts += [f"{waiting / seconds:.1%} waiting for data"] + ([f"GPU memory {memory:.3g} GB"] if memory else [])
        print(f"throughput: {', '.join(parts)}", file=sys.stderr)

    def _mfu(self, run: RunInfo, images_per_second: float) -> float | None:
        if self._peak is None or run.flop_per_image is None:
            return None
        return images_per_second * run.flop_per_image / (1e12 * self._peak * run.processes)

    def _words(self, run: RunInfo, images_per_second: float) -> str:
        if run.flop_per_image is None:
            return "MFU unknown (the model's FLOP are)"
        rate = f"{1e-12 * images_per_second * run.flop_per_image:.3g} TFLOP/s"
        mfu = self._mfu(run, images_per_second)
        if mfu is None:
            return f"{rate}, MFU unknown (no peak known of {self._device}; set peak_tflops)"
        peak = f"{run.processes} x {self._peak:.4g}" if run.processes > 1 else f"{self._peak:.4g}"
        return f"{rate}, MFU {mfu:.1%} of {peak} TFLOP/s ({self._device}, {self._format})"


def _gpu_memory_gb(device: torch.device) -> float | None:
    return 1e-9 * torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
