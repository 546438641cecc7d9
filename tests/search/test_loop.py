"""The search loop: durable before the next ask, replayed to the same state, and nothing else accepted."""

from __future__ import annotations

import errno
import json
import os
import random
from dataclasses import replace

import pytest

from hwnas.errors import UserError
from hwnas.search.admission import Admission
from hwnas.search.loop import Candidate, one_by_one, run_search
from hwnas.search.strategy import Score, make_strategy
from hwnas.spaces import make_space
from hwnas.storage import Journal

SPACE = make_space("nasbench201(input=(1,4,4), classes=3, channels=2, cells=1)")
HEADER = {"format": "test", "seed": 0}


def evaluate(trial):
    worth = random.Random(str(trial)).random()
    macs = 10.0 * sum(trial.genotype)
    return Candidate(trial, f"k{sum(trial.genotype)}", Score(worth, 1 / 3 - worth), {"macs": macs, "latency_ms": 0.1})


def strategy(text="evolution(population=5, sample=2)", seed=0):
    return make_strategy(text, Admission(SPACE, lambda g: 0.0, (0,) * 6), seed)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()[1:]]


class Killed(BaseException):
    pass


class Watched:
    """A strategy that looks at the file, as another process would, whenever it is asked or told."""

    def __init__(self, path, stop=None):
        self.inner, self.path, self.stop, self.asked, self.told = strategy(), path, stop, [], []

    def ask(self, count=1):
        if self.path.exists():
            assert [tuple(r["genotype"]) for r in rows(self.path)] == [t.genotype for t in self.asked]
        if len(self.asked) == self.stop:
            raise Killed
        self.asked += self.inner.ask(count)
        return self.asked[-1:]

    def tell(self, trial, score):
        assert rows(self.path)[-1]["accuracy"] == score.accuracy  # written down before it is told
        self.told.append((trial, score))
        self.inner.tell(trial, score)


def test_every_candidate_is_on_the_disk_before_the_next_ask(tmp_path):
    path = tmp_path / "history.jsonl"
    watched = Watched(path)
    found = run_search(watched, one_by_one(evaluate), Journal.create(path, HEADER), 12)
    assert [c.trial for c in found] == watched.asked
    assert found == [evaluate(t) for t in watched.asked]
    assert watched.told == [(c.trial, c.score) for c in found]
    assert len(rows(path)) == 12


def test_every_row_is_synced(tmp_path, monkeypatch):
    path = tmp_path / "history.jsonl"
    journal = Journal.create(path, HEADER)
    synced, real = [], os.fsync

    def watched(handle):
        synced.append(os.fstat(handle).st_ino == path.stat().st_ino)
        real(handle)

    monkeypatch.setattr(os, "fsync", watched)
    run_search(strategy(), one_by_one(evaluate), journal, 5)
    assert synced == [True] * 5


@pytest.mark.parametrize("seed", range(8))
def test_resumed_at_random_points_it_is_the_undisturbed_search(tmp_path, seed):
    whole = run_search(strategy(), one_by_one(evaluate), Journal.create(tmp_path / "whole", HEADER), 30)
    rng = random.Random(seed)
    path = tmp_path / "history.jsonl"
    journal = Journal.create(path, HEADER)
    for stop in sorted(rng.sample(range(30), 3)):
        evaluated = []

        left = stop - len(journal.rows)

        def counted(genotype, evaluated=evaluated, left=left):
            if len(evaluated) == left:
                raise Killed
            evaluated.append(genotype)
            return evaluate(genotype)

        with pytest.raises(Killed):
            run_search(strategy(), one_by_one(counted), journal, 30)
        if rng.random() < 0.5:  # the kill tore a line
            with path.open("a") as file:
                file.write('{"genotype": [1, 2')
        journal = Journal.resume(path)
        assert len(journal.rows) == stop
    found = run_search(strategy(), one_by_one(evaluate), journal, 30)
    assert found == whole
    assert path.read_bytes() == (tmp_path / "whole").read_bytes()


def test_what_is_replayed_is_not_evaluated_again(tmp_path):
    path = tmp_path / "history.jsonl"
    whole = run_search(strategy(), one_by_one(evaluate), Journal.create(path, HEADER), 10)

    def never(genotype):
        raise AssertionError("evaluated again")

    assert run_search(strategy(), one_by_one(never), Journal.resume(path), 10) == whole
    assert run_search(strategy(), one_by_one(never), Journal.resume(path), 4) == whole[:4]
    assert len(rows(path)) == 10


def test_estimates_are_told_as_such_when_replayed(tmp_path):
    def estimate(trial):
        found = evaluate(trial)
        complete = random.Random(found.key).random() < 0.5
        return replace(found, score=replace(found.score, complete=complete))

    path = tmp_path / "history.jsonl"
    whole = run_search(strategy(), one_by_one(estimate), Journal.create(path, HEADER), 10)
    assert len({c.score.complete for c in whole}) == 2
    assert run_search(strategy(), one_by_one(estimate), Journal.resume(path), 10) == whole


