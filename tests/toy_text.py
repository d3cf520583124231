"""A toy text condition as a plugin: the letters of a class's caption, each a fixed vector; and a prior that reads them.

The module is the plugin.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from attrs import frozen
from torch import Tensor, nn

from mixar import Part, hookimpl
from mixar_core import (
    MASKED_CODE,
    NO_CLASS,
    Condition,
    Conditioner,
    DiscretePrior,
    DiscreteTokenizer,
    DrawnCodes,
    Losses,
    Noise,
    UserError,
)

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


@frozen
class ToyReaderConfig:
    """How long the vectors are."""

    width: int = 6


class ToyReader(DiscretePrior):
    """Every code is drawn for itself, from the sum of the letters."""

    def __init__(self, config: ToyReaderConfig, *, tokenizer: DiscreteTokenizer, num_classes: int, data=None) -> None:
        super().__init__(layout=tokenizer.layout, codebook_size=tokenizer.codebook_size, num_classes=num_classes)
        self.read = nn.Linear(config.width, tokenizer.codebook_size)

    def log_p_BV(self, condition: Condition) -> Tensor:
        if condition.vectors_BTF is None:
            raise UserError("prior toy-reader needs a condition with vectors")
        letters_BF = (condition.vectors_BTF * condition.counting_BT()[..., None]).sum(dim=1)
        return self.read(letters_BF).log_softmax(dim=1)

    def sample_steps(
        self, condition: Condition, *, noise: Noise, steps=None, cfg=None, temperature=None, given_BN=None
    ) -> Iterator[DrawnCodes]:
        log_p_BV, shape = self.log_p_BV(condition), (len(condition), self.layout.tokens)
        uniform_BN = noise.uniform(shape, log_p_BV.device)
        codes_BN = torch.searchsorted(log_p_BV.exp().cumsum(dim=1), uniform_BN).clamp(max=self.codebook_size - 1)
        if given_BN is not None:
            codes_BN = torch.where(given_BN == MASKED_CODE, codes_BN, given_BN)
        yield DrawnCodes(codes_BN)

    def loss(self, codes_BN: Tensor, condition: Condition, *, noise: Noise) -> Losses:
        return Losses(-self.log_p_BV(condition).gather(1, codes_BN).mean())


@hookimpl
def mixar_parts() -> list[Part]:
    return [
        Part("conditioner", "toy-text", ToyText, ToyTextConfig),
        Part("prior", "toy-reader", ToyReader, ToyReaderConfig),
    ]
