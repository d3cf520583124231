"""Studies that are too long for tests, a command each: `python -m benchmarks.NAME --help`.

What digits tell, three seeds and one thread a run, reports in docs/results: `heads`, `variants` (MAR's Table 1),
`optimizers`, `tokenizer_losses`, `layouts`, `family` (priors and tokenizers), `hart` (a residual or whole latents),
`adaptive`; they share `study`. `claims`: the papers' claims. `editing`: how well edits fit (docs/editing.md).

What it costs: `peer` beside MAR's published code, `products` of this CPU's libraries, `cache` of tokens, `full_size`
files from import to image, `gpu` all of it in one call (docs/performance.md, docs/training.md, docs/systems.md).

What it withstands: `endurance` kills runs; `own_images` goes the way of docs/own-images.md.

What is shipped: `train_zoo` trains, measures and ships the small models, `reference_curves` their curves. `runner` does
jobs of `claims` and `train_zoo` side by side.
"""
