"""Digest lists: every row of the table in reference python.md §4, with real gpg."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bascule.engine.openpgp import SignedDigests, check_list, judge
from bascule.errors import OpenPgpError

pytestmark = pytest.mark.skipif(shutil.which("gpg") is None, reason="gpg is not installed")

NAME = "update.gz"
PAYLOAD = b"CrAU and so on"
LIST = (
    f"# SHA512 HASH\n{hashlib.sha512(PAYLOAD).hexdigest()}  {NAME}\n"
    f"# SHA256 HASH\n{hashlib.sha256(PAYLOAD).hexdigest()}  {NAME}\n"
)


class Signer:
    """A GnuPG home with secret keys: what a publisher has."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir(mode=0o700)

    def gpg(self, *arguments: str, data: bytes = b"") -> bytes:
        command = ["gpg", "--homedir", str(self.home), "--batch", "--no-tty", "--yes"]
        command += ["--pinentry-mode", "loopback", "--passphrase", "", *arguments]
        done = subprocess.run(command, input=data, capture_output=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout

    def make(
        self, name: str, *, algorithm: str = "ed25519", expires: str = "0", at: str = ""
    ) -> str:
        faked = ["--faked-system-time", at] if at else []
        self.gpg(
            *faked,
            "--quick-generate-key",
            f"{name} <{name}@example.org>",
            algorithm,
            "sign",
            expires,
        )
        listing = self.gpg("--with-colons", "--list-keys", f"{name}@example.org").decode()
        return next(line.split(":")[9] for line in listing.splitlines() if line.startswith("fpr"))

    def sign(self, *keys: str, text: str = LIST, digest: str = "SHA512", at: str = "") -> bytes:
        arguments = ["--faked-system-time", at] if at else []
        arguments += ["--digest-algo", digest]
        if digest == "SHA1":
            arguments += ["--allow-weak-digest-algos"]
        for key in keys:
            arguments += ["--local-user", key]
        return self.gpg(*arguments, "--clear-sign", data=text.encode())

    def close(self) -> None:
        subprocess.run(
            ["gpgconf", "--homedir", str(self.home), "--kill", "all"],
            capture_output=True,
            check=False,
            timeout=60,
        )


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Signer]:
    # gpg-agent's socket does not fit under a long path.
    made = Signer(tmp_path_factory.mktemp("g") / "h")
    yield made
    made.close()


@pytest.fixture(scope="module")
def keys(signer: Signer) -> dict[str, str]:
    long_ago = "20200101T000000"
    return {
        "good": signer.make("good"),
        "rsa": signer.make("rsa", algorithm="rsa3072"),
        "unknown": signer.make("unknown"),
        "expired": signer.make("expired", expires="2020-02-01", at=long_ago),
        "revoked": signer.make("revoked"),
        "stranger": signer.make("stranger"),
    }


@pytest.fixture(scope="module")
def lists(signer: Signer, keys: dict[str, str]) -> dict[str, bytes]:
    made = {
        "good": signer.sign(keys["good"]),
        "rsa": signer.sign(keys["rsa"], digest="SHA256"),
        "two": signer.sign(keys["good"], keys["rsa"]),
        "unknown": signer.sign(keys["unknown"]),
        "mixed": signer.sign(keys["good"], keys["unknown"]),
        "expired": signer.sign(keys["expired"], at="20200115T000000"),
        "revoked": signer.sign(keys["revoked"]),
        "sha1": signer.sign(keys["rsa"], digest="SHA1"),
        "stranger": signer.sign(keys["stranger"]),
    }
    certificate = signer.home / "openpgp-revocs.d" / f"{keys['revoked']}.rev"
    signer.gpg("--import", data=certificate.read_bytes().replace(b":-----BEGIN", b"-----BEGIN"))
    return made


@pytest.fixture(scope="module")
def keyring(signer: Signer, keys: dict[str, str], lists: dict[str, bytes]) -> Path:
    pinned = [keys[name] for name in ("good", "rsa", "expired", "revoked")]
    path = signer.home.parent / "ring.gpg"
    path.write_bytes(signer.gpg("--export", *pinned))
    return path


@pytest.mark.parametrize("which", ["good", "rsa", "two"])
def test_a_list_signed_by_pinned_keys_is_taken(
    which: str, lists: dict[str, bytes], keyring: Path, keys: dict[str, str]
) -> None:
    found = check_list(lists[which], name=NAME, keyring=keyring)
    assert found.digests["sha256"] == hashlib.sha256(PAYLOAD).digest()
    assert found.digests["sha512"] == hashlib.sha512(PAYLOAD).digest()
    wanted = {keys["good"], keys["rsa"]} if which == "two" else {keys[which]}
    assert found.fingerprints == wanted


@pytest.mark.parametrize("which", ["unknown", "mixed", "expired", "revoked", "sha1", "stranger"])
def test_any_other_signature_is_refused(which: str, lists: dict[str, bytes], keyring: Path) -> None:
    with pytest.raises(OpenPgpError):
        check_list(lists[which], name=NAME, keyring=keyring)


def test_every_changed_letter_is_refused(lists: dict[str, bytes], keyring: Path) -> None:
    digest = hashlib.sha256(PAYLOAD).hexdigest().encode()
    tampered = lists["good"].replace(digest, hashlib.sha256(b"other").hexdigest().encode())
    assert tampered != lists["good"]
    with pytest.raises(OpenPgpError, match="BADSIG"):
        check_list(tampered, name=NAME, keyring=keyring)


