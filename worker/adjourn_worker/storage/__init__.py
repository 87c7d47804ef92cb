"""Object storage: snapshots made durable and fetched back, users' code fetched."""
