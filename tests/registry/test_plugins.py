"""Discovery: distributions made on the spot, good ones and bad ones, beside the installed ones."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mixar_core
from mixar.cli.main import _why_missing
from mixar.plugins import Part, Plugin, Registry, load_plugins, plugin_manager
from mixar_core.errors import UserError
from tests.registry.conftest import Install, folders_hook

GOOD = """
    from attrs import frozen
    from mixar_core.training.callback import Callback
    from mixar import hookimpl
    from mixar import Part

    MIXAR_INTERFACE = 2

    @frozen
    class BellConfig:
        loud: bool = True

    class Bell(Callback):
        '''Rings.'''

        def __init__(self, config):
            self.config = config

    @hookimpl
    def mixar_parts():
        return [Part("callback", NAME, Bell, BellConfig)]
"""


INJECTOR = """
    from attrs import frozen
    from mixar_core.injector import GuidanceInjector
    from mixar_core.types import Guidance
    from mixar import hookimpl
    from mixar import Part

    MIXAR_INTERFACE = 2

    @frozen
    class Config:
        pass

    class Mine(GuidanceInjector):
        opens = OPENS

        def forward(self, tokens):
            return Guidance()

    @hookimpl
    def mixar_parts():
        return [Part("injector", "mine", Mine, Config)]
