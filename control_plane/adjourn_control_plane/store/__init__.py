"""Where jobs are kept: the protocol, and Redis behind it."""
