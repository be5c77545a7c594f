"""The agent's side: dial the proxy, register, serve its events, and reconnect."""
