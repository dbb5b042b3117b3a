"""Updates without an update server: a static repository, or one payload file.

Format and trust: decisions/0007-static-repository.md. The result is the same `Offer` that an Omaha
server makes, and from there on the same path: floor, quarantine, payload signature, read-back.
"""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from bascule.engine.local_file import file_url, measure, open_regular, url_file
from bascule.engine.omaha_client import http_error, server_error
from bascule.engine.thread import in_thread
from bascule.engine.transport import Patience, Tls, Transport
from bascule.engine.trouble import ExchangeFailed
from bascule.errors import BasculeError, IndexInvalid, IndexUntrusted, TransferError
from bascule.formats.addresses import payload_address
from bascule.formats.omaha_offer import Offer
from bascule.formats.repository import (
    MAX_INDEX,
    Choice,
    Index,
    Release,
    choose,
    parse_index,
)
from bascule.formats.version import older

if TYPE_CHECKING:
    from bascule.formats.signature import PublicKey

INDEX = "index.json"
SIGNATURE = "index.json.sig"
MAX_SIGNATURE = 4096
DEADLINE = 300.0


@dataclass(frozen=True, slots=True)
class Asked:
    """Who asks a repository, and on what terms.

    Attributes:
        running: the running release.
        group, board: as in an Omaha request.
        wanted: this version and no other, or "".
        deltas: False to take full payloads only.
        signed: the index must carry a signature of a trusted key. Without it whoever controls the
            medium can put a new number on an old release, or hide a new one.
        serial: the highest serial seen of this repository; an older index is refused.
        serials: the same by `Found.where`, for whoever asks several.
    """

    running: str
    group: str
    board: str
    wanted: str = ""
    deltas: bool = True
    signed: bool = True
    serial: int = 0
    serials: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Found:
    """What a repository says.

    Attributes:
        where: folder or address of the repository.
        offer: None means: nothing for this host.
        serial: of the index, to be remembered.
        signer: name of the key that signed the index, or "" where it is not signed.
        releases: all that the index lists, for whomever it is.
    """

    where: str
    offer: Offer | None
    serial: int
    signer: str
    releases: tuple[Release, ...]


