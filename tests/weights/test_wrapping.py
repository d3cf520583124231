"""What trainers put around a good state dict: wrappers' names, entries, averages, and values that are no tensors."""

from __future__ import annotations

import argparse
import datetime
import pathlib
import shlex
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from mixar import strict_yaml
from mixar.folder import read_provenance, read_tensors
from mixar.plugins import Registry
from mixar_core.errors import UserError
from mixar_import.entries import COUNTERS, ENTRIES, WRAPPERS, flatten, state_dicts
from mixar_import.importers import ImporterConfig, KL16Importer
from mixar_import.imports import Imported, fill, import_weights
from mixar_import.published import read_published
from tests.weights.files import weights

GOOD = weights("kl16")
EMA = {name: tensor + 1 for name, tensor in GOOD.items()}


def put(content: object, folder: Path, files: Path, registry: Registry, **options: Any) -> Imported:
    """The content imported as a small KL-16 into `folder / "out"`."""
    torch.save(content, folder / "x.ckpt")
    recipe = str(files / "kl16.yaml")
    return import_weights(
        "kl16", str(folder / "x.ckpt"), folder / "out", registry, recipe=recipe, replace=True, **options
    )


def same(done: Imported, expected: Mapping[str, Tensor]) -> bool:
    found = {name: tensor for name, tensor in done.tensors.items() if not name.startswith("latent_")}
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from(sorted(WRAPPERS)), max_size=2),
    st.lists(st.tuples(st.booleans(), st.sampled_from([*ENTRIES, *sorted(WRAPPERS)])), max_size=4),
    st.booleans(),
)
def test_any_nesting_of_wrappers_imports_to_the_same_tensors(
    files: Path, registry: Registry, around_a_part: list[str], layers: list[tuple[bool, str]], counted: bool
) -> None:
    content: dict[str, Any] = dict(GOOD)
    for name in around_a_part:
        content = {key.replace("encoder.", f"encoder.{name}."): value for key, value in content.items()}
    for is_entry, name in layers:
        content = (
            {name: content, "epoch": 3} if is_entry else {f"{name}.{key}": value for key, value in content.items()}
        )
    if counted:
        content["n_averaged"] = torch.tensor(7)
    importer = KL16Importer(ImporterConfig())
    tensors, _ = flatten(content, where="x.ckpt")
    done = fill(importer, state_dicts(tensors, importer), registry, recipe=str(files / "kl16.yaml"))
    assert same(done, GOOD)
    said = " ".join(done.remarks)
    names = {*around_a_part, *(name for _, name in layers)} - {"model"}
    assert all(name in said for name in (*names, *["n_averaged"][:counted]))


leaves = st.none() | st.integers() | st.text(max_size=3) | st.builds(torch.zeros, st.sampled_from([(), (2,), (0,)]))
names = st.sampled_from([*ENTRIES[:3], "ema", "a", "a.b", "module.a", "module", ".", "", "optimizer", 3])


@settings(max_examples=200, deadline=None)
@given(st.recursive(leaves, lambda inner: st.dictionaries(names, inner, max_size=4) | st.lists(inner, max_size=2)))
def test_of_any_content_each_tensor_is_found_or_the_file_is_refused(content: Any) -> None:
    def tensors_in(value: Any) -> list[Tensor]:
        if isinstance(value, Tensor):
            return [value]
        named = value.items() if isinstance(value, dict) else ()
        kept = [v for k, v in named if isinstance(k, str) and not (k == "optimizer" and isinstance(v, dict))]
        return [tensor for inner in kept for tensor in tensors_in(inner)]

    there = tensors_in(content)
    try:
        found, _ = flatten({"x": content}, where="file")
    except UserError as error:
        assert not there or "are called" in str(error)
        return
    assert len(found) == len(there)
    *_, everything = state_dicts(found, KL16Importer(ImporterConfig()))
    assert len(there) - len(everything.tensors) <= sum(name.endswith(tuple(COUNTERS)) for name in found)


