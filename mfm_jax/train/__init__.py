"""Training: the step, the optimizer, and one recipe for each network that can be trained."""
