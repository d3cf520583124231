"""What the page computes, without a server: the same pictures as the command line's and Python's."""

from __future__ import annotations

import io
import json
import shlex
import threading
from html import unescape
from pathlib import Path

import attrs
import pytest
from PIL import Image, ImageDraw

import mixar
from mixar_core.errors import UserError
from mixar_core.pictures import to_pil
from mixar_page import server, show, studio
from mixar_page.again import png
from mixar_page.asked import Drawing, Editing, Way
from mixar_page.studio import Drawn, Stopped, Studio, Watch
from tests.cli.process import good


@pytest.fixture(scope="module")
def way(stage: Studio) -> Way:
    return Way(next(iter(stage.own)))


@pytest.fixture(scope="module")
def editing(way: Way) -> Editing:
    picture, mask = Image.effect_noise((16, 16), 60).convert("RGB"), Image.new("RGB", (16, 16))
    ImageDraw.Draw(mask).rectangle((4, 4, 10, 7), fill="white")
    return Editing(way, 2, 3, "both", picture, mask)


def made_again(drawn: Drawn, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of making it again, as they stand on the page, give the same pixels."""
    program, *words = shlex.split(drawn.again.command)
    assert program == "mixar"
    good(*words, cwd=folder)
    assert Image.open(folder / drawn.again.file).tobytes() == drawn.picture.tobytes()
    monkeypatch.chdir(folder)
    assert len(drawn.again.python.splitlines()) == 3
    exec(drawn.again.python, {})
    saved = drawn.again.python.rpartition('save("')[2].removesuffix('")')
    assert Image.open(folder / saved).tobytes() == drawn.picture.tobytes()


def test_a_picture_is_what_the_model_draws_and_can_be_made_again(
    stage: Studio, way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Drawing(attrs.evolve(way, steps=2, cfg=2.5), 1, 7)
    drawn = studio.draw(stage, asked, Watch(), keep_steps=True)
    model = stage.own[way.model]
    found = model.generate("dog", seed=7, steps=2, cfg=2.5)
    assert drawn.picture.tobytes() == to_pil(found.images[0]).tobytes()
    assert drawn.alone is not None
    assert drawn.alone.tobytes() == to_pil(model.decode_codes(found.codes)[0]).tobytes()
    assert [number for number, _ in drawn.steps] == [1, 2]
    assert drawn.steps[-1][1].tobytes() == drawn.picture.tobytes() != drawn.steps[0][1].tobytes()
    info = Image.open(io.BytesIO(png(drawn.picture))).info
    assert info["command"] == drawn.again.command and info["python"] == drawn.again.python
    assert json.loads(info["mixar"])["plan"]["seed"] == 7
    made_again(drawn, tmp_path, monkeypatch)


def test_an_edit_keeps_what_is_not_painted_and_can_be_made_again(
    stage: Studio, editing: Editing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = studio.edit(stage, editing, Watch())
    editing.picture.save(tmp_path / "input.png")
    editing.mask.save(tmp_path / "mask.png")
    box = (4, 4, 12, 8)  # whole tokens of 4 x 4, and a feather of one pixel around them
    changed = [
        (x, y)
        for x in range(16)
        for y in range(16)
        if drawn.picture.getpixel((x, y)) != editing.picture.getpixel((x, y))
    ]
    assert len(changed) > 20
    assert all(box[0] - 1 <= x <= box[2] and box[1] - 1 <= y <= box[3] for x, y in changed)
    assert "across its edge" in " ".join(drawn.report) and "2 of 16 codes" in drawn.report[0]
    made_again(drawn, tmp_path, monkeypatch)


def test_two_ways_share_codes_and_can_be_made_again(
    stage: Studio, way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, right = studio.compare(stage, Drawing(way, 0, 5), attrs.evolve(way, preset="one-shot"), Watch())
    codes = tuple(stage.own[way.model].sample_codes(0, seed=5)[0].tolist())
    assert isinstance(left.asked, Drawing) and isinstance(right.asked, Drawing)
    assert left.asked.codes == right.asked.codes == codes
    assert left.picture.tobytes() != right.picture.tobytes()
    assert "codes" in json.loads(left.picture.info["mixar"])
    made_again(right, tmp_path, monkeypatch)


def test_a_preset_draws_by_the_weights_that_are_there(stage: Studio, way: Way) -> None:
    own = stage.own[way.model].system.model
    other = stage.model(attrs.evolve(way, preset="one-shot")).system.model
    assert own is not None and other is not None
    assert other is not own and other.sampler is not own.sampler
    assert [*map(id, other.parameters())] == [*map(id, own.parameters())]
    loaded = mixar.load(way.model, preset="one-shot")
    drawn = studio.draw(stage, Drawing(attrs.evolve(way, preset="one-shot"), 1, 7), Watch())
    assert drawn.picture.tobytes() == to_pil(loaded.generate(1, seed=7).images[0]).tobytes()
    assert stage.model(way).system.model is own


def test_it_stops_between_two_steps(stage: Studio, way: Way, editing: Editing) -> None:
    for compute in (
        lambda watch: studio.draw(stage, Drawing(way, 0, 1), watch),
        lambda watch: studio.edit(stage, editing, watch),
        lambda watch: studio.compare(stage, Drawing(way, 0, 1), way, watch),
    ):
        seen: list[int] = []
        stop = threading.Event()
        watch = Watch(lambda done, of, seen=seen, stop=stop: (seen.append(done), stop.set()), stop)
        with pytest.raises(Stopped):
            compute(watch)
        assert seen == [1]
    assert not stage.locks[way.model].locked()


def test_who_waits_for_a_model_can_stop_waiting(stage: Studio, way: Way) -> None:
    watch = Watch()
    watch.stop.set()
    with stage.locks[way.model], pytest.raises(Stopped):
        studio.draw(stage, Drawing(way, 0, 1), watch)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"model": "../../etc"}, "not on this page"),
        ({"preset": "../x"}, "none of that name"),
    ],
)
def test_only_what_is_on_the_page_is_drawn_with(stage: Studio, way: Way, change: dict[str, str], why: str) -> None:
    with pytest.raises(UserError, match=why):
        studio.draw(stage, Drawing(attrs.evolve(way, **change), 0, 1), Watch())


def test_models_of_other_codes_are_not_compared(stage: Studio, way: Way, family: Path) -> None:
    other = mixar.load(family / "models/mixar")
    other = attrs.evolve(
        other, files={**other.files, "discrete_tokenizer": family / "models/prior/weights.safetensors"}
    )
    both = Studio(stage.settings, {**stage.own, "other": other})
    with pytest.raises(UserError, match="different tokenizers"):
        studio.compare(both, Drawing(way, 0, 1), Way("other"), Watch())


def test_what_is_shown_is_escaped(stage: Studio, way: Way) -> None:
    drawn = studio.draw(stage, Drawing(way, 0, 1), Watch())
    evil = attrs.evolve(drawn, facts="<script>&'\"", again=attrs.evolve(drawn.again, command="<img onerror=x>"))
    for page in (show.drawing(evil), show.strip([evil])):
        assert "<script" not in page and "<img onerror" not in page and "<script>" in unescape(page)


def test_a_stage_refuses_what_draws_nothing(family: Path, stage: Studio) -> None:
    registry = stage.settings["registry"]
    with pytest.raises(UserError, match="draws no images"):
        Studio.of([str(family / "models/discrete")], registry)
    with pytest.raises(UserError, match="given twice"):
        Studio.of(["digits", "digits"], registry)


def test_a_port_is_held_from_the_start() -> None:
    """Of two pages that are started at once the second says so, instead of failing when both are ready."""
    with server._listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port}: Address already in use; try another --port"):
            server._listen("127.0.0.1", port)
