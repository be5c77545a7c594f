"""The agent's side: dial out, register, serve what comes, and stay connected."""
