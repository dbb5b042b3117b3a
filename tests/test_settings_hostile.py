"""Settings as somebody in a hurry, a broken disk or an enemy leaves them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bascule.errors import SettingsError
from bascule.settings import Settings, load

MAIN = "etc/bascule/bascule.toml"
DROPINS = "etc/bascule/bascule.toml.d"
FLATCAR = "etc/flatcar/update.conf"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / DROPINS).mkdir(parents=True)
    (tmp_path / FLATCAR).parent.mkdir()
    return tmp_path


def refused(root: Path, *named: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load(root)
    for word in named:
        assert word in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("body", "key"),
    [
        ("[boot]\ntries = " + "9" * 5000, "bascule.toml"),
        ("[boot]\ntries = 0x" + "f" * 5000, "boot.tries"),
        ("[boot]\ntries = 1.0", "boot.tries"),
        ("[download]\nrate_limit = " + "9" * 400, "download.rate_limit"),
        ("[download]\nrate_limit = '99999999999999999999T'", "download.rate_limit"),
        ("[download]\nrate_limit = -1", "download.rate_limit"),
        ("[check]\ninterval = nan", "check.interval"),
        ("[check]\ninterval = inf", "check.interval"),
        ("[check]\ninterval = '9999999999999w'", "check.interval"),
        ("[check]\ninterval = ''", "check.interval"),
        ("[server]\nurl = 2020-01-01", "server.url"),
        ('[server]\ngroup = "a\\u001b[31mred"', "server.group"),
        ("[slots]\na = { usr = 2020-01-01 }", "slots.a"),
        ("[slots]\na = [1]", "slots.a"),
        ("[slots]\na = " + "[" * 5000, "too deeply"),
        ("[server]\nurl = 'a'\nurl = 'b'", "bascule.toml"),
        ("[server]\nurl = 'a\0'", "bascule.toml"),
        ("[[server]]\nurl = 'a'", "server"),
        (".".join(["a"] * 2_000) + " = 1", "unknown section"),
        ("\ufeff[server]\nurl = 'a'", "bascule.toml"),
    ],
    ids=range(20),
)
def test_a_bad_value_names_file_and_key(root: Path, body: str, key: str) -> None:
    (root / MAIN).write_text(body + "\n")
    refused(root, str(root / MAIN), key)


def loop(path: Path) -> None:
    path.symlink_to(path)


def fifo(path: Path) -> None:
    os.mkfifo(path)


PLACES = [MAIN, f"{DROPINS}/10-x.toml", FLATCAR]


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (Path.mkdir, "Is a directory"),
        (loop, "Too many levels of symbolic links"),
        (lambda path: path.symlink_to("/nowhere/at/all"), "a link to nothing"),
        (lambda path: path.symlink_to("/dev/zero"), "larger than 1 MiB"),
        (lambda path: path.write_bytes(b"x = 1\n" * 400_000), "larger than 1 MiB"),
        (fifo, "a pipe"),
    ],
    ids=["folder", "loop", "dangling", "endless", "huge", "fifo"],
)
def test_what_is_no_file_is_named(
    root: Path, name: str, make: Callable[[Path], object], sentence: str
) -> None:
    """Never passed over: settings that somebody wrote would silently not be in force."""
    make(root / name)
    refused(root, str(root / name), sentence)


@pytest.mark.parametrize("make", [loop, Path.touch], ids=["loop", "file"])
def test_a_drop_in_folder_that_is_none_is_named(root: Path, make: Callable[[Path], object]) -> None:
    (root / DROPINS).rmdir()
    make(root / DROPINS)
    refused(root, str(root / DROPINS))


def test_a_link_to_dev_null_masks_a_drop_in(root: Path) -> None:
    lower = root / "usr/lib/bascule/bascule.toml.d"
    lower.mkdir(parents=True)
    (lower / "10-x.toml").write_text("[server]\ngroup = 'vendor'\n")
    assert load(root).server.group == "vendor"
    (root / DROPINS / "10-x.toml").symlink_to("/dev/null")
    assert load(root).server.group == "stable"


def test_hidden_files_and_other_suffixes_are_an_editors_own(root: Path) -> None:
    for name in (".10-x.toml", "10-x.toml~", "10-x.toml.bak", "README"):
        (root / DROPINS / name).write_text("not TOML at all")
    (root / DROPINS / ".#20-y.toml").symlink_to("root@host.4711")
    assert load(root) == Settings()


def test_drop_ins_go_by_name_whatever_directory_they_are_in(root: Path) -> None:
    for n, place in enumerate(("usr/lib", "run", "etc")):
        folder = root / place / "bascule/bascule.toml.d"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{90 - n}-x.toml").write_text(f"[server]\ngroup = '{place}'\n")
    loaded = load(root)
    assert loaded.server.group == "usr/lib"
    assert loaded.origins["server.group"] == str(root / "usr/lib/bascule/bascule.toml.d/90-x.toml")


def test_a_name_that_is_not_utf8_can_be_said(root: Path) -> None:
    path = os.fsencode(root / DROPINS) + b"/1\xff.toml"
    Path(os.fsdecode(path)).write_text("garbage")
    refused(root, "bascule.toml.d")


@pytest.fixture
def anybody() -> Iterator[Path]:
    """A folder that an ordinary user may enter, and this process as that user."""
    with tempfile.TemporaryDirectory(prefix="settings-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / DROPINS).mkdir(parents=True)
        (folder / MAIN).write_text("[server]\ngroup = 'beta'\n")
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            if root:
                os.seteuid(0)
            for path in (folder / "etc/bascule", folder / DROPINS, folder / MAIN):
                path.chmod(0o755)


@pytest.mark.parametrize("name", [MAIN, DROPINS, "etc/bascule"])
def test_what_may_not_be_read_is_named(anybody: Path, name: str) -> None:
    assert load(anybody).server.group == "beta"
    mine = os.geteuid()
    os.seteuid(os.getuid())
    (anybody / name).chmod(0)
    os.seteuid(mine)
    refused(anybody, str(anybody / name), "Permission denied")


@pytest.mark.parametrize(
    ("body", "group"),
    [
        (b"GROUP=stable\r\nSERVER=http://x/\r\n", "stable"),
        (b"GROUP='beta'\n", "beta"),
        (b"GROUP=beta\nGROUP=alpha\n", "alpha"),
        (b"# GROUP=beta\nexport GROUP=alpha\n", "stable"),
        (b"GROUP\n=\n==\n\n\xff\xfe=\xff\n", "stable"),
        (b"GROUP= beta \n", "beta"),
        (b"REBOOT_WINDOW_START=nonsense\nREBOOT_WINDOW_LENGTH=\nGROUP=beta", "beta"),
    ],
)
def test_oddities_of_flatcars_file(root: Path, body: bytes, group: str) -> None:
    (root / FLATCAR).write_bytes(body)
    assert load(root).server.group == group


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(PLACES))
def test_any_bytes_load_or_are_refused(body: bytes, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.parent.mkdir(parents=True)
        path.write_bytes(body)
        try:
            loaded = load(Path(folder))
        except SettingsError as error:
            assert str(path) in str(error)
        else:
            # What loads can be handed to an errand.
            assert Settings.from_dict(json.loads(json.dumps(loaded.as_dict()))) == loaded


KEYS = [(name.split(".")[0], name.split(".")[1]) for name, _, _ in Settings().items()]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(KEYS), VALUES)
def test_any_value_of_any_key_is_taken_or_refused_by_name(
    key: tuple[str, str], value: object
) -> None:
    from bascule.settings import merge

    try:
        merged = merge([("here.toml", {key[0]: {key[1]: value}})])
    except SettingsError as error:
        assert "here.toml" in str(error) or "trust.require" in str(error)
        assert key[1] in str(error)
    else:
        assert Settings.from_dict(json.loads(json.dumps(merged.as_dict()))) == merged
