"""MaskBit's .bin files (markweberdev/maskbit): convolutional tokenizers, and masked transformers over their codes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from attrs import field, frozen
from attrs.validators import ge, optional
from torch import Tensor

from mixar_core.errors import UserError
from mixar_core.tokenizer import DiscreteTokenizer
from mixar_import.importer import Importer, Published, Translation, count, shapes_of, square_root, told_heads

#: bits of the published MaskBit models
PUBLISHED_BITS = (10, 12, 14, 16, 18)
#: (width, depth) -> heads, of the published configurations
PUBLISHED_HEADS = {(1024, 24): 16, (768, 24): 8}

_TOKENIZER_SIZES = {"encoder.conv_in.weight": 4, "encoder.conv_out.weight": 4}
_GENERATOR_SIZES = {"pos_emb": 3, "class_emb.weight": 2, "transformer.layers.0.1.net.0.weight": 2}


@frozen(kw_only=True)
class TokenizerImportConfig:
    """What the tensors do not tell.

    Args:
        image_size: pixels of a side that the folder is for. num_classes: classes of the images.
    """

    image_size: int = field(default=256, validator=ge(1))
    num_classes: int = field(default=1000, validator=ge(0))


@frozen(kw_only=True)
class GeneratorImportConfig:
    """What the tensors do not tell; needed for sizes other than the published ones only.

    Args:
        heads: of the transformer.
    """

    heads: int | None = field(default=None, validator=optional(ge(1)))


class TokenizerImporter(Importer):
    """What the three kinds of tokenizers share."""

    what: ClassVar[str]

    def __init__(self, config: TokenizerImportConfig) -> None:
        self.config = config

    def translate(self, published: Published) -> Translation:
        """A recipe that trains `discrete_tokenizer`."""
        part = {**convolutions(published.tensors, what=self.what), **self.quantizer(published.tensors)}
        recipe = {
            "trains": "discrete_tokenizer",
            "image_size": self.config.image_size,
            "num_classes": self.config.num_classes,
            "discrete_tokenizer": part,
        }
        if part["type"] == "lfq" and part["bits"] in PUBLISHED_BITS:
            recipe = {"extends": f"maskbit_tokenizer_{part['bits']}bit", **recipe}
        return Translation(recipe, rename(published.tensors))

    @abstractmethod
    def quantizer(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """The part's type and the settings of its quantizer."""


