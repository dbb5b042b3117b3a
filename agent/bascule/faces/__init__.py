"""Faces: who may ask, and who is told."""
