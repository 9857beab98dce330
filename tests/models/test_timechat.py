"""TimeChat's visual branch against its golden run, step by step and whole."""

import dataclasses
import json
from functools import partial

import jax
import numpy as np
import pytest
from einops import rearrange
from jax import numpy as jnp
from safetensors.numpy import load_file

from convert.timechat import table
from mfm_jax.models.eva_vit import EvaViT, EvaViTConfig
from mfm_jax.models.qformer import QFormerConfig
from mfm_jax.models.timechat import TimeChat, TimeChatConfig, normalise
from mfm_jax.storage.weights import abstract, cast, named_weights, parameter_count, with_weights
from mfm_jax.text.wordpiece import encode
from tests.bundles import filled

TOLERANCE = 1e-4  # tests/reference/timechat/README.md
QUERIES = 5  # per frame, of the golden run
apply = jax.jit(lambda module, *inputs, **more: module(*inputs, **more))


@pytest.fixture(scope="module")
def golden(reference):
    return load_file(reference / "timechat/golden/io.safetensors")


@pytest.fixture(scope="module")
def build(reference):
    """`build(window, stride)`: the golden run's network."""
    golden = reference / "timechat/golden"
    sizes = json.loads((golden / "config.json").read_text())
    vit, bert = sizes["vit"], sizes["bert"]
    image = QFormerConfig(
        queries=sizes["num_query"],
        width=bert["hidden_size"],
        context_width=vit["embed_dim"],
        depth=bert["num_hidden_layers"],
        heads=bert["num_attention_heads"],
        mlp_width=bert["intermediate_size"],
        cross_every=sizes["qformer_cross_attention_freq"],
        words=bert["vocab_size"],
        positions=bert["max_position_embeddings"],
    )
    config = TimeChatConfig(
        vit=EvaViTConfig(
            image=vit["img_size"],
            patch=vit["patch_size"],
            width=vit["embed_dim"],
            depth=vit["depth"],
            heads=vit["num_heads"],
            mlp_width=int(vit["embed_dim"] * vit["mlp_ratio"]),
        ),
        image_qformer=image,
        video_qformer=dataclasses.replace(
            image,
            queries=sizes["num_video_query"],
            context_width=image.width,
            depth=sizes["video_qformer_layers"],
            cross_every=sizes["video_qformer_cross_attention_freq"],
            words=None,
        ),
        frames=sizes["max_frame_pos"],
        window=0,
        stride=0,
        llama_width=sizes["llama_dim"],
        vocabulary=(),
    )
    weights = dict(table(config).to_ours(load_file(golden / "weights.safetensors")))
    weights = {name: jax.device_put(array) for name, array in weights.items()}

    def build(window: int, stride: int) -> TimeChat:
        sized = dataclasses.replace(config, window=window, stride=stride)
        return with_weights(abstract(lambda rngs: TimeChat(sized, rngs=rngs)), weights)

    return build


@pytest.fixture(scope="module")
def inputs(golden):
    """Pixels, ids and mask of the golden run: 2 clips of 7 frames."""
    ids, mask = (
        rearrange(golden[f"in.timestamp_{name}"], "(b t) l -> b t l", b=2)
        for name in ("input_ids", "attention_mask")
    )
    pixels = rearrange(golden["in.image"], "b c t h w -> b t h w c")
    return jnp.asarray(pixels), jnp.asarray(ids, jnp.int32), jnp.asarray(mask, bool)


def vision_steps(model: TimeChat, pixels) -> dict[str, jax.Array]:
    """Every activation of the ViT under the golden run's names."""
    frames = rearrange(pixels, "b t h w c -> (b t) h w c")
    steps = {"vit.patch_embed": rearrange(apply(model.vit.patch, frames), "b h w d -> b (h w) d")}
    x = jax.jit(EvaViT.embed)(model.vit, frames)
    for i, block in enumerate(model.vit.blocks):
        x = steps[f"vit.block_{i}"] = apply(block, x)
    return steps | {"ln_vision": apply(model.vit_norm, x)}


def qformer_steps(model: TimeChat, features, *text) -> dict[str, jax.Array]:
    """Every activation of the image Q-Former."""
    qformer = model.image_qformer
    ids, mask = text or (None, None)
    x, seen = qformer.embed(len(features), ids), qformer.visible(len(features), mask)
    steps = {"embeddings": x}
    for i, block in enumerate(qformer.blocks):
        x = steps[f"layer_{i}"] = apply(block, x, features, mask=seen)
    return steps | {"last_hidden_state": apply(qformer, features, *text)}


