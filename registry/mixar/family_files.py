"""The text of the recipes that `mixar new` writes; numbers come from family.py."""

from __future__ import annotations

BASE = """\
# What the recipes beside this file share: they begin with `extends: base.yaml`.
# {of_images} images; `mixar data PATH` tells more of them.
image_size: {image_size}    # pixels of a side, or [height, width], multiples of {stride}; the images allow {suggested}
num_classes: {num_classes}    # {classes}
{data}
training:
  learning_rate: 1.0e-3
  learning_rate_per: null    # as it stands, whatever the batch
  schedule: cosine    # down to 0 at the last step
  clip: 1.0
  ema_decay: {ema}    # of the averaged weights, which samples are drawn with; nearer to 1 for longer trainings
  precision: {precision}
  flip: true    # mirrored images, too: right for photos, wrong for letters
  checkpoint_every: 200    # steps that are lost at most where it is killed; Ctrl-C loses none
  cache: {cache}    # `none` reads every image anew at every step, for more images than memory holds
  max_unreadable: {max_unreadable}    # so many broken files are passed over
"""

_CONTINUOUS = """\
# 1. From pixels to latents, numbers that MixAR draws: {pixels} pixels to {latent_grid} latents.
extends: base.yaml
summary: Continuous tokenizer, {pixels} pixels to {latent_grid} latents of 16 channels
trains: continuous_tokenizer
continuous_tokenizer:
  type: kl
  latent_channels: 16    # more keep more of the image, and are harder to draw
  channels: {channels}    # width of the first level; twice that takes about three times as long
  channel_multipliers: {continuous_levels}    # every level but the last halves the image
  blocks: 1
  encoder_attention: []
  mid_attention: false
  norm: none
reconstruction: {{loss: l1, kl_weight: 5.0e-6}}
training:
  steps: {steps}    # each image is seen {seen} times{takes}
  batch_size: {batch_images}
  micro_batch: {micro_images}
  warmup_steps: {warmup}
  weight_decay: 0.0
  evaluate_every: {evaluate}
  preview_every: {preview}
"""

_DISCRETE = """\
# 2. From pixels to codes, whole numbers that guide MixAR: {pixels} pixels to {grid} codes of {bits} bits.
extends: base.yaml
summary: Lookup-free tokenizer, {pixels} pixels to {grid} codes of {bits} bits
trains: discrete_tokenizer
discrete_tokenizer:
  type: lfq
  bits: {bits}    # 2^{bits} codes: few images cannot teach many
  channels: {channels}
  channel_multipliers: {discrete_levels}
  blocks: 1
  norm: none
  input_shortcut: true
  entropy_weight: 0.1    # keeps all codes in use; `mixar eval tokenizer` tells how many are
  entropy_temperature: 0.5
reconstruction: {{loss: l1}}
training:
  steps: {steps}    # each image is seen {seen} times{takes}
  batch_size: {batch_images}
  micro_batch: {micro_images}
  warmup_steps: {warmup}
  weight_decay: 0.0
  evaluate_every: {evaluate}
  preview_every: {preview}
"""

_PRIOR = """\
# 3. Draws the codes of a class.
extends: base.yaml
summary: Bit-token prior of the codes
trains: prior
discrete_tokenizer: {{weights: runs/discrete}}    # seen from this file
prior:
  type: maskbit
  bits: {bits}    # as of the codes
  stride: {stride}
  width: {width}    # width and depth by the number of images: more learn few images by heart
  depth: {prior_depth}
  heads: {heads}
  mlp_dim: {mlp_dim}
  splits: 2
  label_smoothing: 0.0
  steps: 16
  guidance_scale: 0.0
  guidance_annealing: none
  randomize_temperature: 2.0
training:
  steps: {steps}    # each image is seen {seen} times{takes}
  batch_size: {batch_tokens}
  micro_batch: {micro_tokens}
  warmup_steps: {warmup}
  weight_decay: 0.045
  betas: [0.9, 0.96]
  evaluate_every: {evaluate}    # a validation loss that rises says: learned by heart; take fewer steps
  preview_every: {preview}
"""

_MIXAR = """\
# 4. MixAR: draws the latents of an image, guided by its codes.
extends: base.yaml
summary: MixAR (DC-Mix, TI-Mix), {grid} tokens
trains: mixar
continuous_tokenizer: {{weights: runs/continuous}}    # seen from this file
discrete_tokenizer: {{weights: runs/discrete}}
prior: {{weights: runs/prior}}
injector: {{type: dc-mix}}
head: {{type: diffusion, depth: 3, width: {head_width}, sampling_steps: 50, clip: 4.0}}
backbone:
  width: {width}
  depth: {depth}
  heads: {heads}
  buffer: 4
  patch_size: {patch_size}    # a token spans so many latents each way: as many tokens as codes
  dropout: {dropout}    # against learning few images by heart
  attention_dropout: {dropout}
masking: {{ratio_std: 0.35, ratio_min: 0.3}}
ti_mix: {{schedule: linear, begin: 0.5, end: 0.8}}
sampling: {{steps: {sampling_steps}}}    # more steps draw better and slower; cfg: 2.0 follows the class more
training:
  steps: {steps}    # each image is seen {seen} times{takes}
  batch_size: {batch_tokens}
  micro_batch: {micro_tokens}
  warmup_steps: {warmup}
  evaluate_every: {evaluate}    # a validation loss that rises says: learned by heart; take fewer steps
  preview_every: {preview}
"""

_MAR = """\
# The same without codes, to see what they bring: mixar eval guidance of both runs.
extends: mixar.yaml
summary: MAR, the same model without codes
discrete_tokenizer: null
prior: null
injector: {{type: none}}
ti_mix: {{schedule: constant}}
"""

#: by name; `mar` is not among the commands that are printed
FILES = {"continuous": _CONTINUOUS, "discrete": _DISCRETE, "prior": _PRIOR, "mixar": _MIXAR, "mar": _MAR}
