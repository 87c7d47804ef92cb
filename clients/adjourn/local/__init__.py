"""The embedded stack: Valkey, an S3 server, a control plane and workers on one machine, out of one data directory."""
