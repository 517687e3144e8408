"""One Optuna study that any number of processes and machines work on, and that outlives each of them.

A trial belongs to the process that asked for it. If that process dies, the next one to ask for work calls the
trial failed and queues its values again; the run goes on from its own checkpoint, for its folder is named by
its content. Trial states mean: COMPLETE = it has its value, PRUNED = stopped for being hopeless, or refused
(attribute ``refused``) without any training, FAIL = training failed (attribute ``error``) or its process ended.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.errors import MissingDependencyError, OssicleError
from pipeline.search.liveness import Worker

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial, Trial

Direction = Literal["minimize", "maximize"]
WORKER, ERROR, REFUSED, REQUEUED, WORK, FOLDER = (
    "worker",
    "error",
    "refused",
    "requeued_from",
    "work",
    "folder",
)
REUSED, STEPS, SECONDS = "reused_from", "steps", "seconds"
_BEAT, _POSSIBLE = "beat:", "possible"
# Refused draws are free, but a space where next to nothing is possible would be drawn from for ever.
REFUSALS_A_TRIAL = 60

log = logging.getLogger(__name__)


class Pruned(Exception):  # noqa: N818 - an outcome, not an error
    """Stopped for being hopeless, after the validation of ``step``; its checkpoint is written."""

    def __init__(self, step: int) -> None:
        self.step = step
        super().__init__(f"pruned at step {step}")


class Interrupted(Exception):  # noqa: N818 - an outcome, not an error
    """Asked to stop; the checkpoint is written."""


@dataclass(frozen=True)
class Sampling:
    """How values are drawn: see ``SweepConfig`` and ``SearchConfig``."""

    sampler: Literal["tpe", "random", "grid"]
    startup_trials: int
    seed: int


class SharedStudy:
    """A study opened, or made, under its name. Its methods may be called from several threads.

    Args:
        place: a journal file, or the URL of a database.
        name: of the study; equal names are the same study.
        directions: of each objective.
        sampling: of new trials.
        pruner: Optuna's, asked by ``Trial.should_prune``.

    Raises:
        MissingDependencyError: Optuna is not installed.
        OssicleError: the storage cannot be opened, or holds another kind of study under this name.
    """

    def __init__(
        self,
        place: str | Path,
        name: str,
        directions: Sequence[Direction],
        sampling: Sampling,
        pruner: BasePruner | None = None,
    ) -> None:
        optuna = _optuna()
        self.name, self.worker = name, Worker.this()
        self._lock = threading.Lock()
        self._exhausted = False
        storage = _storage(place)
        try:
            self.study = optuna.create_study(
                study_name=name,
                storage=storage,
                directions=list(directions),
                load_if_exists=True,
                pruner=pruner,
            )
            self.beat()
            self.study.sampler = _sampler(sampling, self._seed(sampling.seed))
        except Exception as error:
            # SQLAlchemy, its drivers and Optuna raise what they like; all of it means: no study there.
            raise _unusable(place, error) from error
        found = [direction.name.lower() for direction in self.study.directions]
        if found != list(directions):
            raise OssicleError(
                f"the study {name} in {shown(place)} is of another kind", expected=list(directions), got=found,
                run="choose another storage",
            )  # fmt: skip

    def _seed(self, seed: int) -> int:
        # Two processes with one seed would draw the same values, and one that goes on those it has drawn before.
        # Alone at the beginning a process keeps the seed, so that a study of one can be had again.
        others = [
            key for key in self.study.user_attrs if key.startswith(_BEAT) and key != _BEAT + str(self.worker)
        ]
        begun = len(self.trials())
        if not others and not begun:
            return seed
        return int(hashlib.sha256(f"{seed} {self.worker} {begun}".encode()).hexdigest()[:8], 16)

    def beat(self) -> None:
        """Leave a sign of life."""
        self.study.set_user_attr(_BEAT + str(self.worker), time.time())

    def trials(self) -> list[FrozenTrial]:
        """Return every trial, in order."""
        return list(self.study.get_trials(deepcopy=False))

    def next_trial(
        self, budget: int, suggest: Callable[[Trial], dict[str, Any]]
    ) -> tuple[Trial, dict[str, Any]] | None:
        """Return a new trial and its values, queued ones first; None once ``budget`` are done or under way.

        Args:
            budget: trials of the whole study.
            suggest: draws the values.

        Raises:
            OssicleError: nearly every draw is refused.
        """
        with self._lock:
            self.requeue_dead()
            trials = self.trials()
            waiting = any(trial.state.name == "WAITING" for trial in trials)
            if not waiting and (self._exhausted or counted(trials) >= budget):
                return None
            refused = sum(REFUSED in trial.user_attrs for trial in trials)
            if refused >= REFUSALS_A_TRIAL * budget:
                raise OssicleError(
                    f"{refused} draws were refused, {counted(trials)} were possible",
                    expected="a space where more is possible", got=_commonest_refusal(trials),
                    run="raise the limits, or narrow the space to what fits",
                )  # fmt: skip
            trial: Trial = self.study.ask()
            trial.set_user_attr(WORKER, str(self.worker))
            earlier = [one for one in self.trials() if one.number < trial.number]
            if REQUEUED not in trial.user_attrs and counted(earlier) >= budget:
                # Another machine asked at the same moment.
                self._tell(trial, None, _state("FAIL"))
                return None
            return trial, suggest(trial)

    def requeue_failed(self) -> None:
        """Queue again what has failed: whoever starts the command anew may have mended the cause."""
        with self._lock:
            trials = self.trials()
            self._requeue(trials, [trial for trial in trials if ERROR in trial.user_attrs])

    def requeue_dead(self) -> None:
        """Queue again what processes that are gone have left unfinished."""
        now, beats = time.time(), self.study.user_attrs
        trials = self.trials()
        for trial in trials:
            if trial.state.name == "RUNNING" and not self._is_owned(trial, beats, now):
                self.study.tell(trial.number, state=_state("FAIL"), skip_if_finished=True)
        trials = self.trials()
        self._requeue(trials, [trial for trial in trials if ERROR not in trial.user_attrs])

    def _requeue(self, trials: Sequence[FrozenTrial], lost: Sequence[FrozenTrial]) -> None:
        queued = {trial.user_attrs.get(REQUEUED) for trial in trials}
        for trial in lost:
            if trial.state.name == "FAIL" and WORK in trial.user_attrs and trial.number not in queued:
                self.study.enqueue_trial(dict(trial.params), user_attrs={REQUEUED: trial.number})

    def _is_owned(self, trial: FrozenTrial, beats: dict[str, Any], now: float) -> bool:
        owner = trial.user_attrs.get(WORKER)
        if owner is None:
            begun = trial.datetime_start
            return begun is not None and now - begun.timestamp() < 60.0
        return Worker.parse(owner).is_alive(beats.get(_BEAT + owner), now)

    def twin(self, trial: Trial, work: str) -> FrozenTrial | None:
        """Return an earlier trial of the same work that has its value, was pruned, or is being trained."""
        for one in self.trials():
            if one.number < trial.number and one.user_attrs.get(WORK) == work and _has_result(one):
                return one
        return None

    def trial(self, number: int) -> FrozenTrial:
        """Return the trial called ``number`` as it is now."""
        return self.trials()[number]

    def is_owned(self, trial: FrozenTrial) -> bool:
        """Whether the process that runs ``trial`` is alive."""
        return self._is_owned(trial, self.study.user_attrs, time.time())

    def accept(self, trial: Trial, work: str, folder: str, **attributes: Any) -> None:
        """Note what work ``trial`` is, and where its run will be; from now on it is queued again if it is lost."""
        trial.set_constraint(_POSSIBLE, 0.0)
        for name, value in {**attributes, FOLDER: folder, WORK: work}.items():
            trial.set_user_attr(name, value)

    def refuse(self, trial: Trial, reason: str) -> None:
        """End ``trial`` without any training: its values are impossible. The sampler learns to avoid such."""
        trial.set_constraint(_POSSIBLE, 1.0)
        self.close(trial, "PRUNED", **{REFUSED: reason})

    def complete(self, trial: Trial, values: Sequence[float]) -> None:
        """Give ``trial`` its values."""
        with self._lock:
            self._tell(trial, list(values), None)

    def close(self, trial: Trial, state: Literal["FAIL", "PRUNED"], **attributes: Any) -> None:
        """End ``trial`` without a value."""
        for name, value in attributes.items():
            trial.set_user_attr(name, value)
        with self._lock:
            self._tell(trial, None, _state(state))

    def _tell(self, trial: Trial, values: list[float] | None, state: Any) -> None:
        try:
            self.study.tell(trial, values=values, state=state, skip_if_finished=True)
        except RuntimeError:
            # The grid sampler stops a study that has tried everything, which only optimize() expects.
            if not isinstance(self.study.sampler, _optuna().samplers.BruteForceSampler):
                raise
            self._exhausted = True


def counted(trials: Sequence[FrozenTrial]) -> int:
    """Return how many trials are of the budget: done, under way, queued or failed; not refused, not done again."""
    again = {trial.user_attrs.get(REQUEUED) for trial in trials}
    return sum(
        REFUSED not in trial.user_attrs
        and (trial.state.name != "FAIL" or (ERROR in trial.user_attrs and trial.number not in again))
        for trial in trials
    )


def shown(place: str | Path) -> str:
    """Return the storage's name without the password that its URL may hold."""
    head, separator, tail = str(place).partition("://")
    if not separator or "@" not in tail:
        return str(place)
    return f"{head}://***@{tail.rpartition('@')[2]}"


