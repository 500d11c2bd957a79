"""The page in Chromium: painting, answers, verdicts, errors, links, tabs, keyboard, and axe."""

import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from running_server import NEEDS, labelled, line, served, table

import crosscoding as cc
from crosscoding.serve import Limits, Served, served_model
from crosscoding.tables import Table

pytest.importorskip("fastapi", reason=NEEDS)
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium"),
]
expect = playwright.expect
MODELS = ("mnist-2d", "mnist-20d")


@pytest.fixture(scope="module")
def address():
    models = [*map(served_model, MODELS), table(), line(), labelled()]
    with served(models, Limits(max_seconds=20)) as found:
        yield found


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def open_page(browser):
    """Opens pages in contexts of their own; fails on an error or a foreign request of any."""
    contexts, wrong = [], []

    def opened(url, **settings):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings})
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda r: wrong.append(r.url) if is_foreign(r.url) else None)
        page.goto(url)
        return page

    def is_foreign(url):
        return not url.startswith(("http://127.0.0.1:", "blob:http://127.0.0.1:", "data:"))

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


def stroke(page, start=(0.35, 0.25), end=(0.6, 0.25)):
    page.locator("#evidence").scroll_into_view_if_needed()
    box = page.locator("#evidence").bounding_box()
    place = lambda x, y: (box["x"] + x * box["width"], box["y"] + y * box["height"])  # noqa: E731
    page.mouse.move(*place(*start))
    page.mouse.down()
    page.mouse.move(*place(*end), steps=6)
    page.mouse.up()


def answered(page):
    expect(page.locator("#status")).to_have_text(re.compile("Answered in"), timeout=60_000)


def choose_picture(page, number=8):
    page.locator("#samples button").nth(number).click()


def count(page):
    return int(page.locator("#count").inner_text().split()[0])


def test_it_is_empty_then_answers_while_one_paints(address, open_page):
    page = open_page(address)
    expect(page.locator("#empty")).to_contain_text("Paint a few pixels")
    stroke(page)
    expect(page.locator("#results")).to_be_visible()
    answered(page)
    expect(page.locator("#badge")).to_have_text(re.compile("Trusted|Approximate|Unreliable"))
    expect(page.locator("#figures")).to_contain_text("log p(x)")
    assert page.locator("#draws canvas").count() == 8
    page.get_by_text("Why").click()
    assert page.locator("#reasons li").count() >= 2
    before = page.locator("#figures").inner_text()
    stroke(page, (0.5, 0.4), (0.4, 0.8))
    answered(page)
    expect(page.locator("#figures")).not_to_have_text(before)


def test_tools_undo_and_redo(address, open_page):
    page = open_page(address)
    page.get_by_label("Rectangle").check()
    stroke(page, (0.01, 0.01), (0.49, 0.49))
    assert count(page) == 14 * 14
    page.get_by_label("Eraser").check()
    stroke(page, (0.01, 0.01), (0.24, 0.49))
    assert count(page) == 7 * 14
    page.click("#undo")
    assert count(page) == 14 * 14
    page.keyboard.press("Control+Z")
    assert count(page) == 0
    page.click("#redo")
    assert count(page) == 14 * 14
    page.click("#clear")
    expect(page.locator("#empty")).to_be_visible()


def test_a_part_of_a_picture_is_observed(address, open_page):
    page = open_page(address)
    choose_picture(page)
    page.click("[data-part=top]")
    assert count(page) == 392
    answered(page)
    page.click("#clear")
    page.fill("#fraction", "20")
    page.click("[data-part=random]")
    assert 100 < count(page) < 220
    choose_picture(page)  # again: it is put away
    expect(page.get_by_label("White")).to_be_checked()
    expect(page.get_by_label("Uncover")).to_be_disabled()


def test_an_uploaded_picture(address, open_page, tmp_path):
    from PIL import Image

    Image.fromarray(np.eye(56, dtype="uint8") * 255).save(tmp_path / "line.png")
    page = open_page(address)
    page.set_input_files("#upload", tmp_path / "line.png")
    expect(page.get_by_label("Uncover")).to_be_checked()
    page.click("[data-part=left]")
    assert count(page) == 392
    (tmp_path / "no.png").write_text("no picture")
    page.set_input_files("#upload", tmp_path / "no.png")
    expect(page.get_by_role("alert")).to_contain_text("cannot read no.png as a picture")


