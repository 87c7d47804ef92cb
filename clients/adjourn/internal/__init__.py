"""What the processes of Adjourn keep and tell each other; not for others, and not stable."""
