"""Updater floor: when and why. Pure wherever it decides."""
