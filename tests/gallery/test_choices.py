"""Tasks in which a person chooses: candidates, what was chosen, and the pictures of Airflow's required actions."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import BaseOperator
from PIL import Image

import airflow_provider_qwenimage
from airflow_provider_qwenimage import QwenImageGenerateOperator
from airflow_provider_qwenimage.plugin.candidate_pictures import PICTURES
from airflow_provider_qwenimage.plugin.choice_records import marked
from airflow_provider_qwenimage.plugin.image_records import (
    ChoiceRecord,
    ImageRecord,
    Mark,
    Outcome,
    Records,
    Status,
    TaskInstance,
)
from airflow_provider_qwenimage.plugin.listings import PageContext, Window, listing
from airflow_provider_qwenimage.plugin.runs import RUNS
from tests.gallery.airflow_server import Server
from tests.gallery.conftest import Shown
from tests.integration.dag_runs import TestDag, dag_that_draws

Show = Callable[[TestDag], Shown]

PROMPTS = ["A fox", "A hare", "狐狸在雪地里"]


class QwenImageChooseOperator(BaseOperator):
    """Has the name of the operator; the tests push what it would push."""

    def execute(self, context: Any) -> None:
        """Ask nobody."""


@dataclass
class Choice:
    """A choosing task of a run whose images are stored."""

    shown: Shown
    images: list[dict[str, Any]]

    @property
    def path(self) -> str:
        return f"{self.shown.path}/tasks/pick"

    def candidates(self) -> list[dict[str, Any]]:
        names = ("task_id", "seed", "size", "output_format")
        return [
            {**{name: image[name] for name in names}, "path": image["paths"][0], "prompt": prompt, "label": None}
            for image, prompt in zip(self.images, PROMPTS, strict=True)
        ]

    def push(self, **xcoms: Any) -> None:
        """Replace the XComs of the task."""
        from airflow.models.xcom import XComModel
        from airflow.utils.session import create_session

        shown = self.shown
        address: dict[str, Any] = {
            "dag_id": shown.dag_id,
            "task_id": "pick",
            "run_id": shown.run_id,
            "map_index": -1,
        }
        with create_session() as session:
            XComModel.clear(**address, session=session)
            for key, value in xcoms.items():
                XComModel.set(key=key, value=value, **address, session=session)
        RUNS._cache.clear()

    def set_state(self, state: str) -> None:
        from airflow.models.taskinstance import TaskInstance
        from airflow.utils.session import create_session
        from sqlalchemy import update

        mine = (TaskInstance.dag_id == self.shown.dag_id, TaskInstance.task_id == "pick")
        with create_session() as session:
            session.execute(update(TaskInstance).where(*mine).values(state=state))
        RUNS._cache.clear()

    def ask(self, **question: Any) -> None:
        self.push(candidates=self.candidates(), question={"at_least": 1, "at_most": 2, "problem": None} | question)
        self.set_state("deferred")

    def answer(self, *numbers: int, **verdict: Any) -> None:
        known = {
            "chosen": list(numbers),
            "by": {"id": "7", "name": "Ann"},
            "at": "2026-11-27T23:00:00+00:00",
            "timed_out": False,
        }
        self.push(candidates=self.candidates(), question={"at_least": 1, "at_most": 2}, verdict=known | verdict)
        self.set_state("success")


@pytest.fixture(scope="module")
def asked(show: Show, tmp_path_factory: pytest.TempPathFactory) -> Choice:
    dag = TestDag()
    with dag:
        draw = QwenImageGenerateOperator.partial(
            task_id="draw", output_path=str(tmp_path_factory.mktemp("choice")), seed=1, poll_interval=0.01
        ).expand(prompt=PROMPTS)
        draw >> QwenImageChooseOperator(task_id="pick")
    shown = show(dag)
    return Choice(shown, [end.returned for end in shown.run.mapped("draw")])


@pytest.fixture
def choice(asked: Choice) -> Choice:
    asked.ask()
    return asked


def picture(server: Server, choice: Choice, number: object, **arguments: Any) -> Any:
    return server.get(f"{choice.path}/candidates/{number}?map_index=-1", **arguments)


def page(server: Server, path: str, **params: Any) -> dict[str, Any]:
    answer = server.get(f"{path}/data", params=params)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def outcomes(listing: dict[str, Any]) -> list[Any]:
    return [
        None if item["mark"] is None else (item["mark"]["number"], item["mark"]["outcome"]) for item in listing["items"]
    ]


def test_the_tab_of_a_choosing_task_shows_its_candidates_and_how_many_to_choose(server: Server, choice: Choice) -> None:
    shown = page(server, choice.path)
    assert [item["number"] for item in shown["items"]] == [1, 2, 3]
    assert [item["prompt"] for item in shown["items"]] == PROMPTS
    assert all(item["is_candidate"] for item in shown["items"])
    assert outcomes(shown) == [(1, "offered"), (2, "offered"), (3, "offered")]
    (found,) = shown["choices"]
    assert found["is_waiting"] is True
    assert (found["at_least"], found["at_most"], found["candidates"], found["verdict"]) == (1, 2, 3, None)
    run_id = choice.shown.run_id.replace(":", "%3A").replace("+", "%2B")
    assert found["answer_url"] == (
        f"/api/v2/dags/{choice.shown.dag_id}/dagRuns/{run_id}/taskInstances/pick/-1/hitlDetails"
    )
    for item, image in zip(shown["items"], choice.images, strict=True):
        assert server.get(item["image"]).content == Path(image["paths"][0]).read_bytes()
        assert server.get(item["thumbnail"]).status_code == 200
        assert server.get(item["details"]).json()["path"] == image["paths"][0]


def test_candidates_are_not_counted_a_second_time(server: Server, choice: Choice) -> None:
    run = page(server, choice.shown.path)
    assert run["totals"]["images"] == 3
    assert run["totals"]["credits"] == 15
    assert outcomes(run) == [(1, "offered"), (2, "offered"), (3, "offered")]
    assert not any(item["is_candidate"] for item in run["items"])
    assert page(server, choice.path)["totals"]["credits"] == 0
    assert page(server, f"{choice.shown.path}/tasks/draw")["totals"]["images"] == 3


def test_after_the_verdict_every_page_shows_what_was_chosen(server: Server, choice: Choice) -> None:
    choice.answer(2, 3)
    marks = [(1, "not_chosen"), (2, "chosen"), (3, "chosen")]
    dag_path = f"/qwenimage/dags/{choice.shown.dag_id}"
    for path in (choice.path, choice.shown.path, dag_path):
        assert outcomes(page(server, path)) == marks
        only = page(server, path, chosen=True)
        assert [item["prompt"] for item in only["items"]] == PROMPTS[1:]
        assert (only["found"], only["totals"]["chosen"]) == (2, 2)
    (found,) = page(server, choice.shown.path)["choices"]
    assert found["is_waiting"] is False
    assert found["verdict"] == {"chosen": 2, "by": "Ann", "at": "2026-11-27T23:00:00+00:00", "timed_out": False}
    assert page(server, dag_path)["choices"] == []


def test_another_status_and_the_chosen_ones_can_be_asked_for_at_once(server: Server, choice: Choice) -> None:
    choice.answer(1)
    assert page(server, choice.shown.path, chosen=True, status="failed")["items"] == []
    assert page(server, choice.shown.path, chosen=True, text="hare")["items"] == []
    assert page(server, choice.shown.path, chosen=True, text="fox")["found"] == 1


def test_a_cleared_task_shows_neither_its_old_verdict_nor_waits(server: Server, choice: Choice) -> None:
    choice.answer(1)
    choice.set_state("scheduled")
    (found,) = page(server, choice.path)["choices"]
    assert (found["is_waiting"], found["verdict"]) == (False, None)
    assert outcomes(page(server, choice.path)) == [(1, "offered"), (2, "offered"), (3, "offered")]


def test_another_question_of_the_same_task_is_shown_at_once(server: Server, choice: Choice) -> None:
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session

    def version() -> tuple[str, str | None]:
        RUNS.get(choice.shown.dag_id, choice.shown.run_id)._read_at = float("-inf")
        (found,) = page(server, choice.path)["choices"]
        return found["version"], found["note"]

    first, note = version()
    assert note is None
    with create_session() as session:
        XComModel.set(
            key="question",
            value={"at_least": 1, "at_most": 2, "problem": "3 candidates were chosen; choose 1 to 2."},
            dag_id=choice.shown.dag_id,
            task_id="pick",
            run_id=choice.shown.run_id,
            map_index=-1,
            session=session,
        )
    touch(choice)
    second, note = version()
    assert note == "3 candidates were chosen; choose 1 to 2."
    assert second != first


def touch(choice: Choice) -> None:
    """Change the time of the task instance's last change, as Airflow does when its state changes."""
    import pendulum
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import update

    mine = (TaskInstance.dag_id == choice.shown.dag_id, TaskInstance.task_id == "pick")
    with create_session() as session:
        session.execute(update(TaskInstance).where(*mine).values(updated_at=pendulum.now("UTC")))


