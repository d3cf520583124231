"""A small classifier of digits: is a drawn digit the one asked for, and how far from real ones do drawn ones lie?

Fitted on the spot, in seconds, rather than shipped: a judge anyone can see made from real digits alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Length F of the feature vectors that distances are taken between.
FEATURES = 64
_BATCH = 50
_PEAK_LR = 4e-3
_SHIFT = 2


class DigitClassifier(nn.Module):
    """Three convolutions and a hidden layer of 64 numbers, on images uint8 (B, 3, 32, 32)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_stage(1, 16, stride=2),
            *_stage(16, 32, stride=2),
            *_stage(32, 64, stride=1),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.25),
            nn.Linear(64 * 4 * 4, FEATURES),
            nn.ReLU(),
        )
        self.top = nn.Linear(FEATURES, 10)
        self.register_buffer("scale", torch.ones(()))
        self.scale: Tensor

    def hidden(self, images_B3HW: Tensor) -> Tensor:
        """The layer before the last, (B, 64)."""
        # Digits are grey: the mean over the channels loses nothing of a real one.
        return self.body(images_B3HW.float().mean(dim=1, keepdim=True) / 127.5 - 1.0)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Logits (B, 10)."""
        return self.top(self.hidden(images_B3HW))

    @torch.no_grad()
    def judge(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted digits (B,), and feature vectors (B, 64) whose root mean square is 1 over the digits fitted on."""
        hidden = torch.cat([self.hidden(part) for part in images_B3HW.split(250)])
        return self.top(hidden).argmax(dim=1), hidden / self.scale


def fit_classifier(images_N3HW: Tensor, labels_N: Tensor, *, epochs: int = 12, seed: int = 0) -> DigitClassifier:
    """A classifier fitted to real digits (uint8), shifted by up to two pixels; the same for the same seed."""
    with torch.random.fork_rng(devices=[]):  # initialisation and dropout draw from the global generator
        torch.manual_seed(seed)
        classifier = DigitClassifier()
        optimizer = torch.optim.AdamW(classifier.parameters(), lr=_PEAK_LR, weight_decay=0.02)
        steps = epochs * (len(images_N3HW) // _BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _PEAK_LR, total_steps=steps)
        for _ in range(epochs):
            order = torch.randperm(len(images_N3HW))
            for rows in order.split(_BATCH)[: len(order) // _BATCH]:
                down, right = torch.randint(-_SHIFT, _SHIFT + 1, (2,)).tolist()
                # What leaves at one edge comes in at the other, where digits have an empty margin.
                images_B3HW = images_N3HW[rows].roll((down, right), dims=(2, 3))
                loss = F.cross_entropy(classifier(images_B3HW), labels_N[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    classifier.eval().requires_grad_(False)
    # A fixed size for distances to be read in, and one at which the kernel distance is neither flat nor all tail.
    classifier.scale.copy_(classifier.judge(images_N3HW)[1].square().mean().sqrt())
    return classifier


def _stage(channels_in: int, channels_out: int, *, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(channels_out), nn.ReLU()]
