import dataclasses
import json

import diffusers
import jax
import numpy as np
import pytest
import torch

from convert.table import ConversionError
from convert.unet import TABLE, config, their_config
from mfm_jax.models.unet import UNet, UNetConfig
from mfm_jax.storage.weights import abstract, parameter_count
from tests.exported import open_exported, random_network
from tests.table_checks import check_table

TINY = UNetConfig(
    channels=(8, 12),
    attentions=((), (None, 0, 1)),
    contexts=(7, 5),
    heads=(2, 3),
    latent_channels=3,
    resnets=1,
    groups=4,
)
NO_CONTEXT = dataclasses.replace(TINY, attentions=((None,), (None, None)), contexts=(), heads=2)


def released(reference, name, **changes):
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
    assert config(released(reference, name)) == ours
    manifest = json.loads((reference / f"audioldm2/manifest_unet_{name}.json").read_text())
    module = abstract(lambda rngs: UNet(ours, rngs=rngs))
    assert len(manifest) == keys
    assert parameter_count(module) == parameters
    check_table(TABLE, manifest, module)


def test_heads_are_what_the_file_says(reference):
    heads = config(released(reference, "base", attention_head_dim=[4, 8, 12, 20])).heads
    assert heads == (4, 8, 12, 20)
    assert UNetConfig.audioldm2(heads) == config(
        released(reference, "base", attention_head_dim=[4, 8, 12, 20])
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_fn": "gelu"}, "act_fn must be silu, is gelu"),
        ({"use_linear_projection": True}, "use_linear_projection must be False"),
        ({"cross_attention_dim": 768}, "cross_attention_dim 768 is not"),
        ({"cross_attention_dim": [[None, 768], [None, 512]] * 2}, "context 0 has two widths"),
        ({"out_channels": 4}, "out_channels 4 is not"),
        ({"layers_per_block": [1, 2, 2, 2]}, "layers_per_block must be a positive integer, is"),
        ({"attention_head_dim": [8, 8, 8]}, "attention_head_dim .* one entry for each level"),
        ({"attention_head_dim": 7}, "block_out_channels 256 is no multiple of attention_head_dim"),
        ({"_class_name": "UNet2DConditionModel"}, "_class_name must be AudioLDM2UNet2DCond"),
        ({"norm_num_groups": None}, "norm_num_groups must be a positive integer, is None"),
        ({"class_embeddings_concat": True}, "class_embeddings_concat must be False, is True"),
        ({"cross_attention_dim": [[None, None, 768]] * 4}, "nothing .* reads context 0"),
        ({"cross_attention_dim": [[None] * 5] * 4}, "cross_attention_dim .* is not"),
        ({"up_block_types": ["UpBlock2D"] * 4}, "up_block_types .* is not"),
        ({"down_block_types": ["AttnDownBlock2D"] * 4}, "down_block_types .* is not"),
    ],
)
def test_refuses_what_the_network_does_not_have(reference, change, message):
    with pytest.raises(ConversionError, match=message):
        config(released(reference, "base", **change))


def test_names_a_missing_setting(reference):
    theirs = released(reference, "base")
    del theirs["attention_head_dim"]
    with pytest.raises(ConversionError, match="attention_head_dim not given"):
        config(theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timed": True}, "the UNet is timed, which no UNet of diffusers is"),
        ({"attentions": ((0,), ())}, "last level does not attend"),
        ({"attentions": ((), (0, 1))}, r"attentions \(0, 1\): in diffusers the first two"),
        ({"attentions": ((), (0, 0, 1, None, 1))}, "there are no more"),
        ({"attentions": ((), (None, 0))}, "does not read context 1, whose width"),
    ],
)
def test_names_what_diffusers_does_not_have(change, message):
    with pytest.raises(ConversionError, match=message):
        their_config(dataclasses.replace(TINY, **change))


def test_times_that_are_not_read_leave_no_trace():
    slow = dataclasses.replace(TINY, seconds_per_row=1.0)
    assert their_config(slow) == their_config(TINY)


@pytest.mark.parity
@pytest.mark.parametrize("tiny", [TINY, NO_CONTEXT], ids=["two contexts", "none"])
def test_diffusers_opens_an_export(tmp_path, parity, caplog, tiny):
    ours, weights = random_network(UNet, tiny)
    theirs = open_exported(
        diffusers.AudioLDM2UNet2DConditionModel,
        tmp_path / "unet",
        their_config(tiny),
        TABLE.to_theirs(weights),
        caplog,
    )
    theirs.save_config(tmp_path / "again")
    assert config(json.loads((tmp_path / "again/config.json").read_text())) == tiny
    rng = np.random.default_rng(1)
    x, *contexts = (
        rng.standard_normal(shape, np.float32)
        for shape in ((2, 4, 6, 3), *((2, 4, width) for width in tiny.contexts))
    )
    t = np.array([3.0, 721.5], np.float32)
    tokens = [torch.from_numpy(context) for context in contexts] or [None]
    read = zip(("encoder_hidden_states", "encoder_hidden_states_1"), tokens, strict=False)
    with torch.no_grad():
        expected = theirs(
            torch.from_numpy(x).movedim(3, 1),
            torch.from_numpy(t),
            **dict(read),
        ).sample.movedim(1, 3)
    result = jax.jit(UNet.__call__)(ours, x, t, tuple(contexts))
    row = f"UNet of {len(contexts)} contexts, exported folder"
    parity(row, "diffusers AudioLDM2UNet2DConditionModel", result, expected, 1e-4)