def test_the_trials_of_the_field(tmp_path: Path, files: Path, registry: Registry) -> None:
    for prefix in ("", "module.", "_orig_mod.", "module._orig_mod.", "model.", "ema_model.module."):
        done = put({"model": {prefix + name: tensor for name, tensor in GOOD.items()}}, tmp_path, files, registry)
        assert same(done, GOOD) and bool(done.remarks) == bool(prefix)
        assert read_provenance(tmp_path / "out")["remarks"] == list(done.remarks)
    assert same(put({"state_dict": GOOD, "epoch": 3}, tmp_path, files, registry), GOOD)
    assert same(put(GOOD | {"epoch": 3}, tmp_path, files, registry), GOOD)
    assert "left out, because no tensors: epoch" in " ".join(
        put(GOOD | {"epoch": 3}, tmp_path, files, registry).remarks
    )


@pytest.mark.parametrize(("kind", "file"), [("kl16", "kl16.ckpt"), ("vavae", "vavae.pt")])
def test_an_autoencoders_shapes_tell_all_its_sizes(
    kind: str, file: str, tmp_path: Path, files: Path, models: Path, registry: Registry
) -> None:
    done = import_weights(kind, str(files / file), tmp_path / "out", registry, settings=["image_size=32"])
    assert any("of no shipped size: recipe" in remark and "channels=32" in remark for remark in done.remarks)
    own = strict_yaml.load((tmp_path / "out/recipe.yaml").read_text(), where="")
    named = strict_yaml.load((models / kind / "recipe.yaml").read_text(), where="")
    assert own["continuous_tokenizer"] == named["continuous_tokenizer"] and own["image_size"] == 32
    tensors = {name: tensor for name, tensor in GOOD.items() if name != "quant_conv.bias"}
    kl16 = KL16Importer(ImporterConfig())
    with pytest.raises(UserError, match=r"nearest is kl16 with .*channels=32, .* 1 missing: quant_conv\.bias;"):
        fill(kl16, state_dicts(tensors, kl16), registry)


@pytest.mark.parametrize("flat", [False, True])
def test_averages_beside_a_model_are_told_and_can_be_had(
    flat: bool, tmp_path: Path, files: Path, registry: Registry
) -> None:
    content: dict[str, Any] = {"ema": EMA, "model": GOOD, "step": torch.tensor(3)}
    if flat:
        content = {
            "state_dict": {f"{entry}.{name}": t for entry in ("ema", "model") for name, t in content[entry].items()}
        }
    done = put(content, tmp_path, files, registry)
    assert same(done, GOOD)
    assert any(remark.startswith("weights of model; the file also has ema (176)") for remark in done.remarks)
    assert same(put(content, tmp_path, files, registry, entry="ema"), EMA)
    assert read_provenance(tmp_path / "out")["weights"] == "entry ema"
    with pytest.raises(UserError, match=r"x\.ckpt: has no entry emma; it has ema \(176\), model \(176\)"):
        put(content, tmp_path, files, registry, entry="emma")


def test_one_dict_under_two_names_and_a_dict_in_itself(tmp_path: Path, files: Path, registry: Registry) -> None:
    content: dict[str, Any] = {"model": GOOD, "ema": GOOD}
    content["self"] = content
    done = put(content, tmp_path, files, registry)
    assert same(done, GOOD) and "also has ema (176)" in done.remarks[0]
    many: dict[str, Any] = {"t": torch.zeros(1)}
    for _ in range(9):
        many = {f"entry{n}": many for n in range(9)}
    with pytest.raises(UserError, match="is not of"):
        put(many, tmp_path, files, registry)


def test_an_entry_in_the_middle_of_a_larger_model(tmp_path: Path, files: Path, registry: Registry) -> None:
    others = {f"diffusion.{n}.weight": torch.zeros(2) for n in range(3)}
    content = {"state_dict": {f"first_stage.{name}": t for name, t in GOOD.items()} | others}
    with pytest.raises(UserError, match=r"unexpected.*; the file has first_stage\."):
        put(content, tmp_path, files, registry)
    assert same(put(content, tmp_path, files, registry, entry="first_stage"), GOOD)


