"""The floating-point types that a user can choose for weights and arithmetic."""

PRECISIONS = ("float32", "bfloat16", "float16")
