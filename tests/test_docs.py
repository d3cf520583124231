"""What the documents say can be found, and run: links, anchors, commands and their options."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer

from mixar.cli.main import add_commands, app
from mixar.plugins import load_plugins

ROOT = Path(__file__).parents[1]
FOLDERS = ("", "docs", "docs/results", "tests/parity", "benchmarks", "plugins/*")
PAGES = sorted(path for folder in FOLDERS for path in ROOT.glob(f"{folder}/*.md".lstrip("/")))
LINK = re.compile(r"\[[^\]]*\]\(([^)\s#]*)#?([^)\s]*)\)")
FENCED = re.compile(r"^```.*?\n(.*?)^```", re.M | re.S)
#: what may stand before a program's name
BEFORE = re.compile(r"\w+=\S*|\$|nohup|time|torchrun|--nproc-per-node|\d+")


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def anchors(page: str) -> set[str]:
    """What its headings are called in links, as GitHub makes it."""
    titles = re.findall(r"^#+ (.*)$", FENCED.sub("", page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_lead_somewhere() -> None:
    dead = []
    for path in PAGES:
        for found in LINK.finditer(FENCED.sub("", read(path))):
            target, anchor = found.groups()
            if target.startswith(("http:", "https:", "mailto:")):
                continue
            there = path.parent / target if target else path
            if not there.exists() or (anchor and anchor not in anchors(read(there))):
                dead.append(f"{path.relative_to(ROOT)}: {found[0]}")
    assert "\n".join(dead) == ""


def commands() -> Iterator[tuple[str, list[str]]]:
    """The words of what the pages tell to type, a command each; the changelog's are of their day."""
    for path in PAGES:
        page = re.sub(r"\\\n\s*", " ", read(path))
        prose = FENCED.sub("", page)
        lines = "".join(FENCED.findall(page)).splitlines() + re.findall(r"^    (.*)", prose, flags=re.M)
        quoted = re.findall(r"`([^`]+)`", re.sub(r"^    .*", "", prose, flags=re.M))
        for line in [*lines, *(" ".join(each.split()) for each in quoted)] if path.name != "CHANGELOG.md" else ():
            for one in re.split(r" && | \| |; | · ", line.partition("  #")[0]):
                with suppress(ValueError):  # no command: a quote that is not closed
                    words = shlex.split(one, comments=True)
                    while words and BEFORE.fullmatch(words[0]):
                        words = words[1:]
                    words = words[1:] if words[:1] == ["-m"] else words
                    if len(words) > 1:
                        yield f"{path.relative_to(ROOT)}: {one.strip()}", words


def program() -> Any:
    """`mixar`, with the commands of all packages here."""
    add_commands(app, load_plugins()[0])
    return typer.main.get_command(app)


def test_mixar_has_these_commands_and_options() -> None:
    wrong, root, count = [], program(), 0
    for where, (name, *words) in commands():
        if name.removeprefix(".venv/bin/") != "mixar":
            continue
        command, count = root, count + 1
        while words and words[0] in getattr(command, "commands", ()):
            command, words = command.commands[words[0]], words[1:]
        options = [each for one in (root, command) for each in one.params]
        known = {option for each in options for option in (*each.opts, *each.secondary_opts)} | {"--help", "-h"}
        asked = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        unnamed = hasattr(command, "commands") and words and not words[0].startswith(("-", "..."))
        if asked - known or unnamed:
            wrong.append(where)
    assert "\n".join(wrong) == "" and count > 150


def test_modules_that_are_to_be_run_know_these_options() -> None:
    wrong, count = [], 0
    for where, (name, *words) in commands():
        if name not in ("python", "python3") or words[0] != "-m" or not words[1].startswith(("benchmarks", "tests.")):
            continue
        here, count = ROOT / words[1].replace(".", "/"), count + 1
        there = [path for path in (here.with_suffix(".py"), here / "__main__.py") if path.is_file()]
        source = "".join(map(read, [*there, *here.glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]))
        asked = {word.partition("=")[0] for word in words if word.startswith("--")}
        if not there or not all(re.search(rf'"{o}"|\b{o[2:].replace("-", "_")}\s*[:=]', source) for o in asked):
            wrong.append(where)
    assert "\n".join(wrong) == "" and count > 40
