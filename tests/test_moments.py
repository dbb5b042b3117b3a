"""Health, blessing and deadman on a disk of its own, with clocks that the test moves."""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from bascule.assembly import Assembly
from bascule.engine.health import run
from bascule.errors import BlessRefused, Unhealthy
from bascule.formats.slots import Slot
from bascule.giving_up import deadman_switch
from bascule.moments import bless, health
from bascule.settings import load
from bascule.trial import Clocks
from bascule.updater.health_verdict import BLESSING, DECIDING
from bascule.updater.intent import Phase
from node import BIN, Node
from story import ATTEMPT, OLD, Story, image

PROJECT = Path(__file__).resolve().parents[1]
NOW = argparse.Namespace(now=True, once=True)
PATIENTLY = argparse.Namespace(now=False, once=False)
DEADLINE = 20.0
"""As in the host's settings."""
APPLICATION = '[health.checks."health.d:10-application"]\n'


@dataclass
class FakeTime:
    """Time that passes only when somebody waits for it.

    Attributes:
        slept: every wait, in seconds.
        meanwhile: what else happens: called after each wait.
    """

    now: float = 3.0
    slept: list[float] = field(default_factory=list)
    meanwhile: Callable[[], None] = lambda: None

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        self.meanwhile()

    @property
    def clocks(self) -> Clocks:
        return Clocks(
            monotonic=lambda: self.now,
            sleep=self.sleep,
            uptime=lambda proc: self.now,
            wall=lambda: 1_700_000_000 + self.now,
        )


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def story(tmp_path: Path) -> Story:
    node = Node(
        tmp_path / "node",
        server="disabled",
        bus=f"unix:path={tmp_path / 'no-bus'}",
        keys=tmp_path,
        slot_mib=2,
    )
    first = tmp_path / "first.img"
    first.write_bytes(image(OLD))
    return Story(node.make(first))


def assembly(story: Story, settings: str = "") -> Assembly:
    more = story.node.folder / "more.toml"
    more.write_text(settings)
    return Assembly(load(story.node.root, [story.node.config, more]))


def break_application(story: Story) -> None:
    """The check that asks the application will fail from now on."""
    check = story.node.root / "etc/bascule/health.d/10-application"
    check.write_text("#!/bin/sh\necho it has stopped answering; exit 1\n")


def count_askings(story: Story) -> Path:
    log = story.node.folder / "asked"
    check = story.node.root / "etc/bascule/health.d/20-count"
    check.write_text(f"#!/bin/sh\necho asked >>{log}\n")
    check.chmod(0o755)
    return log


# ── health ───────────────────────────────────────────────────────────────────────────────────


def own_check(story: Story, name: str, body: str, mode: int = 0o755) -> None:
    check = story.node.root / "etc/bascule/health.d" / name
    check.write_text(f"#!/bin/sh\n{body}\n")
    check.chmod(mode)


def history_of(parts: Assembly, kind: str) -> list[dict[str, Any]]:
    return [dict(record["facts"]) for record in parts.history().read(100, kind=kind)]


async def test_what_checks_print_is_in_history_and_journal(
    story: Story, time: FakeTime, capsys: pytest.CaptureFixture[str]
) -> None:
    story.on_trial()
    own_check(story, "20-disk", "printf 'all \\033[31mdisks\\nare there'")
    own_check(story, "30-forgotten", "exit 1", mode=0o644)
    parts = assembly(story)
    await health(NOW, parts, time.clocks)
    said = capsys.readouterr().err
    assert "20-disk: pass\n  all \ufffd[31mdisks\n  are there\n" in said
    assert "30-forgotten is not executable and was not run" in said
    (record,) = history_of(parts, "health")
    outputs = {check["name"]: check["output"] for check in record["checks"]}
    assert outputs["health.d:20-disk"] == "all \033[31mdisks\nare there"
    assert "30-forgotten" in record["left_out"][0]


