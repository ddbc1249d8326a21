from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stellar_sdk import StrKey

from fluxora.errors import DecodeError
from fluxora.protocol import addresses
from fluxora.protocol.addresses import AddressKind

SDK_ENCODERS = {
    AddressKind.ACCOUNT: (StrKey.encode_ed25519_public_key, 32),
    AddressKind.CONTRACT: (StrKey.encode_contract, 32),
    AddressKind.MUXED_ACCOUNT: (StrKey.encode_med25519_public_key, 40),
    AddressKind.CLAIMABLE_BALANCE: (StrKey.encode_claimable_balance, 33),
    AddressKind.LIQUIDITY_POOL: (StrKey.encode_liquidity_pool, 32),
}
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
ACCOUNT = "GBXHUHG5FGYLPD6RHL2MKWMP572O6KUXCZXDZJXS4T57ZTMAKBN7DWXN"
CONTRACT = "CAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAD2KM"


@st.composite
def forms(draw: st.DrawFn) -> tuple[AddressKind, bytes]:
    kind = draw(st.sampled_from(AddressKind))
    size = SDK_ENCODERS[kind][1]
    payload = draw(st.binary(min_size=size, max_size=size))
    if kind is AddressKind.CLAIMABLE_BALANCE:
        payload = b"\0" + payload[1:]
    return kind, payload


@given(forms())
def test_encode_equals_stellar_sdk_and_decodes_back(form: tuple[AddressKind, bytes]) -> None:
    kind, payload = form
    text = addresses.encode(kind, payload)
    assert text == SDK_ENCODERS[kind][0](payload)
    assert addresses.decode(text) == form
    assert addresses.is_account_or_contract(text) == (kind in {AddressKind.ACCOUNT, AddressKind.CONTRACT})


@given(forms(), st.data())
def test_decode_refuses_any_single_wrong_character(form: tuple[AddressKind, bytes], data: st.DataObject) -> None:
    text = addresses.encode(*form)
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from([c for c in ALPHABET + "=019a é" if c != text[at]]))
    wrong = text[:at] + other + text[at + 1 :]
    with pytest.raises(DecodeError):
        addresses.decode(wrong)
    assert not addresses.is_account_or_contract(wrong)


@given(st.text(max_size=80))
def test_decode_raises_decode_error_only(text: str) -> None:
    with pytest.raises(DecodeError):
        addresses.decode(text)
    assert not addresses.is_account_or_contract(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "G",
        ACCOUNT.lower(),
        ACCOUNT + " ",
        " " + ACCOUNT,
        ACCOUNT + "\n",
        ACCOUNT[:-1],
        ACCOUNT + "A",
        ACCOUNT + "=",
        "SBCVMMCBEDB64TVJZFYJOJAERZC4YVVUOE6SYR2Y76CBTENGUSGWRRVO",  # a secret seed is no address
    ],
)
def test_is_account_or_contract_refuses(text: str) -> None:
    assert not addresses.is_account_or_contract(text)
    assert not addresses.is_contract(text)


def test_is_account_or_contract_accepts() -> None:
    assert addresses.is_account_or_contract(ACCOUNT)
    assert addresses.is_account_or_contract(CONTRACT)
    assert addresses.is_contract(CONTRACT)
    assert not addresses.is_contract(ACCOUNT)
    assert addresses.encode_contract(bytes(31) + b"\x01") == StrKey.encode_contract(bytes(31) + b"\x01")


@pytest.mark.parametrize("kind", AddressKind)
def test_encode_refuses_a_wrong_size(kind: AddressKind) -> None:
    with pytest.raises(DecodeError):
        addresses.encode(kind, bytes(31))


def test_decode_refuses_a_claimable_balance_of_another_version() -> None:
    with pytest.raises(DecodeError):
        addresses.decode(StrKey.encode_claimable_balance(b"\x01" + bytes(32)))
