"""Headers are proven by their hashes; ledger keys and entries are those of stellar_sdk."""

from __future__ import annotations

import hashlib
from base64 import b64decode, b64encode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_node import CONTRACT, STRANGER, Answer, History, running
from stellar_sdk import Address, scval, xdr

from fluxora.actors.sources.ledger_keys import read_entry, stream_key
from fluxora.errors import DecodeError, SourceUnavailable


class Ledgers(History):
    """A node that serves headers linked by hash; `forge` maps a sequence to changes of its answer."""

    def __init__(self, *, oldest=1, latest=60, most=200, padding=0):
        super().__init__(oldest=oldest, latest=latest)
        self.most = most
        self.padding = padding
        self.forge = {}
        self.hashes = {}
        self.chain = {}
        self.grow(1, latest)

    def grow(self, first, last, salt=b""):
        for sequence in range(first, last + 1):
            parent = self.hashes.get(sequence - 1, bytes(32))
            header = (25).to_bytes(4) + parent + hashlib.sha256(salt + b"%d" % sequence).digest() + sequence.to_bytes(8)
            self.hashes[sequence] = hashlib.sha256(header).digest()
            self.chain[sequence] = b64encode(self.hashes[sequence] + header + bytes(4)).decode()

    def getLedgers(self, params):  # noqa: N802
        start, limit = params["startLedger"], params["pagination"]["limit"]
        if limit > self.most:
            return Answer(error={"code": -32602, "message": f"limit must not exceed {self.most}"})
        if not self.oldest <= start <= self.latest:
            return Answer(
                error={
                    "code": -32600,
                    "message": f"start ledger ({start}) must be between the oldest ledger: {self.oldest} "
                    f"and the latest ledger: {self.latest} for this rpc instance",
                }
            )
        found = [
            {
                "hash": self.hashes[sequence].hex(),
                "sequence": sequence,
                "ledgerCloseTime": str(1_700_000_000 + 5 * sequence),
                "headerXdr": self.chain[sequence],
                "metadataXdr": "A" * self.padding,
                **self.forge.get(sequence, {}),
            }
            for sequence in range(start, min(start + limit, self.latest + 1))
        ]
        return {
            "ledgers": found,
            "latestLedger": self.latest,
            "latestLedgerCloseTime": 1_700_000_300,
            "oldestLedger": self.oldest,
            "oldestLedgerCloseTime": 1_700_000_005,
            "cursor": str(found[-1]["sequence"]),
        }


async def test_headers_come_ascending_linked_and_proven(make_source):
    ledgers = Ledgers()
    async with running(ledgers) as [node]:
        headers = await make_source(node).headers(7, 51)
    assert [header.sequence for header in headers] == list(range(7, 52))
    assert [header.hash for header in headers] == [ledgers.hashes[n].hex() for n in range(7, 52)]
    assert [header.previous_hash for header in headers] == [ledgers.hashes[n - 1].hex() for n in range(7, 52)]
    assert headers[0].closed_at == 1_700_000_035


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (1, 5, range(0)),
        (10, 25, range(20, 26)),
        (20, 20, range(20, 21)),
        (55, 90, range(55, 61)),
        (70, 80, range(0)),
    ],
)
async def test_headers_outside_what_the_node_has_are_left_out(make_source, first, last, expected):
    async with running(Ledgers(oldest=20)) as [node]:
        headers = await make_source(node).headers(first, last)
    assert [header.sequence for header in headers] == list(expected)


async def test_single_header_costs_a_single_ledger(make_source):
    async with running(Ledgers()) as [node]:
        await make_source(node).headers(30, 30)
        assert [params["pagination"] for params in node.asked("getLedgers")] == [{"limit": 1}]


async def test_heavy_ledgers_are_asked_for_in_small_pages(make_source):
    async with running(Ledgers(padding=4_000_000)) as [node]:
        source = make_source(node, max_reply_bytes=20_000_000)
        assert len(await source.headers(1, 12)) == 12
        limits = [params["pagination"]["limit"] for params in node.asked("getLedgers")]
    assert max(limits[-2:]) <= 4


async def test_node_with_a_smaller_limit_is_served_within_it(make_source):
    async with running(Ledgers(most=20)) as [node]:
        source = make_source(node)
        assert len(await source.headers(1, 60)) == 60
        assert len(await source.headers(1, 60)) == 60