def test_a_mar_that_was_wrapped_has_its_averages(tmp_path: Path, files: Path, models: Path, registry: Registry) -> None:
    last = {f"module.{name}": tensor for name, tensor in weights("mar", salt="last step").items()}
    averaged = {f"_orig_mod.{name}": tensor for name, tensor in weights("mar").items()}
    torch.save({"checkpoint": {"model": last, "model_ema": averaged}, "epoch": 3}, tmp_path / "x.pth")
    done = import_weights(
        "mar", str(tmp_path / "x.pth"), tmp_path / "mar", registry,
        recipe=str(files / "mar.yaml"), tokenizer=str(models / "kl16"),
    )  # fmt: skip
    assert read_provenance(tmp_path / "mar")["sha256"] == read_provenance(models / "mar")["sha256"]
    assert "taken from the tensors' names: module, _orig_mod, checkpoint" in done.remarks


def test_names_that_would_become_one_stay_two(tmp_path: Path, files: Path, registry: Registry) -> None:
    with pytest.raises(UserError, match="unexpected"):
        put(GOOD | {f"module.{name}": t for name, t in list(EMA.items())[:2]}, tmp_path, files, registry)
    with pytest.raises(UserError, match=r"two tensors that are input_proj\.weight here"):
        registry.part("importer", "maskbit-generator").component.rename(
            {"token_emb.weight": torch.zeros(1), "input_proj.weight": torch.zeros(1)}
        )
    for kind, *names in (
        ("llamagen", "layers.0.attention.wo.weight", "layers.0.attn.proj.weight"),
        ("titok-tokenizer", "encoder.transformer.0.ln_1.bias", "encoder.transformer.0.norm1.bias"),
        ("maskgit-vqgan-tokenizer", "encoder.mid.0.conv1.weight", "encoder.mid.res_blocks.0.conv1.weight"),
    ):
        with pytest.raises(UserError, match=f"has two tensors that are .*, one of them {names[1]}"):
            registry.part("importer", kind).component.rename(dict.fromkeys(names, torch.zeros(1)))


def test_a_recipe_is_found_among_those_shipped(registry: Registry) -> None:
    from tests.weights.test_import import MANIFESTS, read_manifest

    importer = registry.part("importer", "maskbit-generator").component(ImporterConfig())
    found = state_dicts(read_manifest(MANIFESTS / "maskbit_generator_12bit.txt"), importer)
    assert fill(importer, found, registry).system.recipe.name == "maskbit_generator_12bit"
    tensors = dict(read_manifest(MANIFESTS / "kl16.txt"))
    del tensors["quant_conv.bias"]
    kl16 = KL16Importer(ImporterConfig())
    with pytest.raises(UserError, match=r"of no recipe among kl16; nearest is kl16: .* 1 missing: quant_conv\.bias;"):
        fill(kl16, state_dicts(tensors, kl16), registry)


def test_another_recipes_tokenizer_is_told(registry: Registry, tmp_path: Path) -> None:
    from mixar.recipe import load_recipe, to_yaml
    from tests.weights.test_import import MANIFESTS, read_manifest

    (tmp_path / "recipe.yaml").write_text(to_yaml(load_recipe("maskbit_tokenizer_14bit", registry=registry)))
    importer = registry.part("importer", "maskbit-generator").component(ImporterConfig())
    found = state_dicts(read_manifest(MANIFESTS / "maskbit_generator_12bit.txt"), importer)
    with pytest.raises(
        UserError, match=r"recipe maskbit_generator_12bit: .* 4096 codes; the discrete tokenizer has 16384"
    ):
        fill(importer, found, registry, overrides=[f"discrete_tokenizer.weights={tmp_path}"])


