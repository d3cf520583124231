"""Published files, in small: which recipe they fill, and that what comes out samples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from einops import rearrange
from safetensors.torch import save_file

from mixar import strict_yaml
from mixar.assembly import build
from mixar.folder import read_provenance, read_tensors, save_model, sha256
from mixar.model import load
from mixar.plugins import Registry
from mixar.recipe import load_recipe, make_recipe, to_yaml
from mixar_core.errors import UserError
from mixar_import.continuous import ACDiTImporter
from mixar_import.entries import state_dicts
from mixar_import.importers import Importer, ImporterConfig
from mixar_import.imports import fill, import_weights
from tests.parity.case import read_manifest
from tests.weights.files import weights

MANIFESTS = Path(__file__).parents[1] / "parity" / "manifests"


def plain(folder: Path) -> dict:
    return strict_yaml.load((folder / "recipe.yaml").read_text(), where="")


def test_a_model_folder_says_its_sizes(models: Path) -> None:
    mar = plain(models / "mar")
    assert mar["backbone"].items() >= {"width": 48, "depth": 2, "heads": 4, "buffer": 4, "patch_size": 1}.items()
    assert mar["head"].items() >= {"type": "diffusion", "depth": 2, "width": 40}.items()
    assert (mar["num_classes"], mar["image_size"]) == (10, 16)  # 8 x 8 tokens of the small KL-16's stride, 2
    vavae = plain(models / "vavae")["continuous_tokenizer"]
    assert vavae.items() >= {"latent_channels": 8, "encoder_attention": [2], "decoder_attention": [2]}.items()
    assert plain(models / "kl16")["continuous_tokenizer"]["decoder_attention"] == []
    tokenizer = plain(models / "maskbit_tokenizer")["discrete_tokenizer"]
    assert tokenizer.items() >= {"bits": 6, "channels": 32, "channel_multipliers": [1, 1, 2], "legacy": False}.items()
    prior = plain(models / "maskbit_generator")["prior"]
    assert prior.items() >= {"bits": 6, "splits": 2, "width": 32, "depth": 2, "mlp_dim": 64, "stride": 4}.items()
    assert not prior["prenorm"]
    legacy = plain(models / "maskgit_tokenizer")["discrete_tokenizer"]
    assert legacy.items() >= {"type": "vq", "codebook_size": 64, "legacy": True, "downsample": "conv"}.items()
    assert plain(models / "maskgit_generator")["prior"].items() >= {"type": "maskgit", "bits": 6, "splits": 1}.items()


def test_provenance_says_where_it_is_from(models: Path, files: Path) -> None:
    provenance = read_provenance(models / "mar")
    assert provenance["source"] == {"name": "checkpoint-last.pth", "sha256": sha256(files / "checkpoint-last.pth")}
    assert provenance["weights"] == "averaged"
    assert read_provenance(models / "vavae")["statistics"]["name"] == "latents_stats.pt"


def test_averaged_weights_unless_raw_ones_are_asked_for(
    models: Path, files: Path, registry: Registry, tmp_path: Path
) -> None:
    averaged = read_tensors(models / "mar/weights.safetensors")
    assert torch.equal(averaged["backbone.mask_token"], weights("mar")["mask_token"])
    assert torch.equal(averaged["head.net.cond_embed.weight"], weights("mar")["diffloss.net.cond_embed.weight"])
    out = tmp_path / "raw"
    import_weights(
        "mar", str(files / "checkpoint-last.pth"), out, registry,
        recipe=str(files / "mar.yaml"), tokenizer=str(models / "kl16"), raw=True,
    )  # fmt: skip
    last = read_tensors(out / "weights.safetensors")
    assert torch.equal(last["backbone.mask_token"], weights("mar", salt="last step")["mask_token"])
    assert read_provenance(out)["weights"] == "raw"


def test_statistics_of_latents(models: Path, files: Path, registry: Registry, tmp_path: Path) -> None:
    kl16 = build(
        load_recipe(models / "kl16/recipe.yaml", registry=registry), registry, trained_weights=_weights(models / "kl16")
    )
    assert torch.allclose(kl16.trained.latent_std_C, torch.tensor(1 / 0.2325))
    stored = read_tensors(_weights(models / "vavae"))
    assert torch.equal(stored["latent_mean_C"], torch.arange(8.0))
    assert torch.equal(stored["latent_std_C"], torch.full((8,), 2.0))
    done = import_weights(
        "vavae", str(files / "vavae.pt"), tmp_path / "bare", registry, recipe=str(files / "vavae.yaml")
    )
    assert any("no --statistics given" in remark for remark in done.remarks)
    assert any("2 tensors loss.* dropped" in remark for remark in done.remarks)
    assert not any(name.startswith(("loss", "found", "linear")) for name in stored)


@pytest.mark.parametrize("name", ["mar", "maskbit_generator", "maskgit_generator"])
def test_what_was_imported_samples(name: str, models: Path, registry: Registry) -> None:
    model = load(models / name, device="cpu", registry=registry)
    drawn = model.generate([1, 2], steps=2, cfg=1.5)
    side = model.recipe.image_size
    assert drawn.images.shape == (2, 3, side, side)
    assert torch.equal(drawn.images, model.generate([1, 2], steps=2, cfg=1.5).images)


def test_a_generators_older_name_of_its_input_is_known(
    files: Path, models: Path, registry: Registry, tmp_path: Path
) -> None:
    older = {name.replace("input_proj.", "token_emb."): tensor for name, tensor in weights("maskbit_generator").items()}
    torch.save(older, tmp_path / "older.bin")
    import_weights(
        "maskbit-generator",
        str(tmp_path / "older.bin"),
        tmp_path / "out",
        registry,
        recipe=str(files / "maskbit_generator.yaml"),
        tokenizer=str(models / "maskbit_tokenizer"),
    )
    assert read_provenance(tmp_path / "out")["sha256"] == read_provenance(models / "maskbit_generator")["sha256"]


def test_a_mixar_between_maskbit_and_vavae_samples(models: Path, registry: Registry, tmp_path: Path) -> None:
    recipe = make_recipe(
        {
            "name": "between",
            "trains": "mixar",
            "image_size": 32,
            "num_classes": 10,
            "continuous_tokenizer": {"weights": str(models / "vavae")},
            "discrete_tokenizer": {"weights": str(models / "maskbit_tokenizer")},
            "prior": {"weights": str(models / "maskbit_generator")},
            "injector": {"type": "dc-mix"},
            "head": {"type": "diffusion", "depth": 1, "width": 8, "sampling_steps": 2},
            "backbone": {"width": 8, "depth": 1, "heads": 2, "buffer": 1, "patch_size": 2},
            "sampling": {"steps": 2, "prior_steps": 2},
        },
        registry,
        where="test",
    )
    trained = build(recipe, registry).trained
    save_model(tmp_path / "between", recipe_yaml=to_yaml(recipe), tensors=trained.state_dict())
    drawn = load(tmp_path / "between", device="cpu", registry=registry).generate([3])
    assert drawn.images.shape == (1, 3, 32, 32)
    assert drawn.codes is not None and drawn.codes.shape == (1, 64)


def test_a_bare_state_dict_in_safetensors_is_the_same(
    files: Path, models: Path, registry: Registry, tmp_path: Path
) -> None:
    save_file(weights("mar"), tmp_path / "mar.safetensors")
    out, named = tmp_path / "mar", {"recipe": str(files / "mar.yaml"), "tokenizer": str(models / "kl16")}
    import_weights("mar", str(tmp_path / "mar.safetensors"), out, registry, **named)
    assert read_provenance(out)["sha256"] == read_provenance(models / "mar")["sha256"]
    with pytest.raises(UserError, match="has one set of weights, no entries model_ema and model"):
        import_weights("mar", str(tmp_path / "mar.safetensors"), tmp_path / "raw", registry, raw=True, **named)


@pytest.mark.parametrize(
    ("manifest", "kind", "tokenizer", "told"),
    [
        ("kl16", "kl16", None, {"latent_channels": 16, "encoder_attention": [16], "decoder_attention": []}),
        ("vavae_f16d32", "vavae", None, {"latent_channels": 32, "decoder_attention": [16]}),
        ("mar_base", "mar", "kl16", {"width": 768, "heads": 12, "steps": 256, "cfg": 2.9, "num_classes": 1000}),
        ("mar_large", "mar", "kl16", {"width": 1024, "heads": 16, "cfg": 3.0, "sampling_steps": 100}),
        ("mar_huge", "mar", "kl16", {"width": 1280, "depth": 20, "heads": 16, "cfg": 3.2}),
        ("detok_mar_base", "detok-mar", "detok_bb", {"type": "detok", "cfg": 3.9, "steps": 256, "mlp_dropout": 0.0}),
        ("detok_mar_large", "detok-mar", "detok_bb", {"width": 1024, "cfg": 3.4}),
        (
            "acdit_xl",
            "acdit",
            "f8",
            {"type": "acdit", "block": 16, "cfg": 1.5, "sampling_steps": 25, "solver": "dpm++"},
        ),
        ("ear_base", "ear", "kl16", {"depth": 0, "decoder_depth": 24, "steps": 64, "cfg": 3.0, "temperature": 0.7}),
        ("flowar_s", "flowar", "kl16", {"type": "flowar", "scales": [1, 2, 4, 8, 16], "cfg": 4.3, "cfg_until": 0.9}),
        ("flowar_h", "flowar", "kl16", {"cross": True, "sampling_steps": 50, "cfg": 2.4, "cfg_until": 0.7}),
        ("ear_huge", "ear", "kl16", {"width": 1280, "decoder_depth": 40, "heads": 16}),
        ("maskbit_tokenizer_14bit", "maskbit-tokenizer", None, {"bits": 14, "channel_multipliers": [1, 1, 2, 2, 4]}),
        (
            "maskbit_generator_18bit",
            "maskbit-generator",
            "maskbit_tokenizer_18bit",
            {"bits": 18, "heads": 16, "guidance_scale": 5.7, "randomize_temperature": 8.5, "scale_pow": 2.5},
        ),
    ],
)
def test_full_size_files_are_recognised(
    manifest: str, kind: str, tokenizer: str | None, told: dict[str, object], registry: Registry, tmp_path: Path
) -> None:
    """From the published lists of tensors, without memory: recipe and published settings are those of the file."""

    def filled(manifest: str, kind: str, *overrides: str) -> dict:
        importer = registry.part("importer", kind).component(ImporterConfig())
        assert isinstance(importer, Importer)
        found = state_dicts(read_manifest(MANIFESTS / f"{manifest}.txt"), importer)
        recipe = to_yaml(fill(importer, found, registry, overrides=overrides).system.recipe)
        return strict_yaml.load(recipe, where="")

    overrides = []
    if tokenizer == "f8":  # Stable Diffusion's, of which there is no list: the recipe's own
        weights = registry.find_recipe("acdit_xl")
        recipe = {**strict_yaml.read(weights, where=""), "trains": "continuous_tokenizer"}
        kept = ("trains", "image_size", "num_classes", "continuous_tokenizer")
        (tmp_path / "recipe.yaml").write_text(strict_yaml.dump({key: recipe[key] for key in kept}))
        overrides = [f"continuous_tokenizer.weights={tmp_path}"]
    elif tokenizer:
        recipe = filled(tokenizer, {"kl16": "kl16", "detok_bb": "detok"}.get(tokenizer, "maskbit-tokenizer"))
        (tmp_path / "recipe.yaml").write_text(strict_yaml.dump(recipe))
        overrides = [f"{recipe['trains']}.weights={tmp_path}"]
    recipe = filled(manifest, kind, *overrides)
    assert recipe["image_size"] == 256
    sections = (recipe, *(section for section in recipe.values() if isinstance(section, dict)))
    for key, value in told.items():
        assert value in [section[key] for section in sections if key in section], key


def _weights(folder: Path) -> Path:
    assert json.loads((folder / "provenance.json").read_text())["sha256"] == sha256(folder / "weights.safetensors")
    return folder / "weights.safetensors"


def test_a_patch_of_acdit_has_its_channels_last() -> None:
    """README-continuous' order, row, column, channel, of a file whose `args` say patch 2."""
    latents_BChw, patch = torch.randn(2, 4, 6, 4), 2
    published = {
        "x_embedder.weight": torch.randn(5, 16),
        "final_layer.linear.weight": torch.randn(16, 5),
        "final_layer.linear.bias": torch.randn(16),
    }
    theirs_BNC = latents_BChw.unflatten(3, (-1, patch)).unflatten(2, (-1, patch)).permute(0, 2, 4, 3, 5, 1)
    theirs_BNC = theirs_BNC.flatten(3).flatten(1, 2)
    ours = ACDiTImporter.rename(published)
    tokens_BNC = rearrange(latents_BChw, "b c (h p) (w q) -> b (h w) (c p q)", p=patch, q=patch)
    entered = theirs_BNC @ published["x_embedder.weight"].T
    torch.testing.assert_close(tokens_BNC @ ours["backbone.x_embedder.weight"].T, entered)
    left = entered @ published["final_layer.linear.weight"].T + published["final_layer.linear.bias"]
    said = entered @ ours["backbone.out.weight"].T + ours["backbone.out.bias"]
    torch.testing.assert_close(said, rearrange(left, "b n (p q c) -> b n (c p q)", p=patch, q=patch))
    single = {name: tensor[..., :4] if "x_" in name else tensor[:4] for name, tensor in published.items()}
    assert all(torch.equal(a, b) for a, b in zip(single.values(), ACDiTImporter.rename(single).values(), strict=True))
