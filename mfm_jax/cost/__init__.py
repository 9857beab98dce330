"""What a program costs, as written and as compiled, and what devices can do."""
