"""Random small networks: there and back again is the identity, bit for bit, in any precision."""

import json
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convert import (
    adapter,
    audiomae,
    cavp,
    cnn14,
    gpt2,
    mapper,
    scheduler,
    sequence,
    synchformer,
    t5,
    timechat,
    unet,
    vae,
    vocoder,
)
from convert.table import Table
from mfm_jax.diffusion.schedule import Schedule
from mfm_jax.mapper import MapperConfig, build_mapper
from mfm_jax.mapper.fusion import FUSIONS
from mfm_jax.models.adapters import AdapterConfig, build_adapter
from mfm_jax.models.audiomae import AudioMAE, AudioMAEConfig
from mfm_jax.models.cavp import CAVP, CAVPAudio, CAVPConfig, CAVPVideo
from mfm_jax.models.cnn14 import Cnn14Config, Cnn14Tagger
from mfm_jax.models.eva_vit import EvaViTConfig
from mfm_jax.models.gpt2 import GPT2, GPT2Config
from mfm_jax.models.qformer import QFormerConfig
from mfm_jax.models.synchformer import SyncConfig, Synchformer, SynchformerConfig
from mfm_jax.models.synchformer_audio import AudioTowerConfig
from mfm_jax.models.synchformer_video import VideoTowerConfig
from mfm_jax.models.t5 import T5Config, T5Encoder
from mfm_jax.models.timechat import TimeChat, TimeChatConfig
from mfm_jax.models.unet import UNet, UNetConfig
from mfm_jax.models.vae import VAE, VAEConfig
from mfm_jax.models.vocoder import Vocoder, VocoderConfig
from mfm_jax.storage.weights import abstract, named_weights

DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)
ENCODERS = (("cavp",), ("timechat",), ("cavp", "timechat"))
few, some = st.integers(1, 3), st.integers(1, 9)
epsilons = st.floats(1e-12, 1e-3)
Draw = Callable[[st.SearchStrategy], Any]


def per(number: int, each: st.SearchStrategy) -> st.SearchStrategy:
    return st.tuples(*number * [each])


def a_gpt2(draw: Draw) -> GPT2Config:
    heads = draw(few)
    return GPT2Config(heads * draw(few), draw(few), heads, draw(some), draw(epsilons))


def a_t5(draw: Draw) -> T5Config:
    return T5Config(
        vocab=draw(some),
        width=draw(some),
        depth=draw(few),
        heads=draw(few),
        head_dim=draw(few),
        mlp_width=draw(some),
        buckets=draw(some),
        max_distance=draw(some),
        epsilon=draw(epsilons),
    )


def a_vae(draw: Draw) -> VAEConfig:
    groups = draw(few)
    return VAEConfig(
        scaling_factor=draw(st.floats(1e-3, 1e3)),
        channels=tuple(groups * n for n in draw(per(draw(st.integers(1, 3)), few))),
        resnets=draw(few),
        latent_channels=draw(few),
        groups=groups,
    )


def a_vocoder(draw: Draw) -> VocoderConfig:
    stages, blocks = draw(few), draw(few)
    rates = draw(per(stages, few))
    return VocoderConfig(
        channels=2**stages * draw(few),
        mels=draw(some),
        rates=rates,
        kernels=tuple(rate + draw(few) for rate in rates),
        block_kernels=draw(per(blocks, st.sampled_from((1, 3, 5)))),
        dilations=tuple(draw(per(draw(few), few)) for _ in range(blocks)),
    )


def a_unet(draw: Draw) -> UNetConfig:
    """Draw a UNet that diffusers supports."""
    levels, groups = draw(st.integers(1, 3)), draw(few)
    heads = draw(few | per(levels, few))
    multiple = 2 * groups * (heads if isinstance(heads, int) else math.lcm(*heads))
    # The first two transformers behind a resnet can read context 0, the next two context 1.
    routes = st.builds(
        lambda read, number: tuple(
            context if here else None for here, context in zip(read, (0, 0, 1, 1), strict=True)
        )[:number],
        per(4, st.booleans()),
        st.integers(1, 4),
    )
    attentions = [draw(st.just(()) | routes) for _ in range(levels - 1)] + [draw(routes)]
    contexts = {c for level in attentions for c in level if c is not None}
    if contexts == {1}:
        attentions[-1] = (0, *attentions[-1][1:])
        contexts = {0, 1}
    return UNetConfig(
        channels=tuple(multiple * n for n in draw(per(levels, few))),
        attentions=tuple(attentions),
        contexts=draw(per(len(contexts), some)),
        heads=heads,
        latent_channels=draw(few),
        depth=draw(st.integers(1, 2)),
        resnets=draw(st.integers(1, 2)),
        groups=groups,
    )


