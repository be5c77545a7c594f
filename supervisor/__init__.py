"""The supervising process: configuration, listeners, admission, placement, and monitoring of the shards."""

PROJECT = "shardgate"
