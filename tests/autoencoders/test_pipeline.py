"""A published folder as a pipeline of diffusers: the same bytes, wherever it lies."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import mixar
from mixar.card import card
from mixar.publish import publish
from mixar_core import UserError
from mixar_diffusers.pipeline import MixARModel, MixARPipeline
from tests.weights.hub_stand_in import COMMIT, serve

#: what a person writes, in a process that has never seen the folder; the arguments: a folder or name, custom_pipeline
PIPE = """
import sys, torch
from diffusers import DiffusionPipeline
more = {"custom_pipeline": sys.argv[2]} if sys.argv[2] else {}
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True, **more)
pipe.set_progress_bar_config(disable=True)
drawn = pipe(class_labels=["cat", "owl"], generator=torch.Generator().manual_seed(3), output_type="pt")
torch.save(drawn.images, sys.argv[3])
"""


@pytest.fixture(scope="module")
def folder(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Published, and moved to where nothing else is."""
    place = tmp_path_factory.mktemp("published")
    publish(family / "models/mixar", place / "there", device="cpu")
    return Path(shutil.move(place / "there", tmp_path_factory.mktemp("elsewhere") / "moved"))


@pytest.fixture(scope="module")
def pipe(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> MixARPipeline:
    import diffusers
    from diffusers.utils import dynamic_modules_utils

    with pytest.MonkeyPatch.context() as patch:  # where diffusers copies the two files that it imports
        patch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        patch.setattr(sys, "path", [*sys.path])
        made = diffusers.DiffusionPipeline.from_pretrained(folder, custom_pipeline=str(folder), trust_remote_code=True)
    made.set_progress_bar_config(disable=True)
    assert isinstance(made, MixARPipeline)
    return made


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_it_draws_what_the_model_draws(folder: Path, pipe: MixARPipeline) -> None:
    model = mixar.load(folder, device="cpu")
    ours = model.generate(["cat", "cat", "owl", "owl"], seed=3, steps=2, cfg=2.0, temperature=0.5)
    asked: dict[str, Any] = {"num_images_per_prompt": 2, "num_inference_steps": 2, "guidance_scale": 2.0}
    for source in ({"seed": 3}, {"generator": seeded(3)}):
        drawn = pipe(["cat", "owl"], **asked, temperature=0.5, **source)
        assert [numpy.asarray(image).tolist() for image in drawn.images] == ours.images.permute(0, 2, 3, 1).tolist()
    assert list(pipe.components) == ["model"]
    assert torch.equal(pipe(0, seed=4, output_type="pt").images * 255, model.generate(0, seed=4).images.float())
    (array,) = pipe(class_labels=1, seed=4, output_type="np", return_dict=False)
    assert array.shape == (1, *ours.images.shape[2:], 3) and 0 <= array.min() < array.max() <= 1


def test_a_generator_goes_on_and_no_seed_is_torchs(pipe: MixARPipeline) -> None:
    generator = seeded(3)
    first, second = (pipe(0, generator=generator, output_type="pt").images for _ in range(2))
    assert torch.equal(first, pipe(0, seed=3, output_type="pt").images) and not torch.equal(first, second)
    again = seeded(3)
    repeated = [pipe(0, generator=again, output_type="pt").images for _ in range(2)]
    assert torch.equal(repeated[1], second)
    for _ in range(2):
        torch.manual_seed(5)
        repeated.append(pipe(0, output_type="pt").images)
    assert torch.equal(repeated[2], repeated[3])


def test_device_and_numbers(folder: Path, pipe: MixARPipeline, capsys: pytest.CaptureFixture[str]) -> None:
    assert pipe.to("cpu") is pipe and pipe.device == torch.device("cpu") and pipe.dtype == torch.float32
    component = MixARModel.from_pretrained(str(folder / "model"), torch_dtype=torch.bfloat16)
    half = MixARPipeline(component)
    expected = mixar.load(folder, device="cpu", precision="bf16").generate(2, seed=1).images
    assert half.dtype == torch.bfloat16 and torch.equal(
        half(2, seed=1, output_type="pt").images * 255, expected.float()
    )
    assert "%|" in capsys.readouterr().err  # its bar is shown where nobody turned it off
    whole = mixar.load(folder, device="cpu").generate(2, seed=1).images
    half.set_progress_bar_config(disable=True)
    assert torch.equal(half.to(torch.float32)(2, seed=1, output_type="pt").images * 255, whole.float())
    with pytest.raises(UserError, match="cuda:77"):
        half.to("cuda:77")
    for changed_elsewhere in (component.half, component.bfloat16, component.cuda):
        with pytest.raises(UserError, match="is moved and cast by `to` alone"):
            changed_elsewhere()
    assert half.device == torch.device("cpu")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"class_labels": "dragon"}, "dragon"),
        ({"output_type": "latent"}, "allowed: pil, np, pt"),
        ({"num_images_per_prompt": 0}, "not a whole number from 1 on"),
        ({"num_inference_steps": 0}, "steps"),
        ({"generator": [torch.Generator()]}, "one torch.Generator for all images"),
        ({"generator": torch.Generator(), "seed": 1}, "give one of them"),
    ],
)
def test_what_it_cannot_do_is_refused(pipe: MixARPipeline, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        pipe(**asked)


def test_other_numbers_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"allowed: torch.float32, torch.bfloat16"):
        MixARModel.from_pretrained(str(folder / "model"), torch_dtype=torch.float16)


