"""Make checkpoints of random weights in the file formats of the released ones.

Each builder writes the tensors that a manifest lists, in the real formats and with the real names,
and says where each tensor must be after the way to a bundle and back. A manifest may be of any
size; `CASES` uses those in tests/reference, which list the released tensors.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

from convert import (
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
from convert.model import CONFIG, DIFFUSERS_WEIGHTS, OURS, WEIGHTS
from convert.outgoing import to_torch
from convert.table import Table
from mfm_jax.bundle import COMPONENTS, Component, Source, write_bundle
from mfm_jax.mapper import MapperConfig, build_mapper
from mfm_jax.models.audiomae import AudioMAEConfig
from mfm_jax.models.cavp import CAVPConfig
from mfm_jax.models.cnn14 import Cnn14Config
from mfm_jax.models.gpt2 import GPT2Config
from mfm_jax.models.synchformer import SynchformerConfig
from mfm_jax.models.timechat import TimeChatConfig
from mfm_jax.runtime.config import to_json
from mfm_jax.storage.weights import abstract, named_weights
from mfm_jax.text.wordpiece import SPECIAL, TIMESTAMP_WORDS

Manifest = Mapping[str, Sequence[Any]]  # [shape, dtype] by key
State = dict[str, torch.Tensor]

REFERENCE = Path(__file__).parents[1] / "tests" / "reference"
STARTS = 1 << 18  # positions in the block of random numbers at which a tensor may start


class Network(NamedTuple):
    """The tensors and the config of a network."""

    manifest: Manifest
    # The config.json. For a network without one: our own, if its sizes are not the released ones.
    config: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Part:
    """A file of a checkpoint, and the names of its tensors after the way back."""

    file: Path
    back: str  # the exported file that contains them
    cut: str = ""  # prefix of the tensors that come back, which is removed
    add: str = ""  # prefix that is added
    lost: tuple[str, ...] = ()  # prefixes of tensors of other networks

    def name(self, key: str) -> str | None:
        """Return the name of `key` in the exported file, or None if it is not there."""
        if not key.startswith(self.cut) or key.startswith(self.lost):
            return None
        return self.add + key.removeprefix(self.cut)


@dataclass(frozen=True)
class Checkpoint:
    """The files of a checkpoint, and the options for its conversion."""

    model: str  # of `python -m convert`
    sources: tuple[Path, ...]  # files or folders
    parts: tuple[Part, ...]  # of tensors with one name, that of the last part comes back
    options: tuple[str, ...] = ()  # of `python -m convert`


def drawn(manifest: Manifest, seed: int = 0, floats: torch.dtype | None = None) -> State:
    """Return random tensors with the shapes of `manifest`, all different.

    They are cut from one block of normal numbers at different positions, which is fast.

    Args:
        floats: precision of the floating-point tensors; by default that of the manifest.
    """
    longest = max(math.prod(shape) for shape, _ in manifest.values())
    block = torch.randn(longest + STARTS, generator=torch.Generator().manual_seed(seed)) / 50

    def tensor(number: int, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        size, start = math.prod(shape), 61 * number % STARTS
        if not dtype.is_floating_point:
            return torch.arange(start, start + size).to(dtype).reshape(shape)
        return block[start : start + size].to(floats or dtype, copy=True).reshape(shape)

    state = {
        key: tensor(number, shape, getattr(torch, dtype))
        for number, (key, (shape, dtype)) in enumerate(manifest.items())
    }
    for key in state:
        if key.endswith("position_ids"):
            state[key] = torch.arange(state[key].numel()).reshape(state[key].shape)
    # T5's word embeddings, which two keys share.
    if "encoder.embed_tokens.weight" in state:
        state["encoder.embed_tokens.weight"] = state["shared.weight"].clone()
    return state


def from_cavp(folder: Path, network: Network) -> Checkpoint:
    """Write CAVP as Diff-Foley's trainer saves it from several GPUs."""
    file = folder / "cavp_epoch66.ckpt"
    saved = {
        "epoch": 66,
        "name": "cavp",
        "state_dict": {f"module.{key}": tensor for key, tensor in drawn(network.manifest).items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 8e-4, "params": [0, 1]}]},
    }
    torch.save(saved, file)
    return Checkpoint("cavp", (file,), (Part(file, WEIGHTS, "module."),), _told(folder, network))


