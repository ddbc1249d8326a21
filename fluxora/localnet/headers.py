"""Ledger headers as XDR, built with stellar_sdk and hashed as the network does.

A header entry is hash[32] || LedgerHeader || ext[4], and the hash is sha256 of the LedgerHeader. The LedgerCloseMeta
around it says that the ledger held no transactions: readers of events use getEvents, and nobody replays this meta.
"""

from __future__ import annotations

import hashlib
import struct
from base64 import b64encode
from functools import cache

from stellar_sdk import xdr

PROTOCOL_VERSION = 27
TOTAL_COINS = 10**18
_NO_HASH = b"\x00" * 32


def _digest(*parts: bytes) -> bytes:
    return hashlib.sha256(b"\x00".join(parts)).digest()


def header_bytes(*, sequence: int, previous_hash: bytes, closed_at: int, content: bytes, nonce: bytes) -> bytes:
    """The XDR of one LedgerHeader. `content` digests what the ledger holds, `nonce` tells branches and resets apart.

    Both enter the transaction set hash, so the same content on another branch has another ledger hash.
    """
    value = xdr.StellarValue(
        tx_set_hash=xdr.Hash(_digest(b"txset", nonce, content)),
        close_time=xdr.TimePoint(xdr.Uint64(closed_at)),
        upgrades=[],
        ext=xdr.StellarValueExt(
            xdr.StellarValueType.STELLAR_VALUE_SIGNED,
            lc_value_signature=xdr.LedgerCloseValueSignature(
                node_id=xdr.NodeID(
                    xdr.PublicKey(xdr.PublicKeyType.PUBLIC_KEY_TYPE_ED25519, xdr.Uint256(_digest(b"node", nonce)))
                ),
                # Nobody checks the validator's signature; only its length is part of the format.
                signature=xdr.Signature(hashlib.sha512(nonce + content + struct.pack(">I", sequence)).digest()),
            ),
        ),
    )
    header = xdr.LedgerHeader(
        ledger_version=xdr.Uint32(PROTOCOL_VERSION),
        previous_ledger_hash=xdr.Hash(previous_hash),
        scp_value=value,
        tx_set_result_hash=xdr.Hash(_digest(b"results", content)),
        bucket_list_hash=xdr.Hash(_digest(b"buckets", previous_hash, content)),
        ledger_seq=xdr.Uint32(sequence),
        total_coins=xdr.Int64(TOTAL_COINS),
        fee_pool=xdr.Int64(sequence * 100),
        inflation_seq=xdr.Uint32(0),
        id_pool=xdr.Uint64(0),
        base_fee=xdr.Uint32(100),
        base_reserve=xdr.Uint32(5_000_000),
        max_tx_set_size=xdr.Uint32(200),
        skip_list=[xdr.Hash(_NO_HASH)] * 4,
        ext=xdr.LedgerHeaderExt(0),
    )
    return header.to_xdr_bytes()


def history_entry(header: bytes) -> bytes:
    """The LedgerHeaderHistoryEntry around a header: its hash before it, an empty extension behind it."""
    return hashlib.sha256(header).digest() + header + b"\x00\x00\x00\x00"


@cache
def _transaction_set() -> tuple[bytes, bytes]:
    """The bytes before and behind the parent's hash of an empty generalized transaction set."""
    phases = [xdr.TransactionPhase(0, v0_components=[]), xdr.TransactionPhase(0, v0_components=[])]
    empty = xdr.GeneralizedTransactionSet(
        1, v1_tx_set=xdr.TransactionSetV1(previous_ledger_hash=xdr.Hash(b"\xff" * 32), phases=phases)
    ).to_xdr_bytes()
    before, behind = empty.split(b"\xff" * 32)
    return before, behind


def close_meta(header: bytes, previous_hash: bytes) -> str:
    """The base64 LedgerCloseMeta (V1, no transactions) of a header.

    Layout: version 1, extension 0, header entry, transaction set, then four empty lists, a size and an empty list:
    txProcessing, upgradesProcessing, scpInfo, totalByteSizeOfLiveSorobanState (u64), evictedKeys, unused.
    """
    before, behind = _transaction_set()
    tail = struct.pack(">IIIQII", 0, 0, 0, 0, 0, 0)
    return b64encode(struct.pack(">ii", 1, 0) + history_entry(header) + before + previous_hash + behind + tail).decode()
