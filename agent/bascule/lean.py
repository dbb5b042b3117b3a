"""What the idle daemon does not load. Call `start` before anything else is imported.

It waits for weeks and does its work in errands, so what only they need must not lie in its memory:

* ``rich`` and ``better_exceptions``: structlog imports them wherever it finds them, to print
  tracebacks in colour (5 MB, 40 ms). Not found is what it copes with.
* ``ssl``: asyncio imports it for connections that the daemon rarely makes (4.4 MB, 8 ms, most of it
  libssl and libcrypto). It is hidden while asyncio is imported, and asyncio gets it as soon as
  anybody imports it: a reboot lock behind https finds everything as it would be otherwise.
* OpenSSL's hashes, which would bring libcrypto back: CPython's own do for a line of history.
* the methods of dataclasses (60 ms, half of what our imports take): `dataclass` writes and compiles
  six for each class, most of which an idle daemon never calls. Each is compiled when it first is.

`tests/test_lean.py` compares what is loaded, and makes a TLS connection after a lean start.
"""

from __future__ import annotations

import dataclasses
import gc
import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_UNSEEN: Any = None
"""What makes the import system say "not found"."""

_DECORATIONS = ("rich", "better_exceptions")


def plain_tracebacks() -> None:
    """Hide what structlog would decorate tracebacks with. Fits every process that logs."""
    for name in _DECORATIONS:
        sys.modules.setdefault(name, _UNSEEN)


def _compile_later() -> None:
    """Let dataclasses of Python 3.11 and 3.12 compile a method at its first call. Later Pythons
    have no such function, and compile all methods of a class in one go."""
    plain: Any = getattr(dataclasses, "_create_fn", None)
    if plain is None or getattr(plain, "later", False):
        return

    def create(name: str, *arguments: Any, **options: Any) -> Any:
        made: Any = None

        def method(*values: Any, **named: Any) -> Any:
            nonlocal made
            if made is None:
                made = plain(name, *arguments, **options)
            return made(*values, **named)

        method.__name__ = name
        return method

    create.later = True  # type: ignore[attr-defined]
    dataclasses._create_fn = create  # type: ignore[attr-defined]


def start() -> None:
    """Hide what the idle daemon does without. Does nothing to what is imported already."""
    plain_tracebacks()
    gc.disable()
    _compile_later()
    if "asyncio" not in sys.modules and "ssl" not in sys.modules:
        sys.modules["ssl"] = _UNSEEN
        try:
            import asyncio  # noqa: F401
        finally:
            del sys.modules["ssl"]
        sys.meta_path.insert(0, _TlsForAsyncio())
    if "hashlib" not in sys.modules and "_hashlib" not in sys.modules:
        sys.modules["_hashlib"] = _UNSEEN
        try:
            import hashlib
        finally:
            del sys.modules["_hashlib"]
        if not hasattr(hashlib, "sha256"):
            # A Python that was built to hash with OpenSSL only.
            del sys.modules["hashlib"]


def settled() -> None:
    """Everything is imported. Until now the collector would have looked again and again through
    what stays for ever; from now on it looks at the rest only."""
    gc.freeze()
    gc.enable()


class _TlsForAsyncio:
    """Stands by for the first import of ``ssl`` and hands the module to asyncio."""

    def find_spec(
        self, fullname: str, path: Any = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "ssl":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec("ssl")
        loader: Any = spec.loader if spec is not None else None
        if loader is not None:
            load = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                load(module)
                _give(module)

            loader.exec_module = exec_module
        return spec


def _give(ssl: Any) -> None:
    from asyncio import base_events, selector_events, sslproto

    modules: tuple[Any, ...] = (base_events, selector_events, sslproto)
    for module in modules:
        module.ssl = ssl
    modules[2].SSLAgainErrors = (ssl.SSLWantReadError, ssl.SSLSyscallError)


__all__ = ["plain_tracebacks", "settled", "start"]