async def test_so_is_what_they_print_when_the_soak_fails(
    story: Story, time: FakeTime, capsys: pytest.CaptureFixture[str]
) -> None:
    story.on_trial()
    time.meanwhile = lambda: break_application(story)
    parts = assembly(story, '[health]\nsoak = "100s"\n')
    with pytest.raises(Unhealthy):
        await bless(PATIENTLY, parts, time.clocks)
    assert "  it has stopped answering\n" in capsys.readouterr().err
    (record,) = history_of(parts, "health")
    assert record["outcome"] == "FAIL"
    assert "it has stopped answering" in str(record["checks"])


async def test_what_a_table_is_for_and_what_it_is_not_is_in_history(
    story: Story, time: FakeTime
) -> None:
    story.on_trial()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    parts = assembly(
        story,
        f'[health]\ntcp = ["127.0.0.1:{port}"]\n'
        f'[health.checks."tcp:127.0.0.1:{port}"]\nrequired = false\nretries = 1\ninterval = 0\n'
        '[health.checks."health.d:90-of-another-release"]\nretries = 1\n',
    )
    assert (await health(NOW, parts, time.clocks))["outcome"] == "PASS"
    (record,) = history_of(parts, "health")
    assert f"Wanted, not required: nothing answers on 127.0.0.1:{port}." in record["report"]
    (told,) = record["left_out"]
    assert "90-of-another-release" in told and "has no effect" in told
    asked = {check["name"]: check["attempts"] for check in story.ledger.read().health["checks"]}
    assert asked[f"tcp:127.0.0.1:{port}"] == 2


@pytest.mark.parametrize("becomes", ["pass", "fail"])
async def test_what_cannot_be_told_until_the_deadline_is_decided_by_the_setting(
    becomes: str, story: Story, time: FakeTime
) -> None:
    story.on_trial()
    own_check(story, "20-network", "exit 75")
    settings = f'[health]\ndeadline = "20s"\ninterval = "4s"\ninconclusive = "{becomes}"\n'
    parts = assembly(story, settings)
    if becomes == "pass":
        assert (await health(NOW, parts, time.clocks))["outcome"] == "PASS"
    else:
        with pytest.raises(Unhealthy, match="20-network"):
            await health(NOW, parts, time.clocks)
    assert time.now == 20


@pytest.mark.parametrize("well", [True, False])
async def test_green_runs_after_a_good_verdict_only(
    well: bool, story: Story, time: FakeTime
) -> None:
    story.on_trial()
    green = story.node.root / "etc/greenboot/green.d/10-tell"
    green.parent.mkdir(parents=True)
    green.write_text(f"#!/bin/sh\ntouch {story.node.folder}/green\n")
    green.chmod(0o755)
    if not well:
        break_application(story)
    parts = assembly(story, f'[health]\ngreenboot = true\nroot = "{story.node.root}"\n')
    if well:
        await health(NOW, parts, time.clocks)
    else:
        with pytest.raises(Unhealthy):
            await health(NOW, parts, time.clocks)
    assert (story.node.folder / "green").exists() == well


# ── blessing ─────────────────────────────────────────────────────────────────────────────────


async def test_blessing_says_which_boot_slot_and_attempt(story: Story, time: FakeTime) -> None:
    story.on_trial()
    await health(NOW, assembly(story), time.clocks)
    assert (await bless(NOW, assembly(story), time.clocks))["blessed"]
    assert story.node.flags("B") == (2, 0, 1)
    record = story.ledger.read()
    assert record.blessed == {
        "slot": "B", "boot_id": story.boot_id, "attempt": ATTEMPT, "at": 1_700_000_003,
    }  # fmt: skip
    assert record.verdict["verdict"] == "UPDATED"
    again = await bless(NOW, assembly(story), time.clocks)
    assert again == {"said": "Slot B is already good.", "blessed": False}