def test_a_picture_of_a_candidate_is_small_and_has_its_number_prompt_and_seed(server: Server, choice: Choice) -> None:
    answers = [picture(server, choice, number) for number in (1, 2, 3)]
    for answer in answers:
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, "image/webp")
        with Image.open(io.BytesIO(answer.content)) as image:
            assert image.size == (300, 300)
        assert len(answer.content) < 40_000
    assert len({answer.content for answer in answers}) == 3
    before = answers[0].content
    changed = choice.candidates()
    for fields in ({"prompt": "Another prompt"}, {"seed": 2}, {"label": "A label"}):
        choice.push(candidates=[changed[0] | fields])
        assert picture(server, choice, 1).content != before
    # The same image with another number.
    choice.push(candidates=[changed[0], changed[0]])
    assert picture(server, choice, 1).content == before
    assert picture(server, choice, 2).content != before


def test_a_picture_is_always_that_of_the_current_candidate(server: Server, choice: Choice) -> None:
    first = picture(server, choice, 1)
    assert first.headers["Cache-Control"] == "private, no-cache"
    same = {"If-None-Match": first.headers["ETag"]}
    again = picture(server, choice, 1, headers=same)
    assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", first.headers["ETag"])
    choice.push(candidates=choice.candidates()[::-1])
    changed = picture(server, choice, 1, headers=same)
    assert changed.status_code == 200
    assert changed.content != first.content


