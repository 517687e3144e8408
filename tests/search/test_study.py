"""Studies shared by processes, some of which are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import OssicleError
from pipeline.search import crew, liveness, results
from pipeline.search.liveness import Worker
from pipeline.search.space import parse
from pipeline.search.study import ERROR, REQUEUED, Interrupted, Sampling, SharedStudy, counted, shown

pytest.importorskip("optuna")
ROOT = Path(__file__).parents[2]
RANDOM = Sampling("random", 2, 0)


def start(
    place: str | Path, budget: int, seconds: float, log: Path, together: int = 1
) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "tests.search.study_worker",
        str(place),
        "shared",
        str(budget),
        str(seconds),
        str(log),
        str(together),
    ]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def let_go(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        assert line(process) == "ready"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


def suggest_x(trial: Any) -> dict[str, Any]:
    return {"x": trial.suggest_float("x", 0.0, 1.0)}


def finish_all(study: SharedStudy, budget: int, suggest: Any = suggest_x) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []

    def body(trial: Any, values: dict[str, Any], stopping: threading.Event) -> None:
        study.accept(trial, work=str(sorted(values.items())), folder="f")
        seen.append(values)
        study.complete(trial, [0.0])

    crew.work(study, budget=budget, slots=1, suggest=suggest, body=body)
    return seen


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_two_processes_do_each_trial_once_and_no_more_than_the_budget(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "journal.log" if kind == "journal" else f"sqlite:///{tmp_path / 'study.db'}"
    log, budget = tmp_path / "done.txt", 8
    if kind == "sqlite":
        SharedStudy(place, "shared", ["maximize"], RANDOM)  # the schema is there before two want to make it
    both = [start(place, budget, 0.05, log, together=2) for _ in range(2)]
    let_go(*both)
    assert [process.wait(240) for process in both] == [0, 0]
    done = [row.split() for row in log.read_text().splitlines()]
    assert len(done) == budget
    assert len({number for number, _ in done}) == len({x for _, x in done}) == budget
    owners = {
        trial.user_attrs["worker"] for trial in SharedStudy(place, "shared", ["maximize"], RANDOM).trials()
    }
    assert len(owners) == 2


def test_a_trial_whose_process_was_killed_is_done_again_with_its_values(tmp_path: Path) -> None:
    place, log = tmp_path / "journal.log", tmp_path / "done.txt"
    victim = start(place, 3, 60.0, log)
    let_go(victim)
    number, x = line(victim).split()[1:]
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    heir = start(place, 3, 0.01, log)
    let_go(heir)
    assert heir.wait(240) == 0
    done = [row.split()[1] for row in log.read_text().splitlines()]
    assert done[0] == x
    assert len(done) == 3
    study = SharedStudy(place, "shared", ["maximize"], RANDOM)
    trials = study.trials()
    assert trials[int(number)].state.name == "FAIL"
    assert [trial.user_attrs.get(REQUEUED) for trial in trials].count(int(number)) == 1
    assert counted(trials) == 3
    frame = results.table(trials, ["x_score"])
    assert sorted(frame["outcome"]) == ["done", "done", "done", "lost"]


def test_an_interrupted_trial_comes_first_the_next_time(tmp_path: Path) -> None:
    study = SharedStudy(tmp_path / "j.log", "s", ["maximize"], RANDOM)
    left: list[float] = []

    def body(trial: Any, values: dict[str, Any], stopping: threading.Event) -> None:
        study.accept(trial, work=str(values["x"]), folder="f")
        left.append(values["x"])
        stopping.set()
        raise Interrupted

    crew.work(study, budget=5, slots=1, suggest=suggest_x, body=body)
    assert len(left) == 1
    again = SharedStudy(tmp_path / "j.log", "s", ["maximize"], RANDOM)
    assert finish_all(again, 5)[0]["x"] == left[0]
    assert counted(again.trials()) == 5


def test_a_failed_trial_counts_until_the_command_is_started_again(tmp_path: Path) -> None:
    study = SharedStudy(tmp_path / "j.log", "s", ["maximize"], RANDOM)

    def fails(trial: Any, values: dict[str, Any], stopping: threading.Event) -> None:
        study.accept(trial, work=str(values["x"]), folder="f")
        study.close(trial, "FAIL", **{ERROR: "no memory"})

    crew.work(study, budget=3, slots=1, suggest=suggest_x, body=fails)
    failed = [trial.params["x"] for trial in study.trials()]
    assert len(failed) == counted(study.trials()) == 3
    again = SharedStudy(tmp_path / "j.log", "s", ["maximize"], RANDOM)
    again.requeue_failed()
    assert [values["x"] for values in finish_all(again, 3)] == failed
    assert counted(again.trials()) == 3


def test_refused_draws_cost_nothing_but_not_for_ever(tmp_path: Path) -> None:
    study = SharedStudy(tmp_path / "j.log", "s", ["maximize"], Sampling("tpe", 4, 1))
    possible: list[float] = []

    def body(trial: Any, values: dict[str, Any], stopping: threading.Event) -> None:
        if values["x"] > 0.2:
            study.refuse(trial, "too dear")
            return
        study.accept(trial, work=str(values["x"]), folder="f")
        possible.append(values["x"])
        study.complete(trial, [values["x"]])

    crew.work(study, budget=12, slots=1, suggest=suggest_x, body=body)
    assert len(possible) == 12
    refused = sum("refused" in trial.user_attrs for trial in study.trials())
    # Drawn blindly 12 that fit take 48 refusals on average; the sampler learns what does not fit.
    assert 0 < refused < 40
    with pytest.raises(OssicleError, match="draws were refused") as caught:
        nothing = SharedStudy(tmp_path / "n.log", "n", ["maximize"], RANDOM)
        crew.work(
            nothing, budget=1, slots=1, suggest=suggest_x,
            body=lambda trial, values, stopping: nothing.refuse(trial, "macs 9 > 1"),
        )  # fmt: skip
    assert "macs 9 > 1" in str(caught.value)


def test_a_grid_is_every_combination_once_and_then_over(tmp_path: Path) -> None:
    space = parse({
        "train.batch_size": {"low": 8, "high": 16, "step": 4}, "student.name": {"choices": ["cnn4", "micronet_m0"]},
        "student.odd_size": {"choices": ["pad", "resize"], "when": {"student.name": "cnn4"}},
    }, "x")  # fmt: skip
    study = SharedStudy(tmp_path / "j.log", "g", ["maximize"], Sampling("grid", 0, 0))
    seen = finish_all(study, space.combinations(), space.suggest)
    assert len(seen) == len({str(sorted(values.items())) for values in seen}) == 3 * (2 + 1)


def test_an_error_in_one_thread_ends_all_and_is_raised(tmp_path: Path) -> None:
    study = SharedStudy(tmp_path / "j.log", "s", ["maximize"], RANDOM)
    stopped = threading.Event()

    def body(trial: Any, values: dict[str, Any], stopping: threading.Event) -> None:
        if trial.number == 0:
            raise ZeroDivisionError
        if stopping.wait(30):
            stopped.set()
            raise Interrupted

    with pytest.raises(ZeroDivisionError):
        crew.work(study, budget=9, slots=2, suggest=suggest_x, body=body)
    assert stopped.is_set() or len(study.trials()) == 1


def test_a_worker_is_alive_while_its_process_is(monkeypatch: pytest.MonkeyPatch) -> None:
    me = Worker.this()
    assert Worker.parse(str(me)) == me
    assert me.is_alive(None, time.time())
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    other = Worker(me.machine, child.pid, liveness._started(child.pid) or "")
    assert other.is_alive(None, 0.0)
    os.kill(child.pid, signal.SIGKILL)
    time.sleep(0.2)
    assert not other.is_alive(time.time(), time.time())  # a zombie, not waited for yet, is dead too
    child.wait()
    # Another process with the number of a dead one is not that one.
    assert not Worker(me.machine, me.process, "1").is_alive(time.time(), time.time())
    far = Worker("elsewhere", 1, "1")
    assert far.is_alive(1_000.0, 1_000.0 + liveness.STALE_SECONDS - 1)
    assert not far.is_alive(1_000.0, 1_000.0 + liveness.STALE_SECONDS + 1)
    assert not far.is_alive(None, 0.0)


def test_a_storage_that_cannot_be_used_is_one_line_without_its_password(tmp_path: Path) -> None:
    for place in (f"sqlite:////proc/nowhere/{tmp_path.name}.db", "nosuchdb://me:secret@host/db"):
        with pytest.raises(OssicleError, match="cannot be used") as caught:
            SharedStudy(place, "s", ["maximize"], RANDOM)
        assert "secret" not in str(caught.value)
    assert shown("postgresql://me:secret@host/db") == "postgresql://***@host/db"
    SharedStudy(tmp_path / "j.log", "s", ["maximize"], RANDOM)
    with pytest.raises(OssicleError, match="of another kind"):
        SharedStudy(tmp_path / "j.log", "s", ["minimize", "minimize"], RANDOM)
