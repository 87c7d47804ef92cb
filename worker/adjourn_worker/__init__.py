"""The worker agent, its launcher, and what they share."""
