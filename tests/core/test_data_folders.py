"""What is an image in a folder of a person: counted plus left out is what is there, each thing once."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mixar_core.data.folders import data_folders, image_endings, list_images
from mixar_core.errors import UserError

NAMES = st.sampled_from(
    ["a.png", "b.JPG", "c.jfif", "d.gif", "e.avif", "notes.txt", "no_ending", ".hidden.png", "._a.png", "Thumbs.db"]
)
FOLDERS = st.sampled_from(["cat", "dog", "deep", "@eaDir", "__MACOSX", "lost+found", ".git", "Café"])
PATHS = st.builds(lambda folders, name: os.path.join(*folders, name), st.lists(FOLDERS, max_size=3), NAMES)


def make(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")
    return root


@settings(max_examples=60, deadline=None)
@given(paths=st.sets(PATHS, max_size=12), links=st.lists(st.tuples(PATHS, PATHS), max_size=4), data=st.data())
def test_what_is_counted_and_what_is_left_out_is_what_is_there(paths, links, data):
    with tempfile.TemporaryDirectory() as folder:
        root = make(Path(folder), *paths)
        for source, target in links:  # to a file, to its folder or one above it, hard or not
            link, up = root / f"{source}.link", data.draw(st.integers(0, 2))
            goal = (root / target, (root / target).parent, root)[up]
            link.parent.mkdir(parents=True, exist_ok=True)
            if goal.is_file() and data.draw(st.booleans()):
                link = link.with_suffix(".png")
                link.exists() or os.link(goal, link)
            elif not link.is_symlink():
                link.symlink_to(goal)
        found = list_images(root)
        left_out = [path for paths in found.left_out.values() for path in paths]
        together = [*found.files, *left_out]
        assert len(set(together)) == len(together)
        for where, folders, files in os.walk(root):
            for name in files + [folder for folder in folders if (Path(where) / folder).is_symlink()]:
                path = os.path.relpath(os.path.join(where, name), root)
                above = [path, *map(str, Path(path).parents)]
                inside = any(each.startswith(f"{path}/") for each in together)  # a link that was followed
                assert sum(each in together for each in above) == 1 or (inside and path not in together)
        real = [os.stat(root / path) for path in found.files]
        assert len({(each.st_dev, each.st_ino) for each in real}) == len(real)
        assert all(os.path.splitext(path)[1].lower() in image_endings() for path in found.files)
        assert not any(part.startswith((".", "@", "__", "lost")) for path in found.files for part in Path(path).parts)


def test_every_ending_that_pillow_reads_counts(tmp_path):
    endings = image_endings()
    assert {".jpg", ".jpeg", ".jfif", ".gif", ".avif", ".jp2", ".pgm", ".tif", ".webp", ".mpo", ".bmp"} <= endings
    assert not {".txt", ".pdf", ".h5", ".mpg", ""} & endings
    found = list_images(make(tmp_path, *(f"x{ending.upper()}" for ending in endings), "a.txt", "b.txt", "c"))
    assert len(found.files) == len(endings)
    assert found.note() == "left out: 2 .txt (a.txt), 1 without an ending (c)"
    assert list_images(make(tmp_path / "all", "a.png")).note() == ""
    odd = os.fsdecode(b"caf\xe9\n.txt")
    assert list_images(make(tmp_path / "odd", odd)).note() == r"left out: 1 .txt (caf\udce9 .txt)"


def test_links_are_followed_and_everything_counts_once(tmp_path):
    root = make(tmp_path / "set/train", "cat/0.png", "cat/1.png", "dog/0.png")
    outside = make(tmp_path / "outside", "deep/2.png", "3.png")
    make(tmp_path / "set/val", "cat/9.png")
    (root / "cat/all").symlink_to("../cat")  # back to where it is
    (root / "a").symlink_to("dog")  # sorts before what it leads to
    (root / "cat/up").symlink_to("../../..")  # holds train/ and val/
    (root / "cat/gone.png").symlink_to("nowhere.png")
    (root / "dog/self.png").symlink_to("self.png")
    (root / "dog/one.png").symlink_to(outside / "deep/2.png")
    (root / "dog/x").symlink_to(outside / "deep")
    (root / "dog/y").symlink_to(outside)
    os.link(root / "cat/0.png", root / "dog/hard.png")
    found = list_images(root)
    assert found.files == ("cat/0.png", "cat/1.png", "dog/0.png", "dog/one.png", "dog/y/3.png")
    assert found.folders == ("a", "cat", "dog")
    assert found.left_out == {
        "link to nothing": ("cat/gone.png", "dog/self.png"),
        "linked a second time": ("a", "cat/all", "cat/up", "dog/hard.png", "dog/x/2.png", "dog/y/deep"),
    }


def test_links_to_each_other_are_left_out_at_any_depth(tmp_path):
    (tmp_path / "cat").mkdir()
    for folder in (tmp_path, tmp_path / "cat"):
        (folder / "one").symlink_to("other")
        (folder / "other").symlink_to("one")
        (folder / "self").symlink_to("self")
    found = list_images(tmp_path)
    assert found.folders == ("cat",) and data_folders(tmp_path) == ("cat",)
    names = ("one", "other", "self")
    assert found.left_out == {"link to nothing": (*(f"cat/{name}" for name in names), *names)}


def test_a_folder_that_cannot_be_read_is_no_empty_folder(tmp_path, monkeypatch):
    make(tmp_path, "cat/0.png")
    with pytest.raises(UserError, match="nowhere: cannot be read: No such file"):
        list_images(tmp_path / "nowhere")
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(UserError, match="cat: cannot be read: Permission denied"):
        list_images(tmp_path)


def test_what_extends_pillow_counts(tmp_path, monkeypatch):
    image_endings.cache_clear()
    monkeypatch.setattr(Image, "EXTENSION", {**Image.registered_extensions(), ".heic": "PNG"})
    try:
        assert list_images(make(tmp_path, "a.heic")).files == ("a.heic",)
    finally:
        image_endings.cache_clear()
