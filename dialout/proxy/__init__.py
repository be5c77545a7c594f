"""The proxy's side of shardgate: ask agents for decisions through the Unix sockets of the shards."""