def test_saving_is_publishing(pipe: MixARPipeline, folder: Path, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "again")
    files = sorted(file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    assert files == sorted(file.relative_to(tmp_path / "again") for file in (tmp_path / "again").rglob("*.*"))
    assert (tmp_path / "again/weights.safetensors").read_bytes() == (folder / "weights.safetensors").read_bytes()
    with pytest.raises(UserError, match="not of the form hf://owner/name"):
        pipe.push_to_hub("alone")


def test_a_model_that_draws_nothing_is_no_pipeline(family: Path, tmp_path: Path) -> None:
    publish(family / "models/continuous", tmp_path / "tokenizer", device="cpu")
    assert not (tmp_path / "tokenizer/model_index.json").exists() and not list((tmp_path / "tokenizer").rglob("*.py"))
    named = "`continuous_tokenizer: {weights: ./tokenizer}`"
    assert named in (tmp_path / "tokenizer/README.md").read_text()


def test_a_card_names_repository_and_revision_as_diffusers_does(folder: Path) -> None:
    model = mixar.load(folder, device="cpu")
    assert "from_pretrained('me/mine', revision='v1', trust" in card(model, folder, name="hf://me/mine@v1")
    assert "from_pretrained('me/mine', trust" in card(model, folder, name="hf://me/mine")


def piped(name: str, custom: str, out: Path, **environment: str) -> torch.Tensor:
    command = [sys.executable, "-c", PIPE, name, custom, str(out)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    images: torch.Tensor = torch.load(out, weights_only=True)
    return images


@pytest.mark.slow
def test_in_a_process_of_its_own_by_every_way_to_name_it(folder: Path, tmp_path: Path) -> None:
    ours = mixar.load(folder, device="cpu").generate(["cat", "owl"], seed=3).images / 255
    environment = {
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": "hf_none",
        "HF_HUB_DISABLE_XET": "1",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    for count, custom in enumerate((str(folder), "pipeline", "")):
        drawn = piped(str(folder), custom, tmp_path / f"{count}.pt", **environment, HF_HUB_OFFLINE="1")
        assert torch.equal(drawn, ours)
    told = (folder / "README.md").read_text()
    for block in re.findall(r"```python\n(.*?)```", told, flags=re.S):  # written for a folder `there`
        code = block.replace("./there", str(folder))
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env={**os.environ, **environment}, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "drawn.png").is_file()
        (tmp_path / "drawn.png").unlink()
    assert "DiffusionPipeline" in block
    files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert json.loads(files["model_index.json"])["_class_name"] == ["pipeline", "MixARPipeline"]
    with serve("me/mine", files) as (endpoint, asked):
        drawn = piped("me/mine", "me/mine", tmp_path / "hub.pt", **environment, HF_ENDPOINT=endpoint)
        assert any(COMMIT in line for line in asked)
    assert torch.equal(drawn, ours)
