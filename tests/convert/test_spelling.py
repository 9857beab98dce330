"""Equivalent spellings of one checkpoint give the same weights, for every network."""

import collections
import json
import re
from functools import cache, partial

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from convert import (
    adapter,
    audiomae,
    cavp,
    cnn14,
    gpt2,
    mapper,
    synchformer,
    t5,
    timechat,
    unet,
    vae,
    vocoder,
)
from convert.__main__ import MODELS, main
from convert.command import find_model
from convert.incoming import Choices, Incoming, Reading, fit
from convert.model import CONFIG, OURS, Request
from convert.table import ConversionError
from mfm_jax.bundle import Bundle
from mfm_jax.mapper import MapperConfig, build_mapper
from mfm_jax.models.adapters import AdapterConfig, build_adapter
from mfm_jax.models.audiomae import LOA, AudioMAE, AudioMAEConfig
from mfm_jax.models.cavp import CAVPConfig, CAVPVideo
from mfm_jax.models.cnn14 import Cnn14Config, Cnn14Tagger
from mfm_jax.models.gpt2 import GPT2, GPT2Config
from mfm_jax.models.synchformer import Synchformer, SynchformerConfig
from mfm_jax.models.t5 import T5Config, T5Encoder
from mfm_jax.models.timechat import TimeChat, TimeChatConfig
from mfm_jax.models.unet import UNet, UNetConfig
from mfm_jax.models.vae import VAE, VAEConfig
from mfm_jax.models.vocoder import Vocoder, VocoderConfig
from mfm_jax.runtime.config import to_json
from mfm_jax.storage.weights import abstract, named_weights

GPT2_CONFIG = GPT2Config(width=8, depth=2, heads=2, positions=4)
UNET = UNetConfig((8, 12), ((), (0,)), (6,), heads=2, resnets=1, groups=4, latent_channels=3)
NETWORKS = {
    "cavp": (CAVPVideo, CAVPConfig.tiny(), cavp.VIDEO_TABLE),
    "timechat": (TimeChat, TimeChatConfig.tiny(), timechat.table(TimeChatConfig.tiny())),
    "audiomae": (AudioMAE, AudioMAEConfig.tiny(), audiomae.table(AudioMAEConfig.tiny())),
    "gpt2": (GPT2, GPT2_CONFIG, gpt2.table(GPT2_CONFIG)),
    "t5": (T5Encoder, T5Config.tiny(), t5.TABLE),
    "cnn14": (Cnn14Tagger, Cnn14Config.tiny(), cnn14.TABLE),
    "synchformer": (
        Synchformer,
        SynchformerConfig.tiny(),
        synchformer.table(SynchformerConfig.tiny()),
    ),
    "mapper": (
        build_mapper,
        config := MapperConfig(
            (("cavp", 2, 3),), 5, LOA((4, 8), (1, 8)), head=True, gpt2=GPT2_CONFIG
        ),
        mapper.table(config),
    ),
    "adapter": (
        build_adapter,
        config := AdapterConfig(UNET, (("cavp", 2, 3),), "features", width=5, columns=4),
        adapter.table(config),
    ),
    "unet": (UNet, UNET, unet.TABLE),
    "vae": (
        VAE,
        VAEConfig(0.7, channels=(8, 12), resnets=1, latent_channels=3, groups=4),
        vae.TABLE,
    ),
    "vocoder": (
        Vocoder,
        config := VocoderConfig(8, 5, (3, 2), (7, 4), (3,), ((1, 3),)),
        vocoder.table(config),
    ),
}
DESCRIBED = {
    "gpt2": partial(gpt2.their_config, vocabulary=1),
    "t5": t5.their_config,
    "unet": unet.their_config,
    "vae": vae.their_config,
    "vocoder": vocoder.their_config,
}


@cache
def shapes_of(name: str) -> dict:
    """Return the shapes of a network's weights by their names."""
    build, config, _ = NETWORKS[name]
    return named_weights(abstract(partial(build, config)))


def ours_and_theirs(name: str) -> tuple[dict, dict]:
    """Return random weights of a network, in our layout and in theirs."""
    _, _, table = NETWORKS[name]
    rng = np.random.default_rng(0)
    shapes = shapes_of(name)
    ours = {n: rng.standard_normal(leaf.shape, np.float32) for n, leaf in shapes.items()}
    theirs = {key: np.ascontiguousarray(array) for key, array in table.to_theirs(ours)}
    return ours, {key: torch.tensor(array) for key, array in theirs.items()}


