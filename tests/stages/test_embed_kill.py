"""``kill -9`` at random moments of an embed run, then resume: the same bytes, and nothing made twice."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.config import Recipe
from pipeline.store.reader import StoreReader
from pipeline.store.schema import COMMITS_FOLDER
from stages import embed, locations
from tests.golden.golden_vectors import REPOSITORY
from tests.stages.embed_corpus import prepared, recipe_file, store_content

RUN = """
import sys
from pathlib import Path
from rich.console import Console
from pipeline.config import Recipe
from stages import embed
if __name__ == "__main__":
    embed.run(Recipe.model_validate_json(Path(sys.argv[1]).read_text()), console=Console(stderr=True))
"""

# Ctrl-C at the first finished shard: sent by the process to its group, so no busy machine can miss the moment.
# A background job's children start with SIGINT ignored; this one stands for a command at a terminal.
INTERRUPTED = """
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from pipeline.embedding import pool
heard = pool._Pool._heard
def interrupt(self, member, message):
    heard(self, member, message)
    if message.kind == "done":
        os.killpg(0, signal.SIGINT)
pool._Pool._heard = interrupt
"""


def start(recipe: Recipe, folder: Path, before: str = "") -> subprocess.Popen[bytes]:
    """Start ``ossicle embed`` of ``recipe`` as a process group of its own."""
    program = folder / "run_embed.py"
    program.write_text(before + RUN)
    recipe_file(recipe, folder / "recipe.json")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, program, folder / "recipe.json"],
        env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def kill_at_random_moments(folder: Path, kills: int, seed: int, whole_group: bool) -> Path:
    """Kill ``kills`` runs, each a random while after it began to write, then let one finish."""
    recipe = prepared(folder)
    store = locations.store_folder(recipe)
    draw = random.Random(seed)
    made: dict[Path, int] = {}
    killed = 0
    while killed < kills:
        process = start(recipe, folder)
        # Half die somewhere in start-up, half between the first and the last commit.
        deadline = time.monotonic() + draw.uniform(0.5, 3.0)
        commits = len(list((store / COMMITS_FOLDER).rglob("*.json")))
        if draw.random() < 0.5:
            while process.poll() is None and len(list((store / COMMITS_FOLDER).rglob("*.json"))) == commits:
                time.sleep(0.002)
            deadline = time.monotonic() + draw.uniform(0.0, 0.3)
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.001)
        if process.poll() is not None:
            # It finished before the moment came: only a new store can be killed again.
            process.communicate()
            shutil.rmtree(store)
            made.clear()
            continue
        (os.killpg if whole_group else os.kill)(process.pid, signal.SIGKILL)
        killed += 1
        process.communicate()
        wait_for_orphans(store)
        for path in (store / COMMITS_FOLDER).rglob("*.json"):
            stamp = path.stat().st_mtime_ns
            assert made.setdefault(path, stamp) == stamp, f"{path} was written twice"
    final = start(recipe, folder)
    _, messages = final.communicate(timeout=280)
    assert final.returncode == 0, messages.decode()
    for path, stamp in made.items():
        assert path.stat().st_mtime_ns == stamp, f"{path} was written twice"
    return store


def wait_for_orphans(store: Path) -> None:
    """Wait until workers whose parent was killed are gone: they hold the store's lock no longer."""
    import fcntl

    lock = store / ".lock"
    deadline = time.monotonic() + 60
    while lock.exists() and time.monotonic() < deadline:
        with lock.open("r+") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.02)
                continue
        return
    assert not lock.exists(), "a worker outlived its parent by a minute"


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    recipe = prepared(tmp_path_factory.mktemp("whole"))
    with Path(os.devnull).open("w") as sink:
        return store_content(embed.run(recipe, console=Console(file=sink)))


@pytest.mark.parametrize(
    ("kills", "whole_group"), [pytest.param(2, True, marks=pytest.mark.exhaustive), (1, False)]
)
def test_killed_runs_resume_to_the_same_bytes(
    expected: dict[str, bytes], tmp_path: Path, kills: int, whole_group: bool
) -> None:
    store = kill_at_random_moments(tmp_path, kills, seed=kills, whole_group=whole_group)
    assert store_content(store) == expected


@pytest.mark.slow
@pytest.mark.timeout(1_200)
@pytest.mark.skipif("OSSICLE_SLOW" not in os.environ, reason="set OSSICLE_SLOW=1 for twenty kills (minutes)")
def test_twenty_kills_resume_to_the_same_bytes(expected: dict[str, bytes], tmp_path: Path) -> None:
    for seed in range(4):
        folder = tmp_path / str(seed)
        folder.mkdir()
        store = kill_at_random_moments(folder, 5, seed=100 + seed, whole_group=seed % 2 == 0)
        assert store_content(store) == expected


def test_control_c_ends_it_and_leaves_a_store_that_resumes(tmp_path: Path) -> None:
    recipe = prepared(tmp_path)
    store = locations.store_folder(recipe)
    process = start(recipe, tmp_path, INTERRUPTED)
    process.communicate(timeout=280)
    assert process.returncode not in (0, None)
    wait_for_orphans(store)
    made = {path: path.stat().st_mtime_ns for path in (store / COMMITS_FOLDER).rglob("*.json")}
    final = start(recipe, tmp_path)
    _, messages = final.communicate(timeout=280)
    assert final.returncode == 0, messages.decode()
    assert {path: path.stat().st_mtime_ns for path in made} == made
    reader = StoreReader(store)
    assert 0 < len(made) < 2 * len(reader.shard_sizes)
    assert (reader.rows["status"] == "ok").all()
