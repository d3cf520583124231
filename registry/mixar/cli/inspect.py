"""Commands that look: recipes, recipe show, recipe check."""

from __future__ import annotations

from typing import Annotated

import typer

from mixar.cli.common import Json, NoPlugin, Set, at_least, open_registry, print_json, print_table

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="Name (see `mixar recipes`) or path of a YAML file.")]
recipe_app = typer.Typer(
    no_args_is_help=True, help="Look at one recipe: `show` it resolved, or `check` its fit and its cost."
)


def recipes_command(context: typer.Context, no_plugin: NoPlugin = None, as_json: Json = False) -> None:
    """List the recipes that are found by name."""
    from mixar.recipe import read_plain
    from mixar_core.errors import UserError

    registry = open_registry(context, no_plugin)
    rows = []
    for name, paths in registry.recipes().items():
        for path in paths:
            try:
                plain = read_plain(path, registry)
            except UserError as error:
                plain = {"summary": f"broken: {error}"}
            told = {key: plain.get(key) for key in ("trains", "summary")}
            rows.append({"name": name, **told, "path": str(path)})
    if as_json:
        print_json(rows)
    else:
        print_table("Recipes", ("name", "trains", "summary"), [list(row.values())[:3] for row in rows])


def presets_command(
    context: typer.Context,
    model: Annotated[str | None, typer.Argument(help="Also those that this model carries.")] = None,
    no_plugin: NoPlugin = None,
    as_json: Json = False,
) -> None:
    """List the ways of sampling that `--preset` takes.

    Example: `mixar presets emoji64`, then `mixar sample emoji64 --preset one-shot`
    """
    from mixar.presets import read_preset
    from mixar.registry import PRESETS

    registry = open_registry(context, no_plugin)
    own = [] if model is None else sorted((registry.find_model(model) / PRESETS).glob("*.yaml"))
    found = [(path.stem, path) for path in own] + [
        (n, path) for n, paths in registry.presets().items() for path in paths
    ]
    rows = [{"name": name, **read_preset(path, registry), "path": str(path)} for name, path in found]
    if as_json:
        print_json(rows)
    else:
        print_table("Presets", ("name", "summary"), [(row["name"], row["summary"]) for row in rows])


@recipe_app.command("show")
def show_command(
    context: typer.Context, recipe: RecipeName, settings: Set = None, no_plugin: NoPlugin = None, as_json: Json = False
) -> None:
    """Print a recipe with `extends` and `--set` resolved and every setting written out, as a run folder stores it.

    Example: `mixar recipe show mixar_l --set injector.type=dc-ca > mine.yaml`
    """
    from mixar.recipe import load_recipe, standing_alone, to_plain, to_yaml

    resolved = standing_alone(load_recipe(recipe, registry=open_registry(context, no_plugin), overrides=settings or ()))
    if as_json:
        print_json(to_plain(resolved))
    else:
        print(to_yaml(resolved), end="")


@recipe_app.command("check")
def check_command(
    context: typer.Context,
    recipe: RecipeName,
    settings: Set = None,
    processes: Annotated[
        int, typer.Option(callback=at_least(1), help="How many would share the training: memory is that of one.")
    ] = 1,
    no_plugin: NoPlugin = None,
    as_json: Json = False,
) -> None:
    """Check that a recipe's parts fit, and print what it costs: parameters, tokens, GFLOP an image, memory.

    Nothing is allocated and no weights are read, but those that a part brings itself. Example:
    `mixar recipe check mixar_l --set training.micro_batch=16 --set training.parallel=fsdp --processes 8`
    """
    import attrs

    from mixar.assembly import build, counted_data
    from mixar.cost import estimate
    from mixar.fits import fit_notes
    from mixar.recipe import load_recipe
    from mixar.run import make_optimizer
    from mixar_core.training.optimizer import AdamW

    registry = open_registry(context, no_plugin)
    resolved = load_recipe(recipe, registry=registry, overrides=settings or ())
    data, images = counted_data(resolved, registry)
    system = build(resolved, registry, meta=True)
    optimizer = make_optimizer(system, registry)
    found = estimate(system, processes=processes, images=images)
    if as_json:
        print_json({"name": resolved.name, "trains": resolved.trains, **attrs.asdict(found), "data": data})
        return
    print(f"{resolved.name}: trains {resolved.trains}, {found.parameters / 1e6:.1f}M trainable parameters")
    if optimizer is not None and not isinstance(optimizer, AdamW):
        print(f"optimizer: {resolved.optimizer}")
    print(f"data: {data}")
    print(*(f"note: {note}\n" for note in fit_notes(resolved, registry, needs_codes=system.takes_codes)), sep="")
    cells = []
    for part in found.parts:
        none = "in backbone" if part.part == "injector" else "not run"
        gflop = [_cell(costs.get(part.part, none)) for costs in (found.training_gflop, found.sampling_gflop)]
        cells.append((f"{part.part}{'' if part.trained else ' (frozen)'}", part.type, f"{part.parameters:,}", *gflop))
    cells.append(("total", "", "", _cell(found.training_gflop["total"]), _cell(found.sampling_gflop["total"])))
    columns = ("part", "type", "parameters", "GFLOP/image training", "GFLOP/image sampling")
    print_table("Parts", columns, cells, right=(2, 3, 4))
    if found.tokens:
        rows = [(name.replace("_", " "), count) for name, count in found.tokens.items()]
        print_table("Tokens of one forward pass", ("pass", "tokens"), rows, right=(1,))
    memory = [(name.replace("_", " "), _cell(value)) for name, value in found.memory_gb.items()]
    parallel = f", {resolved.training.parallel}" if processes > 1 and resolved.training is not None else ""
    of = "one process" if processes == 1 else f"one of {processes} processes{parallel}"
    print_table(f"Estimated memory of {of}, GB", ("what", "GB"), memory, right=(1,))
    kinds = {"GFLOP training": found.training_gflop, "GFLOP sampling": found.sampling_gflop, "GB": found.memory_gb}
    for kind, figures in kinds.items():
        for name, value in figures.items():
            if isinstance(value, str):
                print(f"{kind}, {name.replace('_', ' ')}: {value}")


def _cell(value: float | str) -> str:
    """A figure; a long reason why there is none follows the tables."""
    if isinstance(value, str):
        return value if len(value) < 12 else "unknown"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
