"""The HTTP interfaces of the systems that Adjourn grew from."""
