"""Data that runs name by URI: fetched with the agent's credentials, kept for all attempts of the worker."""
