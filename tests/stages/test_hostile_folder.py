"""Two hundred hostile inputs among good ones, from the folder to the store."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from pipeline.audio import decode, synthesis
from pipeline.store.reader import StoreReader
from stages import embed, locations, manifest
from tests.audio import hostile_files
from tests.audio.hostile_files import USED
from tests.stages.embed_corpus import small_recipe


def test_every_input_is_used_or_rejected_with_a_reason(tmp_path: Path) -> None:
    audio = tmp_path / "audio"
    hostile = hostile_files.write_all(audio)
    good = synthesis.write_clips(audio / "good", 6)
    recipe = small_recipe(tmp_path, embed__views__mixes=10, embed__views__textures=4)
    with Path(os.devnull).open("w") as sink:
        folder = manifest.run(recipe, console=Console(file=sink))
        store = embed.run(recipe, console=Console(file=sink))
    clips = pd.read_parquet(folder / "clips.parquet")
    refused = pd.read_parquet(folder / "rejects.parquet")
    assert (refused["reason"].str.len() > 0).all() and (refused["problem"].str.len() > 0).all()
    reasons = dict(zip(refused["path"], refused["reason"], strict=True))
    used = set(clips["path"])
    reader = StoreReader(store)
    rows = reader.rows[reader.rows["view"] == "clean"]
    status = dict(zip(rows["clip_id"], rows["status"], strict=True))
    clip_of = dict(zip(clips["path"], clips["clip_id"], strict=True))
    wrong = {}
    for item in hostile:
        name = decode.displayed(item.path.relative_to(audio))
        if name in used:
            # Silence passes the manifest, which keeps no peak, and is refused window by window.
            embedded = status[clip_of[name]] == "ok"
            if not (USED in item.outcomes if embedded else "silent" in item.outcomes):
                wrong[name] = status[clip_of[name]]
        elif reasons.get(name) not in {*item.outcomes, "duplicate", "name_not_utf8"}:
            wrong[name] = reasons.get(name, "forgotten")
    assert not wrong
    assert {status[clip] for clip in good["clip_id"]} == {"ok"}
    for index in range(len(reader.shard_sizes)):
        arrays = reader.read_shard(index)
        start, stop = reader.meta.bounds(index)
        ok = (reader.rows["status"].iloc[start:stop] == "ok").to_numpy()
        for values in arrays.values():
            assert np.isfinite(values[ok]).all() and np.isnan(values[~ok]).all()
    assert {"silent"} <= set(reader.rejects["reason"]) and set(refused["reason"]) <= set(
        reader.rejects["reason"]
    )
    assert locations.store_folder(recipe) == store
