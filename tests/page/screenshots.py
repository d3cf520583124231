"""The pictures of docs/page.md, and the one at the top of README.

python -m tests.page.screenshots docs             # page_draw.png, page_edit.png, page_compare.png: needs chromium
python -m tests.page.screenshots docs --levels    # three_levels.png alone: no browser
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import mixar
from mixar_core.pictures import rows_picture, write_png
from tests.page.serving import serving

#: what the picture of three levels shows: classes and seeds, and the region that is drawn anew with the next seeds
LEVELS = (("Smileys & Emotion", 2), ("Smileys & Emotion", 5), ("People & Body", 4), ("Flags", 3), ("Symbols", 1))
REGION = (12, 32, 40, 20)


def three_levels(model: mixar.Model) -> Image.Image:
    """A column for each: its codes decoded alone, MixAR's picture of them, and the lower middle of that drawn anew."""
    drawn = [model.generate(name, seed=seed) for name, seed in LEVELS]
    images = torch.cat([each.images for each in drawn])
    alone = model.decode_codes(torch.cat([each.codes for each in drawn]))
    edited = [
        model.edit(image, REGION, name, seed=seed + 7) for image, (name, seed) in zip(images, LEVELS, strict=True)
    ]
    rows = {"codes alone": alone, "MixAR": images, "a region redrawn": torch.cat([each.images for each in edited])}
    return rows_picture(rows, scale=2)


def screenshots(folder: Path) -> None:
    """The three tabs as a visitor sees them, with the shipped models."""
    from playwright.sync_api import sync_playwright

    with (
        tempfile.TemporaryDirectory() as scratch,
        serving("emoji64", "digits", folder=Path(scratch)) as server,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(240_000)
        page.goto(server.address)
        page.wait_for_selector("#drawn img.main")
        page.click("#draw-vary")
        page.wait_for_selector("#strip button:nth-child(6)")
        page.click("#drawn summary")
        _shot(page, folder / "page_draw.png")
        page.click("#to-edit")
        page.wait_for_function("() => document.querySelector('#paint .hint')?.textContent.startsWith('Paint over')")
        box = page.locator("#paint canvas").bounding_box()
        page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.68 * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.68 * box["height"], steps=8)
        page.mouse.up()
        page.click("#edit-go")
        page.wait_for_selector("#edited img.main")
        _shot(page, folder / "page_edit.png")
        page.get_by_role("tab", name="Compare").click()
        page.click("#compare-go")
        page.wait_for_selector("#compared img.main")
        _shot(page, folder / "page_compare.png")
        browser.close()


def _shot(page: Any, path: Path) -> None:
    """The whole page in 256 colours, once nothing moves."""
    page.mouse.move(5, 5)
    page.wait_for_timeout(800)
    page.screenshot(path=path, full_page=True)
    with Image.open(path) as shot:
        small = shot.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    small.save(path, format="PNG", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--levels", action="store_true", help="three_levels.png alone")
    asked = parser.parse_args()
    write_png(asked.folder / "three_levels.png", three_levels(mixar.load("emoji64")))
    if not asked.levels:
        screenshots(asked.folder)


if __name__ == "__main__":
    main()
