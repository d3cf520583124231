"""Tokenizers' and generators' released files, in small and wrapped as their authors wrap them: import, then use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from attrs import frozen
from torch import Tensor

from mixar.assembly import build
from mixar.model import load
from mixar.plugins import Registry
from mixar.recipe import load_recipe
from mixar_core.tokenizer import DiscreteTokenizer
from mixar_import.imports import import_weights
from tests.parity.case import load_case
from tests.weights.files import CASES


@frozen(eq=False)
class Released:
    """A kind of file: its case, how it is wrapped, a recipe of its sizes, and what it leaves out.

    Args:
        expected: the case's tensor of images that its `codes` become.
        every: of whose pixels every so many are stored.
        unit_range: their pixels are in [0, 1].
    """

    kind: str
    case: str
    wrap: Callable[[dict[str, Tensor]], object]
    recipe: str
    expected: str
    every: int = 1
    remark: str = ""
    unit_range: bool = False


def averaged_by_lightning(weights: dict[str, Tensor]) -> object:
    """The last step's weights beside averaged ones, whose names have lost their dots."""
    last = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    averaged = {f"model_ema.{name.replace('.', '')}": tensor for name, tensor in weights.items() if "loss." not in name}
    counters = {"model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(3)}
    state = {
        "state_dict": {**last, **averaged, **counters},
        "pytorch-lightning_version": "2.0",
        "loops": {"fit": {"n": 1}},
    }
    return {**state, "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}}]}


def released() -> list[Released]:
    return [
        Released(
            "llamagen-tokenizer",
            "llamagen_tokenizer",
            lambda weights: {"model": weights, "steps": 7, "optimizer": {"state": {}}},
            """
            extends: llamagen_vq
            image_size: 32
            discrete_tokenizer:
              {channels: 32, channel_multipliers: [1, 1, 2], latent_channels: 32, codebook_size: 64, code_width: 8}
            """,
            "decoded_codes",
            remark="quantize.codebook_used",
        ),
        Released(
            "var-tokenizer",
            "var_tokenizer",
            dict,
            """
            extends: var_vae
            image_size: 64
            discrete_tokenizer: {channels: 32, latent_channels: 16, codebook_size: 64, scales: [1, 2, 3, 4]}
            """,
            "codes_decoded_every2",
            every=2,
            remark="quantize.ema_vocab_hit_SV",
        ),
        Released(
            "open-magvit2-tokenizer",
            "magvit2_tokenizer",
            averaged_by_lightning,
            """
            extends: open_magvit2_256
            image_size: 32
            discrete_tokenizer: {bits: 6, channels: 32, channel_multipliers: [1, 1, 2, 2], blocks: 2}
            """,
            "decoded_codes",
            remark="averaged weights taken",
        ),
        Released(
            "titok-tokenizer",
            "titok_tokenizer",
            dict,
            """
            extends: titok_l32
            image_size: 32
            discrete_tokenizer:
              {tokens: 8, patch: 8, width: 48, depth: 2, heads: 4, decoder_width: 48,
              decoder_depth: 2, decoder_heads: 4, codebook_size: 32, code_width: 6,
              proxy_codes: 64, proxy_width: 24, proxy_channels: 32, proxy_multipliers: [1, 1, 2, 2]}
            """,
            "decoded_codes",
            unit_range=True,
        ),
        Released(
            "titok-tokenizer",
            "titok_tokenizer_direct",
            dict,
            """
            extends: titok_bl64_vq8k
            image_size: 32
            discrete_tokenizer:
              {tokens: 8, patch: 8, width: 48, depth: 2, heads: 3, decoder_width: 48,
              decoder_depth: 2, decoder_heads: 4, codebook_size: 40, code_width: 8}
            """,
            "decoded_codes",
            unit_range=True,
        ),
    ]


@pytest.mark.parametrize("file", released(), ids=lambda file: file.case)
def test_codes_of_an_imported_tokenizer_decode_as_published(file: Released, tmp_path: Path, registry: Registry) -> None:
    case = load_case(CASES / file.case)
    torch.save(file.wrap(case.weights), tmp_path / "file.pt")
    (tmp_path / "small.yaml").write_text(dedent(file.recipe))
    done = import_weights(
        file.kind, str(tmp_path / "file.pt"), tmp_path / "out", registry, recipe=str(tmp_path / "small.yaml")
    )
    assert not file.remark or any(file.remark in remark for remark in done.remarks)
    recipe = load_recipe(tmp_path / "out/recipe.yaml", registry=registry)
    tokenizer = build(recipe, registry, trained_weights=tmp_path / "out/weights.safetensors").trained.eval()
    assert isinstance(tokenizer, DiscreteTokenizer)
    with torch.no_grad():
        decoded = tokenizer.decode(case.io["codes"].flatten(1))[..., :: file.every, :: file.every]
    expected = case.io[file.expected] * 2 - 1 if file.unit_range else case.io[file.expected]
    torch.testing.assert_close(decoded, expected.clamp(-1, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["titok_generator", "titok_generator_uvit"])
def test_an_imported_generator_draws_with_its_tokenizer(kind: str, tmp_path: Path, registry: Registry) -> None:
    case = load_case(CASES / kind)
    parts = [{}, {}]
    for name, tensor in case.weights.items():
        parts[name.startswith("tokenizer.")][name.removeprefix("tokenizer.")] = tensor
    titok = next(file for file in released() if file.case == "titok_tokenizer")
    uvit = "titok-uvit" if kind.endswith("uvit") else "titok"
    sizes = case.config["config"]["model"]["generator"]
    small = f"""
        extends: titok_l32_generator
        image_size: 32
        num_classes: {sizes["condition_num_classes"]}
        prior: {{type: {uvit}, width: {sizes["hidden_size"]}, depth: {sizes["num_hidden_layers"]},
          heads: {sizes["num_attention_heads"]}, mlp_dim: {sizes["intermediate_size"]}}}
    """
    for name, file, recipe, tokenizer in (
        ("tokenizer", parts[1], titok.recipe, None),
        ("generator", parts[0], small, str(tmp_path / "tokenizer")),
    ):
        torch.save(file, tmp_path / f"{name}.bin")
        (tmp_path / f"{name}.yaml").write_text(dedent(recipe))
        import_weights(
            f"titok-{name}",
            str(tmp_path / f"{name}.bin"),
            tmp_path / name,
            registry,
            recipe=str(tmp_path / f"{name}.yaml"),
            tokenizer=tokenizer,
        )
    drawn = load(tmp_path / "generator", device="cpu", registry=registry).generate([1, 2], steps=3)
    assert drawn.images.shape == (2, 3, 32, 32)
    assert drawn.codes is not None and drawn.codes.shape == (2, 8)
