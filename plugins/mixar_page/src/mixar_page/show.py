"""What the page shows of a picture: HTML without files and without scripts of others; all text in it is escaped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

from PIL import Image

from mixar_page.again import INPUT, MASK, Again, url
from mixar_page.asked import Editing
from mixar_page.studio import Drawn, Redrawn

#: shown while there is nothing
EMPTY = "<p style='opacity:.7'>Press the button, and the picture appears here.</p>"


def drawing(drawn: Drawn) -> str:
    """A picture beside what its codes alone decode to, its steps, and how to make it again."""
    alone = [] if drawn.alone is None else [_figure(url(drawn.alone), "The codes alone", "before MixAR", "beside")]
    what = "MixAR" if alone else "Drawn"
    figures = [*alone, _figure(url(drawn.picture), what, drawn.facts, "main", _through(drawn))]
    return _pictures(figures) + _links((f"{_stem(drawn)}.png", drawn.picture)) + _again(drawn.again)


def editing(drawn: Redrawn) -> str:
    """The region, the result, how well it fits, and how to make it again."""
    assert isinstance(drawn.asked, Editing)
    figures = [
        _figure(url(drawn.region), "The region", "darker: painted; lighter: whole tokens", "beside"),
        _figure(url(drawn.picture), "Redrawn", drawn.facts, "main"),
    ]
    report = "".join(f"<li>{escape(line)}</li>" for line in drawn.report)
    files = [(f"{_stem(drawn)}.png", drawn.picture), (INPUT, drawn.asked.picture), (MASK, drawn.asked.mask)]
    return _pictures(figures) + f"<ul class='report'>{report}</ul>" + _links(*files) + _again(drawn.again)


def comparing(pair: Sequence[Drawn]) -> str:
    """Two pictures of the same codes, which stand first."""
    first = pair[0]
    codes = [] if first.alone is None else [_figure(url(first.alone), "The codes alone", "the same for both", "beside")]
    figures = [*codes, *(_figure(url(one.picture), _way(one), one.facts, "main") for one in pair)]
    links = "".join(_links((f"{_stem(one)}_{side}.png", one.picture)) for one, side in zip(pair, "ab", strict=True))
    return _pictures(figures) + links + "".join(_again(one.again, f" {_way(one)}") for one in pair)


def strip(pictures: Sequence[Drawn]) -> str:
    """Small pictures, to be chosen from by their seeds."""
    cells = (
        f"<button type='button' data-seed='{one.asked.seed}' title='{escape(one.again.command, quote=True)}'>"
        f"<img src='{url(one.picture)}' alt='{escape(one.facts, quote=True)}'>seed {one.asked.seed}</button>"
        for one in pictures
    )
    return f"<div class='strip'>{''.join(cells)}</div>" if pictures else ""


def painting(canvas: dict[str, Any], picture: str | None = None) -> str:
    """What the canvas is told: `studio.canvas`, and the picture on it as a data URL."""
    return json.dumps({**canvas, "picture": picture})


def _figure(source: str, title: str, facts: str, kind: str, more: str = "") -> str:
    alt = escape(f"{title}: {facts}", quote=True)
    said = f"<figcaption>{escape(title)}<small>{escape(facts)}</small></figcaption>"
    return f"<figure class='{kind}'><img class='{kind}' src='{source}' alt='{alt}'>{said}{more}</figure>"


def _pictures(figures: Sequence[str]) -> str:
    return f"<div class='pictures'>{''.join(figures)}</div>"


def _through(drawn: Drawn) -> str:
    """A slider over the steps: what it shows lies in the page already."""
    if len(drawn.steps) < 2:
        return ""
    count, last = len(drawn.steps), drawn.steps[-1][0]
    steps = escape(json.dumps([[number, url(picture)] for number, picture in drawn.steps]), quote=True)
    move = (
        "const [n,s]=JSON.parse(this.dataset.steps)[this.value-1],f=this.closest('figure');"
        f"f.querySelector('img').src=s;f.querySelector('output').textContent='after step '+n+' of {last}'"
    )
    return (
        f"<label class='through'><input type='range' min='1' max='{count}' value='{count}' aria-label='Sampling step' "
        f'data-steps="{steps}" oninput="{escape(move, quote=True)}">'
        f"<output>after step {last} of {last}</output></label>"
    )


def _links(*files: tuple[str, Image.Image]) -> str:
    cells = (
        f"<a download='{escape(name, quote=True)}' href='{url(one)}'>{escape(f'Download {name}')}</a>"
        for name, one in files
    )
    return f"<div class='links'>{''.join(cells)}</div>"


def _again(how: Again, whose: str = "") -> str:
    return (
        f"<details class='again'><summary>Make it again{escape(whose)}: a command, or three lines of Python</summary>"
        f"<pre class='command'>{escape(how.command)}</pre><pre class='python'>{escape(how.python)}</pre></details>"
    )


def _stem(drawn: Drawn) -> str:
    return drawn.again.file.rpartition("/")[2].removeprefix("000_").removesuffix(".png") + f"_{drawn.asked.seed}"


def _way(drawn: Drawn) -> str:
    way = drawn.asked.way
    return f"{way.model}, {way.preset or 'as it is'}"
