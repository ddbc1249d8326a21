"""Payments and ends of simulated streams, worked out by hand from the contract's rules."""

from __future__ import annotations

from contract_bench import ALICE, BOB, CAROL, T0, Bench, native, refused
from stellar_sdk import Address, scval, xdr

from fluxora.localnet import account, stream_key
from fluxora.localnet.contract import CLIFF_ONLY, CLIFF_SLOPE, KEEPER_GRACE_S


def test_a_stream_is_created_with_all_it_was_told(bench):
    sid = bench.linear(cliff=T0 + 100, dust=5, memo=b"m", metadata={b"k": b"v"}, irrevocable=True, witness=CAROL)
    assert sid == 0
    [(name, ids, data)] = bench.close()
    assert (name, ids) == ("created", [0])
    assert data == {
        "stream_id": 0,
        "sender": ALICE,
        "recipient": BOB,
        "deposit_amount": 1_000,
        "rate_per_second": 1,
        "start_time": T0,
        "cliff_time": T0 + 100,
        "end_time": T0 + 1_000,
        "withdraw_dust_threshold": 5,
        "memo": b"m",
        "metadata": {b"k": b"v"},
    }
    stored = bench.contract.model_streams()[0]
    assert (stored["checkpointed_at"], stored["irrevocable"], stored["witness"]) == (T0, True, CAROL)
    assert len(stored) == 29


def test_terms_without_sense_are_refused_and_leave_nothing(bench):
    for terms in ({"deposit": 0}, {"rate": 0}, {"end": T0}, {"cliff": T0 + 2_000}, {"cliff": T0 - 1}):
        with refused(3):
            bench.linear(**terms)
    with refused(10):
        bench.linear(deposit=999)
    assert bench.close() == []
    assert bench.contract.globals.next_stream_id == 0


def test_withdrawals_pay_what_has_accrued_and_complete_at_the_deposit(bench):
    sid = bench.linear()
    bench.close()
    bench.at(250)
    assert bench.contract.withdraw(sid) == 250
    with refused(31):
        bench.contract.withdraw(sid)
    assert bench.close() == [("withdrew", [sid], {"stream_id": sid, "recipient": BOB, "amount": 250})]
    bench.at(250)
    assert bench.contract.withdraw(sid) == 0
    assert bench.close() == []
    bench.at(5_000)
    bench.contract.withdraw_to(sid, CAROL)
    assert bench.close() == [
        ("wdraw_to", [sid], {"stream_id": sid, "recipient": BOB, "destination": CAROL, "amount": 750}),
        ("completed", [sid], ["StreamCompleted", sid]),
    ]
    with refused(13):
        bench.contract.withdraw(sid)
    assert bench.contract.paid_out(sid) == 1_000


def test_a_batch_pays_each_recipient_with_wdraw_to_in_one_transaction(bench):
    one, two = bench.linear(), bench.linear()
    bench.close()
    bench.at(10)
    assert bench.contract.batch_withdraw([one, two]) == 20
    events, entries = bench.contract.drain()
    ledger = bench.chain.close_ledger(events, entries=entries)
    assert [position & 0xFFFFFFFF for position in ledger.events().positions] == [0, 1]
    assert len({event.call for event in events}) == 1


def test_a_relayers_withdrawal_tells_the_net_and_counts_the_gross(bench):
    sid = bench.linear()
    bench.close()
    bench.at(100)
    assert bench.contract.delegated_withdraw(sid, fee=7) == 93
    [(_, _, data)] = bench.close()
    assert data["amount"] == 93
    assert bench.contract.stream(sid).withdrawn_amount == 100
    assert bench.contract.paid_out(sid) == 93


def test_the_cliff_hides_and_kinds_differ(bench):
    linear = bench.linear(cliff=T0 + 400)
    slope = bench.linear(cliff=T0 + 400, kind=CLIFF_SLOPE, deposit=600)
    lump = bench.linear(cliff=T0 + 400, kind=CLIFF_ONLY, rate=0, deposit=77)
    bench.close()
    bench.at(399)
    assert [bench.contract.withdraw(sid) for sid in (linear, slope, lump)] == [0, 0, 0]
    bench.at(500)
    assert [bench.contract.withdraw(sid) for sid in (linear, slope, lump)] == [500, 100, 77]
    assert [kind for kind, _, _ in bench.close()] == ["withdrew", "withdrew", "withdrew", "completed"]


def test_the_lookback_window_caps_a_payment(bench):
    sid = bench.linear(lookback=10)
    bench.close()
    bench.at(300)
    assert bench.contract.withdraw(sid) == 50
    key = scval.to_vec([scval.to_symbol("MaxLookbackLedgers"), scval.to_uint64(sid)])
    wanted = xdr.LedgerKey(
        xdr.LedgerEntryType.CONTRACT_DATA,
        contract_data=xdr.LedgerKeyContractData(
            Address(bench.contract.contract_id).to_xdr_sc_address(), key, xdr.ContractDataDurability.PERSISTENT
        ),
    ).to_xdr()
    entry = xdr.LedgerEntryData.from_xdr(bench.chain.entry(wanted).xdr)
    assert native(entry.contract_data.val) == 10


def test_dust_waits_but_not_for_ever(bench):
    sid = bench.linear(dust=400)
    bench.close()
    bench.at(399)
    assert bench.contract.withdraw(sid) == 0
    bench.at(700)
    assert bench.contract.withdraw(sid) == 700
    bench.close()
    bench.at(1_000)
    assert bench.contract.withdraw(sid) == 300


