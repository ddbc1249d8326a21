from __future__ import annotations

import itertools
from math import inf

import pytest
import structlog
import trio
import trio.testing
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pytest import RaisesGroup  # noqa: PT013 - the documented way

from fluxora.actors.supervisor import ChildSpec, Group, Supervisor
from fluxora.errors import ConfigError, RestartIntensityExceeded, StartTimeout, StorageUnavailable, SupervisionError

MAX_RESTARTS, MAX_SECONDS = 3, 5.0


class CrashError(Exception):
    pass


class Part:
    """A child whose life is written down in a shared journal; it crashes after `lives[n]` seconds in incarnation n."""

    def __init__(self, name, journal, *, lives=(), start_s=0.0, drains_in=0.0, deaf=False, **options):
        self.name = name
        self.journal = journal
        self.lives = iter(lives)
        self.start_s = start_s
        self.drains_in = drains_in
        self.deaf = deaf
        self.running = 0
        self.asked = trio.Event()
        self.options = options

    @property
    def spec(self):
        return ChildSpec(self.name, self.live, drain=None if self.deaf else self.asked.set, **self.options)

    async def live(self, *, task_status):
        self.running += 1
        self.journal.append(("start", self.name))
        try:
            await trio.sleep(self.start_s)
            task_status.started()
            self.journal.append(("up", self.name))
            with trio.move_on_after(next(self.lives, inf)) as life:
                await self.asked.wait()
            if life.cancelled_caught:
                raise CrashError(self.name)
            await trio.sleep(self.drains_in)
            self.journal.append(("drained", self.name))
        finally:
            self.running -= 1
            self.journal.append(("end", self.name))


def names(journal, what):
    return [name for happened, name in journal if happened == what]


def supervise(children, **options):
    return Supervisor("root", children, **{"restart_delay_s": 0.0, "jitter": lambda: 0.0, **options})


async def run_until(supervisor, at):
    """Stop the supervisor at a moment of the mock clock; its errors come out as they are."""
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(supervisor.run)
            await trio.sleep_until(at)
            supervisor.stop()
    except ExceptionGroup as group:
        raise group.exceptions[0]  # noqa: B904 - its own cause is what the tests look at


async def test_children_start_in_order_and_stop_in_reverse(autojump_clock):
    journal = []
    parts = [Part(name, journal, start_s=1.0, drains_in=1.0) for name in "abc"]
    supervisor = supervise([part.spec for part in parts])
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        assert trio.current_time() == began + 3
        assert [status.state for status in supervisor.statuses()] == ["running"] * 3
        supervisor.stop()
        supervisor.stop()
    assert journal[:6] == [(what, name) for name in "abc" for what in ("start", "up")]
    assert journal[6:] == [(what, name) for name in "cba" for what in ("drained", "end")]
    assert trio.current_time() == began + 6
    assert [(status.name, status.state) for status in supervisor.statuses()] == [(name, "stopped") for name in "abc"]


@settings(max_examples=60, deadline=None)
@given(
    schedule=st.lists(
        st.one_of(st.sampled_from([0.0, 1.25, 5 / 3, 2.5, 5.0]), st.floats(0.0, 6.0)), min_size=1, max_size=12
    )
)
@example(schedule=[1.0, 2.5, 0.0, 2.5])  # the 4th exactly at the end of the 5 s
def test_intensity_is_exact_for_any_crash_schedule(schedule):
    """An oracle over the whole history: the first crash that is the 4th within 5 s, and no other, ends the tree."""
    times = list(itertools.accumulate(schedule))
    fatal = next(
        (n for n in range(MAX_RESTARTS, len(times)) if times[n - MAX_RESTARTS] >= times[n] - MAX_SECONDS),
        None,
    )
    journal = []
    part = Part("actor", journal, lives=schedule)

    async def main():
        bystander = Part("bystander", journal)
        await run_until(supervise([bystander.spec, part.spec]), times[-1] + 1)

    def run():
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))

    if fatal is None:
        run()
    else:
        with pytest.raises(RestartIntensityExceeded) as caught:
            run()
        assert isinstance(caught.value.__cause__, CrashError)
    lives = names(journal, "start").count("actor")
    assert lives == (len(times) + 1 if fatal is None else fatal + 1)
    assert names(journal, "start").count("bystander") == 1
    assert names(journal, "drained").count("bystander") == 1  # escalation is an orderly stop, too
    assert part.running == 0


