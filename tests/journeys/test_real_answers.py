"""``--json`` of every verb, and the text of the chief ones, from a real daemon through a whole story.

Each answer must fit the published schema and equal its golden file, what differs from run to run being
masked. ``BASCULE_WRITE_GOLDEN=1`` writes the files anew: look at the difference before it is
committed, scripts depend on it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bascule
from bascule.faces.cli.verbs import VERBS
from bascule.faces.json_schema import schema
from bus_fixture import private_bus
from json_shape import fits
from node import Node
from publisher import IMAGE_MIB, Site

GOLDEN = Path(__file__).resolve().parent / "golden"

HERE = ("metered", "inhibitors", "sessions", "space", "battery", "load")
"""Gates whose facts are of the machine that runs the test."""

KINDS = {
    "status": "status",
    "slots": "slots",
    "check": "job",
    "update": "job",
    "prepare": "job",
}
FELLOWS = {"activate", "deactivate", "cancel", "reset", "rollback", "reboot"}


class Story:
    """What the operator typed, in order, and the answers."""

    def __init__(self, folder: Path, node: Node) -> None:
        self.folder, self.node = folder, node
        self.answers: dict[str, tuple[list[str], int, str]] = {}
        self.texts: dict[str, str] = {}

    def ask(self, name: str, *words: str) -> None:
        done = self.node.updatectl("--json", *words)
        assert "Traceback" not in done.stderr
        self.answers[name] = (list(words), done.returncode, done.stdout)

    def read(self, name: str, *words: str) -> None:
        done = self.node.updatectl(*words)
        assert "Traceback" not in done.stderr
        self.texts[name] = done.stdout

    def look(self, state: str) -> None:
        """Status, slots and explain of one state, both ways."""
        for verb in ("status", "slots", "explain"):
            self.ask(f"{state}-{verb}", verb)
            self.read(f"{state}-{verb}", verb)


def play(story: Story, site: Site) -> None:
    node, ask = story.node, story.ask
    site.publish("2.0.0")
    node.power_on()
    story.look("fresh")
    ask("nothing-history", "history")
    ask("nothing-cancel", "cancel")
    ask("nothing-reboot", "reboot")
    ask("empty-rollback", "rollback")
    ask("check", "check")
    ask("list", "list")
    ask("plan", "plan")
    ask("config", "config")
    ask("config-check", "config", "check")
    ask("doctor", "doctor")
    ask("hold", "hold", "--for", "3d", "--reason", "move")
    ask("held", "hold")
    ask("held-update", "update")
    story.look("held")
    ask("unhold", "hold", "--clear")
    ask("pin", "pin", ">=1,<2")
    ask("pinned", "pin")
    ask("pinned-update", "update")
    ask("unpin", "pin", "--clear")
    ask("quarantine-empty", "quarantine")
    ask("prepare", "prepare")
    ask("activate", "activate")
    ask("deactivate", "deactivate")
    ask("activate-again", "activate")
    ask("reset", "reset")
    ask("update", "update")
    story.look("staged")
    ask("busy-update", "update")
    node.reboot()
    story.look("trial")
    ask("trial-update", "update")
    assert node.finish_boot()
    story.look("updated")
    site.publish("3.0.0", "broken")
    ask("update-broken", "update")
    node.reboot()
    assert not node.finish_boot()
    node.reboot()
    story.look("back")
    ask("quarantined-update", "update")
    ask("quarantine", "quarantine")
    ask("explain-history", "explain", "--history")
    ask("history", "history")
    ask("history-verify", "history", "verify")
    ask("quarantine-clear", "quarantine", "clear", "3.0.0")
    site.stop()
    ask("unreachable-check", "check")
    ask("unreachable-check-status", "status", "--check")
    ask("wrong", "hold", "--for", "soon")
    node.stop_daemon()
    ask("no-daemon", "status")
    site.start()


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("story")
    site = Site(folder / "publisher")
    site.start()
    with private_bus() as bus:
        node = Node(folder / "host", site.url, bus.address, site.keys, slot_mib=IMAGE_MIB + 2)
        node.make(site.image("1.0.0"))
        made = Story(folder, node)
        try:
            play(made, site)
            yield made
        finally:
            node.power_off()
            site.stop()


# ── masks ────────────────────────────────────────────────────────────────────────────────────

_TEXT = (
    (re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}"), "ATTEMPT"),
    (re.compile(r"127\.0\.0\.1:\d+"), "SERVER"),
    (re.compile(r"127\.0\.0\.1', \d+"), "SERVER'"),
    (re.compile(r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) \d{4}-\d\d-\d\d \d\d:\d\d \w+"), "WHEN"),
    (re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d)?)?"), "WHEN"),
    (re.compile(r"\bsince \d\d:\d\d"), "since HH:MM"),
    (re.compile(r"[0-9a-f]{12,}"), "DIGEST"),
    (re.compile(r"unix:path=\S+?(?=[\s,\"]|$)"), "BUS"),
    (re.compile(r"\b\d+ (?:s|min|h|d)(?: \d+ (?:s|min|h))?(?: ago)?(?=\b)"), "A-WHILE"),
    (re.compile(r"\b(?:now|never)(?=; next|$)", re.MULTILINE), "A-WHILE"),
    (re.compile(r", for A-WHILE"), ""),
    (re.compile(r"\b\d[\d.]* [kMG]B/s"), "RATE"),
    (re.compile(r"user id \d+"), "user id N"),
    (re.compile(r"^:1\.\d+$"), "SENDER"),
)
_FIGURES = {
    "uid",
    "pid",
    "rate",
    "eta",
    "flushes",
    "checkpoints",
    "free",
    "available",
    "needed",
    "records",
}
_TIMES = ("_s", "_at", "_until", "_check", "_checked", "_updated")


def masked_text(story: Story, text: str) -> str:
    text = text.replace(str(story.folder), "/srv")
    lines = [
        line
        for line in text.splitlines()
        if not re.match(rf"(?:open|closed|unknown) +({'|'.join(HERE)})\b|Not known: ", line)
        # Gates are looked at by the clock; `explain` looks at them when it is asked.
        and not line.startswith("  Held by ")
    ]
    text = "\n".join(lines)
    for pattern, instead in _TEXT:
        text = pattern.sub(instead, text)
    return text.replace(bascule.__version__, "THIS") if "daemon" in text else text


def masked(story: Story, value: Any, key: str = "") -> Any:
    match value:
        case bool() | None:
            return value
        case int() | float() if key in _FIGURES or key.endswith(_TIMES) or value >= 50_000_000:
            return "FIGURE"
        case str() if key in ("boot_id", "phase"):
            return "TEXT"
        case list() if key == "blocked_by":
            return "GATES"
        case str():
            return masked_text(story, value)
        case list() if all(isinstance(item, str) for item in value):
            return [line for line in (masked_text(story, item) for item in value) if line]
        case list():
            return [
                masked(story, item)
                for item in value
                if not (isinstance(item, dict) and item.get("name") in HERE)
            ]
        case dict():
            return {
                k: masked(story, v, k)
                for k, v in value.items()
                if k != "version" or v != bascule.__version__
            }
    return value


def shape_of_settings(document: dict[str, Any]) -> dict[str, Any]:
    """Which settings there are is the business of docs/settings.md; here, how one is told."""
    rows = document["settings"]
    assert all(set(row) == set(rows[0]) for row in rows)
    return {**document, "settings": [sorted(rows[0])]}


def shape_of_findings(document: dict[str, Any]) -> dict[str, Any]:
    """What there is to find is the machine's; here, how one is told."""
    keys = {"id", "severity", "sentence", "remedy", "repairable"}
    assert all(keys <= set(finding) for finding in document["findings"])
    return {"findings": [sorted(keys)]}


