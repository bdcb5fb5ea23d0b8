"""The site in a real browser: logging in, the counters, a renewal, an outage's end."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from emulator import Emulator
from testproject.siteprocess import SiteProcess
from tests.support.caches import wait_until
from tests.support.machine import lacks

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PHONE = (390, 844)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """Start Chromium, of Debian's packages chromium and chromium-driver."""
    webdriver: Any = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:  # pragma: no cover - it is there or not
        lacks("no chromium and chromedriver on PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'browser'}"):
        options.add_argument(flag)
    service = webdriver.ChromeService(executable_path=driver)
    running = webdriver.Chrome(options=options, service=service)
    try:
        yield running
    finally:
        running.quit()


@pytest.fixture
def site(
    browser: Any, emulator: Emulator, tmp_path: Path
) -> Iterator[tuple[SiteProcess, Emulator]]:
    """Serve the site, on an emulator with short-lived tokens."""
    emulator.token_lifetime = 6.0
    environ = {
        **emulator.environ("service_principal"),
        "ENTRA_REDIS_EMULATOR": "1",
    }
    with SiteProcess(tmp_path, environ) as process:
        for command in ("migrate", "create_demo_user"):
            status, output = process.manage(command)
            assert status == 0, output
        process.serve()
        yield process, emulator


class Person:
    """Somebody before the browser."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def text(self, selector: str) -> str:
        """Return what is to be read at a place of the page."""
        return str(self.browser.find_element("css selector", selector).text)

    def see(self, selector: str, condition: Callable[[str], object]) -> None:
        """Wait until what is to be read there is as it should be."""
        wait_until(lambda: condition(self.text(selector)))

    def press(self, selector: str) -> None:
        """Press a link or a button by keyboard."""
        self.browser.find_element("css selector", selector).send_keys("\n")

    def fill_in(self, name: str, text: str) -> None:
        """Write into a field."""
        self.browser.find_element("name", name).send_keys(text)

    def log_in(self, site: SiteProcess) -> None:
        """Open the site and log in."""
        self.browser.get(site.url)
        self.fill_in("username", "demo")
        self.fill_in("password", f"{site.password}\n")
        wait_until(lambda: self.browser.find_elements("id", "yours"))


def figure(field: str) -> str:
    """Return the selector of a figure of the identity."""
    return f"[data-identity=default] [data-field={field}]"


def test_a_persons_visit(browser: Any, site: tuple[SiteProcess, Emulator]) -> None:
    """Log in, see the counter rise, watch a renewal, an outage and its end."""
    process, emulator = site
    person = Person(browser)
    person.log_in(process)
    before = int(person.text("#yours"))
    person.press("a.button")
    person.see("#yours", lambda text: int(text) == before + 1)

    person.press("a.button.quiet")
    wait_until(lambda: browser.find_elements("id", "live"))
    browser.execute_script("window.sameDocument = true")
    renewals = int(person.text(figure("renewals")))
    person.see(figure("renewals"), lambda text: int(text) > renewals)
    idle = "[data-cache=default] [data-field=connections_idle]"
    person.see(idle, lambda text: int(text) > 0)
    state = figure("state")

    # Over before the token is: nobody but this page notices.
    emulator.faults.fail("500")
    person.see(figure("failures"), lambda text: int(text) > 0)
    person.see(figure("last_error"), lambda text: text != "")
    emulator.faults.recover()
    person.see(state, lambda text: text.lower() == "fresh")
    newest = "#events li:first-child"
    person.see(newest, lambda text: "Token renewed" in text)
    assert browser.execute_script("return window.sameDocument"), "it was loaded anew"
    severe = [
        entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"
    ]
    assert [entry for entry in severe if "503" not in entry["message"]] == []


def test_on_a_phone(browser: Any, site: tuple[SiteProcess, Emulator]) -> None:
    """The status page fits, and its button is reached and pressed by keyboard."""
    process, _ = site
    person = Person(browser)
    person.log_in(process)
    browser.set_window_size(*PHONE)
    browser.get(f"{process.url}status/")
    wide = "return document.documentElement.scrollWidth - window.innerWidth"
    assert browser.execute_script(wide) <= 0
    person.see("#live-text", lambda text: text != "")
    person.press("#pause")
    pressed = "return document.querySelector('#pause').getAttribute('aria-pressed')"
    assert browser.execute_script(pressed) == "true"


@pytest.mark.parametrize("scripts", [True, False])
def test_the_admins_page(
    browser: Any, site: tuple[SiteProcess, Emulator], scripts: bool
) -> None:
    """Find it in the admin, read it, and have the caches checked; scripts or not."""
    process, emulator = site
    person = Person(browser)
    if not scripts:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    person.log_in(process)
    browser.get(f"{process.url}admin/")
    person.press("#content a[href='/admin/entra_redis/status/']")
    person.see("#identity-default", lambda text: emulator.application.object_id in text)
    assert "answers" in person.text("#cache-default")
    assert browser.find_elements("css selector", "#identity-default meter")
    person.press("input[value='Check the caches']")
    wait_until(lambda: browser.find_elements("id", "check-default"))
    assert "passed" in person.text("#check-default h2")
    assert len(browser.find_elements("css selector", "#check-default tbody tr")) == 8
    for size in (PHONE, (1280, 900)):
        browser.set_window_size(*size)
        page = browser.find_element("tag name", "html")
        assert int(page.get_property("scrollWidth")) <= size[0]
    assert emulator.application.secret not in browser.page_source
    assert "eyJ" not in browser.page_source
    # What the site's policy of content security blocks would be among them.
    severe = [
        e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"
    ]
    assert [message for message in severe if "favicon.ico" not in message] == []
