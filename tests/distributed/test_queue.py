"""Batches, and the requests of workers that died."""

from itertools import cycle

import numpy as np
import pytest

from evocompress.core.requests import Estimate, Estimation, Evaluate, MicroBatchValue, Result
from evocompress.core.types import DROP, Candidate
from evocompress.distributed.queue import (
    BATCH_SECONDS,
    DEATHS,
    FIRST_PATIENCE,
    LEAST_PATIENCE,
    Pace,
    Queue,
)
from evocompress.distributed.request_split import SplitRequests


def request(number, micro_batches=(0,), **more):
    return Evaluate(Candidate(((f"u{number}", DROP),)), micro_batches, **more)


def queue(count, workers=2, pace=None, tokens=lambda _: 100):
    if pace is None:
        pace = Pace()
        pace.add(10**9, 1.0)
    return Queue([request(n) for n in range(count)], tokens, workers, pace)


def drain(waiting, takers=("a",)):
    """Batches of workers that take turns."""
    batches = []
    for taker in cycle(takers):
        if not waiting:
            return batches
        batches.append(waiting.take(taker))


def flat(batches):
    return [r for batch in batches for r in batch]


def test_a_step_is_cut_into_ever_smaller_batches_in_order():
    batches = drain(queue(64, workers=1))
    sizes = [len(batch) for batch in batches]
    assert sizes[0] == 16 and sizes == sorted(sizes, reverse=True) and sizes[-7:] == [1] * 7
    assert flat(batches) == [request(n) for n in range(64)]


def test_one_at_a_time_until_the_pace_is_known():
    pace = Pace()
    assert {len(batch) for batch in drain(queue(20, pace=pace))} == {1}
    assert pace.patience(10**9) == FIRST_PATIENCE


def test_every_worker_goes_through_a_stretch_of_its_own():
    batches = drain(queue(64, workers=4), "abcd")
    for place in range(4):
        assert flat(batches[place::4]) == [request(n) for n in range(16 * place, 16 * place + 16)]


def test_who_is_done_takes_the_far_half_of_the_longest_stretch():
    waiting = queue(40, workers=2)
    assert waiting.take("slow") == tuple(request(n) for n in range(5))
    own = [waiting.take("fast") for _ in range(11)]
    assert flat(own) == [request(n) for n in range(20, 40)]
    assert waiting.take("fast")[0] == request(13)
    rest = flat(drain(waiting, ["slow", "fast"]))
    assert {r.candidate.levels[0][0] for r in rest} == {
        f"u{n}" for n in (*range(5, 13), *range(14, 20))
    }


def test_a_single_worker_does_what_was_cut_for_many():
    assert flat(drain(queue(10, workers=4))) == [request(n) for n in range(10)]


def test_what_waited_for_a_worker_that_left_is_for_whoever_comes():
    waiting = queue(16, workers=1)
    waiting.take("a")
    waiting.leave("a")
    assert flat(drain(waiting, "b")) == [request(n) for n in range(4, 16)]


def test_what_no_worker_has_begun_comes_back_in_its_place():
    waiting = queue(16, workers=1)
    first, second = waiting.take("a"), waiting.take("a")
    waiting.leave("a")
    waiting.back(second)
    waiting.back(first)
    assert flat(drain(waiting, "b")) == [request(n) for n in range(16)]


def test_batches_take_about_a_second_once_the_pace_is_known():
    pace = Pace()
    for _ in range(30):
        pace.add(1000, 2.0)
    assert pace.tokens_per_second == pytest.approx(500)
    sizes = [len(batch) for batch in drain(queue(1000, workers=1, pace=pace))]
    assert set(sizes[:150]) == {int(BATCH_SECONDS * 500 / 100)}
    slow = Pace()
    slow.add(10, 60.0)
    assert {len(batch) for batch in drain(queue(8, pace=slow))} == {1}


def test_the_pace_follows_a_change():
    pace = Pace()
    for seconds in (1.0,) * 50 + (4.0,) * 50:
        pace.add(1000, seconds)
    assert pace.tokens_per_second == pytest.approx(250, rel=0.01)
    assert pace.patience(1000) == pytest.approx(LEAST_PATIENCE + 20 * 4, rel=0.01)


def test_what_a_dead_worker_had_goes_alone_and_first():
    waiting = queue(16, workers=1)
    batch = waiting.take("a")
    assert len(batch) == 4
    assert waiting.lost(batch, only=True) == []
    assert [waiting.take("a") for _ in range(4)] == [(r,) for r in batch]
    assert waiting.take("a") == tuple(request(n) for n in range(4, 7))


def test_only_what_kills_alone_is_given_up():
    waiting = queue(4, workers=1, tokens=lambda _: 1)
    poison = request(2)
    lost, answers = 0, []
    while waiting:
        batch = waiting.take("a")
        if poison in batch:
            lost += 1
            answers += waiting.lost(batch, only=True)
    assert [(answer.request, answer.failed) for answer in answers] == [
        (poison, f"{DEATHS} workers died of it")
    ]
    assert lost == DEATHS


def test_nobody_is_to_blame_while_another_batch_waits_behind():
    """The answer to the first is on its way when the second kills: it must not count as death."""
    poison, answered, given_up = request(1), set(), []
    waiting = queue(4, workers=1, tokens=lambda _: 1)
    while waiting:
        first = waiting.take("a")
        second = () if waiting.suspected(first) else waiting.take("a", behind=True)
        if poison not in (*first, *second):
            answered |= {*first, *second}
            continue
        if second:
            waiting.back(second)
        given_up += waiting.lost(first, only=not second)
    assert [answer.request for answer in given_up] == [poison]
    assert answered == {request(n) for n in range(4)} - {poison}


def test_an_estimate_that_kills_is_a_failed_estimation():
    asked = Estimate(Candidate(), "taylor", (0,))
    waiting = Queue([asked], lambda _: 1, 1, Pace())
    answers = [waiting.lost(waiting.take("a"), only=True) for _ in range(DEATHS)]
    assert answers[:-1] == [[], []]
    assert isinstance(answers[-1][0], Estimation) and answers[-1][0].failed


def result(piece, failed=None):
    values = tuple(MicroBatchValue(m, (float(m),), (1,)) for m in piece.micro_batches)
    return Result(piece, () if failed else values, failed=failed)


def test_few_requests_are_cut_by_micro_batches_and_joined_in_any_order():
    whole = [request(0, (5, 1, 3, 2)), request(1, (0,)), request(2, (1, 2), stop_above=1.0)]
    pieces = SplitRequests(whole, workers=12)
    assert [p.micro_batches for p in pieces.requests] == [
        *((5,), (1,), (3,), (2,)),
        (0,),
        (1, 2),
    ]
    rng, joined = np.random.default_rng(0), []
    for place in rng.permutation(len(pieces.requests)):
        joined += pieces.joined(result(pieces.requests[place]))
    assert sorted(joined, key=lambda r: r.request.candidate.id) == sorted(
        map(result, whole), key=lambda r: r.request.candidate.id
    )


def test_a_failed_piece_fails_the_whole_once():
    whole = request(0, (0, 1, 2))
    pieces = SplitRequests([whole], workers=3)
    joined = []
    for number, piece in enumerate(pieces.requests):
        joined += pieces.joined(result(piece, "nan" if number == 1 else None))
    assert joined == [Result(whole, (), failed="nan")]


def test_enough_requests_stay_whole():
    whole = [request(n, (0, 1)) for n in range(4)]
    assert SplitRequests(whole, workers=4).requests == whole
