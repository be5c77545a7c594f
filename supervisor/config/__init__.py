"""Configuration: reading, checking and overriding it, and what is looked up in it for each registration."""
