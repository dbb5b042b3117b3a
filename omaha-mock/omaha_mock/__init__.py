"""The other half of the wire: an Omaha server for tests and labs, and the payload builder."""

__version__ = "0.1.0"