@pytest.mark.parametrize("number", [0, -1, 4, 7, 10**20])
def test_a_number_that_no_candidate_has_is_a_picture_that_says_so(server: Server, choice: Choice, number: int) -> None:
    answer = picture(server, choice, number)
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.content == PICTURES.missing(number, f"no candidate {number}", None)


@pytest.mark.parametrize("number", ["x", "1.5", "1%2f..", "9" * 5000, ""])
def test_a_number_that_is_none_is_refused(server: Server, choice: Choice, number: str) -> None:
    assert picture(server, choice, number).status_code in (404, 422, 307)


@pytest.mark.parametrize(("index", "status"), [("-1", 200), ("0", 200), ("99999999999", 200), ("x", 422), ("", 422)])
def test_another_map_index_has_no_candidates(server: Server, choice: Choice, index: str, status: int) -> None:
    answer = server.get(f"{choice.path}/candidates/1?map_index={index}")
    assert answer.status_code == status
    if status == 200 and index != "-1":
        assert answer.content == PICTURES.missing(1, "no candidate 1", None)


def test_the_note_says_how_many_to_choose_and_what_was_wrong(server: Server, choice: Choice) -> None:
    def note() -> bytes:
        answer = server.get(f"{choice.path}/candidates/note?map_index=-1")
        assert (answer.status_code, answer.headers["Cache-Control"]) == (200, "no-store")
        return bytes(answer.content)

    assert note() == PICTURES.note("Choose 1 to 2 of 3 candidates", None, "")
    choice.ask(at_most=1, problem="2 candidates were chosen; choose 1.")
    assert note() == PICTURES.note("Choose 1 of 3 candidates", "2 candidates were chosen; choose 1.", "")
    choice.ask(at_least=2, at_most=None)
    assert note() == PICTURES.note("Choose 2 to 3 of 3 candidates", None, "")
    choice.answer(1)
    assert note() == PICTURES.note("1 of 3 candidates chosen by Ann", None, "The task has its answer.")
    choice.push()
    assert note() == PICTURES.note("Nothing can be chosen now", None, "The task has pushed no candidates.")