@pytest.mark.parity
def test_every_activation_of_the_golden_run(parity, golden, build, inputs):
    pixels, ids, mask = inputs
    model = build(0, 0)
    ours = vision_steps(model, pixels)
    text = [rearrange(x, "b t l -> (b t) l") for x in (ids, mask)]
    for prefix, words, more in (("text", text, (ids, mask)), ("notext", [], ())):
        steps = qformer_steps(model, ours["ln_vision"], *words)
        ours |= {f"{prefix}.qformer.{name}": x for name, x in steps.items()}
        frames = jax.jit(TimeChat.read_frames)(model, pixels, *more)
        for window, stride in ((3, 3), (4, 2), (32, 32), (0, 0)):
            windowed = build(window, stride)
            video = jax.jit(TimeChat.read_windows)(windowed, frames)
            name = f"{prefix}.w{window}s{stride}"
            ours |= {
                f"{name}.video_tokens": video,
                f"{name}.llama_tokens": apply(model.llama, video),
            }
    assert ours.keys() == {n for n in golden if not n.startswith(("in.", "pre."))}
    for name, x in ours.items():
        parity("TimeChat", f"golden {name}", x, golden[name], TOLERANCE)


@pytest.mark.parity
def test_encode_gives_the_golden_tokens(parity, golden, build, inputs):
    tokens = jax.jit(TimeChat.encode)(build(3, 3), *inputs)
    assert tokens.frames.shape == (2, 7, 11, 24)
    parity("TimeChat encode", "golden text.w3s3.video_tokens", tokens.video,
           golden["text.w3s3.video_tokens"], TOLERANCE)  # fmt: skip
    parity("TimeChat encode", "golden text.w3s3.llama_tokens", tokens.llama,
           golden["text.w3s3.llama_tokens"], TOLERANCE)  # fmt: skip


@pytest.mark.parity
def test_normalised_pixels(parity, golden):
    pixels = golden["pre.pixels_float"].astype(np.uint8)  # the original truncates as well
    ours = normalise(jnp.asarray(rearrange(pixels, "c t h w -> 1 t h w c")))
    theirs = rearrange(golden["pre.normalised"], "c t h w -> 1 t h w c")
    parity("TimeChat pixels", "golden pre.normalised", ours, theirs, 1e-6)


def test_a_frame_changes_its_own_windows_only(build):
    """Frames 0-3, 2-5, 4-6 and 6: frame 5 is in the second and the third."""
    frames = jax.random.normal(jax.random.key(0), (2, 7, 11, 24))
    run = jax.jit(TimeChat.read_windows)
    one, two = (run(build(4, 2), x) for x in (frames, frames.at[:, 5].multiply(-1.0)))
    changed = np.abs(np.asarray(one - two)).reshape(2, 4, 4, -1).max(axis=(0, 2, 3))
    assert changed[0] == changed[3] == 0.0
    assert min(changed[1], changed[2]) > 1e-2


def test_the_video_stage_reads_padding(build, inputs):
    """As the original does: ids behind the mask reach the video tokens, but no query before."""
    pixels, ids, mask = inputs
    run = jax.jit(TimeChat.encode)
    one = run(build(3, 3), pixels, ids, mask)
    two = run(build(3, 3), pixels, jnp.where(mask, ids, 7), mask)
    np.testing.assert_array_equal(one.frames[:, :, :QUERIES], two.frames[:, :, :QUERIES])
    assert jnp.abs(one.video - two.video).max() > 1e-2


def test_tokens_nobody_reads_cost_nothing(build, inputs):
    """Taking the frame tokens alone compiles to the frames' part of the network alone."""
    model = build(0, 0)

    def flops(run) -> float:
        return jax.jit(run).lower(model, *inputs).compile().cost_analysis()["flops"]

    frames = flops(lambda m, *x: m.read_frames(*x))
    assert flops(lambda m, *x: m.encode(*x).frames) == frames
    assert flops(lambda m, *x: m.encode(*x).video) > 1.02 * frames


