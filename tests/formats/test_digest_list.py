"""Digest lists as Gentoo's and Flatcar's release tools write them."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bascule.errors import OpenPgpError
from bascule.formats.digest_list import parse_digest_list

NAME = "flatcar_production_update.gz"
DATA = b"payload"
SHA256, SHA512 = hashlib.sha256(DATA), hashlib.sha512(DATA)
FLATCAR = (
    f"# MD5 HASH\n{hashlib.md5(DATA).hexdigest()}  {NAME}\n"
    f"# SHA1 HASH\n{hashlib.sha1(DATA).hexdigest()}  {NAME}\n"
    f"# SHA512 HASH\n{SHA512.hexdigest()}  {NAME}\n"
)


def test_flatcars_list() -> None:
    assert parse_digest_list(FLATCAR.encode()).of(NAME) == {"sha512": SHA512.digest()}


def test_both_kinds_and_several_files() -> None:
    text = FLATCAR + f"# SHA256 HASH\n{SHA256.hexdigest().upper()} *{NAME}\n{'0' * 64}  other\n\n"
    found = parse_digest_list(text.replace("\n", "\r\n").encode())
    assert found.of(NAME) == {"sha256": SHA256.digest(), "sha512": SHA512.digest()}
    assert found.of("other") == {"sha256": bytes(32)}


def test_what_coreutils_write(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(DATA)
    text = b""
    for kind in ("sha256", "sha512"):
        out = subprocess.run([f"{kind}sum", NAME], cwd=tmp_path, stdout=subprocess.PIPE, check=True)
        text += f"# {kind.upper()} HASH\n".encode() + out.stdout
    found = parse_digest_list(text).of(NAME)
    assert found == {"sha256": SHA256.digest(), "sha512": SHA512.digest()}


def test_second_rate_hashes_prove_nothing() -> None:
    text = FLATCAR.split("# SHA512")[0]
    with pytest.raises(OpenPgpError, match=f"no SHA-256 or SHA-512 digest of {NAME}"):
        parse_digest_list(text.encode()).of(NAME)


@pytest.mark.parametrize("name", ["other", "", NAME[:-1], f" {NAME}", f"./{NAME}"])
def test_only_the_whole_name_counts(name: str) -> None:
    with pytest.raises(OpenPgpError):
        parse_digest_list(FLATCAR.encode()).of(name)


@pytest.mark.parametrize(
    "text",
    [
        f"{SHA256.hexdigest()}  {NAME}\n",  # no section: which hash is it?
        f"# SHA256 HASH\n{SHA256.hexdigest()[:-1]}  {NAME}\n",
        f"# SHA256 HASH\n{SHA512.hexdigest()}  {NAME}\n",
        f"# SHA256 HASH\n{SHA256.hexdigest()} {NAME}\n",
        f"# SHA256 HASH\n{SHA256.hexdigest()}  ../{NAME}\n",
        f"# SHA256 HASH\n\\{SHA256.hexdigest()}  a\\nb\n",
        f"# SHA256 HASH\n{'x' * 64}  {NAME}\n",
        f"# SHA256 HASH\n{SHA256.hexdigest()}\n",
        "# SHA256 HASH\nHello\n",
        f"# SHA256 HASH\n{SHA256.hexdigest()}  {NAME}\n{'0' * 64}  {NAME}\n",
        "<html>\n",
    ],
)
def test_what_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(OpenPgpError):
        parse_digest_list(text.encode())


def test_the_same_digest_twice_is_no_contradiction() -> None:
    assert parse_digest_list((FLATCAR * 2).encode()).of(NAME) == {"sha512": SHA512.digest()}


def test_size_and_encoding() -> None:
    for text in (b"\xff\xfe", b"# SHA256 HASH\n" + b"\n" * (1 << 20)):
        with pytest.raises(OpenPgpError):
            parse_digest_list(text)


@settings(max_examples=100)
@given(st.text(alphabet="# SHA256HASH0f\n\r\t *ab\\/\x00é", max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = parse_digest_list(text.encode())
    except OpenPgpError:
        return
    for digests in found.digests.values():
        assert set(digests) <= {"sha256", "sha512"}
