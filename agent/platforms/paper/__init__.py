"""The `paper` platform: accounts at the built-in broker."""
