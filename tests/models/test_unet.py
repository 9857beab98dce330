"""AudioLDM 2's UNet against diffusers' AudioLDM2UNet2DConditionModel, and what times do to it."""

import dataclasses
import json

import diffusers
import jax
import numpy as np
import pytest
import torch
from jax import numpy as jnp
from safetensors.numpy import load_file

from convert.unet import TABLE, config
from mfm_jax.layers import time_embedding
from mfm_jax.models.unet import UNet, UNetConfig, doubled, upsampled
from mfm_jax.storage.weights import abstract, named_weights, parameter_count, with_weights
from tests.bundles import in_half

forward = jax.jit(UNet.__call__)
DIFFUSERS = "diffusers AudioLDM2UNet2DConditionModel"
BASE = {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [8, 12],  # the golden has three levels
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "layers_per_block": 2,
    "transformer_layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": [[None, 7, 11]] * 2,
}
LARGE = BASE | {
    "attention_head_dim": [2, 3],
    "layers_per_block": 1,
    "transformer_layers_per_block": 2,
    "cross_attention_dim": [[None, 7, 11, None]] * 2,
}
# With times and one context, smaller than `tiny`.
TIMED = UNetConfig(
    channels=(8,),
    attentions=((0,),),
    contexts=(6,),
    heads=2,
    latent_channels=3,
    resnets=1,
    groups=4,
    timed=True,
)


def last(array):
    """Channels last."""
    return jax.device_put(np.moveaxis(np.asarray(array), 1, -1))


def load(their_config, state):
    weights = {name: jax.device_put(a) for name, a in TABLE.to_ours(state)}
    net = abstract(lambda rngs: UNet(config(their_config), rngs=rngs))
    return with_weights(net, weights, where="the UNet")


def their_unet(their_config):
    torch.manual_seed(0)
    unet = diffusers.AudioLDM2UNet2DConditionModel(**their_config).eval()
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            weight += 0.2 * torch.randn_like(weight) if "norm" in name or "bias" in name else 0
    return unet


@pytest.mark.parity
@pytest.mark.parametrize(("layout", "their_config"), [("base", BASE), ("large", LARGE)])
def test_as_diffusers(parity, layout, their_config):
    unet = their_unet(their_config)
    net = load(their_config, {name: a.numpy() for name, a in unet.state_dict().items()})
    rng = np.random.default_rng(1)
    t = np.array([3.0, 721.5], np.float32)
    loa, text = (rng.normal(size=s).astype(np.float32) for s in ((2, 4, 7), (2, 5, 11)))
    loa_mask = np.arange(4) < np.array([[4], [3]])
    # Nothing of the second row's text may be read, which is not the same as no text.
    text_mask = np.arange(5) < np.array([[2], [0]])
    even, odd = (8, 16, (None, None)), (13, 6, (loa_mask, text_mask))
    for height, width, masks in (even, odd) if layout == "base" else (odd,):
        x = rng.normal(size=(2, 3, height, width)).astype(np.float32)
        with torch.no_grad():
            theirs = unet(
                torch.from_numpy(x),
                torch.from_numpy(t),
                encoder_hidden_states=torch.from_numpy(loa),
                encoder_hidden_states_1=torch.from_numpy(text),
                encoder_attention_mask=None if masks[0] is None else torch.tensor(masks[0]),
                encoder_attention_mask_1=None if masks[1] is None else torch.tensor(masks[1]),
            ).sample
        ours = forward(net, last(x), t, (loa, text), masks)
        masked = "no mask" if masks[0] is None else "masks"
        row = f"UNet {layout} layout, {height} x {width}, {masked}"
        parity(row, DIFFUSERS, ours, last(theirs), 1e-4)


