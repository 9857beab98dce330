"""HiFi-GAN against transformers' SpeechT5HifiGan."""

import jax
import numpy as np
import pytest
import torch
import transformers
from jax import numpy as jnp
from safetensors.numpy import load_file

from convert.source import open_weights
from convert.spelling import spelled
from convert.vocoder import table
from mfm_jax.models.vocoder import Vocoder, VocoderConfig
from mfm_jax.storage.weights import abstract, parameter_count, with_weights
from tests.bundles import in_half

LIVE = VocoderConfig(
    channels=24,
    mels=11,
    rates=(1, 5, 3),
    kernels=(3, 16, 9),
    block_kernels=(3, 7),
    dilations=((1, 3), (1, 5)),
)
GOLDEN = VocoderConfig(channels=64, mels=16)


def load(config, state):
    weights = {name: jax.device_put(a) for name, a in table(config).to_ours(state)}
    return with_weights(abstract(lambda rngs: Vocoder(config, rngs=rngs)), weights)


def numpy_state(module):
    return {name: a.numpy() for name, a in module.state_dict().items()}


@pytest.fixture
def their_vocoder():
    torch.manual_seed(0)
    vocoder = transformers.SpeechT5HifiGan(
        transformers.SpeechT5HifiGanConfig(
            model_in_dim=LIVE.mels,
            upsample_initial_channel=LIVE.channels,
            upsample_rates=LIVE.rates,
            upsample_kernel_sizes=LIVE.kernels,
            resblock_kernel_sizes=LIVE.block_kernels,
            resblock_dilation_sizes=LIVE.dilations,
            normalize_before=False,
        )
    ).eval()
    with torch.no_grad():  # their initial weights give silence
        for weight in vocoder.parameters():
            weight.copy_(torch.randn_like(weight) * (0.1 if weight.ndim == 1 else 0.2))
    return vocoder


MEL = jax.random.normal(jax.random.key(1), (2, 13, LIVE.mels))


@pytest.mark.parity
def test_as_transformers(parity, their_vocoder):
    with torch.no_grad():
        theirs = their_vocoder(torch.tensor(np.asarray(MEL))).numpy()
    assert 0.1 < theirs.std() < 0.9  # neither silent nor all at the ends of tanh
    ours = jax.jit(Vocoder.__call__)(load(LIVE, numpy_state(their_vocoder)), MEL)
    assert ours.shape[1] == LIVE.samples(13)
    parity("vocoder waveform", "transformers SpeechT5HifiGan", ours, theirs, 1e-4)


@pytest.mark.parity
def test_modules_as_transformers(parity, their_vocoder):
    ours, against = load(LIVE, numpy_state(their_vocoder)), "transformers SpeechT5HifiGan"
    apply = jax.jit(lambda module, x: module(x))
    x = np.random.default_rng(2).normal(size=(2, 13, 24)).astype(np.float32)
    for stage in range(3):
        with torch.no_grad():
            up = their_vocoder.upsampler[stage](torch.from_numpy(x).mT)
            blocks = [b(up).mT.numpy() for b in their_vocoder.resblocks[2 * stage : 2 * stage + 2]]
            up = up.mT.numpy()
        result = apply(ours.upsamplers[stage], x)
        parity(f"vocoder upsampler {stage}", against, result, up, 1e-4)
        for j, block in enumerate(blocks):
            result = apply(ours.blocks[2 * stage + j], up)
            parity(f"vocoder block {j} of stage {stage}", against, result, block, 1e-4)
        x = up


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm.*:FutureWarning")
def test_weight_normalised_checkpoint(parity, their_vocoder, tmp_path):
    norm = torch.nn.utils.weight_norm
    for module in list(their_vocoder.modules()):
        if isinstance(module, torch.nn.Conv1d | torch.nn.ConvTranspose1d):
            norm(module)
            with torch.no_grad():  # so that gain and norm of the direction differ
                module.weight_g *= 1 + 0.3 * torch.randn_like(module.weight_g)
    with torch.no_grad():
        theirs = their_vocoder(torch.tensor(np.asarray(MEL))).numpy()
    torch.save(their_vocoder.state_dict(), tmp_path / "x.pt")
    tensors = spelled(open_weights(tmp_path / "x.pt").tensors, table(LIVE).knows)
    state = {name: tensor.read() for name, tensor in tensors.items()}
    ours = jax.jit(Vocoder.__call__)(load(LIVE, state), MEL)
    parity("vocoder with weight norm", "transformers SpeechT5HifiGan", ours, theirs, 1e-4)


@pytest.mark.parity
def test_golden_pipeline(parity, reference):
    golden = load_file(reference / "audioldm2/golden/pipeline_io.safetensors")
    state = load_file(reference / "audioldm2/golden/pipeline_vocoder.safetensors")
    waveform = jax.jit(Vocoder.__call__)(load(GOLDEN, state), jnp.asarray(golden["mel"][:, 0]))
    assert waveform.shape[1] == 160 * 64 + 32
    parity(
        "vocoder waveform",
        "golden pipeline_io waveform",
        waveform[:, :10_240],
        golden["waveform"],
        1e-4,
    )


def test_length_of_the_real_size():
    config = VocoderConfig.audioldm2()
    vocoder = abstract(lambda rngs: Vocoder(config, rngs=rngs))
    mel = jax.ShapeDtypeStruct((1, 1024, 64), jnp.float32)
    waveform = jax.eval_shape(Vocoder.__call__, vocoder, mel)
    assert waveform.shape == (1, config.samples(1024)) == (1, 163_872)
    assert config.hop == 160


def test_tiny_is_tiny_and_as_long():
    config = VocoderConfig.tiny()
    vocoder = abstract(lambda rngs: Vocoder(config, rngs=rngs))
    assert 0.6e6 < parameter_count(vocoder) < 0.7e6
    mel = jax.ShapeDtypeStruct((3, 256, 64), jnp.float32)
    assert jax.eval_shape(Vocoder.__call__, vocoder, mel).shape == (3, 160 * 256)


def test_bfloat16_weights_compute_in_bfloat16(their_vocoder):
    half = in_half(load(LIVE, numpy_state(their_vocoder)))
    assert jax.eval_shape(Vocoder.__call__, half, MEL).dtype == jnp.bfloat16


def test_refuses_fields_of_different_lengths():
    with pytest.raises(ValueError, match="rates and kernels"):
        VocoderConfig(channels=8, rates=(2, 2))
    with pytest.raises(ValueError, match="block_kernels and dilations"):
        VocoderConfig(channels=8, block_kernels=(3,))
