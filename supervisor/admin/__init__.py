"""The admin endpoint: metrics, health, status and a page for operators, over HTTP. It is read-only."""
