"""What the mock says when something cannot be done: one sentence, and an exit code."""

from __future__ import annotations

__all__ = ["MockError", "PayloadError", "UsageError"]


class MockError(Exception):
    """Something could not be done. Exit code 1."""

    exit_code = 1


class UsageError(MockError):
    """The command line, a key file or the state file is wrong. Exit code 2."""

    exit_code = 2


class PayloadError(MockError):
    """A payload is damaged, not proven, or of a kind that this reader does not know."""