@pytest.mark.parametrize(
    "kind", ["candidates/1", "candidates/note", "images/1", "images/1/thumbnail", "images/1/details"]
)
def test_only_users_who_may_read_the_dag_see_its_candidates(server: Server, choice: Choice, kind: str) -> None:
    path = f"{choice.path}/{kind}?map_index=-1"
    assert server.get(path, user=choice.shown.dag_id).status_code == 200
    assert server.get(path, user=None).status_code == 401
    assert server.get(path, user="another_dag").status_code == 403
    assert server.get(path, user=f"-{choice.shown.dag_id}").status_code == 403


@pytest.fixture(scope="module")
def hares(show: Show, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    return show(dag_that_draws(output_path=str(tmp_path_factory.mktemp("hares")), prompt="A hare", seed=1))


def test_a_candidate_of_another_dag_is_shown_to_those_who_may_read_that_dag(
    server: Server, choice: Choice, hares: Shown
) -> None:
    theirs = hares.run["draw"].returned
    offered = choice.candidates()[0] | {"path": theirs["paths"][0], "task_id": theirs["task_id"]}
    choice.push(candidates=[offered])
    mine, both = choice.shown.dag_id, f"{choice.shown.dag_id},{hares.dag_id}"
    refused = picture(server, choice, 1, user=mine)
    allowed = picture(server, choice, 1, user=both)
    (record,) = RUNS.get(choice.shown.dag_id, choice.shown.run_id).records.choices[0].candidates
    assert refused.content == PICTURES.missing(1, "This image was drawn in another DAG.", record)
    assert refused.headers["Cache-Control"] == "no-store"
    assert "ETag" not in refused.headers
    assert allowed.content != refused.content
    # Whoever has seen it does not see it with its ETag alone.
    known = picture(server, choice, 1, user=mine, headers={"If-None-Match": allowed.headers["ETag"]})
    assert known.content == refused.content
    for kind in ("images/1", "images/1/thumbnail", "images/1/details"):
        path = f"{choice.path}/{kind}?map_index=-1"
        assert server.get(path, user=mine).status_code == 404
        assert server.get(path, user=both).status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "/etc/hostname.png", "../../etc/passwd", "http://127.0.0.1:1/a.png", "", "\0.png", "a" * 3000],
)
def test_a_forged_path_is_a_picture_that_says_why_it_is_not_shown(server: Server, choice: Choice, path: str) -> None:
    choice.push(candidates=[choice.candidates()[0] | {"path": path}])
    answer = picture(server, choice, 1)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "image/webp")
    assert answer.headers["Cache-Control"] == "no-store"
    assert b"root:" not in answer.content
    assert server.get(f"{choice.path}/images/1?map_index=-1").status_code == 404


def test_the_image_of_another_image_task_is_not_shown_for_a_candidate(server: Server, choice: Choice) -> None:
    choice.push(candidates=[choice.candidates()[0] | {"task_id": "n43another"}])
    (record,) = page_records(choice)
    assert picture(server, choice, 1).content == PICTURES.missing(1, "This image was replaced by another one.", record)


def page_records(choice: Choice) -> Any:
    return RUNS.get(choice.shown.dag_id, choice.shown.run_id).records.choices[0].candidates


