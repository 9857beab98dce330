import json
import runpy

import jax
import numpy as np
import optax
import pytest
import torch
import transformers
from flax import nnx
from jax import numpy as jnp
from safetensors.numpy import load_file

from convert.audiomae import table as released_table
from convert.table import Row, Table
from mfm_jax.models.audiomae import (
    LOA,
    AudioMAE,
    AudioMAEConfig,
    AudioMAEDecoder,
    masked_patches,
    patchify,
    pool_loa,
    pretraining_loss,
    random_visible,
    reconstruction_loss,
    sincos_pos_embed,
)
from mfm_jax.storage.weights import abstract, named_weights, parameter_count, with_weights
from tests.bundles import in_half

SEED = 31415  # of the recipe behind the goldens
GOLDEN = AudioMAEConfig(frames=256, mels=64, width=48, depth=12, heads=4)
SMALL = AudioMAEConfig(
    frames=32,
    mels=24,
    patch=8,
    width=20,
    depth=2,
    heads=5,
    averaged=2,
    decoder_width=12,
    decoder_depth=1,
    decoder_heads=3,
)


class Pair(nnx.Module):
    """Encoder and decoder in one tree, to load and to train them together."""

    def __init__(self, config: AudioMAEConfig, *, rngs: nnx.Rngs) -> None:
        self.encoder = AudioMAE(config, rngs=rngs)
        self.decoder = AudioMAEDecoder(config, rngs=rngs)


@pytest.fixture(scope="module")
def small() -> Pair:
    return jax.jit(lambda: Pair(SMALL, rngs=nnx.Rngs(0)))()


@pytest.fixture
def fbank() -> jax.Array:
    return jax.random.normal(jax.random.key(1), (2, SMALL.frames, SMALL.mels))


def _load(config, theirs) -> AudioMAE:
    network = abstract(lambda rngs: AudioMAE(config, rngs=rngs))
    ours = released_table(config).to_ours(theirs)
    return with_weights(network, {name: jax.device_put(a) for name, a in ours})


@jax.jit
def _stages(network: AudioMAE, fbank):
    """Patches before positions, the stream after every block, and the features."""
    stages = {"patch_embed": network.patch_embed(patchify(fbank, network.config.patch))}
    x = network.embed(fbank)
    for number, block in enumerate(network.blocks):
        x = stages[f"block{number}"] = block(x)
    return stages | {"embed": network(fbank)}


def _tolerance(stage: str) -> float:
    """Those of the goldens' README."""
    return 3e-5 if stage == "embed" else 5e-5


@pytest.mark.parity
def test_tiny_golden(parity, reference):
    golden = np.load(reference / "audiomae" / "golden" / "tiny.npz")
    network = _load(GOLDEN, load_file(reference / "audiomae" / "golden" / "tiny.safetensors"))
    stages = _stages(network, golden["x"][:, 0])
    assert set(golden) - {"x"} == set(stages)
    for stage, ours in stages.items():
        parity(f"AudioMAE {stage}", f"golden tiny {stage}", ours, golden[stage], _tolerance(stage))
    fresh = sincos_pos_embed(GOLDEN.grid, GOLDEN.width)
    parity("AudioMAE positions 16 x 4", "golden tiny", fresh, network.pos_embed[...], 1e-7)


@pytest.mark.parity
def test_tiny_golden_near_epsilon(parity, reference):
    folder = reference / "audiomae" / "golden"
    golden = np.load(folder / "tiny_smallscale.npz")
    weights = load_file(folder / "tiny.safetensors")
    small = ("patch_embed.", "cls_token", "pos_embed")
    weights = {k: np.float32(0.01) * v if k.startswith(small) else v for k, v in weights.items()}
    stages = _stages(_load(GOLDEN, weights), np.load(folder / "tiny.npz")["x"][:, 0])
    for stage, theirs in golden.items():
        against = f"golden tiny_smallscale {stage}"
        parity(f"AudioMAE {stage}", against, stages[stage], theirs, _tolerance(stage))


