"""Stage 1 writes to, and stage 2 reads from, an object store over a bad network: the same bytes as a folder."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

pytest.importorskip("obstore", reason="obstore is not installed (the extra s3)")
pytest.importorskip("moto.server", reason="moto, a local S3 server, is not installed (group test)")

from pipeline import recipe as recipes
from pipeline.store.verification import verify
from pipeline.training.job import Job, run_job
from stages import distill, embed, store
from tests.stages import in_process
from tests.stages.embed_corpus import prepared, store_content
from tests.store import s3_server
from tests.training.small_store import weights

SMALL = {
    "embed.views.mixes": 8, "embed.views.textures": 0, "embed.workers": 1,
    "train.steps": 4, "train.batch_size": 8, "train.validate_every": 4, "train.warmup_steps": 1,
    "targets.components": 6,
}  # fmt: skip
FAULTS = ("500", "lost", "500", "cut", "slow")


@pytest.fixture
def proxy() -> Iterator[s3_server.FaultyProxy]:
    with s3_server.running(timeout_seconds=2.0) as served:
        yield served


def test_embed_audit_and_distill_over_a_bad_network(tmp_path: Path, proxy: s3_server.FaultyProxy) -> None:
    console = Console(file=io.StringIO())
    local = recipes.change(prepared(tmp_path, clips=12), SMALL)
    with pytest.MonkeyPatch.context() as patch:
        in_process.counted(patch)
        folder = embed.run(local, console=console)
    remote = recipes.change(local, {"paths.stores": f"s3://{s3_server.BUCKET}/stores"})
    proxy.faults, proxy.every = FAULTS, 6
    place = embed.run(remote, console=console)
    assert str(place) == f"s3://{s3_server.BUCKET}/stores/{Path(folder).name}"
    assert set(proxy.injected) >= {"500", "lost", "slow"}
    assert verify(place).sound
    assert store.audit(place, console=console, recipe=remote, sample=8)
    (at_home,) = distill.jobs_of(local)
    (over_there,) = distill.jobs_of(remote)
    assert over_there.inputs == at_home.inputs and over_there.folder == at_home.folder
    learnt = weights(run_job(at_home).folder)
    again = Job(over_there.run, over_there.store, tmp_path / "run", over_there.config, over_there.inputs)
    assert weights(run_job(Job.from_json(again.to_json())).folder) == learnt
    proxy.faults = ()
    prefix = f"stores/{Path(folder).name}"
    assert s3_server.objects(prefix) == store_content(Path(folder))
    before = dict(proxy.requests)
    assert embed.run(remote, console=console) == place
    assert proxy.requests["PUT"] == before["PUT"]
