"""`mixar plugin check`: a line a check, what was expected and what came, and an exit code that a build can use."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import NOTHING, fields
from typer.testing import CliRunner

from mixar.checked import written_and_read
from mixar.cli.main import app
from mixar.plugins import Registry, plugin_manager
from mixar_core.errors import UserError
from tests.cli.process import good, refused

CODE = """
import torch
from attrs import field, frozen
from mixar import Part, hookimpl
from mixar_core import Callback, ImageDataset
from mixar_plugins.heads.mse import MseHead, MseHeadConfig

MIXAR_INTERFACE = 2


@frozen
class Small(MseHeadConfig):
    depth: int = 1
    width: int = 16


@frozen
class Forgetful:
    depth: int = field(default=1, converter=lambda depth: depth + 1)
    width: int = 16


class Wrong(MseHead):
    '''Says that it draws, and does not; and rounds its loss.'''

    deterministic = False

    def loss(self, z, target_BKC, *, noise):
        return super().loss(z, target_BKC, noise=noise).half()


class Loud(Callback):
    '''Prints.'''

    def __init__(self, config):
        pass

    def on_start(self, run):
        print("I am loud")


@frozen
class Empty:
    pass


@frozen
class Needs:
    path: str


class NoImages(ImageDataset):
    '''Cannot be built.'''

    def __init__(self, config, *, split, image_size):
        pass

    def __len__(self):
        return 0

    def __getitem__(self, index):
        raise IndexError

    def labels(self):
        return []


@hookimpl
def mixar_parts():
    heads = [Part("head", "shop-wrong", Wrong, Small), Part("head", "shop-forgetful", MseHead, Forgetful)]
    return [*heads, Part("callback", "shop-loud", Loud, Empty), Part("dataset", "shop-images", NoImages, Needs), BROKEN]
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """A package with a part that is right, two that are wrong, and one that has no defaults."""
    for name, broken in (("part_shop", "*()"), ("odd_shop", '"no part"')):
        code = CODE.replace("BROKEN", broken)
        (tmp_path / f"{name}.py").write_text(code.replace("shop-", "odd-") if name == "odd_shop" else code)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[mixar]\n{name[:4].strip('_')} = {name}\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield plugin_manager()
    for name in ("part_shop", "odd_shop"):
        sys.modules.pop(name, None)


def mixar(*words: str) -> Any:
    return CliRunner().invoke(app, ["plugin", "check", *words])


def test_a_part_that_holds_is_told_line_by_line() -> None:
    lines = good("plugin", "check", "head:mse", "--set", "depth=1", "--set", "width=16").splitlines()
    assert lines[0].startswith('head "mse" of plugin builtin (mixar ') and lines[-1] == "parts: 1 ok"
    told = [re.fullmatch(r"  (ok|-) +(.+)", line) for line in lines[1:-2]]
    assert all(told), lines
    topics = [found[2].split(":")[0] for found in told if found]
    for topic in (
        "settings, written and read again", "it is built", "random numbers", "repeatable", "speed and memory",
        "state dict", "under bf16 autocast", "on meta, without values", "on cuda", "shapes and ranges",
        "batch independence", "gradients",
    ):  # fmt: skip
        assert topics.count(topic) == 1


def test_what_does_not_hold_is_told_with_what_came(shop: Registry) -> None:
    done = mixar("head:shop-wrong")
    assert done.exit_code == 1
    assert "  FAILS  shapes and ranges: loss is torch.float16, not torch.float32" in done.output
    assert "  FAILS  what it depends on: another seed, yet the same sample" in done.output
    assert "  ok     state dict\n" in done.output and done.output.endswith("\nparts: 1 FAILS\n")


def test_all_parts_of_a_package_are_checked_whatever_the_first_one_is(shop: Registry) -> None:
    done = mixar("part-shop")
    assert done.exit_code == 1
    assert "  FAILS  settings, written and read again: Forgetful(depth=3, width=16) comes back of Forg" in done.output
    unchecked = 'dataset "shop-images" of plugin part (part-shop 1.0): not checked: path: required, and not there\n'
    assert unchecked in done.output and "I am loud" not in done.output
    assert f"{unchecked}  by itself: mixar plugin check dataset:shop-images --set path=...\n" in done.output
    assert done.output.endswith("\nparts: 1 ok, 2 FAILS, 1 not checked\n")


def test_a_part_that_is_none_fails(shop: Registry) -> None:
    done = mixar("odd-shop")
    assert done.exit_code == 1 and "odd-shop: FAILS: " in done.output and "not a Part" in done.output


def test_bad_input_is_refused(shop: Registry) -> None:
    for words, message in (
        (["zero"], 'unknown part "zero"; allowed: '),
        (["head:mse", "--set", "dept=1"], 'head "mse": dept: unknown key; did you mean depth?'),
        (["dataset:shop-images"], 'dataset "shop-images": path: required, and not there; give --set path=...'),
        (["part-shop", "--set", "depth=1"], "--set is for one part; part-shop has: head:shop-wrong, head:shop-forg"),
        (["importer:mar"], "derives from no abstract class that has a contract"),
        (["prior:maskbit"], "prior.bits is 14"),
    ):
        done = mixar(*words)
        assert isinstance(done.exception, UserError) and str(done.exception).count("\n") == 0
        assert message in str(done.exception)
    assert str(mixar("part-shopp").exception).startswith(
        'no package or plugin of that name, and unknown part "part-shopp"; did you mean part-shop?'
    )
    assert "did you mean mse " in refused("plugin", "check", "msee")


def test_the_defaults_of_every_part_are_written_and_read_again(registry: Registry) -> None:
    """The first thing that `check` looks at, for all parts there are that have defaults."""
    for kind in registry.kinds:
        for part in registry.parts(kind):
            if all(field.default is not NOTHING for field in fields(part.config)):
                config = part.config()
                assert written_and_read(config) == config, (kind, part.name)
