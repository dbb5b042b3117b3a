"""Greenboot's directories and ours: every shape of file."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from bascule.engine.health import Host, Outcome, Pace, green, greenboot, own, red, run
from bascule.engine.health.check import OUTPUT_LIMIT, CheckResult
from bascule.engine.health.scripts import disabled_healthchecks


def put(root: Path, path: str, body: str = "#!/bin/sh\nexit 0\n", mode: int = 0o755) -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(body)
    file.chmod(mode)
    return file


def test_required_before_wanted_both_roots_in_order(tmp_path: Path) -> None:
    put(tmp_path, "etc/greenboot/check/required.d/20-b.sh")
    put(tmp_path, "etc/greenboot/check/required.d/10-a.sh")
    put(tmp_path, "usr/lib/greenboot/check/required.d/30-c.sh")
    put(tmp_path, "etc/greenboot/check/wanted.d/01-w.sh")
    put(tmp_path, "etc/greenboot/check/required.d/.hidden.sh")
    (tmp_path / "etc/greenboot/check/required.d/folder.sh").mkdir()
    (tmp_path / "etc/greenboot/check/required.d/dangling.sh").symlink_to("nowhere")
    found = greenboot(tmp_path)
    assert [(c.name, c.required) for c in found.checks] == [
        ("greenboot:required.d/30-c.sh", True),
        ("greenboot:required.d/10-a.sh", True),
        ("greenboot:required.d/20-b.sh", True),
        ("greenboot:wanted.d/01-w.sh", False),
    ]


def test_exec_bit_as_greenboot_treats_it(tmp_path: Path) -> None:
    put(tmp_path, "etc/greenboot/check/required.d/a.sh", mode=0o644)
    put(tmp_path, "etc/greenboot/check/required.d/binary")
    put(tmp_path, "etc/greenboot/check/required.d/README", mode=0o644)
    found = greenboot(tmp_path)
    assert [c.argv[0] for c in found.checks] == ["bash", str(found.checks[1].path)]
    assert len(found.notes) == 1
    assert "README is not executable" in found.notes[0]


@pytest.mark.parametrize(
    ("conf", "names"),
    [
        ('DISABLED_HEALTHCHECKS=("a.sh" "b.sh")\n', {"a.sh", "b.sh"}),
        ("DISABLED_HEALTHCHECKS=( a.sh\n  'b.sh' # why\n)\nX=1\n", {"a.sh", "b.sh"}),
        ('DISABLED_HEALTHCHECKS="a.sh b.sh"\n', {"a.sh", "b.sh"}),
        ("DISABLED_HEALTHCHECKS=()\n", set()),
        ("# DISABLED_HEALTHCHECKS=(a.sh)\n", set()),
        ("DISABLED_HEALTHCHECKS=(a.sh)\nDISABLED_HEALTHCHECKS=(c.sh)\n", {"c.sh"}),
        ('DISABLED_HEALTHCHECKS=("a.sh\n', {"a.sh"}),
        ("DISABLED_HEALTHCHECKS=($(touch /tmp/never))\n", None),
        ("\0\xff garbage", set()),
        ("", set()),
    ],
)
def test_disabled_list(tmp_path: Path, conf: str, names: set[str] | None) -> None:
    put(tmp_path, "etc/greenboot/greenboot.conf", conf, 0o644)
    found = disabled_healthchecks(tmp_path)
    if names is not None:
        assert found == names
    assert not Path("/tmp/never").exists()


def test_disabled_is_left_out_and_told(tmp_path: Path) -> None:
    put(tmp_path, "etc/greenboot/greenboot.conf", 'DISABLED_HEALTHCHECKS=("bad.sh")\n', 0o644)
    put(tmp_path, "usr/lib/greenboot/check/required.d/bad.sh", "exit 1\n")
    found = greenboot(tmp_path)
    assert found.checks == ()
    assert found.notes == ("bad.sh is disabled in greenboot.conf",)


def test_missing_directories(tmp_path: Path) -> None:
    for find in (greenboot, green, red, own):
        assert find(tmp_path).checks == ()


def test_own_directory_override_and_mask(tmp_path: Path) -> None:
    put(tmp_path, "usr/lib/bascule/health.d/10-db", "exit 1\n")
    put(tmp_path, "etc/bascule/health.d/10-db", "exit 0\n")
    put(tmp_path, "usr/lib/bascule/health.d/20-web")
    (tmp_path / "etc/bascule/health.d/20-web").symlink_to(os.devnull)
    put(tmp_path, "etc/bascule/health.d/30-off", mode=0o644)
    found = own(tmp_path)
    assert [str(c.path) for c in found.checks] == [str(tmp_path / "etc/bascule/health.d/10-db")]
    assert found.checks[0].tempfail
    assert any("masked" in n for n in found.notes)
    assert any("30-off is not executable" in n for n in found.notes)


async def test_red_runs_everything_whatever_fails(tmp_path: Path) -> None:
    log = tmp_path / "log"
    put(tmp_path, "etc/greenboot/red.d/1.sh", f"echo one >> {log}; exit 1\n", 0o644)
    put(tmp_path, "usr/lib/greenboot/red.d/2.sh", f"echo two >> {log}\n")
    found = red(tmp_path)
    loop = asyncio.get_running_loop()
    host = Host(environment={"PATH": os.environ["PATH"]})
    results = await run(found.checks, host=host, clock=loop.time)
    assert sorted(log.read_text().split()) == ["one", "two"]
    assert {r.outcome for r in results} == {Outcome.PASS, Outcome.FAIL}
    assert not any(r.required for r in results)


async def test_greenboot_script_runs_under_bash(tmp_path: Path) -> None:
    put(
        tmp_path,
        "etc/greenboot/check/required.d/array.sh",
        "a=(1 2 3)\n[[ ${#a[@]} == 3 ]]\n",
        0o644,
    )
    loop = asyncio.get_running_loop()
    host = Host(environment={"PATH": os.environ["PATH"]})
    (result,) = await run(greenboot(tmp_path).checks, host=host, clock=loop.time)
    assert result.outcome is Outcome.PASS


# ── every shape of script ────────────────────────────────────────────────────────────────────

SHAPES = {
    "plain": ("exit 0\n", Outcome.PASS, ""),
    "says no": ("echo why; exit 3\n", Outcome.FAIL, "10-x.sh failed with exit status 3"),
    # 75 means "not yet" only in our own directories.
    "tempfail": ("exit 75\n", Outcome.FAIL, "failed with exit status 75"),
    "hangs": ("sleep 1000\n", Outcome.FAIL, "still running 10-x.sh after 0.5 s"),
    "will not end": ("trap '' TERM INT HUP; while :; do sleep 1; done\n", Outcome.FAIL, "still"),
    "hangs in silence": ("exec >&- 2>&-; sleep 1000\n", Outcome.FAIL, "still running"),
    "kills itself": ("kill -SEGV $$\n", Outcome.FAIL, "was ended by signal 11"),
    "is no program": ("\x00\x01\x02\n", Outcome.FAIL, "failed with exit status"),
    "is empty": ("", Outcome.PASS, ""),
    "asks a question": ("read -r answer || exit 0; exit 1\n", Outcome.PASS, ""),
    "wants a terminal": ("tty && exit 1; exit 0\n", Outcome.PASS, ""),
    "floods": (
        "head -c 3000000 /dev/zero | tr '\\0' x; echo END; exit 1\n",
        Outcome.FAIL,
        "status 1",
    ),
    "one endless line": ("exec tr '\\0' y </dev/zero\n", Outcome.FAIL, "still running"),
    "not UTF-8": ("printf '\\377\\376 caf\\351 \\000 end\\n'; exit 1\n", Outcome.FAIL, "status 1"),
    "leaves a child that holds the pipe": ("sleep 1000 &\nexit 0\n", Outcome.PASS, ""),
    "leaves a daemon that holds the pipe": (
        "setsid sh -c 'echo $$ >PID; exec sleep 1000' &\n"
        "while ! [ -s PID ]; do sleep 0.1; done; exit 0\n",
        Outcome.PASS,
        "",
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
async def test_every_shape_has_an_answer_that_can_be_kept(tmp_path: Path, shape: str) -> None:
    body, outcome, reason = SHAPES[shape]
    pid_file = tmp_path / "pid"
    put(
        tmp_path,
        "etc/greenboot/check/required.d/10-x.sh",
        body.replace("PID", str(pid_file)),
        0o644,
    )
    slow = outcome is Outcome.FAIL and "still" in reason
    pace = Pace(timeout=0.5 if slow else 60)
    host = Host(environment={"PATH": os.environ["PATH"]})
    try:
        (result,) = await run(
            greenboot(tmp_path, pace=pace).checks, host=host, clock=asyncio.get_running_loop().time
        )
    finally:
        if pid_file.exists():
            os.kill(int(pid_file.read_text()), signal.SIGKILL)
    assert result.outcome is outcome, result
    assert reason in result.reason
    assert len(result.output) <= OUTPUT_LIMIT + 100
    kept = json.dumps(result.as_dict(), ensure_ascii=False).encode()
    assert result.output.endswith(CheckResult.from_dict(json.loads(kept)).output)
    if shape == "not UTF-8":
        assert result.output == "\ufffd\ufffd caf\ufffd \0 end\n"
    if shape == "floods":
        assert result.output.endswith("xEND\n")


async def test_a_name_that_is_not_text_is_told_all_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "etc/greenboot/check/required.d"
    folder.mkdir(parents=True)
    for name in (b"10-\xff\n.sh", b"20-\xfe"):
        (folder / os.fsdecode(name)).write_text("exit 1\n")
    found = greenboot(tmp_path)
    host = Host(environment={"PATH": os.environ["PATH"]})
    results = await run(found.checks, host=host, clock=asyncio.get_running_loop().time)
    said = [r.name + r.reason for r in results] + list(found.notes)
    assert "".join(said).isprintable()
    assert "".join(said).encode()
    assert results[0].name == "greenboot:required.d/10-\ufffd\ufffd.sh"
    assert results[0].outcome is Outcome.FAIL
    assert len(found.notes) == 1