@settings(max_examples=25, deadline=None)
@given(draws=st.lists(st.floats(0.0, 1.0, exclude_max=True), min_size=3, max_size=3))
def test_backoff_doubles_and_jitter_takes_up_to_half(draws):
    starts = []

    async def crash(*, task_status):
        starts.append(trio.current_time())
        task_status.started()
        raise CrashError

    draw = iter(draws)
    supervisor = Supervisor(
        "root", [ChildSpec("actor", crash)], restart_delay_s=0.4, jitter=lambda: next(draw), max_seconds=60.0
    )
    with pytest.raises(RestartIntensityExceeded):
        trio.run(supervisor.run, clock=trio.testing.MockClock(autojump_threshold=0))
    waits = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert waits == pytest.approx([0.4 * 2**n * (1 - draws[n] / 2) for n in range(3)])


@pytest.mark.parametrize("alone", [True, False])
async def test_retryable_errors_restart_with_growing_delays_and_never_escalate(autojump_clock, alone):
    """Also where a sibling breaks with it, as the stage before does when a stage's channel closes."""
    starts = []

    def factory():
        interrupted = trio.Event()

        async def neighbour(*, task_status):
            task_status.started()
            await interrupted.wait()
            raise trio.BrokenResourceError

        async def actor(*, task_status):
            starts.append(trio.current_time())
            task_status.started()
            if not alone:
                interrupted.set()
                with trio.CancelScope(shield=True):
                    await trio.sleep(0.001)  # so that the neighbour breaks first
            raise StorageUnavailable("away")

        return [ChildSpec("neighbour", neighbour), ChildSpec("actor", actor)]

    supervisor = supervise([Group("group", factory)], restart_delay_s=0.1)
    with structlog.testing.capture_logs() as lines:
        await run_until(supervisor, 60)
    waits = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert waits[:4] == pytest.approx([0.1, 0.2, 0.4, 0.8], abs=0.01)
    assert 1.0 < max(waits) <= 5.01
    assert len(waits) > 10
    interrupted = [line for line in lines if line["event"] == "supervisor.actor_interrupted"]
    assert len(interrupted) == len(starts)
    assert all("exc_info" not in line for line in interrupted)
    assert supervisor.statuses()[1].last_error == "StorageUnavailable: away"


async def test_crashes_count_among_retryable_errors(autojump_clock):
    ends = itertools.cycle([StorageUnavailable("away"), CrashError()])

    async def actor(*, task_status):
        task_status.started()
        raise next(ends)

    with pytest.raises(RestartIntensityExceeded, match="4 crashes"):
        await supervise([ChildSpec("actor", actor)]).run()


async def test_one_for_one_restarts_only_the_child_that_crashed(autojump_clock):
    journal = []
    parts = [Part("a", journal), Part("b", journal, lives=[2.0]), Part("c", journal)]
    supervisor = supervise([part.spec for part in parts])
    await run_until(supervisor, 10)
    assert names(journal, "start") == ["a", "b", "c", "b"]
    assert [status.restarts for status in supervisor.statuses()] == [0, 1, 0]
    assert [status.last_error for status in supervisor.statuses()] == [None, "CrashError: b", None]


async def test_one_for_all_restarts_every_child(autojump_clock):
    journal = []
    parts = [Part("a", journal), Part("b", journal, lives=[2.0]), Part("c", journal)]
    supervisor = supervise([part.spec for part in parts], strategy="one_for_all")
    await run_until(supervisor, 10)
    assert names(journal, "start") == ["a", "b", "c"] * 2
    assert names(journal, "drained") == ["c", "b", "a"]
    assert [status.restarts for status in supervisor.statuses()] == [1, 1, 1]


