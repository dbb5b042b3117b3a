"""The pages that people read: links lead somewhere, commands exist, what was captured is there."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import xml.dom.minidom
from collections.abc import Iterator
from pathlib import Path

import pytest

from bascule.faces.cli.verbs import VERBS, build

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "omaha-mock/README.md"]
PICTURES = sorted((ROOT / "docs/pictures").glob("*.svg"))

page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def anchors(path: Path) -> set[str]:
    """What a heading is called in a link, as GitHub makes it."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@page
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


@page
def test_what_was_captured_is_there(page: Path) -> None:
    text = page.read_text()
    for name, body in re.findall(
        r"<!-- captured: ([\w-]+) -->\n(.*?)<!-- end: \1 -->", text, re.DOTALL
    ):
        assert body.count("```") == 2, name
        assert "Traceback" not in body
        assert "does not know this request" not in body, f"{name}: play the stories again"
    assert text.count("<!-- captured:") == text.count("```console")


def commands(path: Path) -> Iterator[str]:
    """Every ``updatectl …`` that a page tells people to type."""
    text = path.read_text()
    for found in re.finditer(r"`(updatectl(?: [^`\n]+)?)`|^\$? ?(updatectl [^\n]+)$", text, re.M):
        yield (found[1] or found[2]).split("  #")[0].strip()


@page
def test_commands_that_are_named_exist(page: Path) -> None:
    verbs = {verb.name for verb in VERBS}
    for command in commands(page):
        words = shlex.split(command)[1:]
        if not words or "VERB" in words or "|" in command or "…" in command:
            continue
        if words[0] in ("status,", "and"):
            continue
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                build().parse_args(words)
        except SystemExit as end:
            assert end.code == 0, f"{command}: {said.getvalue()}"
        assert words[0] in verbs or words[0].startswith("-"), command


def test_every_verb_is_somewhere_in_the_guide() -> None:
    told = " ".join(path.read_text() for path in PAGES)
    missing = [verb.name for verb in VERBS if not re.search(rf"updatectl {verb.name}\b|`{verb.name}`|\b{verb.name}\b", told)]  # fmt: skip
    assert not missing


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.name)
def test_pictures_are_drawings_of_what_was_said(picture: Path) -> None:
    drawn = xml.dom.minidom.parse(str(picture))
    known = {node.getAttribute("id") for node in drawn.getElementsByTagName("text")}
    used = {use.getAttribute("href")[1:] for use in drawn.getElementsByTagName("use")}
    assert used <= known
    assert used
    # Frames of a moving picture have their keyframes, or nothing would ever show.
    text = picture.read_text()
    for frame in re.findall(r"animation-name:(f\d+)", text):
        assert f"@keyframes {frame}{{" in text
    assert picture.name in " ".join(path.read_text() for path in PAGES)
