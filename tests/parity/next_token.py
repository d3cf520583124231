"""The rows of priors that draw codes one after the other, for the table of case kinds: arguments of `Runner`."""

from __future__ import annotations

from tests.parity import llamagen, magvit2_ar, randar, rar, var

ROWS = (
    ("rar", ("model", "tokenizer"), rar.INPUTS, rar.run, rar.MANIFESTS),
    ("var", ("patch_nums", "cond_drop_rate"), var.INPUTS, var.run, var.MANIFESTS),
    ("magvit2-ar", ("transformer_config",), magvit2_ar.INPUTS, magvit2_ar.run, magvit2_ar.MANIFESTS),
    ("randar", ("block_size", "position_order"), randar.INPUTS, randar.run, randar.MANIFESTS),
    ("llamagen", ("block_size", "cls_token_num"), llamagen.INPUTS, llamagen.run, llamagen.MANIFESTS),
)
