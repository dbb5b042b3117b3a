"""OpenPGP-signed digest lists (``<payload>.DIGESTS.asc``), checked against a pinned keyring.

GnuPG runs through python-gnupg in a home of its own (mode 0700, gone afterwards) that holds the
pinned keys and nothing else: no trust database, no agent, no lookups. Its exit code and the word
"valid" are not enough: expired and revoked keys leave both in place (reference python.md §4). The
status lines decide (GnuPG ``doc/DETAILS``).
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import InitVar, dataclass
from pathlib import Path
from typing import Any

from bascule.errors import OpenPgpError
from bascule.formats.digest_list import parse_digest_list

_LIST_LIMIT = 1 << 20
_KEYRING_LIMIT = 4 << 20
_KEYBOX = b"KBXf"

_BAD = frozenset(
    {
        "BADSIG",
        "ERRSIG",
        "EXPSIG",
        "EXPKEYSIG",
        "REVKEYSIG",
        "NODATA",
        "UNEXPECTED",
        "FAILURE",
        "BADARMOR",
        "DECRYPTION_FAILED",
    }
)
_SHA2 = frozenset({"8", "9", "10"})
"""SHA-256, SHA-384, SHA-512 (RFC 9580 §9.5)."""

_FRAME = re.compile(
    rb"\s*-----BEGIN PGP SIGNED MESSAGE-----\r?\n.*?"
    rb"-----BEGIN PGP SIGNATURE-----\r?\n.*?-----END PGP SIGNATURE-----\s*",
    re.DOTALL,
)
_MAKER = object()


@dataclass(frozen=True, slots=True)
class SignedDigests:
    """Witness: a pinned key signed these digests of one payload. Only `check_list` makes one.

    Attributes:
        name: the payload's file name.
        digests: ``sha256`` (32 bytes), ``sha512`` (64 bytes), or both, of the whole file.
        fingerprints: primary keys that signed, in hexadecimal.
    """

    name: str
    digests: Mapping[str, bytes]
    fingerprints: frozenset[str]
    maker: InitVar[object] = None

    def __post_init__(self, maker: object) -> None:
        if maker is not _MAKER:
            raise TypeError("only openpgp.check_list() makes SignedDigests")


def check_list(signed: bytes, *, name: str, keyring: Path, gpg: str = "gpg") -> SignedDigests:
    """Check a clear-signed digest list and take the digests of one file from it. Blocking.

    Args:
        signed: the ``.DIGESTS.asc`` file.
        name: the payload's file name, as the list gives it.
        keyring: pinned public keys: an export (binary or armoured) or a keybox.
        gpg: the program.

    Raises:
        OpenPgpError: anything but at least one good signature, all of them by pinned keys that are
            neither expired nor revoked, over SHA-2; or the list does not name the file.
    """
    if len(signed) > _LIST_LIMIT:
        raise OpenPgpError(f"a digest list of {len(signed)} bytes")
    # Text outside the frame is not signed, and a second message may be signed by anybody.
    if _FRAME.fullmatch(signed) is None or signed.count(b"-----BEGIN PGP ") != 2:
        raise OpenPgpError("the digest list is not one clear-signed message")
    with tempfile.TemporaryDirectory(prefix="bascule-gnupg-") as folder:
        home = Path(folder)
        home.chmod(0o700)
        text, fingerprints = _verify(signed, home, keyring, gpg)
    digests = parse_digest_list(text).of(name)
    return SignedDigests(name, dict(digests), fingerprints, maker=_MAKER)


def _verify(signed: bytes, home: Path, keyring: Path, gpg: str) -> tuple[bytes, frozenset[str]]:
    pinned = _read_keyring(keyring)
    if pinned[8:12] == _KEYBOX:
        (home / "pubring.kbx").write_bytes(pinned)
    program = _open(home, gpg)
    if pinned[8:12] != _KEYBOX:
        program.import_keys(pinned)
    known = frozenset(str(key["fingerprint"]).upper() for key in program.list_keys())
    if not known:
        raise OpenPgpError(f"there is no OpenPGP key in {keyring}")
    # --decrypt hands out what is signed, and only that; --verify would leave it to us to find.
    result = program.decrypt(signed)
    return bytes(result.data or b""), judge(
        _status(result), result.returncode, bool(result.valid), known
    )


def _open(home: Path, gpg: str) -> Any:
    import gnupg

    options = ["--trust-model", "always", "--no-autostart", "--no-options"]
    options += ["--no-auto-key-retrieve", "--no-auto-key-locate"]
    for weak in ("MD5", "SHA1", "RIPEMD160"):
        options += ["--weak-digest", weak]
    environment = {"LC_ALL": "C", "PATH": os.environ.get("PATH", os.defpath)}
    try:
        return gnupg.GPG(gpgbinary=gpg, gnupghome=str(home), options=options, env=environment)
    except (OSError, ValueError) as error:
        raise OpenPgpError(f"gpg cannot be run: {error}") from error


def _read_keyring(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_KEYRING_LIMIT + 1)
    except OSError as error:
        raise OpenPgpError(f"the keyring {path}: {error.strerror}", path=str(path)) from error
    if not data or len(data) > _KEYRING_LIMIT:
        raise OpenPgpError(f"the keyring {path} has {len(data)} bytes", path=str(path))
    return data


def _status(result: Any) -> list[list[str]]:
    """gpg's status lines as words. python-gnupg keeps them among what gpg said."""
    prefix = "[GNUPG:] "
    lines = str(result.stderr or "").splitlines()
    return [line[len(prefix) :].split() for line in lines if line.startswith(prefix)]


def judge(
    status: list[list[str]], returncode: int | None, valid: bool, pinned: frozenset[str]
) -> frozenset[str]:
    """Fingerprints of the primary keys that signed, if every rule holds.

    Args:
        status: status lines as words, the keyword first.
        returncode: gpg's.
        valid: what python-gnupg makes of it.
        pinned: fingerprints of the trusted primary keys.

    Raises:
        OpenPgpError: one does not.
    """
    found = [line[0] for line in status if line]
    bad = sorted(set(found) & _BAD)
    if bad:
        raise OpenPgpError(f"gpg reports {', '.join(bad)}")
    good = found.count("GOODSIG")
    valids = [line for line in status if line and line[0] == "VALIDSIG"]
    if returncode != 0 or not valid or not good or len(valids) != good:
        raise OpenPgpError(f"gpg reports {good} good signatures and exit code {returncode}")
    if found.count("PLAINTEXT") != 1:
        raise OpenPgpError("gpg reports more than one text")
    fingerprints = set()
    for line in valids:
        # VALIDSIG fpr date timestamp expire version reserved pubkey-algo hash-algo class primary
        if len(line) < 11:
            raise OpenPgpError("gpg's report cannot be read")
        if line[8] not in _SHA2:
            raise OpenPgpError(f"a signature over hash algorithm {line[8]}, not SHA-2")
        if line[10].upper() not in pinned:
            raise OpenPgpError(f"signed by {line[10]}, which is not pinned")
        fingerprints.add(line[10].upper())
    return frozenset(fingerprints)