@pytest.mark.parametrize(
    "forgery",
    [
        {"hash": "00" * 32},
        {"headerXdr": "!"},
        {"headerXdr": b64encode(bytes(80)).decode()},
    ],
)
async def test_header_that_does_not_hash_is_unproven(make_source, forgery):
    ledgers = Ledgers()
    ledgers.forge[5] = forgery
    async with running(ledgers) as [node]:
        with pytest.raises(SourceUnavailable) as caught:
            await make_source(node).headers(1, 10)
    assert caught.value.failure == "unproven_header"


async def test_header_that_does_not_link_is_unproven(make_source):
    for at in (5, 9):  # inside a page of eight, and where one page meets the next
        ledgers = Ledgers()
        ledgers.hashes[at - 1] = bytes(32)
        good = ledgers.hashes.copy(), ledgers.chain.copy()
        ledgers.grow(at, 60, salt=b"other branch")
        ledgers.hashes[at - 1] = hashlib.sha256(b64decode(good[1][at - 1])[32:-4]).digest()
        async with running(ledgers) as [node]:
            with pytest.raises(SourceUnavailable) as caught:
                await make_source(node).headers(1, 20)
        assert caught.value.failure == "unproven_header"


async def test_forged_headers_of_one_node_are_read_from_another(make_source):
    forger, honest = Ledgers(), Ledgers()
    forger.forge[5] = {"hash": "00" * 32}
    async with running(forger, honest) as [one, two]:
        source = make_source(one, two)
        assert len(await source.headers(1, 10)) == 10
        assert source.status.failures == {"unproven_header": 1}


# Ledger keys and entries


def sdk_key(contract_id, stream_id):
    return xdr.LedgerKey(
        xdr.LedgerEntryType.CONTRACT_DATA,
        contract_data=xdr.LedgerKeyContractData(
            contract=Address(contract_id).to_xdr_sc_address(),
            key=scval.to_vec([scval.to_symbol("Stream"), scval.to_uint64(stream_id)]),
            durability=xdr.ContractDataDurability.PERSISTENT,
        ),
    )


def sdk_entry(contract_id, stream_id, fields):
    key = sdk_key(contract_id, stream_id).contract_data
    entry = xdr.ContractDataEntry(
        ext=xdr.ExtensionPoint(0),
        contract=key.contract,
        key=key.key,
        durability=key.durability,
        val=scval.to_map({scval.to_symbol(name): value for name, value in sorted(fields.items())}),
    )
    return xdr.LedgerEntryData(xdr.LedgerEntryType.CONTRACT_DATA, contract_data=entry)


STREAM_IDS = st.integers(0, 2**64 - 1)


@given(hash_=st.binary(min_size=32, max_size=32), stream_id=STREAM_IDS)
@settings(max_examples=60)
def test_stream_key_is_that_of_stellar_sdk(hash_, stream_id):
    from stellar_sdk import StrKey

    contract_id = StrKey.encode_contract(hash_)
    assert stream_key(contract_id, stream_id) == sdk_key(contract_id, stream_id).to_xdr_bytes()


@given(stream_id=STREAM_IDS, deposit=st.integers(-(2**127), 2**127 - 1), memo=st.none() | st.binary(max_size=64))
@settings(max_examples=60)
def test_entry_value_is_what_stellar_sdk_encoded(stream_id, deposit, memo):
    fields = {
        "stream_id": scval.to_uint64(stream_id),
        "sender": scval.to_address(STRANGER),
        "deposit_amount": scval.to_int128(deposit),
        "memo": scval.to_void() if memo is None else scval.to_bytes(memo),
    }
    text = sdk_entry(CONTRACT, stream_id, fields).to_xdr()
    key, value = read_entry(text)
    assert key == stream_key(CONTRACT, stream_id)
    assert value == {
        "stream_id": stream_id,
        "sender": STRANGER,
        "deposit_amount": deposit,
        "memo": memo,
    }


@given(noise=st.binary(max_size=200), cut=st.integers(0, 150))
@settings(max_examples=80)
def test_entry_that_is_not_one_has_no_fields_or_raises_decode_error_only(noise, cut):
    whole = b64decode(sdk_entry(CONTRACT, 5, {"stream_id": scval.to_uint64(5)}).to_xdr())
    for wrong in (noise, whole[: min(cut, len(whole) - 1)], whole + b"\0", whole[:100] + noise[:3]):
        try:
            assert read_entry(b64encode(wrong).decode()) == (sdk_key(CONTRACT, 5).to_xdr_bytes(), None)
        except DecodeError:
            assert wrong[:88] != whole[:88]  # type, extension point and key: whose entry it is
    with pytest.raises(DecodeError):
        read_entry("no base64")


