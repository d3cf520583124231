from __future__ import annotations

import pytest
import torch

from mixar_core.errors import UserError
from mixar_plugins.discriminators.maskbit import Blur, MaskBitDiscriminator, MaskBitDiscriminatorConfig
from mixar_plugins.discriminators.patchgan import PatchGAN, PatchGANConfig


@pytest.mark.parametrize(("layers", "seen"), [(1, 16), (2, 34), (3, 70)])
def test_a_patch_is_as_large_as_the_paper_says(layers: int, seen: int) -> None:
    judge = PatchGAN(PatchGANConfig(channels=2, layers=layers), image_size=128).eval()
    for module in judge.modules():  # without batch norm, by which every pixel matters to every logit
        if isinstance(module, torch.nn.BatchNorm2d):
            module.forward = lambda hidden: hidden  # type: ignore[method-assign]
    images = torch.randn(1, 3, 128, 128, requires_grad=True)
    logits = judge(images)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    assert images.grad is not None
    rows = images.grad.abs().sum((0, 1, 3)).nonzero()
    assert int(rows.max() - rows.min()) + 1 == seen


def test_the_published_sizes() -> None:
    with torch.device("meta"):
        patchgan = PatchGAN(PatchGANConfig(), image_size=256)
        maskbit = MaskBitDiscriminator(MaskBitDiscriminatorConfig(), image_size=256)
        images = torch.zeros(2, 3, 256, 256)
    assert patchgan(images).shape == (2, 1, 30, 30) and maskbit(images).shape == (2, 1, 16, 16)
    widths = [block[0].out_channels for block in maskbit.blocks]
    assert widths == [128, 256, 512, 1024] and not maskbit.state_dict().keys() & {"blocks.0.1.kernel"}


def test_maskbits_judges_images_one_by_one() -> None:
    judge = MaskBitDiscriminator(MaskBitDiscriminatorConfig(channels=8, stages=2), image_size=16).train()
    images = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(judge(images)[1:2], judge(images[1:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [7, 8])
def test_a_blur_halves_and_does_not_alias(size: int) -> None:
    stripes = torch.ones(1, 2, size, size) * torch.tensor([1.0, -1.0]).repeat(4)[:size]
    blurred = Blur()(stripes)
    assert blurred.shape == (1, 2, 4, 4)
    torch.testing.assert_close(blurred[..., 1:-1, 1:-1], torch.zeros(1, 2, 2, 2))
    torch.testing.assert_close(Blur()(torch.ones(1, 2, size, size))[..., 1:-1, 1:-1], torch.ones(1, 2, 2, 2))


def test_images_that_are_too_small_are_refused() -> None:
    assert PatchGAN(PatchGANConfig(channels=2), image_size=(24, 32))(torch.zeros(2, 3, 24, 32)).numel() == 2 * 1 * 2
    with pytest.raises(UserError, match=r"patchgan: image_size \[23, 32\] is too small for 3 layers; least: 24"):
        PatchGAN(PatchGANConfig(), image_size=(23, 32))
    with pytest.raises(UserError, match="maskbit: image_size 8 cannot be halved 4 times"):
        MaskBitDiscriminator(MaskBitDiscriminatorConfig(), image_size=8)
