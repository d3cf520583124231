"""The program with other people's plugins: quick, with their commands, and whole where one of them is broken."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

GOOD = """
    from mixar import hookimpl

    def ring(times: int = 1) -> None:
        '''Ring the bell.'''
        print("ding" * times)

    @hookimpl
    def mixar_commands(app):
        app.command("ring")(ring)
"""
HEADER = "from mixar import hookimpl\nimport sys\n\n@hookimpl\ndef mixar_commands(app):\n"


def mixar(plugins: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(plugins), "COLUMNS": "120", "TERMINAL_WIDTH": "120"}
    command = [sys.executable, "-m", "mixar", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


def install(folder: Path, **codes: str) -> Path:
    """Distributions of one module, each an entry point of the same name."""
    for name, code in codes.items():
        (folder / f"bell_{name}.py").write_text(textwrap.dedent(code))
        info = folder / f"bell_{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: bell-{name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[mixar]\n{name} = bell_{name}\n")
    return folder


def test_commands_of_others_come_in_and_can_be_left_out(tmp_path: Path) -> None:
    install(tmp_path, good=GOOD)
    assert "Ring the bell." in mixar(tmp_path, "--help").stdout
    assert mixar(tmp_path, "ring", "--times", "2").stdout == "dingding\n"
    for words in (["--no-plugin", "good"], ["--no-plugin=good"]):
        assert "Ring the bell." not in mixar(tmp_path, *words, "--help").stdout
        assert mixar(tmp_path, *words, "ring").returncode == 2
    assert 'unknown plugin "goo"' in mixar(tmp_path, "--no-plugin=goo", "--help").stderr


def test_a_broken_one_takes_down_neither_help_nor_the_others(tmp_path: Path) -> None:
    broken = {
        "raises": HEADER + "    raise RuntimeError('out of order')\n",
        "ends": HEADER + "    sys.exit(3)\n",
        "cannot_be_built": HEADER + "    def command(what: 'Nowhere'): pass\n    app.command('odd')(command)\n",
        "late": GOOD,
        "takes_ours": HEADER + "    def sample(): print('mine')\n    app.command()(sample)\n",
        "takes_theirs": GOOD,
        "without_a_name": HEADER + "    import typer\n    own = typer.Typer()\n    app.add_typer(own)\n"
        "    @own.command()\n    def knock(): print('knock')\n    @own.command()\n    def bang(): print('bang')\n",
        "not_imported": "import there_is_no_such_module\n",
        "ends_at_once": "raise SystemExit('no licence')\n",
    }
    install(tmp_path, **broken)
    told = mixar(tmp_path, "--help")
    assert told.returncode == 0 and "Ring the bell." in told.stdout and "Traceback" not in told.stderr
    assert "Draw images from a trained model." in told.stdout
    assert "the commands of plugin raises are left out: RuntimeError: out of order" in told.stderr
    assert "the commands of plugin ends are left out: SystemExit" in told.stderr
    assert "the commands of plugin cannot_be_built are left out" in told.stderr
    assert "command sample of plugin takes_ours is left out" in told.stderr
    assert "command ring of plugin takes_theirs is left out" in told.stderr
    assert "warning: plugin not_imported of bell-not_imported 1.0 was not loaded: ModuleNotFoundError" in told.stderr
    ring, bang = mixar(tmp_path, "ring"), mixar(tmp_path, "bang")
    assert (ring.stdout, bang.stdout) == ("ding\n", "bang\n")
    assert not ring.stderr and not bang.stderr  # a command that works has nothing to say of it
    listed = mixar(tmp_path, "plugins")
    assert "the commands of plugin raises are left out" in listed.stderr and "not_imported" not in listed.stderr
    assert "not in use: ModuleNotFoundError" in listed.stdout and "repair or uninstall its package" in listed.stdout
    unknown = mixar(tmp_path, "knell")
    assert unknown.returncode == 2 and "No such command 'knell'" in unknown.stderr
    assert "(plugin ends_at_once of bell-ends_at_once 1.0 was not loaded: SystemExit: no licence)" in unknown.stderr
    assert "(the commands of plugin raises are left out: RuntimeError: out of order)" in unknown.stderr
    assert "Draw images" in mixar(tmp_path, "sample", "--help").stdout
