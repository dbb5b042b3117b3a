"""Whatever `update` refuses, `explain` names with the same id, before and after; on a whole host."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from bascule.errors import PolicyRefusal, catalogue
from bascule.updater.gates.gate import REFUSED_AS
from node import Node
from publisher import Site

MakeNode = Callable[..., Node]
SWITCHED_OFF = (
    '<response protocol="3.0" server="lab"><app appid="{e96281a6-d1af-4bde-9a0a-97b76e56dc57}" '
    'status="error-updatesDisabled"><updatecheck status="error-internal"/></app></response>'
)


def publish(site: Site, version: str) -> None:
    """Of a publisher who wants hosts to wait after a failure."""
    payload = site.payload(site.image(version), version)
    site.mock("publish", str(site.served), "--payload", str(payload), "--version", version)


def closed(node: Node) -> dict[str, dict[str, Any]]:
    """Gates that hold an update back, by the id of the error that they stand for."""
    done = node.updatectl("explain", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    gates = json.loads(done.stdout)["gates"]
    return {g["error"]: g for g in gates if g["verdict"] == "block" and g["error"]}


def update(node: Node, *options: str) -> dict[str, Any]:
    done = node.updatectl("update", "--json", *options)
    assert done.returncode != 0, done.stdout
    answer: dict[str, Any] = json.loads(done.stdout)
    # "No update" is an answer of its own, not a failure of the job.
    error: dict[str, Any] = answer.get("error") or {"id": answer["result"]}
    return error


def ledger(node: Node, **fields: Any) -> None:
    """What an earlier day left behind."""
    path = node.state / "ledger.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def settings(node: Node, text: str) -> None:
    (node.folder / "more.toml").write_text(text)
    # The daemon reads them at a request.
    node.updatectl("config", "--json")


seen: set[str] = set()


@contextmanager
def explained(node: Node, error: str, *, known: bool = True) -> Iterator[None]:
    """`explain` names `error` before (where it can be `known`), `update` says it, and again after."""
    if known:
        assert error in closed(node)
    yield
    assert error in closed(node), f"{error} is not explained afterwards"
    seen.add(error)


def is_explained(node: Node, error: str, *, known: bool = True) -> dict[str, Any]:
    with explained(node, error, known=known):
        told = update(node)
        assert told["id"] == error, told
    return told


def test_what_update_refuses_explain_names(site: Site, make_node: MakeNode) -> None:
    site.mock("publish", str(site.served), "--payload", str(site.payload(
        site.image("1.0.0"), "1.0.0")), "--version", "1.0.0")  # fmt: skip
    node = make_node(settings="[check]\nspread = false\n")
    assert node.power_on() == "A"
    is_explained(node, "no-update", known=False)
    is_explained(node, "no-update")

    publish(site, "2.0.0")
    assert node.updatectl("check").returncode == 0
    assert set(closed(node)) == set(), "nothing holds it back"

    assert node.updatectl("hold", "--indefinite", "--reason", "fair").returncode == 0
    told = is_explained(node, "policy")
    assert [g["reason"] for g in told["context"]["gates"]] == ["hold.indefinite"]
    assert closed(node)["policy"]["reason"] == "hold.indefinite"
    warnings = node.status()["warnings"]
    assert isinstance(warnings, list) and any("until further notice" in w for w in warnings)
    assert node.updatectl("hold", "--clear").returncode == 0

    assert node.updatectl("pin", "<2").returncode == 0
    is_explained(node, "pinned")
    assert node.updatectl("pin", "--clear").returncode == 0

    ledger(node, floor="3.0.0")
    is_explained(node, "below-floor")
    ledger(node, floor="")

    answer = node.ledger()["answer"]
    assert isinstance(answer, dict)
    entry = {"version": "2.0.0", "kind": "boot", "reason": "nginx failed", "at": 7, "until": 0}
    ledger(node, quarantine={answer["payload"]: entry})
    is_explained(node, "quarantined")
    ledger(node, quarantine={})

    state = node.ledger()["payload_state"]
    assert isinstance(state, dict)
    ledger(node, payload_state={**state, "attempt": 2, "backoff_until": int(time.time()) + 86400})
    is_explained(node, "backing-off")
    ledger(node, payload_state={})

    settings(node, '[download]\nbudget = "1G"\n')
    ledger(node, budget={"period": time.strftime("%Y-%m"), "used": 1 << 40})
    is_explained(node, "budget-spent", known=False)
    is_explained(node, "budget-spent")
    ledger(node, budget={})

    settings(node, '[download]\nwindows = ["Sun 04:00 1s"]\n')
    told = is_explained(node, "policy", known=False)
    assert told["context"]["gates"][0]["name"] == closed(node)["policy"]["name"]
    settings(node, "")

    site.fault("body", on="omaha", body=SWITCHED_OFF)
    is_explained(node, "omaha-deferred", known=False)
    site.fault(
        "body", on="omaha", body=SWITCHED_OFF.replace("updatesDisabled", "unknownApplication")
    )
    site.no_faults()
    site.fault(
        "body", on="omaha", body=SWITCHED_OFF.replace("updatesDisabled", "unknownApplication")
    )
    is_explained(node, "omaha-refused", known=False)
    site.no_faults()
    site.fault("refuse", on="omaha")
    is_explained(node, "omaha-unreachable", known=False)
    site.no_faults()

    assert node.updatectl("update").returncode == 0
    is_explained(node, "busy")
    blocked = node.status()["blocked_by"]
    assert isinstance(blocked, list)
    assert {g["name"] for g in blocked} == {"strategy"}, "what is staged waits for its reboot"
    assert node.reboot() == "B"
    is_explained(node, "booted-not-blessed")
    assert node.finish_boot()
    assert "booted-not-blessed" not in closed(node)
    blocked = node.status()["blocked_by"]
    assert isinstance(blocked, list)
    assert not any(g["blocks"] == "reboot" for g in blocked), "nothing waits for a reboot"

    # Every id that a refusal may have, but for a full disk (tests/updater/test_gates.py).
    policies = {k.id for k in catalogue() if issubclass(k, PolicyRefusal)} - {"reboot-refused"}
    assert seen == policies | set(REFUSED_AS.values()) - {"no-space"}
