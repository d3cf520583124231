"""Files that are not what they should be: one line, exit code 2, nothing executed and nothing written."""

from __future__ import annotations

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mixar.plugins import Registry
from mixar_core.errors import UserError
from mixar_import.imports import import_weights
from mixar_import.published import read_published
from tests.cli.process import good, refused
from tests.weights.files import weights


class Hostile:
    """Unpickled, it would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.folder),)


class Stranger:
    """A type that no file of weights needs."""


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_hostile_file_is_refused_by_the_name_of_what_it_asks_for(form: str, tmp_path: Path) -> None:
    made, file = tmp_path / "made", tmp_path / "checkpoint-last.pth"
    content = {"model_ema": {"a": torch.zeros(2)}, "args": Hostile(made)}
    if form == "pickle":
        file.write_bytes(pickle.dumps(content["args"]))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UserError) as caught:
        read_published(file)
    message = str(caught.value)
    assert "mkdir" in message and "refused" in message and "\n" not in message
    assert not made.exists()


def test_a_type_that_is_not_plain_is_named(tmp_path: Path) -> None:
    torch.save({"a": Stranger()}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"holds a tests\.weights\.test_refusal\.Stranger, which is refused"):
        read_published(tmp_path / "x.pt")


def test_damaged_files_are_one_line(tmp_path: Path, files: Path) -> None:
    whole = (files / "kl16.ckpt").read_bytes()
    archive = tmp_path / "other.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a/b.txt", "no weights")
    damaged = {
        "empty": (b"", "is empty"),
        "truncated": (whole[: len(whole) // 2], "truncated or damaged"),
        "start": (whole[:8], "truncated or damaged"),
        "text": (b"hello world\n" * 20, "no file that torch.save wrote"),
        "page": (b"<!DOCTYPE html><html></html>", "no file that torch.save wrote"),
        "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "no file that torch.save wrote"),
        "zeros": (bytes(1000), "no file that torch.save wrote"),
        "zip": (archive.read_bytes(), "truncated or damaged"),
    }
    for name, (content, expected) in damaged.items():
        (tmp_path / name).write_bytes(content)
        with warnings.catch_warnings(), pytest.raises(UserError) as caught:
            warnings.simplefilter("error")
            read_published(tmp_path / name)
        assert expected in str(caught.value) and "\n" not in str(caught.value), name
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_published(tmp_path / "absent.pt")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_published(tmp_path)


def test_every_tensor_that_does_not_fit_is_listed(tmp_path: Path, files: Path, registry: Registry) -> None:
    tensors = weights("kl16")
    gone = [name for name in tensors if name.startswith("decoder.up.1.block.")]
    for name in gone:
        del tensors[name]
    extra = {f"strange.{index}": torch.zeros(1) for index in range(7)}
    tensors |= extra | {"decoder.conv_out.bias": torch.zeros(4)}
    torch.save({"model": tensors}, tmp_path / "x.ckpt")
    with pytest.raises(UserError) as caught:
        recipe = str(files / "kl16.yaml")
        import_weights("kl16", str(tmp_path / "x.ckpt"), tmp_path / "out", registry, recipe=recipe)
    message = str(caught.value)
    assert f"{len(gone)} missing" in message and "7 unexpected" in message
    assert "..." not in message.partition("; the file has")[0]
    assert all(name in message for name in [*gone, *extra])
    assert "decoder.conv_out.bias (4, not 3)" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.ckpt"]


@pytest.mark.parametrize(
    ("kind", "file", "expected"),
    [
        ("mar", "kl16.ckpt", "has no entry model_ema"),
        (
            "kl16",
            "maskbit_tokenizer.bin",
            r"does not fit \w+: tensors \d+ missing: .*quant_conv\.weight.* unexpected: .*quantize\.codebook",
        ),
        ("kl16", "checkpoint-last.pth", r"missing: latent_mean_C, latent_std_C, encoder\.conv_in\.weight"),
        ("vavae", "latents_stats.pt", r"the file has mean, std, \.\.\."),
        ("maskbit-tokenizer", "vqgan_plus.bin", r"missing: .*quantizer\.codebook.* unexpected"),
        ("vqgan-plus-tokenizer", "maskbit_tokenizer.bin", r"missing: .*quantizer\.embedding\.weight.* unexpected"),
        ("maskbit-generator", "maskgit_generator.bin", r"missing: bits_to_indices, input_proj\.weight"),
        ("maskgit-generator", "maskbit_generator.bin", r"missing: tok_emb_list\.0\.weight"),
    ],
)
def test_a_file_of_another_kind_says_what_is_not_there(
    kind: str, file: str, expected: str, files: Path, models: Path, registry: Registry, tmp_path: Path
) -> None:
    tokenizer = {"mar": "kl16", "maskbit-generator": "maskbit_tokenizer", "maskgit-generator": "maskgit_tokenizer"}
    named = str(models / tokenizer[kind]) if kind in tokenizer else None
    own = {"vqgan-plus-tokenizer": "vqgan_plus"}.get(kind, kind.replace("-", "_"))
    with pytest.raises(UserError) as caught:
        import_weights(
            kind, str(files / file), tmp_path / "out", registry, recipe=str(files / f"{own}.yaml"), tokenizer=named
        )
    assert re.search(expected, str(caught.value))


def test_contents_that_are_no_state_dict_are_named(tmp_path: Path, registry: Registry) -> None:
    for content, expected in (
        ([torch.zeros(1)], "is of type list"),
        ({}, "is an empty dict"),
        ({"model": {"a": 3}}, "'a' is of type int, not a tensor"),
        ({"model": {3: torch.zeros(1)}}, "'3' is of type Tensor"),
        ({"model": {"a": torch.zeros(2).to_sparse()}}, "stored in a way"),
        ({"model": {"a": torch.zeros(2, device="meta")}}, "stored in a way"),
    ):
        torch.save(content, tmp_path / "x.ckpt")
        with pytest.raises(UserError, match=expected):
            import_weights("kl16", str(tmp_path / "x.ckpt"), tmp_path / "out", registry)


def test_absurd_sizes_are_one_line(tmp_path: Path, files: Path, registry: Registry) -> None:
    empty = weights("kl16") | {"encoder.conv_in.weight": torch.zeros(0, 3, 3, 3)}
    huge = weights("kl16") | {"quant_conv.weight": torch.zeros(1).expand(2**40, 2**20, 1, 1)}
    for tensors in (empty, huge):
        torch.save({"model": tensors}, tmp_path / "x.ckpt")
        with pytest.raises(UserError, match=r"x\.ckpt: .*(0x3x3x3, not 32x3x3x3|more than the file holds)"):
            import_weights(
                "kl16", str(tmp_path / "x.ckpt"), tmp_path / "out", registry, recipe=str(files / "kl16.yaml")
            )


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool])
def test_quantised_weights_are_not_taken_for_weights(
    dtype: torch.dtype, tmp_path: Path, files: Path, registry: Registry
) -> None:
    """Whole numbers of a scale that another file, or nobody, says."""
    tensors = {name: (100 * tensor).to(dtype) for name, tensor in weights("kl16").items()}
    torch.save({"model": tensors}, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=rf"of whole numbers: \S+ \({str(dtype)[6:]}\)"):
        import_weights("kl16", str(tmp_path / "x.ckpt"), tmp_path / "out", registry, recipe=str(files / "kl16.yaml"))
    assert not (tmp_path / "out").exists()


def test_the_command_line(files: Path, models: Path, tmp_path: Path) -> None:
    out = tmp_path / "kl16"
    kl16 = ("weights", "import", "kl16", files / "kl16.ckpt")
    small = ("--recipe", files / "kl16.yaml")
    assert "178 tensors" in good(*kl16, out, *small)
    assert "is there already" in refused(*kl16, out, *small)
    assert "178 tensors" in good(*kl16, out, "--force", *small)
    (tmp_path / "else").mkdir()
    (tmp_path / "else/letter.txt").write_text("dear")
    line = refused(*kl16, tmp_path / "else", "--force", *small)
    assert "something else than a model folder" in line and (tmp_path / "else/letter.txt").is_file()
    mar = ("weights", "import", "mar", files / "checkpoint-last.pth", tmp_path / "mar b")
    assert "give the folder of its continuous tokenizer" in refused(*mar)
    line = refused(*mar, "--tokenizer", out)
    assert "nearest is mar_b" in line and "--recipe NAME|PATH" in line and "backbone.mask_token (1x1x48, not" in line
    mar = (*mar, "--recipe", files / "mar.yaml")
    assert "is a model of a discrete_tokenizer" in refused(*mar, "--tokenizer", models / "maskbit_tokenizer")
    assert "heads" in refused(*mar, "--tokenizer", out, "--set", "backbone.haeds=4")
    assert f"mixar sample '{tmp_path / 'mar b'}'" in good(*mar, "--tokenizer", out, "--set", "backbone.heads=4")
    good("sample", tmp_path / "mar b", "--labels", "1", "--steps", "2", "--out", tmp_path / "drawn")
    assert (tmp_path / "drawn/grid.png").is_file()
    assert "one set of weights" in refused(*kl16, tmp_path / "x", "--raw")
    assert "a kl16 takes none" in refused(*kl16, tmp_path / "x", "--statistics", files / "latents_stats.pt")
    assert "vqgan-plus-tokenizer" in good("weights", "kinds")
    assert "unknown importer" in refused("weights", "import", "vea", files / "kl16.ckpt", tmp_path / "x")
    assert "not in the cache" in refused(
        "weights", "import", "kl16", "hf://who/what/kl16.ckpt", tmp_path / "x", "--offline"
    )
    assert "and offline" in refused("--offline", "weights", "import", "kl16", "hf://who/what/kl16.ckpt", tmp_path / "x")
