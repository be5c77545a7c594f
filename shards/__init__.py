"""The worker process: it holds its part of the agents' connections and serves requests over them."""
