"""Fixtures that give every test an Omaha server to edit while it runs.

``tests/conftest.py`` makes them known everywhere::

    async def test_it(omaha: MockServer) -> None:
        omaha.offer("2.0.0", payload)
        omaha.drop(at=4096)
        ...                                  # the agent polls omaha.url
        assert omaha.events == [(13, 1, None, None), ...]

``release_images`` builds three releases (the third broken) once a session.
``omaha`` and ``omaha_tls`` run in the test's own event loop; ``omaha_process`` starts
``omaha-mock serve DIR`` as a process of its own.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from omaha_mock.server import MockServer

__all__ = ["fixture_build", "omaha", "omaha_process", "omaha_tls", "release_images"]


def fixture_build() -> Any:
    """The module ``fixtures/build.py``."""
    path = Path(__file__).resolve().parents[1] / "fixtures" / "build.py"
    if "fixture_build" not in sys.modules:
        found = importlib.util.spec_from_file_location("fixture_build", path)
        assert found is not None and found.loader is not None
        module = sys.modules["fixture_build"] = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
    return sys.modules["fixture_build"]


@pytest.fixture(scope="session")
def release_images(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Releases 1.0.0, 2.0.0 and (broken) 3.0.0: objects with ``version``, ``usr``, ``kernel``."""
    built: list[Any] = fixture_build().releases(tmp_path_factory.mktemp("releases"))
    return built


@pytest_asyncio.fixture
async def omaha() -> AsyncIterator[MockServer]:
    """A server on a free port of 127.0.0.1 that offers nothing yet."""
    async with MockServer() as server:
        yield server


@pytest_asyncio.fixture
async def omaha_tls(tmp_path: Path) -> AsyncIterator[MockServer]:
    """The same over TLS, as ``localhost``; its CA certificate is ``tmp_path / "omaha-ca.pem"``."""
    import ssl

    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "omaha-ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    async with MockServer(tls=context) as server:
        yield server


@pytest.fixture
def omaha_process() -> Iterator[Callable[..., str]]:
    """Call it with a directory (and further arguments) to serve; it returns the update URL."""
    with ExitStack() as stack:

        def serve(directory: Path, *arguments: str) -> str:
            process = subprocess.Popen(
                [sys.executable, "-m", "omaha_mock", "serve", str(directory), *arguments],
                stdout=subprocess.PIPE,
                text=True,
            )

            def end() -> None:
                process.terminate()
                process.wait(timeout=30)
                if process.stdout is not None:
                    process.stdout.close()

            stack.callback(end)
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("listening on "), line
            return line.split()[-1]

        yield serve
