"""DeSync at the released sizes is planned with what it is called with."""

from mfm_jax.bundle import Bundle
from mfm_jax.plan.released import write_released
from mfm_jax.plan.scores import desync
from mfm_jax.runtime.sharding import Layout, MeshConfig, make_mesh

ONE = Layout(make_mesh(MeshConfig()))


def test_clips_of_a_window(tmp_path):
    bundle = Bundle.open(write_released(tmp_path / "bundle"))
    program = desync(bundle, ONE, batch=2)
    _, frames, mel = program.arguments
    assert (frames.shape, mel.shape) == ((2, 256, 224, 224, 3), (2, 31, 66, 128))
    assert program.traced(ONE).out_info.shape == (2, 2, 21)