@pytest.mark.parametrize(
    "other", [("random", 0), ("evolution(population=5, sample=2)", 1), ("evolution(population=6, sample=2)", 0)]
)
def test_a_history_of_another_strategy_or_seed_is_refused_and_left_alone(tmp_path, other):
    path = tmp_path / "history.jsonl"
    run_search(strategy(), one_by_one(evaluate), Journal.create(path, HEADER), 12)
    before = path.read_bytes()
    with pytest.raises(UserError, match="another configuration"):
        run_search(strategy(*other), one_by_one(evaluate), Journal.resume(path), 20)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "row",
    [{}, {"genotype": [0] * 6}, {"genotype": 3, "key": "", "accuracy": 0, "loss": 0, "metrics": {}},
     {"genotype": [0] * 6, "key": "", "accuracy": "x", "loss": 0, "metrics": {}},
     {"genotype": [0] * 6, "key": "", "accuracy": None, "loss": 0, "metrics": {}},
     {"genotype": [0] * 6, "key": "", "accuracy": 0, "loss": 0, "metrics": 5}],
)  # fmt: skip
def test_rows_that_are_no_candidates_are_refused_in_one_line(tmp_path, row):
    journal = Journal.create(tmp_path / "h", HEADER)
    journal.append(row)
    with pytest.raises(UserError) as caught:
        run_search(strategy(), one_by_one(evaluate), Journal.resume(tmp_path / "h"), 3)
    assert "\n" not in str(caught.value)


def test_a_full_disk_leaves_the_rows_before(tmp_path, monkeypatch):
    path = tmp_path / "history.jsonl"
    journal = Journal.create(path, HEADER)
    run_search(strategy(), one_by_one(evaluate), journal, 4)
    before = path.read_bytes()

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="free some space"):
        run_search(strategy(), one_by_one(evaluate), Journal.resume(path), 8)
    monkeypatch.undo()
    assert path.read_bytes() == before
    whole = run_search(strategy(), one_by_one(evaluate), Journal.create(tmp_path / "whole", HEADER), 8)
    assert run_search(strategy(), one_by_one(evaluate), Journal.resume(path), 8) == whole


def test_progress_is_told_of_what_is_new(tmp_path):
    path = tmp_path / "history.jsonl"
    run_search(strategy(), one_by_one(evaluate), Journal.create(path, HEADER), 3)
    told = []
    run_search(strategy(), one_by_one(evaluate), Journal.resume(path), 6, lambda c, done: told.append((c.genotype, done)))
    assert [d for _, d in told] == [4, 5, 6]
    assert [list(g) for g, _ in told] == [r["genotype"] for r in rows(path)[3:]]


@pytest.mark.parametrize(
    "text", ["random", "evolution(population=5, sample=2)", "nsga2(population=6)", "halving", "local(patience=3)"]
)
@pytest.mark.parametrize("stop", [1, 7, 12])
def test_a_batch_cut_short_is_finished_first(tmp_path, text, stop):
    """Several trials at once: an interruption within a batch changes nothing of what is found."""
    whole = run_search(strategy(text), one_by_one(evaluate), Journal.create(tmp_path / "whole", HEADER), 20, batch=4)
    path = tmp_path / "history.jsonl"
    Journal.create(path, HEADER)
    path.write_text("".join((tmp_path / "whole").read_text().splitlines(keepends=True)[: 1 + stop]))
    evaluated = []

    def counted(trial):
        evaluated.append(trial)
        return evaluate(trial)

    assert run_search(strategy(text), one_by_one(counted), Journal.resume(path), 20, batch=4) == whole
    assert evaluated == [c.trial for c in whole[stop:]]
    assert path.read_bytes() == (tmp_path / "whole").read_bytes()


def test_what_is_found_does_not_depend_on_who_evaluates(tmp_path):
    def backwards(trials, known):
        """Finishes the last first, as workers may, and yields them in order."""
        return [*known, *reversed([evaluate(t) for t in reversed(trials[len(known) :])])]

    found = [
        run_search(strategy(), how, Journal.create(tmp_path / name, HEADER), 22, batch=4)
        for name, how in (("a", one_by_one(evaluate)), ("b", backwards))
    ]
    assert found[0] == found[1]


def test_an_evaluation_sees_whole_batches_also_after_an_interruption(tmp_path):
    """So that what it makes of a batch as a whole, such as numbers that depend on the company, comes out as before."""
    whole = Journal.create(tmp_path / "whole", HEADER)

    def in_company(trials, known):
        return [*known, *(Candidate(t, str(t), Score(len(trials) / 9, 0.0), {}) for t in trials[len(known) :])]

    expected = run_search(strategy("random"), in_company, whole, 20, batch=4)
    path = tmp_path / "history.jsonl"
    path.write_text("".join(whole.path.read_text().splitlines(keepends=True)[: 1 + 6]))
    given = []

    def watched(trials, known):
        given.append((len(trials), len(known)))
        return in_company(trials, known)

    assert run_search(strategy("random"), watched, Journal.resume(path), 20, batch=4) == expected
    assert given == [(4, 4), (4, 2), (4, 0), (4, 0), (4, 0)]
    assert path.read_bytes() == whole.path.read_bytes()


def test_low_fidelities_are_paid_by_their_share(tmp_path):
    found = run_search(strategy("halving"), one_by_one(evaluate), Journal.create(tmp_path / "h", HEADER), 9)
    spent = sum(c.trial.fidelity for c in found)
    assert 9 - 1e-9 <= spent < 10
    assert {c.trial.fidelity for c in found} == {1.0, 1 / 3, 1 / 9}
    assert len(found) > 20
