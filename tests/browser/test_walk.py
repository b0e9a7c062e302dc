"""A new user's first steps in the browser, from the connection to the credits."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from playwright.sync_api import expect

from tests.browser import steps
from tests.browser.conftest import API_KEY, World
from tests.integration.standalone import wait_for


def test_a_new_user_connects_draws_and_finds_the_credits(  # noqa: PLR0915  each step needs the one before
    world: World, open_page: Callable[..., Any], photograph: Callable[..., None]
) -> None:
    world.api.configure(seconds_per_image=3600)
    page = open_page("/connections")

    # Add the connection in the form.
    steps.open_connection_form(page, "qwenimage_default")
    form = page.get_by_role("dialog")
    expect(form.get_by_label("API key", exact=True)).to_have_attribute("type", "password")
    expect(form.get_by_label("Base URL", exact=True)).to_have_attribute("placeholder", "https://qwen-image-2512.org")
    for meaningless in ("Login", "Username", "Schema"):
        expect(form.get_by_label(meaningless, exact=True)).to_have_count(0)
    form.get_by_label("Base URL", exact=True).fill(world.api.url)
    form.get_by_label("API key", exact=True).fill(API_KEY)
    form.get_by_label("Port", exact=True).fill("443")
    photograph(page, "connection-form")
    steps.save(page)
    assert "Connection works" in steps.test_connection(page, "qwenimage_default")

    # Start a run and watch its gallery fill without a reload.
    dag_id = "qwenimage_many_prompts"
    run_id = steps.trigger(page, dag_id)
    gallery = steps.click_images(page)
    expect(gallery.get_by_text("Drawing", exact=True).first).to_be_visible()
    expect(steps.cards(gallery)).to_have_count(4)
    expect(gallery.locator("article .prompt")).to_have_count(4)
    photograph(page, "gallery-running")
    # Each deferred task already links to its own gallery, and not yet to an image.
    wait_for(
        "the deferral of all tasks", lambda: Counter(world.airflow.states(dag_id, run_id).values())["deferred"] == 4
    )
    links = partial(world.airflow.links, dag_id, run_id, "draw")
    # Airflow stores a link after the state.
    wait_for("the links of all tasks", lambda: all(links(map_index)["Generated images"] for map_index in range(4)))
    for map_index in range(4):
        assert f"/tasks/draw/mapped/{map_index}/plugin/" in str(links(map_index)["Generated images"])
        assert links(map_index)["Image"] is None
    world.finish_images()
    expect(steps.total(gallery, "images")).to_have_text("4")
    expect(steps.total(gallery, "credits spent")).to_have_text("20")
    steps.expect_pictures(page, gallery, 4)

    # Open an image and download it.
    crane = "A crane made of folded paper, studio light"
    expect(gallery.get_by_role("img", name=crane)).to_be_visible()
    gallery.get_by_role("button", name=f"Done: {crane}").click()
    viewer = gallery.get_by_role("dialog")
    expect(viewer.get_by_role("img", name=crane)).to_be_visible()
    expect(viewer.get_by_text("1024 \N{MULTIPLICATION SIGN} 768")).to_be_visible()
    expect(viewer.get_by_text("SHA-256")).to_be_visible()
    expect(viewer.get_by_text("marked in the file")).to_be_visible()
    with page.expect_download() as download:
        viewer.get_by_role("link", name="Download").click()
    assert re.fullmatch(r"a-crane-made-of-.*\.jpg", download.value.suggested_filename)
    photograph(page, "image")

    # Go from the image to its task, and by the links of the task to the gallery and to the image.
    steps.follow(page, viewer.get_by_role("link", name="Open the task"), r"/tasks/draw/mapped/0")
    details = page.get_by_role("link", name="Details", exact=True)
    steps.follow(page, details, r"/tasks/draw/mapped/0/details")
    images = page.get_by_role("link", name="Generated images")
    steps.follow(page, images, r"/tasks/draw/mapped/0/plugin/qwenimage_task_images")
    gallery = steps.gallery(page)
    expect(steps.cards(gallery)).to_have_count(1)
    steps.expect_pictures(page, gallery, 1)
    photograph(page, "task-tab")
    steps.follow(page, details, r"/tasks/draw/mapped/0/details")
    image = page.get_by_role("link", name="Image", exact=True)
    steps.follow(page, image, r"/qwenimage/dags/qwenimage_many_prompts/runs/.*/tasks/draw/images/1")
    page.wait_for_function("document.images.length && document.images[0].complete")
    assert page.evaluate("document.images[0].naturalWidth") == 1024

    # The credits of all runs add up.
    page.goto("/")
    menu_item = page.get_by_role("menuitem", name="Generated images")
    steps.click_for(page.get_by_role("button", name="Browse"), menu_item)
    menu_item.click()
    gallery = steps.gallery(page)
    expect(steps.total(gallery, "credits spent")).to_have_text("20")
    world.draw("one_image", prompt="A paper boat", seed=11)
    expect(steps.total(gallery, "credits spent")).to_have_text("25")
    assert world.api.credits_charged == 25

    # A second run of the same prompts pays nothing.
    assert world.draw(dag_id) != run_id
    gallery = steps.open_tab(page, f"/dags/{dag_id}")
    expect(gallery.get_by_text("Reused", exact=True)).to_have_count(4)
    expect(steps.total(gallery, "images")).to_have_text("8")
    expect(steps.total(gallery, "credits spent")).to_have_text("20")
    assert world.api.credits_charged == 25