def from_timechat(folder: Path, network: Network, *, half: bool) -> Checkpoint:
    """Write the files of the ViT, InstructBLIP and TimeChat, which replaces InstructBLIP's values.

    Args:
        half: the linear maps and convolutions of the ViT in float16, the rest of it in float32.
    """
    names = "eva_vit_g.pth", "instruct_blip_vicuna7b_trimmed.pth", "timechat_7b.pth"
    vit, blip, timechat_file = (folder / name for name in names)
    torch.save(_vit(network.manifest, half), vit)
    torch.save({"model": _instruct_blip(network.manifest)}, blip)
    torch.save({"model": _timechat(network.manifest), "epoch": 2}, timechat_file)
    parts = (
        Part(vit, WEIGHTS, add=timechat.VIT),
        Part(blip, WEIGHTS, lost=("llm_proj.",)),
        Part(timechat_file, WEIGHTS, lost=("llama_model.",)),
    )
    sources = (vit, blip, timechat_file)
    return Checkpoint("timechat", sources, parts, _vocabulary_option(folder, network))


def _vit(manifest: Manifest, half: bool) -> State:
    """Return the tensors of EVA's file: no prefix, a fortieth block, and norm and head."""
    ours = _under(timechat.VIT, manifest)
    width = ours["cls_token"][0][-1]
    sizes = {"norm.weight": [width], "norm.bias": [width]}
    sizes |= {"head.weight": [1000, width], "head.bias": [1000]}
    last = {f"blocks.39.{key}": said for key, said in _under("blocks.0.", ours).items()}
    state = drawn({**ours, **last, **{key: [shape, "float32"] for key, shape in sizes.items()}})
    for key in list(state) if half else ():
        if key.rpartition(".")[0].endswith(("proj", "qkv", "fc1", "fc2", "head")):
            state[key] = state[key].half()
    return state


def _instruct_blip(manifest: Manifest) -> State:
    ours = {k: m for k, m in manifest.items() if k.startswith(("Qformer.", "query_", "ln_vision."))}
    width = manifest["query_tokens"][0][-1]
    head = {"llm_proj.weight": [[4096, width], "float32"], "llm_proj.bias": [[4096], "float32"]}
    return drawn({**ours, **head}, seed=1)


def _timechat(manifest: Manifest) -> State:
    ours = {k: m for k, m in manifest.items() if not k.startswith((timechat.VIT, "ln_vision."))}
    layer = "llama_model.base_model.model.model.layers.0.self_attn.q_proj"
    return drawn({**ours, f"{layer}.lora_A.default.weight": [[32, 4096], "float32"]}, seed=2)


def _vocabulary_option(folder: Path, network: Network) -> tuple[str, ...]:
    """Return the option for the vocabulary: that of a configuration, or a file."""
    if told := _told(folder, network):
        return told
    numbers = [*map(str, range(1000)), *(f"##{digit}" for digit in range(10))]
    (folder / "vocab.txt").write_text("\n".join((*SPECIAL, *TIMESTAMP_WORDS, *numbers)) + "\n")
    return "--vocabulary", str(folder / "vocab.txt")


def from_audiomae(folder: Path, network: Network) -> Checkpoint:
    """Write AudioMAE as its trainer saved it, in the format before zip files."""
    return _old(folder, network, "audiomae", "pretrained.pth")


def from_full_audioldm2(folder: Path, network: Network) -> Checkpoint:
    """Write AudioMAE inside AudioLDM 2's own checkpoint, with a few of its other tensors."""
    file, prefix = folder / "audioldm2-full.pth", audiomae.IN_AUDIOLDM2
    others = {f"model.diffusion_model.time_embed.{i}.bias": [[512], "float32"] for i in (0, 2)}
    ours = {prefix + key: said for key, said in network.manifest.items()}
    torch.save({"state_dict": drawn({**others, **ours}), "global_step": 1}, file)
    return Checkpoint("audiomae", (file,), (Part(file, WEIGHTS, prefix),), _told(folder, network))