def test_a_link_restores_the_question_and_its_answer(address, open_page):
    page = open_page(address)
    page.select_option("#model", "mnist-20d")
    choose_picture(page)
    page.click("[data-part=top]")
    answered(page)
    page.reload()
    answered(page)
    found = page.locator("#figures").inner_text()
    again = open_page(page.url)
    answered(again)
    assert again.locator("#model").input_value() == "mnist-20d"
    assert count(again) == 392
    assert again.locator("#figures").inner_text() == found


def test_a_link_pasted_into_an_open_tab(address, open_page):
    page, other = open_page(address), open_page(address)
    choose_picture(page)
    page.click("[data-part=top]")
    answered(page)
    other.goto(page.url)
    expect(other.locator("#count")).to_contain_text("392 of 784")
    answered(other)


def test_two_tabs_at_once_get_their_own_answers(address, open_page):
    one, other = open_page(address), open_page(address)
    for page, number in ((one, 0), (other, 5)):
        choose_picture(page, number)
        page.click("[data-part=top]")
    answered(one)
    answered(other)
    assert one.locator("#figures").inner_text() != other.locator("#figures").inner_text()


def test_it_works_by_keyboard(address, open_page):
    page = open_page(address)
    page.focus("#evidence")
    for key in ("Space", "ArrowRight", "ArrowRight", "Space"):
        page.keyboard.press(key)
    assert count(page) > 4
    answered(page)


def test_a_form_takes_values_intervals_and_sets(address, open_page):
    page = open_page(address)
    page.select_option("#model", "people")
    answered(page)
    page.select_option("[aria-label='age: what is known']", "between")
    page.fill("[aria-label='age: at least']", "30")
    page.fill("[aria-label='age: at most']", "40")
    page.select_option("[aria-label='city: what is known']", "one_of")
    page.get_by_label("Kiel").uncheck()
    page.select_option("[aria-label='owner: what is known']", "value")
    expect(page.locator("#columns h3")).not_to_contain_text(["owner"])
    answered(page)
    city = page.locator("article", has=page.get_by_role("heading", name="city"))
    expect(city).to_contain_text("0.0 %")
    before = page.locator("#columns").inner_text()
    again = open_page(page.url)
    answered(again)
    assert again.locator("#columns").inner_text() == before


def test_what_the_library_says_about_bad_input_is_shown(address, open_page):
    page = open_page(address)
    page.select_option("#model", "people")
    answered(page)
    page.select_option("[aria-label='age: what is known']", "between")
    page.fill("[aria-label='age: at least']", "50")
    page.fill("[aria-label='age: at most']", "40")
    expect(page.get_by_role("alert")).to_contain_text("column 'age': expected an interval")
    page.fill("[aria-label='age: at most']", "60")
    answered(page)
    expect(page.get_by_role("alert")).to_be_hidden()


def test_elements_of_a_model_without_a_table(address, open_page):
    page = open_page(address)
    page.select_option("#model", "line")
    answered(page)
    page.select_option("[aria-label='element 0: what is known']", "value")
    page.fill("input[aria-label='element 0']", "1.5")
    answered(page)
    expect(page.locator("article")).to_have_count(7)


def test_a_model_that_takes_labels(address, open_page):
    page = open_page(address)
    page.select_option("#model", "labelled")
    answered(page)
    expect(page.locator("article")).to_have_count(4)


def test_downloads_run_and_can_be_read(address, open_page, tmp_path):
    page = open_page(address)
    choose_picture(page)
    page.click("[data-part=top]")
    answered(page)
    shown = page.locator("#badge").inner_text().lower()
    with page.expect_download() as download:
        page.click("#get-script")
    download.value.save_as(tmp_path / "script.py")
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.startswith(shown), done.stderr
    with page.expect_download() as download:
        page.click("#get-draws")
    download.value.save_as(tmp_path / "draws.npy")
    draws = np.load(tmp_path / "draws.npy")
    assert draws.shape == (64, 28, 28)
    assert set(np.unique(draws)) == {0, 1}
    page.select_option("#model", "people")
    answered(page)
    with page.expect_download() as download:
        page.click("#get-draws")
    download.value.save_as(tmp_path / "rows.csv")
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 1001