async def test_group_is_rebuilt_with_fresh_channels_and_resumes(autojump_clock):
    """Three stages over bounded channels: the second incarnation goes on where the record ends, and drains."""
    done, calls = [], []

    def factory():
        calls.append(trio.current_time())
        numbers_tx, numbers_rx = trio.open_memory_channel(1)
        squares_tx, squares_rx = trio.open_memory_channel(1)
        asked = trio.Event()

        async def source(*, task_status):
            async with numbers_tx:
                task_status.started()
                for number in itertools.count(len(done)):
                    if asked.is_set():
                        return
                    await numbers_tx.send(number)
                    await trio.sleep(1)

        async def square(*, task_status):
            async with numbers_rx, squares_tx:
                task_status.started()
                async for number in numbers_rx:
                    if number == 3 and len(calls) == 1:
                        raise CrashError("stage")
                    await squares_tx.send(number * number)

        async def sink(*, task_status):
            async with squares_rx:
                task_status.started()
                async for square in squares_rx:
                    done.append(square)  # noqa: PERF401 - one by one, as a recorder does

        return [
            ChildSpec("sink", sink, inbox=lambda: squares_rx.statistics().current_buffer_used),
            ChildSpec("square", square, inbox=lambda: numbers_rx.statistics().current_buffer_used),
            ChildSpec("source", source, drain=asked.set),
        ]

    supervisor = supervise([Group("pipeline", factory)], restart_delay_s=0.5)
    with structlog.testing.capture_logs() as lines:
        await run_until(supervisor, 7.75)
    assert calls == [0.0, 3.5]
    assert done == [n * n for n in range(len(done))]
    assert len(done) == 8  # 0..2, then 3..7 from 3.5 s on; what was in flight at the stop was drained
    crashed = [line for line in lines if line["event"] == "supervisor.actor_crashed"]
    assert [(line["actor"], line["incarnation"], line["error"]) for line in crashed] == [
        ("square", 1, "CrashError: stage")
    ]
    assert isinstance(crashed[0]["exc_info"], CrashError)
    statuses = supervisor.statuses()
    assert [(s.name, s.restarts, s.inbox, s.last_error) for s in statuses] == [
        ("sink", 1, 0, None),
        ("square", 1, 0, "CrashError: stage"),
        ("source", 1, None, None),
    ]


async def test_drain_budget_then_cancel(autojump_clock):
    journal = []
    deaf = Part("deaf", journal, deaf=True, drain_s=2.0)
    slow = Part("slow", journal, drains_in=9.0, drain_s=4.0)
    quick = Part("quick", journal, drains_in=1.0, drain_s=4.0)
    with structlog.testing.capture_logs() as lines:
        await run_until(supervise([deaf.spec, slow.spec, quick.spec]), 10)
    assert trio.current_time() == 10 + 1 + 4 + 2
    assert names(journal, "drained") == ["quick"]
    assert names(journal, "end") == ["quick", "slow", "deaf"]
    assert [line["actor"] for line in lines if line["event"] == "supervisor.drain_cut_short"] == ["slow", "deaf"]


