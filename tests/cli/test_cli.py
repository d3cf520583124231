"""The program from outside: what it prints, what it writes, and one line and exit code 2 for whatever is wrong."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from mixar.cli.common import as_path, print_table
from mixar.cli.main import add_commands, app
from mixar.plugins import load_plugins
from tests.cli.process import good, refused, run, started

MIXAR = Path(sys.executable).with_name("mixar")


def program(*arguments: object, cwd: Path | None = None) -> str:
    """The output of the installed program itself, which must succeed."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "COLUMNS": "120"}
    command = [str(MIXAR), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_is_quick_and_shows_every_command() -> None:
    started = time.perf_counter()
    text = program("--help")
    assert time.perf_counter() - started < 5  # half a second on a machine that does nothing else
    for command in ("sample", "edit", "train", "demo", "recipes", "recipe", "plugins"):
        assert command in text
        assert "--help" in good(command, "--help")
    assert "mixar 0." in program("--version")


def test_lists_and_their_json() -> None:
    listed = json.loads(good("plugins", "--json"))
    assert "builtin" in [plugin["name"] for plugin in listed["plugins"]]
    assert {"kind": "injector", "name": "dc-mix"}.items() <= next(
        p for p in listed["parts"] if p["name"] == "dc-mix"
    ).items()
    without = json.loads(good("--no-plugin", "builtin", "plugins", "--json"))
    assert "dc-mix" not in [part["name"] for part in without["parts"]]
    recipes = json.loads(good("recipes", "--json"))
    assert {"mar_b", "mixar_l", "maskbit_generator_14bit"} <= {recipe["name"] for recipe in recipes}
    assert "dc-mix" in good("plugins") and "mixar_l_dc_ca" in good("recipes")


def test_a_parts_settings_and_the_kinds_are_printed() -> None:
    text = good("plugins", "--part", "mixture")
    assert text.startswith('head "mixture" of plugin builtin (mixar ') and "Gaussians of a token" in text
    (row,) = [line for line in text.splitlines() if line.startswith(" min_deviation ")]
    assert row.split()[1:5] == ["float", "0.01", ">", "0.0"]
    told = json.loads(good("plugins", "--part", "dataset:parquet", "--json"))
    required = {setting["name"]: setting["required"] for setting in told["settings"]}
    assert required["path"] and not required["orient"]
    assert "It has no settings." in good("plugins", "--part", "injector:none")
    assert "BackboneState.reveal(" in good("plugins", "--kinds")
    assert [kind["base"] for kind in json.loads(good("plugins", "--kinds", "--json"))][:2] == [
        "ContinuousTokenizer", "DiscreteTokenizer"
    ]  # fmt: skip
    assert "did you mean mixture?" in refused("plugins", "--part", "mixtur")
    assert "--part and --kinds: give one" in refused("plugins", "--part", "mixture", "--kinds")


def test_a_table_that_goes_to_no_terminal_is_not_folded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [("a", "word " * 60 + "[end]"), ("b", None)]
    monkeypatch.delenv("COLUMNS", raising=False)
    print_table("Title", ("key", "text"), rows)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Title" and " a    " + rows[0][1] in lines and " b" in lines
    monkeypatch.setenv("COLUMNS", "60")
    print_table("Title", ("key", "text"), rows)
    assert max(map(len, capsys.readouterr().out.splitlines())) == 60


def test_kinds_that_go_to_no_terminal_stand_below_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    lines = CliRunner().invoke(app, ["plugins", "--kinds"]).output.splitlines()
    assert max(map(len, lines)) < 140, "as wide as the longest lines of all columns together"
    assert lines[lines.index("sampler: Sampler") :][:6] == [
        "sampler: Sampler", "  Makes plans.", "  built as Class(config)", "  plan(task, *, noise) -> Plan",
        "      A plan for this task.", "",
    ]  # fmt: skip
    monkeypatch.setenv("COLUMNS", "100")
    assert "Kinds of parts" in CliRunner().invoke(app, ["plugins", "--kinds"]).output


def test_recipe_show_prints_what_loads_again(tmp_path: Path) -> None:
    text = good("recipe", "show", "mixar_l", "--set", "head.depth=3")
    (tmp_path / "mine.yaml").write_text(text)
    assert good("recipe", "show", tmp_path / "mine.yaml") == text
    assert json.loads(good("recipe", "show", "mixar_l", "--json"))["head"]["depth"] == 12


def test_recipe_check_says_why_a_figure_is_not_known() -> None:
    settings = ("--set", "prior.type=ground-truth", "--set", "injector.type=dc-sa", "--set", "backbone.depth=1")
    shown = good("recipe", "check", "digits", *settings)
    assert "GFLOP sampling, prior: cannot be counted without values: " in shown
    assert "GFLOP sampling, total: not known, for want of: prior" in shown
    assert "not run" in shown and "in backbone" in shown and " - " not in shown


def test_recipe_check_of_the_largest_is_quick_and_small() -> None:
    # from a process without other children, whose largest would count
    call = [sys.executable, "-m", "mixar", "recipe", "check", "mixar_l_dc_ca", "--json"]
    watch = (
        "import json, resource, subprocess, sys; out = subprocess.check_output(sys.argv[1:]); "
        "used = resource.getrusage(resource.RUSAGE_CHILDREN); "
        "print(json.dumps([json.loads(out)['parameters'], used.ru_utime, used.ru_maxrss]))"
    )
    printed = subprocess.run([sys.executable, "-c", watch, *call], capture_output=True, check=True, timeout=120).stdout
    parameters, seconds, kilobytes = json.loads(printed)
    assert 707e6 <= parameters <= 709e6
    assert seconds < 10
    assert kilobytes < 1e6
    shared = good("recipe", "check", "mixar_l_dc_ca", "--processes", 8, "--set", "training.parallel=fsdp")
    assert "708.5M" in shared and "gathered blocks" in shared


def test_train_and_sample_end_to_end(family: Path, tmp_path: Path) -> None:
    out = good("train", family / "recipes/mixar.yaml", "--out", tmp_path / "run", "--seed", 3, "--device", "cpu")
    assert "2 steps" in out
    assert "seed: 3" in (tmp_path / "run/recipe.yaml").read_text()
    for call, name in ((program, "one"), (good, "two")):
        call("sample", "run", "--classes", "owl,cat", "-n", 2, "--out", name, "--codes-too", "--seed", 4, cwd=tmp_path)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert [str(path) for path in files if path.parent == Path(".")] == [
        *("000_owl.png", "001_owl.png", "002_cat.png", "003_cat.png"),
        *("codes_grid.png", "grid.png", "sample.json"),
    ]
    for path in files:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()
    assert Image.open(tmp_path / "one/000_owl.png").size == (16, 16)
    assert "not an empty folder" in refused("train", family / "recipes/mixar.yaml", "--out", tmp_path / "run")
    assert "3 steps" in good("train", "run", "--resume", "--set", "training.steps=3", cwd=tmp_path)


def test_every_command_printed_runs_as_printed(family: Path, tmp_path: Path) -> None:
    shutil.copytree(family / "data", tmp_path / "only train")
    shutil.rmtree(tmp_path / "only train/val")
    for recipe, out, *settings in (
        ("mixar", "my runs é/it's $HOME"),
        ("prior", "-odd"),
        ("discrete", "a  &  b"),
        ("continuous", "one split", "--set", f"data.path={tmp_path / 'only train'}"),
    ):
        told = good("train", family / f"recipes/{recipe}.yaml", f"--out={out}", *settings, cwd=tmp_path)
        program_name, *words = shlex.split(told.splitlines()[-1])
        assert program_name == "mixar" and words[0] == ("sample" if recipe in ("mixar", "prior") else "eval")
        good(*words, cwd=tmp_path)
        shutil.rmtree(tmp_path / ("runs" if words[0] == "eval" else "samples"))


def test_a_run_given_for_a_recipe_is_told_what_was_meant(family: Path, tmp_path: Path) -> None:
    """Every command of the line runs as it is printed: a run that is not finished goes on, any is a recipe."""
    good("train", family / "recipes/prior.yaml", "--out", "it's a run", cwd=tmp_path)
    for folder in ("it's a run", "./it's a run", tmp_path / "it's a run"):
        assert "is a trained model, and no recipe; to train anew: mixar" in refused("train", folder, cwd=tmp_path)
    for finished, meant in ((True, ["train anew", "train it further"]), (False, ["go on with it", "train anew"])):
        if not finished:
            (tmp_path / "it's a run/weights.safetensors").unlink()
            shutil.rmtree(tmp_path / "runs")
        said = refused("train", "it's a run", cwd=tmp_path)
        found = re.findall(r"to ([a-z ]+): mixar ([^;]+?)(?=;|\n|$)", said)
        assert [what for what, _ in found] == meant
        for _, command in found if finished else found[:1]:
            assert "steps in" in good(*shlex.split(command), cwd=tmp_path)


def test_every_path_on_the_command_line_goes_through_one_function() -> None:
    """Of the commands that packages bring as well: typer's own kind of path would take `~` for a name."""
    every = typer.Typer()
    every.registered_commands, every.registered_groups = [*app.registered_commands], [*app.registered_groups]
    assert not add_commands(every, load_plugins()[0])
    apps, seen = [every], 0
    while apps:
        one = apps.pop()
        apps += [group.typer_instance for group in one.registered_groups if group.typer_instance]
        for command in one.registered_commands:
            assert command.callback is not None
            for name, hint in get_type_hints(command.callback, include_extras=True).items():
                if Path in (hint, *get_args(hint), *(inner for part in get_args(hint) for inner in get_args(part))):
                    assert hint.__metadata__[0].parser is as_path, (command.callback.__name__, name)
                    seen += 1
    assert seen >= 8


def test_home_is_home_in_every_option(family: Path, tmp_path: Path) -> None:
    """`--out=~/x` reaches the program as it stands; a folder called `~` is what the next `rm -r ~` is typed for."""
    home, here = tmp_path / "home", tmp_path / "here"
    for folder in (home, here):
        folder.mkdir()
    environment = {"HOME": str(home)}
    shutil.copytree(family / "models/prior", home / "prior")
    for words in (
        ("sample", "~/prior", "--labels", "0", "--out=~/few"),
        ("sample", "~/prior", "--count", "2", "--out=~/many"),
        ("sample", "~/prior", "--count", "2", "--npz=~/all.npz"),
        ("train", family / "recipes/prior.yaml", "--out=~/run"),
        ("train", "~/run", "--resume", "--set", "training.steps=3"),
    ):
        with started(*words, folder=here, environment=environment) as process:
            process.join(timeout=120)
        assert process.exitcode == 0, (here / "stderr").read_text()
    assert {path.name for path in home.iterdir()} == {"prior", "few", "many", "all.npz", "all.npz.json", "run"}
    assert {path.name for path in here.iterdir()} == {"stdout", "stderr"}


def test_sampling_overwrites_only_samples_and_only_when_forced(family: Path, tmp_path: Path) -> None:
    model = family / "models/prior"
    good("sample", model, "--out", tmp_path / "out", "--labels", "0,2")
    assert "not empty" in refused("sample", model, "--out", tmp_path / "out")
    good("sample", model, "--out", tmp_path / "out", "--labels", "1", "--force")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["000_dog.png", "grid.png", "sample.json"]
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.tex").write_text("")
    assert "something else" in refused("sample", model, "--out", tmp_path / "home", "--force")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "out"]
    (tmp_path / "out/thesis.tex").write_text("")
    for words in (("--labels", "0"), ("--count", 2)):
        assert "thesis.tex" in refused("sample", model, "--out", tmp_path / "out", *words, "--force")
    assert len([*(tmp_path / "out").iterdir()]) == 4


