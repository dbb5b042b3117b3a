"""Kairos's upgrade block, as it stands in cloud-config files."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bascule.errors import SettingsError
from bascule.updater.kairos import MAX_SIZE, KairosUpgrade, read_blocks

SEED = b"""#cloud-config
users: [{name: kairos}]
kairos:
  upgrade: {auto: true, schedule: "0 2 * * *", image: "quay.io/kairos/opensuse:leap-15.6",
            check_disk_space: true, reboot: true}
"""


def read(*raw: bytes) -> KairosUpgrade | None:
    blocks = list(read_blocks((f"9{i}_custom.yaml", r) for i, r in enumerate(raw)))
    return blocks[-1].merged if blocks else None


def test_the_block_is_read_as_it_stands() -> None:
    block = read(SEED)
    assert block == KairosUpgrade(
        auto=True,
        schedule="0 2 * * *",
        image="quay.io/kairos/opensuse:leap-15.6",
        check_disk_space=True,
        reboot=True,
    )
    assert block.layer() == {
        "policy": {"mode": "apply", "schedule": ["0 2 * * *"]},
        "reboot": {"strategy": "reboot"},
    }


@pytest.mark.parametrize(
    ("auto", "reboot", "mode"),
    [
        ("true", "true", "apply"),
        ("true", "false", "stage"),
        ("false", "true", "check"),
        ("null", "true", "check"),
    ],
)
def test_auto_and_reboot_are_a_mode(auto: str, reboot: str, mode: str) -> None:
    block = read(f"kairos: {{upgrade: {{auto: {auto}, reboot: {reboot}}}}}".encode())
    assert block is not None and block.mode == mode
    assert "schedule" not in block.layer()["policy"]


@pytest.mark.parametrize(
    ("image", "source"),
    [
        ("oci:quay.io/a/b:1", ("oci", "quay.io/a/b:1")),
        ("quay.io/a/b:1", ("oci", "quay.io/a/b:1")),
        ("localhost:5000/a", ("oci", "localhost:5000/a")),
        ("docker:a/b", ("docker", "a/b")),
        ("file:/mnt/x.img", ("file", "/mnt/x.img")),
        ("dir:/mnt", ("dir", "/mnt")),
        ("https://host/x", ("https", "https://host/x")),
        ("", ("", "")),
    ],
)
def test_the_images_prefix(image: str, source: tuple[str, str]) -> None:
    block = read(f"kairos: {{upgrade: {{image: {image!r}}}}}".encode())
    assert block is not None and block.source == source


def test_later_files_win_key_by_key() -> None:
    block = read(SEED, b"#cloud-config\nfoo: 1\n", b"kairos:\n  upgrade:\n    reboot: false\n")
    assert block is not None
    assert (block.auto, block.reboot, block.schedule) == (True, False, "0 2 * * *")


def test_files_without_the_block_count_for_nothing() -> None:
    assert read() is None
    assert read(b"", b"a: 1", b"- kairos", b"kairos: 5", b"kairos: {p2p: {}}") is None


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"kairos: [", "not YAML"),
        (b"kairos:\n  a: 1\n b: 2", "line 3"),
        (b"kairos: !!python/object/apply:os.system ['id']", "not YAML"),
        (b"kairos: \x00", "not YAML"),
        (b"kairos: " + b"[" * 5000, "not YAML"),
        (b"kairos: {upgrade: true}", "not a table"),
        (b"kairos: {upgrade: {auto: 'true'}}", "auto"),
        (b"kairos: {upgrade: {reboot: 1}}", "reboot"),
        (b"kairos: {upgrade: {image: [a]}}", "image"),
        (b"kairos: {upgrade: {schedule: '0 25 * * *'}}", "schedule.*hour"),
        (b"#kairos" + b" " * MAX_SIZE, "larger"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(raw: bytes, why: str) -> None:
    with pytest.raises(SettingsError, match=f"(?s)90_custom.yaml.*{why}"):
        read(raw)


def test_a_bomb_of_aliases_is_harmless() -> None:
    lines = [b"a0: &a0 [x,x,x,x,x,x,x,x,x]"]
    lines += [b"a%d: &a%d [%s]" % (i, i, b",".join([b"*a%d" % (i - 1)] * 9)) for i in range(1, 30)]
    block = read(b"\n".join([*lines, b"kairos: {upgrade: {auto: true}}"]))
    assert block is not None and block.auto is True


@settings(max_examples=100)
@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    try:
        read(b"kairos: " + raw)
    except SettingsError:
        return