class MaskBitTokenizerImporter(TokenizerImporter):
    """MaskBit's maskbit_tokenizer_*bit.bin: lookup-free, 10 to 18 bits."""

    what = "MaskBit tokenizer"

    def quantizer(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        name = "quantize.codebook"
        _, bits = shapes_of(tensors, {name: 2}, what=self.what)[name]
        return {"type": "lfq", "bits": bits}


class LookupTokenizerImporter(TokenizerImporter):
    """What VQGAN+ and MaskGIT's tokenizer share."""

    entropy_weight = 0.0

    def quantizer(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        name = "quantize.embedding.weight"
        codes, width = shapes_of(tensors, {name: 2}, what=self.what)[name]
        return {"type": "vq", "codebook_size": codes, "code_width": width, "entropy_weight": self.entropy_weight}


class VQGANPlusTokenizerImporter(LookupTokenizerImporter):
    """MaskBit's vqgan_plus_*bit.bin: a learned codebook, 10 and 12 bits."""

    what = "VQGAN+ tokenizer"


class MaskGITTokenizerImporter(LookupTokenizerImporter):
    """MaskBit's maskgit_tokenizer.bin: MaskGIT's, with the older decoder."""

    what = "MaskGIT tokenizer"
    entropy_weight = 0.02


class GeneratorImporter(Importer):
    """What the two kinds of generators share."""

    what: ClassVar[str]
    tokenizer_key = "discrete_tokenizer"

    def __init__(self, config: GeneratorImportConfig) -> None:
        self.config = config

    def translate(self, published: Published) -> Translation:
        """A recipe that trains `prior`, over the tokenizer's codes."""
        tensors, tokenizer = rename_generator(published.tensors), published.tokenizer
        assert isinstance(tokenizer, DiscreteTokenizer)
        sizes = shapes_of(tensors, _GENERATOR_SIZES, what=self.what)
        _, length, width = sizes["pos_emb"]
        depth = count(tensors, "transformer.layers.")
        codes = self.codes(tensors)
        if 2 ** codes["bits"] != tokenizer.codebook_size:
            raise UserError(f"has codes of {codes['bits']} bits; the tokenizer has {tokenizer.codebook_size} codes")
        prior = {
            **codes,
            "stride": tokenizer.stride,
            "width": width,
            "depth": depth,
            "heads": told_heads(self.config.heads, PUBLISHED_HEADS.get((width, depth)), width),
            "mlp_dim": sizes["transformer.layers.0.1.net.0.weight"][0],
            "prenorm": "norm_after_transformer.weight" in tensors,
        }
        recipe = {
            "trains": "prior",
            "image_size": square_root(length - 1, what="tokens") * tokenizer.stride,
            "num_classes": sizes["class_emb.weight"][0] - 1,
            "prior": prior,
        }
        if prior["type"] == "maskbit" and prior["bits"] in PUBLISHED_BITS:
            return Translation({"extends": f"maskbit_generator_{prior['bits']}bit", **recipe}, tensors)
        return Translation(recipe, tensors)

    @abstractmethod
    def codes(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """The part's type, and how it splits codes."""


class MaskBitGeneratorImporter(GeneratorImporter):
    """MaskBit's maskbit_generator_*bit.bin, over the tokenizer in the folder --tokenizer names."""

    what = "MaskBit generator"

    def codes(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        sizes = shapes_of(tensors, {"input_proj.weight": 2, "bits_to_indices": 1}, what=self.what)
        bits, of_split = sizes["input_proj.weight"][1], sizes["bits_to_indices"][0]
        return {"type": "maskbit", "bits": bits, "splits": _splits(bits, of_split)}


class MaskGITGeneratorImporter(GeneratorImporter):
    """A generator with embedded tokens (MaskGIT's), over the tokenizer in the folder --tokenizer names."""

    what = "MaskGIT generator"

    def codes(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        name = "tok_emb_list.0.weight"
        size = shapes_of(tensors, {name: 2}, what=self.what)[name][0] - 1  # the last stands for a masked one
        if size < 2 or size & (size - 1):
            raise UserError(f"is no {self.what}: {name} has {size + 1} rows, not a power of two and one")
        splits = count(tensors, "tok_emb_list.")
        return {"type": "maskgit", "bits": splits * (size.bit_length() - 1), "splits": splits}


def convolutions(tensors: Mapping[str, Tensor], *, what: str) -> dict[str, Any]:
    """The settings that `lfq` and `vq` share, as a state dict's tensors tell them."""
    sizes = shapes_of(tensors, _TOKENIZER_SIZES, what=what)
    channels, levels = sizes["encoder.conv_in.weight"][0], count(tensors, "encoder.down.")
    widths = [f"encoder.down.{level}.res_blocks.0.conv1.weight" for level in range(levels)]
    sizes |= shapes_of(tensors, dict.fromkeys(widths, 4), what=what)
    halving = any(name.startswith("encoder.down.") and ".down_conv." in name for name in tensors)
    return {
        "channels": channels,
        "channel_multipliers": [sizes[name][0] // channels for name in widths],
        "blocks": count(tensors, "encoder.down.0.res_blocks."),
        "downsample": "conv" if halving or levels < 2 else "pool",
        # All levels of the decoder but that of full resolution upsample: which end lacks it tells the order.
        "legacy": levels > 1 and "decoder.up.0.upsample_conv.weight" not in tensors,
    }


def rename(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A tokenizer's published tensors under the names that LFQTokenizer and VQTokenizer have for them."""
    old = "quantize."
    return {
        f"quantizer.{name.removeprefix(old)}" if name.startswith(old) else name: tensor
        for name, tensor in tensors.items()
    }


def rename_generator(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A generator's published tensors under our names: `token_emb.` is an older name of `input_proj.` (MaskBit)."""
    old = "token_emb."
    return {
        f"input_proj.{name.removeprefix(old)}" if name.startswith(old) else name: tensor
        for name, tensor in tensors.items()
    }


def _splits(bits: int, of_split: int) -> int:
    if not of_split or bits % of_split:
        raise UserError(f"is no MaskBit generator: codes of {bits} bits in splits of {of_split}")
    return bits // of_split