@pytest.mark.slow
@pytest.mark.parity
def test_full_golden(parity, reference):
    folder = reference / "audiomae"
    golden = np.load(folder / "golden" / "full.npz")
    manifest = json.loads((folder / "manifest.json").read_text())
    encoder = {k: v for k, v in manifest.items() if not k.startswith(("decoder", "mask"))}
    config = AudioMAEConfig.base()
    weights = runpy.run_path(str(folder / "recipe.py"))["weights"](encoder, SEED)
    stages = _stages(_load(config, weights), golden["fbank"])
    embed = stages["embed"]
    found = {
        "embed_rows": embed[0, ::16],
        "embed_cls_and_first8": embed[0, :9],
        "rows_patch_embed": stages["patch_embed"][0, ::64],
    }
    found |= {f"rows_block{n}": stages[f"block{n}"][0, ::64] for n in (0, 8, 9, 10, 11)}
    for size in (8, 4, 2):
        found[f"loa_t{size}_f{size}"] = pool_loa(embed, config.grid, (size, size))
    pooled = found["loa_t8_f8"]
    found["loa_t8_f8_l2normed"] = pooled / jnp.linalg.norm(pooled, axis=-1, keepdims=True)
    assert set(golden) == set(found) | {"fbank", "wave_int16", "uncond"}
    assert golden["uncond"].shape[1:] == (LOA().tokens, config.width)
    for name, ours in found.items():
        tolerance = 5e-5 if name.startswith("rows") else 3e-5
        parity(f"AudioMAE base {name}", f"golden full {name}", ours, golden[name], tolerance)


@pytest.mark.parity
def test_positions_golden(parity, reference):
    golden = np.load(reference / "audiomae" / "golden" / "pos_embed.npz")
    config = AudioMAEConfig.base()
    encoder = sincos_pos_embed(config.grid, config.width)
    decoder = sincos_pos_embed(config.grid, config.decoder_width)
    parity("AudioMAE positions", "golden pos_embed", encoder, golden["pos_embed"], 1e-7)
    first = golden["decoder_pos_embed_first_rows"]
    parity("AudioMAE decoder positions", "golden pos_embed", decoder[: len(first)], first, 1e-7)


def test_a_fresh_network_has_the_positions(small):
    positions = small.encoder.pos_embed[...]
    np.testing.assert_array_equal(positions, sincos_pos_embed((4, 3), 20))
    np.testing.assert_array_equal(small.decoder.pos_embed[...], sincos_pos_embed((4, 3), 12))
    assert len(np.unique(np.asarray(positions), axis=0)) == 13


def test_decoder_has_the_size_of_the_original(reference):
    manifest = json.loads((reference / "audiomae" / "manifest.json").read_text())
    parts = [s for k, (s, _) in manifest.items() if k.startswith(("decoder", "mask"))]
    network = abstract(lambda rngs: AudioMAEDecoder(AudioMAEConfig.base(), rngs=rngs))
    assert parameter_count(network) == sum(int(np.prod(s)) for s in parts)


def test_tiny_keeps_the_token_rate_and_about_a_million_weights():
    tiny, base = AudioMAEConfig.tiny(), AudioMAEConfig.base()
    networks = [abstract(lambda rngs, n=n: n(tiny, rngs=rngs)) for n in (AudioMAE, AudioMAEDecoder)]
    assert 0.9e6 < sum(map(parameter_count, networks)) < 1.2e6
    assert tiny.grid == (16, 8)
    assert tiny.loa((1, 8)).token_seconds == base.loa((1, 8)).token_seconds


@pytest.mark.parametrize(
    ("change", "message"),
    [({"frames": 250}, "do not tile"), ({"mels": 100}, "do not tile"), ({"averaged": 13}, "13")],
)
def test_sizes_that_do_not_fit_are_errors(change, message):
    with pytest.raises(ValueError, match=message):
        AudioMAEConfig(**change)


def test_a_filter_bank_of_another_size_is_an_error(small):
    with pytest.raises(ValueError, match="32 frames x 24 bins, got 40 x 24"):
        small.encoder(jnp.zeros((1, 40, 24)))