@pytest.mark.parametrize(
    ("window", "stride", "frames", "expected"),
    [
        (3, 3, 7, [(0, 3), (3, 6), (6, 7)]),
        (4, 2, 7, [(0, 4), (2, 6), (4, 7), (6, 7)]),
        (32, 32, 7, [(0, 7)]),
        (0, 0, 7, [(0, 7)]),
        (32, 32, 96, [(0, 32), (32, 64), (64, 96)]),
    ],
)
def test_windows(window, stride, frames, expected):
    config = dataclasses.replace(TimeChatConfig.tiny(), window=window, stride=stride)
    assert [(w.start, w.stop) for w in config.windows(frames)] == expected


def test_video_tokens_have_the_time_of_their_windows(build):
    seconds = jnp.array(
        [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0]]
    )
    times = build(4, 2).config.token_seconds(seconds)
    expected = np.repeat([[1.5, 3.5, 5.0, 6.0], [3.0, 7.0, 10.0, 12.0]], 4, axis=1)
    np.testing.assert_array_equal(times, expected)


def test_tiny_reads_frames_and_their_times():
    config = TimeChatConfig.tiny()
    model = filled(abstract(partial(TimeChat, config)), 0)
    assert 0.5e6 < parameter_count(model) < 0.9e6
    texts = [f"This frame is sampled at {i / 4:.1f} second." for i in range(8)]
    ids, mask = (jnp.asarray(x)[None] for x in encode(texts, config.vocabulary))
    pixels = jax.random.randint(jax.random.key(0), (1, 8, 64, 64, 3), 0, 256).astype(jnp.uint8)

    def loss(model, ids):
        tokens = model.encode(normalise(pixels), ids, mask)
        assert tokens.llama is None
        assert tokens.frames.shape == (1, 8, 14, 96)
        return jnp.mean(tokens.video[..., 0] ** 3), tokens.video

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, video), gradients = run(model, ids)
    assert video.shape == (1, 16, 96)
    # A key's bias shifts all scores alike, so it has no gradient; every other weight has one.
    for name, gradient in named_weights(gradients).items():
        assert name.endswith("k.bias") or np.abs(gradient).max() > 0, name
    (_, other), _ = run(model, jnp.flip(ids, 1))
    assert jnp.abs(other - video).max() > 1e-4  # the times, exchanged


def test_computes_in_the_precision_of_its_weights(build, inputs):
    half = jax.eval_shape(partial(cast, dtype=jnp.bfloat16), build(3, 3))
    with jax.numpy_dtype_promotion("standard"):  # flax's LayerNorm promotes bfloat16 by itself
        tokens = jax.eval_shape(TimeChat.encode, half, *inputs)
    assert {x.dtype for x in tokens} == {jnp.dtype(jnp.bfloat16)}


def test_released_sizes():
    """Counts and shapes of reference/timechat/SPEC.md, sections 1 and 7; nothing is allocated."""
    config = TimeChatConfig.timechat_7b(())
    model = abstract(lambda rngs: TimeChat(config, rngs=rngs))
    assert parameter_count(model.vit) == 985_894_528
    assert parameter_count(model.vit_norm) == 2_816
    assert parameter_count(model.image_qformer) == 185_660_160 + 24_576
    assert parameter_count(model.video_qformer) == 18_905_088 + 24_576
    assert parameter_count(model.llama) == 3_149_824
    tokens = jax.eval_shape(
        TimeChat.encode,
        model,
        jax.ShapeDtypeStruct((1, 96, 224, 224, 3), jnp.float32),
        jax.ShapeDtypeStruct((1, 96, 12), jnp.int32),
        jax.ShapeDtypeStruct((1, 96, 12), bool),
    )
    assert [x.shape for x in tokens] == [(1, 96, 44, 768), (1, 96, 768), (1, 96, 4096)]


def test_what_does_not_fit_is_refused(build, inputs):
    tiny = TimeChatConfig.tiny()
    with pytest.raises(ValueError, match="stride"):
        dataclasses.replace(tiny, stride=0)
    with pytest.raises(ValueError, match="read widths 96 and 96"):
        dataclasses.replace(tiny, vit=dataclasses.replace(tiny.vit, width=80))
    with pytest.raises(ValueError, match="13 frames, at most 12"):
        build(3, 3).read_frames(jnp.zeros((1, 13, 42, 42, 3)))