@pytest.mark.parametrize(
    "xcoms",
    [
        {"candidates": "nothing"},
        {"candidates": {"1": {}}},
        {"candidates": 10**30},
        {"candidates": [None, 5, "x", [], {"path": 5}, {"path": "/a.png", "prompt": 7, "seed": "x"}]},
        {"candidates": [{"path": "/a.png"}] * 3, "question": {"at_least": 10**30, "at_most": -1, "problem": 5}},
        {"candidates": [{"path": "/a.png"}] * 3, "question": {"at_least": 3, "at_most": 2, "deadline": 10**300}},
        {"candidates": [{"path": "/a.png"}] * 3, "verdict": {"chosen": [10**30, -1, 0, True, "1"], "by": [], "at": {}}},
        {"candidates": [{"path": "/a.png"}] * 3, "verdict": {"chosen": "12", "by": {"name": {}}, "timed_out": "yes"}},
        {"candidates": [{"path": "/a.png"}] * 3, "verdict": "x", "question": []},
    ],
)
@pytest.mark.parametrize("state", ["success", "deferred"])
def test_forged_xcoms_of_a_choice_break_no_page(
    server: Server, choice: Choice, xcoms: dict[str, Any], state: str
) -> None:
    choice.push(**xcoms)
    choice.set_state(state)
    for path in (choice.path, choice.shown.path, f"/qwenimage/dags/{choice.shown.dag_id}"):
        json.dumps(page(server, path), allow_nan=False)
    for number in (1, 2, "note"):
        assert picture(server, choice, number).status_code == 200
    found = page(server, choice.path)["choices"][0]
    assert 1 <= found["at_least"] <= found["at_most"] <= 1000


def test_a_million_candidates_are_limited(server: Server, choice: Choice) -> None:
    choice.push(candidates=[{"path": "/a.png"}] * 100_000)
    assert page(server, choice.path)["totals"]["images"] == 1000
    choice.push(candidates=[{"path": "/a.png"}] * 1_000_000)
    shown = page(server, choice.path)
    assert shown["items"] == []
    assert "is larger than" in shown["choices"][0]["problem"]
    assert picture(server, choice, 1).status_code == 200


def test_nested_json_is_no_candidate(server: Server, choice: Choice) -> None:
    nested: Any = []
    for _ in range(400):
        nested = [nested]
    choice.push(candidates=[{"path": "/a.png", "prompt": nested, "task_id": nested}], question=nested, verdict=nested)
    assert page(server, choice.path)["items"][0]["prompt"] is None


def test_a_thousand_candidates_with_long_prompts_are_read(server: Server, choice: Choice) -> None:
    (first, *_) = choice.candidates()
    choice.push(candidates=[first | {"prompt": 200 * "狐", "seed": number} for number in range(1000)])
    shown = page(server, choice.path, offset=990)
    assert (shown["found"], len(shown["items"])) == (1000, 10)
    assert shown["items"][-1]["number"] == 1000


def test_a_derived_operator_is_recognized_by_its_candidates(server: Server, choice: Choice) -> None:
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import update

    mine = (TaskInstance.dag_id == choice.shown.dag_id, TaskInstance.task_id == "pick")

    def rename(operator: str) -> None:
        with create_session() as session:
            session.execute(update(TaskInstance).where(*mine).values(operator=operator))
        RUNS._cache.clear()

    rename("OurChooseOperator")
    try:
        assert page(server, choice.path)["found"] == 3
        # Tasks of other packages push such XComs too.
        choice.push(candidates=["Ann", "Bob"], verdict={"chosen": [1]})
        assert page(server, choice.path)["found"] == 0
        assert page(server, choice.path)["choices"] == []
    finally:
        rename("QwenImageChooseOperator")


def dag_that_chooses(images: list[Any]) -> TestDag:
    dag = TestDag()
    with dag:
        airflow_provider_qwenimage.QwenImageChooseOperator(
            task_id="pick", images=images, subject="Which one?", defaults=1, response_timeout=60
        )
    return dag


def test_the_details_of_an_image_say_who_chose_in_the_dags_that_the_user_may_read(
    server: Server, show: Show, hares: Shown
) -> None:
    theirs = hares.run["draw"].returned
    first, second = (show(dag_that_chooses([theirs])) for _ in range(2))
    assert [item["mark"]["outcome"] for item in page(server, f"{second.path}/tasks/pick")["items"]] == ["chosen"]

    def choosing_dags(*readable: Shown) -> set[str]:
        user = ",".join(shown.dag_id for shown in readable)
        details = server.get(f"{hares.path}/tasks/draw/images/1/details", user=user).json()
        assert all(verdict["chosen"] is True for verdict in details["verdicts"])
        return {verdict["task"]["dag_id"] for verdict in details["verdicts"]}

    assert choosing_dags(hares) == set()
    assert choosing_dags(hares, first) == {first.dag_id}
    assert choosing_dags(hares, first, second) == {first.dag_id, second.dag_id}