def test_bfloat16_weights_compute_in_bfloat16(small, fbank):
    forward = jax.jit(lambda network: network(fbank))
    exact = forward(small.encoder)
    with jax.numpy_dtype_promotion("standard"):  # flax's LayerNorm promotes bfloat16 by itself
        rough = forward(in_half(small.encoder))
    assert rough.dtype == jnp.bfloat16
    np.testing.assert_allclose(exact, rough.astype(jnp.float32), atol=0.1)


# LOA


def test_loa_tokens_and_their_times():
    assert LOA().tokens == 8
    assert LOA().token_seconds == pytest.approx(1.28)
    np.testing.assert_allclose(LOA().times(), 0.64 + 1.28 * np.arange(8), rtol=1e-6)
    fine = AudioMAEConfig.tiny().loa((2, 4))
    assert (fine.shape, fine.tokens) == ((8, 2), 16)
    np.testing.assert_allclose(fine.times(), np.repeat(0.16 + 0.32 * np.arange(8), 2), rtol=1e-6)


def test_pooling_is_mean_and_max_of_each_cell_in_time_order():
    grid, pool = (6, 4), (3, 2)
    tokens = np.random.default_rng(0).normal(size=(2, 25, 5)).astype(np.float32)
    cells = tokens[:, 1:].reshape(2, 6, 4, 5)
    expected = []
    for t in (0, 3):
        for f in (0, 2):
            cell = cells[:, t : t + 3, f : f + 2].reshape(2, 6, 5)
            expected.append((cell.mean(axis=1) + cell.max(axis=1)) / 2)
    ours = pool_loa(jnp.asarray(tokens), grid, pool)
    np.testing.assert_allclose(ours, np.stack(expected, axis=1), atol=1e-6)
    np.testing.assert_array_equal(pool_loa(jnp.asarray(tokens), grid, (1, 1)), tokens[:, 1:])


@pytest.mark.parametrize("pool", [(5, 8), (8, 3), (128, 8), (0, 8)])
def test_pools_that_do_not_divide_the_grid_are_errors(pool):
    with pytest.raises(ValueError, match="choose a divisor of"):
        LOA(pool=pool)


def test_tokens_of_another_grid_are_an_error():
    with pytest.raises(ValueError, match="512 tokens are not a class token and a grid of 64 x 8"):
        pool_loa(jnp.zeros((1, 512, 4)))


# Pretraining

VITMAE = Table(
    rows=(
        Row("vit.embeddings.cls_token", "encoder.cls_token", "1 1 d -> d"),
        Row("vit.embeddings.position_embeddings", "encoder.pos_embed", "1 l d -> l d"),
        Row(
            "vit.embeddings.patch_embeddings.projection.weight",
            "encoder.patch_embed.kernel",
            "o 1 p q -> (p q) o",
        ),
        Row("vit.embeddings.patch_embeddings.projection.bias", "encoder.patch_embed.bias"),
        Row("vit.layernorm.weight", "encoder.norm.scale"),
        Row("vit.layernorm.bias", "encoder.norm.bias"),
        Row("decoder.mask_token", "decoder.mask_token", "1 1 d -> d"),
        Row("decoder.decoder_pos_embed", "decoder.pos_embed", "1 l d -> l d"),
        Row("decoder.decoder_embed.weight", "decoder.embed.kernel", "o i -> i o"),
        Row("decoder.decoder_embed.bias", "decoder.embed.bias"),
        Row("decoder.decoder_norm.weight", "decoder.norm.scale"),
        Row("decoder.decoder_norm.bias", "decoder.norm.bias"),
        Row("decoder.decoder_pred.weight", "decoder.pred.kernel", "o i -> i o"),
        Row("decoder.decoder_pred.bias", "decoder.pred.bias"),
        *(
            Row(f"{theirs}.{part}.{kind}", f"{ours}.blocks.*.{name}.{leaf}", move)
            for theirs, ours in (
                ("vit.layers.*", "encoder"),
                ("decoder.decoder_layers.*", "decoder"),
            )
            for part, name in (
                ("attention.q_proj", "attn.q"),
                ("attention.k_proj", "attn.k"),
                ("attention.v_proj", "attn.v"),
                ("attention.o_proj", "attn.o"),
                ("mlp.fc1", "mlp.up"),
                ("mlp.fc2", "mlp.down"),
                ("layernorm_before", "attn_norm"),
                ("layernorm_after", "mlp_norm"),
            )
            for kind, leaf, move in (
                ("weight", "scale", None) if "norm" in name else ("weight", "kernel", "o i -> i o"),
                ("bias", "bias", None),
            )
        ),
    ),
)


