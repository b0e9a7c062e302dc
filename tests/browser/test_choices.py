"""A person chooses among images: in Airflow's required actions, and in the gallery."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from playwright.sync_api import expect

from tests.browser import steps
from tests.browser.conftest import World
from tests.integration.standalone import wait_for

PICTURES = "[...document.images].filter(image => image.src.includes('/candidates/') && image.naturalWidth === 300)"

EXAMPLE = "qwenimage_choose"


ENDED = "This task no longer waits for a choice, so yours was not sent."
CHANGED = "The question has changed. Look at the candidates again, and choose."


def change_task(changes: dict[str, Any], route: Any) -> None:
    """Change what Airflow says of the task instance that asks."""
    answer = route.fetch()
    question = answer.json()
    question["task_instance"] |= changes
    route.fulfill(response=answer, json=question)


def asked(world: World, dag_id: str, task_id: str, *map_indexes: int) -> str:
    """Run a DAG until one of its tasks asks, or these instances of it; return the run's id."""
    world.connect()
    world.api.configure(seconds_per_image=0.2)
    run_id = world.airflow.trigger(dag_id, {})

    def is_waiting() -> bool:
        states = world.airflow.states(dag_id, run_id)
        asking = [states.get((task_id, index)) for index in map_indexes or (-1,)]
        return all(state in ("awaiting_input", "deferred") for state in asking)

    wait_for("the question", is_waiting)
    return run_id


def assert_published(world: World, run_id: str, map_index: int) -> None:
    """Wait for a run of the example, and check that its last task got the image of a task."""
    world.airflow.wait_for_run(EXAMPLE, run_id)
    drawn = world.airflow.returned(EXAMPLE, run_id, "draw", map_index)
    assert world.airflow.returned(EXAMPLE, run_id, "publish") == drawn["paths"]


def test_a_person_chooses_in_the_gallery_after_an_answer_in_the_required_actions_that_does_not_fit(
    world: World, open_page: Callable[..., Any], photograph: Callable[..., None]
) -> None:
    run_id = asked(world, "choice", "pick")
    page = open_page(f"{steps.run_path('choice', run_id)}/tasks/pick")
    gallery = steps.click_images(page)
    expect(steps.cards(gallery)).to_have_count(6)
    steps.expect_pictures(page, gallery, 6)
    send = gallery.get_by_role("button", name="Choose", exact=True)
    count = gallery.locator("#answer-count")
    expect(count).to_have_text("0 of 1 to 3 chosen")
    expect(send).to_be_disabled()
    # By mouse and by keyboard.
    gallery.get_by_label("Choose candidate 2", exact=True).check()
    gallery.get_by_label("Choose candidate 3", exact=True).focus()
    page.keyboard.press("Space")
    expect(count).to_have_text("2 of 1 to 3 chosen")
    photograph(page, "choose")

    # Meanwhile somebody answers in the required actions, with too many.
    other = open_page("/required_actions")
    steps.follow(other, other.get_by_role("link", name="Which images do we print?"), r"/tasks/pick/required_actions")
    # A note, and the six candidates.
    other.wait_for_function(f"{PICTURES}.length === 7")
    photograph(other, "required-action")
    options = other.get_by_role("combobox", name=re.compile("Select"))
    for number in (1, 2, 5, 6):
        options.click()
        other.get_by_role("option", name=str(number), exact=True).click()
    other.get_by_role("button", name="Respond").click()

    # The page notices that it is asked again.
    expect(gallery.get_by_text("4 candidates were chosen; choose 1 to 3.")).to_be_visible()
    expect(count).to_have_text("0 of 1 to 3 chosen")
    for number in (2, 3, 4, 5):
        gallery.get_by_label(f"Choose candidate {number}", exact=True).check()
    expect(count).to_have_text("4 of 1 to 3 chosen")
    expect(send).to_be_disabled()
    for number in (3, 4):
        gallery.get_by_label(f"Choose candidate {number}", exact=True).uncheck()
    send.click()
    expect(gallery.get_by_text("2 of 6 candidates chosen")).to_be_visible()
    expect(gallery.get_by_text("2 · Chosen")).to_be_visible()
    expect(gallery.get_by_text("1 · Not chosen")).to_be_visible()
    world.airflow.wait_for_run("choice", run_id)
    assert world.airflow.returned("choice", run_id, "use") == [2, 5]

    # The filter, and who chose.
    gallery = steps.open_tab(page, steps.run_path("choice", run_id))
    gallery.get_by_role("button", name="Chosen 2").click()
    expect(steps.cards(gallery)).to_have_count(2)
    gallery.get_by_role("button", name="Done, 5 · Chosen").click()
    expect(gallery.get_by_role("dialog").get_by_text(re.compile(r"^Chosen, by .*, in choice, "))).to_be_visible()


