"""What classes say of themselves: the settings of a part, and what each kind of part must do."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

import attrs

from mixar.plugins import Part, Registry
from mixar.structure import key_of, unstructure
from mixar.text import choices, nearest
from mixar_core.errors import UserError


@attrs.frozen
class Setting:
    """A key that a recipe may write for a part.

    Args:
        name: as in a recipe; with a dot where it belongs to a group of settings.
        type: in Python's words.
        required: whether there is no default.
        default: as a recipe would write it.
        allowed: the values, where the type or a validator of attrs tells.
        meaning: what the config class's docstring says under `Args:`.
    """

    name: str
    type: str
    required: bool
    default: Any
    allowed: str
    meaning: str


def find_part(registry: Registry, text: str, *, or_package: bool = False) -> Part:
    """The part that is meant by `NAME` as recipes write it, or by `KIND:NAME` where several kinds have that name.

    Args:
        or_package: the name might have been a package's or a plugin's, too; they are among what may be meant.

    Raises:
        UserError: there is none, or parts of several kinds are called so.
    """
    kind, _, name = text.partition(":")
    if name and kind in registry.kinds:
        return registry.part(kind, name)
    kinds = [kind for kind in registry.kinds if registry.offers(kind, text)]
    if not kinds:
        known, none = {part.name for kind in registry.kinds for part in registry.parts(kind)}, ""
        if or_package:
            known |= {name for plugin in registry.plugins for name in (plugin.name, plugin.package)}
            none = "no package or plugin of that name, and "
        blamed = registry.broken_like(text)
        if any(part.name == text for plugin in registry.plugins for part in plugin.broken_parts):
            raise UserError(f'part "{text}": {"; ".join(blamed)}')
        blamed += [f"plugin {p.name} of {p.distribution} was not loaded: {p.problem}" for p in registry.broken]
        meant = nearest(known, text) or choices(known)
        raise UserError(f'{none}unknown part "{text}"; {meant}{"".join(f" ({each})" for each in blamed)}')
    if len(kinds) > 1:
        raise UserError(f'part "{text}": give its kind too; allowed: {", ".join(f"{kind}:{text}" for kind in kinds)}')
    return registry.part(kinds[0], text)


def settings_of(config: type) -> list[Setting]:
    """Every setting of a config class, in order; those of a class within it one by one, `group.name`."""
    return list(_settings(config))


def _settings(config: type, before: str = "") -> Iterator[Setting]:
    types, meanings = get_type_hints(config), meanings_of(config)
    for field in attrs.fields(config):
        of, name = types.get(field.name, Any), f"{before}{key_of(field.name)}"
        if not field.init:
            continue
        if attrs.has(of):
            yield from _settings(of, f"{name}.")
            continue
        required = field.default is attrs.NOTHING
        default = None if required else plain_default(field.default)
        told = (_type(of), required, default, _allowed(of, field.validator), meanings.get(field.name, ""))
        yield Setting(name, *told)


def meanings_of(config: type) -> dict[str, str]:
    """What the docstrings of a class and of those it derives from say of its fields, under `Args:`."""
    name = "|".join(re.escape(field.name) for field in attrs.fields(config))
    begins = re.compile(rf"(?:^ *|(?<=[.;] ))((?:{name})(?:, (?:{name}))*): ", re.M)
    meanings: dict[str, str] = {}
    for cls in reversed(config.__mro__):
        _, _, text = inspect.cleandoc(cls.__dict__.get("__doc__") or "").partition("Args:")
        _, *found = begins.split(text)
        for names, meaning in zip(found[::2], found[1::2], strict=True):
            meanings |= dict.fromkeys(names.split(", "), " ".join(meaning.split()))
    return meanings


def plain_default(default: Any) -> Any:
    """The default of a field of a config class, which has one, as a recipe would write it."""
    if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
        return None if default.takes_self else plain_default(default.factory())
    held = attrs.make_class("Held", ["value"])
    return unstructure(held(default))["value"]


def _type(of: Any) -> str:
    members = get_args(of)
    if get_origin(of) is Literal:
        return " | ".join(dict.fromkeys(type(value).__name__ for value in members))
    if members and get_origin(of) is not None and not isinstance(get_origin(of), type):
        return " | ".join(map(_type, members))  # typing.Union
    text = of.__name__ if isinstance(of, type) and not members else str(of)
    return re.sub(r"\b(?:\w+\.)+(\w)", r"\1", text.replace("NoneType", "None"))


def _allowed(of: Any, validator: Any) -> str:
    """From a Literal, and from what attrs' own validators hold; a function's own rule is not to be read."""
    literals = [each for each in (of, *get_args(of)) if get_origin(each) is Literal]
    return ", ".join(
        dict.fromkeys([*(str(value) for each in literals for value in get_args(each)), *_rules(validator)])
    )


def _rules(validator: Any) -> Iterator[str]:
    inner = getattr(validator, "_validators", None) or getattr(validator, "validator", None)
    if inner is not None:  # and_, optional
        for each in inner if isinstance(inner, tuple | list) else (inner,):
            yield from _rules(each)
    elif hasattr(validator, "compare_op"):
        yield f"{validator.compare_op} {validator.bound}"
    elif hasattr(validator, "options"):
        yield from map(str, validator.options)
    elif hasattr(validator, "min_length"):
        yield f"{validator.min_length} or more of them"


# ---------------------------------------------------------------- kinds


@attrs.frozen
class Duty:
    """What a component must define: `name`, with what goes in and out, and what its docstring says of it."""

    name: str
    signature: str
    meaning: str


@attrs.frozen
class Kind:
    """A kind of part: its abstract class, what that says of itself, how a component is built, what it must define."""

    kind: str
    base: str
    meaning: str
    built: str
    must_define: tuple[Duty, ...]


def kinds_of(registry: Registry) -> list[Kind]:
    """Every kind of part there is, read from the abstract classes."""
    return [_kind(name, base) for name, base in registry.kinds.items()]


def _kind(name: str, base: type) -> Kind:
    text = " ".join(" ".join(inspect.cleandoc(cls.__doc__ or "") for cls in base.__mro__[:2]).split())
    built = re.search(r"built as `([^`]*)`", text, re.I)
    return Kind(name, base.__name__, _summary(base), built[1] if built else "Class(config)", tuple(_duties(base)))


def _duties(base: type, owner: str = "") -> Iterator[Duty]:
    if "__init__" not in base.__dict__:  # where it has one, that sets them
        lacking = [name for name in inspect.get_annotations(base) if not hasattr(base, name)]
        meanings = attributes_of(base) if lacking else {}
        for name in lacking:
            yield Duty(f"{owner}{name}", f"{owner}{name}", " ".join(meanings[name].split()))
    for name in dict.fromkeys(name for cls in reversed(base.__mro__) for name in cls.__dict__):
        method = getattr(base, name)
        if not getattr(method, "__isabstractmethod__", False):
            continue
        signature = inspect.signature(method)
        plain = [p.replace(annotation=p.empty) for p in signature.parameters.values() if p.name != "self"]
        shown = str(signature.replace(parameters=plain)).replace("'", "")
        yield Duty(f"{owner}{name}", f"{owner}{name}{shown}", _summary(method))
        told = get_type_hints(method).get("return")
        if inspect.isclass(told) and inspect.isabstract(told) and told.__module__.startswith("mixar_core"):
            yield from _duties(told, f"{told.__name__}.")  # a backbone's state


def attributes_of(base: type) -> dict[str, str]:
    """The attributes that a class declares, with what the text below each says of it; nothing where there is none."""
    body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
    assert isinstance(body, ast.ClassDef)
    told = {}
    for node, below in zip(body.body, [*body.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            text = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else None
            told[node.target.id] = inspect.cleandoc(text) if isinstance(text, str) else ""
    return told


def _summary(thing: Any) -> str:
    """The first paragraph of a docstring, up to how it is built."""
    paragraph = inspect.cleandoc(thing.__doc__ or "").partition("\n\n")[0]
    return re.split(r" (?:Registered as a Part|Built as)", " ".join(paragraph.split()))[0]
