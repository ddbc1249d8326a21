"""The node of the ingest benchmark: a simulated chain with a long history behind a Stellar RPC endpoint.

It knows, without the backend's code, what a faithful reader must arrive at, and says so as digests.
"""

from __future__ import annotations

import gc
import hashlib
import sys

import msgspec
import trio

from bench.child import say
from bench.tables import states_digest
from fluxora import logs
from fluxora.localnet import BulkHistory, Chain, bulk, contract_address, serve_rpc

STATUSES = ("active", "paused", "completed", "cancelled")
FIELDS = (
    "stream_id",
    "sender",
    "recipient",
    "deposit_amount",
    "rate_per_second",
    "withdrawn_amount",
    "start_time",
    "cliff_time",
    "end_time",
)


class Task(msgspec.Struct, kw_only=True):
    """How long a history to serve."""

    events: int
    per_ledger: int


class Built(msgspec.Struct, kw_only=True):
    """What is served where, and what must be found in the end."""

    url: str
    contract_id: str
    passphrase: str
    first_ledger: int
    last_ledger: int
    events: int
    streams: int
    ids_digest: str
    states_digest: str


def main() -> None:
    task = msgspec.json.decode(sys.argv[1], type=Task)
    logs.configure("warning", human=False)
    chain = Chain(seed=1, retention=None)
    history = bulk(chain, task.events, contract_id=contract_address(1, 0), events_per_ledger=task.per_ledger)
    trio.run(_serve, chain, history)


async def _serve(chain: Chain, history: BulkHistory) -> None:
    ids_digest, states = _ids_digest(chain), states_digest([_state(history, i) for i in range(history.streams)])
    gc.collect()
    gc.freeze()
    async with trio.open_nursery() as nursery:
        port: int = await nursery.start(lambda task_status: serve_rpc(chain, task_status=task_status))
        built = Built(
            url=f"http://127.0.0.1:{port}",
            contract_id=history.contract_id,
            passphrase=chain.passphrase,
            first_ledger=history.first_ledger,
            last_ledger=chain.latest.sequence,
            events=history.events,
            streams=history.streams,
            ids_digest=ids_digest,
            states_digest=states,
        )
        say(built)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


def _ids_digest(chain: Chain) -> str:
    digest = hashlib.sha256()
    for ledger in chain.ledgers(chain.oldest.sequence, chain.latest.sequence):
        for position in ledger.events().positions:
            place = (position >> 44) << 12 | position >> 32 & 0xFFF  # transaction and operation
            digest.update(f"{ledger.sequence << 32 | place:019d}-{position & 0xFFFFFFFF:010d}\n".encode())
    return digest.hexdigest()


def _state(history: BulkHistory, stream_id: int) -> tuple[str, ...]:
    fields = history.stream(stream_id)
    assert fields is not None
    return (*(str(fields[name]) for name in FIELDS), STATUSES[fields["status"]])


if __name__ == "__main__":
    main()
