"""Blind mutations of bytes: small steps away from inputs that are worth it."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

MAX_BYTES = 4096
POOL = 512  # inputs kept at a time
STEPS = 4  # at most, between an input and the next
INTERESTING = b'\x00\t\n\r "%&+-./0159:;=AZ[\\]az{}\x7f\x80\xc0\xe2\xff'


class Mutator:
    """The next input, from a pool that begins as the corpus and drifts to what the parser takes."""

    def __init__(self, corpus: Sequence[bytes], tokens: Sequence[bytes], seed: int) -> None:
        generator = Random(seed)
        self._random = generator.random
        self._bits = generator.getrandbits
        self._corpus = list(corpus)
        self._tokens = list(tokens)
        self._pool = list(corpus)
        self._steps = (
            self._set, self._flip, self._delete, self._repeat, self._insert, self._insert, self._replace, self._splice
        )  # fmt: skip

    def __call__(self) -> bytes:
        """A new input: one of the pool, a few steps on."""
        data = bytearray(self._pick(self._pool))
        for _ in range(1 + self._below(STEPS)):
            self._steps[self._bits(3)](data)
        del data[MAX_BYTES:]
        return bytes(data)

    def keep(self, data: bytes) -> None:
        """Go on from this one too; beyond POOL another one makes room, but the corpus stays."""
        if len(self._pool) < POOL:
            self._pool.append(data)
        elif len(self._corpus) < POOL:
            self._pool[len(self._corpus) + self._below(POOL - len(self._corpus))] = data

    def _below(self, bound: int) -> int:
        return int(self._random() * bound)

    def _pick(self, among: Sequence[bytes]) -> bytes:
        return among[self._below(len(among))]

    def _span(self, data: bytearray) -> tuple[int, int]:
        start = self._below(len(data) + 1)
        return start, start + self._below(min(16, len(data) - start) + 1)

    def _set(self, data: bytearray) -> None:
        if data:
            data[self._below(len(data))] = INTERESTING[self._below(len(INTERESTING))]

    def _flip(self, data: bytearray) -> None:
        if data:
            data[self._below(len(data))] ^= 1 << self._bits(3)

    def _delete(self, data: bytearray) -> None:
        start, end = self._span(data)
        del data[start:end]

    def _repeat(self, data: bytearray) -> None:
        start, end = self._span(data)
        data[end:end] = data[start:end] * (1 << self._bits(3))

    def _insert(self, data: bytearray) -> None:
        at = self._below(len(data) + 1)
        data[at:at] = self._pick(self._tokens)

    def _replace(self, data: bytearray) -> None:
        start, end = self._span(data)
        data[start:end] = self._pick(self._tokens)

    def _splice(self, data: bytearray) -> None:
        """The rest from another input."""
        other = self._pick(self._pool)
        data[self._below(len(data) + 1) :] = other[self._below(len(other) + 1) :]
