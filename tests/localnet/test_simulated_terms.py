"""Changes to running streams and to the simulated contract, worked out by hand from its rules."""

from __future__ import annotations

from contract_bench import ALICE, BOB, CAROL, T0, Bench, refused

from fluxora.localnet import Contract, account, contract_address
from fluxora.localnet.contract import LINEAR


def test_rates_change_with_and_without_a_checkpoint():
    bench = Bench(cooldown_ledgers=0)
    sid = bench.linear(deposit=10_000)
    bench.close()
    bench.at(100)
    bench.contract.increase_rate(sid, 5)
    bench.at(200)
    assert bench.contract.decrease_rate(sid, 2) == 10_000 - (600 + 2 * 800)
    [(up, _, up_data), (down, _, down_data)] = bench.close()
    assert (up, up_data["old_rate_per_second"], up_data["new_rate_per_second"]) == ("rate_upd", 1, 5)
    assert (down, down_data["checkpointed_amount"], down_data["effective_time"]) == ("rate_dec", 600, T0 + 200)
    stored = bench.contract.stream(sid)
    assert (stored.checkpointed_amount, stored.checkpointed_at, stored.deposit_amount) == (600, T0 + 200, 2_200)
    bench.contract.update_rate(sid, 1)
    assert bench.contract.stream(sid).checkpointed_amount == 600
    bench.at(300)
    assert bench.contract.withdraw(sid) == 700


def test_rate_changes_have_a_cooldown_and_need_a_covering_deposit(bench):
    sid = bench.linear(deposit=2_500)
    bench.close()
    with refused(10):
        bench.contract.increase_rate(sid, 3)
    bench.contract.increase_rate(sid, 2)
    with refused(36):
        bench.contract.decrease_rate(sid, 1)


def test_the_end_moves_and_a_top_up_does_not_move_it(bench):
    sid = bench.linear()
    bench.close()
    bench.at(100)
    assert bench.contract.shorten(sid, T0 + 600) == 400
    with refused(10):
        bench.contract.extend(sid, T0 + 700)
    bench.contract.top_up(sid, 200)
    bench.contract.extend(sid, T0 + 800)
    events = bench.close()
    assert [name for name, _, _ in events] == ["end_shrt", "top_up", "end_ext"]
    assert events[1][2] == {
        "stream_id": sid,
        "top_up_amount": 200,
        "new_deposit_amount": 800,
        "new_end_time": T0 + 600,
    }
    assert bench.contract.stream(sid).end_time == T0 + 800


def test_a_delegated_share_makes_a_child_without_created(bench):
    sid = bench.linear(rate=10, deposit=10_000, memo=b"m")
    bench.close()
    bench.at(100)
    child = bench.contract.delegate_share(sid, CAROL, share_bps=4_000)
    [(name, ids, data)] = bench.close()
    assert (name, ids) == ("del_share", [sid])
    assert (data["child_stream_id"], data["new_parent_rate"], data["child_rate"]) == (child, 6, 4)
    parent, made = bench.contract.stream(sid), bench.contract.stream(child)
    assert (parent.checkpointed_amount, parent.checkpointed_at, parent.deposit_amount) == (1_000, T0 + 100, 6_400)
    assert (made.deposit_amount, made.recipient, made.sender, made.memo) == (3_600, CAROL, ALICE, b"m")
    assert (made.delegation_depth, made.parent_stream_id, made.start_time) == (1, sid, T0 + 100)


def test_pauses_of_the_contract_block_what_they_should(bench):
    sid = bench.linear()
    bench.contract.set_creation_pause(paused=True)
    with refused(4):
        bench.linear()
    bench.contract.set_creation_pause(paused=False)
    bench.contract.set_emergency_pause(paused=True)
    for call in (bench.contract.withdraw, bench.contract.cancel, lambda s: bench.contract.shorten(s, T0 + 9)):
        with refused(4):
            call(sid)
    bench.contract.pause(sid)  # not blocked
    bench.contract.global_resume()
    bench.linear()
    assert [name for name, _, _ in bench.close()] == [
        "created",
        "ct_pause",
        "ct_pause",
        "gl_pause",
        "paused",
        "gl_resume",
        "created",
    ]


def test_contract_wide_calls_emit_their_events(bench):
    contract = bench.contract
    contract.pause_protocol("incident")
    contract.resume_protocol()
    contract.sweep_excess(CAROL, 9)
    contract.set_admin(CAROL)
    contract.upgrade(b"\x00" * 32, 9)
    contract.register_template(ALICE, start_delay=0, cliff_delay=0, duration=60)
    contract.release_reservation(ALICE, start=10, count=5, consumed=2, reclaimed=3)
    events = bench.close()
    names = ["pr_pause", "pr_resume", "ex_swept", "AdminUpd", "upgraded", "tmpl_def", "res_rel"]
    assert [name for name, _, _ in events] == names
    assert events[3][2] == [account(1, "admin"), CAROL]
    assert events[6][1:] == ([ALICE], [10, 5, 2, 3])


def test_owners_recipients_and_flags_change(bench):
    sid = bench.linear()
    bench.contract.update_recipient(sid, CAROL)
    bench.contract.transfer_claim(sid, ALICE)
    bench.contract.decommission(sid)
    events = bench.close()
    assert [name for name, _, _ in events] == ["created", "recp_upd", "claim_own", "decomm"]
    assert events[2][2] == {"stream_id": sid, "old_owner": None, "new_owner": ALICE}
    with refused(2):
        bench.contract.top_up(sid, 5)
    stored = bench.contract.stream(sid)
    assert (stored.recipient, stored.claim_owner, stored.decommissioned) == (CAROL, ALICE, True)


def test_two_contracts_in_a_ledger_do_not_share_transactions():
    bench = Bench()
    other = Contract(bench.chain, contract_address(1, 1), admin=ALICE, token=contract_address(1, -1))
    bench.linear()
    other.create(ALICE, BOB, deposit=1_000, rate=1, end=T0 + 1_000)
    events = [*bench.contract.drain()[0], *other.drain()[0]]
    ledger = bench.chain.close_ledger(events)
    assert [position >> 44 for position in ledger.events().positions] == [1, 2]


def test_linear_is_the_default_kind(bench):
    assert bench.contract.stream(bench.linear()).kind == LINEAR
