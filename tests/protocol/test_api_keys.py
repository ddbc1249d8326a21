from __future__ import annotations

import hashlib
import subprocess
from base64 import urlsafe_b64decode
from contextlib import suppress

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fluxora.errors import DecodeError
from fluxora.protocol.api_keys import ENTROPY_BYTES, SCOPES, ApiKey, is_name, make, parse_entry, parse_key, verify

ENTROPY = bytes(range(ENTROPY_BYTES))
names = st.from_regex(r"[a-z0-9-]{1,32}", fullmatch=True)
keys = st.builds(
    ApiKey,
    names,
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=32, max_size=32),
    st.frozensets(st.sampled_from(SCOPES), min_size=1),
)


def test_a_key_and_its_entry_belong_together():
    text, key = make("ci-bot", ["streams:write", "streams:read"], entropy=ENTROPY)
    assert parse_key(text) == ("ci-bot", text.removeprefix("flx_ci-bot_"))
    entry = parse_entry(key.entry)
    assert entry == key
    assert entry.scopes == {"streams:read", "streams:write"}
    assert verify(entry, parse_key(text)[1])
    other, _ = make("ci-bot", ["admin"], entropy=bytes(ENTROPY_BYTES))
    assert not verify(entry, parse_key(other)[1])


def test_the_entry_is_scrypt_over_the_secret():
    text, key = make("a", ["admin"], entropy=ENTROPY)
    name, salt, digest, scopes = key.entry.split(".")
    secret = text[len("flx_a_") :]
    assert urlsafe_b64decode(secret + "=") == ENTROPY[:32]
    assert urlsafe_b64decode(salt + "==") == ENTROPY[32:48]
    expected = hashlib.scrypt(secret.encode(), salt=ENTROPY[32:48], n=16384, r=8, p=1, dklen=32)
    assert urlsafe_b64decode(digest + "=") == expected
    assert (name, scopes) == ("a", "admin")


@given(keys)
def test_an_entry_reads_as_it_was_written(key):
    assert parse_entry(key.entry) == key


@given(keys, keys)
def test_entries_survive_a_file_that_a_shell_reads(first, second):
    text = f"{first.entry},{second.entry}"
    done = subprocess.run(
        ["/bin/sh", "-c", f'V={text}\nprintf %s "$V"'], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout == text
    assert not set(text) & set("$#;'\"`\\ \t")  # nor does docker compose find anything of its own


@given(keys, st.data())
def test_no_second_spelling_of_an_entry_is_taken(key, data):
    entry = key.entry
    at = data.draw(st.integers(0, len(entry) - 1))
    other = data.draw(st.characters(codec="ascii"))
    assume(entry[at] != other)
    with suppress(DecodeError):
        assert parse_entry(entry[:at] + other + entry[at + 1 :]) != key


@pytest.mark.parametrize("part", [1, 2])
def test_bits_that_base64_does_not_use_are_no_second_spelling(part):
    _, key = make("a", ["admin"], entropy=bytes(ENTROPY_BYTES))
    parts = key.entry.split(".")
    sibling = chr(ord(parts[part][-1]) + 1)  # the last character has bits that belong to no byte
    padding = "=" * (-len(parts[part]) % 4)
    assert urlsafe_b64decode(parts[part] + padding) == urlsafe_b64decode(parts[part][:-1] + sibling + padding)
    parts[part] = parts[part][:-1] + sibling
    with pytest.raises(DecodeError, match="cut short or changed"):
        parse_entry(".".join(parts))


@given(st.text(max_size=200) | st.from_regex(r"flx_[a-z]{1,9}_[A-Za-z0-9_-]{30,50}", fullmatch=True))
def test_what_is_no_entry_is_refused_and_not_repeated(text):
    with pytest.raises(DecodeError) as caught:
        parse_entry(text)
    assert len(text) < 20 or text not in str(caught.value)


@pytest.mark.parametrize("scopes", ["", "admin+", "streams:delete", "admin+root", "streams:read streams:write"])
def test_scopes_must_exist(scopes):
    _, key = make("a", ["admin"], entropy=ENTROPY)
    with pytest.raises(DecodeError):
        parse_entry(key.entry.removesuffix("admin") + scopes)


@pytest.mark.parametrize("name", ["", "A", "a_b", "a.b", "é", "a" * 33, "a\n", "٣"])
def test_a_bad_name_is_refused(name):
    assert not is_name(name)
    with pytest.raises(DecodeError):
        make(name, ["admin"], entropy=ENTROPY)
    assert parse_key(f"flx_{name}_{'A' * 43}") is None


@pytest.mark.parametrize("scopes", [[], ["root"], ["admin", ""]])
def test_a_key_without_a_scope_that_exists_is_not_made(scopes):
    with pytest.raises(DecodeError):
        make("a", scopes, entropy=ENTROPY)


@given(st.text(max_size=60))
def test_any_text_is_a_key_or_none(text):
    assert parse_key(text) is None


def test_a_key_of_another_length_is_none():
    text, _ = make("a", ["admin"], entropy=ENTROPY)
    assert parse_key(text) is not None
    for other in (text[:-1], text + "A", text + "\n", " " + text, text.upper(), text[:-1] + "="):
        assert parse_key(other) is None


def test_the_repr_holds_neither_salt_nor_hash():
    _, key = make("a", ["streams:read", "admin"], entropy=ENTROPY)
    assert repr(key) == "ApiKey(name='a', scopes='streams:read+admin')"
