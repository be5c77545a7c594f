"""The version of shardgate, in one place."""

__version__ = "0.1.0"
