"""``omaha-mock publish`` and ``omaha-mock serve``."""

from __future__ import annotations

import argparse
import asyncio
import base64
import signal
import ssl
import sys
from pathlib import Path
from typing import Any

from omaha_mock.errors import MockError, UsageError
from omaha_mock.reading import read_payload
from omaha_mock.releases import Directory, Release, describe
from omaha_mock.signing import load_signing_key
from omaha_mock.versions import is_version

__all__ = ["add_commands"]


def _publish(options: argparse.Namespace) -> int:
    if not is_version(options.version):
        raise UsageError(f"{options.version!r} is not a version such as 1.2.3.")
    if options.origin and not is_version(options.origin):
        raise UsageError(f"{options.origin!r} is not a version such as 1.2.3.")
    if not 0 <= options.rollout <= 100:
        raise UsageError("--rollout is a percentage, 0 to 100.")
    payload = read_payload(options.payload)
    if payload.delta and not options.origin:
        raise UsageError("This payload is a delta: say with --from which version it starts from.")
    signature = options.metadata_signature
    if options.metadata_key is not None:
        if signature:
            raise UsageError("Give --metadata-signature or --metadata-key, not both.")
        made = load_signing_key(options.metadata_key).sign(payload.metadata_digest())
        signature = base64.b64encode(made).decode()
    metadata_size = options.metadata_size
    if signature and not metadata_size:
        metadata_size = payload.metadata_size
    release = Release(
        version=options.version,
        file=_name(options),
        origin=options.origin,
        groups=tuple(dict.fromkeys(options.group or ["stable"])),
        board=options.board,
        rollout=options.rollout,
        forced=options.forced,
        metadata_size=metadata_size,
        metadata_signature=signature,
        disable_backoff=options.disable_backoff,
        max_failures=options.max_failures,
        **describe(options.payload),
    )
    Directory(options.directory).publish(options.payload, release)
    sys.stdout.write(
        f"{release.version} is published to {', '.join(release.groups)}: "
        f"payloads/{release.file}, {release.size} bytes, sha256 {release.sha256}\n"
    )
    return 0


def _name(options: argparse.Namespace) -> str:
    """The file name on the server; a signed digest list beside the payload fixes it."""
    own: str = options.payload.name
    if not options.payload.with_name(own + ".DIGESTS.asc").exists():
        return options.name or f"{options.version}-{own}"
    if options.name not in ("", own):
        raise UsageError(f"The signed digest list names {own}: publish it under that name.")
    return own


def _tls(options: argparse.Namespace) -> ssl.SSLContext | None:
    if options.tls_cert is None:
        if options.tls_key is not None:
            raise UsageError("--tls-key needs --tls-cert.")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(options.tls_cert, options.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"Cannot use {options.tls_cert} for TLS: {error}.") from error
    return context


def _complain(text: str) -> None:
    sys.stderr.write(f"omaha-mock: {text}\n")
    sys.stderr.flush()


async def _run(options: argparse.Namespace, tls: ssl.SSLContext | None) -> None:
    from omaha_mock.server import Server

    directory = Directory(options.directory)
    directory.state()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    log = None if options.no_log else options.directory / "requests.jsonl"
    server = Server(
        directory,
        host=options.host,
        port=options.port,
        tls=tls,
        log=log,
        problem=_complain,
        keep=False,
    )
    async with server:
        sys.stdout.write(f"listening on {server.url}\n")
        sys.stdout.flush()
        await stop.wait()


def _serve(options: argparse.Namespace) -> int:
    if not options.directory.is_dir():
        raise UsageError(
            f"{options.directory} is not a directory; publish something into it first."
        )
    if not 0 <= options.port <= 65535:
        raise UsageError("--port is 0 to 65535; 0 takes a free one.")
    try:
        asyncio.run(_run(options, _tls(options)))
    except BrokenPipeError as error:
        raise MockError("Nobody reads the address on standard output.") from error
    return 0


def add_commands(commands: Any) -> None:
    """Add ``publish`` and ``serve`` to the subcommands of ``omaha-mock``."""
    publish = commands.add_parser("publish", help="put a payload on offer")
    publish.set_defaults(run=_publish)
    publish.add_argument(
        "directory", type=Path, metavar="DIR", help="what is served; made if missing"
    )
    publish.add_argument(
        "--payload", type=Path, required=True, metavar="FILE", help="copied into DIR"
    )
    publish.add_argument("--version", required=True, metavar="V", help="what hosts have afterwards")
    publish.add_argument(
        "--from",
        dest="origin",
        default="",
        metavar="V",
        help="the payload is a delta that starts from this version",
    )
    publish.add_argument("--group", action="append", metavar="NAME", help="default: stable")
    publish.add_argument("--board", default="", help="only for hosts with this board")
    publish.add_argument(
        "--rollout",
        type=int,
        default=100,
        metavar="PERCENT",
        help="how many machines are offered it (default: 100)",
    )
    publish.add_argument(
        "--forced", action="store_true", help="also to hosts that have a newer one"
    )
    publish.add_argument("--name", default="", help="the payload's file name on the server")
    publish.add_argument(
        "--metadata-signature",
        default="",
        metavar="BASE64",
        help="as `pack --json` prints it; lets clients verify before they write",
    )
    publish.add_argument("--metadata-key", type=Path, metavar="PEM", help="make it with this key")
    publish.add_argument(
        "--metadata-size",
        type=int,
        default=0,
        metavar="BYTES",
        help="with --metadata-signature, as `pack --json` prints it",
    )
    publish.add_argument(
        "--disable-backoff",
        action="store_true",
        help="tell clients not to wait after a failed payload",
    )
    publish.add_argument(
        "--max-failures",
        type=int,
        default=0,
        metavar="N",
        help="failures after which clients change the URL",
    )

    serve = commands.add_parser("serve", help="serve a directory until SIGTERM")
    serve.set_defaults(run=_serve)
    serve.add_argument("directory", type=Path, metavar="DIR", help="as `publish` made it")
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)"
    )
    serve.add_argument("--port", type=int, default=0, help="default: a free one, printed")
    serve.add_argument("--tls-cert", type=Path, metavar="PEM", help="serve https with it")
    serve.add_argument("--tls-key", type=Path, metavar="PEM", help="the certificate's key")
    serve.add_argument("--no-log", action="store_true", help="do not write DIR/requests.jsonl")
