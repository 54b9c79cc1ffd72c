"""The loop with a searcher and an executor made of plain arithmetic."""

import numpy as np
import pytest

from evocompress.core.errors import RunError
from evocompress.core.requests import Estimate, Estimation, Evaluate, MicroBatchValue, Pool, Result
from evocompress.core.types import Candidate, Level
from evocompress.pipeline.journal import Journal
from evocompress.pipeline.loop import replay, search
from evocompress.search.base import Incumbent

POOL = Pool(tokens=(10, 10, 10, 10))


def candidate(zeros):
    return Candidate((("a", Level(zeros=zeros)),))


class Climber:
    """A small random search with two stages, as searchers in the package have."""

    def __init__(self, seed, steps=6):
        self._rng = np.random.default_rng(seed)
        self._left = steps
        self._best = None
        self._stage = 0
        self._asked = []

    def ask(self):
        if not self._left:
            return []
        if self._stage == 0:
            batch = (int(self._rng.integers(4)),)
            self._asked = [candidate(int(z)) for z in self._rng.integers(1, 50, size=3)]
        else:
            batch = tuple(int(m) for m in self._rng.permutation(4)[:2])
        return [Evaluate(c, batch) for c in self._asked]

    def tell(self, results):
        ranked = sorted(results, key=lambda r: r.mean)
        self._asked = [r.request.candidate for r in ranked[:2]]
        if self._stage == 1:
            self._left -= 1
            found = Incumbent.of(ranked[0])
            if self._best is None or found.value < self._best.value:
                self._best = found
        self._stage = 1 - self._stage

    def incumbent(self):
        return self._best

    def phase(self):
        return f"stage {self._stage}"


class Ranker(Climber):
    """Asks for estimates, twice for the same one, before it climbs from what they say."""

    def __init__(self, seed, steps=3):
        super().__init__(seed, steps)
        self._estimates = [Estimate(candidate(z), "slope", (0, 2)) for z in (3, 30, 3)]

    def ask(self):
        return self._estimates or super().ask()

    def tell(self, results):
        if not self._estimates:
            return super().tell(results)
        assert [row for answer in results for row in answer.rows] == [(3, 9), (30, 900), (3, 9)]
        self._estimates = []


class Arithmetic:
    """Values depend on candidate and micro-batch only; dies after a number of evaluations."""

    def __init__(self, die_after=None, fail=()):
        self.evaluated = []
        self._die_after = die_after
        self._fail = fail

    def map(self, requests):
        for request in requests:
            if len(self.evaluated) == self._die_after:
                raise KeyboardInterrupt
            self.evaluated.append(request)
            yield self._answer(request)

    def _answer(self, request):
        zeros = request.candidate.by_name["a"].zeros
        if isinstance(request, Estimate):
            return Estimation(request, ("a",), ((zeros, zeros**2),))
        if zeros in self._fail:
            return Result(request, (), failed="NaN")
        values = tuple(
            MicroBatchValue(m, ((zeros - 20) ** 2 + m / 3,), (10,)) for m in request.micro_batches
        )
        return Result(request, values)

    def close(self):
        pass


def run(path, executor, seed=3, searcher=Climber, **options):
    path.parent.mkdir(exist_ok=True)
    with Journal(path, {"seed": seed}) as journal:
        return search(searcher(seed), executor, journal, POOL, **options).best


@pytest.mark.parametrize("searcher", [Climber, Ranker])
def test_interrupted_anywhere_and_resumed_is_the_undisturbed_run(tmp_path, searcher):
    undisturbed = Arithmetic()
    winner = run(tmp_path / "whole" / "j", undisturbed, searcher=searcher)
    expected = (tmp_path / "whole" / "j").read_bytes()
    for count in range(len(undisturbed.evaluated)):
        path = tmp_path / f"cut{count}" / "j"
        with pytest.raises(KeyboardInterrupt):
            run(path, Arithmetic(die_after=count), searcher=searcher)
        rest = Arithmetic()
        assert run(path, rest, searcher=searcher) == winner
        assert path.read_bytes() == expected
        assert len(rest.evaluated) <= len(undisturbed.evaluated) - count


