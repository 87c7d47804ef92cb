"""One attempt at a job on this worker: its machine, the task that runs it, its files."""