def test_pause_blocks_payment_but_not_accrual_and_has_a_cooldown():
    bench = Bench()
    sid = bench.linear()
    bench.close()
    bench.at(100)
    bench.contract.pause(sid, "Compliance")
    assert bench.close() == [("paused", [sid], {"stream_id": sid, "reason": "Compliance"})]
    with refused(2):
        bench.contract.withdraw(sid)
    with refused(11):
        bench.contract.pause(sid)
    with refused(30):
        bench.contract.resume(sid)
    for _ in range(16):
        bench.close()
    bench.at(300)
    bench.contract.resume(sid)
    assert bench.close() == [("resumed", [sid], ["Resumed", sid])]
    stored = bench.contract.stream(sid)
    assert (stored.cumulative_paused_duration, stored.paused_at_timestamp) == (200, 0)
    bench.at(400)
    assert bench.contract.withdraw(sid) == 400


def test_cancel_keeps_the_deposit_field_and_stops_accrual(bench):
    sid = bench.linear()
    bench.close()
    bench.at(300)
    assert bench.contract.cancel(sid) == 700
    assert bench.close() == [("cancelled", [sid], ["StreamCancelled", sid])]
    with refused(2):
        bench.contract.close(sid)
    bench.at(900)
    assert bench.contract.withdraw(sid) == 300
    bench.contract.close(sid)
    assert [name for name, _, _ in bench.close()] == ["withdrew", "closed"]
    assert bench.contract.model_streams() == {}
    assert bench.contract.closed_streams()[sid]["deposit_amount"] == 1_000
    assert bench.chain.entry(stream_key(bench.contract.contract_id, sid)) is None
    with refused(1):
        bench.contract.stream(sid)


def test_a_keeper_cancels_after_a_week_and_withdrawn_stays(bench):
    sid = bench.linear(deposit=21_000)
    bench.close()
    bench.at(1_000 + KEEPER_GRACE_S - 1)
    with refused(33):
        bench.contract.keeper_cancel(sid, CAROL)
    bench.at(1_000 + KEEPER_GRACE_S)
    assert bench.contract.keeper_cancel(sid, CAROL) == 100
    [(name, _, data)] = bench.close()
    assert name == "kp_cncl"
    assert (data["keeper_fee"], data["recipient_amount"], data["sender_refund"]) == (100, 1_000, 19_900)
    stored = bench.contract.stream(sid)
    assert (stored.withdrawn_amount, stored.cancelled_at) == (0, T0 + 1_000 + KEEPER_GRACE_S)
    # The contract's own flaw: what the keeper's call paid can be withdrawn once more.
    assert bench.contract.withdraw(sid) == 1_000


def test_clones_renewals_and_offers_are_created_then_linked(bench):
    sid = bench.linear()
    bench.close()
    bench.at(1_000)
    bench.contract.withdraw(sid)
    renewed = bench.contract.renew(sid)
    cloned = bench.contract.clone(renewed, start=T0 + 2_000)
    offer = bench.contract.create_offer(ALICE, BOB, deposit=10, rate=1, start=T0 + 500, cliff=T0 + 505, end=T0 + 510)
    assert bench.contract.accept_offer(offer) == offer
    declined = bench.contract.create_offer(ALICE, BOB, deposit=1, rate=1, start=T0, cliff=T0, end=T0 + 1)
    bench.contract.withdraw_offer(declined, rejected=True)
    events = bench.close()
    assert [name for name, _, _ in events[2:]] == [
        "created",
        "renewed",
        "created",
        "cloned",
        "offr_crt",
        "created",
        "offr_acc",
        "offr_crt",
        "offr_cxl",
    ]
    assert events[3][1] == [sid, renewed]
    assert events[5][1] == [cloned]
    accepted = bench.contract.stream(offer)
    assert (accepted.start_time, accepted.cliff_time, accepted.end_time) == (T0 + 1_000, T0 + 1_005, T0 + 1_010)
    with refused(38):
        bench.contract.accept_offer(declined)


def test_a_pool_pays_members_their_shares(bench):
    sid = bench.linear(shares={BOB: 1, CAROL: 3})
    assert bench.contract.stream(sid).recipient == ALICE
    bench.close()
    bench.at(401)
    assert bench.contract.withdraw_from_pool(sid, BOB) == 100
    assert bench.contract.withdraw_from_pool(sid, CAROL) == 300
    assert [data["recipient"] for _, _, data in bench.close()] == [BOB, CAROL]
    with refused(3):
        bench.contract.withdraw_from_pool(sid, account(1, "stranger"))


def test_auto_claim_announces_then_pays_once(bench):
    sid = bench.linear()
    bench.contract.set_auto_claim(sid, CAROL)
    bench.close()
    bench.at(30)
    assert bench.contract.trigger_auto_claim(sid) == 30
    bench.contract.revoke_auto_claim(sid)
    assert [name for name, _, _ in bench.close()] == ["ac_trig", "wdraw_to", "ac_revoke"]
    assert bench.contract.stream(sid).withdrawn_amount == 30
    with refused(2):
        bench.contract.trigger_auto_claim(sid)


def test_bulk_cancel_pays_then_cancels_then_reports(bench):
    one, two = bench.linear(), bench.linear(start=T0 + 500, end=T0 + 1_500)
    bench.close()
    bench.at(40)
    bench.contract.bulk_cancel([one, two])
    names = [(name, ids[0]) for name, ids, _ in bench.close()]
    assert names == [("withdrew", one), ("cancelled", one), ("health", one), ("cancelled", two), ("health", two)]
    assert bench.contract.stream(one).last_withdraw_ledger == 0
