"""Starting from a trained model: what of its weights is taken, resized, made anew, or left over."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any
from unicodedata import normalize

import attrs
import torch
import torch.nn.functional as F
from attrs import field, frozen
from torch import Tensor, nn

from mixar.assembly import System, build
from mixar.folder import RECIPE, find_weights, read_provenance, read_tensors, sha256
from mixar.hub import is_file
from mixar.plugins import Registry
from mixar.recipe import TRAINABLE, InitChoice, Recipe, load_recipe
from mixar.text import first_of
from mixar_core.data.dataset import has_names
from mixar_core.errors import UserError, said_of
from mixar_core.tables import Table
from mixar_core.types import TokenLayout


@frozen
class InitPlan:
    """Where each tensor of what is trained comes from, by name.

    Args:
        taken: as they are. resized: tables of positions. by_class: tables of classes, row by row.
        rows: for each class the source's row, or None for one that is made anew.
        anew: as a run from nothing begins with. left: the source's that have no place here.
    """

    taken: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()
    by_class: tuple[str, ...] = ()
    rows: tuple[int | None, ...] = ()
    anew: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


@frozen(eq=False)
class Source:
    """Tensors to start from, and what is known of them.

    Args:
        tables: of the source. class_names: in the order of its labels; empty where they are not known.
        other_parts: beginnings of names (`head.`) of parts that are of another type here, so that names say nothing, or
            that begin with weights of their own.
    """

    tensors: Mapping[str, Tensor]
    tables: Mapping[str, Table] = field(factory=dict)
    class_names: tuple[str, ...] = ()
    other_parts: tuple[str, ...] = ()


def plan_init(
    target: Mapping[str, Tensor], tables: Mapping[str, Table], source: Source, rows: Sequence[int | None]
) -> InitPlan:
    """What becomes of each tensor of `target` (whose values are not looked at); `rows` are as in the plan."""
    found: dict[str, list[str]] = {"taken": [], "resized": [], "by_class": [], "anew": []}
    for name, tensor in target.items():
        there = source.tensors.get(name)
        other = there is None or name.startswith(source.other_parts)
        found["anew" if other or there is None else _fate(tensor, there, name, tables, source, rows)].append(name)
    used = {name for names in (found["taken"], found["resized"], found["by_class"]) for name in names}
    left = tuple(name for name in source.tensors if name not in used)
    return InitPlan(rows=tuple(rows), left=left, **{key: tuple(names) for key, names in found.items()})


def _fate(
    tensor: Tensor, there: Tensor, name: str, tables: Mapping[str, Table], source: Source, rows: Sequence[int | None]
) -> str:
    table, same = tables.get(name), tensor.shape == there.shape
    theirs = source.tables.get(name, table if same else None)  # a bare file does not say
    if table is None:
        return "taken" if same else "anew"
    if theirs is None or not _alike(tensor, table, there, theirs):
        return "anew"
    if isinstance(table.rows, TokenLayout):
        if table.rows == theirs.rows:
            return "taken"
        grids = isinstance(theirs.rows, TokenLayout) and table.rows.kind == theirs.rows.kind == "grid"
        return "resized" if grids else "anew"
    if [*rows] == [*range(theirs.count)]:
        return "taken"
    others = tensor.shape[table.dim] > table.count
    return "by_class" if others or any(row is not None for row in rows) else "anew"


def _alike(tensor: Tensor, table: Table, there: Tensor, theirs: Table) -> bool:
    """Whether they differ in their classes or tokens alone."""
    shape, other = [*tensor.shape], [*there.shape]
    shape[table.dim] -= table.count
    if len(other) <= theirs.dim:
        return False
    other[theirs.dim] -= theirs.count
    return shape == other and (table.dim, table.first) == (theirs.dim, theirs.first)


def begun(
    target: Mapping[str, Tensor], tables: Mapping[str, Table], source: Source, plan: InitPlan
) -> dict[str, Tensor]:
    """The tensors that the plan does not make anew, by name."""
    made = {name: source.tensors[name] for name in plan.taken}
    for name in (*plan.resized, *plan.by_class):
        table, theirs = tables[name], source.tables.get(name, tables[name])
        old = source.tensors[name].movedim(table.dim, 0)
        before, rows, behind = old.tensor_split([theirs.first, theirs.first + theirs.count])
        if name in plan.resized:
            rows = resized(rows, table.rows, theirs.rows)
        else:
            fresh = target[name].movedim(table.dim, 0)[table.first :]
            chosen = [fresh[k] if row is None else rows[row] for k, row in enumerate(plan.rows)]
            rows = torch.stack(chosen) if chosen else rows[:0]
        made[name] = torch.cat([before, rows.to(old), behind]).movedim(0, table.dim)
    return made


def resized(rows: Tensor, to: Any, of: Any) -> Tensor:
    """Rows (N, ...) of a grid `of` tokens, bicubically on the grid `to`."""
    old, new = of.shape, to.shape
    flat_1Fhw = rows.reshape(len(rows), -1).T.reshape(1, -1, old.height, old.width)
    # antialias: a kernel that keeps slopes, and to fewer tokens none that skips some
    scaled_1Fhw = F.interpolate(flat_1Fhw.float(), (new.height, new.width), mode="bicubic", antialias=True)
    return scaled_1Fhw.flatten(2)[0].T.reshape(-1, *rows.shape[1:])


def tables_of(module: nn.Module) -> dict[str, Table]:
    """The tables of a module and of all in it, by name."""
    tables: dict[str, Table] = {}
    for prefix, child in module.named_modules():
        own: Mapping[str, Table] = child.learned_tables() if hasattr(child, "learned_tables") else {}
        tables |= {f"{prefix}.{name}" if prefix else name: table for name, table in own.items()}
    return tables


# ---------------------------------------------------------------- of a recipe


def start_from(system: System, registry: Registry, class_names: Sequence[str]) -> dict[str, Any]:
    """Load into what is trained all that `init:` says; what was done with each tensor, for people and provenance.

    Args:
        class_names: of the data, in label order.

    Raises:
        UserError: there is no such model, nothing of it fits, its classes cannot be matched, or what is made anew would
            stay frozen.
    """
    recipe, init, trained = system.recipe, system.recipe.init, system.trained
    assert init is not None
    with said_of(f"recipe {recipe.name}: init.from: {init.from_}"):
        file, kept = find_weights(init.from_, registry), _own_weights(recipe)
        source = _source(recipe, init, registry)
        source = attrs.evolve(source, tensors=read_tensors(file), other_parts=source.other_parts + kept)
    target, tables = trained.state_dict(), tables_of(trained)
    with said_of(f"recipe {recipe.name}: init.classes"):
        counts = [source.tables.get(name, tables[name]).rows for name in tables if name in source.tensors]
        learned = recipe.num_classes and any(isinstance(count, int) and count for count in counts)
        rows = match_classes(recipe, init, source, class_names) if learned else [None] * recipe.num_classes
    plan = plan_init(target, tables, source, rows)
    plan = attrs.evolve(plan, anew=tuple(name for name in plan.anew if not name.startswith(kept)))
    if not (plan.taken or plan.resized):
        raise UserError(f"recipe {recipe.name}: init.from: {init.from_}: nothing of it has a place here")
    frozen = {name for name, parameter in trained.named_parameters() if not parameter.requires_grad}
    partly = plan.by_class if None in plan.rows else ()
    if random := [name for name in (*plan.anew, *partly) if name in frozen]:
        raise UserError(
            f"recipe {recipe.name}: init.freeze: {first_of(random)}: made anew, and would stay as it is drawn"
        )
    trained.load_state_dict(begun(target, tables, source, plan), strict=False)
    return {"from": init.from_, "sha256": sha256(file), **attrs.asdict(plan)}


def match_classes(recipe: Recipe, init: InitChoice, source: Source, class_names: Sequence[str]) -> list[int | None]:
    """For each class the source's row of it; None: made anew.

    Raises:
        UserError: they are to be matched, and on one side classes have no names, but numbers that the other has not.
    """
    if init.classes == "fresh":
        return [None] * recipe.num_classes
    if recipe.accept_other_classes and len(source.class_names) in (0, recipe.num_classes):
        return [*range(recipe.num_classes)]
    if [*class_names] == [*source.class_names]:  # all numbers, it may be: then that is how both call their classes
        return [*range(recipe.num_classes)]
    sides = {"the data": class_names, init.from_: source.class_names}
    if nameless := [side for side, names in sides.items() if not has_names(names)]:
        raise UserError(
            f"match: no names of classes in {' and '.join(nameless)}; take fresh, or where a label means the same "
            "in both, set accept_other_classes: true"
        )
    known = {normalize("NFC", name): row for row, name in enumerate(source.class_names)}
    return [known.get(normalize("NFC", name)) for name in class_names]


def _source(recipe: Recipe, init: InitChoice, registry: Registry) -> Source:
    """What the model's folder says of its weights; of a bare file nothing is known."""
    if is_file(init.from_):
        return Source({})
    folder = registry.find_model(init.from_)
    other = load_recipe(folder / RECIPE, registry=registry)
    if other.trains != recipe.trains:
        raise UserError(f"it is a model of a {other.trains}, and this recipe trains {recipe.trains}")
    parts = ("backbone", "injector", "head", "conditioner") if recipe.trains == "mixar" else (recipe.trains,)
    types = {key: [getattr(getattr(each, key), "type", None) for each in (other, recipe)] for key in parts}
    others = [key for key, (theirs, ours) in types.items() if theirs != ours]
    if recipe.trains in others:
        raise UserError(f"its {recipe.trains} is a {types[recipe.trains][0]}, this one is a {types[recipe.trains][1]}")
    for key in TRAINABLE:  # for its shapes alone: what it was trained beside need not be there any more
        if (choice := getattr(other, key)) is not None:
            other = attrs.evolve(other, **{key: attrs.evolve(choice, weights=None)})
    tables = tables_of(build(other, registry, meta=True).trained)
    names = read_provenance(folder).get("class_names") or ()
    return Source({}, tables, tuple(map(str, names)), tuple(f"{key}." for key in others))


def _own_weights(recipe: Recipe) -> tuple[str, ...]:
    """Beginnings of the names of parts that are trained, too, and have begun with weights of their own."""
    return tuple(f"{key}." for key in recipe.also_trained if getattr(recipe, key).weights is not None)


def told(facts: Mapping[str, Any]) -> list[str]:
    """Notes for the screen, of what `start_from` returns."""
    rows: Collection[int | None] = facts["rows"]
    fits = sum(len(facts[key]) for key in ("taken", "resized", "by_class"))
    little = "; almost nothing of it fits: this is training anew" if 10 * fits < len(facts["anew"]) else ""
    said = [f"init: {len(facts['taken'])} tensors taken from {facts['from']}{little}"]
    for key, what in (
        ("resized", "positions, resized"),
        ("by_class", f"by class, {sum(row is not None for row in rows)} of {len(rows)} classes taken, the others anew"),
        ("anew", "made anew"),
        ("left", "left over"),
    ):
        if names := facts[key]:
            said.append(f"init: {len(names)} {what}: {first_of([*names])}")
    return said
