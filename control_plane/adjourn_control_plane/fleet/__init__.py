"""The workers: what each should have, which job goes where, and whose lease is over."""
