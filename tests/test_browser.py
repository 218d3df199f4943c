"""The report as a real browser shows it: headless Chromium, pages opened from disk, nothing mocked."""

import base64
import io
import json
import shutil
import time

import pytest
from small_report import rendered

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="no browser: needs Chromium and its chromedriver on the PATH")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
PAGES = ("index", "10_lamini", "30_sft", "90_findings")
WIDTHS = (360, 768, 1440)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    return rendered(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="no browser: needs selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in FLAGS:
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('browser')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    spy = "window.alert = () => { document.documentElement.dataset.alerted = 'yes'; };"
    driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": spy})
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium, pages):
    """At the overview, in light colours, 1440 px wide, with nothing remembered and empty logs."""
    resize(chromium, 1440)
    emulate(chromium)
    chromium.get(address(pages, "index"))
    chromium.execute_script("localStorage.clear(); sessionStorage.clear()")
    chromium.get(address(pages, "index"))
    for log in ("browser", "performance"):
        chromium.get_log(log)
    return chromium


def address(pages, name):
    return (pages / f"{name}.html").as_uri()


def resize(browser, width):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def emulate(browser, scheme="light", media=""):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})


def find(browser, selector):
    return browser.find_element("css selector", selector)


def here(browser):
    return browser.current_url.rpartition("/")[2]


def open_code(browser):
    return browser.execute_script("return [...document.querySelectorAll('details.code')].map(d => d.open)")


def background(browser):
    return browser.execute_script("return getComputedStyle(document.body).backgroundColor")


def test_a_figure_leads_to_its_provenance_which_opens(browser, pages):
    browser.get(address(pages, "30_sft"))
    assert not find(browser, "details.provenance").get_property("open")
    find(browser, "figcaption a[href='#provenance']").click()
    time.sleep(0.2)
    assert here(browser) == "30_sft.html#provenance" and find(browser, "details.provenance").get_property("open")


def test_code_is_folded_and_one_switch_opens_all_of_this_page_only(browser, pages):
    assert not find(browser, "#code").is_displayed(), "the overview has no code"
    browser.get(address(pages, "30_sft"))
    assert open_code(browser) == [False, False]
    find(browser, "#code").click()
    assert open_code(browser) == [True, True] and find(browser, "#code").get_attribute("aria-pressed") == "true"
    browser.refresh()
    assert open_code(browser) == [True, True], "remembered for this page"
    browser.get(address(pages, "10_lamini"))
    assert open_code(browser) == [False, False], "and for no other"
    browser.get(address(pages, "30_sft"))
    find(browser, "#code").click()
    assert open_code(browser) == [False, False]


def test_colours_follow_the_system_until_the_reader_chooses(browser, pages):
    from selenium.webdriver.support.select import Select

    light = background(browser)
    emulate(browser, "dark")
    dark = background(browser)
    assert light == "rgb(251, 250, 247)" and dark == "rgb(20, 24, 30)"
    Select(find(browser, "#colours")).select_by_value("light")
    assert background(browser) == light
    for patience_s in (0.2, 1, 3):  # what a page keeps is written down a moment later, if the page lives that long
        Select(find(browser, "#colours")).select_by_value("light")
        time.sleep(patience_s)
        browser.get(address(pages, "30_sft"))
        if background(browser) == light:
            break
    assert background(browser) == light and find(browser, "#colours").get_property("value") == "light", "the choice stays"
    Select(find(browser, "#colours")).select_by_value("dark")
    emulate(browser, "light")
    assert background(browser) == dark
    Select(find(browser, "#colours")).select_by_value("")
    assert background(browser) == light


@pytest.mark.parametrize("width", WIDTHS)
def test_no_page_scrolls_sideways_and_a_screenshot_shows_something(browser, pages, width, tmp_path):
    from PIL import Image

    for name in PAGES:
        resize(browser, width)
        browser.get(address(pages, name))
        browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth && innerWidth") == width, name
        shot = tmp_path / f"{name}_{width}.png"
        shot.write_bytes(base64.b64decode(browser.get_screenshot_as_base64()))
        image = Image.open(io.BytesIO(shot.read_bytes())).convert("RGB")
        assert image.width == width and len(image.getcolors(1 << 24)) > 50, f"{shot} is blank"


