"""Generated from protos/adjourn/internal/v1 by `make protos`."""
