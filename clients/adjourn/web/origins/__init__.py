"""The HTTP and WebSocket interfaces of Heimdall and PEFT Studio: their clients work unmodified, on Adjourn's jobs."""
