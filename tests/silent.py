"""Videos without sound, for the tests of what needs one or must do without."""

from pathlib import Path

import av


def write_silent(source: Path, target: Path) -> None:
    """Copy the picture of `source`, packet by packet, without any sound."""
    with av.open(str(source)) as video, av.open(str(target), "w") as out:
        picture = video.streams.video[0]
        copy = out.add_stream_from_template(picture)
        for packet in video.demux(picture):
            if packet.dts is not None:
                packet.stream = copy
                out.mux(packet)
