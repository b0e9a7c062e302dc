"""A person chooses among images: in Airflow's required actions, and in the gallery."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from playwright.sync_api import expect

from tests.browser import steps
from tests.browser.conftest import World
from tests.integration.standalone import wait_for


def asked(world: World, **conf: Any) -> str:
    """Run the DAG until it asks; return the run's id."""
    world.connect()
    world.api.configure(seconds_per_image=0.2)
    run_id = world.airflow.trigger("choice", conf)
    wait_for("the question", lambda: is_waiting(world, run_id))
    return run_id


def is_waiting(world: World, run_id: str) -> bool:
    return world.airflow.states("choice", run_id).get(("pick", -1)) in ("awaiting_input", "deferred")


def used(world: World, run_id: str) -> Any:
    """Return the seeds of the images that the task after the choice got."""
    world.airflow.wait_for_run("choice", run_id)
    return world.airflow.returned("choice", run_id, "use")


def test_a_person_chooses_among_pictures_in_the_required_actions_and_then_in_the_gallery(
    world: World, open_page: Callable[..., Any], photograph: Callable[..., None]
) -> None:
    run_id = asked(world)
    page = open_page("/required_actions")
    steps.follow(page, page.get_by_role("link", name="Which images do we print?"), r"/tasks/pick/required_actions")
    pictures = "[...document.images].filter(image => image.src.includes('/candidates/') && image.naturalWidth === 300)"
    # A note, and the six candidates.
    page.wait_for_function(f"{pictures}.length === 7")
    photograph(page, "required-action")

    # Two of the options, and too many at first.
    def respond(*numbers: int) -> None:
        options = page.get_by_role("combobox", name=re.compile("Select"))
        for number in numbers:
            options.click()
            page.get_by_role("option", name=str(number), exact=True).click()
        page.get_by_role("button", name="Respond").click()

    respond(1, 2, 5, 6)
    gallery = steps.open_tab(page, f"{steps.run_path('choice', run_id)}/tasks/pick")
    expect(gallery.get_by_text("4 candidates were chosen; choose 1 to 3.")).to_be_visible()

    # In the gallery, by mouse and by keyboard.
    expect(steps.cards(gallery)).to_have_count(6)
    steps.expect_pictures(page, gallery, 6)
    send = gallery.get_by_role("button", name="Choose", exact=True)
    count = gallery.locator("#answer-count")
    expect(count).to_have_text("0 of 1 to 3 chosen")
    expect(send).to_be_disabled()
    gallery.get_by_label("Choose candidate 2", exact=True).check()
    gallery.get_by_label("Choose candidate 3", exact=True).focus()
    page.keyboard.press("Space")
    expect(count).to_have_text("2 of 1 to 3 chosen")
    photograph(page, "choose")
    for number in (4, 5):
        gallery.get_by_label(f"Choose candidate {number}", exact=True).check()
    expect(count).to_have_text("4 of 1 to 3 chosen")
    expect(send).to_be_disabled()
    for number in (3, 4):
        gallery.get_by_label(f"Choose candidate {number}", exact=True).uncheck()
    send.click()
    expect(gallery.get_by_text("2 of 6 candidates chosen")).to_be_visible()
    expect(gallery.get_by_text("2 · Chosen")).to_be_visible()
    expect(gallery.get_by_text("1 · Not chosen")).to_be_visible()
    assert used(world, run_id) == [2, 5]

    # The filter, and who chose.
    gallery = steps.open_tab(page, steps.run_path("choice", run_id))
    gallery.get_by_role("button", name="Chosen 2").click()
    expect(steps.cards(gallery)).to_have_count(2)
    gallery.get_by_role("button", name="Done, 5 · Chosen").click()
    expect(gallery.get_by_role("dialog").get_by_text(re.compile(r"^Chosen, by .*, in choice, "))).to_be_visible()
