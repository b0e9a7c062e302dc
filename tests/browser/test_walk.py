"""The whole way of a new user, by what is clicked and read: from the connection to the credits."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from playwright.sync_api import expect

from tests.browser import steps
from tests.browser.conftest import API_KEY, World


def test_from_the_connection_to_the_credits(  # noqa: PLR0915  one way, of which each step needs the one before
    world: World, open_page: Callable[..., Any], photograph: Callable[..., None]
) -> None:
    world.api.configure(seconds_per_image=6)
    page = open_page("/connections")

    # The connection, by the form.
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

    # A run, and its gallery, which fills by itself.
    run_id = steps.trigger(page, "qwenimage_many_prompts")
    gallery = steps.click_images(page)
    expect(gallery.get_by_text("Drawing", exact=True).first).to_be_visible(timeout=steps.SECONDS)
    expect(steps.cards(gallery)).to_have_count(4, timeout=steps.SECONDS)
    expect(gallery.locator("article .prompt")).to_have_count(4, timeout=steps.SECONDS)
    photograph(page, "gallery-running")
    # A deferred task has the link to the gallery already, each its own, and none to an image.
    for map_index in range(4):
        links = world.airflow.links("qwenimage_many_prompts", run_id, "draw", map_index)
        assert links["Image"] is None
        assert f"/tasks/draw/mapped/{map_index}/plugin/" in str(links["Generated images"])
    expect(steps.total(gallery, "images")).to_have_text("4", timeout=steps.SECONDS)
    expect(steps.total(gallery, "credits spent")).to_have_text("20")
    steps.expect_pictures(page, gallery, 4)

    # An image.
    crane = "A crane made of folded paper, studio light"
    expect(gallery.get_by_role("img", name=crane)).to_be_visible()
    gallery.get_by_role("button", name=f"Done: {crane}").click()
    viewer = gallery.get_by_role("dialog")
    expect(viewer.get_by_role("img", name=crane)).to_be_visible()
    expect(viewer.get_by_text("1024 \N{MULTIPLICATION SIGN} 768")).to_be_visible()
    expect(viewer.get_by_text("SHA-256")).to_be_visible()
    with page.expect_download() as download:
        viewer.get_by_role("link", name="Download").click()
    assert re.fullmatch(r"a-crane-made-of-.*\.jpg", download.value.suggested_filename)
    photograph(page, "image")

    # From the image to its task, and by the task's links back to the gallery and to the image.
    viewer.get_by_role("link", name="Open the task").click()
    expect(page).to_have_url(re.compile(r"/tasks/draw/mapped/0"), timeout=steps.SECONDS)
    page.get_by_role("link", name="Details", exact=True).click()
    page.get_by_role("link", name="Generated images").click()
    expect(page).to_have_url(re.compile(r"/tasks/draw/mapped/0/plugin/qwenimage_task_images"))
    gallery = steps.gallery(page)
    expect(steps.cards(gallery)).to_have_count(1, timeout=steps.SECONDS)
    steps.expect_pictures(page, gallery, 1)
    photograph(page, "task-tab")
    page.get_by_role("link", name="Details", exact=True).click()
    page.get_by_role("link", name="Image", exact=True).click()
    expect(page).to_have_url(re.compile(r"/qwenimage/dags/qwenimage_many_prompts/runs/.*/tasks/draw/images/1"))
    assert page.evaluate("document.images[0].naturalWidth") == 1024

    # The credits of all runs add up.
    page.goto("/")
    page.get_by_role("button", name="Browse").click()
    page.get_by_role("menuitem", name="Generated images").click()
    gallery = steps.gallery(page)
    expect(steps.total(gallery, "credits spent")).to_have_text("20", timeout=steps.SECONDS)
    world.draw("one_image", prompt="A paper boat", seed=11)
    expect(steps.total(gallery, "credits spent")).to_have_text("25", timeout=steps.SECONDS)
    assert world.api.credits_charged == 25

    # The same again is paid once.
    assert world.draw("qwenimage_many_prompts") != run_id
    page.goto("/dags/qwenimage_many_prompts")
    page.get_by_role("link", name="Images", exact=True).click()
    gallery = steps.gallery(page)
    expect(gallery.get_by_text("Reused", exact=True)).to_have_count(4, timeout=steps.SECONDS)
    expect(steps.total(gallery, "images")).to_have_text("8")
    expect(steps.total(gallery, "credits spent")).to_have_text("20")
    assert world.api.credits_charged == 25
