"""The contract over HTTP: routes by its annotations, JSON, errors, streams as server-sent events, uploads."""