def test_of_candidates_of_which_one_may_be_chosen_the_last_click_counts(
    world: World, open_page: Callable[..., Any]
) -> None:
    run_id = asked(world, EXAMPLE, "choose")
    page = open_page(f"{steps.run_path(EXAMPLE, run_id)}/tasks/choose")
    gallery = steps.click_images(page)
    for number in (1, 2):
        gallery.get_by_role("radio", name=f"Choose candidate {number}", exact=True).check()
    expect(gallery.locator("#answer-count")).to_have_text("1 of 1 chosen")
    gallery.get_by_role("button", name="Choose", exact=True).click()
    assert_published(world, run_id, map_index=1)
    expect(gallery.get_by_text("2 · Chosen")).to_have_count(1)
    expect(gallery.get_by_text("Not chosen")).to_have_count(3)


def test_an_answer_in_the_required_actions_goes_on_with_the_chosen_image(
    world: World, open_page: Callable[..., Any]
) -> None:
    run_id = asked(world, EXAMPLE, "choose")
    page = open_page(f"{steps.run_path(EXAMPLE, run_id)}/tasks/choose/required_actions")
    page.wait_for_function(f"{PICTURES}.length === 5")
    page.get_by_role("button", name="3", exact=True).click()
    assert_published(world, run_id, map_index=2)


def test_instances_of_a_mapped_task_are_answered_each_on_its_own_tab(
    world: World, open_page: Callable[..., Any]
) -> None:
    run_id = asked(world, "sets", "pick", 0, 1)
    task = f"/qwenimage{steps.run_path('sets', run_id)}/tasks/pick"
    page = open_page(task)
    links = page.get_by_role("link", name="Show the candidates")
    for waiting, (index, number) in enumerate([(1, 2), (0, 1)]):
        # Those that wait come first. The page of all instances has no buttons, not even for the last that waits.
        expect(page.locator(".choice[data-waiting=true]")).to_have_count(2 - waiting)
        expect(steps.cards(page)).to_have_count(4)
        expect(page.get_by_role("radio")).to_have_count(0)
        expect(page.get_by_role("heading", name=re.compile(r"^pick\[[01]\]$"))).to_have_count(2)
        steps.follow(page, links.nth(1 - waiting), rf"/tasks/pick/mapped/{index}/plugin/")
        gallery = steps.gallery(page)
        gallery.get_by_role("radio", name=f"Choose candidate {number}", exact=True).check()
        gallery.get_by_role("button", name="Choose", exact=True).click()
        expect(gallery.get_by_text("1 of 2 candidates chosen")).to_be_visible()
        page.goto(task)
    world.airflow.wait_for_run("sets", run_id)
    assert world.airflow.returned("sets", run_id, "list_seeds") == [1, 2]


def test_a_choice_outlives_its_page_and_is_sent_only_for_candidates_that_were_seen(
    world: World, open_page: Callable[..., Any]
) -> None:
    run_id = asked(world, EXAMPLE, "choose")
    page = open_page(f"/qwenimage{steps.run_path(EXAMPLE, run_id)}/tasks/choose")
    methods: list[str] = []
    page.on("request", lambda request: methods.append(request.method))
    send = page.get_by_role("button", name="Choose", exact=True)
    problem = page.locator("#answer-problem")
    page.get_by_role("radio", name="Choose candidate 2", exact=True).check()

    # The list cannot be loaded again.
    page.route("**/data?*", lambda route: route.fulfill(status=503))
    send.click()
    expect(problem).to_have_text("Airflow responded with HTTP 503. Your choice was not sent.")
    page.unroute("**/data?*")

    # The task has been cleared since the list was read, and has not asked again, or has.
    for changes, words in (({"state": "scheduled"}, ENDED), ({"try_number": 2}, CHANGED)):
        page.route("**/hitlDetails", partial(change_task, changes))
        send.click()
        expect(problem).to_have_text(words)
        page.unroute("**/hitlDetails")
    assert set(methods) == {"GET"}

    page.reload()
    expect(page.locator("#answer-count")).to_have_text("1 of 1 chosen")
    expect(page.get_by_role("radio", name="Choose candidate 2", exact=True)).to_be_checked()
    send.click()
    assert_published(world, run_id, map_index=1)
    expect(page.get_by_text("2 · Chosen")).to_have_count(1)