def test_the_browser_reports_no_error_fetches_nothing_and_runs_no_model_text(browser, pages):
    for name in PAGES:
        browser.get(address(pages, name))
        browser.execute_script("document.querySelectorAll('main a:not([href])').forEach(a => a.click())")
        assert browser.execute_script("return document.documentElement.dataset.alerted") is None, name
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    addresses = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert len(addresses) >= len(PAGES)
    assert not {url for url in addresses if not url.startswith((pages.as_uri(), "data:image/png;base64,", "data:,"))}


def test_the_policy_stops_what_cleaning_might_have_missed(browser, pages):
    text = (pages / "30_sft.html").read_text()
    slipped = (
        "<script>alert(1)</script><img src='data:image/png;base64,AAAA' onerror='alert(2)'><img src='https://evil.example/x.png'>"
    )
    (pages / "slipped.html").write_text(text.replace("</main>", f"{slipped}</main>"))
    browser.get(address(pages, "slipped"))
    assert browser.execute_script("return document.documentElement.dataset.alerted") is None
    complaints = " ".join(entry["message"] for entry in browser.get_log("browser"))
    assert complaints.count("Content Security Policy") >= 3


def test_the_data_of_a_figure_is_downloaded(browser, pages, tmp_path):
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    browser.get(address(pages, "30_sft"))
    find(browser, "figcaption a[download]").click()
    deadline = time.time() + 10
    while not (tmp_path / "answers-found.csv").exists() and time.time() < deadline:
        time.sleep(0.05)
    assert (tmp_path / "answers-found.csv").read_text().splitlines()[1] == "Answers found,,base,0.1,0.05,0.2"
    assert here(browser) == "30_sft.html"


def test_the_keyboard_gets_past_the_navigation_and_its_place_is_seen(browser, pages):
    from selenium.webdriver import ActionChains, Keys

    browser.get(address(pages, "30_sft"))
    ActionChains(browser).send_keys(Keys.TAB).perform()
    focused = browser.switch_to.active_element
    assert focused.get_attribute("class") == "skip" and focused.rect["x"] >= 0
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    assert browser.switch_to.active_element.get_attribute("id") == "main"
    ActionChains(browser).send_keys(Keys.TAB).perform()
    outline = "const style = getComputedStyle(document.activeElement); return [style.outlineStyle, style.outlineWidth]"
    assert browser.execute_script(outline) == ["solid", "3px"]


def test_on_paper_code_is_gone_and_figures_tables_and_addresses_stay(browser, pages):
    browser.get(address(pages, "30_sft"))
    emulate(browser, "dark", media="print")
    for gone in ("details.code", "details.messages", ".chapters", ".contents", ".switches", ".turn", ".links"):
        assert not find(browser, gone).is_displayed(), gone
    seen = "const e = document.querySelector(arguments[0]); return e.checkVisibility() && e.getBoundingClientRect().height > 10"
    for kept in ("h1", "figure img", "main table", "figcaption", ".provenance table"):
        assert browser.execute_script(seen, kept), kept
    shown = "return getComputedStyle(document.querySelector('main a[href^=http]'), '::after').content"
    assert "https://arxiv.org/abs/2404.12195" in browser.execute_script(shown)
    assert browser.execute_script("return getComputedStyle(document.body).color") == "rgb(29, 36, 48)", "dark ink on paper"


def test_without_script_everything_can_be_read(browser, pages):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(address(pages, "30_sft"))
        shown = "[...document.querySelectorAll({!r})].map(e => e.checkVisibility())"

        def visible(selector):
            answer = browser.execute_cdp_cmd("Runtime.evaluate", {"expression": shown.format(selector), "returnByValue": True})
            return answer["result"]["value"]

        assert visible(".switches") == [False] and all(visible("main h2, figure img, main p, .contents a, .chapters a, summary"))
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
