"""Scripted accounts: what senders, recipients, relayers and keepers do to the contracts, ledger by ledger.

What happens in a ledger depends on the seed, the network's incarnation, the branch and the sequence, and on the
contract's state: a replay of the same chain is the same, another branch is another story.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from random import Random

from stellar_sdk import Keypair, StrKey

from fluxora.localnet.contract import (
    ACTIVE,
    CANCELLED,
    CLIFF_ONLY,
    CLIFF_SLOPE,
    COMPLETED,
    LINEAR,
    PAUSE_REASONS,
    PAUSED,
    Contract,
    ContractError,
    Stream,
)

_RECENT = 400  # calls go to the newest streams, so that a long run does not thin out


@lru_cache(maxsize=4096)
def account(seed: int, name: str) -> str:
    """The G... address of a scripted account."""
    return Keypair.from_raw_ed25519_seed(hashlib.sha256(f"{seed}/account/{name}".encode()).digest()).public_key


def contract_address(seed: int, index: int) -> str:
    """The C... id of a simulated contract."""
    return StrKey.encode_contract(hashlib.sha256(f"{seed}/contract/{index}".encode()).digest())


class Script:
    """Accounts at work: about `streams_per_ledger` new streams and `calls_per_ledger` other calls each ledger.

    Fractions are chances. `people` accounts take turns as senders and recipients.
    """

    def __init__(
        self, seed: int = 0, *, streams_per_ledger: float = 1.0, calls_per_ledger: float | None = None, people: int = 24
    ) -> None:
        self.seed = seed
        self.streams_per_ledger = streams_per_ledger
        self.calls_per_ledger = 4 * streams_per_ledger if calls_per_ledger is None else calls_per_ledger
        self._people = [f"person-{i}" for i in range(people)]

    def act(self, contract: Contract) -> None:
        """Make this ledger's calls on a contract; what it refuses is left out."""
        chain = contract.chain
        story = f"{self.seed}/{chain.incarnation}/{chain.branch}/{chain.next_sequence}/{contract.contract_id}"
        act = _Act(Random(story), contract, [account(self.seed, name) for name in self._people])  # noqa: S311 - a story, no secret
        for _ in range(_count(act.rng, self.streams_per_ledger)):
            act.attempt(act.create)
        for _ in range(_count(act.rng, self.calls_per_ledger)):
            act.attempt(act.call)


def _count(rng: Random, rate: float) -> int:
    return int(rate) + (rng.random() < rate % 1)


class _Act:
    """One ledger of one contract."""

    def __init__(self, rng: Random, contract: Contract, people: list[str]) -> None:
        self.rng = rng
        self.contract = contract
        self.people = people

    def attempt(self, call: Callable[[], object]) -> None:
        """Make a call that the contract may refuse: real accounts try such calls too, and nothing comes of them."""
        try:
            call()
        except ContractError:
            return

    def create(self) -> None:
        """A new stream of some kind, sometimes with a memo, a cliff, spare deposit, or as an offer."""
        rng, now = self.rng, self.contract.now
        sender, recipient = rng.sample(self.people, 2)
        duration = rng.choice((60, 300, 3_600, 86_400, 30 * 86_400))
        rate = rng.randrange(100, 50_000_000)
        start = now + rng.choice((0, 0, 0, -30, 60))
        deposit = rate * duration + rng.choice((0, 0, rng.randrange(1, rate * duration)))
        cliff = start + rng.choice((0, 0, duration // 4))
        kind = rng.choices((LINEAR, CLIFF_ONLY, CLIFF_SLOPE), (90, 5, 5))[0]
        if kind == CLIFF_SLOPE:  # pays from the cliff on, so less than the whole duration's worth will do
            cliff = start + duration // 4
            deposit = rate * (duration - duration // 4)
        if kind == LINEAR and rng.random() < 0.05:
            self.contract.create_offer(
                sender, recipient, deposit=deposit, rate=rate, start=start, cliff=cliff, end=start + duration
            )
            return
        self.contract.create(
            sender,
            recipient,
            deposit=deposit,
            rate=0 if kind == CLIFF_ONLY else rate,
            start=start,
            cliff=cliff,
            end=start + duration,
            kind=kind,
            dust=rng.choice((0, 0, 0, rate * 10)),
            memo=rng.choice((None, None, b"payroll", b"grant")),
            metadata=rng.choice((None, None, None, {b"dept": b"eng"})),
            irrevocable=rng.choice((None, None, None, True)),
        )

    def call(self) -> None:
        """One call on one of the newest streams."""
        newest = self.contract.globals.next_stream_id
        if newest == 0:
            return
        stream_id = self.rng.randrange(max(0, newest - _RECENT), newest)
        try:
            stream = self.contract.stream(stream_id)
        except ContractError:  # closed, or an offer that nobody has answered
            self.contract.accept_offer(stream_id)
            return
        if stream.status == COMPLETED:
            self.rng.choice((self.contract.renew, self.contract.close))(stream_id)
        elif stream.status == CANCELLED:
            self.rng.choice((self.contract.withdraw, self.contract.close))(stream_id)
        elif stream.status == PAUSED and self.rng.random() < 0.6:
            self.contract.resume(stream_id)
        else:
            self._running(stream)

    def _running(self, stream: Stream) -> None:
        rng, contract, sid = self.rng, self.contract, stream.stream_id
        other = rng.choice(self.people)
        choices: dict[Callable[[], object], int] = {
            lambda: contract.withdraw(sid): 40,
            lambda: contract.withdraw_to(sid, other): 8,
            lambda: contract.delegated_withdraw(sid, fee=rng.randrange(1, 1_000)): 5,
            lambda: contract.batch_withdraw([sid]): 4,
            lambda: contract.pause(sid, rng.choice(PAUSE_REASONS)): 8 if stream.status == ACTIVE else 0,
            lambda: contract.top_up(sid, rng.randrange(1, stream.deposit_amount)): 8,
            lambda: contract.increase_rate(sid, stream.rate_per_second * rng.randrange(101, 150) // 100): 6,
            lambda: contract.decrease_rate(sid, stream.rate_per_second * rng.randrange(50, 99) // 100): 5,
            lambda: contract.update_rate(sid, max(1, stream.rate_per_second * rng.randrange(80, 120) // 100)): 1,
            lambda: contract.shorten(sid, (contract.now + stream.end_time) // 2): 3,
            lambda: contract.extend(sid, stream.end_time + rng.randrange(1, 600)): 4,
            lambda: contract.cancel(sid): 4,
            lambda: contract.keeper_cancel(sid, other): 2,
            lambda: contract.bulk_cancel([sid]): 1,
            lambda: contract.clone(sid): 1,
            lambda: contract.update_recipient(sid, other): 2,
            lambda: contract.transfer_claim(sid, other): 1,
            lambda: contract.delegate_share(sid, other, share_bps=rng.randrange(500, 5_000)): 3,
            lambda: contract.decommission(sid): 1,
            lambda: self._auto_claim(sid, other): 2,
        }
        rng.choices(list(choices), list(choices.values()))[0]()

    def _auto_claim(self, stream_id: int, destination: str) -> None:
        self.contract.set_auto_claim(stream_id, destination)
        self.contract.trigger_auto_claim(stream_id)
        if self.rng.random() < 0.5:
            self.contract.revoke_auto_claim(stream_id)
