import json

import pytest

from convert.table import ConversionError
from convert.unet import TABLE, config
from mfm_jax.models.unet import UNet, UNetConfig
from mfm_jax.weights import abstract, count
from tests.table_checks import check_table


def their_config(reference, name, **changes):
    path = reference / "audioldm2/configs" / f"unet_{name}.json"
    return json.loads(path.read_text()) | changes


@pytest.mark.parametrize(
    ("name", "ours", "keys", "parameters"),
    [
        ("base", UNetConfig.audioldm2(8), 1520, 346_943_496),
        ("large", UNetConfig.audioldm2_large(8), 3216, 718_012_296),
    ],
)
def test_table_fits_the_released_checkpoints(reference, name, ours, keys, parameters):
    assert config(their_config(reference, name)) == ours
    manifest = json.loads((reference / f"audioldm2/manifest_unet_{name}.json").read_text())
    module = abstract(lambda rngs: UNet(ours, rngs=rngs))
    assert len(manifest) == keys
    assert count(module) == parameters
    check_table(TABLE, manifest, module)


def test_heads_are_what_the_file_says(reference):
    heads = config(their_config(reference, "base", attention_head_dim=[4, 8, 12, 20])).heads
    assert heads == (4, 8, 12, 20)
    assert UNetConfig.audioldm2(heads) == config(
        their_config(reference, "base", attention_head_dim=[4, 8, 12, 20])
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_fn": "gelu"}, "act_fn must be silu, is gelu"),
        ({"use_linear_projection": True}, "use_linear_projection must be False"),
        ({"cross_attention_dim": 768}, "cross_attention_dim 768 is not"),
        ({"cross_attention_dim": [[None, 768], [None, 512]] * 2}, "context 0 has two widths"),
        ({"out_channels": 4}, "out_channels 4 is not"),
        ({"layers_per_block": [1, 2, 2, 2]}, "layers_per_block .* is not"),
        ({"up_block_types": ["UpBlock2D"] * 4}, "up_block_types .* is not"),
        ({"down_block_types": ["AttnDownBlock2D"] * 4}, "down_block_types .* is not"),
    ],
)
def test_refuses_what_the_network_does_not_have(reference, change, message):
    with pytest.raises(ConversionError, match=message):
        config(their_config(reference, "base", **change))


def test_names_a_missing_setting(reference):
    theirs = their_config(reference, "base")
    del theirs["attention_head_dim"]
    with pytest.raises(ConversionError, match="attention_head_dim not given"):
        config(theirs)