async def test_crash_during_start_is_a_crash_and_holds_later_children_back(autojump_clock):
    journal = []
    attempts = itertools.count(1)

    async def shaky(*, task_status):
        if next(attempts) < 3:
            raise CrashError("no port")
        task_status.started()
        await trio.sleep_forever()

    later = Part("later", journal)
    supervisor = supervise([ChildSpec("shaky", shaky, drain_s=0), later.spec], restart_delay_s=1.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        assert trio.current_time() == 3.0  # delays of 1 and 2 s
        assert names(journal, "up") == ["later"]
        assert supervisor.statuses()[0].restarts == 2
        supervisor.stop()


async def test_crash_loop_during_start_raises_out_of_nursery_start(autojump_clock):
    async def broken(*, task_status):
        raise CrashError

    supervisor = supervise([ChildSpec("broken", broken)])
    async with trio.open_nursery() as nursery:
        with pytest.raises(
            RestartIntensityExceeded, match=r"root: 4 crashes within 5\.0 s, the last in broken: CrashError"
        ):
            await nursery.start(supervisor.run)


async def test_what_cannot_be_configured_is_told_once_and_not_tried_again(autojump_clock):
    journal, attempts = [], itertools.count(1)

    async def misconfigured(*, task_status):
        raise ConfigError(f"PORT: taken, attempt {next(attempts)}")

    supervisor = supervise([Part("before", journal).spec, ChildSpec("door", misconfigured)])
    with structlog.testing.capture_logs() as lines, pytest.raises(ConfigError, match=r"^PORT: taken, attempt 1$"):
        await run_until(supervisor, 100)
    assert names(journal, "drained") == ["before"]
    told = [line for line in lines if line["log_level"] in {"warning", "error", "critical"}]
    assert [(line["event"], line["actor"], "exc_info" in line) for line in told] == [
        ("supervisor.actor_misconfigured", "door", False)
    ]


async def test_a_configuration_that_worked_once_is_worth_another_try(autojump_clock):
    attempts = itertools.count(1)

    async def door(*, task_status):
        attempt = next(attempts)
        if attempt == 2:
            raise ConfigError("PORT: taken for a moment")
        task_status.started()
        if attempt == 1:
            raise CrashError
        await trio.sleep_forever()

    supervisor = supervise([ChildSpec("door", door, drain_s=0)])
    await run_until(supervisor, 100)
    assert supervisor.statuses()[0].restarts == 2


async def test_start_timeout_is_a_crash(autojump_clock):
    journal = []
    late = Part("late", journal, start_s=3.0, start_timeout_s=2.0)
    supervisor = supervise([late.spec], max_seconds=60.0)
    with pytest.raises(RestartIntensityExceeded) as caught:
        await run_until(supervisor, 100)
    assert isinstance(caught.value.__cause__, StartTimeout)
    assert trio.current_time() == 8.0
    assert len(names(journal, "end")) == 4


async def test_start_deadline_is_lifted_once_a_child_serves(autojump_clock):
    journal = []
    await run_until(supervise([Part("a", journal, start_s=1.0, start_timeout_s=2.0).spec]), 50)
    assert journal == [("start", "a"), ("up", "a"), ("drained", "a"), ("end", "a")]


async def test_permanent_child_may_not_end_transient_may(autojump_clock):
    ends = {"permanent": 0, "transient": 0}

    def ending(name):
        async def end(*, task_status):
            task_status.started()
            await trio.sleep(1)
            ends[name] += 1

        return end

    specs = [ChildSpec(name, ending(name), restart=name) for name in ends]
    with pytest.raises(RestartIntensityExceeded) as caught:
        await run_until(supervise(specs, max_seconds=60.0), 100)
    assert type(caught.value.__cause__) is SupervisionError
    assert ends == {"permanent": 4, "transient": 1}


async def test_nested_supervisor_escalates_to_its_parent_and_is_rebuilt(autojump_clock):
    journal = []
    leaf = Part("leaf", journal, lives=[0.0] * 4)  # the inner supervisor gives up once, then its leaf lives
    inner = Supervisor("inner", lambda: [Part("first", journal).spec, leaf.spec], restart_delay_s=0.0)
    supervisor = supervise([Part("outer", journal).spec, inner])
    await run_until(supervisor, 10)
    assert names(journal, "start").count("leaf") == 5
    assert names(journal, "start").count("first") == 2
    assert names(journal, "start").count("outer") == 1
    statuses = {status.name: status for status in supervisor.statuses()}
    assert list(statuses) == ["outer", "inner", "first", "leaf"]
    assert (statuses["inner"].restarts, statuses["outer"].restarts) == (1, 0)
    assert statuses["inner"].last_error.startswith("RestartIntensityExceeded: inner: 4 crashes")
    assert names(journal, "drained")[-3:] == ["leaf", "first", "outer"]


async def test_crash_loop_escalates_through_nesting(autojump_clock):
    journal = []
    leaf = Part("leaf", journal, lives=[0.0] * 100)
    with pytest.raises(RestartIntensityExceeded) as caught:
        await run_until(supervise([Supervisor("inner", [leaf.spec], restart_delay_s=0.0)]), 10)
    assert isinstance(caught.value.__cause__, RestartIntensityExceeded)
    assert isinstance(caught.value.__cause__.__cause__, CrashError)
    assert len(names(journal, "start")) == 16


@pytest.mark.parametrize("at", [0.5, 1.5, 2.5, 4.0])
async def test_cancellation_from_outside_leaves_no_task_behind(autojump_clock, at):
    journal = []
    parts = [
        Part("a", journal, start_s=1.0, drains_in=9.0),
        Part("b", journal, start_s=1.0, lives=[1.0]),
        Part("c", journal, start_s=1.0, drains_in=9.0),
    ]
    supervisor = supervise([parts[0].spec, Supervisor("inner", [parts[1].spec]), Group("g", lambda: [parts[2].spec])])
    with trio.move_on_after(at) as scope:
        await supervisor.run()
    assert scope.cancelled_caught
    assert trio.current_time() == at
    assert [part.running for part in parts] == [0, 0, 0]
    assert not names(journal, "drained")


@pytest.mark.parametrize("at", [0.0, 0.5, 1.5])
async def test_stop_while_starting_is_an_orderly_stop(autojump_clock, at):
    journal = []
    parts = [Part(name, journal, start_s=1.0) for name in "abc"]
    supervisor = supervise([part.spec for part in parts])

    async def stop():
        await trio.sleep(at)
        supervisor.stop()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop)
        await nursery.start(supervisor.run)
    assert trio.current_time() == at
    assert names(journal, "drained") == names(journal, "up")[::-1]
    assert [part.running for part in parts] == [0, 0, 0]


