"""Bascule: an on-node A/B update agent."""

__version__ = "0.1.0"
