"""What decides how a training goes on: found, encoded, restored, compared."""
