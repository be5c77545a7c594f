"""The worker process: it holds a part of the agents' connections and serves requests over them."""

PROJECT = "shardgate"
"""Names the project that this package belongs to: another project may have a package of the same short name."""
