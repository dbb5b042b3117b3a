"""Run one program of a stranger: bounded output, its whole process group ended in every case."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
from collections.abc import Callable, Mapping, Sequence

CHUNK = 64 * 1024
GRACE = 2.0
"""Seconds that output may still come after the program itself has ended."""


async def run_command(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    output: Callable[[bytes], None],
    cwd: str = "/",
) -> int:
    """Run `argv` to its end and give its exit status (negative: the signal that ended it).

    Standard output and error go to `output` in chunks of at most 64 KiB, as they come. A file
    without a ``#!`` line is given to /bin/sh, as a shell would. On cancellation the whole process
    group is killed; so is what an ended program left behind if it still holds the output.

    Raises:
        OSError: it could not be started.
    """
    reader = asyncio.StreamReader(limit=CHUNK)
    # A pipe of our own: asyncio's process.wait() does not return while any heir holds its pipe.
    read_end, write_end = os.pipe()
    try:
        pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_end, "rb", 0)
        )
        try:
            process = await _spawn(argv, environment, cwd, write_end)
        except OSError as error:
            pipe.close()
            if error.errno != errno.ENOEXEC or argv[0] == "/bin/sh":
                raise
            return await run_command(
                ["/bin/sh", *argv],
                environment=environment,
                output=output,
                cwd=cwd,
            )
    finally:
        os.close(write_end)

    async def copy() -> None:
        while data := await reader.read(CHUNK):
            output(data)

    reading = asyncio.ensure_future(copy())
    ending = asyncio.ensure_future(process.wait())
    try:
        status = await asyncio.shield(ending)
        # A child that lives on holds the pipe: the program's own end decides, not the pipe's.
        await asyncio.wait({reading}, timeout=GRACE)
        return status
    finally:
        # Only while somebody of the group is known to live can its number not be another's.
        if not (ending.done() and reading.done()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        reading.cancel()
        pipe.close()
        # Bounded: a process in uninterruptible sleep does not even die of SIGKILL.
        await asyncio.wait({reading, ending}, timeout=GRACE)


async def _spawn(
    argv: Sequence[str],
    environment: Mapping[str, str],
    cwd: str,
    stdout: int,
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=stdout,
        stderr=asyncio.subprocess.STDOUT,
        env=dict(environment),
        cwd=cwd,
        start_new_session=True,
    )
