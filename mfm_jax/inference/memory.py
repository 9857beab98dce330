"""The plan of device memory: what each stage of generation needs, known before a weight is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike

from mfm_jax.bundle import Bundle
from mfm_jax.inference.pipeline import Sampling
from mfm_jax.inference.programs import Program, abstract_network, generation, text_encoder
from mfm_jax.inference.prompts import LENGTH
from mfm_jax.inference.stream import IN_FLIGHT
from mfm_jax.runtime.compiled import NO_PROGRAMS, Programs, program_name
from mfm_jax.runtime.sharding import Layout

STAGES: Mapping[str, tuple[str, ...]] = {
    "encoders": ("encoders",),
    "mapper": ("mapper",),
    # The mapper is an argument of this stage's program, which reads its config only.
    "diffusion": ("mapper", "unet", "vae", "vocoder", "text"),
}
"""The networks that are on the device together, in the order in which windows pass them.

They have the names of the fields of `mfm_jax.inference.pipeline.Networks`.
"""


@dataclass(frozen=True)
class StageMemory:
    """Bytes on each device while a stage runs."""

    name: str
    weights: int
    arrays: int  # inputs and outputs of the batches that are in flight
    temporaries: int  # of the program that needs most, and the code of all

    @property
    def total(self) -> int:
        """The sum of all."""
        return self.weights + self.arrays + self.temporaries

    def __str__(self) -> str:
        """Return a line of the plan."""
        return (
            f"{self.name}: {_gb(self.weights)} weights + {_gb(self.arrays)} inputs and outputs + "
            f"{_gb(self.temporaries)} temporaries = {_gb(self.total)}"
        )


@dataclass(frozen=True)
class Plan:
    """The memory of each stage, and the programs that were compiled to know it."""

    stages: Sequence[StageMemory]
    programs: Programs

    def lines(self) -> list[str]:
        """Return what a user is told."""
        most = max(stage.total for stage in self.stages)
        return [
            "device memory, one stage after the other:",
            *(f"  {stage}" for stage in self.stages),
            f"  at most {_gb(most)} on each device",
        ]


def plan(
    bundle: Bundle,
    layout: Layout,
    *,
    batch: int,
    dtype: DTypeLike,
    sampling: Sampling,
    prompts: bool = False,
    beside: Sequence[str] = (),
    ready: Programs = NO_PROGRAMS,
) -> Plan:
    """Compile the programs of generation for `batch` windows, and plan the memory of each stage.

    Args:
        prompts: there are some, which T5 reads in a stage of its own, if the bundle has it.
        beside: networks that are on the device in every stage, for the choice among candidates.
            Only their weights count.
        ready: programs that are compiled already.

    Raises:
        BundleError: a network is missing.
        SettingError: the devices do not divide the batch.
    """
    tokens = LENGTH if prompts else None
    known = generation(bundle, layout, batch=batch, dtype=dtype, sampling=sampling, tokens=tokens)
    if prompts and "t5" in bundle.entries:
        known.append(text_encoder(bundle, layout, dtype))
    always = sum(size(abstract_network(bundle, name, layout, dtype)) for name in beside)
    compiled: dict[str, Any] = dict(ready.known)
    found = [(program.stage, _measured(program, layout, compiled)) for program in known]
    stages = []
    for name in ("text", *STAGES):
        parts = [measured for stage, measured in found if stage == name]
        if parts:
            weights, arrays, temporaries, code = (
                np.array(column) for column in zip(*parts, strict=True)
            )
            stages.append(
                StageMemory(
                    name,
                    int(weights.sum()) + (0 if name == "text" else always),
                    IN_FLIGHT * int(arrays.sum()),
                    int(temporaries.max() + code.sum()),
                )
            )
    return Plan(stages, Programs(compiled))


def _measured(
    program: Program, layout: Layout, compiled: dict[str, Any]
) -> tuple[int, int, int, int]:
    """Return the bytes of weights, inputs and outputs, temporaries and code of a program.

    It is compiled, and added to `compiled`, if it is not there.

    Where a backend does not tell the last three, they are 0.
    """
    name = program_name(program.function, jax.tree.leaves(program.arguments), program.options)
    if name not in compiled:
        compiled[name] = program.traced(layout).lower().compile()
    networks, *inputs = program.arguments
    told = compiled[name].memory_analysis()
    if told is None:
        return size(networks), size(inputs), 0, 0
    return (
        size(networks),
        size(inputs) + told.output_size_in_bytes,
        told.temp_size_in_bytes,
        told.generated_code_size_in_bytes,
    )


def size(tree: Any) -> int:
    """Return the bytes that arrays, or their shapes, have on one device."""

    def one(leaf: Any) -> int:
        numbers = int(np.prod(leaf.sharding.shard_shape(leaf.shape)))
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return numbers * (8 if is_key else leaf.dtype.itemsize)

    return sum(map(one, jax.tree.leaves(tree)))


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
