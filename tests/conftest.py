"""Fixtures for every folder."""

from __future__ import annotations

pytest_plugins = ("mock_fixture",)