def write_described(folder, name: str, state: dict) -> None:
    """Write a network as its readers want it: with a config.json, in the right folders."""
    folder.mkdir(parents=True, exist_ok=True)
    _, config, _ = NETWORKS[name]
    told = DESCRIBED[name](config) if name in DESCRIBED else {OURS: to_json(config)}
    (folder / CONFIG).write_text(json.dumps(told))
    (folder / "spiece.model").write_bytes(b"")
    if name == "mapper":
        (folder / "gpt2").mkdir()
        inner = {k: v for k, v in state.items() if "gpt2." in k}
        torch.save({k.replace("gpt2.", "", 1): v for k, v in inner.items()}, folder / "gpt2/x.bin")
        torch.save({k: v for k, v in state.items() if k not in inner}, folder / mapper.REST)
    else:
        torch.save(state, folder / "x.bin")


def part_of(folder, name: str, state: dict, **options) -> Incoming:
    """Return what the reader of the network makes of the state."""
    if name in ("unet", "vae", "vocoder"):
        write_described(folder / name, name, state)
        (folder / "scheduler").mkdir()
        told = {"beta_start": 0.1, "beta_end": 0.2, "num_train_timesteps": 9}
        told |= {"beta_schedule": "scaled_linear", "prediction_type": "epsilon", "steps_offset": 1}
        told |= {"clip_sample": False, "set_alpha_to_one": False}
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(told))
        model, options = "audioldm2", {**options, "only": [name]}
    else:
        write_described(folder, name, state)
        model = name
    (part,) = find_model(model).read(Request((folder,), **options)).parts
    return part


def read(folder, name: str, state: dict, **options) -> dict[str, np.ndarray]:
    """Return the weights in our layout that the reader of the network finds in the state."""
    part = part_of(folder, name, state, **options)
    return dict(part.table.to_ours(Reading(part.tensors)))


def check(found: dict, ours: dict, tolerance: float = 0.0) -> None:
    assert found.keys() == ours.keys()
    for key, weight in ours.items():
        np.testing.assert_allclose(found[key], weight, rtol=tolerance, atol=tolerance, err_msg=key)


def prefixed(prefix: str, state: dict) -> dict:
    return {prefix + key: tensor for key, tensor in state.items()}


def inside(part: str, state: dict) -> dict:
    """Put `part` after the first part of each name, as wrapping a child does."""
    return {re.sub(r"^(\w+)\.", rf"\1.{part}.", key): tensor for key, tensor in state.items()}


def weight_norm(style: str, state: dict) -> dict:
    """Return a state in which every matrix is saved as weight norm does."""
    split = {}
    for key, tensor in state.items():
        front, _, last = key.rpartition(".")
        if last != "weight" or tensor.ndim < 2:
            split[key] = tensor
            continue
        gain = torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.ndim)), keepdim=True)
        names = ("weight_g", "weight_v")
        if style == "parametrizations":
            names = ("parametrizations.weight.original0", "parametrizations.weight.original1")
        split |= {f"{front}.{names[0]}": gain, f"{front}.{names[1]}": 3 * tensor}
    return split


SPELLINGS = {
    "module": partial(prefixed, "module."),
    "compiled": partial(prefixed, "_orig_mod."),
    "model": partial(prefixed, "model."),
    "several": partial(prefixed, "model.module._orig_mod."),
    "several in another order": partial(prefixed, "_orig_mod.module.model.net."),
    "compiled inside": partial(inside, "_orig_mod"),
    "sharded inside": partial(inside, "_fsdp_wrapped_module._checkpoint_wrapped_module"),
}


def test_every_network_of_the_command_is_here():
    assert {*MODELS} - {"audioldm2"} <= {*NETWORKS}


@pytest.mark.parametrize("name", NETWORKS)
def test_wrappers_change_nothing(tmp_path, name):
    ours, theirs = ours_and_theirs(name)
    check(read(tmp_path / "plain", name, theirs), ours)
    for spelling, spell in SPELLINGS.items():
        check(read(tmp_path / spelling, name, spell(theirs)), ours)


def test_wrappers_inside_the_checkpoint_of_another_network(tmp_path):
    ours, theirs = ours_and_theirs("audiomae")
    state = prefixed(f"{audiomae.IN_AUDIOLDM2}_orig_mod.", theirs)
    check(read(tmp_path / "a", "audiomae", state), ours)
    check(read(tmp_path / "b", "audiomae", prefixed("module.", state)), ours)


@pytest.mark.parametrize("kept", [t5.WORDS, t5.COPY])
def test_tied_weights_are_stored_once_under_either_name(tmp_path, kept):
    ours, theirs = ours_and_theirs("t5")
    state = {key: tensor for key, tensor in theirs.items() if key not in (t5.WORDS, t5.COPY)}
    check(read(tmp_path, "t5", state | {kept: theirs[t5.WORDS]}), ours)


