"""The help pages as the side bar shows them: nothing is wider than it, and every picture is there.

One renderer is enough: the side bar is the same beside both.
"""

from pathlib import Path

import palimpsest
import pytest

PAGES = sorted((Path(palimpsest.__file__).parent / "web" / "docs").glob("*.md"))

#: What the node library leaves to a page in a side bar of its least width, which is its usual one.
NARROWEST = 280

SELECT = """kind => {
    app.graph.clear()
    const node = LiteGraph.createNode(kind)
    app.graph.add(node)
    app.canvas.selectNode(node)
    app.canvas.centerOnNode(node)
}"""

SHOWN = """title => {
    const page = document.querySelector('.node-help-content')
    return page?.querySelector('h1')?.textContent === title
        && [...page.querySelectorAll('img')].every(image => image.complete)
}"""

TOO_WIDE = """width => {
    const page = document.querySelector('.node-help-content')
    page.style.width = `${Math.min(width, page.clientWidth)}px`
    const right = page.getBoundingClientRect().right + 1
    const inline = element => getComputedStyle(element).display === 'inline'
    const scrolls = element => !inline(element) && element.scrollWidth > element.clientWidth + 1
    const wide = element => scrolls(element) || element.getBoundingClientRect().right > right
    const found = [...page.querySelectorAll('*')].filter(wide)
    return found.map(element => `${element.tagName} ${element.textContent.slice(0, 60)}`)
}"""

PICTURES = """() => [...document.querySelectorAll('.node-help-content img')]
    .map(image => image.naturalWidth)"""


@pytest.mark.parametrize("opened", ["canvas"], indirect=True)
def test_every_page_fits_its_side_bar_and_shows_its_picture(page, screenshot):
    too_wide, unseen = {}, []
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        page.evaluate(SELECT, path.stem)
        if path == PAGES[0]:
            page.get_by_test_id("info-button").click()
        title = text.splitlines()[0].removeprefix("# ")
        page.wait_for_function(SHOWN, arg=title, timeout=10_000)
        if wide := page.evaluate(TOO_WIDE, NARROWEST):
            too_wide[path.stem] = wide
        pictures = page.evaluate(PICTURES)
        if len(pictures) != text.count("![") or not all(pictures):
            unseen.append(path.stem)
        if path.stem == "PalimpsestMasaCtrl":
            screenshot("help")
    assert too_wide == {}
    assert unseen == []
