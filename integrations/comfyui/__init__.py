"""Sound for silent video in ComfyUI, by `mfm serve`."""

from .nodes import MFMSound

NODE_CLASS_MAPPINGS = {"MFMSound": MFMSound}
NODE_DISPLAY_NAME_MAPPINGS = {"MFMSound": "Sound for video (MFM)"}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
