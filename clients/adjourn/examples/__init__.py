"""Real trainings, written as yours would be; `adjourn demo`, the README and the tests run them."""
