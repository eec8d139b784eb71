"""The built-in paper broker: one matching engine in a process of its own, and the client that operates it."""
