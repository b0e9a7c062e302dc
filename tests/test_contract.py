"""The wire contract: valid requests, and the meaning of every possible answer."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pendulum
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_qwenimage import contract
from airflow_provider_qwenimage.contract import (
    GenerateRequest,
    TaskSnapshot,
    TaskStatus,
)
from airflow_provider_qwenimage.exceptions import (
    QwenImageAuthError,
    QwenImageBadRequestError,
    QwenImageContentPolicyError,
    QwenImageContractError,
    QwenImageCreditsError,
    QwenImageError,
    QwenImageNotFoundError,
    QwenImageRateLimitError,
    QwenImageRequestError,
    QwenImageServerError,
    QwenImageTaskFailedError,
)
from airflow_provider_qwenimage.rules import polling
from airflow_provider_qwenimage.rules.answers import (
    HttpAnswer,
    contradiction_of,
    parse_status,
    parse_submission,
    status_call,
)
from airflow_provider_qwenimage.rules.task_ids import printable_id

DOCUMENTED: dict[str, Any] = {
    "task_id": "n43abc",
    "status": "SUCCESS",
    "consumed_credits": 5,
    "error_message": None,
    "created_at": "2024-12-19T10:00:00Z",
    "request": {"prompt": "a fox"},
    "response": ["https://cdn.example.com/image.png"],
}

ODD_TASK_IDS = [
    "n43\n\x1b[31mERROR",
    " n43",
    "n43\n",
    "  ",
    "a/b?c=d&e#f%20 \x00",
    "n\u202e34",
    "urlencoded:n43\n",
    "\n" * 500,
]


def envelope(data: object, code: object = 200, message: object = "success") -> bytes:
    return json.dumps({"code": code, "message": message, "data": data}).encode()


def answer(body: bytes, status: int = 200, **headers: str) -> HttpAnswer:
    return HttpAnswer(status, {name.replace("_", "-"): value for name, value in headers.items()}, body)


class TestRequest:
    def test_a_prompt_is_enough(self) -> None:
        assert GenerateRequest(prompt="a fox").payload() == {
            "prompt": "a fox",
            "size": "1024*1024",
            "seed": -1,
            "output_format": "jpeg",
        }

    def test_every_field_reaches_the_wire(self) -> None:
        fields = {
            "prompt": "a fox",
            "size": "1536*1024",
            "seed": 7,
            "output_format": "webp",
            "callback_url": "https://example.com/hook?x=1",
        }
        assert GenerateRequest(**fields).payload() == fields

    def test_the_longest_prompt_is_allowed_and_one_more_is_not(self) -> None:
        GenerateRequest(prompt="é" * 2000)
        with pytest.raises(ValueError, match=r"prompt has 2001 characters.*at most 2000"):
            GenerateRequest(prompt="é" * 2001)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("prompt", ""),
            ("prompt", " \n\t"),
            ("prompt", None),
            ("prompt", 5),
            ("size", "1024x1024"),
            ("size", "512*512"),
            ("size", None),
            ("size", ["1024*1024"]),
            ("output_format", "gif"),
            ("output_format", "JPEG"),
            ("seed", -2),
            ("seed", 1.5),
            ("seed", "7"),
            ("seed", None),
            ("seed", True),
            ("callback_url", "ftp://example.com"),
            ("callback_url", "example.com/hook"),
            ("callback_url", "https://"),
            ("callback_url", "https://exa mple.com"),
            ("callback_url", "http://example.com:99999/"),
            ("callback_url", ""),
            ("callback_url", 5),
        ],
    )
    def test_a_bad_field_is_named_with_its_value_and_the_allowed_ones(self, field: str, value: object) -> None:
        with pytest.raises(ValueError, match=rf"^{field} is .*; it must be ") as caught:
            GenerateRequest(**{"prompt": "a fox"} | {field: value})
        assert repr(value) in str(caught.value)

    @pytest.mark.parametrize(
        "url",
        [
            "ftp://example.com/hook?token=s3cr3t",
            "https://me:s3cr3t@example.com:99999/hook",
            "https://exa mple.com/hook?token=s3cr3t",
            "example.com/hook#s3cr3t",
            "me:s3cr3t@example.com/hook",
            "https://example.com/hook?" + "x" * 5000 + "s3cr3t",
            "https://me:" + "x" * 190 + "s3cr3t@example.com/ hook",
        ],
        ids=["scheme", "port", "space", "fragment", "no scheme", "long", "long password"],
    )
    def test_a_bad_callback_url_is_shown_without_its_token(self, url: str) -> None:
        with pytest.raises(ValueError, match=r"callback_url is .*mple\.com.*it must be") as caught:
            GenerateRequest(prompt="a fox", callback_url=url)
        assert "s3cr3t" not in str(caught.value)
        assert "xxx" not in str(caught.value)

    def test_a_request_is_printed_without_the_token_of_its_callback_url(self) -> None:
        assert "s3cr3t" not in repr(GenerateRequest(prompt="a fox", callback_url="https://example.com/s3cr3t?s3cr3t"))

    def test_the_variant_distinguishes_random_images_but_not_seeded_ones(self) -> None:
        random, seeded = GenerateRequest(prompt="a fox"), GenerateRequest(prompt="a fox", seed=1)
        assert random.fingerprint(0) != random.fingerprint(1)
        assert seeded.fingerprint(0) == seeded.fingerprint(1)

    def test_the_fingerprint_is_of_the_image_not_of_the_callback(self) -> None:
        plain = GenerateRequest(prompt="a fox")
        assert plain.fingerprint() == GenerateRequest(prompt="a fox", callback_url="https://a.example").fingerprint()
        others = [
            GenerateRequest(prompt="a cat"),
            GenerateRequest(prompt="a fox", size="768*1024"),
            GenerateRequest(prompt="a fox", seed=0),
            GenerateRequest(prompt="a fox", output_format="png"),
        ]
        assert len({request.fingerprint() for request in [plain, *others]}) == len(others) + 1

    def test_the_fingerprint_stays_the_same_in_every_release(self) -> None:
        # Stored file names contain it: another value would make every user pay again.
        assert GenerateRequest(prompt="a").fingerprint().startswith("ee53502dedf926aa")

    def test_every_documented_size_has_its_pixels(self) -> None:
        assert [GenerateRequest(prompt="a", size=size).pixel_size for size in contract.SIZES] == [
            (1024, 1024),
            (1024, 1536),
            (1536, 1024),
            (768, 1024),
            (1024, 768),
        ]


class TestSubmissionAnswer:
    def test_the_documented_answer_gives_the_task_id(self) -> None:
        body = envelope({"task_id": "n43abc123def456qwenimg", "status": "IN_PROGRESS"})
        assert parse_submission(answer(body)) == "n43abc123def456qwenimg"

    @pytest.mark.parametrize("task_id", ODD_TASK_IDS)
    def test_an_odd_id_is_stored_printable_and_sent_as_it_was_received(self, task_id: str) -> None:
        kept = parse_submission(answer(envelope({"task_id": task_id, "status": "PENDING"})))
        assert kept.isprintable()
        assert kept == kept.strip()
        call = status_call(kept)
        assert call.params == {"task_id": task_id}
        assert call.read(answer(envelope(DOCUMENTED | {"task_id": task_id}))).task_id == kept

    @pytest.mark.parametrize("data", [{"task_id": "n" * 501}, {"task_id": "n43\ud83d"}])
    def test_an_id_that_cannot_be_sent_breaks_the_contract_in_a_short_message(self, data: object) -> None:
        with pytest.raises(QwenImageContractError, match=r"data\.task_id") as caught:
            parse_submission(answer(envelope(data)))
        assert len(str(caught.value)) < 600
        assert str(caught.value).isprintable()

    @pytest.mark.parametrize("data", [None, [], "n43", {}, {"task_id": None}, {"task_id": 5}, {"task_id": ""}])
    def test_an_answer_without_a_task_id_breaks_the_contract(self, data: object) -> None:
        with pytest.raises(QwenImageContractError, match=r"data\.task_id"):
            parse_submission(answer(envelope(data)))


class TestStatusAnswer:
    def test_every_documented_field_is_read(self) -> None:
        snapshot = parse_status(answer(envelope(DOCUMENTED)), "n43abc")
        assert snapshot == TaskSnapshot(
            task_id="n43abc",
            status=TaskStatus.SUCCESS,
            consumed_credits=5,
            created_at=pendulum.datetime(2024, 12, 19, 10, tz="UTC"),
            request={"prompt": "a fox"},
            image_urls=("https://cdn.example.com/image.png",),
        )
        assert isinstance(snapshot.created_at, pendulum.DateTime)

    @pytest.mark.parametrize("status", list(TaskStatus))
    def test_the_four_statuses_are_documented(self, status: TaskStatus) -> None:
        assert parse_status(answer(envelope(DOCUMENTED | {"status": status})), "n43abc").is_documented

    def test_an_unknown_status_stays_unchanged(self) -> None:
        snapshot = parse_status(answer(envelope(DOCUMENTED | {"status": "QUEUED_UP"})), "n43abc")
        assert (snapshot.status, snapshot.is_documented) == ("QUEUED_UP", False)

    def test_unknown_fields_are_kept(self) -> None:
        snapshot = parse_status(answer(envelope(DOCUMENTED | {"queue": {"place": 3}})), "n43abc")
        assert snapshot.extra == {"queue": {"place": 3}}

    def test_missing_or_null_fields_lose_no_image(self) -> None:
        data = {"task_id": "n43abc", "status": "SUCCESS", "response": ["https://cdn.example.com/1.png"]}
        expected = TaskSnapshot(
            task_id="n43abc", status=TaskStatus.SUCCESS, image_urls=("https://cdn.example.com/1.png",)
        )
        nulls = dict.fromkeys(("consumed_credits", "error_message", "created_at", "request"))
        assert parse_status(answer(envelope(data)), "n43abc") == expected
        assert parse_status(answer(envelope(data | nulls)), "n43abc") == expected

    def test_a_time_that_does_not_parse_stays_unchanged(self) -> None:
        snapshot = parse_status(answer(envelope(DOCUMENTED | {"created_at": "yesterday"})), "n43abc")
        assert (snapshot.created_at, snapshot.extra) == (None, {"created_at": "yesterday"})

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("task_id", 5),
            ("task_id", ""),
            ("task_id", "another"),
            ("status", None),
            ("status", 1),
            ("status", ""),
            ("task_id", "n43\ud83d"),
            ("task_id", "n" * 501),
            ("response", "image.png"),
            ("response", {}),
            ("response", {"url": None, "images": [{"url": "image.png"}]}),
            ("response", [[[[[["https://cdn.example.com/image.png"]]]]]]),
            ("response", 5),
            ("response", False),
            ("response", []),
            ("response", None),
            ("response", [5]),
            ("response", ["image.png"]),
            ("response", ["file:///etc/passwd"]),
            ("response", ["https://cdn.example.com/\ud83d.png"]),
            ("response", ["https://cdn.example.com/\x00.png"]),
            ("response", ["https://cdn.example.com/\x1b[31m.png"]),
            ("response", ["https://cdn.example.com/" + "a" * 10_000]),
        ],
    )
    def test_a_wrong_type_breaks_the_contract_by_name(self, field: str, value: object) -> None:
        with pytest.raises(QwenImageContractError, match=rf"data\.{field}"):
            parse_status(answer(envelope(DOCUMENTED | {field: value})), "n43abc")

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("consumed_credits", "5"),
            ("consumed_credits", True),
            ("consumed_credits", -1),
            ("consumed_credits", [5]),
            ("consumed_credits", 10**31),
            ("consumed_credits", 10**400),
            ("consumed_credits", 1e30),
            ("consumed_credits", float("nan")),
            ("consumed_credits", float("inf")),
            ("error_message", {"text": "no"}),
            ("created_at", 173460),
            ("created_at", 10**400),
            ("created_at", float("nan")),
            ("created_at", True),
            ("created_at", 17346024001),
            ("created_at", [1734602400]),
            ("created_at", "2024-12-19T10:00:00Z" * 50_000),
            ("created_at", "2024-12-19T10:00:00+24:00"),
            ("created_at", "20241219T100000-99"),
            ("created_at", "now"),
            ("created_at", "10:00:00"),
            ("request", "a fox"),
            ("request", [{"prompt": "a fox"}]),
        ],
    )
    def test_an_odd_value_in_a_field_that_is_not_needed_loses_no_image(self, field: str, value: object) -> None:
        snapshot = parse_status(answer(envelope(DOCUMENTED | {field: value})), "n43abc")
        assert (snapshot.status, snapshot.image_urls) == ("SUCCESS", ("https://cdn.example.com/image.png",))
        assert not getattr(snapshot, field)
        assert repr(snapshot.extra) == repr({field: value})

    @pytest.mark.parametrize("status", ["PENDING", "IN_PROGRESS", "FAILED"])
    def test_odd_urls_before_a_success_hide_no_status(self, status: str) -> None:
        snapshot = parse_status(answer(envelope(DOCUMENTED | {"status": status, "response": {"a": 5}})), "n43abc")
        assert (snapshot.status, snapshot.image_urls, snapshot.extra) == (status, (), {"response": {"a": 5}})

    def test_only_the_first_urls_of_a_long_list_are_read(self) -> None:
        urls = [f"https://cdn.example.com/{number}.png" for number in range(10_000)]
        snapshot = parse_status(answer(envelope(DOCUMENTED | {"response": urls})), "n43abc")
        assert snapshot.image_urls == tuple(urls[: contract.MAX_IMAGES])

    @pytest.mark.parametrize("odd", [None, "", 5, {"url": "x"}, "image.png", "https://cdn.example.com/\ud83d.png"])
    def test_an_odd_url_beside_a_good_one_loses_no_image(self, odd: object) -> None:
        good = DOCUMENTED["response"]
        for urls in ([*good, odd], [odd, *good]):
            snapshot = parse_status(answer(envelope(DOCUMENTED | {"response": urls})), "n43abc")
            assert snapshot.image_urls == tuple(good)

    @pytest.mark.parametrize(
        "response",
        [
            "URL",
            ["URL"],
            [{"url": "URL"}],
            [{"url": "URL", "thumbnail": "https://cdn.example.com/small.png"}],
            {"url": "URL"},
            {"image_url": "URL"},
            {"images": ["URL"]},
            {"images": [{"url": "URL", "width": 1024}], "seed": 5},
            {"result": {"output": ["URL"]}},
            [["URL"]],
            [5, None, {}, "URL"],
        ],
    )
    def test_the_url_is_found_however_the_response_is_nested(self, response: Any) -> None:
        url = DOCUMENTED["response"][0]
        data = DOCUMENTED | {"response": json.loads(json.dumps(response).replace("URL", url))}
        snapshot = parse_status(answer(envelope(data)), "n43abc")
        assert (snapshot.status, snapshot.image_urls, snapshot.extra) == ("SUCCESS", (url,), {})
        assert TaskSnapshot.from_data(snapshot.to_data()) == snapshot

    def test_every_image_of_a_list_of_objects_is_found_in_order(self) -> None:
        urls = [f"https://cdn.example.com/{number}.png" for number in range(30)]
        data = DOCUMENTED | {"response": [{"url": url} for url in urls]}
        assert parse_status(answer(envelope(data)), "n43abc").image_urls == tuple(urls[: contract.MAX_IMAGES])

    @pytest.mark.parametrize("wide", [[{}] * 100_000, [[["x"] * 1000] * 1000]])
    def test_a_response_without_urls_is_searched_in_bounded_time(self, wide: Any) -> None:
        with pytest.raises(QwenImageContractError, match=r"data\.response"):
            contract.TaskSnapshot.from_data(DOCUMENTED | {"response": wide})

    @pytest.mark.parametrize(
        "created_at",
        [1734602400, 1734602400.0, 1734602400000, "1734602400", "1734602400000", "2024-12-19T10:00:00+00:00"],
    )
    def test_a_time_is_read_as_epoch_seconds_or_milliseconds(self, created_at: Any) -> None:
        snapshot = parse_status(answer(envelope(DOCUMENTED | {"created_at": created_at})), "n43abc")
        assert (snapshot.created_at, snapshot.extra) == (pendulum.datetime(2024, 12, 19, 10, tz="UTC"), {})
        assert TaskSnapshot.from_data(snapshot.to_data()) == snapshot

    def test_every_time_that_is_read_can_be_formatted(self) -> None:
        for offset in ("", "Z", "+00:00", "+23:59", "-23:59", "+24:00", "-24:00", "+99", "+5", "+05:30:15"):
            data = DOCUMENTED | {"created_at": f"2024-12-19T10:00:00{offset}"}
            snapshot = parse_status(answer(envelope(data)), "n43abc")
            assert TaskSnapshot.from_data(snapshot.to_data()) == snapshot

    def test_the_described_request_has_neither_a_callback_url_nor_odd_fields(self) -> None:
        echoed = {
            "prompt": "a fox \ud83d",
            "size": ["1024*1024"],
            "seed": True,
            "output_format": "png",
            "callback_url": "https://example.com/?token=1",
            "\ud83d": 5,
        }
        snapshot = parse_status(answer(envelope(DOCUMENTED | {"request": echoed})), "n43abc")
        assert snapshot.request == echoed
        assert snapshot.described_request() == {"prompt": "a fox \ufffd", "output_format": "png"}

    def test_a_status_before_success_needs_no_images(self) -> None:
        data = DOCUMENTED | {"status": "PENDING", "response": None}
        assert parse_status(answer(envelope(data)), "n43abc").image_urls == ()


ERROR_CODES = [
    (400, QwenImageBadRequestError),
    (401, QwenImageAuthError),
    (402, QwenImageCreditsError),
    (403, QwenImageAuthError),
    (404, QwenImageNotFoundError),
    (408, QwenImageServerError),
    (422, QwenImageBadRequestError),
    (429, QwenImageRateLimitError),
    (500, QwenImageServerError),
    (502, QwenImageServerError),
    (503, QwenImageServerError),
]


ODD_CODES: list[Any] = [None, "200", "ok", True, 0, 2.5, -1, [], 10**400]


class TestErrorAnswer:
    @pytest.mark.parametrize(("code", "error_class"), ERROR_CODES)
    @pytest.mark.parametrize("style", ["http", "envelope"])
    def test_a_code_means_the_same_in_both_wire_styles(
        self, code: int, error_class: type[QwenImageRequestError], style: str
    ) -> None:
        status = code if style == "http" else 200
        with pytest.raises(QwenImageRequestError, match=f"code {code}: No, because") as caught:
            parse_status(answer(envelope(None, code, "No, because."), status), "n43abc")
        assert type(caught.value) is error_class
        assert (caught.value.code, caught.value.from_api) == (code, True)

    @pytest.mark.parametrize(("code", "error_class"), ERROR_CODES)
    @pytest.mark.parametrize("body", [b"", b"<html>\n<h1>Bad</h1>", b"[]", b"null", b"{}", b"\xff\xfe", b"[" * 100_000])
    def test_an_error_without_an_envelope_goes_by_its_http_status(
        self, code: int, error_class: type[QwenImageRequestError], body: bytes
    ) -> None:
        with pytest.raises(QwenImageRequestError) as caught:
            parse_status(answer(body, code), "n43abc")
        assert type(caught.value) is error_class
        assert (caught.value.code, caught.value.from_api) == (code, False)

    @pytest.mark.parametrize("body", [b"", b"<html>sign in</html>", b"[]", b'{"code": "200"}', b'{"data": {}}', b"{"])
    def test_a_success_without_an_envelope_breaks_the_contract(self, body: bytes) -> None:
        with pytest.raises(QwenImageContractError, match="instead of its documented JSON"):
            parse_status(answer(body), "n43abc")

    def test_an_error_of_a_proxy_around_the_apis_envelope_does_not_count_as_the_apis(self) -> None:
        with pytest.raises(QwenImageServerError) as caught:
            parse_submission(answer(envelope(None, 500, "oops"), 502))
        assert not caught.value.from_api

    @pytest.mark.parametrize(
        ("status", "code"),
        [
            *((status, 200) for status in (201, 206, 301, 400, 413, 429, 500, 502)),
            *((200, code) for code in (400, 401, 429, 500)),
            *((same, same) for same in (202, 429, 500)),
            *((status, odd) for status in (200, 404, 500) for odd in ODD_CODES),
        ],
    )
    def test_an_answer_with_a_task_id_accepts_the_submission_whatever_its_code(self, status: int, code: Any) -> None:
        accepted = answer(envelope({"task_id": "n43abc", "status": "IN_PROGRESS"}, code), status)
        assert parse_submission(accepted) == "n43abc"
        assert (contradiction_of(accepted) is None) is (code == 200 and status < 300)

    def test_an_acceptance_without_a_code_or_a_status_is_one(self) -> None:
        assert parse_submission(answer(b'{"data": {"task_id": "n43abc"}}', 500)) == "n43abc"

    @pytest.mark.parametrize(
        ("status", "code", "around"),
        [
            (500, 200, "HTTP 500"),
            (200, 429, "code 429"),
            (500, "no\n", "HTTP 500 and code 'no\\n'"),
            (200, None, "no code"),
        ],
    )
    def test_a_contradiction_is_reported_in_one_sentence(self, status: int, code: Any, around: str) -> None:
        accepted = answer(envelope({"task_id": "n1"}, code), status)
        assert contradiction_of(accepted) == (
            f"The API contradicts itself: {around} around accepted task n1. Waiting for n1."
        )

    @pytest.mark.parametrize(
        ("status", "code"), [(201, 200), (206, 200), (200, None), (200, "200"), (200, 0), (200, 201)]
    )
    def test_a_status_is_read_from_any_success(self, status: int, code: Any) -> None:
        assert parse_status(answer(envelope(DOCUMENTED, code), status), "n43abc").status == TaskStatus.SUCCESS

    @pytest.mark.parametrize(("status", "code"), [(500, 200), (404, None), (301, "200"), (200, 404), (201, 500)])
    def test_a_status_in_an_error_is_not_read(self, status: int, code: Any) -> None:
        with pytest.raises(QwenImageError):
            parse_status(answer(envelope(DOCUMENTED, code), status), "n43abc")

    @pytest.mark.parametrize("data", [{}, {"task_id": None}, {"task_id": ""}, {"task_id": 5}, [], "n43abc"])
    def test_an_error_code_without_a_task_id_is_an_error(self, data: object) -> None:
        for status, code in ((500, 200), (200, 500), (500, 500)):
            with pytest.raises(QwenImageServerError):
                parse_submission(answer(envelope(data, code), status))

    def test_a_success_code_under_an_error_status_is_an_error(self) -> None:
        with pytest.raises(QwenImageServerError) as caught:
            parse_status(answer(envelope(DOCUMENTED, 200), 500), "n43abc")
        assert caught.value.code == 500

    def test_a_redirect_is_not_followed_but_named(self) -> None:
        with pytest.raises(QwenImageContractError, match=r"redirect .* to https://other\.example/.*host") as caught:
            parse_status(answer(b"", 301, location="https://other.example/?token=1"), "n43abc")
        assert caught.value.redirect == "https://other.example/"

    @pytest.mark.parametrize("code", [429, 503])
    @pytest.mark.parametrize(
        ("header", "seconds"),
        [("20", 20.0), ("0", 0.0), ("soon", None), ("-5", None), ("9" * 5000, 86_400.0), ("²", None)],
    )
    def test_retry_after_in_seconds_is_read(self, code: int, header: str, seconds: float | None) -> None:
        with pytest.raises(QwenImageRequestError) as caught:
            parse_status(answer(b"", code, retry_after=header), "n43abc")
        assert caught.value.retry_after == seconds

    def test_retry_after_as_a_date_is_read(self) -> None:
        header = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
        with pytest.raises(QwenImageRateLimitError) as caught:
            parse_status(answer(b"", 429, retry_after=header), "n43abc")
        assert caught.value.retry_after is not None
        assert 25 < caught.value.retry_after <= 30

    def test_an_html_page_is_quoted_shortly_and_in_one_line(self) -> None:
        page = b"<html>\n" + b"<p>long</p>\n" * 1000 + b"\x1b[31m"
        with pytest.raises(QwenImageServerError) as caught:
            parse_status(answer(page, 502), "n43abc")
        assert len(str(caught.value)) < 500
        assert str(caught.value).isprintable()

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            (envelope(None, 400, "no \x1b[31m\ud83d\x00" * 100_000), 200),
            (envelope(DOCUMENTED | {"status": "ODD\n" * 100_000}), 200),
            (envelope(DOCUMENTED | {"status": "FAILED", "error_message": "no \x1b[31m\n" * 100_000}), 200),
            (envelope(DOCUMENTED | {"status": "FAILED", "error_message": {"no": "\ud83d" * 100_000}}), 200),
            (b"\xff" * 1_000_000, 500),
        ],
    )
    def test_the_error_for_any_answer_is_short_and_printable(self, body: bytes, status: int) -> None:
        def outcome() -> TaskSnapshot | QwenImageError:
            try:
                return parse_status(answer(body, status), "n43abc")
            except QwenImageError as error:
                return error

        policy = polling.PollPolicy(max_consecutive_failures=1)
        end = polling.decide(policy, polling.PollState(), outcome(), image_task_id="n43abc", now=0.0)
        assert isinstance(end, polling.GiveUp)
        assert len(str(end.error)) < 2000
        assert str(end.error).isprintable()


class TestFailure:
    def test_a_reason_that_is_not_a_string_is_shown_and_still_marks_a_policy_refusal(self) -> None:
        data = DOCUMENTED | {"status": "FAILED", "error_message": {"text": "Content policy violation"}}
        error = contract.task_failure(TaskSnapshot.from_data(data))
        assert type(error) is QwenImageContentPolicyError
        assert "{'text': 'Content policy violation'}" in str(error)

    def test_a_failure_names_the_reason_and_the_cost(self) -> None:
        snapshot = TaskSnapshot(
            task_id="n43", status=TaskStatus.FAILED, consumed_credits=0, error_message="GPU on fire"
        )
        error = contract.task_failure(snapshot)
        assert type(error) is QwenImageTaskFailedError
        assert error.snapshot is snapshot
        assert "GPU on fire" in str(error)
        assert "It cost 0 credits" in str(error)

    def test_a_policy_refusal_is_permanent(self) -> None:
        snapshot = TaskSnapshot(
            task_id="n43", status=TaskStatus.FAILED, error_message="Content policy violation detected"
        )
        error = contract.task_failure(snapshot)
        assert type(error) is QwenImageContentPolicyError
        assert error.permanent


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=10), children, max_size=4),
    max_leaves=12,
)
SNAPSHOT_DATA = st.fixed_dictionaries({}, optional=dict.fromkeys(DOCUMENTED, JSON_VALUES) | {"other": JSON_VALUES})
ENVELOPES = st.fixed_dictionaries(
    {"code": st.sampled_from([200, 400, 401, 404, 429, 500]) | JSON_VALUES},
    optional={"message": JSON_VALUES, "data": SNAPSHOT_DATA | JSON_VALUES},
)
HEADERS = st.dictionaries(st.sampled_from(["retry-after", "location", "content-type"]), st.text(max_size=30))
BODIES = st.binary(max_size=200) | (ENVELOPES | JSON_VALUES).map(lambda value: json.dumps(value).encode())


@given(status=st.integers(100, 599), headers=HEADERS, body=BODIES)
def test_no_answer_makes_the_parser_raise_anything_else(status: int, headers: dict[str, str], body: bytes) -> None:
    received = HttpAnswer(status, headers, body)
    for parse in (parse_submission, lambda it: parse_status(it, "n43abc")):
        try:
            parse(received)
        except QwenImageError as error:
            str(error).encode()


SNAPSHOTS = st.builds(
    TaskSnapshot,
    task_id=st.text(min_size=1, max_size=50).map(printable_id),
    status=st.sampled_from([TaskStatus.PENDING, TaskStatus.IN_PROGRESS, TaskStatus.FAILED, "SOMETHING_NEW"]),
    consumed_credits=st.none() | st.integers(0, 10**6) | st.floats(0, 1e6),
    error_message=st.none() | st.text(),
    created_at=st.none() | st.datetimes(timezones=st.just(UTC)).map(pendulum.instance),
    request=st.dictionaries(st.text(), st.text() | st.integers()),
    image_urls=st.lists(st.sampled_from(["https://cdn.example.com/1.png", "http://a.b/c?d=e"]), max_size=10).map(tuple),
    extra=st.dictionaries(st.text(min_size=1).filter(lambda name: name not in DOCUMENTED), st.integers()),
)


@given(snapshot=SNAPSHOTS)
def test_a_snapshot_survives_a_round_trip(snapshot: TaskSnapshot) -> None:
    assert TaskSnapshot.from_data(json.loads(json.dumps(snapshot.to_data()))) == snapshot


@pytest.mark.parametrize(
    "name",
    ["MAX_TASK_ID_CHARACTERS", "NOT_STORABLE", "OPTIONAL_FIELDS", "QwenImageContractError", "read_snapshot", "shorten"],
)
def test_names_that_moved_can_still_be_imported_from_the_contract(name: str) -> None:
    assert getattr(contract, name) is not None
    assert all(getattr(contract, moved) is not None for moved in contract._MOVED)


def test_an_unknown_name_of_the_contract_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        contract.no_such_name  # noqa: B018
