import json
from functools import partial

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from convert.table import ConversionError
from convert.timechat import resize_frame_positions, table
from mfm_jax.models.timechat import TimeChat, TimeChatConfig
from mfm_jax.storage.weights import abstract, named_weights, with_weights
from tests.bundles import filled
from tests.table_checks import check_table

RELEASED = TimeChatConfig.timechat_7b(())
COUNTER = "bert.embeddings.position_ids"


@pytest.fixture(scope="module")
def manifest(reference):
    return json.loads((reference / "timechat/manifest.json").read_text())


def test_table_fits_the_released_branch(manifest):
    assert len(manifest) == 902
    others = [f"visual_encoder.{part}.weight" for part in ("norm", "fc_norm", "head")]
    others += ["visual_encoder.blocks.39.norm1.weight", "Qformer.cls.predictions.bias"]
    others += ["llm_proj.weight", "llama_model.base_model.lora_A.weight"]
    network = abstract(lambda rngs: TimeChat(RELEASED, rngs=rngs))
    check_table(table(RELEASED), manifest, network, others=others)


def test_there_and_back_again(reference):
    theirs = load_file(reference / "timechat/golden/weights.safetensors")
    back = dict(table(RELEASED).to_theirs(dict(table(RELEASED).to_ours(theirs))))
    assert back.keys() == {name for name in theirs if not name.endswith(COUNTER)}
    for name, array in back.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def test_tiny_goes_out_and_comes_back():
    """A tiny branch has no projection for the language model."""
    config = TimeChatConfig.tiny()
    model = filled(abstract(partial(TimeChat, config)), 0)
    ours = {name: np.asarray(array) for name, array in named_weights(model).items()}
    back = dict(table(config).to_ours(dict(table(config).to_theirs(ours))))
    with_weights(model, {name: jax.device_put(array) for name, array in back.items()})
    for name, array in back.items():
        np.testing.assert_array_equal(array, ours[name], err_msg=name)


def test_a_missing_norm_is_named(reference):
    """`ln_vision` is not in TimeChat's own file, so it is the one most easily forgotten."""
    theirs = load_file(reference / "timechat/golden/weights.safetensors")
    del theirs["ln_vision.weight"]
    with pytest.raises(ConversionError, match=r"missing: ln_vision\.weight"):
        dict(table(RELEASED).to_ours(theirs))


@pytest.mark.parity
def test_frame_positions_resize(parity, reference):
    io = load_file(reference / "timechat/golden/io.safetensors")
    small, large = io["pre.frame_pos_32"], io["pre.frame_pos_96"]
    for old, new in ((small, large), (large, small)):
        name = f"TimeChat frame positions {len(old)} to {len(new)}"
        parity(
            name, f"golden pre.frame_pos_{len(new)}", resize_frame_positions(old, len(new)), new, 0
        )
