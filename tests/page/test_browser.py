"""The page in a real browser: Debian's chromium, driven by playwright, with no network but the server."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import mixar
from mixar_core.pictures import to_pil
from mixar_page.asked import picture_of
from tests.page.serving import PATIENCE, Server, serving

pytestmark = pytest.mark.slow

#: the program, whose steps take a while, and say whose they are
SLOWLY = """
import sys, time
from mixar.cli import main
from mixar_page.studio import Watch
step = Watch.__call__
def slowly(watch, done, of):
    time.sleep(0.5)
    print("step", id(watch.stop), done, of, file=sys.stderr, flush=True)
    step(watch, done, of)
Watch.__call__ = slowly
main()
"""


@pytest.fixture
def visit(browser: Any, server: Server) -> Iterator[Any]:
    """Opens the page for one more visitor; at the end, none of them has asked another host for anything."""
    contexts, elsewhere, wrong = [], [], []

    def open_page() -> Any:
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        context.set_default_timeout(PATIENCE * 1000)

        def route(route: Any) -> None:
            if route.request.url.startswith((server.address, "data:", "blob:")):
                route.continue_()
            else:
                elsewhere.append(route.request.url)
                route.abort()

        context.route("**", route)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(server.address)
        page.wait_for_selector("#drawn img.main")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert (elsewhere, wrong) == ([], [])


@pytest.fixture(scope="module")
def model(server: Server) -> mixar.Model:
    return mixar.load(server.models[0])


def source(page: Any, where: str) -> str:
    return str(page.get_attribute(f"{where} img.main", "src"))


def changed(page: Any, where: str, before: str) -> Image.Image:
    """The picture that comes instead of the one before."""
    page.wait_for_function(
        "([where, before]) => document.querySelector(`${where} img.main`)?.src !== before", arg=[where, before]
    )
    return picture_of(source(page, where))


def fill(page: Any, label: str, value: str) -> None:
    field = page.get_by_label(label, exact=True).locator("visible=true").first
    field.fill(value)
    field.press("Tab")


def expected(model: mixar.Model, label: int, seed: int) -> bytes:
    return to_pil(model.generate(label, seed=seed).images[0]).tobytes()


def test_a_picture_is_there_and_another_is_drawn(visit: Any, model: mixar.Model) -> None:
    page = visit()
    first = source(page, "#drawn")
    assert picture_of(first).tobytes() == expected(model, 0, 1)
    assert page.locator("#drawn figure").count() == 2  # the codes alone, and MixAR

    page.click("#draw-another")
    assert changed(page, "#drawn", first).tobytes() == expected(model, 0, 2)

    slider = page.locator("#drawn .through input")
    slider.fill("1")
    assert "after step 1 of 3" in page.inner_text("#drawn .through")
    steps = model.generate(0, seed=2, keep_steps=True).steps
    assert picture_of(source(page, "#drawn")).tobytes() == to_pil(steps[0, 0]).tobytes()

    with page.expect_download() as download:
        page.click("#drawn .links a")
    kept = Image.open(io.BytesIO(download.value.path().read_bytes()))
    assert kept.tobytes() == expected(model, 0, 2) and "--seed 2" in kept.info["command"]
    assert page.text_content("#drawn pre.command") == kept.info["command"]


def test_variations_are_chosen_from(visit: Any, model: mixar.Model) -> None:
    page = visit()
    first = source(page, "#drawn")
    page.click("#draw-vary")
    page.wait_for_selector("#strip button:nth-child(6)")
    page.click("#strip button:nth-child(2)")
    assert changed(page, "#drawn", first).tobytes() == expected(model, 0, 3)
    assert page.get_by_label("Seed", exact=True).first.input_value() == "3"


def test_a_region_is_painted_and_drawn_anew(visit: Any) -> None:
    page = visit()
    before = picture_of(source(page, "#drawn"))
    page.click("#to-edit")
    page.wait_for_function("() => document.querySelector('#paint .hint')?.textContent.startsWith('Paint over')")
    page.click("#edit-go")  # nothing is painted yet
    page.wait_for_selector("text=nothing is painted")

    canvas = page.locator("#paint canvas")
    box = canvas.bounding_box()
    page.locator("#paint .brush").fill("4")
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 0.4 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.4 * box["height"], steps=5)
    page.mouse.up()
    assert "2 of 16 tokens" in page.inner_text("#paint .hint")
    page.click("#edit-go")
    page.wait_for_selector("#edited img.main")
    after = picture_of(source(page, "#edited"))
    moved = {(x, y) for x in range(16) for y in range(16) if after.getpixel((x, y)) != before.getpixel((x, y))}
    inside = {(x, y) for x, y in moved if 4 <= x < 12 and 4 <= y < 8}
    assert len(inside) > 8
    assert all(3 <= x <= 12 and 3 <= y <= 8 for x, y in moved)  # but for a feather of one pixel
    assert "across its edge" in page.inner_text("#edited .report")

    first = source(page, "#edited")
    page.locator("fieldset", has_text="Codes").get_by_label("keep").click()
    page.click("#edit-go")
    changed(page, "#edited", first)
    assert "level latents" in page.inner_text("#edited .report")
    assert "--level latents" in str(page.text_content("#edited pre.command"))


def test_a_picture_of_ones_own(visit: Any, tmp_path: Any) -> None:
    page = visit()
    page.get_by_role("tab", name="Edit").click()
    Image.effect_noise((90, 60), 60).convert("RGB").save(tmp_path / "own.png")
    page.set_input_files("#paint input[type=file]", tmp_path / "own.png")
    page.wait_for_function("() => document.querySelector('#paint .hint').textContent.startsWith('Paint over')")
    (tmp_path / "no.png").write_bytes(b"no picture")
    page.set_input_files("#paint input[type=file]", tmp_path / "no.png")
    page.wait_for_selector("text=no.png is no picture")


def test_two_ways_side_by_side(visit: Any, model: mixar.Model) -> None:
    page = visit()
    page.get_by_role("tab", name="Compare").click()
    page.click("#compare-go")
    page.wait_for_selector("#compared img.main")
    shown = [picture_of(str(each.get_attribute("src"))) for each in page.locator("#compared img.main").all()]
    codes = model.sample_codes(0, seed=1)
    assert len(shown) == 2
    assert shown[0].tobytes() == to_pil(model.generate(0, seed=1, codes=codes).images[0]).tobytes()
    assert shown[1].tobytes() != shown[0].tobytes()


def test_it_stops(visit: Any, model: mixar.Model) -> None:
    """Eight slow pictures are asked for; after the first nothing more is computed, and the next visitor is served."""
    page = visit()
    page.get_by_text("How it is drawn").first.click()
    fill(page, "Variations (up to 8)", "8")
    preset = page.get_by_label("Preset").locator("visible=true").first
    preset.click()
    page.get_by_role("option", name="exact").click()
    page.wait_for_function(
        "() => [...document.querySelectorAll('input[type=number]')].some(field => field.value === '64')"
    )
    page.evaluate(  # in the page: a press from here may come too late
        """() => { const watch = setInterval(() => {
          if (!document.querySelector("#strip button")) return;
          clearInterval(watch);
          document.querySelector("#draw-stop").click();
          window.stopped = true;
        }, 5); }"""
    )
    page.click("#draw-vary")
    page.wait_for_function("() => window.stopped")
    page.wait_for_timeout(500)
    stopped = page.locator("#strip button").count()
    assert stopped < 8
    other = visit()
    first = source(other, "#drawn")
    other.click("#draw-another")
    changed(other, "#drawn", first)
    assert page.locator("#strip button").count() <= stopped  # what was on its way when it was stopped may go


def test_a_closed_tab_stops_what_it_asked_for(browser: Any, family: Path, tmp_path: Path) -> None:
    """Nobody presses Stop: the tab is gone, nothing more is computed for it, and the next visitor is served."""
    with serving(family / "models/mixar", folder=tmp_path, program=("-c", SLOWLY)) as server:

        def steps() -> list[tuple[str, ...]]:
            lines = [line.split() for line in server.log.read_text().splitlines() if line.startswith("step ")]
            return [tuple(words[1:]) for words in lines]

        def opened() -> Any:
            page = browser.new_page()
            page.set_default_timeout(PATIENCE * 1000)
            page.goto(server.address)
            page.wait_for_selector("#drawn img.main")
            return page

        gone = opened()
        gone.get_by_text("How it is drawn").first.click()
        fill(gone, "Steps", "16")
        before = len(steps())
        gone.click("#draw-go")
        while len(steps()) < before + 2:
            gone.wait_for_timeout(20)
        visitor = steps()[before][0]
        gone.close()
        page = opened()
        first = source(page, "#drawn")
        page.click("#draw-another")
        changed(page, "#drawn", first)
        page.close()
        asked = [(done, of) for who, done, of in steps() if who == visitor]
        assert asked[0] == ("1", "16") and len(asked) < 16


def test_two_visitors_at_once(visit: Any, model: mixar.Model) -> None:
    one, two = visit(), visit()
    first = source(one, "#drawn")
    for page, seed in ((one, "11"), (two, "12")):
        fill(page, "Seed", seed)
    one.click("#draw-go")
    two.click("#draw-go")
    assert changed(one, "#drawn", first).tobytes() == expected(model, 0, 11)
    assert changed(two, "#drawn", first).tobytes() == expected(model, 0, 12)


def test_what_is_wrong_is_said_in_a_line(visit: Any) -> None:
    page = visit()
    fill(page, "Seed", "-4")
    page.click("#draw-go")
    page.wait_for_selector("text=seed: -4; allowed: a whole number, 0 or more")
    assert "Traceback" not in page.content()
