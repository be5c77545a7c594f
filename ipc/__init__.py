"""Shared code of shardgate's processes: descriptor handoff, the bus, queries and the runtime directory."""

PROJECT = "shardgate"
"""Identifies this package. Its name is short, so another package may have the same one."""
