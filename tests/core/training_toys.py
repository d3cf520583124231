"""The smallest data set and objective that the trainer takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixar_core.data.dataset import ImageDataset
from mixar_core.discriminator import Discriminator
from mixar_core.errors import UserError
from mixar_core.noise import Noise
from mixar_core.tokenizer import ContinuousTokenizer
from mixar_core.training.adversarial import AdversarialConfig, Adversary
from mixar_core.training.objective import Objective
from mixar_core.training.reconstruction import ContinuousReconstruction, ReconstructionConfig
from mixar_core.training.settings import TrainingConfig
from mixar_core.training.trainer import Result, train
from mixar_core.types import ImageBatch, Losses, Posterior


class ToyImages(ImageDataset):
    """Images of noise, each its own; `broken` cannot be read."""

    num_classes = 5
    class_names = tuple("abcde")

    def __init__(self, count: int = 20, *, image_size: int = 16, broken: int | None = None) -> None:
        self.count, self.image_size, self.broken = count, image_size, broken

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == self.broken:
            raise UserError(f"image {index} cannot be read")
        size = (3, self.image_size, self.image_size)
        pixels = torch.randint(0, 256, size, generator=torch.Generator().manual_seed(index), dtype=torch.uint8)
        return pixels, index % self.num_classes

    def labels(self) -> list[int]:
        return [index % self.num_classes for index in range(self.count)]


class ToyNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(48, 8), nn.GELU(), nn.Dropout(0.1))
        self.head = nn.Linear(8, 3)
        self.register_buffer("seen", torch.zeros(()))


class ToyObjective(Objective):
    """The mean colour of noisy pooled pixels; the loss is not a number from step `bad_step` on."""

    takes_tokens = False
    finish_images = 1000

    def __init__(self, bad_step: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.trained = self.net = ToyNet()
        self.net.body[2].p = dropout
        self.bad_step = bad_step

    def forward(self, batch: ImageBatch, *, step: int, steps: int, noise: Noise) -> Losses:
        images = batch.images_B3HW
        pooled = F.adaptive_avg_pool2d(images, 4)
        pooled = pooled + noise.normal(pooled.shape, pooled.device)
        loss = F.mse_loss(self.net.head(self.net.body(pooled.flatten(1))), images.mean((2, 3))) * 100
        if step == self.bad_step:
            loss = loss * float("nan")
        return Losses(loss, {"share": noise.uniform((len(batch),), images.device).mean()})

    def preview(self, images: ImageBatch, *, noise: Noise) -> Mapping[str, Tensor]:
        return {"real": images.images_B3HW, "weight": self.net.head.weight.detach().clone()[None, :, None, :]}

    def finish(self, batches, reduce) -> None:
        seen = reduce(torch.tensor(float(sum(rows for _, rows in batches))))
        self.net.seen.fill_(seen + self.net.head.bias.sum().item())


class ToyJudge(Discriminator):
    """Judges patches of 8 pixels; with a batch norm that keeps statistics."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8), nn.LeakyReLU(0.2), nn.Conv2d(8, 1, 2, stride=2)
        )

    def forward(self, images_B3HW: Tensor) -> Tensor:
        return self.layers(images_B3HW)


class ToyAutoencoder(ContinuousTokenizer):
    """Four by four tokens of 3 channels, made by one convolution and decoded by another."""

    def __init__(self) -> None:
        super().__init__(image_size=16, stride=4, latent_channels=3)
        torch.manual_seed(2)
        self.inner, self.outer = nn.Conv2d(3, 6, 4, stride=4), nn.ConvTranspose2d(3, 3, 4, stride=4)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.outer.weight

    def posterior(self, images_B3HW: Tensor) -> Posterior:
        return Posterior(*self.inner(images_B3HW).chunk(2, dim=1))

    def decode_raw(self, latents_BChw: Tensor) -> Tensor:
        return self.outer(latents_BChw)


def against_a_judge(**settings) -> ContinuousReconstruction:
    """An autoencoder trained against a discriminator."""
    adversary = Adversary(ToyJudge(), AdversarialConfig(**({"lecam_weight": 0.1, "lecam_decay": 0.9} | settings)))
    return ContinuousReconstruction(ToyAutoencoder(), None, ReconstructionConfig(), adversary)


def toy_config(**settings) -> TrainingConfig:
    defaults = {"steps": 6, "batch_size": 8, "learning_rate": 1e-2, "learning_rate_per": None, "log_every": 1}
    return TrainingConfig(**(defaults | settings))


def toy_run(folder: Path, *, objective: Objective | None = None, validation=None, callbacks=(), **settings) -> Result:
    resume, optimizer = settings.pop("resume", False), settings.pop("optimizer", None)
    return train(
        objective or ToyObjective(),
        settings.pop("data", ToyImages()),
        validation,
        toy_config(**settings),
        folder,
        callbacks=callbacks,
        optimizer=optimizer,
        resume=resume,
        device="cpu",
    )
