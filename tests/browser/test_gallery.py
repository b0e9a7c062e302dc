"""The gallery in each of its states, in a browser."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Route, expect

from tests.browser import steps
from tests.browser.conftest import World

LONG = ("A market at dawn, seen from above, with a hundred stalls and lanterns of paper in every colour; " * 25)[:2000]
PROMPTS = {
    "script": "<script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\">",
    "chinese": "雪地里的一只红狐 水墨画风格",
    "arabic": "ثعلب أحمر في الثلج عند الغروب",
    "emoji": "🦊 in the ❄️ snow, 👩‍🚀 looking on",
    "long": LONG,
    "unbroken": "W" * 300,
    "refused": "A celebrity [policy]",
}


@pytest.fixture(scope="module")
def prompts(world: World) -> str:
    return world.draw("prompts", prompts=list(PROMPTS.values()))


@pytest.fixture(scope="module")
def many(world: World) -> str:
    return world.draw("many_images", number=500, folder="many")


def test_an_empty_gallery_has_a_message(
    world: World, open_page: Callable[..., Any], photograph: Callable[..., None]
) -> None:
    run_id = world.draw("no_images")
    page = open_page()
    for path, text in {
        "/dags/no_images": "This DAG has no generated images yet",
        steps.run_path("no_images", run_id): "This run has no generated images",
        steps.run_path("no_images", run_id) + "/tasks/nothing": "This task has no generated images",
    }.items():
        gallery = steps.open_tab(page, path)
        expect(gallery.get_by_text(text)).to_be_visible()
        expect(steps.total(gallery, "images")).to_have_text("0")
    photograph(page, "gallery-empty")


def test_an_image_is_shown_on_the_pages_of_its_dag_run_and_task(
    world: World, open_page: Callable[..., Any], photograph: Callable[..., None]
) -> None:
    run_id = world.draw("one_image", prompt="A single teapot", seed=2)
    page = open_page()
    for path in (
        "/dags/one_image",
        steps.run_path("one_image", run_id),
        steps.run_path("one_image", run_id) + "/tasks/draw",
    ):
        gallery = steps.open_tab(page, path)
        expect(gallery.get_by_role("img", name="A single teapot")).to_be_visible()
        steps.expect_pictures(page, gallery, 1)
    photograph(page, "gallery-one-image")


def test_prompts_of_all_kinds_are_shown_as_text(
    world: World, open_page: Callable[..., Any], photograph: Callable[..., None], prompts: str
) -> None:
    page = open_page()
    gallery = steps.open_tab(page, steps.run_path("prompts", prompts))
    expect(steps.cards(gallery)).to_have_count(len(PROMPTS))
    for prompt in PROMPTS.values():
        expect(gallery.locator(".card .prompt").get_by_text(prompt, exact=True)).to_be_visible()
    for prompt in set(PROMPTS.values()) - {PROMPTS["refused"]}:
        expect(gallery.get_by_role("img", name=prompt, exact=True)).to_have_count(1)
    steps.expect_pictures(page, gallery, len(PROMPTS) - 1)
    # No part of a prompt was executed or loaded.
    frame = page.frames[-1]
    assert frame.evaluate("document.scripts.length") == 1
    assert frame.title() != "run"
    assert page.title() != "run"
    # No card is wider than the page.
    assert frame.evaluate("document.documentElement.scrollWidth <= innerWidth")
    direction = gallery.get_by_text(PROMPTS["arabic"], exact=True).evaluate(
        "element => getComputedStyle(element).direction"
    )
    assert direction == "rtl"
    photograph(page, "gallery-prompts")
    gallery.get_by_role("button", name=f"Done: {LONG[:40]}").click()
    expect(gallery.get_by_role("dialog").locator("#prompt")).to_have_text(LONG)
    photograph(page, "image-long-prompt")


def test_a_failure_shows_its_reason_and_links_its_task(
    world: World, open_page: Callable[..., Any], photograph: Callable[..., None], prompts: str
) -> None:
    page = open_page()
    gallery = steps.open_tab(page, steps.run_path("prompts", prompts))
    gallery.get_by_role("button", name=re.compile(r"^Failed \d")).click()
    expect(steps.cards(gallery)).to_have_count(1)
    card = steps.cards(gallery)
    expect(card).to_contain_text("Content policy violation detected")
    expect(card).to_contain_text("0 credits")
    expect(steps.total(gallery, "failed")).to_have_text("1")
    photograph(page, "gallery-failure")
    steps.follow(page, card.get_by_role("link", name="draw[6]"), r"/tasks/draw/mapped/6")
    # A failed task links to the gallery and not to an image.
    steps.follow(page, page.get_by_role("link", name="Details", exact=True), r"/tasks/draw/mapped/6/details")
    expect(page.get_by_role("link", name="Generated images")).to_be_visible()
    expect(page.get_by_role("link", name="Image", exact=True)).to_have_count(0)


def test_the_contact_sheet_of_a_batch_is_above_its_images_and_opens_in_full_size(
    world: World, open_page: Callable[..., Any], photograph: Callable[..., None]
) -> None:
    run_id = world.draw("contact_sheet")
    page = open_page()
    gallery = steps.open_tab(page, steps.run_path("contact_sheet", run_id))
    sheet = gallery.get_by_role("img", name="Contact sheet of draw, page 1")
    expect(sheet).to_be_visible()
    steps.expect_pictures(page, gallery, 3)
    expect(sheet).to_have_js_property("complete", True)
    assert sheet.evaluate("image => image.naturalWidth") > 100
    top, below = (
        found.evaluate("shown => shown.getBoundingClientRect().top") for found in (sheet, steps.cards(gallery).first)
    )
    assert top < below
    photograph(page, "gallery-contact-sheet")
    with page.context.expect_page() as opened:
        gallery.get_by_role("region", name="Contact sheets").get_by_role("link").last.click()
    expect(opened.value.locator("img")).to_have_js_property("complete", True)
    assert opened.value.locator("img").evaluate("image => image.naturalWidth") > 1000


def test_an_image_that_is_not_stored_is_linked_and_never_loaded(
    world: World, open_page: Callable[..., Any], photograph: Callable[..., None]
) -> None:
    run_id = world.draw("not_stored")
    page = open_page()
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))

    # The gallery does not link addresses on Airflow's own host, where this sandbox runs, so use another one.
    def use_another_host(route: Route) -> None:
        answer = route.fetch()
        page_data = answer.json()
        page_data["items"][0] |= {"address": "https://cdn.example/cdn/a.png", "message": None}
        route.fulfill(response=answer, json=page_data)

    page.route(re.compile(r"/data\?"), use_another_host)
    gallery = steps.open_tab(page, steps.run_path("not_stored", run_id))
    gallery.get_by_role("button", name="Done: A lighthouse in a storm").click()
    viewer = gallery.get_by_role("dialog")
    expect(viewer).to_contain_text("This image is not stored")
    link = viewer.get_by_role("link", name="Open at the API")
    expect(link).to_have_attribute("href", "https://cdn.example/cdn/a.png")
    expect(link).to_have_attribute("rel", "noopener noreferrer")
    photograph(page, "image-not-stored")
    page.context.route("https://cdn.example/**", lambda route: route.fulfill(body="An image."))
    with page.context.expect_page() as opened:
        link.click()
    expect(opened.value.get_by_text("An image.")).to_be_visible()
    assert not [url for url in requested if "/cdn/" in url]
    page.goto(steps.run_path("not_stored", run_id) + "/tasks/draw/details")
    address = page.get_by_role("link", name="Image", exact=True).get_attribute("href")
    assert "/cdn/" in str(address)


def test_five_hundred_images_load_as_they_are_scrolled_to(
    world: World, open_page: Callable[..., Any], photograph: Callable[..., None], many: str
) -> None:
    page = open_page()
    gallery = steps.open_tab(page, steps.run_path("many_images", many))
    expect(steps.total(gallery, "images")).to_have_text("500")
    expect(steps.total(gallery, "credits spent")).to_have_text("2,500")
    steps.expect_pictures(page, gallery, 6)
    assert steps.cards(gallery).count() <= 180
    photograph(page, "gallery-light")
    frame = page.frames[-1]
    while (loaded := steps.cards(gallery).count()) < 500:
        frame.evaluate("scrollTo(0, document.body.scrollHeight)")
        expect(steps.cards(gallery)).not_to_have_count(loaded)
    expect(steps.cards(gallery)).to_have_count(500)
    expect(gallery.get_by_text("Robot 499 on a shelf of toys", exact=True)).to_be_visible()


def test_images_are_found_by_words(open_page: Callable[..., Any], many: str) -> None:
    page = open_page()
    gallery = steps.open_tab(page, steps.run_path("many_images", many))
    gallery.get_by_role("searchbox").fill("robot 37")
    # 37, 137, 237, 337, 437, and 370 to 379.
    expect(steps.cards(gallery)).to_have_count(15)
    gallery.get_by_role("searchbox").fill("no such thing")
    expect(gallery.get_by_text("No image matches")).to_be_visible()
    gallery.get_by_role("searchbox").fill("")
    expect(gallery.get_by_text("Robot 0 on a shelf of toys", exact=True)).to_be_visible()


def test_words_typed_while_the_page_loads_are_searched_for(open_page: Callable[..., Any], many: str) -> None:
    page = open_page()
    scripts: list[Route] = []

    def hold(script: Route) -> None:
        scripts.append(script)

    page.route(re.compile(r"/gallery\.js"), hold)
    gallery = steps.open_tab(page, steps.run_path("many_images", many))
    gallery.get_by_role("searchbox").fill("robot 37")
    for script in scripts:
        script.continue_()
    expect(steps.cards(gallery)).to_have_count(15)


def test_the_gallery_follows_the_dark_mode_of_airflow(
    open_page: Callable[..., Any], photograph: Callable[..., None], many: str
) -> None:
    page = open_page()
    page.evaluate("localStorage.setItem('theme', 'dark')")
    gallery = steps.open_tab(page, steps.run_path("many_images", many))
    steps.expect_pictures(page, gallery, 6)
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    assert sum(map(int, re.findall(r"\d+", page.frames[-1].evaluate(ground))[:3])) < 150
    photograph(page, "gallery-dark")
    # The theme changes without a reload.
    page.evaluate("document.documentElement.classList.replace('dark', 'light')")
    expect(gallery.locator("html")).to_have_attribute("data-theme", "light")


def test_the_gallery_is_usable_with_the_keyboard(open_page: Callable[..., Any], many: str) -> None:
    page = open_page(f"/qwenimage{steps.run_path('many_images', many)}")
    first = page.get_by_role("button", name="Done: Robot 0 on a shelf of toys")
    first.wait_for()
    for _ in range(12):
        page.keyboard.press("Tab")
        if first.evaluate("element => element === document.activeElement"):
            break
    assert first.evaluate("element => element === document.activeElement && element.matches(':focus-visible')")
    page.keyboard.press("Enter")
    viewer = page.get_by_role("dialog")
    expect(viewer).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(viewer.locator("#prompt")).to_have_text("Robot 1 on a shelf of toys")
    page.keyboard.press("ArrowLeft")
    expect(viewer.locator("#prompt")).to_have_text("Robot 0 on a shelf of toys")
    page.keyboard.press("Escape")
    expect(viewer).to_be_hidden()
    assert first.evaluate("element => element === document.activeElement")


def test_the_buttons_copy_the_prompt_and_the_seed(open_page: Callable[..., Any], many: str) -> None:
    page = open_page(
        f"/qwenimage{steps.run_path('many_images', many)}", permissions=["clipboard-read", "clipboard-write"]
    )
    page.get_by_role("button", name="Done: Robot 3 on a shelf of toys").click()
    viewer = page.get_by_role("dialog")
    page.clock.install()
    page.clock.pause_at(time.time() + 60)
    for name, copied in {"Copy prompt": "Robot 3 on a shelf of toys", "Copy seed": "3"}.items():
        viewer.get_by_role("button", name=name).click()
        expect(viewer.get_by_role("button", name="Copied")).to_be_visible()
        assert page.evaluate("navigator.clipboard.readText()") == copied
        page.clock.run_for(1500)
        expect(viewer.get_by_role("button", name=name)).to_be_visible()


def test_the_gallery_fits_a_narrow_window(
    open_page: Callable[..., Any], photograph: Callable[..., None], many: str
) -> None:
    page = open_page(f"/qwenimage{steps.run_path('many_images', many)}", viewport={"width": 380, "height": 740})
    steps.expect_pictures(page, page, 4)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    photograph(page, "gallery-narrow")
    page.get_by_role("button", name="Done: Robot 0 on a shelf of toys").click()
    expect(page.get_by_role("dialog").get_by_role("img")).to_be_visible()
    expect(page.get_by_role("dialog").get_by_role("button", name="Close")).to_be_in_viewport()


def test_a_batch_fills_the_gallery_while_it_runs(
    world: World, open_page: Callable[..., Any], photograph: Callable[..., None]
) -> None:
    world.connect()
    world.api.configure(seconds_per_image=3600)
    run_id = world.airflow.trigger("many_images", {"number": 128, "folder": "fills"})
    page = open_page()
    gallery = steps.open_tab(page, steps.run_path("many_images", run_id))
    expect(gallery.get_by_role("progressbar")).to_be_visible()
    expect(gallery.get_by_text(re.compile(r"\d+ of 128 images · .*credits"))).to_be_visible()
    for _ in range(2):
        expect(gallery.locator("[data-status=drawing]").first).to_be_visible()
        before = steps.total(gallery, "images").inner_text()
        world.finish_images()
        expect(steps.total(gallery, "images")).not_to_have_text(before)
    steps.expect_pictures(page, gallery, 4)
    expect(gallery.locator("[data-status=drawing]").first).to_be_visible()
    photograph(page, "batch-running")
    world.api.configure(seconds_per_image=0)
    world.finish_images()
    world.airflow.wait_for_run("many_images", run_id)
    expect(steps.total(gallery, "images")).to_have_text("128")
    expect(gallery.get_by_role("progressbar")).to_have_count(0)