@pytest.mark.parametrize("verdicts", ["x", 5, {"a": 1}, [5, None, "x", {}, {"task": 5}, {"task": {"dag_id": []}}]])
def test_forged_verdicts_of_a_sidecar_break_no_details(
    *, server: Server, show: Show, tmp_path: Path, verdicts: object
) -> None:
    owls = show(dag_that_draws(output_path=str(tmp_path), prompt="An owl", seed=1))
    sidecar = Path(owls.run["draw"].returned["paths"][0]).with_suffix(".json")
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"verdicts": verdicts}))
    answer = server.get(f"{owls.path}/tasks/draw/images/1/details", user=owls.dag_id)
    assert (answer.status_code, answer.json()["verdicts"]) == (200, [])


def offering(task_id: str, *outcomes: Outcome) -> ChoiceRecord:
    """Return a choice among images whose paths are /1.png, /2.png, …"""
    task = TaskInstance(
        dag_id="foxes",
        run_id="1",
        task_id=task_id,
        map_index=-1,
        state="success",
        operator=None,
        try_number=1,
        changed_at=None,
    )
    candidates = [
        ImageRecord(
            task=task,
            status=Status.DONE,
            state="success",
            image_task_id="n43",
            path=f"/{number}.png",
            mark=Mark(outcome, number, task),
        )
        for number, outcome in enumerate(outcomes, start=1)
    ]
    return ChoiceRecord(task=task, candidates=candidates)


def test_of_several_choices_among_the_same_images_the_most_important_outcome_counts() -> None:
    no, maybe, yes = Outcome.NOT_CHOSEN, Outcome.OFFERED, Outcome.CHOSEN
    choices = [offering("a", no, yes, no, no), offering("b", yes, no, maybe, no)]
    images = [replace(image, mark=None) for image in choices[0].candidates]
    others = [replace(images[0], path="/9.png"), replace(images[0], image_task_id="n44"), replace(images[0], path=None)]
    for order in (choices, choices[::-1]):
        marks = [image.mark for image in marked([*images, *others], order)]
        found = [None if mark is None else (mark.task.task_id, mark.outcome) for mark in marks]
        assert found[:3] == [("b", yes), ("a", yes), ("b", maybe)]
        assert found[3] is not None
        assert found[3][1] is no
        assert found[4:] == [None, None, None]


def test_candidates_that_do_not_fit_into_memory_are_left_out() -> None:
    choice = offering("a", *[Outcome.OFFERED] * 100)
    records = Records(choices=[choice])
    assert records.within(10**6).choices == [choice]
    assert records.within(10**6).weight >= 100 * 1000
    assert records.within(10**4) == Records(is_cut=True)


def test_of_many_instances_of_a_choosing_task_those_that_wait_are_listed_first_each_with_its_tab_and_try() -> None:
    ended = offering("pick", Outcome.CHOSEN)
    instances = [replace(ended.task, map_index=index, try_number=index) for index in range(300)]
    waiting = [replace(task, state="deferred") for task in (instances[299], instances[7])]
    others = [task for task in instances if task.map_index not in (7, 299)]
    choices = [replace(ended, task=task) for task in (*others, *waiting)]
    context = PageContext(root="/airflow", own_hosts=frozenset(), is_secure=False)
    shown = listing(context, Window(0, 60, "", []), Records(choices=choices), is_active=True)["choices"]
    assert [(each["map_index"], each["try_number"], each["tab_url"]) for each in shown[:3]] == [
        (index, index, f"/airflow/dags/foxes/runs/1/tasks/pick/mapped/{index}/plugin/qwenimage_task_images")
        for index in (299, 7, 0)
    ]
    assert [each["is_waiting"] for each in shown[:3]] == [True, True, False]
