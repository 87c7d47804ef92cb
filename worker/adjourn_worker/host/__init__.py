"""The machine: GPUs, control groups, locks, and notifications between its processes."""