async def test_soak_asks_health_until_its_end_and_blesses_only_then(
    story: Story, time: FakeTime
) -> None:
    story.on_trial()
    log = count_askings(story)
    seen: list[tuple[float, int]] = []
    time.meanwhile = lambda: seen.append((time.now, story.node.flags("B")[2]))
    parts = assembly(story, '[health]\nsoak = "100s"\ninterval = "30s"\n')
    assert (await bless(PATIENTLY, parts, time.clocks))["blessed"]
    assert time.slept == [30, 30, 30, 10]
    assert seen == [(33, 0), (63, 0), (93, 0), (103, 0)]
    assert len(log.read_text().split()) == 4
    assert story.node.flags("B") == (2, 0, 1)


async def test_the_last_asking_of_a_soak_has_time_for_the_slowest_check(
    story: Story, time: FakeTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    story.on_trial()
    limits: list[float] = []

    async def watched(checks: Any, **more: Any) -> Any:
        limits.append(more["limit"])
        return await run(checks, **more)

    monkeypatch.setattr("bascule.moments.run", watched)
    table = f'{APPLICATION}timeout = "5m"\n'
    parts = assembly(story, f'[health]\nsoak = "100s"\ninterval = "60s"\n{table}')
    assert (await bless(PATIENTLY, parts, time.clocks))["blessed"]
    assert limits == [40 + 300, 300]


async def test_a_soak_asks_each_check_as_its_own_table_says(story: Story, time: FakeTime) -> None:
    story.on_trial()
    time.meanwhile = lambda: break_application(story)
    log = count_askings(story)
    own_check(story, "20-count", f"echo asked >>{log}; exit 1")
    table = '[health.checks."health.d:20-count"]\nretries = 4\ninterval = 0\n'
    with pytest.raises(Unhealthy, match="10-application failed with exit status 1, and 1 more"):
        await bless(PATIENTLY, assembly(story, f'[health]\nsoak = "1s"\n{table}'), time.clocks)
    assert len(log.read_text().split()) == 5


async def test_now_spares_the_soak(story: Story, time: FakeTime) -> None:
    story.on_trial()
    parts = assembly(story, '[health]\nsoak = "1h"\n')
    assert (await bless(NOW, parts, time.clocks))["blessed"]
    assert time.slept == []


async def test_failing_in_the_soak_is_not_blessed_but_given_up(
    story: Story, time: FakeTime
) -> None:
    story.on_trial()

    def meanwhile() -> None:
        if time.now > 50:
            break_application(story)

    time.meanwhile = meanwhile
    parts = assembly(story, '[health]\nsoak = "100s"\ninterval = "30s"\n')
    with pytest.raises(Unhealthy, match="while soaking: 10-application failed"):
        await bless(PATIENTLY, parts, time.clocks)
    assert time.slept == [30, 30]
    assert story.node.flags("B") == (2, 0, 0)
    assert story.intent.trial_boot == story.boot_id
    with pytest.raises(BlessRefused, match="this boot was judged: 10-application failed"):
        await bless(NOW, parts, time.clocks)
    done = await deadman_switch(NOW, parts, time.clocks)
    assert done["action"] == "reboot"
    assert story.node.reboot_requested


def test_a_real_soak_of_a_second(story: Story) -> None:
    story.on_trial()
    story.node.settings = '[health]\nsoak = "1s"\n'
    story.node.write_config()
    log = count_askings(story)
    done = story.node.bascule("bless")
    assert done.returncode == 0, done.stderr
    assert "Soaking for 1 s before slot B is confirmed." in done.stderr
    assert "Slot B (3.1.0) is confirmed and stays." in done.stdout
    assert len(log.read_text().split()) >= 1
    assert story.node.flags("B") == (2, 0, 1)


def other_attempt(story: Story) -> None:
    """Somebody else's intent is in the ledger."""
    fresh = replace(story.intent, attempt="another", trial_boot="")
    story.change(lambda record: replace(record, intent=fresh.as_dict()))


def other_slot(story: Story) -> None:
    (story.node.folder / "booted").write_text("A")


def other_boot(story: Story) -> None:
    """As after a checkpoint of the whole machine was restored."""
    (story.node.root / "proc/sys/kernel/random/boot_id").write_text("another boot\n")


def judged_unhealthy(story: Story) -> None:
    failed = replace(story.intent, failure="the deadman was faster", trial_boot=story.boot_id)
    story.change(lambda record: replace(record, intent=failed.as_dict()))


@pytest.mark.parametrize("change", [other_attempt, other_slot, other_boot, judged_unhealthy])
async def test_what_changes_in_the_soak_is_never_blessed(
    story: Story, time: FakeTime, change: Callable[[Story], None]
) -> None:
    story.on_trial()
    time.meanwhile = lambda: change(story)
    parts = assembly(story, '[health]\nsoak = "1s"\n')
    with pytest.raises(BlessRefused):
        await bless(PATIENTLY, parts, time.clocks)
    assert story.node.flags("B") == (2, 0, 0)
    assert story.node.flags("A") == (1, 0, 1)


async def test_a_slot_that_was_not_written_whole_is_never_blessed(
    story: Story, time: FakeTime
) -> None:
    """Somebody made it boot by hand."""
    story.installed(phase=Phase.WRITING)
    story.table("B", 3, 1, 0)
    story.boots("B")
    with pytest.raises(BlessRefused, match="never written whole"):
        await bless(NOW, assembly(story), time.clocks)
    assert story.node.flags("B") == (3, 0, 0)


async def test_a_slot_that_this_boot_did_not_come_from(story: Story, time: FakeTime) -> None:
    """What says it is booted is wrong: it was staged since this boot began."""
    story.installed()
    other_slot(story)
    (story.node.folder / "booted").write_text("B")
    with pytest.raises(BlessRefused, match="staged in this very boot"):
        await bless(NOW, assembly(story), time.clocks)
    assert story.node.flags("B") == (2, 1, 0)


async def test_waiting_for_the_reboot_blesses_nothing(story: Story, time: FakeTime) -> None:
    story.installed()
    assert not (await bless(NOW, assembly(story), time.clocks))["blessed"]
    assert story.node.flags("B") == (2, 1, 0)


async def test_a_state_directory_that_is_gone_costs_no_healthy_boot(
    story: Story, time: FakeTime
) -> None:
    story.on_trial()
    (story.node.state / "ledger.lock").unlink()
    (story.node.state / "ledger.lock").mkdir()
    await health(NOW, assembly(story), time.clocks)
    assert (await bless(NOW, assembly(story), time.clocks))["blessed"]
    assert story.node.flags("B") == (2, 0, 1)


def test_flatcars_name_for_it_works(story: Story, tmp_path: Path) -> None:
    story.on_trial()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    subprocess.run(
        ["make", "--no-print-directory", "install-parts", f"PREFIX={tmp_path / 'usr'}",
         f"SYSCONFDIR={tmp_path / 'etc'}"],
        cwd=PROJECT, env=environment, check=True, capture_output=True,
    )  # fmt: skip
    program = tmp_path / "usr/bin/bascule"
    program.parent.mkdir()
    words = f"--root {story.node.root} --config {story.node.config}"
    program.write_text(f'#!/bin/sh\nexec {BIN / "bascule"} "$@" {words}\n')
    program.chmod(0o755)
    done = subprocess.run(
        [tmp_path / "usr/sbin/flatcar-setgoodroot"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert story.node.flags("B") == (2, 0, 1)


# ── deadman ──────────────────────────────────────────────────────────────────────────────────


async def test_a_boot_that_is_never_judged_is_given_up(story: Story, time: FakeTime) -> None:
    story.on_trial()
    told = story.node.folder / "red"
    red = story.node.root / "etc/greenboot/red.d/10-tell.sh"
    red.parent.mkdir(parents=True)
    red.write_text(f"echo red >{told}\n")
    done = await deadman_switch(
        PATIENTLY, assembly(story, f'[health]\nroot = "{story.node.root}"\n'), time.clocks
    )
    assert (done["action"], time.now) == ("reboot", DEADLINE + DECIDING)
    assert story.node.reboot_requested
    assert told.read_text() == "red\n"
    assert story.intent.failure == "it was not confirmed in time"
    assert story.intent.trial_boot == story.boot_id


@pytest.mark.parametrize(("own", "longest"), [("", 10), ("5m", 300), ("1s", 10)])
async def test_a_soak_is_waited_for_once_health_has_passed(
    story: Story, time: FakeTime, own: str, longest: int
) -> None:
    """And its last asking, which takes as long as the slowest of the checks may."""
    story.on_trial()
    table = f'{APPLICATION}timeout = "{own}"\n' if own else ""
    parts = assembly(story, f'[health]\nsoak = "1h"\ntimeout = "10s"\n{table}')
    await health(NOW, parts, time.clocks)
    done = await deadman_switch(PATIENTLY, parts, time.clocks)
    assert done["action"] == "reboot"
    assert time.now == DEADLINE + DECIDING + 3600 + longest + BLESSING
    assert max(time.slept) <= 60


async def test_a_blessing_meanwhile_ends_the_watch(story: Story, time: FakeTime) -> None:
    story.on_trial()
    time.meanwhile = lambda: story.table("B", 2, 0, 1)
    done = await deadman_switch(PATIENTLY, assembly(story), time.clocks)
    assert done == {"action": "rest", "said": "The booted release is confirmed."}
    assert not story.node.reboot_requested


async def test_a_blessing_at_the_last_moment_wins(story: Story, time: FakeTime) -> None:
    """Between the look and the decision."""
    story.on_trial()
    time.now = 1e6
    asked = time.clocks

    def uptime(proc: Path) -> float:
        story.table("B", 2, 0, 1)
        return time.now

    done = await deadman_switch(PATIENTLY, assembly(story), replace(asked, uptime=uptime))
    assert done["action"] == "rest"
    assert not story.node.reboot_requested
    assert story.intent.failure == ""


@pytest.mark.parametrize("options", [NOW, PATIENTLY])
async def test_a_blessed_slot_is_never_rebooted(
    story: Story, time: FakeTime, options: argparse.Namespace
) -> None:
    """However ill it gets afterwards, and however late it is."""
    story.on_trial()
    await health(NOW, assembly(story), time.clocks)
    await bless(NOW, assembly(story), time.clocks)
    break_application(story)
    time.now = 1e6
    with pytest.raises(Unhealthy):
        await health(NOW, assembly(story), time.clocks)
    done = await deadman_switch(options, assembly(story), time.clocks)
    assert done["action"] == "rest"
    assert not story.node.reboot_requested
    # Nor does the old one, which no attempt concerns.
    story.boots("B")
    story.change(lambda record: replace(record, intent=None))
    assert (await deadman_switch(options, assembly(story), time.clocks))["action"] == "rest"


async def test_without_another_slot_it_says_so_and_stays_up(
    story: Story, time: FakeTime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    story.on_trial("broken")
    story.table("A", 0, 0, 0)
    wall = tmp_path / "bin/wall"
    wall.parent.mkdir()
    wall.write_text(f'#!/bin/sh\necho "$1" >{tmp_path}/wall\n')
    wall.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wall.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("JOURNAL_STREAM", "1:1")
    with pytest.raises(Unhealthy):
        await health(NOW, assembly(story), time.clocks)
    capfd.readouterr()
    done = await deadman_switch(NOW, assembly(story), time.clocks)
    assert done["action"] == "stay"
    assert not story.node.reboot_requested
    sentence = (
        "The booted release is not healthy (10-application failed with exit status 1), but there "
        "is no other slot to boot, so it stays up."
    )
    said = capfd.readouterr().err.splitlines()
    assert said == [sentence, f"<0>Bascule: {sentence}"]
    assert (tmp_path / "wall").read_text() == f"Bascule: {sentence}\n"
    kinds = [entry["kind"] for entry in assembly(story).history().read()]
    assert kinds[-1] == "stays-up"


async def test_it_is_given_up_even_if_nothing_can_be_written_down(
    story: Story, time: FakeTime
) -> None:
    story.on_trial("broken")
    (story.node.state / "ledger.lock").unlink()
    (story.node.state / "ledger.lock").mkdir()
    time.now = 1e6
    assert (await deadman_switch(NOW, assembly(story), time.clocks))["action"] == "reboot"
    assert story.node.reboot_requested


@pytest.mark.parametrize(
    "broken",
    ["[health\n", "[nonsense]\nkey = 1\n", '[slots]\nsector_size = "many"\n', "\xff", None],
)
def test_settings_that_are_wrong_keep_no_boot_up(story: Story, broken: str | None) -> None:
    """The new release brought them: nothing else of ours starts, but the way back does."""
    story.on_trial()
    fragment = story.node.root / "etc/bascule/bascule.toml"
    if broken is None:
        fragment.symlink_to("/nowhere/at/all")
    else:
        fragment.write_bytes(broken.encode("latin-1"))
    (story.node.root / "proc/uptime").write_text("1000000.00 1.00\n")
    for command in ("health", "bless"):
        assert story.node.bascule(command).returncode == 7
    done = story.node.bascule("deadman")
    assert done.returncode == 0, done.stderr
    assert "A configuration file is wrong" in done.stderr
    assert story.node.reboot_requested
    assert str(fragment) in story.intent.failure


@pytest.mark.parametrize(
    ("fragment", "words"),
    [
        ("[nonsense]\nkey = 1\n", "unknown section [nonsense]"),
        ('[health.checks."health.d:10-x"]\nverify = false\n', ".verify` cannot be set"),
        ('[health]\ntcp = ["localhost"]\n', "host:port"),
    ],
)
def test_health_that_nobody_can_ask_is_no_reason_to_wait(
    story: Story, fragment: str, words: str
) -> None:
    """What `bascule-giveup.service` does when `bascule health` has failed, 30 seconds after the boot."""
    story.on_trial()
    (story.node.root / "etc/bascule/bascule.toml").write_text(fragment)
    (story.node.root / "proc/uptime").write_text("30.00 1.00\n")
    assert story.node.bascule("health").returncode == 7
    done = story.node.bascule("deadman", "--once")
    assert done.returncode == 0, done.stderr
    assert story.node.reboot_requested
    assert words in story.intent.failure
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("other", ["good", "empty"])
async def test_a_lost_ledger_keeps_no_sick_boot_up(
    story: Story, time: FakeTime, other: str
) -> None:
    """The table says that it is on trial."""
    story.on_trial("broken")
    (story.node.state / "ledger.json").write_bytes(b"{ torn")
    if other == "empty":
        story.table("A", 0, 0, 0)
    with pytest.raises(Unhealthy):
        await health(NOW, assembly(story), time.clocks)
    done = await deadman_switch(NOW, assembly(story), time.clocks)
    assert done["action"] == ("reboot" if other == "good" else "stay")
    assert "10-application failed" in done["said"]
    assert story.node.reboot_requested is (other == "good")


async def test_where_logind_is_silent_the_reboot_is_forced(
    story: Story, time: FakeTime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    story.on_trial()
    systemctl = tmp_path / "bin/systemctl"
    systemctl.parent.mkdir()
    systemctl.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/log\n[ $# = 3 ]\n')
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{systemctl.parent}:{os.environ['PATH']}")
    time.now = 1e6
    await deadman_switch(NOW, assembly(story, '[reboot]\nvia = "logind"\n'), time.clocks)
    assert (tmp_path / "log").read_text().splitlines() == [
        "--force reboot",
        "--force --force reboot",
    ]


async def test_the_second_of_two_tries_may_pass(story: Story, time: FakeTime) -> None:
    """What the first boot was found to be does not condemn the second."""
    story.installed(tries=2)
    story.boots("B")
    break_application(story)
    with pytest.raises(Unhealthy):
        await health(NOW, assembly(story), time.clocks)
    await deadman_switch(NOW, assembly(story), time.clocks)
    story.boots("B")
    assert (await deadman_switch(NOW, assembly(story), time.clocks))["action"] == "wait"
    (story.node.root / "etc/bascule/health.d/10-application").unlink()
    await health(NOW, assembly(story), time.clocks)
    assert (await bless(NOW, assembly(story), time.clocks))["blessed"]
    assert assembly(story).boot().next() is Slot.B
