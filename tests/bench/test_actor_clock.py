from __future__ import annotations

import time

import trio
import trio.lowlevel

from bench.actor_clock import LOOP, OTHERS, ActorClock

BURNT_S = 0.02


def burn():
    until = time.thread_time() + BURNT_S
    while time.thread_time() < until:
        pass


async def child():
    burn()
    await trio.lowlevel.checkpoint()
    burn()


async def actor(*, task_status):
    burn()
    task_status.started()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(child)
        nursery.start_soon(inner, name="inner")


async def inner():
    burn()


async def main():
    async with trio.open_nursery() as nursery:
        await nursery.start(actor, name="actor")
        nursery.start_soon(child)


def test_a_step_is_of_the_actor_nearest_above_its_task():
    clock = ActorClock()
    began = time.thread_time()
    trio.run(main, instruments=[clock])
    whole = time.thread_time() - began
    found = clock.seconds
    assert found.keys() == {"actor", "inner", OTHERS, LOOP}
    for name, times in (("actor", 3), ("inner", 1), (OTHERS, 2)):
        others = sum(seconds for other, seconds in found.items() if other not in {name, LOOP})
        assert times * BURNT_S <= found[name] <= whole - others + 1e-6
    assert sum(found.values()) <= time.thread_time()
