"""The worker process: it holds its part of the agents' connections and serves requests over them."""

PROJECT = "shardgate"
"""Whose package this is: the name is short enough to be another's, too."""
