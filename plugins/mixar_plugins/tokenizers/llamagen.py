"""LlamaGen's tokenizer (arXiv 2406.06525): 16384 vectors of 8 numbers on the unit sphere."""

from __future__ import annotations

from attrs import field, frozen

from mixar_core.types import ImageSize
from mixar_plugins.tokenizers import layers
from mixar_plugins.tokenizers.quantized import LatentCodesConfig, LatentCodesTokenizer
from mixar_plugins.tokenizers.quantizers import LookupQuantizer


@frozen(kw_only=True)
class LlamaGenConfig(LatentCodesConfig):
    """Settings of LlamaGenTokenizer: those of LatentCodesConfig and

    Args:
        codebook_size: codes.
        code_width: length of a code vector.
        normalised: what is quantized has length 1, and so have code vectors.
    """

    codebook_size: int = field(default=16384, validator=layers.positive)
    code_width: int = field(default=8, validator=layers.positive)
    normalised: bool = True


class LlamaGenTokenizer(LatentCodesTokenizer):
    """LlamaGen's tokenizer, on which RandAR works, too: a small codebook on the unit sphere."""

    def __init__(self, config: LlamaGenConfig, *, image_size: ImageSize) -> None:
        sizes = (config.codebook_size, config.code_width, config)
        quantizer = LookupQuantizer(*sizes, entropy_rule="exact", normalised=config.normalised)
        super().__init__(config, quantizer, image_size=image_size, kernel=1, part="llamagen")