def test_a_signature_moved_to_another_list_is_refused(
    lists: dict[str, bytes], keyring: Path
) -> None:
    other = lists["unknown"].partition(b"-----BEGIN PGP SIGNATURE-----")
    good = lists["good"].partition(b"-----BEGIN PGP SIGNATURE-----")
    text = other[0].replace(NAME.encode(), b"other.gz")
    with pytest.raises(OpenPgpError):
        check_list(text + good[1] + good[2], name="other.gz", keyring=keyring)


def test_text_around_the_signed_message_is_refused(lists: dict[str, bytes], keyring: Path) -> None:
    extra = f"# SHA256 HASH\n{'0' * 64}  evil.gz\n".encode()
    for data in (extra + lists["good"], lists["good"] + extra, lists["good"] + lists["good"]):
        with pytest.raises(OpenPgpError, match="one clear-signed message"):
            check_list(data, name="evil.gz", keyring=keyring)


def test_an_inline_or_detached_or_empty_message_is_refused(
    signer: Signer, keys: dict[str, str], keyring: Path
) -> None:
    inline = signer.gpg("--local-user", keys["good"], "--armor", "--sign", data=LIST.encode())
    detached = signer.gpg(
        "--local-user", keys["good"], "--armor", "--detach-sign", data=LIST.encode()
    )
    for data in (inline, detached, b"", LIST.encode(), b"\0" * 100):
        with pytest.raises(OpenPgpError):
            check_list(data, name=NAME, keyring=keyring)


def test_a_payload_that_the_list_does_not_name_is_refused(
    lists: dict[str, bytes], keyring: Path
) -> None:
    with pytest.raises(OpenPgpError, match="no SHA-256"):
        check_list(lists["good"], name="other.gz", keyring=keyring)


def test_armoured_keyrings_and_keyboxes_work(
    signer: Signer, keys: dict[str, str], lists: dict[str, bytes], tmp_path: Path
) -> None:
    armoured = tmp_path / "ring.asc"
    armoured.write_bytes(signer.gpg("--armor", "--export", keys["good"]))
    assert check_list(lists["good"], name=NAME, keyring=armoured).name == NAME
    box = signer.home / "pubring.kbx"
    if box.exists():
        copy = tmp_path / "ring.kbx"
        shutil.copy(box, copy)
        assert check_list(lists["good"], name=NAME, keyring=copy).name == NAME


def test_a_missing_empty_or_foreign_keyring_is_refused(
    lists: dict[str, bytes], tmp_path: Path
) -> None:
    for data in (None, b"", b"not a keyring"):
        path = tmp_path / "ring.gpg"
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(OpenPgpError):
            check_list(lists["good"], name=NAME, keyring=path)


def test_a_missing_gpg_is_refused(lists: dict[str, bytes], keyring: Path) -> None:
    with pytest.raises(OpenPgpError, match="cannot be run"):
        check_list(lists["good"], name=NAME, keyring=keyring, gpg="/nonexistent/gpg")


def test_the_home_is_gone_afterwards_and_the_keyring_untouched(
    lists: dict[str, bytes], keyring: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = (keyring.read_bytes(), sorted(p.name for p in keyring.parent.iterdir()))
    check_list(lists["good"], name=NAME, keyring=keyring)
    assert list(tmp_path.iterdir()) == []
    assert before == (keyring.read_bytes(), sorted(p.name for p in keyring.parent.iterdir()))


def test_the_witness_cannot_be_made_by_hand() -> None:
    with pytest.raises(TypeError):
        SignedDigests(NAME, {}, frozenset())


VALID = ["VALIDSIG", "AA", "2026-01-01", "1", "0", "4", "0", "22", "10", "01", "AA"]


@pytest.mark.parametrize(
    ("status", "code", "valid"),
    [
        ([["GOODSIG"], VALID, ["PLAINTEXT"]], 2, True),
        ([["GOODSIG"], VALID, ["PLAINTEXT"]], 0, False),
        ([["GOODSIG"], VALID, ["PLAINTEXT"], ["EXPKEYSIG"]], 0, True),
        ([["REVKEYSIG"], VALID, ["PLAINTEXT"]], 0, True),
        ([VALID, ["PLAINTEXT"]], 0, True),
        ([["GOODSIG"], ["PLAINTEXT"]], 0, True),
        ([["GOODSIG"], [*VALID[:8], "2", *VALID[9:]], ["PLAINTEXT"]], 0, True),
        ([["GOODSIG"], [*VALID[:10], "BB"], ["PLAINTEXT"]], 0, True),
        ([["GOODSIG"], VALID[:9], ["PLAINTEXT"]], 0, True),
        ([["GOODSIG"], VALID, ["PLAINTEXT"], ["PLAINTEXT"]], 0, True),
        ([["GOODSIG"], VALID, ["GOODSIG"], ["PLAINTEXT"]], 0, True),
        ([], 0, True),
    ],
)
def test_no_single_sign_of_success_is_enough(
    status: list[list[str]], code: int, valid: bool
) -> None:
    good = [["GOODSIG"], VALID, ["PLAINTEXT"]]
    assert judge(good, 0, valid=True, pinned=frozenset({"AA"})) == {"AA"}
    with pytest.raises(OpenPgpError):
        judge(status, code, valid=valid, pinned=frozenset({"AA"}))