@pytest.mark.parametrize("name", NETWORKS)
def test_weight_norm_is_folded(tmp_path, name):
    ours, theirs = ours_and_theirs(name)
    for style in ("parametrizations", "weight_g"):
        state = prefixed("module.", weight_norm(style, theirs))
        assert len(state) > len(theirs)
        check(read(tmp_path / style, name, state), ours, 1e-5)


def test_weight_norm_along_other_axes():
    """`dim` is an argument; the gain's shape tells it."""
    from convert.spelling import Folded
    from convert.tensors import Held

    for dim in (0, 1, 2, None):
        conv = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(3, 4, 5), dim=dim)
        with torch.no_grad():
            conv.parametrizations.weight.original0 *= 1.5
        pair = (conv.parametrizations.weight.original0, conv.parametrizations.weight.original1)
        gain, direction = (Held(None, tensor.detach().numpy()) for tensor in pair)
        folded = Folded(gain, direction).read()
        np.testing.assert_allclose(folded, conv.weight.detach().numpy(), rtol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_numbers_in_place_of_all_tensors_are_refused(tmp_path, name):
    _, theirs = ours_and_theirs(name)
    with pytest.raises(ConversionError, match=r"does not fit .* misshaped: .* is \(\), should be"):
        fit(part_of(tmp_path, name, dict.fromkeys(theirs, torch.tensor(1.0))), Choices("test"))


def test_two_tensors_of_one_name_are_refused(tmp_path):
    _, theirs = ours_and_theirs("gpt2")
    with pytest.raises(ConversionError, match=r"duplicated: ln_f\.bias"):
        read(tmp_path, "gpt2", theirs | {"module.ln_f.bias": theirs["ln_f.bias"]})


@pytest.mark.parametrize("convolutions", [False, True], ids=["matrices", "convolutions"])
def test_old_names_of_diffusers_attention(tmp_path, convolutions):
    ours, theirs = ours_and_theirs("vae")
    old = {}
    for key, tensor in theirs.items():
        for name, called in vae.CALLED.items():
            key = key.replace(f"attentions.0.{called}.", f"attentions.0.{name}.")
        many = convolutions and ".attentions." in key and tensor.ndim == 2
        old[key] = tensor[:, :, None, None] if many else tensor
    assert sum(".proj_attn." in key for key in old) == 4
    check(read(tmp_path / "old", "vae", old), ours)
    check(read(tmp_path / "wrapped", "vae", prefixed("_orig_mod.", old)), ours)
    key = "encoder.mid_block.attentions.0.to_q.bias"
    with pytest.raises(ConversionError, match=f"duplicated: {key}"):
        read(tmp_path / "both", "vae", old | {key: theirs[key]})


# Averages (EMA)


def lightning(theirs: dict, averages: dict) -> dict:
    """As Latent Diffusion saves its average: in buffers, whose names have no dots."""
    buffers = {f"model_ema.{k.replace('.', '')}": v for k, v in averages.items()}
    counts = {"model_ema.decay": torch.tensor(0.9), "model_ema.num_updates": torch.tensor(7)}
    return {"state_dict": prefixed("model.", theirs) | buffers | counts}


AVERAGES = {
    "model_ema": lambda raw, ema: {"model": raw, "model_ema": ema, "epoch": 3},
    "ema": lambda raw, ema: {"state_dict": raw, "ema": {"module": prefixed("module.", ema)}},
    "ema_state_dict": lambda raw, ema: {"state_dict": raw, "ema_state_dict": ema},
    "state_dict_ema": lambda raw, ema: {"state_dict": raw, "state_dict_ema": ema},
    "params_ema": lambda raw, ema: {"params": raw, "params_ema": ema},
    "ema_model": lambda raw, ema: {"state_dict": raw | prefixed("ema_model.module.", ema)},
    "swa_model": lambda raw, ema: {
        "model_state_dict": raw,
        "swa_model": {"n_averaged": torch.tensor(3)} | prefixed("module.", ema),
    },
    "model_ema.*": lightning,
    "callbacks": lambda raw, ema: {"state_dict": raw, "callbacks": {"EMA": {"state_dict": ema}}},
    "ema_shadow": lambda raw, ema: {**raw, "ema_shadow": {"decay": 0.9, "shadow": ema}},
    "shadow": lambda raw, ema: {"model": raw, "shadow": ema},
    "ModelEMA": lambda raw, ema: {"model": raw, "ModelEMA": ema},
    "ema-weights": lambda raw, ema: {"model": raw, "ema-weights": ema},
    "polyak": lambda raw, ema: {**raw, **prefixed("polyak_average.", ema)},
    "non_ema": lambda raw, ema: {"non_ema": raw, "ema": ema},
    "moments": lambda raw, ema: {
        "model": raw, "ema": ema, "optimizer": {"exp_avg": {k: v - 9 for k, v in raw.items()}}
    },
}  # fmt: skip


@pytest.mark.parametrize("where", AVERAGES)
def test_averages_are_named_and_taken_if_wanted(tmp_path, capsys, where):
    ours, raw = ours_and_theirs("gpt2")
    # Buffers and what is frozen have no average.
    averages = {key: 2 * tensor for key, tensor in raw.items() if key != "ln_f.bias"}
    config, told = GPT2_CONFIG, tmp_path / "source"
    told.mkdir()
    (told / CONFIG).write_text(json.dumps(gpt2.their_config(config, 1)))
    torch.save(AVERAGES[where](raw, averages), told / "x.ckpt")

    def converted(*options: str):
        assert main(["gpt2", str(told), "-o", str(tmp_path / "b"), *options]) == 0
        return named_weights(Bundle.open(tmp_path / "b").load("gpt2")), capsys.readouterr().out

    found, said = converted()
    check(found, ours)
    assert re.search(
        r"has averages \(EMA\) of the weights in \S+; .* with --ema the averages", said
    )
    found, said = converted("--ema")
    check(found, {k: w if k == "norm.bias" else 2 * w for k, w in ours.items()})
    number = f"{len(averages)} of {len(raw)}"
    assert re.search(rf"the averages \(EMA\) in \S+ are taken, of {number} tensors", said)
    assert Bundle.open(tmp_path / "b").entries["gpt2"].source.made_by.endswith(" --ema")


@pytest.mark.parametrize(
    "save",
    [
        lambda ema: {"ema_state_dict": ema},
        lambda ema: prefixed("model_ema.", ema),
        lambda ema: {"n_averaged": torch.tensor(3)} | prefixed("module.", ema),
    ],
    ids=["entry", "prefix", "averaged model"],
)
def test_averages_alone_are_the_weights(tmp_path, save):
    ours, theirs = ours_and_theirs("gpt2")
    write_described(tmp_path, "gpt2", save(theirs))
    request = Request((tmp_path,))
    (part,) = find_model("gpt2").read(request).parts
    check(dict(part.table.to_ours(Reading(part.tensors))), ours)
    assert "has only averages (EMA) of the weights, in" in request.notes[0]


def test_averages_that_do_not_fit_are_refused(tmp_path, capsys):
    _, raw = ours_and_theirs("gpt2")
    command = ["gpt2", str(tmp_path), "-o", str(tmp_path / "b"), "--ema"]

    def refused(state: dict) -> str:
        write_described(tmp_path, "gpt2", state)
        assert main(command) == 2
        printed = capsys.readouterr().err
        assert printed.count("\n") == 1
        return printed

    assert "there are no averages (EMA) of the weights: leave out --ema" in refused(raw)
    other = {"h.7.ln_1.weight": raw["ln_f.bias"]}
    assert "averages of other weights: unknown: h.7" in refused({"model": raw, "ema": raw | other})
    listed = {"model": raw, "ema": {"shadow_params": list(raw.values())}}
    assert "has averages without names: leave out --ema" in refused(listed)


@pytest.mark.parametrize(
    "beside",
    [
        None,
        "vae/diffusion_pytorch_model.ema.safetensors",
        "vae/diffusion_pytorch_model_ema.safetensors",
        "vae_ema/diffusion_pytorch_model.safetensors",
    ],
    ids=["prefix", "variant", "file", "folder"],
)
@pytest.mark.parametrize(("taken", "factor"), [(False, 1), (True, 2)])
def test_averages_in_safetensors(tmp_path, beside, taken, factor):
    ours, raw = ours_and_theirs("vae")
    averages = {k: 2 * t for k, t in raw.items()}
    for folder in ("vae", "vae_ema"):
        (tmp_path / folder).mkdir()
    state = raw if beside else raw | prefixed("ema.", averages)
    save_file(state, tmp_path / "vae/diffusion_pytorch_model.safetensors")
    if beside:
        save_file(averages, tmp_path / beside)
    found = read(tmp_path, "vae", raw, averaged=taken)
    check(found, {k: factor * w for k, w in ours.items()})


def test_metadata_of_a_state_dict_is_no_average(tmp_path):
    """Words that only contain `ema` are none: a schema, a demand."""
    _, raw = ours_and_theirs("gpt2")
    state = collections.OrderedDict(raw)
    write_described(tmp_path, "gpt2", {"state_dict": state, "schema": {"x": raw["ln_f.bias"]}})
    request = Request((tmp_path,))
    find_model("gpt2").read(request)
    assert request.notes == []