def test_replaying_a_finished_run_evaluates_nothing(tmp_path):
    winner = run(tmp_path / "j", Arithmetic())
    again = Arithmetic()
    assert run(tmp_path / "j", again) == winner
    assert again.evaluated == []


def test_requested_counts_repeats_and_computed_does_not(tmp_path):
    executor = Arithmetic()
    run(tmp_path / "j", executor)
    with Journal(tmp_path / "j", {"seed": 3}) as journal:
        last = journal.steps[-1]
    assert last.requested == 6 * (3 * 10 + 2 * 20)
    assert last.computed == sum(10 * len(r.micro_batches) for r in executor.evaluated)
    assert last.computed < last.requested


def test_a_token_limit_stops_before_the_next_ask(tmp_path):
    run(tmp_path / "j", Arithmetic(), tokens=100)
    with Journal(tmp_path / "j", {"seed": 3}) as journal:
        assert [step.requested for step in journal.steps] == [30, 70, 100]


def test_a_failed_candidate_is_recorded_and_cannot_win(tmp_path):
    healthy = run(tmp_path / "healthy", Arithmetic())
    bad = healthy.candidate.by_name["a"].zeros
    winner = run(tmp_path / "j", Arithmetic(fail=(bad,)))
    assert winner.candidate != healthy.candidate
    with Journal(tmp_path / "j", {"seed": 3}) as journal:
        assert journal.result(Evaluate(healthy.candidate, (0,))).failed == "NaN"


def test_a_search_without_a_valid_candidate_says_so(tmp_path):
    with pytest.raises(RunError, match="without a valid candidate"):
        run(tmp_path / "j", Arithmetic(), tokens=1)


def test_an_estimate_counts_its_tokens_whenever_it_is_asked_for_and_is_made_once(tmp_path):
    executor = Arithmetic()
    run(tmp_path / "j", executor, searcher=Ranker)
    asked = [request for request in executor.evaluated if isinstance(request, Estimate)]
    assert [request.candidate for request in asked] == [candidate(3), candidate(30)]
    with Journal(tmp_path / "j", {"seed": 3}) as journal:
        first = journal.steps[0]
    assert (first.requested, first.computed) == (3 * 20, 2 * 20)


def test_a_lost_estimate_is_made_again_and_a_damaged_one_is_an_error(tmp_path):
    winner = run(tmp_path / "j", Arithmetic(), searcher=Ranker)
    file = min((tmp_path / "estimates").iterdir())
    content = file.read_bytes()
    file.unlink()
    again = Arithmetic()
    assert run(tmp_path / "j", again, searcher=Ranker) == winner
    assert [type(request) for request in again.evaluated] == [Estimate]
    file.write_bytes(content[:-1] + b"x")
    with pytest.raises(RunError, match="damaged: delete it and resume"):
        run(tmp_path / "j", Arithmetic(), searcher=Ranker)


def test_a_replay_finds_the_same_and_records_nothing(tmp_path):
    winner = run(tmp_path / "j", Arithmetic(), searcher=Ranker)
    before = (tmp_path / "j").read_bytes()
    with Journal(tmp_path / "j", {"seed": 3}) as journal:
        assert replay(Ranker(3), journal) == winner
        assert replay(Ranker(3, steps=1), journal).value >= winner.value
        with pytest.raises(RunError, match="does not answer"):
            replay(Ranker(4), journal)
    assert (tmp_path / "j").read_bytes() == before


def test_the_outcome_knows_who_was_compared_and_on_what_the_winner_won(tmp_path):
    with Journal(tmp_path / "j", {}) as journal:
        outcome = search(Climber(3), Arithmetic(), journal, POOL)
        best = outcome.best
        assert sorted(outcome.compared) == sorted(journal.candidates)
        assert journal.result(Evaluate(best.candidate, best.micro_batches)).mean == best.value
    assert len(best.micro_batches) == 2