@pytest.mark.parity
def test_pretraining_agrees_with_a_plain_masked_autoencoder(parity):
    config = AudioMAEConfig(
        frames=40,
        mels=40,
        patch=8,
        width=24,
        depth=3,
        heads=3,
        mlp_ratio=2,
        decoder_width=20,
        decoder_depth=2,
        decoder_heads=5,
    )
    theirs = transformers.ViTMAEForPreTraining(
        transformers.ViTMAEConfig(
            image_size=config.frames,
            patch_size=config.patch,
            num_channels=1,
            hidden_size=config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            intermediate_size=config.mlp_ratio * config.width,
            decoder_hidden_size=config.decoder_width,
            decoder_num_hidden_layers=config.decoder_depth,
            decoder_num_attention_heads=config.decoder_heads,
            decoder_intermediate_size=config.mlp_ratio * config.decoder_width,
            layer_norm_eps=1e-6,
            mask_ratio=0.7,
            norm_pix_loss=True,
        )
    ).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    state = {k: v.numpy() for k, v in theirs.state_dict().items()}
    pair = with_weights(
        abstract(lambda rngs: Pair(config, rngs=rngs)),
        {name: jax.device_put(a) for name, a in VITMAE.to_ours(state)},
    )
    fbank = np.random.default_rng(2).normal(size=(2, 40, 40)).astype(np.float32)
    noise = np.random.default_rng(3).random((2, 25)).astype(np.float32)
    with torch.no_grad():
        out = theirs(torch.from_numpy(fbank[:, None]), noise=torch.from_numpy(noise))
    visible = jnp.asarray(np.sort(np.argsort(noise, axis=1)[:, :7], axis=1))
    masked = masked_patches(visible, config.patches)
    np.testing.assert_array_equal(masked, out.mask.numpy().astype(bool))
    predicted = jax.jit(lambda x: pair.decoder(pair.encoder.encode_visible(x, visible), visible))(
        fbank
    )
    loss = reconstruction_loss(predicted, patchify(jnp.asarray(fbank), config.patch), masked)
    against = "transformers ViTMAEForPreTraining"
    parity("AudioMAE pretraining, predicted patches", against, predicted, out.logits.numpy(), 1e-4)
    parity("AudioMAE pretraining, loss", against, loss, out.loss.numpy(), 1e-5)


@pytest.mark.parametrize(
    ("patches", "ratio", "stay"), [(512, 0.8, 102), (128, 0.75, 32), (9, 0.0, 9)]
)
def test_random_mask_keeps_its_share_and_is_unstructured(patches, ratio, stay):
    visible = random_visible(jax.random.key(0), 3, patches, ratio)
    assert visible.shape == (3, stay)
    assert all(len(set(row)) == stay for row in visible.tolist())
    assert np.all(np.diff(visible, axis=1) > 0)
    masked = masked_patches(visible, patches)
    assert np.all(masked.sum(axis=1) == patches - stay)
    assert not np.take_along_axis(np.asarray(masked), np.asarray(visible), axis=1).any()
    if ratio:
        assert len({tuple(row) for row in visible.tolist()}) == 3


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 0.99])
def test_ratios_that_leave_nothing_are_errors(ratio):
    with pytest.raises(ValueError, match="mask ratio"):
        random_visible(jax.random.key(0), 1, 12, ratio)


def test_a_loss_without_masked_patches_is_an_error(small, fbank):
    with pytest.raises(ValueError, match="masks none of 12"):
        pretraining_loss(small.encoder, small.decoder, fbank, key=jax.random.key(0), ratio=0.0)


