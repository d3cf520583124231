"""What is trained is in training mode from the very first step, however it was handed over."""

from __future__ import annotations

from pathlib import Path

import torch

from mixar_core.data.dataset import ImageDataset
from mixar_core.model import SamplingConfig
from mixar_core.training.objective import MixARObjective
from mixar_core.training.settings import TrainingConfig
from mixar_core.training.trainer import train
from tests.toys import small_mixar


class Noisy(ImageDataset):
    """Eight images of noise."""

    num_classes, class_names = 5, tuple("abcde")

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        generator = torch.Generator().manual_seed(index)
        return torch.randint(256, (3, 16, 16), generator=generator, dtype=torch.uint8), index % 5

    def labels(self) -> list[int]:
        return [index % 5 for index in range(8)]


def test_training_mode_from_the_first_step(tmp_path: Path) -> None:
    model = small_mixar("dc-mix").eval()  # as a recipe's parts are built
    seen: list[bool] = []
    model.backbone.register_forward_pre_hook(lambda module, _args: seen.append(module.training))
    objective = MixARObjective(model, SamplingConfig(steps=2))
    train(objective, Noisy(), None, TrainingConfig(steps=2, batch_size=4, warmup_steps=0), tmp_path / "run")
    assert seen == [True, True]
    assert not model.continuous_tokenizer.training
