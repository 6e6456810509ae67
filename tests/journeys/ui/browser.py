"""The browser, its users, and what is checked on every page."""

import json
import os
import pathlib
import ssl
import time
import urllib.error
import urllib.request

import axe_playwright_python
from playwright.sync_api import expect

# Debian's; Playwright's own is not downloaded.
CHROMIUM = "/usr/bin/chromium"
AXE = (pathlib.Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")

SIZES = {"wide": (1280, 800), "narrow": (360, 740)}
SCHEMES = ("light", "dark")

# Violations of the policy, also those of reports that no console shows.
WATCH = """
window.violations = [];
addEventListener("securitypolicyviolation", (event) =>
  window.violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`), true);
"""

expect.set_options(timeout=10_000)


class User:
    """A user in a browser window of its own, and the same user's own token for the API."""

    def __init__(self, browser, given, name, size="wide"):
        self.given, self.name = given, name
        width, height = SIZES[size]
        self.context = browser.new_context(
            base_url=given["url"], ignore_https_errors=True, color_scheme=SCHEMES[0], locale="en-GB",
            timezone_id="UTC", viewport={"width": width, "height": height}, has_touch=size == "narrow",
        )
        self.context.add_init_script(WATCH)
        self.page = self.context.new_page()
        self.errors, self.tokens, self.hosts = [], [], set()
        # Refused requests are errors of the console too; the steps check these themselves.
        self.page.on("console", lambda line: line.type == "error" and "Failed to load resource" not in line.text
                     and self.errors.append(line.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self.sent)

    def sent(self, request):
        self.hosts.add(request.url.split("/")[2] if "://" in request.url else request.url[:5])
        header = request.headers.get("authorization", "")
        if header.startswith("Bearer "):
            self.tokens.append(header.removeprefix("Bearer "))

    def open(self, view="#/"):
        self.page.goto(f"/ui{view}")

    def log_in(self, password=None):
        self.page.get_by_label("User name").fill(self.name)
        self.page.get_by_label("Password").fill(password or self.given["password"])
        self.page.keyboard.press("Enter")

    def enter(self, view="#/"):
        """Logs in, and shows a view."""
        self.open(view)
        self.log_in()
        expect(self.page.locator("#bar")).to_be_visible()
        return self.page

    def go(self, view):
        """Shows another view without loading the page again, which would end the log-in."""
        self.page.evaluate("view => { location.hash = view; }", view)

    def settled(self):
        expect(self.page.locator(".loading")).to_have_count(0)

    def check(self):
        """Nothing that the policy forbids, no error, no foreign host, nothing stored."""
        assert self.page.evaluate("window.violations") == [], self.page.evaluate("window.violations")
        assert self.errors == [], self.errors
        assert self.hosts <= {self.given["url"].split("/")[2]}, self.hosts
        stored = self.page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]")
        assert stored == [0, 0, ""], stored
        assert self.page.evaluate("window.hit") is None, "a name was executed"

    def close(self):
        self.check()
        self.context.close()

    def accessible(self, what, rules=None):
        """axe finds nothing (by all its rules, or by these), and nothing is wider than the window."""
        if not self.page.evaluate("'axe' in window"):
            self.page.evaluate(AXE)
        options = {"resultTypes": ["violations"], **({"runOnly": rules} if rules else {})}
        found = self.page.evaluate("options => axe.run(document, options)", options)["violations"]
        told = [f"{rule['id']}: {node['html']} {node['failureSummary']}" for rule in found for node in rule["nodes"]]
        assert not told, f"{what}: " + "\n".join(told)
        width = self.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert width[0] <= width[1], f"{what} is {width[0]} pixels wide"

    def picture(self, name):
        folder = pathlib.Path(self.given["pictures"])
        folder.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=folder / f"{name}.png", full_page=True)


class Api:
    """The API, without the page."""

    def __init__(self, given, user="admin", certificate=None):
        """With a certificate, a pair of files, there is no log-in."""
        self.base = given["url"] + "/api/v1"
        self.tls = ssl._create_unverified_context()  # the journey's authority is checked elsewhere
        self.token = None
        if certificate:
            self.tls.load_cert_chain(*certificate)
            return
        self.token = self.call("POST", "/auth/login", {"username": user, "password": given["password"]})["token"]

    def call(self, method, path, body=None, token=None):
        request = urllib.request.Request(self.base + path, method=method, data=body and json.dumps(body).encode())
        if token or self.token:
            request.add_header("Authorization", f"Bearer {token or self.token}")
        with urllib.request.urlopen(request, context=self.tls, timeout=30) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def status(self, method, path, token=None):
        try:
            self.call(method, path, token=token)
        except urllib.error.HTTPError as error:
            return error.code
        return 200

    def sums(self, path):
        """Bytes of data and zeros of all pages, and the number of chunks."""
        data = zero = count = 0
        offset = 0
        while offset is not None:
            page = self.call("GET", f"{path}{'&' if '?' in path else '?'}startingOffset={offset}&maxResults=7")
            for chunk in page["chunks"]:
                count += 1
                if chunk["type"] == "data":
                    data += chunk["length"]
                else:
                    zero += chunk["length"]
            offset = page["next_offset"]
        return data, zero, count


def launch(playwright, home=None):
    """No sandbox, because the tests run as root. The proxies of the host are for the internet. `home` has certificates."""
    environment = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    if home:
        environment["HOME"] = str(home)
    return playwright.chromium.launch(
        executable_path=CHROMIUM, headless=True, env=environment,
        args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server"],
    )


def run(steps, browser, api):
    """Runs the steps one after the other, and prints how long each took."""
    for step in steps:
        started = time.monotonic()
        step(browser, api)
        print(f"{step.__name__.replace('_', ' ')}: {time.monotonic() - started:.1f} s", flush=True)
