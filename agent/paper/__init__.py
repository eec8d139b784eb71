"""The built-in paper broker: a matching engine in its own process, and the client that operates it."""