@pytest.mark.parametrize(
    "value",
    [
        np.int64(3), np.float32(0.5), np.bool_(True), np.str_("a"), np.arange(3), np.dtype("float32"),
        Path("runs/x"), pathlib.PurePosixPath("x"), pathlib.PureWindowsPath("c:/x"),
        datetime.datetime(2026, 1, 2), datetime.timedelta(seconds=3), torch.torch_version.TorchVersion("2.9.0"),
        argparse.Namespace(a=1), types.SimpleNamespace(b=Path("c")), torch.bfloat16, torch.Size([1]), 1j, {1, 2},
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_plain_values_beside_the_tensors_do_no_harm(value: object, new: bool, tmp_path: Path) -> None:
    content = {"model": {"a.b": torch.ones(2)}, "args": {"value": [value]}}
    torch.save(content, tmp_path / "x.ckpt", _use_new_zipfile_serialization=new)
    read = read_published(tmp_path / "x.ckpt")
    assert torch.equal(read["model"]["a.b"], torch.ones(2))
    if isinstance(value, Path | np.generic | datetime.datetime):
        assert read["args"]["value"][0] == value


@pytest.mark.parametrize(
    "name", [b"pathlib._local\nPosixPath", b"pathlib\nWindowsPath", b"numpy.core.multiarray\nscalar"]
)
def test_names_of_other_systems_and_versions_are_known(name: bytes, tmp_path: Path) -> None:
    torch.save(
        {"model": {"a.b": torch.ones(2)}, "at": Path("x")}, tmp_path / "x.ckpt", _use_new_zipfile_serialization=False
    )
    written = (tmp_path / "x.ckpt").read_bytes()
    if name.startswith(b"numpy"):
        torch.save({"at": np.float64(1)}, tmp_path / "x.ckpt", _use_new_zipfile_serialization=False)
        written = (tmp_path / "x.ckpt").read_bytes()
        old = b"numpy._core.multiarray\nscalar" if b"numpy._core" in written else b"numpy.core.multiarray\nscalar"
    else:
        old = b"pathlib\nPosixPath"
    assert old in written
    (tmp_path / "x.ckpt").write_bytes(written.replace(old, name))
    assert "at" in read_published(tmp_path / "x.ckpt")


class Settings(dict[str, Any]):
    """What a trainer's own code keeps beside weights."""


class Whole(nn.Linear):
    """A model pickled as a whole."""


@pytest.mark.parametrize("what", ["beside", "in the state dict", "whole", "a module in it", "protocol"])
def test_the_way_on_from_a_refusal_can_be_followed_as_printed(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "with space"
    folder.mkdir()
    tensors = {"weight": torch.ones(2, 2), "bias": torch.zeros(2)}
    model = Whole(2, 2)
    model.load_state_dict(tensors)
    content = {
        "beside": {"model": tensors, "hyper": Settings(a=1), "epoch": 3},
        "in the state dict": tensors | {"hyper": Settings(a=1)},
        "whole": model,
        "a module in it": {"model": model, "optimizer": torch.optim.SGD(model.parameters()), "epoch": 3},
        "protocol": {"model": tensors},
    }[what]
    torch.save(content, folder / "it's.ckpt", pickle_protocol=5 if what == "protocol" else 2)
    with pytest.raises(UserError, match=r"docs/weights\.md") as caught:
        read_published(folder / "it's.ckpt")
    _, _, command = str(caught.value).partition(": python -c ")
    (code,) = shlex.split(command)
    monkeypatch.chdir(tmp_path)
    exec(code, {})  # as `python -c` would
    read = read_published(tmp_path / "it's.weights.pt")
    read = read.get("model", read)
    assert all(torch.equal(read[name], tensors[name]) for name in tensors) and "hyper" not in read


def test_a_value_that_is_no_number_is_refused_by_name(tmp_path: Path, files: Path, registry: Registry) -> None:
    for value in (float("nan"), float("inf")):
        tensors = {**GOOD, "decoder.conv_out.bias": torch.tensor([0.0, value, 0.0])}
        with pytest.raises(UserError, match=r"NaN or infinite values in decoder\.conv_out\.bias: "):
            put(tensors, tmp_path, files, registry)
    assert not (tmp_path / "out").exists()


def test_a_format_is_known_by_its_content(tmp_path: Path, files: Path, registry: Registry) -> None:
    save_file(GOOD, tmp_path / "really_safetensors.bin")
    torch.save(GOOD, tmp_path / "really_torch.safetensors")
    for name in ("really_safetensors.bin", "really_torch.safetensors"):
        recipe = str(files / "kl16.yaml")
        import_weights("kl16", str(tmp_path / name), tmp_path / "out", registry, recipe=recipe, replace=True)
        stored = read_tensors(tmp_path / "out/weights.safetensors")
        assert torch.equal(stored["quant_conv.bias"], GOOD["quant_conv.bias"])


def test_the_home_folder_is_meant(
    tmp_path: Path, files: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(files))
    monkeypatch.chdir(tmp_path)
    import_weights("kl16", "~/kl16.ckpt", tmp_path / "out", registry, recipe=str(files / "kl16.yaml"))
    assert (tmp_path / "out/recipe.yaml").is_file()