def test_draws_that_take_long_are_those_of_the_model_that_was_asked(address, open_page, tmp_path):
    page = open_page(address)
    stroke(page)
    answered(page)
    held = []

    def hold(route):
        is_download = '"alone":true' in route.request.post_data
        held.append(route) if is_download else route.continue_()

    page.route("**/v1/condition", hold)
    with page.expect_download() as download:
        page.click("#get-draws")
        expect(page.locator("#get-draws")).to_have_text("Drawing…")
        page.select_option("#model", "people")
        answered(page)
        held[0].continue_()
    assert download.value.suggested_filename == "mnist-2d.npy"
    download.value.save_as(tmp_path / "draws.npy")
    assert np.load(tmp_path / "draws.npy").shape == (64, 28, 28)
    expect(page.locator("#get-draws")).to_have_text("Draws")


def test_of_many_categories_the_others_are_added_up(open_page):
    own = Table(pd.DataFrame({"town": [f"town {i:02}" for i in range(15)] * 2}))
    decoder = torch.nn.Linear(2, own.num_params)
    torch.nn.init.zeros_(decoder.weight)
    torch.nn.init.zeros_(decoder.bias)  # all towns are equally likely
    vae = cc.VAE(decoder, 2, own.likelihood(), table=own)
    with served([Served("towns", vae, "")]) as address:
        page = open_page(address)
        answered(page)
        words = page.locator(".bars").inner_text().split("\n")
    assert words[0] == "town 00"
    assert [words[-2:], len(words)] == [["3 others", "20.0 %"], 2 * 13]


def test_dates_fit_into_their_fields(address, open_page):
    page = open_page(address)
    page.select_option("#model", "people")
    page.select_option('select[aria-label="since: what is known"]', "between")
    page.fill('input[aria-label="since: at least"]', "2020-12-31")
    fits = "e => e.scrollWidth <= e.clientWidth"
    assert page.locator('input[aria-label="since: at least"]').evaluate(fits)


def test_a_server_that_is_gone(open_page):
    with served([served_model("mnist-2d")]) as address:
        page = open_page(address)
        stroke(page)
        answered(page)
    stroke(page, (0.2, 0.8), (0.4, 0.8))
    expect(page.get_by_role("alert")).to_contain_text("The server cannot be reached")


def test_the_token_is_asked_for_once(open_page):
    with served([served_model("mnist-2d")], token="secret") as address:
        page = open_page(address)
        page.fill("#token", "wrong")
        page.click("#ask-token button")
        expect(page.locator("#ask-token")).to_be_visible()
        page.fill("#token", "secret")
        page.click("#ask-token button")
        expect(page.locator("#ask-token")).to_be_hidden()
        stroke(page)
        answered(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_nothing_serious_and_nothing_overflows(address, open_page, scheme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe").Axe()
    settings = {"color_scheme": scheme, "viewport": {"width": width, "height": 900}}
    page = open_page(address, **settings, bypass_csp=True)

    def check():
        found = axe.run(page).response["violations"]
        assert [each["id"] for each in found if each["impact"] in ("serious", "critical")] == []
        inner = page.evaluate("() => document.documentElement.scrollWidth")
        assert inner <= width

    check()
    choose_picture(page)
    page.click("[data-part=top]")
    answered(page)
    page.get_by_text("Settings").click()
    check()
    page.select_option("#model", "people")
    answered(page)
    check()


def test_nothing_moves_if_motion_is_reduced(address, open_page):
    page = open_page(address, reduced_motion="reduce", bypass_csp=True)
    duration = "() => getComputedStyle(document.getElementById('bar')).transitionDuration"
    assert page.evaluate(duration) == "0s"
