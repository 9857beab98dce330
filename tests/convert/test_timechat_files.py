"""TimeChat's branch from three small files in the formats of its authors."""

import dataclasses
import json
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from convert.__main__ import main
from convert.model import OURS
from convert.timechat import VIT, table
from mfm_jax.bundle import Bundle, format2
from mfm_jax.models.timechat import TimeChat, TimeChatConfig
from mfm_jax.runtime.config import to_json
from mfm_jax.storage.weights import abstract, named_weights
from tests.bundles import filled

CONFIG = dataclasses.replace(TimeChatConfig.tiny(), llama_width=10)
HALF = ("qkv.weight", "proj.weight", "fc1.weight", "fc2.weight")


@pytest.fixture(scope="module")
def branch():
    """The entire branch under TimeChat's names; the linear maps of the ViT in half precision."""
    network = filled(abstract(partial(TimeChat, CONFIG)), 0)
    ours = {name: np.asarray(array) for name, array in named_weights(network).items()}
    theirs = {k: torch.tensor(a) for k, a in table(CONFIG).to_theirs(ours)}
    return {k: t.half() if k.startswith(VIT) and k.endswith(HALF) else t for k, t in theirs.items()}


@pytest.fixture
def files(branch, tmp_path):
    """The three files, and the options for sizes other than the released ones."""
    vit = {k.removeprefix(VIT): t for k, t in branch.items() if k.startswith(VIT)}
    vit |= {"blocks.39.norm1.weight": torch.ones(4), "norm.weight": torch.ones(4)}
    shared = ("Qformer.", "query_tokens")
    blip = {k: -t for k, t in branch.items() if k.startswith(shared)}  # TimeChat's own win
    blip |= {k: t for k, t in branch.items() if k.startswith("ln_vision")}
    blip |= {"llm_proj.weight": torch.ones(3, 4)}
    others = (VIT, "ln_vision")
    own = {k: t for k, t in branch.items() if not k.startswith(others)}
    own["Qformer.bert.embeddings.position_ids"] = torch.arange(32)[None]
    own["llama_model.base_model.lora_A.weight"] = torch.ones(2, 2)
    torch.save(vit, tmp_path / "eva_vit_g.pth")
    torch.save({"model": blip}, tmp_path / "instruct_blip_vicuna7b_trimmed.pth")
    torch.save({"model": own, "epoch": 2}, tmp_path / "timechat_7b.pth")
    (tmp_path / "config.json").write_text(json.dumps({OURS: to_json(CONFIG)}))
    paths = [tmp_path / "timechat_7b.pth", *sorted(tmp_path.glob("*.pth"))[:2]]
    return [*map(str, paths), "--config", str(tmp_path / "config.json")]


def test_three_files_in_any_order_are_one_branch(branch, files, tmp_path):
    bundle, out = str(tmp_path / "b"), tmp_path / "o"
    assert main(["timechat", *files, "-o", bundle]) == 0
    entry = Bundle.open(tmp_path / "b").entries["timechat"]
    assert [name for name, _ in entry.source.files] == [
        "eva_vit_g.pth",
        "instruct_blip_vicuna7b_trimmed.pth",
        "timechat_7b.pth",
    ]
    assert main(["timechat", bundle, "-o", str(out), "--to", "torch"]) == 0
    back = load_file(out / "model.safetensors")
    kept = {
        "visual_encoder.blocks.39.norm1.weight",
        "visual_encoder.norm.weight",
        "Qformer.bert.embeddings.position_ids",
    }
    assert back.keys() == branch.keys() | kept
    for name, tensor in branch.items():
        assert back[name].dtype == tensor.dtype, name
        assert torch.equal(back[name], tensor), name


@pytest.mark.parametrize("old", [False, True], ids=["as written", "by an older version"])
def test_what_went_out_comes_in_again_by_itself(old, files, tmp_path):
    """The folder carries its own configuration, whose fields once had other names."""
    assert main(["timechat", *files, "-o", str(tmp_path / "b")]) == 0
    assert main(["timechat", str(tmp_path / "b"), "-o", str(tmp_path / "o"), "--to", "torch"]) == 0
    if old:
        file = tmp_path / "o" / "config.json"
        data = json.loads(file.read_text())
        data[OURS] = format2.old_config("timechat", data[OURS])
        assert "d_llama" in data[OURS]
        file.write_text(json.dumps(data))
    assert main(["timechat", str(tmp_path / "o"), "-o", str(tmp_path / "c")]) == 0
    first, second = (Bundle.open(tmp_path / name) for name in "bc")
    assert first.config("timechat") == second.config("timechat")
    sums = [
        {name: listed.sha256 for name, listed in bundle.store("timechat").arrays.items()}
        for bundle in (first, second)
    ]
    assert sums[0] == sums[1]


def test_the_norm_that_timechats_own_file_lacks_is_missed(files, tmp_path, capsys):
    path = tmp_path / "instruct_blip_vicuna7b_trimmed.pth"
    kept = {k: t for k, t in torch.load(path)["model"].items() if "ln_vision" not in k}
    torch.save({"model": kept}, path)
    assert main(["timechat", *files, "-o", str(tmp_path / "b")]) == 2
    printed = capsys.readouterr().err
    assert "missing: ln_vision.bias, ln_vision.weight" in printed
    assert printed.count("\n") == 1


def test_released_sizes_need_the_vocabulary(files, tmp_path, capsys):
    sources = files[:3]
    (tmp_path / "config.json").unlink()
    assert main(["timechat", *sources, "-o", str(tmp_path / "b")]) == 2
    assert "give its vocab.txt with --vocabulary" in capsys.readouterr().err
    (tmp_path / "words.txt").write_text("hello\n")
    command = ["timechat", *sources, "-o", str(tmp_path / "b"), "--vocabulary"]
    assert main([*command, str(tmp_path / "words.txt")]) == 2
    assert "not a BERT vocabulary" in capsys.readouterr().err
