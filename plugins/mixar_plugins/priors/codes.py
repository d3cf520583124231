"""One code as several smaller ones: the factorisation of MaskBit (section 4), lowest bits in the first split."""

from __future__ import annotations

import torch
from torch import Tensor


def split_codes(codes_BN: Tensor, *, bits: int, splits: int) -> Tensor:
    """Codes (B, N) of `bits` bits as `splits` codes of `bits / splits` bits each: (B, N, S), int64."""
    shifts_S = torch.arange(splits, device=codes_BN.device) * (bits // splits)
    return (codes_BN[..., None] >> shifts_S) & (2 ** (bits // splits) - 1)


def combine_codes(tokens_BNS: Tensor, *, bits: int) -> Tensor:
    """The inverse of `split_codes`: (B, N, S), each in [0, 2^(bits / S)), to codes (B, N), int64."""
    splits = tokens_BNS.shape[-1]
    shifts_S = torch.arange(splits, device=tokens_BNS.device) * (bits // splits)
    return (tokens_BNS << shifts_S).sum(dim=-1)
