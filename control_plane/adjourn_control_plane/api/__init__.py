"""The services: proto <-> domain, and what surrounds a call."""
