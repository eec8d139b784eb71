"""`tradecopier up`, and commands for practice accounts on the stack that it runs."""
