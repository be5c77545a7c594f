"""The admin endpoint: metrics, health, status and a page for people, over HTTP; nothing that changes anything."""
