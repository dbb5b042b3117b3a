"""`updatectl config check` by the real command and daemon."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from node import Node
from publisher import Site

MakeNode = Callable[..., Node]


def check(node: Node) -> tuple[int, list[str]]:
    done = node.updatectl("config", "check", "--json")
    document = json.loads(done.stdout)
    if "error" in document:
        return done.returncode, [document["error"]["message"]]
    return done.returncode, document["problems"]


def test_a_good_configuration_is_good(site: Site, make_node: MakeNode) -> None:
    node = make_node()
    node.power_on()
    assert check(node) == (0, [])
    assert "No mistake" in node.updatectl("config", "check").stdout


MISTAKES = [
    ('[policy]\nschedule = ["0 0 31 2 *"]\n', "`policy.schedule`: The schedule never comes"),
    ('[reboot]\nstrategy = "fleetlock"\n', "endpoints"),
    ('[reboot]\nwindows = ["Mon 02:00 1h"]\n', "has no effect"),
    ('[reboot]\nstrategy = "reboot"\nwindow_start = "Mon 02:00"\n', "together only"),
    ('[server]\nurl = "ftp://x/"\n', "neither an http address"),
    ('[server]\nrepository = "releases"\n', "absolute path"),
    ('[server]\nclient_key = "/nowhere"\n', "`server.client_key` is of no use"),
    ('[server]\nca_file = "/nowhere"\n', "/nowhere"),
    ('[trust]\nkeys = "/nowhere"\n', "nothing can be proven"),
    ('[trust]\nrequire = ["openpgp"]\n', "names no keyring"),
    ('[health]\ntcp = ["localhost"]\n', "host:port"),
    ('[health.checks."tcp:localhost:22"]\nretries = 3\n', "no such check is asked"),
    (
        '[health]\nhttp = ["https://x/"]\n[health.checks."https://x/"]\nca_file = "/nowhere"\n',
        "/nowhere cannot be used",
    ),
    ('[reboot]\nlate_units = ["a.service"]\n', "late_window"),
    ('[metrics]\npath = "/run/x"\n', "metrics.mode"),
]  # fmt: skip


def test_what_would_not_do_what_was_meant(site: Site, make_node: MakeNode) -> None:
    """Settings are read anew at each check, so one daemon serves for all."""
    node = make_node(settings="[policy]\n")
    node.power_on()
    for body, words in MISTAKES:
        (node.folder / "more.toml").write_text(body)
        code, problems = check(node)
        assert code == 7, body
        assert any(words in problem for problem in problems), problems


def test_a_wrong_file_is_the_answer(site: Site, make_node: MakeNode) -> None:
    node = make_node(settings="[policy]\n")
    node.power_on()
    (node.folder / "more.toml").write_text('[policy]\nmoed = "apply"\n')
    code, problems = check(node)
    assert code == 7 and "unknown key `policy.moed`" in problems[0]
    # The daemon lives on with what it had, and says so.
    assert "policy.moed" in str(node.status()["warnings"]) or node.updatectl("check").returncode
    assert node.updatectl("doctor").returncode == 1


def test_no_release_is_fetched_that_could_not_be_judged(site: Site, make_node: MakeNode) -> None:
    """Its health could not be asked either, and it would be given up for that."""
    site.publish("2.0.0")
    node = make_node(settings="[policy]\n")
    node.power_on()
    assert node.finish_boot()
    (node.folder / "more.toml").write_text('[health.checks."health.d:10-x"]\nverify = false\n')
    done = node.updatectl("update")
    assert done.returncode == 7, done
    assert '`health.checks."health.d:10-x".verify` cannot be set' in done.stderr
    assert "Traceback" not in done.stderr
    (node.folder / "more.toml").write_text("")
    assert node.updatectl("update").returncode == 0


def test_foreign_words_are_told(site: Site, make_node: MakeNode) -> None:
    node = make_node()
    folder: Path = node.root / "oem"
    folder.mkdir()
    (folder / "90_custom.yaml").write_text("kairos: {upgrade: {recovery: true, auto: false}}\n")
    node.power_on()
    code, problems = check(node)
    assert code == 7 and any("kairos.upgrade.recovery" in problem for problem in problems)
    rows = json.loads(node.updatectl("config", "--json").stdout)["settings"]
    (mode,) = [row for row in rows if row["name"] == "policy.mode"]
    assert mode["value"] == "check" and mode["origin"].endswith("90_custom.yaml")