def an_audiomae(draw: Draw) -> AudioMAEConfig:
    patch, heads, depth = draw(few), draw(few), draw(few)
    return AudioMAEConfig(
        frames=patch * draw(some),
        mels=patch * draw(few),
        patch=patch,
        width=4 * heads * draw(few),
        depth=depth,
        heads=heads,
        mlp_ratio=draw(few),
        averaged=draw(st.integers(1, depth)),
    )


def a_cnn14(draw: Draw) -> Cnn14Config:
    widths = draw(per(cnn14.BLOCKS, few))
    return Cnn14Config(draw(some), widths, pools=cnn14.BLOCKS * ((2, 2),), dropout=0.0)


def a_cavp(draw: Draw) -> CAVPConfig:
    sizes = {"embed": draw(some), "pool": 16, "fps": 4.0, "size": 32, "hop": 250}
    return CAVPConfig(draw(few), draw(per(4, few)), audio=a_cnn14(draw), **sizes)


def a_synchformer(draw: Draw) -> SynchformerConfig:
    patch, patch_frames, stride = draw(few), draw(few), draw(few)

    def sizes() -> dict[str, int]:
        heads = draw(few)
        return {
            "width": heads * draw(few),
            "depth": draw(few),
            "heads": heads,
            "mlp_width": draw(some),
        }

    video = VideoTowerConfig(
        frames=patch_frames * draw(few),
        image=(patch * draw(few), patch * draw(few)),
        patch=patch,
        patch_frames=patch_frames,
        **sizes(),
    )
    audio = AudioTowerConfig(
        columns=patch + draw(some),
        bins=patch + draw(some),
        patch=patch,
        stride=(stride, draw(few)),
        **sizes(),
    )
    return SynchformerConfig(
        video, audio, SyncConfig(segments=draw(few), offsets=draw(some), **sizes())
    )


def a_timechat(draw: Draw) -> TimeChatConfig:
    heads, patch = draw(few), draw(few)
    d, d_vit = heads * draw(few), heads * draw(few)

    def qformer(context_width: int, words: int | None) -> QFormerConfig:
        depth = draw(few)
        sizes = draw(some), d, context_width, depth, heads, draw(some), draw(st.integers(1, depth))
        return QFormerConfig(*sizes, words=words, positions=draw(some))

    return TimeChatConfig(
        vit=EvaViTConfig(patch * draw(few), patch, d_vit, draw(few), heads, draw(some)),
        image_qformer=qformer(d_vit, draw(st.none() | some)),
        video_qformer=qformer(d, None),
        frames=draw(some),
        window=0,
        stride=1,
        llama_width=draw(st.none() | some),
        vocabulary=(),
    )


def a_schedule(draw: Draw) -> Schedule:
    betas = st.floats(1e-6, 0.1)
    return Schedule(draw(st.sampled_from(("epsilon", "v"))), draw(some), draw(betas), draw(betas))


def a_sequence(draw: Draw) -> MapperConfig:
    gpt2 = a_gpt2(draw)
    encoders = ("clap", 1, draw(some)), ("t5", 128, draw(some))
    return MapperConfig(encoders, gpt2.width, fusion="wrapped", gpt2=gpt2)


def a_mapper(draw: Draw) -> MapperConfig:
    gpt2, head = a_gpt2(draw), draw(st.booleans())
    encoders = [(name, draw(some), draw(some)) for name in draw(st.sampled_from(ENCODERS))]
    return MapperConfig(
        tuple(encoders),
        draw(some) if head else gpt2.width,
        kind=draw(st.sampled_from(("gpt2", "linear_pooled", "linear_flat"))),
        fusion=draw(st.sampled_from(sorted(FUSIONS))),
        gpt2=gpt2,
        head=head,
    )


def an_adapter(draw: Draw) -> AdapterConfig:
    names = draw(st.sampled_from(ENCODERS))
    encoders = tuple((name, draw(few), draw(some)) for name in names)
    kind = draw(st.sampled_from(("features", "attention")))
    sizes = {name: draw(some) for name in ("width", "columns")}
    stems = draw(st.sampled_from(((), names[:1])))
    dilations = draw(st.sampled_from(((1, 1), (), (1, 2, 4))))
    return AdapterConfig(a_unet(draw), encoders, kind, **sizes, stems=stems, dilations=dilations)


