"""A folder that `mixar publish` wrote, as a pipeline of diffusers.

    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained("folder", custom_pipeline="folder", trust_remote_code=True)
    pipe(class_labels=["Flags"], generator=torch.Generator().manual_seed(1)).images[0]

The folder's pipeline.py and model/component.py import what is here, and are all the code that it holds.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from torch import nn

from mixar.labels import Labels
from mixar.model import Model, load
from mixar_core.errors import UserError
from mixar_core.types import NO_CLASS

#: precisions of mixar by the numbers that diffusers' `torch_dtype` asks for
PRECISIONS = {None: "float32", torch.float32: "float32", torch.bfloat16: "bf16"}
#: seeds that are drawn are below this
_SEEDS = 2**63 - 1
#: where the hub's cache keeps the files of a commit
_SNAPSHOT = re.compile(r"models--(?P<owner>[^/]+)--(?P<name>[^/]+)/snapshots/(?P<commit>[0-9a-f]+)$")


class MixARModel(nn.Module):
    """The pipeline's one component: a model of mixar's with its frozen parts. `model` is what `mixar.load` gives."""

    model: Model

    def __init__(self, name: str, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.name = name
        self.to("cpu", dtype)

    @classmethod
    def from_pretrained(cls, place: str, *, torch_dtype: torch.dtype | None = None, **_: Any) -> MixARModel:
        """Of a published folder; diffusers gives `model/` in it, and of the hub's files it has fetched some alone.

        Args:
            torch_dtype: float32, or bfloat16, which is `precision="bf16"` of `mixar.load`.

        Raises:
            UserError: as `mixar.load`, or another dtype.
        """
        folder = Path(place).absolute().parent
        at_hub = None if (folder / "recipe.yaml").is_file() else _SNAPSHOT.search(folder.as_posix())
        return cls("hf://{owner}/{name}@{commit}".format(**at_hub.groupdict()) if at_hub else str(folder), torch_dtype)

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> MixARModel:  # type: ignore[override]
        """Load it again, for another device or other numbers: weights are laid out for where they compute."""
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        if dtype not in PRECISIONS:
            raise UserError(f"dtype {dtype}: not known; allowed: torch.float32, torch.bfloat16")
        known = getattr(self, "model", None)
        device = torch.device(device) if device is not None else self.device
        precision = PRECISIONS[dtype] if dtype is not None or known is None else known.precision
        if known is None or (device, precision) != (known.device, known.precision):
            self.model = load(self.name, device=device, precision=precision)  # type: ignore[arg-type]
        return self

    def _apply(self, *_: Any, **__: Any) -> MixARModel:
        """What torch's `half`, `cuda` and the like come to, which would find no weights here and change nothing."""
        raise UserError("a model of mixar's is moved and cast by `to` alone, as to(torch.bfloat16) or to('cuda')")

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """What all but the decoders compute in."""
        return torch.bfloat16 if self.model.precision == "bf16" else torch.float32


class MixARPipeline(DiffusionPipeline):
    """Images of classes, as `mixar.load(folder).generate` draws them: of the same seed the same bytes."""

    model: MixARModel

    def __init__(self, model: MixARModel) -> None:
        super().__init__()
        self.register_modules(model=model)

    def __call__(
        self,
        class_labels: Labels = NO_CLASS,
        *,
        num_images_per_prompt: int = 1,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw; what is None is as the model's recipe says.

        Args:
            class_labels: numbers or names, one or several; NO_CLASS (-1) for no class.
            num_images_per_prompt: images a label.
            num_inference_steps: autoregressive steps. guidance_scale: 1 for none.
            generator: one that was just seeded draws as that `seed` does; one that was used goes on.
            seed: as in `Model.generate`. Neither: of torch's own generator.
            output_type: pil, np (float (B, H, W, 3) in [0, 1]) or pt (float (B, 3, H, W) in [0, 1]).
            return_dict: False: a tuple.

        Raises:
            UserError: as `Model.generate`, or an argument is not one of these.
        """
        if output_type not in ("pil", "np", "pt"):
            raise UserError(f"output_type {output_type!r}: not known; allowed: pil, np, pt")
        if type(num_images_per_prompt) is not int or num_images_per_prompt < 1:
            raise UserError(f"num_images_per_prompt {num_images_per_prompt!r}: not a whole number from 1 on")
        model, bar = self.model.model, None

        def report(done: int, of: int) -> None:
            nonlocal bar
            bar = bar or self.progress_bar(total=of)
            bar.update()

        try:
            drawn = model.generate(
                model.labels(class_labels).repeat_interleave(num_images_per_prompt).tolist(),
                steps=num_inference_steps,
                cfg=guidance_scale,
                temperature=temperature,
                seed=_seed(generator, seed),
                progress=report,
            )
        finally:
            if bar is not None:
                bar.close()
        floats = drawn.images / 255
        images: Any = drawn.pil() if output_type == "pil" else floats
        if output_type == "np":
            images = floats.permute(0, 2, 3, 1).numpy()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def save_pretrained(self, save_directory: str | Path, **settings: Any) -> None:  # type: ignore[override]
        """Write a published folder; settings as `mixar publish` takes them.

        Raises:
            UserError: as `mixar publish`.
        """
        self.model.model.save_pretrained(save_directory, **settings)

    def push_to_hub(self, repo_id: str, **settings: Any) -> str:  # type: ignore[override]
        """Put the same into the hub's repository `owner/name`.

        Raises:
            UserError: as `mixar publish`.
        """
        return self.model.model.push_to_hub(repo_id, **settings)


def _seed(generator: torch.Generator | None, seed: int | None) -> int:
    """The seed asked for. A generator moves on, so that its next call draws something else."""
    if seed is not None:
        if generator is not None:
            raise UserError("generator and seed: give one of them")
        return seed
    if generator is None:
        return int(torch.randint(_SEEDS, ()).item())
    if not isinstance(generator, torch.Generator):
        raise UserError(f"generator is a {type(generator).__name__}; allowed: one torch.Generator for all images")
    fresh = torch.Generator(generator.device).manual_seed(generator.initial_seed())
    unused = torch.equal(fresh.get_state(), generator.get_state())
    drawn = int(torch.randint(_SEEDS, (), generator=generator, device=generator.device).item())
    return generator.initial_seed() if unused else drawn
