"""The rows that most tables share."""

from convert.table import Computed, Row

DENSE = "o i -> i o"
"""PyTorch's Linear to ours."""
CONV = "o i h w -> h w i o"
"""PyTorch's Conv2d to ours."""
POINTWISE = "o i 1 1 -> i o"
"""PyTorch's 1 x 1 Conv2d to our Linear."""
QKV = "(s o) i -> s i o", "(s o) -> s o"
"""A stacked query, key and value Linear, its weight and its bias, to three."""


def named(theirs: str, ours: str, move: str | None = None) -> tuple[Row, Row]:
    """Return the rows of a linear map or a convolution with its bias."""
    return (
        Row(f"{theirs}.weight", f"{ours}.kernel", move),
        Row(f"{theirs}.bias", f"{ours}.bias"),
    )


def stem(name: str) -> tuple[Row, ...]:
    """Return the rows of a stem, which is called `name` on both sides."""
    parts = [f"{name}.{part}" for part in ("first", "second", "last")]
    return tuple(row for part in parts for row in named(part, part, "o i k -> k i o"))


def norm(theirs: str, ours: str) -> tuple[Row, Row]:
    """Return the rows of a LayerNorm or a GroupNorm."""
    return Row(f"{theirs}.weight", f"{ours}.scale"), Row(f"{theirs}.bias", f"{ours}.bias")


def batch_norm(theirs: str, ours: str) -> tuple[Row | Computed, ...]:
    """Return the rows of a BatchNorm with its running statistics; its step count is not used."""
    return (
        *norm(theirs, ours),
        Row(f"{theirs}.running_mean", f"{ours}.mean"),
        Row(f"{theirs}.running_var", f"{ours}.var"),
        Computed(f"{theirs}.num_batches_tracked", f"{ours}.mean", 0, (), "int64"),
    )


def stacked(theirs: str, ours: tuple[str, ...]) -> tuple[Row, Row]:
    """Return the rows of a linear map of theirs that stacks several of ours along its outputs."""
    weight, bias = QKV
    return (
        Row(f"{theirs}.weight", tuple(f"{n}.kernel" for n in ours), weight),
        Row(f"{theirs}.bias", tuple(f"{n}.bias" for n in ours), bias),
    )
