"""``kill -9`` at any moment, then resume: the store equals an uninterrupted one byte for byte."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

from tests.store import made_store

TOP = Path(__file__).resolve().parents[2]


def test_killed_before_any_change_of_the_file_system(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.store.killed_writer", str(tmp_path / "stores"), "12", "9"]
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) > 5


def test_killed_at_random_times(tmp_path: Path) -> None:
    rows = 320
    script = (
        f"from tests.store.killed_writer import write; from pathlib import Path; write(Path({{!r}}), {rows})"
    )
    alone = subprocess.Popen([sys.executable, "-c", script.format(str(tmp_path / "whole"))], cwd=TOP)
    assert alone.wait() == 0
    draw = random.Random(5)
    for _ in range(2):
        writer = subprocess.Popen([sys.executable, "-c", script.format(str(tmp_path / "killed"))], cwd=TOP)
        began = time.monotonic()
        while not (tmp_path / "killed" / "commits").exists() and time.monotonic() - began < 60:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.4))
        writer.kill()
        writer.wait()
    assert subprocess.call([sys.executable, "-c", script.format(str(tmp_path / "killed"))], cwd=TOP) == 0
    assert made_store.file_bytes(tmp_path / "killed") == made_store.file_bytes(tmp_path / "whole")