def from_cnn14(folder: Path, network: Network) -> Checkpoint:
    """Write Cnn14 as PANNs publishes it, in the format before zip files."""
    built_in = {
        key: cnn14.TABLE.value(key, tuple(shape)) for key, (shape, _) in network.manifest.items()
    }
    front_end = {
        k: torch.tensor(a, dtype=torch.float32) for k, a in built_in.items() if a is not None
    }
    return _old(folder, network, "cnn14", "Cnn14_16k_mAP=0.438.pth", front_end)


def from_synchformer(folder: Path, network: Network) -> Checkpoint:
    """Write Synchformer as its trainer saves it from several GPUs."""
    file, state = folder / "24-01-04T16-39-21.pt", drawn(network.manifest)
    nested = {f"module.{key}": tensor for key, tensor in state.items()}
    torch.save({"model": nested, "epoch": 12, "optimizer": {"state": {}}}, file)
    part = Part(file, WEIGHTS, "module.")
    return Checkpoint("synchformer", (file,), (part,), _told(folder, network))


def _old(
    folder: Path, network: Network, model: str, name: str, constant: State | None = None
) -> Checkpoint:
    state = drawn(network.manifest) | (constant or {})
    file, saved = folder / name, {"model": state, "epoch": 32}
    torch.save(saved, file, _use_new_zipfile_serialization=False)
    return Checkpoint(model, (file,), (Part(file, WEIGHTS),), _told(folder, network))


def from_gpt2(folder: Path, network: Network) -> Checkpoint:
    """Write GPT-2 as transformers saves it."""
    return Checkpoint("gpt2", (folder,), (Part(_save(folder, network, WEIGHTS), WEIGHTS),))


def from_old_gpt2(folder: Path, network: Network) -> Checkpoint:
    """Write GPT-2 as older transformers did: with causal masks, in the format before zip files."""
    _write_json(folder / CONFIG, network.config)
    state, file = drawn(network.manifest), folder / "pytorch_model.bin"
    positions = state["wpe.weight"].shape[0]
    for attn in (f"h.{block}.attn" for block in range(network.config["n_layer"])):
        state[f"{attn}.bias"] = torch.ones(1, 1, positions, positions, dtype=torch.uint8).tril()
        state[f"{attn}.masked_bias"] = torch.tensor(-1e4)
    torch.save(state, file, _use_new_zipfile_serialization=False)
    return Checkpoint("gpt2", (folder,), (Part(file, WEIGHTS),))


