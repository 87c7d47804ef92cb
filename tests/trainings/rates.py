"""A module of user code with a value that a training changes."""

RATE = 1.0
