"""Orders of places that samplers and priors share."""

from __future__ import annotations

from mixar_core.types import Grid


def halton(grid: Grid) -> list[int]:
    """Halton's points, base 2 down and base 3 across, each place where it is first met (arXiv 2503.17076).

    The released order, which begins at the second point, (1/2, 1/3). The released sampler may also start it at another
    place for every image, and shares tokens out by an arccos that reveals many at first.
    """
    order: dict[int, None] = {}
    index = 0
    while len(order) < grid.tokens:
        index += 1
        order.setdefault(_radical_inverse(index, 2, grid.height) * grid.width + _radical_inverse(index, 3, grid.width))
    return list(order)


def _radical_inverse(index: int, base: int, scale: int) -> int:
    """floor(scale * x), x in [0, 1) the digits of `index` mirrored at the point."""
    mirrored, size = 0, 1
    while index:
        index, digit = divmod(index, base)
        mirrored, size = mirrored * base + digit, size * base
    return mirrored * scale // size
