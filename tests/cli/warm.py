"""Imported once by the process that the others are forked from: what every command would import for itself."""

from __future__ import annotations

import timm  # noqa: F401
import torch
import torch_fidelity  # noqa: F401

import mixar.cli
import mixar.cost
import mixar.run  # noqa: F401

# torch brings its meta kernels, and its compiler with them, when the first elementwise one is used
_ = (torch.arange(2, device="meta") != 0).float() * 2 - 1