def _has_result(trial: FrozenTrial) -> bool:
    name = trial.state.name
    return name in ("COMPLETE", "RUNNING") or (name == "PRUNED" and REFUSED not in trial.user_attrs)


def _commonest_refusal(trials: Sequence[FrozenTrial]) -> str:
    reasons = [str(trial.user_attrs[REFUSED]) for trial in trials if REFUSED in trial.user_attrs]
    return max(set(reasons), key=reasons.count)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise MissingDependencyError(
            "sweeps and searches need Optuna, which is not installed", run="pip install 'ossicle[search]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


def _state(name: str) -> Any:
    return _optuna().trial.TrialState[name]


def _storage(place: str | Path) -> BaseStorage:
    optuna = _optuna()
    try:
        if "://" in str(place):
            storage: BaseStorage = optuna.storages.RDBStorage(str(place))
            return storage
        from optuna.storages.journal import JournalFileBackend

        Path(place).parent.mkdir(parents=True, exist_ok=True)
        journal: BaseStorage = optuna.storages.JournalStorage(JournalFileBackend(str(place)))
    except Exception as error:
        raise _unusable(place, error) from error
    return journal


def _unusable(place: str | Path, error: Exception) -> OssicleError:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return OssicleError(
        f"the study's storage {shown(place)} cannot be used",
        expected="a journal file, or the URL of a database whose driver is installed",
        got=f"{type(error).__name__}: {first}",
    )


def _sampler(sampling: Sampling, seed: int) -> BaseSampler:
    samplers = _optuna().samplers
    if sampling.sampler == "grid":
        grid: BaseSampler = samplers.BruteForceSampler(seed=seed)
        return grid
    if sampling.sampler == "random":
        random: BaseSampler = samplers.RandomSampler(seed=seed)
        return random
    tpe: BaseSampler = samplers.TPESampler(
        n_startup_trials=sampling.startup_trials, seed=seed, multivariate=True, group=True, constant_liar=True,
    )  # fmt: skip
    return tpe
