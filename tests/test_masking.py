"""A key is masked in every spelling, and no other text is."""

from __future__ import annotations

import base64
import html
import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_qwenimage.text.masking import Mask

KEY = "sk-x/y&z\"q'+<0123456789abcdef"
PRINTABLE = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=60)

# A key as the API issues them: no character needs escaping.
PLAIN_KEY = "sk-0123456789abcdefGHIJ"


def spellings(key: str) -> dict[str, str]:
    return {
        "as it is": key,
        "JSON": json.dumps(key),
        "JSON of PHP": json.dumps(key).replace("/", "\\/"),
        "JSON in JSON": json.dumps(json.dumps(key).replace("/", "\\/")),
        "JSON, all escaped": "".join(f"\\u{ord(character):04x}" for character in key),
        "JSON, all escaped in capitals": "".join(f"\\u{ord(character):04X}" for character in key),
        "Python": "".join(f"\\x{ord(character):02x}" for character in key),
        "URL": quote(key, safe=""),
        "URL in a URL": quote(quote(key, safe=""), safe=""),
        "URL, all escaped": "".join(f"%{ord(character):02x}" for character in key),
        "HTML": html.escape(key),
        "HTML in HTML": html.escape(html.escape(key)),
        "HTML in JSON": json.dumps(html.escape(key)),
        "HTML, all decimal": "".join(f"&#{ord(character)};" for character in key),
        "HTML, all hexadecimal": "".join(f"&#x{ord(character):04X};" for character in key),
        "HTML, by names": key.replace("/", "&sol;").replace("+", "&plus;"),
        "mixed": "sk%2D" + key[3:6].replace("/", "\\/") + quote(key[6:]),
    }


@pytest.mark.parametrize("key", [KEY, PLAIN_KEY], ids=["odd", "plain"])
@pytest.mark.parametrize("spelling", spellings(KEY))
def test_a_key_is_found_in_every_spelling(spelling: str, key: str) -> None:
    masked = Mask(key)(f"before {spellings(key)[spelling]} after")
    assert masked.replace('\\"', "").replace('"', "") == "before *** after"


@pytest.mark.parametrize("key", [KEY, PLAIN_KEY], ids=["odd", "plain"])
@pytest.mark.parametrize("spelling", spellings(KEY))
def test_a_key_is_found_in_every_spelling_of_a_json_answer(spelling: str, key: str) -> None:
    text = json.dumps({"message": spellings(key)[spelling]})
    # Also with every character of the answer's strings escaped, which JSON allows.
    escaped = '{"message": "' + "".join(f"\\u{ord(character):04x}" for character in spellings(key)[spelling]) + '"}'
    for answer in (text, escaped):
        assert Mask(key).read_json(answer)["message"].replace('\\"', "").strip('"') == "***"


@pytest.mark.parametrize("key", [KEY, PLAIN_KEY], ids=["odd", "plain"])
@pytest.mark.parametrize("user", ["", "u", "us", "user"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_a_key_is_found_in_base64_such_as_a_basic_header(user: str, encode: object, key: str) -> None:
    assert callable(encode)
    encoded = encode(f"{user}:{key}".encode()).decode()
    masked = Mask(key)(f"Basic {encoded}")
    assert "***" in masked
    # Only the user's characters and those that encode both a byte of the user and one of the key may remain.
    assert len(masked) < len("Basic ***") + len(user) * 2 + 8


def test_a_key_is_found_in_names_and_lists_however_deep() -> None:
    for key in (KEY, PLAIN_KEY):
        value = {"a": [{key: key, "b": [1, None, True]}], "c": f"x{key}x"}
        assert Mask(key).read_json(json.dumps(value)) == {"a": [{"***": "***", "b": [1, None, True]}], "c": "x***x"}


@pytest.mark.parametrize("key", ["123456789012", "12345678.5", "9" * 40])
def test_a_key_of_digits_is_found_in_a_number(key: str) -> None:
    answer = f'{{"error": {key}, "list": [{{"n": -{key}}}], "other": 1234, "yes": true, "nothing": null}}'
    masked = Mask(key).read_json(answer)
    assert masked == {"error": "***", "list": [{"n": "***"}], "other": 1234, "yes": True, "nothing": None}


@pytest.mark.parametrize("key", ["k", "sk", "a", "task", "200", "SUCCESS"])
def test_a_short_key_is_found_as_a_word_and_loses_no_answer(key: str) -> None:
    data = {"task_id": f"n43{key}", "status": "IN_PROGRESS", "consumed_credits": 200}
    mask = Mask(key)
    assert mask.read_json(json.dumps({"code": 200, "data": data})) == {"code": 200, "data": data}
    for text in ("Bad {}.", "Bearer {}", '"{}"', "key={}&x"):
        assert mask(text.format(key)) == text.format("***")


def test_a_key_is_found_with_nul_between_its_characters() -> None:
    for key in (KEY, PLAIN_KEY):
        assert Mask(key)("\0".join(f"Bad {key}.")) == "Bad ***."
        answer = json.dumps({"message": "\0\0\0".join(key)})
        assert Mask(key).read_json(answer) == {"message": "***"}
        assert Mask(key)("a\0b") == "a\0b"


def test_other_texts_stay_as_they_are() -> None:
    for text in ("", "sk-x/y", "a % b \\ c &amp; d", "\\u0073k", KEY[:-1], KEY.upper()):
        assert Mask(KEY)(text) == text
    assert Mask("")("anything") == "anything"
    assert KEY not in repr(Mask(KEY))


@given(PRINTABLE, st.text(max_size=40), st.text(max_size=40))
def test_no_answer_contains_the_key(key: str, before: str, after: str) -> None:
    mask = Mask(key)
    for spelled in (key, json.dumps(key)[1:-1], quote(key, safe=""), html.escape(key)):
        assert spelled not in mask(before + spelled + after)


def test_a_long_answer_is_masked_at_once() -> None:
    # It would take minutes if the time grew with more than the length.
    for part in ("sk-x/", "\\", "%25", "&amp;", "&", "sk-x\\/\\u0079"):
        for key in (KEY, PLAIN_KEY):
            Mask(key)(part * (500_000 // len(part)))
