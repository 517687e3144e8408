"""The same bytes whichever engine: one process, ranks of torchrun, actors of Ray; each with ``kill -9`` mid-run."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.config import Recipe
from pipeline.embedding.ray_engine import ShardCalls
from pipeline.embedding.worker import Message
from pipeline.errors import ConfigError, WeightsError
from pipeline.ranks import Rank
from pipeline.store.reader import StoreReader
from pipeline.store.schema import COMMITS_FOLDER
from stages import embed, locations
from tests.golden.golden_vectors import REPOSITORY
from tests.stages.embed_corpus import prepared, recipe_file, store_content
from tests.stages.test_embed_kill import RUN, wait_for_orphans

# Six processes on a busy machine of two cores.
pytestmark = pytest.mark.timeout(1_200)

VIEWS: dict[str, Any] = {
    "embed__shard_rows": 8,
    "embed__views__mixes": 8,
    "embed__views__textures": 4,
    "embed__views__augmented": 1.0,
    "embed__views__crop_probability": 0.5,
    "embed__views__gain_db": (-6.0, 6.0),
    "embed__views__background__probability": 0.5,
    "embed__views__band__probability": 0.5,
}

# Rank 1 dies at its first finished shard, once.
KILLED_RANK = """
import os, signal
from pathlib import Path
from pipeline.embedding import pool
heard = pool._Pool._heard
def die(self, member, message):
    heard(self, member, message)
    if message.kind == "done" and os.environ["RANK"] == "1":
        marker = Path(__file__).with_name("killed")
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
pool._Pool._heard = die
"""

# The driver kills one actor of its own cluster at the first finished shard.
KILLED_ACTOR = """
import os, signal, time
from pathlib import Path
from pipeline.embedding import ray_engine
share_out = ray_engine._share_out

def actors_below(parent):
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) != parent:
                continue
            process = int(stat.parent.name)
            if (stat.parent / "cmdline").read_bytes().startswith(b"ray::ShardActor"):
                yield process
            yield from actors_below(process)
        except (FileNotFoundError, ProcessLookupError):
            continue

def killing(ray, actors, pending, on_message):
    deadline = time.monotonic() + 400
    while len(list(actors_below(os.getpid()))) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    killed = []
    def hear(message):
        on_message(message)
        if message.kind == "done" and not killed:
            found = sorted(actors_below(os.getpid()))
            killed.append(found[-1])
            os.kill(found[-1], signal.SIGKILL)
            Path(__file__).with_name("killed").write_text(f"{len(found)} {len(pending)}")
    share_out(ray, actors, pending, hear)

ray_engine._share_out = killing
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The store of one process."""
    recipe = prepared(tmp_path_factory.mktemp("alone"), **VIEWS)
    with Path(os.devnull).open("w") as sink:
        folder = embed.run(recipe, console=Console(file=sink))
    views = StoreReader(folder).rows["view"].value_counts()
    assert set(views.index) == {"clean", "mix", "texture", "augmented"}
    return store_content(Path(folder))


def program(folder: Path, recipe: Recipe, before: str, engine: str) -> list[str]:
    """Write the program that embeds ``recipe`` and return what to run."""
    path = folder / "run_embed.py"
    path.write_text(
        before
        + RUN.replace("console=Console(stderr=True)", f"console=Console(stderr=True), engine='{engine}'")
    )
    recipe_file(recipe, folder / "recipe.json")
    return [str(path), str(folder / "recipe.json")]


def run(command: list[str], environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    found = {**os.environ, "PYTHONPATH": str(REPOSITORY), **(environment or {})}
    return subprocess.run(
        [sys.executable, *command], env=found, capture_output=True, text=True, check=False, timeout=580
    )


def test_torchrun_with_a_killed_rank_and_a_rerun_gives_the_same_store(
    alone: dict[str, bytes], tmp_path: Path
) -> None:
    recipe = prepared(tmp_path, **VIEWS)
    store = locations.store_folder(recipe)
    assert isinstance(store, Path)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    command = [*torchrun, *program(tmp_path, recipe, KILLED_RANK, "local")]
    first = run(command)
    assert first.returncode != 0 and (tmp_path / "killed").exists(), first.stderr
    wait_for_orphans(store)
    made = {path: path.stat().st_mtime_ns for path in (store / COMMITS_FOLDER).rglob("*.json")}
    assert made and not (store / "artifact.json").exists()
    second = run(command)
    assert second.returncode == 0, second.stderr
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert store_content(store) == alone


@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs the extra ray: pip install 'ossicle[ray]'"
)
def test_ray_with_a_killed_actor_gives_the_same_store(alone: dict[str, bytes], tmp_path: Path) -> None:
    recipe = prepared(tmp_path, embed__workers=3, **VIEWS)
    done = run(program(tmp_path, recipe, KILLED_ACTOR, "ray"), {"RAY_ADDRESS": ""})
    assert done.returncode == 0, done.stderr
    actors, pending = map(int, (tmp_path / "killed").read_text().split())
    assert actors == 3 and pending > 0
    store = locations.store_folder(recipe)
    assert isinstance(store, Path)
    assert store_content(store) == alone


# Who has which shards


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Rank()),
        ({"RANK": "2", "WORLD_SIZE": "3"}, Rank(2, 3)),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}, Rank(5, 8, 1, 4)),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "4"}, Rank(1, 4)),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}, Rank(1, 4)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"}, Rank()),
        ({"RANK": "0", "WORLD_SIZE": "2", "SLURM_PROCID": "1", "SLURM_NTASKS": "4"}, Rank(0, 2)),
    ],
)
def test_the_launchers_variables_name_the_rank(environment: dict[str, str], expected: Rank) -> None:
    assert Rank.of_environment(environment) == expected


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RANK": "1"}, "WORLD_SIZE is not"),
        ({"WORLD_SIZE": "4"}, "RANK is not"),
        ({"RANK": "3", "WORLD_SIZE": "3"}, "no rank of"),
        ({"RANK": "one", "WORLD_SIZE": "3"}, "no whole number"),
        ({"SLURM_PROCID": "-1", "SLURM_NTASKS": "3"}, "no rank of"),
    ],
)
def test_impossible_ranks_are_refused(environment: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Rank.of_environment(environment)


def test_ray_inside_of_ranks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="Ray shares"):
        embed.run(prepared(tmp_path, clips=2), console=Console(), engine="ray")


def test_an_actor_reports_what_a_user_can_mend() -> None:
    calls = ShardCalls()
    calls.send(Message("rows", 4, 8))
    calls.send(Message("rows", 4, 2))
    calls.send(Message("done", 4))
    assert calls.embed(4) == 10 and calls.recv() == 4
    calls.send(Message("failed", error=WeightsError("no weights", run="ossicle fetch")))
    with pytest.raises(WeightsError, match="no weights"):
        calls.embed(5)