def compare(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("BASCULE_WRITE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.exists(), "write it with BASCULE_WRITE_GOLDEN=1"
    assert text == path.read_text(), (
        f"{path.name}: see BASCULE_WRITE_GOLDEN in {Path(__file__).name}"
    )


# ── the tests ────────────────────────────────────────────────────────────────────────────────


def test_every_answer_fits_the_schema(story: Story) -> None:
    definitions = schema()["$defs"]
    for name, (words, code, out) in story.answers.items():
        document = json.loads(out)
        assert document["schema"] == 1, name
        if "error" in document and document["ok"] is False and isinstance(document["error"], dict):
            kind = "error"
            assert document["error"]["exit"] == code, name
        elif words[0] in FELLOWS or ("sentence" in document and len(document) == 3):
            kind = "sentence"
        else:
            kind = KINDS.get(words[0], "document")
        assert fits(document, definitions[kind]) == [], (name, kind)


def test_every_verb_was_asked(story: Story) -> None:
    asked = {words[0] for words, _, _ in story.answers.values()}
    # These two go on until they are interrupted, or show another program's answer.
    assert {verb.name for verb in VERBS} - asked == {"watch", "logs"}


def test_golden_answers(story: Story) -> None:
    whole = {}
    for name, (words, code, out) in story.answers.items():
        document = json.loads(out)
        if words == ["config"]:
            document = shape_of_settings(document)
        if words == ["doctor"]:
            document, code = shape_of_findings(document), 0
        whole[name] = {"asked": " ".join(words), "code": code, "answer": masked(story, document)}
    for name, answer in whole.items():
        compare(f"{name}.json", json.dumps(answer, indent=1, ensure_ascii=False) + "\n")


def test_golden_texts(story: Story) -> None:
    for name, text in story.texts.items():
        compare(f"{name}.txt", masked_text(story, text) + "\n")


def test_no_golden_file_is_left_over(story: Story) -> None:
    known = {f"{name}.json" for name in story.answers} | {f"{name}.txt" for name in story.texts}
    assert {path.name for path in GOLDEN.iterdir()} == known
