"""Where clips come from and how they become training examples."""
