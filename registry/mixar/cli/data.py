"""`mixar data`: what is in a folder of images, and what a recipe for them says."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixar.cli.common import (
    Json,
    NoPlugin,
    as_path,
    at_least,
    command_line,
    open_registry,
    print_json,
    print_table,
    size_of_text,
)
from mixar_core.errors import UserError

if TYPE_CHECKING:
    from mixar.facts import DataFacts

#: rows of the table of classes, and names or kinds in a line
_ROWS, _NAMED = 30, 4


def data_command(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="PATH", help="A folder of images; or a recipe's name or path, for its data.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", parser=as_path, help="Write contact_sheet.png there, and facts.json, which names every file."
        ),
    ] = None,
    image_size: Annotated[
        Any,
        typer.Option(
            metavar="SIDE|HxW", parser=size_of_text, help="Pixels in training; default: a square that fits the images."
        ),
    ] = None,
    workers: Annotated[int, typer.Option(callback=at_least(0), help="Processes that read images.")] = 2,
    no_plugin: NoPlugin = None,
    as_json: Json = False,
) -> None:
    """Look at every image once: classes, sizes, modes, what is left out, near-duplicates, and the lines for a recipe.

    Examples: `mixar data photos` · `mixar data photos --out seen` · `mixar data my_recipe.yaml`
    """
    from mixar.facts import look, write_facts
    from mixar.progress import progress_bar

    registry, path = open_registry(context, no_plugin), as_path(source)
    if out is not None and path.is_dir() and out.resolve().is_relative_to(path.resolve()):
        raise UserError(f"--out {out}: lies in {source}, and the picture would be one of its images; give another")
    with progress_bar("looking") as show:
        facts = look(source, image_size=image_size, registry=registry, workers=workers, progress=show)
    if out is not None:
        write_facts(facts, out, registry)
    if as_json:
        print_json(facts.plain())
        return
    for line in _lines(facts):
        print(line)
    if out is None:
        more = command_line("mixar", "data", source, "--out", "DIR")
        print(f"\n{more} writes every file's name, and a picture of what training sees")
    else:
        print(
            f"\nwhat training sees: {out / 'contact_sheet.png'}; all of this, every file by name: {out / 'facts.json'}"
        )


def _lines(facts: DataFacts) -> list[str]:
    from mixar import strict_yaml
    from mixar_core.types import Grid

    images, count = facts.images, sum(facts.images.values())
    _print_classes(facts)
    splits = " and ".join(f"{total:,} {split}" for split, total in images.items())
    shapes = f"{facts.num_classes:,} classes" if facts.num_classes else "no classes"
    aside = ", the latter set aside by a hash of their paths" if facts.data.get("validation") else ""
    lines = [f"{splits} images{aside if 'validation' in images else ', none for validation'}; {shapes}"]
    (widths, heights), ratios = zip(*facts.sizes, strict=True), [width / height for width, height in facts.sizes]
    between = f"{_span(widths)} wide, {_span(heights)} high, proportions {min(ratios):.2f} to {max(ratios):.2f}"
    lines.append(f"sizes: {between}: {_most({f'{w}x{h}': n for (w, h), n in facts.sizes.items()})}")
    size = f"image_size {Grid.of_pixels(facts.image_size).written}"
    lines.append(f"training sees {size}: the middle of an image, {facts.kept:.0%} of it on average")
    lines.append(f"modes: {_most(facts.modes)}; formats: {_most(facts.formats)}")
    said = {
        "turned as their EXIF entry says": facts.turned,
        "with transparency, shown over the background": facts.transparent,
        "of several pictures, of which the first is taken": facts.animated,
        f"smaller than {size}, to be enlarged": facts.enlarged,
    }
    lines += [f"{number:,} of {count:,} images {what}" for what, number in said.items() if number]
    lines += [f"left out: {len(files):,} {what}: {_some(files)}" for what, files in facts.left_out.items()]
    if facts.unreadable:
        reasons = [f"{name} ({reason})" for name, reason in facts.unreadable.items()]
        lines.append(f"left out: {len(reasons):,} that cannot be read: {_some(reasons)}")
    lines += [*_duplicate_lines(facts), *(f"note: {note}" for note in facts.notes)]
    plain = facts.recipe()
    return [*lines, "\nfor a recipe:\n", strict_yaml.dump(plain).rstrip()]


def _duplicate_lines(facts: DataFacts) -> list[str]:
    if facts.duplicates is None or facts.leaks is None:
        return ["near-duplicates: not looked for; pip install 'mixar[duplicates]'"]
    groups = [" = ".join(group[:3]) + (" ..." if len(group) > 3 else "") for group in facts.duplicates]
    lines = [f"near-duplicates: {len(groups):,} groups: {_some(groups)}" if groups else "near-duplicates: none"]
    pairs = [f"{validation} = {train}" for validation, train in facts.leaks]
    if pairs:
        lines.append(
            f"warning: {len(pairs):,} validation images have a near-duplicate in train; if they are copies, validation "
            f"looks too good: {_some(pairs)}"
        )
    return lines


def _print_classes(facts: DataFacts) -> None:
    if not facts.class_names:
        return
    rows = list(zip(facts.class_names, *facts.counts.values(), strict=True))
    title = "Classes" if len(rows) <= _ROWS else f"Classes, the first {_ROWS} of {len(rows):,}"
    print_table(title, ("class", *facts.counts), rows[:_ROWS], right=range(1, 1 + len(facts.counts)))


def _span(numbers: Collection[int]) -> str:
    least, most = min(numbers), max(numbers)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _most(counts: Mapping[str, int]) -> str:
    """The most frequent, each with its number, and how many kinds more."""
    return _some([f"{what} ({count:,})" for what, count in counts.items()])


def _some(names: Collection[str]) -> str:
    """The first few."""
    from mixar_core.data.folders import as_line

    shown = ", ".join(list(names)[:_NAMED]) + (f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else "")
    return as_line(shown)
