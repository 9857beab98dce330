"""A ComfyUI node that asks `mfm serve` for the sound of a video."""

import tempfile
import wave
from pathlib import Path
from typing import Any, ClassVar

from .client import Client

OWN = "as the server says"


class MFMSound:
    """Sound for a silent video, made by a server with the networks."""

    CATEGORY = "audio"
    DESCRIPTION = "Asks a running `mfm serve` for the sound of a video."
    FUNCTION = "make"
    RETURN_TYPES = ("AUDIO",)
    RETURN_NAMES = ("audio",)
    SEARCH_ALIASES: ClassVar = ["video to audio", "foley", "mfm"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, tuple]]:
        """Return the inputs, as ComfyUI asks for them."""
        text = {"default": "", "multiline": True}
        return {
            "required": {
                "video": ("VIDEO",),
                "server": ("STRING", {"default": "http://127.0.0.1:8000"}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF}),
                "candidates": ("INT", {"default": 1, "min": 1, "max": 16}),
                "steps": ("INT", {"default": 0, "min": 0, "max": 999, "tooltip": f"0: {OWN}"}),
                "guidance": (
                    "FLOAT",
                    {"default": 0.0, "min": 0.0, "max": 20.0, "step": 0.5, "tooltip": f"0: {OWN}"},
                ),
            },
            "optional": {"prompt": ("STRING", text), "negative_prompt": ("STRING", text)},
        }

    def make(
        self,
        video: Any,
        server: str,
        seed: int,
        candidates: int,
        steps: int,
        guidance: float,
        prompt: str = "",
        negative_prompt: str = "",
    ) -> tuple[dict[str, Any]]:
        """Return the sound as ComfyUI has it: samples `[1, 1, A]` and their rate."""
        settings = {
            "seed": seed,
            "candidates": candidates,
            "steps": steps or None,
            "guidance": guidance or None,
            "prompt": prompt.strip() or None,
            "negative_prompt": negative_prompt.strip() or None,
        }
        with tempfile.TemporaryDirectory(prefix="mfm-") as folder:
            source, target = Path(folder) / "video.mp4", Path(folder) / "sound.wav"
            video.save_to(str(source))
            Client(server).make(source, target, settings, _progress())
            return (read_audio(target),)


def read_audio(file: Path) -> dict[str, Any]:
    """Read a WAV file of 16-bit samples as ComfyUI's AUDIO."""
    import torch

    with wave.open(str(file)) as sound:
        raw, rate = bytearray(sound.readframes(sound.getnframes())), sound.getframerate()
    samples = torch.frombuffer(raw, dtype=torch.int16).float() / 32768
    return {"waveform": samples[None, None], "sample_rate": rate}


def _progress() -> Any:
    """Return what moves ComfyUI's bar, and raises when the user stops the work."""
    try:
        from comfy.model_management import throw_exception_if_processing_interrupted
        from comfy.utils import ProgressBar
    except ImportError:  # outside of ComfyUI
        return lambda job: None
    bar = ProgressBar(100)

    def told(job: dict[str, Any]) -> None:
        throw_exception_if_processing_interrupted()
        bar.update_absolute(round(100 * job["progress"]))

    return told
