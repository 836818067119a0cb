"""The page in a real Chromium: pick, ask, stream, stop, switch, compare, reload, on a phone, by keyboard."""

from __future__ import annotations

import re

import httpx
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from serve.http.settings import HttpSettings
from tests.support.serve.browser import open_browser
from tests.support.serve.fake_engine import BASE, TOKENIZER, FakeEngine
from tests.support.serve.running import run_server

STRANGE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def engine():
    return FakeEngine(delay=0.004)


@pytest.fixture(scope="module")
def address(engine):
    with run_server(engine) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


@pytest.fixture
def page(browser, address, engine):
    engine.delay = 0.004
    browser.get(f"{address}/health")  # of the same origin, without the script that keeps the conversation
    browser.execute_script("localStorage.clear(); sessionStorage.clear()")
    browser.get(address)
    return Page(browser)


class Page:
    """What a user sees and does."""

    def __init__(self, browser):
        self.browser = browser
        self.wait(lambda: self.names("first"))

    def find(self, name):
        return self.browser.find_element(By.ID, name)

    def wait(self, condition, seconds=10):
        return WebDriverWait(self.browser, seconds, 0.02).until(lambda _: condition())

    def names(self, picker):
        return [option.text for option in Select(self.find(picker)).options]

    def pick(self, name, picker="first"):
        Select(self.find(picker)).select_by_value(name)

    def ask(self, text):
        self.find("question").send_keys(text, Keys.ENTER)

    def settle(self):
        self.wait(lambda: self.answers() and not self.browser.find_elements(By.CSS_SELECTOR, ".running"))
        return self.answers()

    def answers(self):
        script = "return [...document.querySelectorAll('.answer')].map(a => [...a.children].map(c => c.textContent))"
        return [tuple(answer) for answer in self.browser.execute_script(script)]

    def width(self):
        return self.browser.execute_script("return document.documentElement.scrollWidth")


def test_a_character_is_picked_and_answers(page):
    assert page.names("first") == ["alice", "holmes", BASE]
    page.pick("holmes")
    page.ask("Hello there")
    [(name, text, note)] = page.settle()
    assert name == "holmes"
    assert "I am holmes" in text
    assert text.endswith("That is all ☕")
    assert note == ""
    # What a screen reader hears, which is set after the last piece is drawn.
    page.wait(lambda: page.find("status").get_attribute("textContent").strip() == f"holmes: {text}")


def test_the_answer_is_seen_to_grow_and_can_be_stopped_from_the_keyboard(page, engine):
    engine.delay = 0.03
    page.ask("Tell me a story")
    page.wait(lambda: page.answers() and page.answers()[0][1])
    first = page.answers()[0][1]
    page.wait(lambda: len(page.answers()[0][1]) > len(first))
    page.find("question").send_keys(Keys.ESCAPE)
    [(_, text, note)] = page.settle()
    assert note == "Stopped."
    assert "That is all" not in text
    page.wait(lambda: not engine.running())


def test_the_button_stops_an_answer(page, engine):
    engine.delay = 0.03
    page.ask("Tell me a story")
    page.wait(lambda: page.find("stop").is_displayed())
    page.find("stop").click()
    assert page.settle()[0][2] == "Stopped."
    assert not page.find("stop").is_displayed()


def test_another_character_goes_on_with_the_conversation(page, engine):
    page.pick("alice")
    page.ask("My name is Ada")
    page.settle()
    page.pick("holmes")
    page.ask("Who are you?")
    answers = page.settle()
    assert [name for name, _, _ in answers] == ["alice", "holmes"]
    assert engine.submitted[-1].adapter == "holmes"
    prompt = TOKENIZER.decode(engine.submitted[-1].ids)
    assert "[user]My name is Ada<end>" in prompt
    assert f"[assistant]{answers[0][1]}<end>" in prompt


def test_two_characters_answer_the_same_question_next_to_each_other(page):
    page.find("compare").click()
    page.pick("alice")
    page.pick(BASE, "second")
    page.ask("Who are you?")
    answers = page.settle()
    assert [name for name, _, _ in answers] == ["alice", BASE]
    assert "I am alice" in answers[0][1]
    assert "I am the base" in answers[1][1]
    articles = page.browser.find_elements(By.CSS_SELECTOR, ".answer")
    assert len({re.search(r"tone-\d", article.get_attribute("class"))[0] for article in articles}) == 2
    left, right = (article.rect for article in articles)
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]


def test_the_conversation_and_the_choices_survive_a_reload(page):
    page.find("compare").click()
    page.pick("holmes")
    page.ask("Remember this")
    answers = page.settle()
    page.browser.refresh()
    page = Page(page.browser)
    assert page.answers() == answers
    assert Select(page.find("first")).first_selected_option.text == "holmes"
    assert page.find("compare").is_selected()
    page.find("clear").click()
    page.browser.refresh()
    assert Page(page.browser).answers() == []


def test_an_answer_that_a_reload_cut_says_so(page, engine):
    engine.delay = 0.03
    page.ask("Tell me a story")
    page.wait(lambda: page.answers() and page.answers()[0][1])
    page.browser.refresh()
    page = Page(page.browser)
    # Whether the page sees its connection end before it is gone is the browser's to choose.
    assert page.answers()[0][2] in ("Cut: the page was closed.", "The connection was lost.")
    page.wait(lambda: not engine.running())


