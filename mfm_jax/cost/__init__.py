"""Count the operations and bytes of programs, and look up the figures of devices."""
