"""The launcher: a process that forks training processes, and the agent's client of it."""