def test_texts_of_strangers_are_text(page):
    page.ask(STRANGE)
    page.settle()
    question = page.browser.find_element(By.CSS_SELECTOR, ".question")
    assert question.text == STRANGE
    assert page.browser.execute_script("return document.querySelectorAll('#log img').length") == 0


def test_what_is_stored_by_something_else_does_no_harm(page, address):
    for stored in ("[]", "null", "{", '{"turns": 7}', '{"turns": [{}]}', '{"turns": [{"answers": [7]}]}'):
        page.browser.get(f"{address}/health")
        page.browser.execute_script("localStorage.setItem('jlora.conversation', arguments[0])", stored)
        page.browser.get(address)
        assert Page(page.browser).answers() == []


def test_an_error_is_shown_where_the_answer_would_be(page, engine):
    page.ask("x" * engine.context_length)
    [(_, text, note)] = page.settle()
    assert text == ""
    assert note.startswith("The conversation is too long for the model")


def test_a_phone_shows_everything_without_scrolling_sideways(page):
    size = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        page.find("compare").click()
        page.ask("a-very-long-word" * 20)
        page.settle()
        assert page.width() == 360
        upper, lower = (article.rect for article in page.browser.find_elements(By.CSS_SELECTOR, ".answer"))
        assert upper["x"] == lower["x"]
        assert upper["y"] + upper["height"] <= lower["y"]
        page.find("settings").find_element(By.TAG_NAME, "summary").click()
        for name in ("first", "second", "question", "send", "clear", "temperature", "token"):
            box = page.find(name).rect
            assert box["x"] >= 0, name
            assert box["x"] + box["width"] <= 360, name
            assert box["height"] >= 36, name
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_everything_is_reached_by_the_tab_key_and_has_a_name(page):
    page.find("compare").click()
    reached = []
    page.browser.execute_script("document.activeElement.blur()")
    for _ in range(12):
        page.browser.switch_to.active_element.send_keys(Keys.TAB)
        active = page.browser.switch_to.active_element
        reached.append((active.get_attribute("id") or active.tag_name, active.accessible_name))
    assert {"first", "compare", "second", "summary", "clear", "question", "send"} <= {name for name, _ in reached}
    assert all(label for name, label in reached if name not in ("html", "body"))


def test_light_and_dark_have_enough_contrast(page):
    page.ask("Hi")
    page.settle()
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        for selector in ("h1", "summary", ".question", ".answer h2", ".text", "#keys", "#send"):
            assert page.browser.execute_script(_CONTRAST, selector) >= 4.5, (scheme, selector)
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


_CONTRAST = """
const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
const linear = (x) => (x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
const light = (rgb) => [0.2126, 0.7152, 0.0722].reduce((sum, part, i) => sum + part * linear(rgb[i] / 255), 0);
let element = document.querySelector(arguments[0]), back = element;
const front = light(numbers(getComputedStyle(element).color));
while (numbers(getComputedStyle(back).backgroundColor)[3] === 0) back = back.parentElement;
const behind = light(numbers(getComputedStyle(back).backgroundColor));
return (Math.max(front, behind) + 0.05) / (Math.min(front, behind) + 0.05);
"""


def test_the_browser_reports_nothing_that_the_policy_forbids(page):
    page.ask("Hi")
    page.settle()
    said = [entry["message"] for entry in page.browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert [message for message in said if "Security Policy" in message or "Error:" in message] == []
    blocked = page.browser.execute_async_script(
        "const done = arguments[0]; document.addEventListener('securitypolicyviolation', (e) => done(e.blockedURI));"
        "const script = document.createElement('script'); script.text = 'window.bad = 1'; document.body.append(script)"
    )
    assert blocked == "inline"
    assert page.browser.execute_script("return window.bad") is None


def test_a_server_with_a_token_asks_for_it(browser):
    with run_server(FakeEngine(), HttpSettings(token="open sesame")) as address:
        browser.get(address)
        wait = WebDriverWait(browser, 10, 0.02)
        wait.until(lambda _: browser.find_element(By.ID, "problem").is_displayed())
        assert "Authorization" in browser.find_element(By.ID, "problem").text
        field = browser.find_element(By.ID, "token")
        wait.until(lambda _: field.is_displayed())
        field.send_keys("open sesame", Keys.TAB)
        page = Page(browser)
        page.ask("Hi")
        assert "I am alice" in page.settle()[0][1]
        assert not page.find("problem").is_displayed()


def test_the_page_takes_nothing_from_elsewhere(address):
    for path, kind in (("/", "text/html"), ("/page/chat.js", "text/javascript"), ("/page/style.css", "text/css")):
        found = httpx.get(address + path)
        assert found.headers["content-type"].startswith(kind)
        assert found.headers["x-content-type-options"] == "nosniff"
        policy = found.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in found.text.replace("http-equiv", "").replace("https://", "http")
        assert "innerHTML" not in found.text
