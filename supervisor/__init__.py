"""The supervising process: configuration, listeners, admission, placement, care of the shards."""

PROJECT = "shardgate"
