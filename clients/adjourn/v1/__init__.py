"""The contract in Python: generated from `protos/`, never edited."""
