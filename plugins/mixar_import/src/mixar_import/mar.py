"""MAR's checkpoints (LTH14/mar): averaged and last weights of the transformer with its diffusion head, in one file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen
from attrs.validators import ge, optional
from torch import Tensor

from mixar_core.errors import UserError
from mixar_core.tokenizer import ContinuousTokenizer
from mixar_import.importer import Importer, Published, Translation, count, shapes_of, square_root, told_heads

#: (width, depth) of the published models -> recipe with their heads, training and sampling, and those heads
PUBLISHED = {(768, 12): ("mar_b", 12), (1024, 16): ("mar_l", 16), (1280, 20): ("mar_h", 16)}

_SIZES = {
    "encoder_pos_embed_learned": 3,
    "decoder_pos_embed_learned": 3,
    "diffusion_pos_embed_learned": 3,
    "class_emb.weight": 2,
    "z_proj.weight": 2,
    "encoder_blocks.0.mlp.fc1.weight": 2,
    "diffloss.net.input_proj.weight": 2,
}


@frozen(kw_only=True)
class MarImportConfig:
    """What MAR's tensors do not tell; needed for sizes other than MAR-B, L and H only.

    Args:
        heads: of the encoder. decoder_heads: of the decoder; None: as many.
    """

    heads: int | None = field(default=None, validator=optional(ge(1)))
    decoder_heads: int | None = field(default=None, validator=optional(ge(1)))


class MarImporter(Importer):
    """MAR's checkpoint-last.pth, over the KL-16 in the folder --tokenizer names."""

    entry = "model"
    averaged_entry = "model_ema"
    tokenizer_key = "continuous_tokenizer"

    def __init__(self, config: MarImportConfig) -> None:
        self.config = config

    def translate(self, published: Published) -> Translation:
        """A recipe that trains `mixar` without guidance: plain MAR."""
        tensors, tokenizer = published.tensors, published.tokenizer
        assert isinstance(tokenizer, ContinuousTokenizer)
        sizes = shapes_of(tensors, _SIZES, what="MAR checkpoint")
        _, length, width = sizes["encoder_pos_embed_learned"]
        _, tokens, decoder_width = sizes["diffusion_pos_embed_learned"]
        depth, decoder_depth = count(tensors, "encoder_blocks."), count(tensors, "decoder_blocks.")
        head_width, token_dim = sizes["diffloss.net.input_proj.weight"]
        patch = _patch_size(token_dim, tokenizer.latent_channels)
        known = PUBLISHED.get((width, depth)) if (decoder_width, decoder_depth) == (width, depth) else None
        heads = told_heads(self.config.heads, known and known[1], width)
        backbone: dict[str, Any] = {
            "width": width,
            "depth": depth,
            "heads": heads,
            "decoder_width": decoder_width,
            "decoder_depth": decoder_depth,
            "decoder_heads": told_heads(self.config.decoder_heads, heads, decoder_width, setting="decoder_heads"),
            "mlp_ratio": sizes["encoder_blocks.0.mlp.fc1.weight"][0] / width,
            "buffer": length - tokens,
            "patch_size": patch,
        }
        recipe: dict[str, Any] = {
            "trains": "mixar",
            "image_size": square_root(tokens, what="tokens") * patch * tokenizer.stride,
            "num_classes": sizes["class_emb.weight"][0],
            "injector": {"type": "none"},
            "head": {"type": "diffusion", "depth": count(tensors, "diffloss.net.res_blocks."), "width": head_width},
            "backbone": backbone,
        }
        if known is None:
            recipe["sampling"] = {"steps": min(256, tokens)}
            remark = f"of no published size: {recipe['sampling']['steps']} steps, no guidance unless --cfg is given"
            return Translation(recipe, rename(tensors), (remark,))
        return Translation({"extends": known[0], **recipe}, rename(tensors))


def rename(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict's tensors under the names that a MixAR's `trained` has for them."""
    old = "diffloss."
    return {
        f"head.{name.removeprefix(old)}" if name.startswith(old) else f"backbone.{name}": tensor
        for name, tensor in tensors.items()
    }


def _patch_size(token_dim: int, latent_channels: int) -> int:
    patch = round((token_dim / latent_channels) ** 0.5)
    if patch < 1 or patch**2 * latent_channels != token_dim:
        raise UserError(f"has tokens of {token_dim} numbers; the tokenizer's latents have {latent_channels} channels")
    return patch