@pytest.mark.parity
def test_modules_as_diffusers(parity):
    unet = their_unet(BASE)
    net = load(BASE, {name: a.numpy() for name, a in unet.state_dict().items()})
    rng = np.random.default_rng(2)
    shapes = (2, 8, 6, 10), (2, 12, 6, 10), (2, 12, 3, 5)
    thin, x, small = (rng.normal(size=s).astype(np.float32) for s in shapes)
    loa, text = (rng.normal(size=s).astype(np.float32) for s in ((2, 4, 7), (2, 5, 11)))
    t = np.array([14, 996])
    with torch.no_grad():
        thin_t, x_t, small_t, loa_t = (torch.from_numpy(a) for a in (thin, x, small, loa))
        step = unet.time_embedding(unet.time_proj(torch.from_numpy(t)))
        theirs = {
            "time step": step,
            "resnet with shortcut": last(unet.down_blocks[1].resnets[0](thin_t, step)),
            "transformer, self": last(unet.down_blocks[1].attentions[0](x_t, return_dict=False)[0]),
            "transformer, LOA": last(
                unet.down_blocks[1].attentions[4](x_t, loa_t, return_dict=False)[0]
            ),
            "downsample": last(unet.down_blocks[0].downsamplers[0](thin_t)),
            "middle": last(
                unet.mid_block(
                    small_t,
                    step,
                    encoder_hidden_states=loa_t,
                    encoder_hidden_states_1=torch.from_numpy(text),
                )
            ),
            "upsample": last(unet.up_blocks[0].upsamplers[0](small_t, (6, 9))),
        }

    @jax.jit
    def ours(net, thin, x, small, t, loa, text):
        given = net.conditions(t, (loa, text), None, None)
        return {
            "time step": net.step_embedding(t),
            "resnet with shortcut": net.down[1].resnets[0](thin, given.step),
            "transformer, self": net.down[1].attentions[0](x, given),
            "transformer, LOA": net.down[1].attentions[4](x, given),
            "downsample": net.downsample[0](thin),
            "middle": net.mid(1, net.mid(0, small, given), given),
            "upsample": upsampled(net.upsample[0], small, 6, 9),
        }

    for name, array in ours(net, last(thin), last(x), last(small), t, loa, text).items():
        parity(f"UNet {name}", DIFFUSERS, array, np.asarray(theirs[name]), 1e-4)


@pytest.mark.parity
def test_golden_pipeline(parity, reference):
    golden = load_file(reference / "audioldm2/golden/pipeline_io.safetensors")
    theirs = json.loads((reference / "audioldm2/golden/pipeline_config.json").read_text())["unet"]
    net = load(theirs, load_file(reference / "audioldm2/golden/pipeline_unet.safetensors"))

    def both(name):
        """The unconditional half first."""
        return np.concatenate([golden[f"in.negative_{name}"], golden[f"in.{name}"]])

    contexts = both("generated_prompt_embeds"), both("prompt_embeds")
    masks = None, both("attention_mask").astype(bool)
    for n in range(5):
        x, t = last(golden[f"step_{n}.unet_in"]), np.repeat(golden[f"step_{n}.t"], 4)
        ours, against = forward(net, x, t, contexts, masks), last(golden[f"step_{n}.unet_out"])
        name = f"golden pipeline_io step_{n}.unet_out"
        parity("UNet pipeline, share of spread", name, ours, against, 1e-4, relative_to="spread")
    # Twice, and with a mask that lets all through, by the program that is there already.
    x, *contexts = (
        np.concatenate([golden[f"in.{name}"]] * 2)
        for name in ("latents", "generated_prompt_embeds", "prompt_embeds")
    )
    masks = None, np.ones_like(masks[1])
    ours = forward(net, last(x), np.full_like(t, 481), tuple(contexts), masks)[:2]
    against = last(golden["unet.t481_no_mask"])
    name = "golden pipeline_io unet.t481_no_mask"
    parity("UNet pipeline, share of spread", name, ours, against, 1e-4, relative_to="spread")


