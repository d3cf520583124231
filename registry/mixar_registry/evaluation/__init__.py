"""Evaluation of tokenizers and of generation: references, reports, and what the `mixar eval` commands do."""