class Network(NamedTuple):
    config: Callable[[Draw], Any]
    build: Callable
    table: Callable[[Any], Table]
    examples: int = 10


def always(table: Table) -> Callable[[Any], Table]:
    return lambda config: table


NETWORKS = {
    "cavp": Network(a_cavp, CAVP, always(cavp.TABLE)),
    "cavp's video half": Network(a_cavp, CAVPVideo, always(cavp.VIDEO_TABLE)),
    "cavp's audio half": Network(a_cavp, CAVPAudio, always(cavp.AUDIO_TABLE)),
    "cnn14": Network(a_cnn14, partial(Cnn14Tagger, classes=7), always(cnn14.TABLE)),
    "timechat": Network(a_timechat, TimeChat, timechat.table),
    "audiomae": Network(an_audiomae, AudioMAE, audiomae.table),
    "synchformer": Network(a_synchformer, Synchformer, synchformer.table),
    "gpt2": Network(a_gpt2, GPT2, gpt2.table),
    "t5": Network(a_t5, T5Encoder, always(t5.TABLE)),
    "sequence": Network(a_sequence, build_mapper, sequence.table),
    "mapper": Network(a_mapper, build_mapper, mapper.table, examples=20),
    "adapter": Network(an_adapter, build_adapter, adapter.table, examples=5),
    "unet": Network(a_unet, UNet, always(unet.TABLE), examples=5),
    "vae": Network(a_vae, VAE, always(vae.TABLE)),
    "vocoder": Network(a_vocoder, Vocoder, vocoder.table),
}


def random_weights(table: Table, shapes: dict[str, tuple], side: str, seed: int) -> dict:
    """Return weights of one `side` of a table, in a precision drawn for each row."""
    rng = np.random.default_rng(seed)
    weights = {}
    for unit in table.units(shapes, side):
        dtype = DTYPES[rng.integers(len(DTYPES))]
        for name in getattr(unit, side):
            weights[name] = rng.standard_normal(shapes[name], np.float32).astype(dtype)
    return weights


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape), name
        assert a[name].tobytes() == b[name].tobytes(), name


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_weights_there_and_back(network):
    @settings(max_examples=network.examples, deadline=None, derandomize=True)
    @given(st.data(), st.integers(0, 2**32 - 1))
    def both_ways(data, seed):
        config = network.config(data.draw)
        table = network.table(config)
        net = abstract(partial(network.build, config))
        shapes = {name: tuple(leaf.shape) for name, leaf in named_weights(net).items()}
        their_shapes = table.shapes(shapes)

        ours = random_weights(table, shapes, "ours", seed)
        assert ours.keys() == shapes.keys()
        there = dict(table.to_theirs(ours))
        assert {key: array.shape for key, array in there.items()} == their_shapes
        assert_same(dict(table.to_ours(there)), ours)

        theirs = random_weights(table, their_shapes, "theirs", seed) | dict(table.computed(shapes))
        theirs |= {row.copy: theirs[row.source] for row in table.tied}
        assert theirs.keys() == their_shapes.keys()
        here = dict(table.to_ours(theirs))
        assert {name: array.shape for name, array in here.items()} == shapes
        assert_same(dict(table.to_theirs(here)), theirs)

    both_ways()


CONFIGS = {
    "gpt2": (a_gpt2, gpt2.config, partial(gpt2.their_config, vocabulary=1)),
    "t5": (a_t5, t5.config, t5.their_config),
    "unet": (a_unet, unet.config, unet.their_config),
    "vae": (a_vae, vae.config, vae.their_config),
    "vocoder": (a_vocoder, vocoder.config, vocoder.their_config),
    "scheduler": (a_schedule, scheduler.config, scheduler.their_config),
}


@pytest.mark.parametrize(("draw_config", "read", "write"), CONFIGS.values(), ids=CONFIGS)
def test_configs_there_and_back(draw_config, read, write):
    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(st.data())
    def both_ways(data):
        config = draw_config(data.draw)
        theirs = write(config)
        assert read(json.loads(json.dumps(theirs))) == config
        assert write(read(theirs)) == theirs

    both_ways()