@pytest.mark.parametrize("size", [(1, 1), (4, 6), (7, 9), (125, 3)])
def test_doubling_is_nearest_interpolation(size):
    x = np.random.default_rng(0).normal(size=(1, 2, (size[0] + 1) // 2, (size[1] + 1) // 2))
    theirs = torch.nn.functional.interpolate(torch.from_numpy(x), size=size, mode="nearest")
    np.testing.assert_array_equal(doubled(last(x), *size), last(theirs))


def drawn(config):
    """A UNet with random weights, those of the norms too."""
    net, rng = abstract(lambda rngs: UNet(config, rngs=rngs)), np.random.default_rng(0)
    weights = {
        name: rng.normal(name.endswith("scale"), np.prod(w.shape[:-1]) ** -0.5, w.shape)
        for name, w in named_weights(net).items()
    }
    return with_weights(
        net, {name: jax.device_put(w.astype(np.float32)) for name, w in weights.items()}
    )


@pytest.fixture(scope="module")
def timed():
    """A UNet that reads times."""
    return drawn(TIMED)


@pytest.fixture(scope="module")
def inputs():
    """Latents, time step, a context of 5 tokens, and their seconds."""
    keys = jax.random.split(jax.random.key(1))
    x = jax.random.normal(keys[0], (2, 9, 4, 3))
    context = jax.random.normal(keys[1], (2, 5, 6))
    return x, jnp.array([5, 700]), context, 0.08 * jnp.arange(5, dtype=jnp.float32)


def test_a_token_is_told_from_another_by_its_time(timed, inputs):
    x, t, context, seconds = inputs
    order = np.array([3, 0, 4, 2, 1])
    y = forward(timed, x, t, (context,), context_seconds=seconds)
    both = forward(timed, x, t, (context[:, order],), context_seconds=seconds[order])
    only_tokens = forward(timed, x, t, (context[:, order],), context_seconds=seconds)
    np.testing.assert_allclose(both, y, atol=1e-5)
    assert np.abs(only_tokens - y).max() > 1e-4


def test_a_clip_can_have_times_of_its_own(timed, inputs):
    x, t, context, seconds = inputs
    other = jnp.stack([seconds, seconds + 0.3])
    y = forward(timed, x, t, (context,), context_seconds=seconds)
    shifted = forward(timed, x, t, (context,), context_seconds=other)
    np.testing.assert_allclose(shifted[0], y[0], atol=1e-5)
    assert np.abs(shifted[1] - y[1]).max() > 1e-4


def test_times_do_not_touch_the_values(timed, inputs):
    x, t, context, _ = inputs
    # A single token is read in full whatever its score: only a time in its value could show.
    alone = jnp.broadcast_to(jnp.arange(5) < 1, (2, 5))
    y, later = (
        forward(timed, x, t, (context,), (alone,), context_seconds=jnp.full(5, s))
        for s in (0.0, 1.7)
    )
    np.testing.assert_allclose(later, y, atol=1e-6)


def test_a_time_projection_of_zeros_is_none(timed, inputs):
    x, t, context, seconds = inputs
    weights = named_weights(timed)
    projections = [name for name in weights if name.endswith("time_proj.kernel")]
    stopped = with_weights(timed, weights | {n: jnp.zeros_like(weights[n]) for n in projections})
    plain_config = dataclasses.replace(TIMED, timed=False)
    plain = with_weights(
        abstract(lambda rngs: UNet(plain_config, rngs=rngs)),
        {name: w for name, w in weights.items() if name not in projections},
    )
    assert len(projections) == 4  # one per cross-attention: down, middle, and two up
    np.testing.assert_allclose(
        forward(stopped, x, t, (context,), context_seconds=seconds),
        forward(plain, x, t, (context,)),
        atol=1e-6,
    )


def test_rows_of_a_halved_level_cover_twice_the_time():
    halved = dataclasses.replace(TIMED, channels=(8, 12), attentions=((), (0,)))
    transformer = drawn(halved).down[1].attentions[0]
    rows, tokens = transformer._times(jnp.zeros((2, 3, 2, 12)), jnp.array([[0.04, 0.2]]))
    seconds = jnp.array([0.04, 0.04, 0.12, 0.12, 0.20, 0.20])
    np.testing.assert_allclose(rows[0], time_embedding(seconds, 12), atol=1e-5)
    np.testing.assert_allclose(tokens[0], rows[0, np.array([0, 4])], atol=1e-5)


def test_a_masked_token_is_not_read(timed, inputs):
    x, t, context, seconds = inputs
    mask = jnp.broadcast_to(jnp.arange(5) < 3, (2, 5))
    masked = forward(timed, x, t, (context,), (mask,), context_seconds=seconds)
    short = forward(timed, x, t, (context[:, :3],), context_seconds=seconds[:3])
    np.testing.assert_allclose(masked, short, atol=1e-5)
    nothing = forward(timed, x, t, (context,), (~mask & mask,), context_seconds=seconds)
    everything = forward(timed, x, t, (context,), (mask | ~mask,), context_seconds=seconds)
    # Float32 has steps of 0.001 at the masked scores, hence the tolerance.
    np.testing.assert_allclose(nothing, everything, atol=1e-2)


def test_every_weight_is_used(timed, inputs):
    x, t, context, seconds = inputs

    def loss(net):
        return jnp.mean(jnp.sin(3.0 * net(x, t, (context,), context_seconds=seconds)))

    grads = named_weights(jax.jit(jax.grad(loss))(timed))
    assert not [name for name, g in grads.items() if not np.abs(g).max() > 0]


def test_bfloat16_weights_compute_in_bfloat16(timed, inputs):
    x, t, context, seconds = inputs
    y = forward(timed, x, t, (context,), context_seconds=seconds)
    with jax.numpy_dtype_promotion("standard"):  # flax's GroupNorm promotes bfloat16 by itself
        half = forward(in_half(timed), x, t, (context,), context_seconds=seconds)
    assert half.dtype == jnp.bfloat16
    assert np.abs(half.astype(np.float32) - y).mean() < 0.03 * y.std()


def test_any_size_of_latents():
    net = abstract(lambda rngs: UNet(UNetConfig.audioldm2(8), rngs=rngs))
    x, loa, text = (
        jax.ShapeDtypeStruct(s, jnp.float32) for s in ((1, 250, 16, 8), (1, 8, 768), (1, 3, 1024))
    )
    y = jax.eval_shape(UNet.__call__, net, x, jax.ShapeDtypeStruct((1,), jnp.int32), (loa, text))
    assert y.shape == x.shape


def test_tiny_fits_the_miniature():
    net = abstract(lambda rngs: UNet(UNetConfig.tiny(), rngs=rngs))
    assert parameter_count(net) < 3e6
    x, loa = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, 64, 16, 8), (2, 16, 128)))
    t, seconds = jax.ShapeDtypeStruct((2,), jnp.int32), jax.ShapeDtypeStruct((16,), jnp.float32)
    assert (
        jax.eval_shape(UNet.__call__, net, x, t, (loa,), context_seconds=seconds).shape == x.shape
    )


def test_says_what_is_missing(timed, inputs):
    x, t, context, seconds = inputs
    with pytest.raises(ValueError, match="is timed: give context_seconds"):
        timed(x, t, (context,))
    with pytest.raises(ValueError, match="reads 1 contexts, got 2 and 2 masks"):
        timed(x, t, (context, context), context_seconds=seconds)
    with pytest.raises(ValueError, match="reads 1 contexts, got 1 and 2 masks"):
        timed(x, t, (context,), (None, None), context_seconds=seconds)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attentions": ((), ())}, "attentions has 2 levels, channels 1"),
        ({"heads": (2, 2, 2)}, "heads has 3 levels, channels 1"),
        ({"attentions": ((None, 1),)}, "reads context 1 of 1"),
    ],
)
def test_config_refuses_what_does_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TIMED, **change)
