"""A toy text condition as a plugin: the letters of a class's caption, each a fixed vector. Its module is the plugin."""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor, nn

from mixar import Part, hookimpl
from mixar_core import NO_CLASS, Condition, Conditioner, UserError

MIXAR_INTERFACE = 2


@frozen
class ToyTextConfig:
    """A caption a class, in label order, of the letters a to z; `learned` vectors start as fixed ones are."""

    captions: tuple[str, ...]
    width: int = 6
    learned: bool = False


class ToyText(Conditioner):
    """The letters of a caption as vectors (B, T, F); T is the longest caption's length."""

    def __init__(self, config: ToyTextConfig, *, num_classes: int) -> None:
        super().__init__()
        if len(config.captions) != num_classes:
            raise UserError(f"captions: {len(config.captions)}; there are {num_classes} classes")
        self.width, length = config.width, max(map(len, config.captions))
        letters = [[ord(letter) - ord("a") for letter in caption.ljust(length, "a")] for caption in config.captions]
        counts = [[place < len(caption) for place in range(length)] for caption in config.captions]
        self.register_buffer("letters_LT", torch.tensor(letters), persistent=False)
        self.register_buffer("counts_LT", torch.tensor(counts), persistent=False)
        vectors = torch.sin(torch.arange(1.0, 27.0)[:, None] * torch.arange(1.0, config.width + 1.0))
        self.vectors_VF = nn.Parameter(vectors, requires_grad=config.learned)

    def forward(self, labels_B: Tensor) -> Condition:
        known_B = labels_B != NO_CLASS
        rows_B = labels_B.clamp(min=0)
        counts_BT = self.counts_LT[rows_B] & known_B[:, None]
        return Condition(labels_B, self.vectors_VF[self.letters_LT[rows_B]], counts_BT)


@hookimpl
def mixar_parts() -> list[Part]:
    return [Part("conditioner", "toy-text", ToyText, ToyTextConfig)]
