"""What classes say of themselves: every setting of every part, every kind and what it must define."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from attrs import Factory, evolve, field, frozen
from attrs.validators import and_, ge, in_, le, min_len, optional

from mixar.described import Setting, attributes_of, find_part, kinds_of, settings_of
from mixar.plugins import BrokenPart, Plugin, Registry
from mixar_core.errors import UserError


@frozen
class Inner:
    """Args: size: pixels."""

    size: int = 3


@frozen
class Base:
    """One setting.

    Args:
        depth: layers;
            of the trunk.
    """

    depth: int | None = field(default=None, validator=optional(and_(ge(1), le(9))))


@frozen
class Config(Base):
    """Many settings.

    Args:
        mode: how; note: this is no setting. file: where it lies.
        low, high: the range.
        from_: where it begins.
    """

    mode: Literal["a", "b"] = field(default="a", validator=in_(("a", "b")))
    file: Path | None = None
    low: float = 0.0
    high: float = 1.0
    from_: tuple[int, ...] = field(default=Factory(lambda: (1, 2)), validator=min_len(1))
    inner: Inner = Inner()
    must: str = field(kw_only=True)
    own: int = field(init=False, default=0)


def test_settings_are_read_from_the_class_and_its_docstrings() -> None:
    assert settings_of(Config) == [
        Setting("depth", "int | None", False, None, ">= 1, <= 9", "layers; of the trunk."),
        Setting("mode", "str", False, "a", "a, b", "how; note: this is no setting."),
        Setting("file", "Path | None", False, None, "", "where it lies."),
        Setting("low", "float", False, 0.0, "", "the range."),
        Setting("high", "float", False, 1.0, "", "the range."),
        Setting("from", "tuple[int, ...]", False, (1, 2), "1 or more of them", "where it begins."),
        Setting("inner.size", "int", False, 3, "", "pixels."),
        Setting("must", "str", True, None, "", ""),
    ]


def test_every_setting_of_every_part_says_what_it_means(registry: Registry) -> None:
    silent = [
        f"{kind}:{part.name}.{setting.name}"
        for kind in registry.kinds
        for part in registry.parts(kind)
        for setting in settings_of(part.config)
        if not setting.meaning
    ]
    assert not silent


def test_a_part_is_found_by_its_name_and_by_its_kind(registry: Registry) -> None:
    assert find_part(registry, "diffusion") is registry.part("head", "diffusion")
    for text in ("head:diffusion", "builtin:diffusion", "head:builtin:diffusion"):
        assert find_part(registry, text) is registry.part("head", "diffusion")
    for text, message in (
        ("difusion", 'unknown part "difusion"; did you mean diffusion?'),
        ("head:vq", 'unknown head "vq"'),
        ("head:", 'unknown part "head:"'),
    ):
        with pytest.raises(UserError, match=message):
            find_part(registry, text)


def test_who_asks_for_what_is_not_there_hears_of_the_nearest_names_and_of_no_other_broken_part(
    registry: Registry,
) -> None:
    broken = tuple(BrokenPart("head", name, f"{name} lacks loss") for name in ("bell", "bells", "gong", "GONG"))
    registry = evolve(registry, plugins=(*registry.plugins, Plugin("bellshop", "bell-shop 1.0", broken_parts=broken)))

    def said(text: str, **options: bool) -> str:
        with pytest.raises(UserError) as refused:
            find_part(registry, text, **options)
        return str(refused.value)

    offers = "plugin bellshop of bell-shop 1.0 offers one that cannot be used:"
    for name in ("bell", "bells", "gong", "GONG"):
        assert said(name) == said(name, or_package=True) == f'part "{name}": {offers} {name} lacks loss'
    assert f"({offers} bell lacks loss) ({offers} bells lacks loss)" in said("bellss")
    assert said("bell-shp", or_package=True).startswith("no package or plugin of that name, and unknown part ")
    assert "did you mean bell-shop" in said("bell-shp", or_package=True)
    assert said("difusion") == 'unknown part "difusion"; did you mean diffusion?'
    assert "lacks" not in said("zero") and 'unknown part "zero"; allowed: ' in said("zero")


def test_every_attribute_of_an_abstract_class_says_what_it_means(registry: Registry) -> None:
    """In a text below it, which documentation shows, as it shows no comment."""
    bases = {base for kind in registry.kinds.values() for base in kind.__mro__ if base.__module__.startswith("mixar")}
    told = {f"{base.__name__}.{name}": text for base in bases for name, text in attributes_of(base).items()}
    buffers = {"ContinuousTokenizer.latent_mean_C", "ContinuousTokenizer.latent_std_C"}
    assert {name for name, text in told.items() if not text} <= buffers
    for name in ("opens", "follows"):
        assert f"GuidanceInjector.{name}" in told
    assert "one token a step, row by row" in told["Sampler.raster"]
    assert "`meta` device" in told["Backbone.meta_safe"] and "another seed" in told["ContinuousHead.deterministic"]
    assert "Optimizer.counters" in told and "DiscretePrior.sees_truth" in told


def test_every_kind_says_what_it_is_and_what_it_must_define(registry: Registry) -> None:
    kinds = {kind.kind: kind for kind in kinds_of(registry)}
    assert kinds.keys() == registry.kinds.keys()
    for name, kind in kinds.items():
        assert kind.meaning.endswith(".") and kind.built.startswith("Class(config")
        duties = {duty.name for duty in kind.must_define}
        assert registry.kinds[name].__dict__.get("__abstractmethods__", frozenset()) <= duties
        assert all(duty.meaning for duty in kind.must_define if "(" in duty.signature), name
    assert kinds["prior"].built == (
        "Class(config, tokenizer=<DiscreteTokenizer>, num_classes=..., data=<Dataset or None>)"
    )
    assert {"start", "BackboneState.predict", "BackboneState.reveal", "width"} <= {
        duty.name for duty in kinds["backbone"].must_define
    }
    (forward,) = [duty for duty in kinds["injector"].must_define if duty.name == "forward"]
    assert forward.signature == "forward(tokens) -> Guidance" and "door" in forward.meaning
