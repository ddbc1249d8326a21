"""How far ingest has come, as the pipeline's actors tell it in whatever order they come to it."""

from __future__ import annotations

from chain_events import digest, header

from fluxora.actors.progress import Progress


def at(complete_through: int | None, newest: int | None = None, **fields: int) -> Progress:
    progress = Progress(**fields)
    progress.resumed(complete_through, None if newest is None else header(newest))
    return progress


def test_a_rollback_takes_the_mark_down_and_never_up() -> None:
    """Headers run ahead of events: history may hold up to a ledger whose events are not recorded."""
    progress = at(100, 110)
    progress.taken_back(105)
    assert (progress.complete_through, progress.ledger) == (100, None)
    progress.taken_back(90)
    assert (progress.complete_through, progress.safe_ledger) == (90, 89)
    progress.taken_back(None)
    assert progress.complete_through is None
    assert progress.safe_ledger is None


def test_without_a_mark_a_rollback_makes_none() -> None:
    progress = at(None, 10)
    progress.taken_back(7)
    assert progress.complete_through is None


def test_the_newest_header_is_told_and_no_second_look() -> None:
    progress = at(10, 10)
    progress.checked(header(12))
    progress.checked(header(11))
    assert (progress.ledger, progress.ledger_hash, progress.closed_at) == (12, digest(12), header(12).closed_at)
    progress.taken_back(11)
    progress.checked(header(12, "b"))
    assert (progress.ledger, progress.ledger_hash) == (12, digest(12, "b"))


def test_a_header_below_the_fork_stays() -> None:
    progress = at(10, 10)
    progress.taken_back(10)
    assert progress.ledger == 10


def test_a_reorg_lasts_from_its_discovery_until_the_new_history_is_past_it() -> None:
    progress = at(20, 20, safety_margin=2)
    progress.fork_found(9)
    assert (progress.reorg_detected, progress.reorg_from, progress.reorgs) == (True, 10, 1)
    progress.recorded(25, 0.0)  # what was on its way before
    assert progress.reorg_detected
    progress.taken_back(9)
    progress.recorded(11, 0.0)
    assert progress.reorg_detected
    progress.recorded(12, 0.0)
    assert not progress.reorg_detected
    assert progress.complete_through == 12


def test_a_second_fork_found_before_the_first_rollback_is_waited_for() -> None:
    progress = at(20, 20)
    progress.fork_found(15)
    progress.fork_found(5)
    progress.taken_back(15)
    progress.recorded(18, 0.0)
    assert progress.reorg_detected
    progress.taken_back(5)
    progress.recorded(7, 0.0)
    assert not progress.reorg_detected


def test_where_nothing_completes_ledgers_headers_tell_that_the_fork_is_past() -> None:
    progress = at(None, 10)
    progress.fork_found(7)
    progress.taken_back(7)
    progress.checked(header(8, "b"))
    progress.recorded(None, 0.0)
    assert progress.reorg_detected
    progress.checked(header(9, "b"))
    progress.recorded(None, 1.5)
    assert not progress.reorg_detected
    assert progress.synced_at == 1.5


def test_a_new_incarnation_starts_from_what_is_stored() -> None:
    progress = at(20, 20)
    progress.fork_found(9)
    progress.halted = "history_pruned"
    progress.resumed(5, None)
    assert (progress.complete_through, progress.ledger, progress.halted) == (5, None, None)
    progress.recorded(11, 0.0)
    assert not progress.reorg_detected, "a rollback that the crash cut off is not waited for"


def test_only_news_count_as_a_sync() -> None:
    progress = at(20, 20)
    progress.recorded(None, 1.0, events=False)  # the first look after a start: we are at the tip
    progress.recorded(None, 2.0, events=False)  # looking again at a node that stands still
    progress.recorded(20, 3.0, events=False)
    assert progress.synced_at == 1.0
    progress.recorded(21, 4.0, events=False)
    assert progress.synced_at == 4.0
    progress.recorded(None, 5.0, events=True)
    assert progress.synced_at == 5.0
