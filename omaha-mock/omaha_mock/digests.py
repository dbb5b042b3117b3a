"""OpenPGP-signed digest lists beside a payload, in Flatcar's form: ``<payload>.DIGESTS.asc``.

The text holds one ``# NAME HASH`` heading per hash, each followed by lines ``HEX  FILE``, and is
clear-signed as a whole.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from omaha_mock.errors import MockError, UsageError

__all__ = ["KNOWN", "digest_text", "sign_digests"]

KNOWN = ("md5", "sha1", "sha256", "sha512")
_PIECE = 1 << 20
_TIMEOUT = 60


def digest_text(payload: Path, hashes: Sequence[str] = ("sha256", "sha512")) -> str:
    """The list's text before it is signed."""
    unknown = [name for name in hashes if name not in KNOWN]
    if unknown or not hashes:
        raise UsageError(f"Hashes are {', '.join(KNOWN)}; not {', '.join(unknown) or 'none'}.")
    digests = {name: hashlib.new(name) for name in hashes}
    try:
        with payload.open("rb") as file:
            while data := file.read(_PIECE):
                for digest in digests.values():
                    digest.update(data)
    except OSError as error:
        raise UsageError(f"{payload}: {error.strerror}.") from error
    return "".join(
        f"# {name.upper()} HASH\n{digest.hexdigest()}  {payload.name}\n"
        for name, digest in digests.items()
    )


def sign_digests(
    payload: Path,
    *,
    home: Path,
    keys: Sequence[str],
    hashes: Sequence[str] = ("sha256", "sha512"),
) -> Path:
    """Write ``<payload>.DIGESTS.asc``, clear-signed by every key in ``keys``.

    Args:
        home: GnuPG home that holds the secret keys (without a passphrase).
        keys: fingerprints or user ids.
    """
    if shutil.which("gpg") is None:
        raise UsageError("gpg is not installed; Debian has it in the package gnupg.")
    if not keys:
        raise UsageError("Say with --gpg-key whose signature the digest list gets.")
    out = payload.with_name(payload.name + ".DIGESTS.asc")
    command = ["gpg", "--homedir", str(home.absolute()), "--batch", "--no-tty", "--yes"]
    command += ["--pinentry-mode", "loopback", "--passphrase", "", "--digest-algo", "SHA512"]
    for key in keys:
        command += ["--local-user", key]
    command += ["--output", str(out.absolute()), "--clear-sign"]
    try:
        done = subprocess.run(
            command,
            input=digest_text(payload, hashes).encode(),
            capture_output=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise MockError("gpg did not finish in a minute.") from error
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise MockError(
            f"gpg could not sign the digest list: {' '.join(last) or 'no reason given'}"
        )
    return out
