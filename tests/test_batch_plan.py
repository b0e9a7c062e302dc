"""What `airflow qwenimage plan` says about a file of requests and a folder, and that it changes nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from airflow_provider_qwenimage.cli.__main__ import main
from airflow_provider_qwenimage.contract import CREDITS_PER_IMAGE, GenerateRequest, TaskSnapshot, TaskStatus
from airflow_provider_qwenimage.rules.arguments import MAX_SECONDS
from airflow_provider_qwenimage.rules.image_identity import ImageIdentity
from airflow_provider_qwenimage.rules.made_by import description_of
from airflow_provider_qwenimage.rules.submissions import Submit
from airflow_provider_qwenimage.rules.verification import ImageFacts, examine_image
from airflow_provider_qwenimage.sandbox.painting import paint
from airflow_provider_qwenimage.storage.images import store_image
from airflow_provider_qwenimage.storage.paths import open_output_path
from airflow_provider_qwenimage.tasks.ledger import Ledger
from airflow_provider_qwenimage.tasks.opening import open_row_ledger, try_of
from tests.events import wait_until
from tests.ledgers import asking_of, context_of, step_of

if TYPE_CHECKING:
    from tests.s3_server import Bucket

FOX = {"prompt": "A fox", "seed": 1}
Plan: TypeAlias = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def plan(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Plan:
    """Run the command for some rows, or lines in bytes; return its exit code and its JSON."""
    # The command sets it for its process.
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "client")

    def run(rows: Iterable[object], *options: str, folder: str | None = None) -> tuple[int, dict[str, Any]]:
        file = tmp_path / "requests.jsonl"
        file.write_text("".join(f"{row.decode() if isinstance(row, bytes) else json.dumps(row)}\n" for row in rows))
        output_path = folder or str(tmp_path / "images")
        capsys.readouterr()
        code = 0
        try:
            main(["plan", str(file), "--output-path", output_path, "--output", "json", *options])
        except SystemExit as end:
            if not isinstance(end.code, int):
                raise
            code = end.code
        planned: dict[str, Any] = json.loads(capsys.readouterr().out)
        return code, planned

    return run


def store(folder: Path, identity: ImageIdentity) -> Path:
    """Store an image as another task does, and return its path."""
    request = identity.request
    content = paint(request.prompt, 1, request.pixel_size, request.output_format)
    found = examine_image(content, request)
    assert isinstance(found, ImageFacts)
    snapshot = TaskSnapshot(
        task_id="n43abc", status=TaskStatus.SUCCESS, consumed_credits=5, image_urls=("https://cdn.example.com/1",)
    )
    target = open_output_path(str(folder))
    return Path(store_image(content, found, snapshot, identity, target, number=1, made_by={"task_id": "other"}).path)


def counts(planned: dict[str, Any]) -> dict[str, int]:
    names = ("to_submit", "pending", "stored", "shared", "blocked", "bad")
    return {name: planned[name] for name in names if planned[name]}


def submitting(folder: Path, **fields: Any) -> Ledger:
    """Return the ledger of another task that is submitting an image."""
    folder.mkdir(exist_ok=True)
    context = context_of(task_id="other")
    name = fields.pop("name", None)
    asking = asking_of(GenerateRequest(**FOX | fields), name=name)
    ledger = open_row_ledger(
        try_of(context), open_output_path(str(folder)), description_of(context["ti"]), asking.identity
    )
    assert isinstance(step_of(ledger, asking), Submit)
    assert ledger.intend(asking)
    return ledger


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def age_intents(folder: Path) -> None:
    for file in folder.glob(".submission-*"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"intended_at": "2024-01-01T00:00:00+00:00"}))


def test_rows_that_the_folder_has_nothing_of_are_to_be_paid_and_the_folder_is_not_made(
    plan: Plan, tmp_path: Path
) -> None:
    code, planned = plan([FOX, "A hare", "A hare", {"prompt": "A fox", "name": "fox"}])
    assert code == 0
    assert counts(planned) == {"to_submit": 4}
    assert planned["rows"] == 4
    assert planned["credits"] == 4 * planned["credits_per_image"] == 4 * CREDITS_PER_IMAGE
    assert [file.name for file in tmp_path.iterdir()] == ["requests.jsonl"]


def test_equal_rows_are_paid_once(plan: Plan) -> None:
    named = {"prompt": "A hare", "name": "hare"}
    code, planned = plan([FOX, FOX, named, named])
    assert (code, counts(planned), planned["credits"]) == (0, {"to_submit": 2, "shared": 2}, 2 * CREDITS_PER_IMAGE)


def test_bad_rows_are_named_with_line_and_problem_and_the_others_are_planned_all_the_same(plan: Plan) -> None:
    other = {"prompt": "A hare", "name": "Fox"}
    code, planned = plan(
        [b"", {"prompt": "A fox", "name": "fox"}, other, b"no JSON", {"prompt": "x", "size": "17"}, FOX]
    )
    assert code == 1
    assert counts(planned) == {"to_submit": 2, "bad": 3}
    assert planned["credits"] == 2 * CREDITS_PER_IMAGE
    assert [(problem["row"], problem["line"]) for problem in planned["problems"]] == [(2, 3), (3, 4), (4, 5)]
    assert "name is that of row 1" in planned["problems"][0]["problem"]
    assert "not JSON" in planned["problems"][1]["problem"]
    assert planned["problems"][2]["problem"].startswith("size is a text of 2 characters; it must be one of 1024*1024")


def test_stored_images_cost_nothing_unless_new_ones_are_asked_for(plan: Plan, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    store(folder, ImageIdentity(GenerateRequest(**FOX)))
    assert counts(plan([FOX, "A hare"])[1]) == {"to_submit": 1, "stored": 1}
    assert counts(plan([FOX, "A hare"], "--overwrite")[1]) == {"to_submit": 2}


def test_an_image_that_is_not_what_its_sidecar_says_blocks_its_row(plan: Plan, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    image = store(folder, ImageIdentity(GenerateRequest(**FOX)))
    image.write_bytes(b"mine")
    code, planned = plan(["A hare", FOX])
    assert (code, counts(planned)) == (1, {"to_submit": 1, "blocked": 1})
    ((row, problem),) = [(found["row"], found["problem"]) for found in planned["problems"]]
    assert row == 2
    assert f"{image} exists and is not the image that its sidecar describes" in problem
    assert counts(plan(["A hare", FOX], "--overwrite")[1]) == {"to_submit": 2}


def test_what_another_task_has_submitted_is_paid_and_pending(plan: Plan, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    submitting(folder).accept("n43abc")
    before = contents(folder)
    assert plan([FOX])[0] == 0
    assert counts(plan([FOX])[1]) == {"pending": 1}
    assert contents(folder) == before


def test_what_another_task_submits_at_this_moment_is_pending(plan: Plan, tmp_path: Path) -> None:
    submitting(tmp_path / "images")
    assert counts(plan([FOX])[1]) == {"pending": 1}


def test_a_submission_whose_answer_was_lost_blocks_its_row_and_nobody_is_told_that_the_user_knows(
    plan: Plan, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    submitting(folder)
    age_intents(folder)
    before = contents(folder)
    code, planned = plan([FOX])
    assert (code, counts(planned)) == (1, {"blocked": 1})
    assert "no response is stored" in planned["problems"][0]["problem"]
    # A record of it would make the next Clear of the task a consent.
    assert contents(folder) == before


def test_a_name_under_which_another_request_is_submitted_blocks_its_row(plan: Plan, tmp_path: Path) -> None:
    submitting(tmp_path / "images", name="fox").accept("n43abc")
    code, planned = plan([{"prompt": "A hare", "name": "fox"}])
    assert (code, counts(planned)) == (1, {"blocked": 1})


def test_the_map_index_decides_which_images_of_random_seeds_are_stored(plan: Plan, tmp_path: Path) -> None:
    store(tmp_path / "images", ImageIdentity(GenerateRequest(prompt="A hare")))
    assert counts(plan(["A hare"])[1]) == {"stored": 1}
    assert counts(plan(["A hare"], "--map-index", "0")[1]) == {"stored": 1}
    assert counts(plan(["A hare"], "--map-index", "2")[1]) == {"to_submit": 1}


def test_a_connection_is_read_only_if_it_is_named(plan: Plan, airflow_database: None, tmp_path: Path) -> None:
    from airflow.models.connection import Connection
    from airflow.utils.session import create_session

    with pytest.raises(SystemExit, match="'planned' isn't defined"):
        plan([FOX], "--conn-id", "planned")
    submitting(tmp_path / "images")
    age_intents(tmp_path / "images")
    assert counts(plan([FOX])[1]) == {"blocked": 1}
    # A slow API may still answer: Airflow's largest time limit is longer than the age of the record.
    extra = json.dumps({"timeout_seconds": MAX_SECONDS})
    with create_session() as session:
        connection = Connection("planned", conn_type="qwenimage", extra=extra)
        session.add(connection)
    try:
        with pytest.raises(SystemExit, match="has no API key"):
            plan([FOX], "--conn-id", "planned")
        with create_session() as session:
            session.merge(connection).set_password("sk-x")
        assert counts(plan([FOX], "--conn-id", "planned")[1]) == {"pending": 1}
    finally:
        with create_session() as session:
            session.delete(session.merge(connection))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{{ ds }}.jsonl", "--output-path", "x"], "is a template"),
        (["requests.jsonl", "--output-path", "x"], "does not exist"),
        (["requests.txt", "--output-path", "x"], "it must be"),
        (["requests.jsonl", "--output-path", "x.png"], "looks like an image file"),
        (["requests\udc80.jsonl", "--output-path", "x"], "cannot be sent or stored"),
        (["requests.jsonl", "--output-path", "s3://me:hunter2@bucket/x"], "credentials before the @"),
        (["requests.jsonl", "--output-path", "x", "--map-index", "-2"], "it must be 0 or more"),
    ],
)
def test_arguments_that_no_batch_can_have_are_refused_in_one_sentence(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "client")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message) as refused:
        main(["plan", *arguments])
    assert "hunter2" not in str(refused.value)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("folder", ["file", "file/images", "file/a/b", "link", "link/images"])
def test_a_file_in_the_way_of_the_folder_is_named_as_the_batch_does(folder: str, plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(SystemExit, match="a file or a dangling link has its name") as planned:
        plan([FOX], folder=str(tmp_path / folder))
    with pytest.raises(NotADirectoryError) as drawn:
        open_output_path(str(tmp_path / folder))
    assert str(planned.value) == f"The batch cannot be planned. {drawn.value}"


def test_a_link_to_a_folder_is_a_folder(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert counts(plan([FOX], folder=str(tmp_path / "link" / "images"))[1]) == {"to_submit": 1}


def test_ctrl_c_ends_it_without_a_traceback(tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    with file.open("w") as rows:
        rows.writelines(f'{{"prompt": "A fox", "seed": {seed}}}\n' for seed in range(100_000))
    command = [sys.executable, "-m", "airflow_provider_qwenimage.cli", "plan", str(file), "--output-path", "images"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: has_open(process.pid, file), "the command to read its file", seconds=120)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=120)
    assert (process.returncode, output, errors.splitlines()[-1:]) == (130, "", ["Interrupted."])
    assert "Traceback" not in errors


def has_open(process: int, file: Path) -> bool:
    for link in Path(f"/proc/{process}/fd").iterdir():
        # The process may close it at any time.
        with suppress(FileNotFoundError):
            if link.readlink() == file:
                return True
    return False


def test_people_get_a_table_and_the_rows_to_correct(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "client")
    file = tmp_path / "requests.csv"
    file.write_text("prompt,size\nA fox,\nA hare,17\n")
    with pytest.raises(SystemExit, match="1"):
        main(["plan", str(file), "--output-path", str(tmp_path / "images")])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split(" | ")[:2] == ["1   ", "5      "] and "to be submitted" in line for line in lines)
    assert any("an image costs 5 credits (as documented)" in line for line in lines)
    assert any(line.startswith("Row 2 (line 3): size is a text of 2 characters") for line in lines)


def test_ten_thousand_rows_take_a_bounded_memory(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "other.txt").write_text("")
    rows = [{"prompt": f"A fox {number} {'in the snow ' * 100}"} for number in range(10_000)]
    tracemalloc.start()
    try:
        _, planned = plan(rows)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert planned["to_submit"] == 10_000
    # The prompts alone have 12 MB; the text of the file is the test's own.
    assert peak < 40 * 2**20


def test_a_folder_on_s3_is_listed_once_whatever_the_number_of_rows(plan: Plan, bucket: Bucket) -> None:
    bucket.put("images/a fox.jpg", b"mine")
    bucket.put("images/other.jpg", b"")
    bucket.put("imagesand/a hare.jpg", b"")
    rows = [{"prompt": f"A fox {number}"} for number in range(300)]
    rows += [{"prompt": "A fox", "name": "a fox"}, {"prompt": "A hare", "name": "a hare"}]
    keys = bucket.keys
    before = len(bucket.requests)
    code, planned = plan(rows, folder=f"{bucket.url}/images")
    assert (code, counts(planned)) == (1, {"to_submit": 301, "blocked": 1})
    assert planned["problems"][0]["row"] == 301
    # Is there a manifest, is there anything, a listing, and four looks at the one file with the name of an image.
    assert len(bucket.requests) - before < 20
    assert bucket.keys == keys


def test_a_bucket_that_does_not_exist_is_named(plan: Plan, bucket: Bucket) -> None:
    bucket.server.client().delete_bucket(Bucket=bucket.name)
    with pytest.raises(SystemExit, match=f"the bucket '{bucket.name}' does not exist"):
        plan([FOX], folder=f"{bucket.url}/images")
