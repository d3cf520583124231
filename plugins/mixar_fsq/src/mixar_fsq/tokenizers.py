"""FSQ (arXiv 2309.15505) and residual vector quantization (arXiv 2107.03312) by vector-quantize-pytorch."""

from __future__ import annotations

import math

from attrs import field, frozen
from attrs.validators import and_, deep_iterable, ge, min_len
from torch import Tensor, nn

from mixar_core import DiscreteTokenizer, ImageSize, Quantized, TokenLayout
from mixar_core.precision import full_precision
from mixar_fsq.network import NetworkConfig, decoder, encoder


@frozen(kw_only=True)
class FSQConfig(NetworkConfig):
    """Settings of FSQTokenizer: those of NetworkConfig and

    Args:
        levels: values that each channel of a code vector can take; their product is the number of codes.
    """

    levels: tuple[int, ...] = field(default=(8, 5, 5, 5), validator=and_(min_len(1), deep_iterable(ge(3))))


@frozen(kw_only=True)
class ResidualVQConfig(NetworkConfig):
    """Settings of ResidualVQTokenizer: those of NetworkConfig and

    Args:
        codebook_size: codes of each codebook.
        code_width: length of a code vector.
        depth: codes a place.
        commitment_weight: of the squared distance between what a codebook is given and its code; both follow it.
    """

    codebook_size: int = field(default=1024, validator=ge(2))
    code_width: int = field(default=16, validator=ge(1))
    depth: int = field(default=4, validator=ge(1))
    commitment_weight: float = field(default=0.25, validator=ge(0.0))


class LibraryTokenizer(DiscreteTokenizer):
    """Encoder, a quantizer of the library in full precision, decoder."""

    def __init__(self, config: NetworkConfig, *, image_size: ImageSize, codebook_size: int, code_width: int) -> None:
        config.check(image_size)
        super().__init__(
            image_size=image_size, stride=config.stride, codebook_size=codebook_size, code_width=code_width
        )
        self.config = config
        self.encoder, self.decoder = encoder(config, code_width), decoder(config, code_width)

    @property
    def last_layer(self) -> nn.Parameter:
        """Of the decoder: what makes pixels."""
        return self.decoder.get_parameter(f"{len(self.decoder) - 1}.weight")

    def quantize(self, images_B3HW: Tensor) -> Quantized:
        """Encode and quantize; see `search`."""
        encoded_BEhw = self.encoder(images_B3HW)
        with full_precision(encoded_BEhw.device):
            vectors_BNE, codes_BN, losses = self.search(encoded_BEhw.float().flatten(2).transpose(1, 2))
        vectors_BEhw = vectors_BNE.transpose(1, 2).reshape(encoded_BEhw.shape)
        return Quantized(vectors_BEhw.to(encoded_BEhw.dtype), codes_BN.long(), losses)

    def search(self, encoded_BNE: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """What stands for the encoder's output (B, places, E), its codes (B, N), and losses."""
        raise NotImplementedError

    def decode_vectors(self, vectors_BEhw: Tensor) -> Tensor:
        """Vectors on the grid (B, E, h, w) to images (B, 3, H, W), not clamped."""
        return self.decoder(vectors_BEhw)


class FSQTokenizer(LibraryTokenizer):
    """Finite scalar quantization: each channel is rounded to one of a few levels; no codebook, no loss of its own."""

    def __init__(self, config: FSQConfig, *, image_size: ImageSize) -> None:
        from vector_quantize_pytorch import FSQ

        codes, width = math.prod(config.levels), len(config.levels)
        super().__init__(config, image_size=image_size, codebook_size=codes, code_width=width)
        self.quantizer = FSQ(list(config.levels))

    def search(self, encoded_BNE: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        vectors_BNE, codes_BN = self.quantizer(encoded_BNE)
        return vectors_BNE, codes_BN, {"quantizer": vectors_BNE.new_zeros(())}

    def code_vectors(self, codes_BN: Tensor) -> Tensor:
        """Code vectors (B, N, E) of codes (B, N), each value in [-1, 1]."""
        return self.quantizer.indices_to_codes(codes_BN)


class ResidualVQTokenizer(LibraryTokenizer):
    """Residual vector quantization: `depth` codes a place, each of what those before it have left, a codebook each."""

    def __init__(self, config: ResidualVQConfig, *, image_size: ImageSize) -> None:
        from vector_quantize_pytorch import ResidualVQ

        super().__init__(
            config, image_size=image_size, codebook_size=config.codebook_size, code_width=config.code_width
        )
        self.depth = config.depth
        # Codebooks are weights like others: averages that move in the forward pass would escape EMA, DDP and resuming.
        self.quantizer = ResidualVQ(
            dim=config.code_width,
            codebook_size=config.codebook_size,
            num_quantizers=config.depth,
            commitment_weight=config.commitment_weight,
            learnable_codebook=True,
            ema_update=False,
        )
        for layer in self.quantizer.layers:  # the library looks into this tensor in every step, and waits for the GPU
            del layer._codebook.initted
            layer._codebook.initted = True

    @property
    def layout(self) -> TokenLayout:
        """Places on the grid, with `depth` codes each."""
        return TokenLayout("depth", super().layout.scales, depth=self.depth)

    def search(self, encoded_BNE: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        vectors_BNE, codes_BNQ, losses_Q = self.quantizer(encoded_BNE)
        return vectors_BNE, codes_BNQ.flatten(1), {"quantizer": losses_Q.mean()}

    def code_vectors(self, codes_BN: Tensor) -> Tensor:
        """Code vectors (B, N, E) of codes (B, N), place by place."""
        vectors_QBNE = self.quantizer.get_codes_from_indices(codes_BN.unflatten(1, (-1, self.depth)))
        return vectors_QBNE.permute(1, 2, 0, 3).flatten(1, 2)
