"""The playground in a real browser: what a person does, with mouse and keyboard."""

import shutil

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright

import jaxgpt
from jaxgpt.web import export
from jaxgpt.web.pages.chain import ChainPage
from jaxgpt.web.pages.memory import MemoryPage
from jaxgpt.web.pages.task import TaskPage
from jaxgpt.web.pages.text import TextPage
from tests.web.servers import Server, fresh

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed"),
]
SCRIPT = "<script>document.title='taken'</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def chromium():
    with sync_playwright() as driver:
        options = {"executable_path": CHROMIUM, "args": ["--no-sandbox"]}
        yield driver.chromium.launch(**options)


@pytest.fixture(scope="module")
def server(trained, tmp_path_factory):
    """A server of two runs; the tokens of one are any characters."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(trained, folder / "first")
    shutil.copytree(trained, folder / "second")
    with Server(folder, lambda run: TextPage(jaxgpt.load(run))) as server:
        yield server


@pytest.fixture(params=[(1440, "light"), (375, "dark")], ids=str)
def page(request, chromium, server):
    """A page whose run is open; what its console says is wrong fails the test."""
    width, scheme = request.param
    size = {"width": width, "height": 800}
    context = chromium.new_context(
        viewport=size,
        color_scheme=scheme,
        permissions=["clipboard-read", "clipboard-write"],
    )
    page = context.new_page()
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda m: m.type == "error" and wrong.append(m.text))
    page.goto(f"http://{server.host}/")
    page.get_by_role("button", name="Fill", exact=True).wait_for()
    yield page
    assert not [text for text in wrong if "400" not in text]
    context.close()


def says(page, text):
    expect(page.locator("#status")).to_have_text(text, timeout=60_000)


def serious(page):
    """What axe-core finds seriously wrong with a page: [(rule, an element)]."""
    found = Axe().run(page).response["violations"]
    bad = [each for each in found if each["impact"] in ("serious", "critical")]
    return [(each["id"], each["nodes"][0]["html"]) for each in bad]


def press(page, name):
    page.get_by_role("button", name=name, exact=True).click()


def write(page, text):
    """Types a text in place of what stands in the editor."""
    editor = page.get_by_role("textbox", name="Text with gaps")
    editor.click()
    page.keyboard.press("Control+a")
    page.keyboard.press("Delete")
    page.keyboard.insert_text(text)
    return editor


def texts(page):
    """The texts of the cards."""
    return [each.inner_text() for each in page.locator("article .tokens").all()]


def test_a_gap_is_marked_filled_changed_and_undone(page):
    write(page, "my lord, no")
    for _ in range(4):
        page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.press("Control+g")  # ", no" becomes a gap of four.
    gap = page.get_by_role("spinbutton", name="gap")
    assert gap.get_attribute("aria-valuenow") == "4"
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert gap.get_attribute("aria-valuenow") == "7"
    page.keyboard.press("Control+Enter")
    says(page, "done")
    (given,) = page.locator("article .given").all_inner_texts()[:1]
    written = page.locator("article .made[role]")
    assert page.locator("article .given").count() == 7 and given == "m"
    assert page.locator("article .made").count() == 7
    assert page.locator("article .missing").count() == 0
    # What else was considered, with the mouse.
    third = written.nth(2)
    third.hover()
    choices = page.locator("#popover button")
    choices.nth(0).wait_for()
    assert choices.count() == 8
    wanted = choices.nth(5).locator("b").inner_text()
    choices.nth(5).click()
    says(page, "done")
    fixed = page.locator(".editor .fixed")
    assert fixed.inner_text() == wanted
    gaps = page.locator(".editor .gap").all()
    assert [gap.get_attribute("data-gap") for gap in gaps] == ["2", "4"]
    assert page.locator("article .given").count() == 8
    while page.locator(".editor .fixed").count():
        press(page, "Undo")
    assert page.locator(".editor .gap").get_attribute("data-gap") == "7"
    assert page.locator("article .made").count() == 7


def test_the_keyboard_is_enough(page):
    write(page, "my lord<missing:6>")
    page.keyboard.press("Control+Enter")
    says(page, "done")
    page.get_by_role("button", name="Replay").focus()
    page.keyboard.press("Tab")  # Copy
    page.keyboard.press("Tab")  # The first token that was written.
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Escape")
    assert page.locator("#popover").is_hidden()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    says(page, "done")
    assert page.locator(".editor .fixed").count() == 1
    page.get_by_role("tab", name="Write").focus()
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("textbox", name="Text to score").is_visible()


def test_a_gap_is_dragged(page):
    write(page, "my <missing:5>")
    grip = page.locator(".gap .grip")
    box = grip.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 40, middle[1], steps=4)
    page.mouse.up()
    assert page.locator(".gap").get_attribute("data-gap") == "10"


def test_both_samplers_are_compared_and_texts_are_scored(page):
    write(page, "my lord<missing:6>")
    press(page, "Compare")
    says(page, "done")
    assert page.locator("article h3").all_inner_texts() == [
        "One by one",
        "Exact bursts",
    ]
    first, second = page.locator("article .figures").all_inner_texts()
    assert first.startswith("6 forward passes · 1.00 tokens a pass")
    assert "log-probability" in second
    page.get_by_role("tab", name="Score").click()
    page.get_by_role("textbox", name="Text to score").fill("What say you?")
    press(page, "Score")
    says(page, "done")
    names = page.locator(".scores h3").all_inner_texts()
    assert names == ["left-to-right", "random", "right-to-left"]
    assert "bits a character" in page.locator(".scores .figures").nth(0).inner_text()


def test_several_samples_are_filled_and_a_filling_is_cancelled(page):
    write(page, "my lord<missing:20>")
    page.get_by_label("Samples").fill("3")
    press(page, "Fill")
    says(page, "done")
    assert len(set(texts(page))) == 3
    page.get_by_label("Slow motion").check()
    press(page, "Fill")
    page.locator("article .made").nth(0).wait_for()
    press(page, "Cancel")
    says(page, "cancelled")
    assert page.locator("article .missing").count()
    page.get_by_label("Slow motion").uncheck()
    page.reload()
    page.get_by_role("button", name="Fill", exact=True).wait_for()
    press(page, "Fill")
    says(page, "done")


def test_what_cannot_be_filled_is_said_on_the_page(page):
    write(page, "my lord")
    press(page, "Fill")
    says(page, "there is no gap to fill: select a stretch and press Gap")
    write(page, "ẞ<missing:4>")
    press(page, "Fill")
    expect(page.locator("#status.wrong")).to_contain_text("'ẞ'", timeout=60_000)
    page.get_by_label("Temperature").fill("-1")
    press(page, "Fill")
    says(page, "--temperature must be >= 0, got -1")


def test_a_text_is_never_markup(page):
    write(page, f"{SCRIPT}<missing:4>")
    press(page, "Fill")
    page.locator("#status.wrong").wait_for(timeout=60_000)
    page.get_by_role("tab", name="Score").click()
    page.get_by_role("textbox", name="Text to score").fill("a <b>b</b> c")
    press(page, "Score")
    page.wait_for_timeout(200)
    assert page.title() == "jaxgpt playground"
    assert page.locator("main img, main script, main b b").count() == 0


def test_runs_are_chosen_and_a_second_tab_works(page):
    fold = page.locator("#runs-fold")
    if fold.get_attribute("open") is None:
        page.locator("summary").click()
    page.get_by_role("button", name="second").click()
    page.get_by_role("heading", name="second").wait_for()
    assert page.locator("#runs svg polyline").count() == 2
    other = page.context.new_page()
    other.goto(page.url)
    other.get_by_role("heading", name="second").wait_for(timeout=60_000)
    for each in (page, other):
        press(each, "Fill")
    for each in (page, other):
        says(each, "done")


def test_the_page_fits_and_can_be_read_by_all(page):
    write(page, "my lord<missing:6>")
    press(page, "Fill")
    says(page, "done")
    page.wait_for_timeout(1200)  # The lit tokens fade.
    page.locator("article .made[role]").nth(1).hover()
    page.locator("#popover button").nth(0).wait_for()
    width = page.evaluate("() => document.documentElement.scrollWidth")
    assert width <= page.viewport_size["width"]
    assert not serious(page)


OTHERS = {
    "maze": (TaskPage, "sigma_task.py:maze-tiny"),
    "graph": (ChainPage, "gssm.py:easy-tiny"),
    "memory": (MemoryPage, "memory_recall.py:tiny"),
}


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """A server of fresh models of other systems."""
    folder = tmp_path_factory.mktemp("others")
    for name in OTHERS:
        (folder / name / "checkpoints").mkdir(parents=True)
        (folder / name / "config.json").write_text("{}")

    def open_page(run):
        kind, config = OTHERS[run.name]
        return kind(fresh(config))

    with Server(folder, open_page) as server:
        yield server


@pytest.mark.parametrize("name", OTHERS)
def test_other_systems_have_pages_of_their_own(name, others, chromium):
    context = chromium.new_context(viewport={"width": 375, "height": 800})
    page = context.new_page()
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(f"http://{others.host}/#{name}")
    page.get_by_role("heading", name=name).wait_for(timeout=60_000)
    if name == "maze":
        says(page, "ready")
        page.get_by_role("radio", name="goal").check()
        cell = page.get_by_role("gridcell", name="row 2, column 2:")
        cell.click()
        assert cell.get_attribute("aria-label") == "row 2, column 2: goal"
        assert page.locator(".maze .goal").count() == 1
        press(page, "Solve")
        says(page, "done")
        assert page.locator(".wrong b, .right b").inner_text() in ("Wrong", "Right")
        assert page.locator(".maze .pending").count() == 0
    elif name == "graph":
        says(page, "done")
        page.get_by_label("Tokens").fill("0, 1, 15, 8")
        press(page, "Predict")
        says(page, "done")
        assert page.locator(".chain button").all_inner_texts() == ["0", "1", "15", "8"]
        page.locator(".chain button").nth(1).click()
        assert "After token 2 of 4" in page.locator("caption").inner_text()
        assert page.locator("table.bars tr").count() == 17
    else:
        says(page, "done")
        page.get_by_label("Name").fill("<b>digits</b>")
        page.get_by_label("Token ids", exact=True).fill("3 1 4 1 5 9 2 6 " * 4)
        press(page, "Remember")
        says(page, "done")
        page.get_by_label("Its token ids").fill("3 1 4")
        press(page, "Continue")
        says(page, "done")
        page.locator("button.token").nth(2).click()
        assert "<b>digits</b>" in page.locator("main li").nth(0).inner_text()
        sources = page.get_by_role("heading", name="was predicted with")
        assert sources.is_visible()
        page.get_by_role("button", name="forget <b>digits</b>").click()
        says(page, "done")
        assert page.get_by_text("digits").count() == page.locator("main q").count() == 0
    width = page.evaluate("() => document.documentElement.scrollWidth")
    assert width <= 375
    assert not serious(page) and not wrong
    context.close()


def test_an_exported_page_plays_without_a_server(chromium, trained, tmp_path):
    path = tmp_path / "page.html"
    export.export(jaxgpt.load(trained), path, "<missing:4>my lord<missing:5>", 0)
    page = chromium.new_page()
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda r: r.url.startswith("http") and wrong.append(r.url))
    page.goto(path.as_uri())
    article = page.locator("article").nth(0)
    article.locator(".missing").nth(0).wait_for()
    while article.locator(".missing").count():
        page.wait_for_timeout(50)
    assert "my lord" in article.locator(".tokens").inner_text()
    article.locator(".made[role]").nth(1).hover()
    page.locator("#popover button").nth(0).wait_for()
    assert page.locator("#popover button").nth(0).is_disabled()
    assert not wrong
    page.close()