def test_visible_encoder_with_nothing_masked_is_the_encoder(small, fbank):
    network = small.encoder
    visible = random_visible(jax.random.key(2), 2, SMALL.patches, 0.0)
    encode = jax.jit(lambda visible: network.encode_visible(fbank, visible))
    last = jax.jit(lambda: network.norm(_stages(network, fbank)["block1"]))()
    np.testing.assert_allclose(encode(visible), last, atol=1e-5)
    order = jnp.asarray([[7, 2, 11, 0, 1, 3, 4, 5, 6, 8, 9, 10]] * 2)
    np.testing.assert_allclose(encode(order)[:, 1:], last[:, 1:][:, order[0]], atol=1e-5)


def test_visible_encoder_does_not_see_masked_patches(small, fbank):
    visible = random_visible(jax.random.key(2), 2, SMALL.patches, 0.5)
    weight = jax.random.normal(jax.random.key(3), (2, 1 + visible.shape[1], SMALL.width))
    gradient = jax.jit(
        jax.grad(lambda fbank: jnp.sum(weight * small.encoder.encode_visible(fbank, visible)))
    )(fbank)
    reach = np.abs(patchify(gradient, SMALL.patch)).max(axis=-1) > 0
    np.testing.assert_array_equal(reach, ~masked_patches(visible, SMALL.patches))


def test_only_masked_patches_matter_in_the_loss():
    keys = jax.random.split(jax.random.key(0), 3)
    predicted = jax.random.normal(keys[0], (2, 12, 64))
    target = jax.random.normal(keys[1], (2, 12, 64))
    masked = masked_patches(random_visible(keys[2], 2, 12, 0.75), 12)
    gradient = jax.jit(jax.grad(reconstruction_loss))(predicted, target, masked)
    np.testing.assert_array_equal(np.abs(gradient).max(axis=-1) > 0, masked)
    # A level and a gain of a patch do not matter, since every target patch is normalised.
    loss = reconstruction_loss(predicted, target, masked)
    np.testing.assert_allclose(
        reconstruction_loss(predicted, 3.0 * target + 5.0, masked), loss, rtol=1e-4
    )


def test_gradient_reaches_every_weight_but_the_positions(small, fbank):
    def loss(pair):
        return pretraining_loss(pair.encoder, pair.decoder, fbank, key=jax.random.key(2), ratio=0.5)

    gradients = named_weights(jax.jit(jax.grad(loss))(small))
    still = {name for name, g in gradients.items() if not np.any(g)}
    # A bias of the keys shifts all scores of a query alike, so its gradient is rounding at most.
    keys = {name for name in gradients if name.endswith("attn.k.bias")}
    assert still - keys == {"encoder.pos_embed", "decoder.pos_embed"}


def _structured(key, batch: int):
    """Steady tones that start at random times: what is masked follows from what is seen."""
    pitch, start = 24.0 * jax.random.uniform(key, (2, batch, 1, 1))
    time, bin = jnp.arange(32.0)[None, :, None], jnp.arange(24.0)[None, None, :]
    tone = jnp.exp(-0.5 * ((bin - pitch) / 2.0) ** 2)
    return jnp.where(time >= start, tone, 0.1 * tone)


def test_loss_falls_in_twenty_steps(small):
    graph, weights = nnx.split(small)
    optimiser = optax.adam(1e-2)

    @jax.jit
    def step(weights, moments, key):
        def loss(weights):
            pair = nnx.merge(graph, weights)
            fbank = _structured(key, 16)
            return pretraining_loss(pair.encoder, pair.decoder, fbank, key=key, ratio=0.5)

        value, gradient = jax.value_and_grad(loss)(weights)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
            updates, moments = optimiser.update(gradient, moments, weights)
        return optax.apply_updates(weights, updates), moments, value

    moments, losses = optimiser.init(weights), []
    for key in jax.random.split(jax.random.key(7), 20):
        weights, moments, value = step(weights, moments, key)
        losses.append(float(value))
    # Normalised targets: to predict each patch as its mean costs 1, whatever the data.
    assert losses[0] > 0.9
    assert np.mean(losses[-5:]) < 0.8
