"""Assembly: the papers' sizes, what does not fit is named with both values, nothing is loaded loosely."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from mixar.assembly import build, counted_data, open_data
from mixar.folder import read_tensors
from mixar.plugins import Registry
from mixar.recipe import load_recipe
from mixar_core.errors import UserError
from mixar_core.types import DrawnCodes


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("mar_b", 207.9),
        ("mar_l", 478.3),
        ("mar_h", 942.4),
        ("acdit_xl", 674.857),
        ("acdit_h", 950.960),
        ("mar_b_detok", 207.9),
        ("mar_l_detok", 478.3),
        ("mixar_l_detok", 556.9),
        ("ear_b", 205.609),
        ("ear_l", 474.755),
        ("ear_h", 937.315),
        # the lists of tensors, less what is computed: the mask and rotary frequencies
        ("flowar_s", 171.834577 - 0.116453),
        ("flowar_l", 586.979833 - 0.116921),
        ("flowar_h", 1913.434265 - 0.117385),
        ("mixar_b", 208.0),
        ("mixar_l", 557.0),
        ("mixar_l_dc_sa", 574.0),
        ("mixar_l_dc_ca", 708.5),
        ("kl16", 66.456),
        ("va_vae", 69.836),
        ("maskbit_generator_14bit", 304.929),
    ],
)
def test_sizes_are_the_papers_and_cost_no_memory(registry: Registry, name: str, millions: float) -> None:
    system = build(load_recipe(name, registry=registry), registry, meta=True)
    assert system.parameters / 1e6 == pytest.approx(millions, rel=1e-3)
    assert all(tensor.is_meta for tensor in system.trained.parameters())


@pytest.mark.parametrize(
    ("overrides", "one", "other"),
    [
        (["image_size=250"], "stride 16", "250"),
        (["backbone.patch_size=2"], "grid 8x8 (after patch_size 2)", "grid 16x16"),
        (["backbone.patch_size=3"], "grid 16x16", "patch_size 3"),
        (["discrete_tokenizer.bits=12"], "14", "4096"),
        (["discrete_tokenizer=null"], "prior", "discrete_tokenizer"),
        (["discrete_tokenizer=null", "prior=null"], "dc-mix", "discrete_tokenizer"),
        (["prior=null"], "ti_mix", "prior"),
        (["discrete_tokenizer.channel_multipliers=[1, 1, 2, 4]", "prior=null"], "grid 16x16", "grid 32x32"),
        (["prior.stride=8"], "8", "16"),
        (["backbone.width=8", "backbone.heads=2"], "14", "8"),
        (["backbone={type: causal}", "head={type: joint}"], "backbone (causal)", "head (joint)"),
    ],
)
def test_two_parts_that_do_not_fit_are_named_with_both_values(
    registry: Registry, overrides: list[str], one: str, other: str
) -> None:
    with pytest.raises(UserError) as caught:
        build(load_recipe("mixar_l", registry=registry, overrides=overrides), registry, meta=True)
    assert one in str(caught.value) and other in str(caught.value) and "\n" not in str(caught.value)


def test_a_prior_of_other_classes_or_other_codes_is_refused(family: Path, registry: Registry, tmp_path: Path) -> None:
    mixar = family / "recipes/mixar.yaml"
    with pytest.raises(UserError, match="num_classes 3 against 4"):
        build(load_recipe(mixar, registry=registry, overrides=["num_classes=4"]), registry, meta=True)
    with pytest.raises(UserError, match="image_size 16 against 32"):
        build(load_recipe(mixar, registry=registry, overrides=["image_size=32"]), registry, meta=True)
    other = tmp_path / "discrete"
    other.mkdir()
    for name in ("recipe.yaml", "weights.safetensors"):
        (other / name).write_bytes((family / "models/discrete" / name).read_bytes())
    recipe = load_recipe(mixar, registry=registry, overrides=[f"discrete_tokenizer.weights={other}"])
    assert build(recipe, registry, meta=True)  # a copy gives the same codes
    data = bytearray((other / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (other / "weights.safetensors").write_bytes(data)
    with pytest.raises(UserError, match=r"codes of .* against codes of"):
        build(recipe, registry, meta=True)


def test_frozen_parts_get_their_weights_and_no_gradient(family: Path, registry: Registry) -> None:
    system = build(load_recipe(family / "recipes/mixar.yaml", registry=registry), registry)
    assert system.model is not None and system.prior is not None
    stored = read_tensors(family / "models/prior/weights.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in system.prior.state_dict().items())
    trained = {id(parameter) for parameter in system.trained.parameters()}
    assert all(parameter.requires_grad == (id(parameter) in trained) for parameter in system.model.parameters())
    assert system.parameters == sum(
        parameter.numel() for parameter in system.model.parameters() if parameter.requires_grad
    )


def test_an_injector_is_as_wide_as_where_its_guidance_goes(registry: Registry) -> None:
    overrides = ["backbone.decoder_width=512", "backbone.decoder_heads=8", "prior=null", "ti_mix.schedule=constant"]
    for injector, width in (("dc-mix", 512), ("dc-sa", 1024)):
        recipe = load_recipe("mixar_l", registry=registry, overrides=[*overrides, f"injector.type={injector}"])
        model = build(recipe, registry, meta=True).model
        assert model is not None
        codes_BN = torch.zeros(1, 256, dtype=torch.int64, device="meta")
        guidance = model.guidance(DrawnCodes(codes_BN))
        (door,) = [d for d in (guidance.fill_BND, guidance.prefix_BPD) if d is not None]
        assert door.shape[-1] == width


def test_data_of_another_number_of_classes_are_refused(family: Path, registry: Registry) -> None:
    base = family / "recipes/continuous.yaml"
    assert len(open_data(load_recipe(base, registry=registry), registry, "train")) == 9
    assert "9 training images of 3 classes" in counted_data(load_recipe(base, registry=registry), registry)[0]
    wrong = load_recipe(base, registry=registry, overrides=["num_classes=4"])
    with pytest.raises(UserError, match="3 classes against 4"):
        open_data(wrong, registry, "train")
    with pytest.raises(UserError, match="3 classes against 4"):
        counted_data(wrong, registry)[0]
    unconditional = load_recipe(base, registry=registry, overrides=["num_classes=0"])
    assert open_data(unconditional, registry, "train")
    absent = load_recipe(base, registry=registry, overrides=["data.path=/nowhere"])
    assert "cannot be opened here" in counted_data(absent, registry)[0]


def folder_of_classes(folder: Path, *classes: str) -> Path:
    """An image folder with a training image of every class, and a validation image."""
    for split in ("train", "val"):
        for name in classes:
            (folder / split / name).mkdir(parents=True)
            Image.new("RGB", (16, 16)).save(folder / split / name / "0.png")
    return folder


def test_a_frozen_priors_classes_are_those_of_the_data_by_name(
    family: Path, registry: Registry, tmp_path: Path
) -> None:
    def told(*overrides: str) -> str:
        return counted_data(load_recipe(family / "recipes/mixar.yaml", overrides, registry=registry), registry)[0]

    assert told() == "9 training images of 3 classes (image-folder)"
    other = f"data.path={folder_of_classes(tmp_path / 'other', 'cat', 'cow', 'dog')}"
    with pytest.raises(UserError, match=r'prior \(maskbit, .*same classes: class 1 is "cow" against "dog"; .*accept'):
        told(other)
    assert "3 classes" in told(other, "accept_other_classes=true")
    assert "3 classes" in told(other, "num_classes=0")  # labels are not used
    numbered = f"data.path={folder_of_classes(tmp_path / 'numbers', '0', '1', '2')}"
    assert "note: only one of data (train) and prior (maskbit, " in told(numbered)
    assert 'names its classes: label 0 is "0" and "cat"; see' in told(numbered)
    assert "note" not in told(numbered, "accept_other_classes=true")


def test_what_data_leave_out_is_told(family: Path, registry: Registry, tmp_path: Path) -> None:
    folder = folder_of_classes(tmp_path / "data", "cat", "dog", "owl")
    (folder / "train/dog/0.png").unlink()
    (folder / "val/cat/notes.xyz").touch()
    base = [f"data.path={folder}", "training.evaluate_every=0"]
    first, note = counted_data(load_recipe(family / "recipes/mixar.yaml", base, registry=registry), registry)[
        0
    ].splitlines()
    assert first == "2 training images of 3 classes (image-folder)" and "dog" in note
    measured = load_recipe(family / "recipes/mixar.yaml", [*base, "training.evaluate_every=1"], registry=registry)
    assert "notes.xyz" in counted_data(measured, registry)[0]


def test_weights_that_are_gone_are_named_with_their_key(family: Path, registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "tok").symlink_to(family / "models/continuous")
    named = [f"continuous_tokenizer.weights={tmp_path / 'tok'}"]
    recipe = load_recipe(family / "recipes/mixar.yaml", named, registry=registry)
    (tmp_path / "tok").unlink()
    with pytest.raises(UserError, match=rf"mixar: continuous_tokenizer\.weights: model {tmp_path}/tok: no such folder"):
        build(recipe, registry)


def test_a_check_goes_on_without_a_validation_split(family: Path, registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "train/0.png")
    changes = (f"data.path={tmp_path}", "num_classes=0", "training.evaluate_every=1")
    path = family / "recipes/continuous.yaml"
    size, note = counted_data(load_recipe(path, changes, registry=registry), registry)[0].splitlines()
    assert size.startswith("1 training images") and note.startswith("note: validation cannot be opened here: ")
    assert note.endswith("training.evaluate_every=0 does without")


def test_a_backbone_without_masks_takes_no_mask_ratios(registry: Registry) -> None:
    causal = ["backbone={type: causal, width: 16, depth: 1, heads: 2}", "injector={type: none}", "prior=null"]
    with pytest.raises(
        UserError, match=r"masking: backbone \(causal\) predicts every token in each pass; set masking=null"
    ):
        build(load_recipe("digits", [*causal, "ti_mix=null", "masking.ratio_min=0.5"], registry=registry), meta=True)
    system = build(load_recipe("digits", [*causal, "ti_mix=null", "masking=null"], registry=registry), meta=True)
    assert system.model is not None and not system.model.backbone.masks


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("digits_mixture", {"sampling.head_steps": 5}, r"head \(mixture\): sampling.head_steps: 5; .* in one go"),
        ("digits_quick", {"sampling.head_steps": 2000}, r"head \(diffusion\): sampling.head_steps: 2000; .* 2 to 1000"),
        ("digits_mse", {"sampling.temperature": 0.9}, r"head \(mse\): sampling.temperature: 0.9; .* allowed: 0, 1"),
    ],
)
def test_how_a_head_cannot_draw_is_said_before_it_is_trained(
    registry: Registry, name: str, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(UserError, match=f"^recipe {name}: {said}"):
        build(load_recipe(name, changes, registry=registry), registry, meta=True)
