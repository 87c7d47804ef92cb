"""Snapshots made durable in the object store, and fetched from it: parts first, the manifest last."""
