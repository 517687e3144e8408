"""Log-mels derived from stored ones equal those computed from the sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline import artifact
from pipeline.config import LogMelConfig
from pipeline.errors import MissingArtifactError
from pipeline.frontends.log_mel import LogMel
from pipeline.search import frontend_arrays
from pipeline.store.reader import StoreReader
from pipeline.store.schema import StoreMeta, frontend_digest, spectrogram_spec
from pipeline.store.verification import verify
from pipeline.store.writer import StoreWriter

SAMPLES, ROWS = 5_123, 11
STORED = LogMelConfig(mels=12, hop_length=160)


def sound() -> torch.Tensor:
    return 0.1 * torch.randn(ROWS, SAMPLES, generator=torch.Generator().manual_seed(2))


def store_of(folder: Path, config: LogMelConfig, dtype: str = "float16") -> Path:
    spec = spectrogram_spec(config, config.frames(SAMPLES), dtype)  # type: ignore[arg-type]
    rows = pd.DataFrame({"row": range(ROWS), "key": [f"{i:032x}" for i in range(ROWS)], "split": "train"})
    meta = StoreMeta(name="s", manifest_digest="0" * 64, shard_rows=4, chunk_rows=2, arrays=(spec,))
    log_mel = LogMel(config)(sound()).numpy()
    with StoreWriter.create(folder, rows, meta) as writer:
        for shard in writer.pending():
            start, stop = writer.meta.bounds(shard)
            rejects = [{"row": 5, "reason": "silent", "problem": "peak 0"}] if start <= 5 < stop else []
            writer.write_shard(shard, {spec.path: log_mel[start:stop]}, rejects)
        writer.finish(config={"made": "here"}, inputs={"manifest": "m"})
    return folder


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("factor", [2, 3])
def test_a_multiple_of_the_hop_is_what_the_frontend_computes(
    tmp_path: Path, center: bool, factor: int
) -> None:
    stored = STORED.model_copy(update={"center": center})
    place = store_of(tmp_path / "store", stored)
    before = artifact.read(place)
    wanted = stored.model_copy(update={"hop_length": 160 * factor})
    assert frontend_arrays.provide(place, [stored, wanted], "demo") == [wanted]
    assert frontend_arrays.provide(place, [stored, wanted], "demo") == []

    reader = StoreReader(place, frontend=wanted)
    found = np.concatenate([reader.read_shard(s, ("spectrogram",))["spectrogram"] for s in range(3)])
    expected = LogMel(wanted)(sound()).numpy()
    assert found.shape == expected.shape
    good = np.arange(ROWS) != 5
    assert np.isnan(found[5]).all()
    # float16 of what is computed anew: at most one unit in the last place, for batches of other lengths round apart.
    np.testing.assert_allclose(found[good], expected[good], rtol=2**-10, atol=2**-10)
    after = artifact.read(place)
    assert (after.digest, after.summary["ok"]) == (before.digest, before.summary["ok"])
    assert not verify(place).problems


def test_what_does_not_follow_is_refused_with_the_command_that_adds_it(tmp_path: Path) -> None:
    place = store_of(tmp_path / "store", STORED)
    before = sorted(path.relative_to(place) for path in place.rglob("*"))
    for changes in ({"mels": 13}, {"hop_length": 240}, {"hop_length": 80}, {"min_hz": 60.0}):
        wanted = STORED.model_copy(update=changes)
        with pytest.raises(MissingArtifactError) as caught:
            frontend_arrays.provide(place, [STORED.model_copy(update={"hop_length": 320}), wanted], "demo")
        assert "ossicle embed demo --set 'embed.more_frontends=[{ " in str(caught.value)
        name, value = next(iter(changes.items()))
        assert f"{name} = {value}" in str(caught.value)
    # Nothing was begun, not even what would have followed.
    assert sorted(path.relative_to(place) for path in place.rglob("*")) == before
    coded = store_of(tmp_path / "coded", STORED, "uint8")
    with pytest.raises(MissingArtifactError):
        frontend_arrays.provide(coded, [STORED.model_copy(update={"hop_length": 320})], "demo")


def test_a_derivation_that_was_killed_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = store_of(tmp_path / "store", STORED)
    wanted = STORED.model_copy(update={"hop_length": 480})
    write, shards = StoreWriter.write_shard, []

    def killed(writer: StoreWriter, shard: int, *arguments: object) -> None:
        if shard == 2:
            raise SystemExit
        shards.append(shard)
        write(writer, shard, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "write_shard", killed)
        with pytest.raises(SystemExit):
            frontend_arrays.provide(place, [wanted], "demo")
    assert shards == [0, 1]
    assert not (place / artifact.MARKER).is_file()
    assert frontend_arrays.provide(place, [wanted], "demo") == [wanted]
    assert artifact.read(place).config == {"made": "here"}
    assert not (place / frontend_arrays.EARLIER_MARKER).exists()
    assert not verify(place).problems
    assert frontend_digest(wanted) in {
        entry["digest"] for entry in artifact.read(place).summary["arrays"].values()
    }
