"""The systems of `streams`: which streams of video they read, with which mapper, for how long."""

from dataclasses import dataclass

ENCODERS = ("cavp", "timechat", "synchformer", "motion")
STEMS = ("motion",)
"""Streams that are plain measurements, and pass a stem."""
LABELS = {"cavp": "CAVP", "timechat": "TimeChat", "synchformer": "Synchformer", "motion": "motion"}
DUAL = ("cavp", "timechat")
THREE = (*DUAL, "synchformer")
LINEAR = "linear_flat"
"""The better one of the linear mappers in the claims on the base grade."""


@dataclass(frozen=True)
class System:
    """What is trained: the streams that mapper and adapter read, the mapper, and for how long."""

    streams: tuple[str, ...]
    kind: str = "gpt2"  # of the mapper
    share: float = 1.0  # of the steps, of mapper and adapter

    @property
    def name(self) -> str:
        """The system as tables show it."""
        words = [", ".join(LABELS[name] for name in self.streams)]
        words += [] if self.kind == "gpt2" else ["linear"]
        words += [] if self.share == 1 else [f"{self.share:.0%} of the steps"]
        return "; ".join(words)

    @property
    def folder(self) -> str:
        """The end of the names of its folders."""
        words = [*self.streams]
        words += [] if self.kind == "gpt2" else [self.kind]
        words += [] if self.share == 1 else [f"{self.share:g}"]
        return "-".join(words)


PAPER, OURS = System(DUAL), System(THREE)
SYSTEMS = (
    PAPER,
    OURS,
    System((*DUAL, "motion")),
    System(ENCODERS),
    System(("timechat", "motion")),
    System(("cavp", "motion")),
    System(("motion",)),
    System(("cavp",)),
    System(("timechat",)),
    System(("synchformer",)),
    System(THREE, LINEAR),
    System(THREE, share=0.16),
    System(("cavp",), LINEAR),
)
"""The last six are for the paper's claims with three encoders."""
CLAIMS = (
    *(("a", OURS, System((name,))) for name in THREE),
    ("b", OURS, System(THREE, LINEAR)),
    ("c", System(THREE, share=0.16), System(("cavp",), LINEAR)),
)
"""(claim, ours, theirs): several encoders beat one, GPT-2 a linear mapper, and a small share of the
training is enough to beat the earlier mapper, a linear one of CAVP alone."""
CEILING = "true LOA on (1, 8), the miniature's own UNet"
"""The sound that no mapper makes."""


@dataclass(frozen=True)
class Budget:
    """The size of the experiment, the same for all systems."""

    mapper: int = 1000  # steps of stage 1
    adapter: int = 1500  # steps of the adapter
    clips: int = 1400  # videos of the hard grade, of which the windows are trained on
    sounds: int = 128  # test videos
    sampler_steps: int = 8
