from __future__ import annotations

import hashlib
from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxora.errors import DecodeError
from fluxora.protocol.chain import KnownChain, LedgerHeader, parse_header


def header(sequence: int, own: str, parent: str | None) -> LedgerHeader:
    return LedgerHeader(sequence, own, parent, 0)


@given(
    version=st.binary(min_size=4, max_size=4), previous=st.binary(min_size=32, max_size=32), rest=st.binary(min_size=4)
)
def test_a_history_entry_and_a_bare_header_give_the_parents_hash(version: bytes, previous: bytes, rest: bytes) -> None:
    bare = version + previous + rest
    digest = hashlib.sha256(bare).digest()
    for raw in (digest + bare + bytes(4), bare):
        parsed = parse_header(b64encode(raw).decode(), hash_hex=digest.hex(), sequence=7, closed_at=9)
        assert parsed == LedgerHeader(7, digest.hex(), previous.hex(), 9)


@given(st.binary(max_size=200), st.integers(0, 255))
def test_a_header_that_does_not_hash_to_its_hash_is_refused(raw: bytes, flip: int) -> None:
    digest = hashlib.sha256(raw).digest()
    wrong = bytes([digest[0] ^ (flip or 1)]) + digest[1:]
    with pytest.raises(DecodeError):
        parse_header(b64encode(raw).decode(), hash_hex=wrong.hex(), sequence=1, closed_at=0)


@given(st.text(max_size=60))
def test_any_text_is_a_header_or_a_decode_error(text: str) -> None:
    with pytest.raises(DecodeError):
        parse_header(text, hash_hex="0" * 64, sequence=1, closed_at=0)


@given(st.lists(st.integers(1, 60), unique=True), st.integers(0, 61), st.integers(1, 10))
def test_the_known_chain_is_a_window_of_the_newest(sequences: list[int], after: int, keep: int) -> None:
    chain = KnownChain(keep=keep)
    for sequence in sequences:
        chain.add([header(sequence, f"h{sequence}", None)])
    # Adding one by one forgets the lowest each time the window is full, so the model does the same.
    model: list[int] = []
    for sequence in sequences:
        model = sorted([*model, sequence])[-keep:]
    assert chain.below(100) == model
    assert chain.newest == (model[-1] if model else None)
    chain.truncate(after)
    assert chain.below(100) == [n for n in model if n <= after]
    chain.truncate(None)
    assert len(chain) == 0


def test_a_conflict_names_the_refuted_ledger_and_both_hashes() -> None:
    chain = KnownChain([header(n, f"a{n}", f"a{n - 1}") for n in range(1, 6)])
    assert chain.conflict([header(5, "a5", "a4"), header(6, "a6", "a5")]) is None
    same = chain.conflict([header(4, "b4", "a3")])
    assert same is not None
    assert (same.sequence, same.existing_hash, same.incoming_hash) == (4, "a4", "b4")
    parent = chain.conflict([header(6, "b6", "b5")])
    assert parent is not None
    assert (parent.sequence, parent.existing_hash, parent.incoming_hash) == (5, "a5", "b5")
    torn = chain.conflict([header(8, "a8", "a7"), header(9, "a9", "other")])
    assert torn is not None
    assert torn.sequence == 8
