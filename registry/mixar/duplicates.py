"""Near-duplicates among images: the same picture stored, scaled or compressed otherwise."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from types import ModuleType

import numpy
from attrs import frozen
from PIL import Image

#: bits of 64 in which the hashes of near-duplicates may differ: almost all copies as JPEG or of another size have fewer
FAR = 4
#: mean difference of their colours, in levels of 256: what is alike in grey may have others
OTHER_COLOURS = 5
#: rows that are compared with others at a time
_BLOCK = 1024


@frozen
class Print:
    """What near-duplicates have in common: a perceptual hash of 64 bits, and 4 x 4 colours."""

    bits: int
    colours: bytes


@cache
def imagehash() -> ModuleType | None:
    """The package, of the extra `duplicates`; None: it is not installed."""
    try:
        import imagehash
    except ImportError:
        return None
    found: ModuleType = imagehash
    return found


def print_of(picture: Image.Image) -> Print | None:
    """An RGB image's print; None where the package is not installed."""
    package = imagehash()
    if package is None:
        return None
    bits = numpy.packbits(package.phash(picture).hash.ravel())
    return Print(int.from_bytes(bits.tobytes()), picture.resize((4, 4), Image.Resampling.BOX).tobytes())


def near_duplicates(prints: Sequence[Print]) -> list[list[int]]:
    """Groups of images, each a near-duplicate of another in its group: indices in order, two or more."""
    first: dict[Print, int] = {}
    leader = [first.setdefault(each, index) for index, each in enumerate(prints)]
    unique = list(first.values())

    def find(index: int) -> int:
        while leader[index] != index:
            leader[index] = leader[leader[index]]
            index = leader[index]
        return index

    bits = numpy.array([prints[index].bits for index in unique], dtype=numpy.uint64)
    colours = numpy.array([list(prints[index].colours) for index in unique], dtype=numpy.int16)
    for one, other in _pairs(bits):
        close = numpy.abs(colours[one] - colours[other]).mean(axis=-1) < OTHER_COLOURS
        for a, b in zip(one[close].tolist(), other[close].tolist(), strict=True):
            low, high = sorted((find(unique[a]), find(unique[b])))
            leader[high] = low
    groups = defaultdict[int, list[int]](list)
    for index in range(len(prints)):
        groups[find(index)].append(index)
    return [group for group in groups.values() if len(group) > 1]


def _pairs(bits_N: numpy.ndarray) -> Iterator[tuple[numpy.ndarray, numpy.ndarray]]:
    """Indices of pairs that differ in at most FAR bits; some pairs come more than once.

    Of FAR + 1 bands such a pair has one in common, so that only hashes with the same band are compared.
    """
    ones_of = numpy.array([bin(byte).count("1") for byte in range(256)], dtype=numpy.uint8)
    width = -(-64 // (FAR + 1))
    for band in range(FAR + 1):
        keys = bits_N >> numpy.uint64(band * width) & numpy.uint64(2**width - 1)
        order = numpy.argsort(keys, kind="stable")
        for same in numpy.split(order, numpy.flatnonzero(numpy.diff(keys[order])) + 1):
            for start in range(0, len(same) - 1, _BLOCK):
                differ = bits_N[same[start : start + _BLOCK], None] ^ bits_N[None, same[start:]]
                far = ones_of[differ.view(numpy.uint8).reshape(*differ.shape, 8)].sum(axis=-1)
                one, other = numpy.nonzero(numpy.triu(far <= FAR, 1))
                yield same[start + one], same[start + other]
