#!/usr/bin/env python3
"""Serves one folder over TLS from a process of its own; prints the address. Ends with its input."""

from __future__ import annotations

import functools
import http.server
import shutil
import ssl
import sys
import threading
from pathlib import Path
from typing import Any


class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def copyfile(self, source: Any, outputfile: Any) -> None:
        shutil.copyfileobj(source, outputfile, 1 << 18)

    def log_message(self, *_: Any) -> None:
        pass


def main() -> int:
    folder, keys = sys.argv[1:3]
    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(Path(keys) / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=folder)
    )
    server.daemon_threads = True
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"https://127.0.0.1:{server.server_address[1]}/", flush=True)
    sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())
