"""The control plane: decides what runs where, and keeps nothing itself."""