def test_entry_of_another_kind_of_key_is_refused():
    entry = sdk_entry(CONTRACT, 5, {"stream_id": scval.to_uint64(5)})
    entry.contract_data.key = scval.to_vec([scval.to_symbol("Strean"), scval.to_uint64(5)])
    with pytest.raises(DecodeError):
        read_entry(entry.to_xdr())
    entry.contract_data.key = scval.to_vec([scval.to_symbol("Stream"), scval.to_uint64(5)])


@pytest.mark.parametrize(
    "value", [scval.to_vec([]), scval.to_void(), scval.to_map({scval.to_uint32(1): scval.to_void()})]
)
def test_a_value_that_is_no_struct_is_no_fields(value):
    entry = sdk_entry(CONTRACT, 5, {"stream_id": scval.to_uint64(5)})
    entry.contract_data.val = value
    assert read_entry(entry.to_xdr()) == (sdk_key(CONTRACT, 5).to_xdr_bytes(), None)


async def test_one_unreadable_entry_does_not_cost_the_others(make_source):
    held = {sdk_key(CONTRACT, n).to_xdr(): sdk_entry(CONTRACT, n, {"stream_id": scval.to_uint64(n)}) for n in range(3)}
    held[sdk_key(CONTRACT, 1).to_xdr()].contract_data.val = scval.to_vec([])
    async with running(Entries({key: entry.to_xdr() for key, entry in held.items()})) as [node]:
        found, _ = await make_source(node).entries([(CONTRACT, n) for n in range(3)])
    assert [(one.stream_id, one.entry) for one in found] == [(0, {"stream_id": 0}), (1, None), (2, {"stream_id": 2})]


@pytest.mark.parametrize("address", [Address(STRANGER).address[:-1], "G" + "A" * 55, ""])
def test_stream_key_of_no_contract_is_refused(address):
    with pytest.raises(DecodeError):
        stream_key(address, 1)


class Entries(History):
    def __init__(self, entries):
        super().__init__()
        self.entries = entries
        self.sizes = []

    def getLedgerEntries(self, params):  # noqa: N802
        """The key beside an entry is nonsense here, as in an example of the documentation."""
        self.sizes.append(len(params["keys"]))
        found = [
            {"key": "AAAAB+qf", "xdr": self.entries[key], "lastModifiedLedgerSeq": 42, "liveUntilLedgerSeq": 999}
            for key in params["keys"]
            if key in self.entries
        ]
        self.latest += 1
        return {"entries": found or None, "latestLedger": self.latest}


async def test_entries_are_read_in_calls_of_200_and_missing_ones_left_out(make_source):
    held = {
        sdk_key(CONTRACT, n).to_xdr(): sdk_entry(CONTRACT, n, {"stream_id": scval.to_uint64(n)}).to_xdr()
        for n in range(0, 450, 3)
    }
    node_entries = Entries(held)
    async with running(node_entries) as [node]:
        found, as_of = await make_source(node).entries([(CONTRACT, n) for n in range(450)] + [(CONTRACT, 0)])
    assert [entry.stream_id for entry in found] == list(range(0, 450, 3))
    assert all(entry.entry == {"stream_id": entry.stream_id} and entry.last_modified == 42 for entry in found)
    assert node_entries.sizes == [200, 200, 50]
    assert as_of == 101  # of the most backward answer


async def test_no_entries_and_no_keys(make_source):
    async with running(Entries({})) as [node]:
        source = make_source(node)
        assert await source.entries([(CONTRACT, 1)]) == ([], 101)
        assert await source.entries([]) == ([], 0)


async def test_entry_of_another_key_is_a_malformed_response(make_source):
    wrong = sdk_entry(CONTRACT, 2, {"stream_id": scval.to_uint64(2)}).to_xdr()
    async with running(Entries({sdk_key(CONTRACT, 1).to_xdr(): wrong})) as [node]:
        with pytest.raises(SourceUnavailable) as caught:
            await make_source(node).entries([(CONTRACT, 1)])
    assert caught.value.failure == "malformed_response"