async def ask_repository(
    where: str,
    asked: Asked,
    *,
    keys: Callable[[], Sequence[PublicKey]],
    now: float,
    tls: Tls | None = None,
    patience: Patience | None = None,
    environ: Mapping[str, str] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Found:
    """Read a repository's index and choose.

    Args:
        where: an http or https address, a ``file:`` address or a path of the folder that holds
            ``index.json``. A path may be a pattern (``/run/media/*/bascule``): then every folder
            that matches is asked, one that has no index is passed over, and the newest offer wins.
        keys: the trusted keys, read late; may raise NoKeys.
        now: unix seconds.

    Raises:
        IndexInvalid: there is no index, or it is not one, or it has expired.
        IndexUntrusted: its signature is missing or fits no key, or it is older than one seen before.
        ServerUnreachable, ServerHttpError, ServerRedirectRefused: as for an Omaha server.
        TransferError: a file cannot be read.
        NoKeys: there is no key to check a signature with.
    """
    if where.startswith(("http://", "https://")):
        base = where.removesuffix(INDEX)
        base = base if base.endswith("/") else base + "/"
        async with Transport(tls=tls, patience=patience, environ=environ, clock=clock) as transport:
            data = await _download(transport, base + INDEX, MAX_INDEX)
            if data is None:
                raise IndexInvalid(f"there is no {base}{INDEX}")
            signature = await _download(transport, base + SIGNATURE, MAX_SIGNATURE)
        return _found(base, data, signature, asked, keys, now, lambda c: _addresses(base, c))
    return await in_thread(lambda: _ask_folders(where, asked, keys, now))


def offer_file(path: Path, *, version: str = "") -> Offer:
    """One payload file as an offer. Blocks: the file is read whole. Raises TransferError.

    Args:
        version: what the operator says that it is; a payload of major 1 does not say it itself.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100
    size, digest = measure(path)
    return Offer(
        version=version,
        urls=(file_url(path),),
        name=path.name,
        size=size,
        sha256=digest,
        disable_backoff=True,
        attributes={"file": str(path)},
    )


async def _download(transport: Transport, address: str, limit: int) -> bytes | None:
    """A small file, or None where the server says that there is none."""
    try:
        async with transport.exchange(
            "GET", address, headers={"Accept-Encoding": "identity"}
        ) as answer:
            if answer.status in (404, 410):
                return None
            if answer.status != 200:
                raise http_error(answer)
            data, whole = await answer.body(limit, DEADLINE)
    except ExchangeFailed as e:
        raise server_error(e) from e
    if not whole:
        raise IndexInvalid(f"{address} is longer than {limit} bytes")
    return data


def _ask_folders(
    where: str, asked: Asked, keys: Callable[[], Sequence[PublicKey]], now: float
) -> Found:
    try:
        pattern = str(url_file(where)) if where.startswith("file:") else where
    except ValueError as e:
        raise IndexInvalid(str(e)) from None
    if not pattern.startswith("/"):
        raise IndexInvalid(f"{where!r} is neither an address nor an absolute path")
    if not glob.has_magic(pattern) or Path(pattern).is_dir():
        return _ask_folder(Path(pattern), asked, keys, now)
    best: Found | None = None
    fault: BasculeError | None = None
    for name in sorted(glob.glob(pattern)):  # noqa: PTH207
        folder = Path(name)
        if not (folder / INDEX).exists():
            continue
        try:
            found = _ask_folder(folder, asked, keys, now)
        except BasculeError as e:
            fault = fault or e
            continue
        if best is None or _better(found.offer, best.offer):
            best = found
    if best is not None and (best.offer is not None or fault is None):
        return best
    raise fault or IndexInvalid(f"no folder that matches {where} holds an {INDEX}")


def _better(offer: Offer | None, than: Offer | None) -> bool:
    return offer is not None and (than is None or older(than.version, offer.version))


def _ask_folder(
    folder: Path, asked: Asked, keys: Callable[[], Sequence[PublicKey]], now: float
) -> Found:
    folder = folder.parent if folder.name == INDEX else folder
    data = _small_file(folder / INDEX, MAX_INDEX)
    if data is None:
        raise IndexInvalid(f"there is no {folder / INDEX}")
    signature = _small_file(folder / SIGNATURE, MAX_SIGNATURE)
    return _found(
        str(folder), data, signature, asked, keys, now, lambda choice: _paths(folder, choice)
    )


def _small_file(path: Path, limit: int) -> bytes | None:
    if not path.exists():
        return None
    handle = open_regular(path)
    with os.fdopen(handle, "rb") as file:
        try:
            data = file.read(limit + 1)
        except OSError as e:
            raise TransferError(f"{path}: {e.strerror}") from None
    if len(data) > limit:
        raise IndexInvalid(f"{path} is longer than {limit} bytes")
    return data


def _found(
    where: str,
    data: bytes,
    signature: bytes | None,
    asked: Asked,
    keys: Callable[[], Sequence[PublicKey]],
    now: float,
    place: Callable[[Choice], tuple[str, ...]],
) -> Found:
    signer = _signer(where, data, signature, asked.signed, keys)
    index = parse_index(data)
    _check_age(where, index, asked, now)
    choice = choose(
        index,
        running=asked.running,
        group=asked.group,
        board=asked.board,
        wanted=asked.wanted,
        deltas=asked.deltas,
    )
    offer = _offer(where, choice, place(choice), signer) if choice is not None else None
    return Found(where, offer, index.serial, signer, index.releases)


def _signer(
    where: str,
    data: bytes,
    signature: bytes | None,
    required: bool,
    keys: Callable[[], Sequence[PublicKey]],
) -> str:
    """Name of the key that signed the index, before a byte of it is interpreted."""
    if signature is None:
        if required:
            raise IndexUntrusted(f"{where} has no {SIGNATURE}")
        return ""
    digest = sha256(data).digest()
    for key in keys():
        if key.fits(signature, digest):
            return key.name
    raise IndexUntrusted(f"{SIGNATURE} in {where} fits no trusted key")


def _check_age(where: str, index: Index, asked: Asked, now: float) -> None:
    if index.expires is not None and now >= index.expires:
        clock = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now))
        raise IndexInvalid(
            f"{where} expired, if this host's clock is right ({clock}); it needs a new index",
            expires=index.expires,
        )
    seen = max(asked.serial, asked.serials.get(where, 0))
    if index.serial < seen:
        raise IndexUntrusted(f"{where} has serial {index.serial}, but {seen} was seen before")


def _offer(where: str, choice: Choice, urls: tuple[str, ...], signer: str) -> Offer:
    release, payload = choice.release, choice.payload
    folder = payload.path.rpartition("/")[0]
    prefix = f"{folder}/" if folder else ""
    return Offer(
        version=release.version,
        urls=urls,
        name=payload.path,
        size=payload.size,
        sha256=payload.sha256,
        is_delta=bool(payload.delta_from),
        metadata_size=payload.metadata_size,
        metadata_signature=payload.metadata_signature,
        packages=tuple(replace(p, name=prefix + p.name) for p in release.packages),
        attributes={"repository": where, "signer": signer, "notes": release.notes},
    )


def _addresses(base: str, choice: Choice) -> tuple[str, ...]:
    try:
        return (payload_address(base, choice.payload.path),)
    except ValueError as e:
        raise IndexInvalid(str(e)) from None


def _paths(folder: Path, choice: Choice) -> tuple[str, ...]:
    """The payload's file; a link on the medium must not lead out of the repository."""
    path = folder / choice.payload.path
    real = Path(os.path.realpath(path))
    if not real.is_relative_to(os.path.realpath(folder)):
        raise IndexInvalid(f"{path} leads out of the repository")
    return (file_url(real),)
