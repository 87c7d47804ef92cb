"""One job: its states, what may happen to it, and how a change is committed."""
