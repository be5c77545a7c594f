"""What shardgate's own processes share: descriptors, the bus, queries and the runtime directory."""

PROJECT = "shardgate"
"""Whose package this is: the name is short enough to be another's, too."""
