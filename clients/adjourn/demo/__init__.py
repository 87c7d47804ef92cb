"""The demonstration: a training is paused three times, loses its worker, and ends as if none of it had happened."""