def from_t5(folder: Path, network: Network) -> Checkpoint:
    """Write T5's encoder in two shards with their index, beside a tokenizer."""
    _write_json(folder / CONFIG, network.config)
    _write_tokenizer(folder)
    state = drawn(network.manifest)
    names = [f"model-{number:05}-of-00002.safetensors" for number in (1, 2)]
    shards = {key: names[2 * number // len(state)] for number, key in enumerate(state)}
    for name in names:
        inside = {key: tensor for key, tensor in state.items() if shards[key] == name}
        save_file(inside, folder / name, {"format": "pt"})
    total = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": shards}
    _write_json(folder / "model.safetensors.index.json", index)
    return Checkpoint("t5", (folder,), tuple(Part(folder / name, WEIGHTS) for name in names))


def from_full_t5(folder: Path, network: Network) -> Checkpoint:
    """Write T5 in bfloat16, in one file with tensors of its decoder."""
    _write_json(folder / CONFIG, network.config)
    _write_tokenizer(folder)
    words, key = network.manifest["shared.weight"], "SelfAttention.q.weight"
    query = network.manifest[f"encoder.block.0.layer.0.{key}"]
    other = {"lm_head.weight": words, f"decoder.block.0.layer.0.{key}": query}
    state = drawn({**network.manifest, **other}, floats=torch.bfloat16)
    save_file(state, folder / WEIGHTS, {"format": "pt"})
    part = Part(folder / WEIGHTS, WEIGHTS, lost=("decoder.", "lm_head."))
    return Checkpoint("t5", (folder,), (part,))


def from_audioldm2(folder: Path, networks: Mapping[str, Network], *, half: bool) -> Checkpoint:
    """Write AudioLDM 2 in the folders of diffusers; `scheduler` among them has no tensors.

    Args:
        networks: by folder.
        half: everything in float16.
    """
    parts = []
    for name, network in networks.items():
        if name == "scheduler":
            _write_json(folder / name / "scheduler_config.json", network.config)
            continue
        diffusers = name in ("unet", "vae", "projection_model")
        weights = DIFFUSERS_WEIGHTS if diffusers else WEIGHTS
        parts.append(Part(_save(folder / name, network, weights, half), f"{name}/{weights}"))
    _write_tokenizer(folder / "tokenizer_2")
    return Checkpoint("audioldm2", (folder,), tuple(parts))


def from_mapper(folder: Path, config: MapperConfig) -> Checkpoint:
    """Write a mapper of ours, as exported."""
    network = abstract(partial(build_mapper, config))
    shapes = {name: [w.shape, w.dtype.name] for name, w in named_weights(network).items()}
    weights = ((name, tensor.numpy()) for name, tensor in drawn(shapes).items())
    component = Component(config, weights, Source("benchmarks/sources.py", "none"))
    bundle = write_bundle(folder / "bundle", {"mapper": component})
    to_torch(bundle, mapper.write(bundle), exported := folder / "exported")
    names = mapper.REST, f"gpt2/{WEIGHTS}"
    return Checkpoint("mapper", (exported,), tuple(Part(exported / n, n) for n in names))


def _save(folder: Path, network: Network, weights: str, half: bool = False) -> Path:
    """Write a folder of transformers or diffusers: config.json and one safetensors file."""
    _write_json(folder / CONFIG, network.config)
    state = drawn(network.manifest, floats=torch.float16 if half else None)
    save_file(state, folder / weights, {"format": "pt"})
    return folder / weights


def _told(folder: Path, network: Network) -> tuple[str, ...]:
    """Return the option for sizes other than the released ones."""
    if not network.config:
        return ()
    _write_json(file := folder / CONFIG, network.config)
    return "--config", str(file)


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def _write_tokenizer(folder: Path) -> None:
    """Write a stand-in: tokenizers are copied, not read."""
    _write_json(folder / "tokenizer.json", {})


def _under(prefix: str, manifest: Manifest) -> dict[str, Sequence[Any]]:
    return {k.removeprefix(prefix): m for k, m in manifest.items() if k.startswith(prefix)}


TIMECHAT = replace(TimeChatConfig.tiny(), llama_width=10)
# Networks without a config.json: their manifest, their table, and a small configuration of ours.
BARE: dict[str, tuple[str, Callable[[Any], Table], Any]] = {
    "cavp": ("cavp/manifest", lambda c: cavp.VIDEO_TABLE, CAVPConfig.tiny()),
    "timechat": ("timechat/manifest", timechat.table, TIMECHAT),
    "audiomae": ("audiomae/manifest", audiomae.table, AudioMAEConfig.tiny()),
    "cnn14": ("metrics/manifest", lambda c: cnn14.TABLE, Cnn14Config.tiny()),
    "synchformer": ("synchformer/manifest", synchformer.table, SynchformerConfig.tiny()),
}
# AudioLDM 2's networks: how config.json is read, the table, and the settings of a small one.
UNET = {"block_out_channels": [8, 16, 16, 24], "norm_num_groups": 4, "attention_head_dim": 2}
T5 = {"vocab_size": 40, "d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 2}
GPT2 = {"n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 17}
VAE = {"block_out_channels": [8, 12, 16], "norm_num_groups": 4}
DESCRIBED: dict[str, tuple[str, Callable[[Mapping], Any], Callable[[Any], Table], dict]] = {
    "unet_base": ("unet", unet.config, lambda c: unet.TABLE, UNET),
    "unet_large": ("unet", unet.config, lambda c: unet.TABLE, UNET),
    "vae": ("vae", vae.config, lambda c: vae.TABLE, VAE),
    "vocoder": ("vocoder", vocoder.config, vocoder.table, {"upsample_initial_channel": 64}),
    "text_encoder_2": ("t5", t5.config, lambda c: t5.TABLE, T5),
    "language_model": ("gpt2", gpt2.config, gpt2.table, GPT2),
}
GIVEN = {"vae": {"scaling_factor": 0.3}}  # tests/reference lacks the released value


def bare(component: str, small: bool) -> Network:
    """Return a network of `BARE` at its released sizes or at small ones."""
    file, table, config = BARE[component]
    manifest = _reference(file)
    if not small:
        return Network(manifest)
    return Network(_shrunk(manifest, component, config, table(config)), {OURS: to_json(config)})


def described(name: str, small: bool) -> Network:
    """Return a network of `DESCRIBED` at its released sizes or at small ones."""
    component, read, table, settings = DESCRIBED[name]
    manifest = _reference(f"audioldm2/manifest_{name}")
    said = _reference(f"audioldm2/configs/{name}") | GIVEN.get(name, {})
    if not small:
        return Network(manifest, said)
    config = read(said := said | settings)
    return Network(_shrunk(manifest, component, config, table(config)), said)


def _reference(name: str) -> dict[str, Any]:
    return json.loads((REFERENCE / f"{name}.json").read_text())


def _shrunk(manifest: Manifest, component: str, config: Any, table: Table) -> Manifest:
    """Return the tensors that the network of `config` reads, and small ignored ones."""
    ours = named_weights(abstract(partial(COMPONENTS[component].build, config)))
    shapes = table.shapes({name: tuple(weight.shape) for name, weight in ours.items()})
    types = {key: dtype for key, (_, dtype) in manifest.items()}
    ignored = {
        key: [[min(n, 8) for n in shape], types[key]]
        for key, (shape, _) in manifest.items()
        if table.ignored(key)
    }
    return ignored | {k: [list(s), types.get(k, "float32")] for k, s in shapes.items()}


def _audioldm2(folder: Path, small: bool, unet: str, half: bool = False) -> Checkpoint:
    others = "vae", "vocoder", "text_encoder_2", "language_model"
    networks = {name: described(name, small) for name in others}
    width, said = "langauge_model_dim", _reference("audioldm2/configs/projection_model")
    read = networks["language_model"].config["n_embd"]
    shapes = _reference("audioldm2/manifest_projection_model").items()
    projection = {k: [[read if n == said[width] else n for n in s], d] for k, (s, d) in shapes}
    networks |= {
        "unet": described(unet, small),
        "projection_model": Network(projection, {**said, width: read}),
        "scheduler": Network({}, _reference("audioldm2/configs/scheduler")),
    }
    return from_audioldm2(folder, networks, half=half)


def _mapper(folder: Path, small: bool) -> Checkpoint:
    base, gpt2 = MapperConfig.base(), GPT2Config.tiny()
    return from_mapper(folder, replace(base, loa_width=128, gpt2=gpt2) if small else base)


# Each makes a checkpoint in an empty folder, at the released sizes or at small ones.
CASES: dict[str, Callable[[Path, bool], Checkpoint]] = {
    "cavp": lambda f, small: from_cavp(f, bare("cavp", small)),
    "timechat": lambda f, small: from_timechat(f, bare("timechat", small), half=True),
    "timechat-float32": lambda f, small: from_timechat(f, bare("timechat", small), half=False),
    "audiomae": lambda f, small: from_audiomae(f, bare("audiomae", small)),
    "audiomae-in-audioldm2": lambda f, small: from_full_audioldm2(f, bare("audiomae", small)),
    "gpt2": lambda f, small: from_gpt2(f, described("language_model", small)),
    "gpt2-bin": lambda f, small: from_old_gpt2(f, described("language_model", small)),
    "t5": lambda f, small: from_t5(f, described("text_encoder_2", small)),
    "t5-bfloat16": lambda f, small: from_full_t5(f, described("text_encoder_2", small)),
    "audioldm2": partial(_audioldm2, unet="unet_base"),
    "audioldm2-large": partial(_audioldm2, unet="unet_large", half=True),
    "cnn14": lambda f, small: from_cnn14(f, bare("cnn14", small)),
    "synchformer": lambda f, small: from_synchformer(f, bare("synchformer", small)),
    "mapper": _mapper,
}
