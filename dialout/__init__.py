"""Both ends of Agent Protocol v2 reverse connections, without any I/O of its own choosing."""

__version__ = "0.1.0"
