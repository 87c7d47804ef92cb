"""Events as HTTP requests to a sink: what is sent, how, and when again."""
