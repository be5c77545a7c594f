"""What shardgate's own processes share: descriptors, the bus, queries and the runtime directory."""
