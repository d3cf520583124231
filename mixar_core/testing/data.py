"""Contracts of data sets, feature extractors and callbacks."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mixar_core.data.dataset import ImageDataset, ImageStream
from mixar_core.errors import UserError
from mixar_core.perceptual import FeatureExtractor
from mixar_core.testing.common import (
    BATCH,
    check_gradients,
    check_module,
    expect,
    expect_equal,
    expect_error,
    expect_tensor,
    measured,
    normal,
    topic,
    unchanged,
)
from mixar_core.training.callback import Callback, RunInfo, StepReport
from mixar_core.types import NO_CLASS, Grid, ImageSize


def check_dataset(data: ImageDataset, *, image_size: ImageSize) -> None:
    """Raise AssertionError where a data set breaks its contract.

    Args:
        data: an opened split with at least one image, cropped to `image_size`.
    """
    if data.stream is not None:
        _check_stream(data, data.stream)
        return
    topic("sizes, labels and notes")
    size, labels = len(data), data.labels()
    expect(size > 0, "it has no image, and so cannot be checked")
    expect(all(note and "\n" not in note for note in data.notes), f"notes are not lines of text: {data.notes}")
    expect(len(labels) == size, f"labels() has {len(labels)} entries for {size} images")
    expect(all(type(label) is int for label in labels), "labels() holds something else than int")
    allowed = _allowed_labels(data)
    expect(set(labels) <= set(allowed), f"labels() holds {sorted(set(labels) - set(allowed))[:3]}")
    expect_error(IndexError, lambda: data[size], "an index behind the end")
    topic("images, repeatable and after pickling")
    measured("an image", lambda: data[0])
    copy = pickle.loads(pickle.dumps(data))
    expect(len(copy) == size and copy.labels() == labels, "it does not survive pickling into loader workers")
    for index in sorted({0, size // 2, size - 1}):
        image, label = data[index]
        pixels = Grid.of_pixels(image_size)
        shape = (3, pixels.height, pixels.width)
        expect_tensor(f"image {index}", image, shape, dtype=torch.uint8)
        expect(type(label) is int and label == labels[index], f"image {index} has label {label}, not {labels[index]}")
        before = image.clone()
        image.zero_()
        expect(torch.equal(data[index][0], before), f"image {index} changes: it is no copy, or is not repeatable")
        expect(torch.equal(copy[index][0], before), f"image {index} is another one after pickling")
        if (stored := data.encoded(index)) is not None:
            same = stored.label == label and torch.equal(stored.pixels(image_size), before)
            expect(same, f"encoded({index}) is another image than the one at {index}")


def _check_stream(data: ImageDataset, stream: ImageStream) -> None:
    topic("images of a stream")
    images = list(stream)
    expect(bool(images), "it has no image, and so cannot be checked")
    expect([image.data for image in stream] == [image.data for image in images], "a second pass has another order")
    allowed = _allowed_labels(data)
    for image in images:
        expect(type(image.data) is bytes and bool(image.where), f"{image} has no bytes, or no name for errors")
        expect(type(image.label) is int and image.label in allowed, f"{image.where} has label {image.label}")
    for what, access in (("len", lambda: len(data)), ("an image", lambda: data[0]), ("labels", lambda: data.labels())):
        expect_error(UserError, access, f"{what} of a stream")


def _allowed_labels(data: ImageDataset) -> Sequence[int]:
    expect(len(data.class_names) == data.num_classes, "class_names has not one name a class")
    return range(data.num_classes) if data.num_classes else (NO_CLASS,)


def check_extractor(make: Callable[[], FeatureExtractor]) -> None:
    """Raise AssertionError where a feature extractor breaks its contract.

    Args:
        make: builds one, weights and all.
    """

    def exercise(module: FeatureExtractor, device: str) -> dict[str, Tensor]:
        found = {}
        for side in (32, 64):
            images_B3HW = normal(BATCH, 3, side, side, device=device).clamp(-1.0, 1.0)
            with unchanged(images_B3HW=images_B3HW):
                found[f"features at {side}"] = module(images_B3HW)
                found |= {f"map {index} at {side}": m for index, m in enumerate(module.maps(images_B3HW))}
        return found

    extractor, found = check_module(make, exercise, on_meta=False, autocast=False)
    images_B3HW = normal(BATCH, 3, 64, 64).clamp(-1.0, 1.0)
    with torch.no_grad():
        outputs = extractor.outputs(images_B3HW)
    for side in (32, 64):
        expect_tensor(f"features at {side}", found[f"features at {side}"], (BATCH, extractor.feature_dim))
    topic("features, logits and maps")
    in_one = {"features at 64": outputs.features_BF}
    expect_equal("outputs gives other features than forward", in_one, found, rtol=1e-5)
    if outputs.logits_BL is None:
        expect(extractor.logit_dim == 0, f"logit_dim is {extractor.logit_dim}, and outputs gives no logits")
    else:
        expect_tensor("logits", outputs.logits_BL, (BATCH, extractor.logit_dim))
    expect(extractor.identity == make().identity, "its identity changes though it is the same")
    maps = [tensor for name, tensor in found.items() if name.startswith("map") and name.endswith("64")]
    expect(bool(maps), "maps returns none")
    for index, tensor in enumerate(maps):
        expect_tensor(f"map {index}", tensor, (BATCH, *tensor.shape[1:]))
        expect(tensor.dim() == 4, f"map {index} has {tensor.dim()} dimensions, not 4")
    heights = [tensor.shape[2] for tensor in maps]
    expect(heights == sorted(heights, reverse=True), f"maps are not from shallow to deep: heights {heights}")

    topic("frozen")
    trained = [name for name, parameter in extractor.named_parameters() if parameter.requires_grad]
    expect(not trained, f"it is not frozen: {', '.join(trained[:3])}")
    topic("batch independence")
    first = {"features": extractor(images_B3HW[:1])}
    together = {"features": found["features at 64"][:1]}
    expect_equal("an image depends on what shares its batch", first, together, rtol=1e-3)
    topic("under bf16 autocast")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expect_tensor("features under autocast", extractor(images_B3HW[:1]), (1, extractor.feature_dim))
    images_B3HW.requires_grad_()
    squares = [tensor.float().square().mean() for tensor in extractor.maps(images_B3HW)]
    check_gradients(extractor, torch.stack(squares).sum(), images_B3HW)


def check_callback(make: Callable[[], Callback], folder: Path) -> None:
    """Raise AssertionError where a callback breaks its contract: it lives through a run and leaves it as it is.

    Args:
        make: builds one.
        folder: an empty folder to write into, the run's.
    """
    pictures = {"samples": normal(BATCH, 3, 8, 8).clamp(-1.0, 1.0)}
    run = RunInfo(name="contract", folder=folder, steps=2, batch_size=BATCH, first_step=0)
    callback = make()
    before = torch.get_rng_state()
    topic("a run with it")
    with unchanged(**pictures):
        callback.on_start(run)
        for step in (1, 2):
            report = StepReport(
                step=step,
                losses={"loss": 1.0 / step},
                learning_rate=1e-4,
                gradient_norm=1.0,
                images_per_second=10.0,
                seconds_left=1.0,
                waiting_share=0.1,
            )
            callback.on_step(run, report)
        callback.on_evaluation(run, 2, {"loss": 0.5})
        callback.on_preview(run, 2, pictures)
        callback.on_checkpoint(run, 2, folder / "checkpoint")
        callback.on_end(run, 2)
    topic("random numbers")
    expect(torch.equal(before, torch.get_rng_state()), "it draws from torch's global generator: the run would change")
