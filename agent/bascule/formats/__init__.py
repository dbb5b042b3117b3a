"""Ground floor: bytes in, values out. No I/O, no clock, no event loop, no logging."""
