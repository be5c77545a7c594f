"""Configuration: reads, checks and overrides it, and answers the look-ups of each registration."""
