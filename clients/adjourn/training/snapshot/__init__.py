"""Snapshots of a run: written to shared memory, read back."""