def test_a_link_to_a_folder_of_samples_stays_one(family: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    for words in (("--labels", "0"), ("--labels", "1", "--force"), ("--count", "2", "--force")):
        good("sample", family / "models/prior", "--out", "out", *words, cwd=tmp_path)
        assert (tmp_path / "out").is_symlink() and (tmp_path / "disk/grid.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recipe", "check", "mixar_xl"], 'unknown recipe "mixar_xl"; did you mean mixar_l'),
        (["recipe", "show", "./none.yaml"], "no such file"),
        (["recipe", "show", "./"], "is a folder; it holds no recipe.yaml; of images mixar new makes recipes"),
        (["recipe", "show", "mar_b", "--set", "head.depht=1"], "did you mean depth?"),
        (["recipe", "show", "mar_b", "--set", "head.depth=1.9"], "not a whole number"),
        (["recipe", "show", "mar_b", "--set", "head.type=difusion"], "did you mean diffusion?"),
        (["recipe", "show", "mar_b", "--set", "nonsense"], "key=value"),
        (["recipe", "check", "mar_b", "--set", "image_size=250"], "250"),
        (["recipe", "check", "mixar_b", "--set", "discrete_tokenizer.bits=12"], "4096"),
        (["plugins", "--no-plugin", "zo"], 'unknown plugin "zo"'),
        (["train", "mar_b", "--out", "run", "--set", "data.path=nowhere"], "weights: required"),
        (["train", "mar_b", "--device", "abacus"], "--device abacus"),
        (["sample", "nobody"], 'unknown model "nobody"'),
        (["sample", "./nowhere"], "no such folder"),
        (["sample", "."], "has none"),
        (["sample"], "Missing argument"),
        (["sample", "x", "--classes", "a", "--labels", "0"], "give one of them"),
        (["sample", "x", "-n", "0"], "-n: 0 is too small; allowed: 1 or more"),
        (["sampel"], "sampel"),
        (["demo", "nothing"], "nothing"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    assert message in refused(*arguments, cwd=tmp_path)
    assert not list(tmp_path.iterdir())


def test_bad_labels_weights_and_settings_of_a_model(family: Path, tmp_path: Path) -> None:
    model = family / "models/mixar"
    for arguments, message in (
        (["--labels", "7"], "unknown label 7; allowed: 0 to 2"),
        (["--labels", "a"], "not whole numbers"),
        (["--classes", "catt"], "did you mean cat?"),
        (["--raw"], "weights_raw.safetensors"),
        (["--steps", "0"], "--steps: 0 is too small; allowed: 1 or more"),
        (["--cfg", "-1"], "--cfg: -1.0 is too small"),
    ):
        assert message in refused("sample", model, *arguments, "--out", tmp_path / "out")
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    data = (model / "weights.safetensors").read_bytes()
    for content in (data[:-1], data[:50], b""):
        (broken / "weights.safetensors").write_bytes(content)
        assert "not a whole safetensors file" in refused("sample", broken, "--out", tmp_path / "out")
    (broken / "weights.safetensors").unlink()
    assert "no weights.safetensors" in refused("sample", broken, "--out", tmp_path / "out")
    shutil.copy(family / "models/prior/weights.safetensors", broken)
    assert "missing: backbone." in refused("sample", broken, "--out", tmp_path / "out")
    (broken / "recipe.yaml").write_text("a: [")
    assert "line 1" in refused("sample", broken, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unreadable_image_is_named(family: Path, tmp_path: Path) -> None:
    shutil.copytree(family / "data", tmp_path / "data")
    (tmp_path / "data/train/dog/1.png").write_bytes(b"not a picture")
    base = ("train", family / "recipes/continuous.yaml", "--set", f"data.path={tmp_path / 'data'}")
    base += ("--set", "training.batch_size=9")
    skipped = run(*base, "--out", tmp_path / "run")
    assert skipped.returncode == 0 and skipped.stderr.count("\n") == 1 and "dog/1.png: unreadable" in skipped.stderr
    stopped = run(*base, "--set", "training.max_unreadable=0", "--out", tmp_path / "strict")
    assert stopped.returncode == 2 and "dog/1.png: unreadable" in stopped.stderr
    assert "more than training.max_unreadable 0" in stopped.stderr.splitlines()[-1]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder_is_named(family: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert str(tmp_path) in refused("sample", family / "models/prior", "--out", tmp_path / "out")
    assert str(tmp_path) in refused("train", family / "recipes/continuous.yaml", "--out", tmp_path / "run")


def test_a_file_in_the_way_is_named(family: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file/deeper"):
        assert str(tmp_path / "file") in refused("sample", family / "models/prior", "--out", out)
        assert str(tmp_path / "file") in refused("train", family / "recipes/continuous.yaml", "--out", out)


def test_a_full_disk_is_one_line_and_nothing_half_written(family: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = refused("sample", family / "models/prior", "--out", out, largest_file=900)
    assert f"{out} cannot be written" in line and not list(tmp_path.iterdir())
    line = refused("train", family / "recipes/continuous.yaml", "--out", out, largest_file=5000)
    assert str(out) in line and "cannot be written" in line
    assert not list(out.rglob("*.safetensors"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_stdout_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        command = [str(MIXAR), "recipe", "show", "mar_b"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 2 and "No space left" in done.stderr and "Traceback" not in done.stderr


def test_a_closed_pipe_is_no_error() -> None:
    done = subprocess.run(
        f"{shlex.quote(str(MIXAR))} recipe show mar_b | head -1",
        shell=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "name: mar_b\n" and done.stderr == ""