async def test_stop_during_backoff_does_not_wait_for_it(autojump_clock):
    journal = []
    supervisor = supervise([Part("a", journal, lives=[1.0]).spec], restart_delay_s=60.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await trio.sleep(2)
        assert [status.state for status in supervisor.statuses()] == ["restarting"]
        supervisor.stop()
    assert trio.current_time() == 2
    assert len(names(journal, "start")) == 1


async def test_crash_while_stopping_is_logged_and_not_restarted(autojump_clock):
    journal = []
    asked = trio.Event()

    async def clumsy(*, task_status):
        task_status.started()
        await asked.wait()
        raise CrashError("while draining")

    supervisor = supervise([Part("first", journal).spec, ChildSpec("clumsy", clumsy, drain=asked.set)])
    with structlog.testing.capture_logs() as lines:
        await run_until(supervisor, 1)
    assert names(journal, "drained") == ["first"]
    assert [line["actor"] for line in lines if line["event"] == "supervisor.actor_crashed"] == ["clumsy"]


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
async def test_base_exceptions_pass_through_untouched(autojump_clock, interrupt):
    journal = []
    bystander = Part("bystander", journal)

    async def interrupted(*, task_status):
        task_status.started()
        await trio.sleep(1)
        raise interrupt

    with structlog.testing.capture_logs() as lines, RaisesGroup(interrupt, flatten_subgroups=True):
        await supervise([bystander.spec, ChildSpec("interrupted", interrupted)]).run()
    assert not lines
    assert (len(names(journal, "start")), bystander.running) == (1, 0)


async def test_failing_factory_is_a_crash(autojump_clock):
    def factory():
        raise CrashError("factory")

    with structlog.testing.capture_logs() as lines, pytest.raises(RestartIntensityExceeded):
        await supervise([Group("pipeline", factory)]).run()
    crashed = [line for line in lines if line["event"] == "supervisor.actor_crashed"]
    assert [line["incarnation"] for line in crashed] == [1, 2, 3, 4]


async def test_helpers_of_an_incarnation_die_with_it(autojump_clock):
    alive = []

    async def helper():
        alive.append(1)
        try:
            await trio.sleep_forever()
        finally:
            alive.pop()

    async def actor(*, task_status):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(helper)
            task_status.started()
            await trio.sleep(1)
            raise CrashError

    with pytest.raises(RestartIntensityExceeded) as caught:
        await supervise([ChildSpec("actor", actor)]).run()
    assert isinstance(caught.value.__cause__, CrashError)  # named by its leaf, not by the nursery's group
    assert not alive
