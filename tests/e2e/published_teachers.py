"""Checkpoints in the layouts that the teachers' authors publish, filled by the golden recipe or drawn at random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pipeline.artifact import file_digest
from pipeline.frontends.mule_frontend import MuleFrontend
from pipeline.frontends.panns_frontend import AT_32_KHZ, PannsFrontend
from pipeline.teachers.mule import NETWORK_PREFIX
from pipeline.teachers.panns import Cnn14
from pipeline.teachers.sf_nfnet import SfNfNetF0
from tests.teachers.test_beats import TINY, state_of
from tests.teachers.tiny_graphs import patch_graph
from tests.teachers.vit_checkpoints import shallow_state

BEATS_OF_PUBLISHED_WIDTH = TINY | {
    "embed_dim": 512, "encoder_embed_dim": 768, "encoder_ffn_embed_dim": 3072, "encoder_attention_heads": 12,
    "encoder_layers": 1, "conv_pos": 128, "conv_pos_groups": 16, "num_buckets": 320, "max_distance": 800,
}  # fmt: skip


def write(name: str, folder: Path) -> Path:
    """Write the checkpoint of teacher ``name``; transformers keep one block of the published width."""
    folder.mkdir(parents=True, exist_ok=True)
    if name == "discogs_effnet":
        return patch_graph(folder / "discogs-effnet-bsdynamic-1.onnx", ["batch", 128, 96])
    path = folder / f"{name}.pt"
    payload: Any
    if name.startswith("beats"):
        payload = {"cfg": BEATS_OF_PUBLISHED_WIDTH, "model": state_of(BEATS_OF_PUBLISHED_WIDTH)}
    elif name == "passt_s":
        payload = shallow_state("passt")
    elif name == "matpac_plus":
        payload = shallow_state("matpac")
    elif name == "m2d_80x608":
        # The folder's name says the architecture, as the authors' does.
        path = folder / "m2d_vit_base-80x608p16x16-221006-mr7_enconly" / "checkpoint-300.pth"
        payload = shallow_state("m2d_80x608")
    elif name == "panns_cnn14":
        torch.manual_seed(0)
        payload = {"model": {**Cnn14().state_dict(), **PannsFrontend(AT_32_KHZ).published_constants()}}
    elif name == "mule":
        torch.manual_seed(0)
        network = {f"{NETWORK_PREFIX}{key}": value for key, value in SfNfNetF0().state_dict().items()}
        payload = network | MuleFrontend().published_constants()
    else:
        raise ValueError(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(payload, path)
    return path


def trusted(teacher: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a recipe's teacher with a checkpoint of its own layout as its weights."""
    name = teacher["options"].get("name", teacher["name"])
    path = write(name, folder)
    keys = {"weights": path, "trust_sha256": file_digest(path), "dtype": "float32", "batch_size": 4}
    options = dict(teacher["options"])
    if name == "discogs_effnet":
        options |= {"input_name": "sound", "embedding": "flat", "logits": None}
    return {**teacher, **keys, "options": options}