"""

HOOK = "from mixar import UserError, hookimpl\nMIXAR_INTERFACE = 2\n@hookimpl\n"


def test_a_third_party_comes_in_through_the_door_the_shipped_parts_use(install: Install) -> None:
    install("bell-shop", "bells", GOOD.replace("NAME", '"bell"'))
    registry = plugin_manager()
    part = registry.part("callback", "bell")
    assert part.summary == "Rings."
    assert registry.plugin_of(part).distribution == "bell-shop 1.0"
    assert registry.plugin_of(registry.part("callback", "progress")).name == "builtin"
    assert not registry.broken
    install("tap-shop", "taps", INJECTOR.replace("OPENS", "frozenset({'fill', 'memory'})"))
    assert plugin_manager().part("injector", "mine")


def test_every_call_finds_anew(install: Install) -> None:
    before = plugin_manager()
    install("bell-shop", "bells", GOOD.replace("NAME", '"bell"'))
    assert [p.name for p in plugin_manager().plugins] == sorted([*(p.name for p in before.plugins), "bells"])


def test_one_plugin_name_of_two_distributions_takes_down_these_two(install: Install) -> None:
    install("bell-shop", "bells", GOOD.replace("NAME", '"bell"'))
    install("bell-forge", "bells", GOOD.replace("NAME", '"gong"'))
    registry = plugin_manager(option="--no-plugin")
    assert [(p.name, p.distribution) for p in registry.broken] == [
        ("bells", "bell-forge 1.0"),
        ("bells", "bell-shop 1.0"),
    ]
    for plugin in registry.broken:
        assert plugin.problem == (
            "bell-forge 1.0 and bell-shop 1.0 each have a plugin of this name; uninstall one, or --no-plugin bells"
        )
    assert registry.part("injector", "dc-mix")
    with pytest.raises(UserError, match=r"bell-shop 1\.0 was not loaded: bell-forge 1\.0 and bell-shop 1\.0 each"):
        registry.part("callback", "bell")
    assert "bells" not in [p.name for p in plugin_manager(blocked=["bells"]).plugins]


def test_one_part_of_two_plugins_is_refused_where_it_is_named(install: Install) -> None:
    install("bell-shop", "bells", GOOD.replace("NAME", '"progress"'))
    registry = plugin_manager()
    assert not registry.broken and registry.part("injector", "dc-mix")
    with pytest.raises(UserError, match=r'callback "progress": more than one package') as refused:
        registry.part("callback", "progress")
    assert "write bells:progress (of bell-shop 1.0) or builtin:progress (of mixar " in str(refused.value)
    ours, theirs = (registry.part("callback", f"{plugin}:progress") for plugin in ("builtin", "bells"))
    assert ours.component is not theirs.component and theirs.summary == "Rings."
    assert [registry.plugin_of(part).name for part in (ours, theirs)] == ["builtin", "bells"]
    assert [registry.name_of(part) for part in (ours, theirs)] == ["builtin:progress", "bells:progress"]
    assert [part for part in registry.parts("callback") if part.name == "progress"] == [theirs, ours]
    assert registry.name_of(registry.part("injector", "builtin:dc-mix")) == "dc-mix"
    with pytest.raises(UserError, match=r'unknown callback "bell:progress"; did you mean bells:progress\?? '):
        registry.part("callback", "bell:progress")
    alone = plugin_manager(blocked=["builtin"], option="--no-plugin")
    assert alone.part("callback", "progress").summary == "Rings."
    with pytest.raises(UserError, match=r"allowed: bells:progress \(plugin builtin of mixar .* is left out by --no-pl"):
        alone.part("callback", "builtin:progress")


@given(st.dictionaries(st.sampled_from("abcd"), st.sets(st.sampled_from(["mse", "flow", "joint"])), max_size=4))
def test_a_part_is_found_by_the_name_that_means_it(offers: dict[str, set[str]]) -> None:
    """And every other way to write its name means it, too, or is refused."""
    plugins = [
        Plugin(name, f"mixar-{name} 1.0", parts=tuple(Part("head", each, int, int) for each in sorted(names)))
        for name, names in offers.items()
    ]
    registry = Registry(tuple(plugins), {"head": int})
    everyone = [each for names in offers.values() for each in names]
    assert len(registry.parts("head")) == len(everyone)
    for part in registry.parts("head"):
        name, plugin = registry.name_of(part), registry.plugin_of(part)
        assert registry.part("head", name) is part and registry.settle("head", name) == name
        assert registry.part("head", f"{plugin.name}:{part.name}") is part
        assert (name == part.name) == (everyone.count(part.name) == 1)
        assert registry.settle("head", f"{plugin.name}:{part.name}") == name
        assert registry.part("head", registry.settle("head", part.name, plugin.package)) is part
        if name != part.name:
            assert registry.settle("head", part.name) == part.name
            with pytest.raises(UserError, match="more than one package offers it"):
                registry.part("head", part.name)


def test_the_same_object_of_two_plugins_is_a_part_of_each(install: Install, tmp_path: Path) -> None:
    offered = 'Part("callback", "bell", Bell, BellConfig)'
    once = GOOD.replace("NAME", '"bell"').replace(f"return [{offered}]", "return [PART]")
    install("bell-shop", "bells", once + f"\n    PART = {offered}\n")
    (module,) = (path.stem for path in tmp_path.glob("bell_shop*.py"))
    install("bell-again", "again", f"from {module} import PART\n{HOOK}def mixar_parts():\n    return [PART]")
    registry = plugin_manager()
    first, second = (registry.part("callback", f"{plugin}:bell") for plugin in ("again", "bells"))
    assert first == second and [registry.plugin_of(part).name for part in (first, second)] == ["again", "bells"]


def test_one_part_twice_of_one_plugin_is_left_out(install: Install) -> None:
    twice = 'Part("callback", NAME, Bell, BellConfig)'
    more = 'Part("callback", "gong", Bell, BellConfig)'
    install("bell-shop", "bells", GOOD.replace(twice, f"{twice}, {twice}, {more}").replace("NAME", '"bell"'))
    registry = plugin_manager()
    assert registry.part("callback", "gong")
    with pytest.raises(UserError, match=r'of bell-shop 1\.0 offers one .*callback "bell": offered 2 times'):
        registry.part("callback", "bell")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import no_such_module", "no_such_module"),
        ("raise RuntimeError('out of luck')", "out of luck"),
        ("x = 1", "no function marked"),
        (GOOD.replace("mixar_parts", "mixar_partz").replace("NAME", '"bell"'), "did you mean mixar_parts"),
        (GOOD.replace("NAME", "1 / 0"), "ZeroDivisionError"),
        (HOOK + "def mixar_kinds():\n    return 1 / 0", "ZeroDivisionError"),
        (HOOK + "def mixar_parts():\n    raise UserError('no bells')", "no bells"),
        (HOOK + "def mixar_kinds():\n    return 'bells'", "AttributeError"),
        (HOOK + "def mixar_kinds():\n    return {'head': int}", 'kind "head" is there'),
    ],
)
def test_a_broken_plugin_is_reported_and_the_others_load(install: Install, code: str, reason: str) -> None:
    install("bell-shop", "bells", code)
    registry = plugin_manager()
    (broken,) = registry.broken
    assert broken.distribution == "bell-shop 1.0"
    assert broken.problem is not None and reason in broken.problem and "\n" not in broken.problem
    assert registry.part("injector", "dc-mix")
    with pytest.raises(UserError, match="bell-shop"):  # what is missed may be what it would have brought
        registry.part("callback", "bell")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (GOOD.replace("NAME", '"Bell!"'), "lower-case"),
        (GOOD.replace('"callback", NAME', '"callbak", "bell"'), "did you mean callback"),
        (GOOD.replace('"callback", NAME', '"head", "bell"'), "does not derive from ContinuousHead"),
        (GOOD.replace("@frozen", "").replace("NAME", '"bell"'), "not a frozen attrs class"),
        (GOOD.replace("loud", "weights").replace("NAME", '"bell"'), "recipes use themselves"),
        (
            GOOD.replace("bool", "'Path'").replace("NAME", '"bell"'),
            """part callback "bell": config BellConfig: the type of a field cannot be read """
            "(NameError: name 'Path' is not defined); import it outside of TYPE_CHECKING",
        ),
        (
            GOOD.replace("bool = True", "list[Inner] = ()")
            .replace("@frozen", "@frozen\n    class Inner:\n        at: 'Path'\n\n    @frozen", 1)
            .replace("NAME", '"bell"'),
            "config Inner: the type of a field cannot be read (NameError: name 'Path' is not defined)",
        ),
        (
            GOOD.replace("bool", "'1 + '").replace("NAME", '"bell"'),
            "config BellConfig: the type of a field cannot be read (SyntaxError: Forward reference must be an",
        ),
        (GOOD.replace('Part("callback", NAME, Bell, BellConfig)', '"bell"'), "not a Part"),
        (INJECTOR.replace("opens = OPENS", ""), 'injector "mine": opens is None, not a set of doors; allowed: fill,'),
        (INJECTOR.replace("opens = OPENS", ""), 'set it on the class, as opens = frozenset({"fill"})'),
        (INJECTOR.replace("OPENS", "frozenset({'fil'})"), "opens is frozenset({'fil'}), not a set of doors"),
        (INJECTOR.replace("OPENS", "('fill',)"), "opens is ('fill',), not a set of doors"),
        (
            INJECTOR.replace("OPENS", "{'fill'}").replace("forward", "go"),
            'injector "mine": component Mine lacks forward',
        ),
    ],
)
def test_a_broken_part_is_reported_and_the_others_of_its_package_are_in_use(
    install: Install, code: str, reason: str
) -> None:
    code = textwrap.dedent(code).replace("return [", 'return [Part("head", "gong", MseHead, MseHeadConfig), ')
    install("bell-shop", "bells", f"from mixar_plugins.heads.mse import MseHead, MseHeadConfig\n{code}")
    registry = plugin_manager()
    assert not registry.broken
    assert registry.part("head", "gong") and registry.part("injector", "dc-mix")
    (plugin,) = (plugin for plugin in registry.plugins if plugin.distribution == "bell-shop 1.0")
    assert plugin.problem is None and [part.name for part in plugin.parts] == ["gong"]
    (broken,) = plugin.broken_parts
    assert reason in broken.problem and "\n" not in broken.problem
    kind, name = ("injector", "mine") if "mine" in code else ("callback", "bell")
    with pytest.raises(UserError, match=r"plugin bells of bell-shop 1\.0 offers one that cannot be used: "):
        registry.part(kind, name)
    if broken.name:
        with pytest.raises(UserError) as unknown:
            registry.part("head", "difusion")
        assert "bell-shop" not in str(unknown.value)


@pytest.mark.parametrize(
    ("declared", "reason"),
    [
        (None, "written for interface 1, this mixar has 2: a Condition in place of labels"),
        ("1", "docs/plugins.md says what to change"),
        ("3", "written for interface 3, this mixar has 2: upgrade mixar"),
        ("'2'", "MIXAR_INTERFACE is '2', not the number of a version"),
        ("True", "MIXAR_INTERFACE is True, not the number of a version"),
        ("0", "MIXAR_INTERFACE is 0, not the number of a version"),
        ("2.5", "MIXAR_INTERFACE is 2.5, not the number of a version"),
    ],
)
@pytest.mark.parametrize("code", [GOOD, HOOK + "def mixar_kinds():\n    return {'bell': int}"])
def test_parts_of_another_interface_are_left_out(
    install: Install, declared: str | None, reason: str, code: str
) -> None:
    old = code.replace("MIXAR_INTERFACE = 2", "" if declared is None else f"MIXAR_INTERFACE = {declared}")
    install("bell-shop", "bells", old.replace("NAME", '"bell"'))
    registry = plugin_manager()
    (broken,) = registry.broken
    assert broken.distribution == "bell-shop 1.0" and not broken.parts and "bell" not in registry.kinds
    assert broken.problem is not None and reason in broken.problem and "\n" not in broken.problem
    assert registry.part("injector", "dc-mix")
    with pytest.raises(UserError, match=r"bell-shop 1\.0 was not loaded"):
        registry.part("callback", "bell")


def test_recipes_and_commands_are_of_no_interface(install: Install, tmp_path: Path) -> None:
    (tmp_path / "ring.yaml").write_text("summary: x\n")
    hooks = """
        from pathlib import Path
        from mixar import hookimpl

        @hookimpl
        def mixar_recipe_folders():
            return [Path(FOLDER)]

        @hookimpl
        def mixar_commands(app):
            pass
    """
    install("bell-shop", "bells", hooks.replace("FOLDER", repr(str(tmp_path))))
    registry = plugin_manager()
    assert not registry.broken and registry.find_recipe("ring") == tmp_path / "ring.yaml"


def test_our_own_packages_say_which_interface_they_were_written_for() -> None:
    manager, plugins = load_plugins()
    assert not [plugin for plugin in plugins if plugin.problem]
    for plugin in plugins:
        assert manager.get_plugin(plugin.name).MIXAR_INTERFACE == mixar_core.INTERFACE


def test_one_module_under_two_names_is_loaded_once(install: Install, tmp_path: Path) -> None:
    install("bell-shop", "bells", GOOD.replace("NAME", '"bell"'))
    (entries,) = tmp_path.glob("*.dist-info/entry_points.txt")
    entries.write_text(entries.read_text() + entries.read_text().splitlines()[1].replace("bells", "chimes"))
    registry = plugin_manager()
    (broken,) = registry.broken
    assert broken.name == "chimes" and "already registered" in str(broken.problem)
    assert registry.plugin_of(registry.part("callback", "bell")).name == "bells"


def test_a_blocked_plugin_must_exist() -> None:
    with pytest.raises(UserError, match="did you mean builtin"):
        plugin_manager(blocked=["builtins"])
    assert not any(part.name == "dc-mix" for part in plugin_manager(blocked=["builtin"]).parts("injector"))
    assert plugin_manager(blocked=["builtin", "adaptive"]).parts("injector") == []


def test_an_unknown_part_is_answered_with_choices() -> None:
    registry = plugin_manager()
    with pytest.raises(UserError, match="did you mean dc-mix"):
        registry.part("injector", "dc-mixx")
    assert all(part.kind == kind for kind in registry.kinds for part in registry.parts(kind))


def test_two_recipes_of_one_name_are_told_apart(install: Install, tmp_path: Path) -> None:
    for plugin in ("bells", "gongs"):
        folder = tmp_path / plugin
        (folder / "models/old").mkdir(parents=True)
        (folder / "twin.yaml").write_text("summary: x\n")
        (folder / "models/old/recipe.yaml").write_text("summary: x\n")
        install(f"{plugin}-shop", plugin, folders_hook(folder))
    registry = plugin_manager()
    bells, gongs = tmp_path / "bells", tmp_path / "gongs"
    with pytest.raises(UserError) as refused:
        registry.find_recipe("twin")
    ways = f"bells:twin ({bells}/twin.yaml) or gongs:twin ({gongs}/twin.yaml)"
    assert str(refused.value) == f'recipe "twin" is there more than once; give {ways}'
    with pytest.raises(UserError, match=rf'model "old" is there more than once; give bells:old \({bells}/models/old\)'):
        registry.find_model("old")
    assert registry.find_recipe("gongs:twin") == gongs / "twin.yaml"
    assert registry.find_model("bells:old") == bells / "models/old"
    assert registry.recipes()["bells:twin"] == [bells / "twin.yaml"] and "twin" not in registry.recipes()
    assert registry.models()["gongs:old"] == [gongs / "models/old"] and "old" not in registry.models()
    with pytest.raises(UserError, match=r'unknown recipe "bels:twin"; did you mean bells:twin'):
        registry.find_recipe("bels:twin")


def test_a_recipe_that_two_plugins_bring_is_found_by_path_only(install: Install, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "twin.yaml").write_text("summary: x\n")
    folders = f"[Path({str(tmp_path / 'one')!r}), Path({str(tmp_path / 'two')!r})]"
    install(
        "bell-shop",
        "bells",
        f"""
        from pathlib import Path
        from mixar import hookimpl

        @hookimpl
        def mixar_recipe_folders():
            return {folders}
        """,
    )
    registry = plugin_manager()
    with pytest.raises(UserError, match="more than once"):
        registry.find_recipe("twin")
    assert registry.find_recipe(tmp_path / "one/twin.yaml").is_file()
    with pytest.raises(UserError, match="did you mean mar_b"):
        registry.find_recipe("mar_bb")
    with pytest.raises(UserError, match="no such file"):
        registry.find_recipe("./mar_b.yaml")


def test_what_the_zoo_ships_says_so_where_it_is_not_installed(registry: Registry) -> None:
    without = Registry(tuple(p for p in registry.plugins if p.package != "mixar-zoo"), registry.kinds)
    for find, name in ((without.find_model, "emoji64"), (without.find_recipe, "digits_quick")):
        with pytest.raises(UserError, match=r"pip install \./plugins/mixar_eval \./plugins/mixar_zoo"):
            find(name)
    with pytest.raises(UserError) as caught:
        without.find_model("nobody")
    assert "mixar_zoo" not in str(caught.value)


def test_a_command_of_a_package_that_is_not_installed_says_which() -> None:
    said = _why_missing("No such command 'demo'.", [])
    assert said == "; it comes with mixar_zoo, in a checkout: pip install ./plugins/mixar_eval ./plugins/mixar_zoo"
