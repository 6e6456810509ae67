"""Uses the page with the certificate of a browser, and lets pages of other sites try. The argument is JSON."""

import http.server
import json
import os
import pathlib
import signal
import ssl
import sys
import threading

from playwright.sync_api import expect, sync_playwright

from browser import Api, User, launch, run

GIVEN = json.loads(sys.argv[1])
VM_VIEW = f"#/vms/{GIVEN['vm']}"
FILES = pathlib.Path(GIVEN["certificates"])


def pair(name):
    return FILES / f"{name}.pem", FILES / f"{name}.key"


def snapshots(api):
    return api.call("GET", f"/vms/{GIVEN['vm']}/snapshots?chunks=false")


# Chromium shows a certificate even if a request says that it omits credentials. Other browsers follow the standard.
CREDENTIALS = """
window.credentials = new Set();
const real = window.fetch;
window.fetch = (url, options) => {
  window.credentials.add(new Request(url, options).credentials);
  return real(url, options);
};
"""


def the_certificate_enters_without_a_form(browser, api):
    user = User(browser, GIVEN, "admin")
    user.context.add_init_script(CREDENTIALS)
    answers = []
    user.page.on("response", lambda answer: answers.append(answer))
    user.open(VM_VIEW)
    page = user.page
    expect(page.locator("#user")).to_have_text("cert:annby certificate")
    expect(page.locator(".chain > li")).to_have_count(1)
    expect(page.get_by_label("Password")).to_have_count(0)
    user.settled()
    user.accessible("a view by a certificate")
    user.picture("certificate-view")
    # What changes something has an Origin. The service accepts that of its own page.
    page.get_by_role("button", name="Create a snapshot").click()
    page.get_by_role("button", name="Create the snapshot").click()
    expect(page.locator(".chain > li")).to_have_count(2)
    made = snapshots(api)[-1]
    assert made["created_by"] == "cert:ann", made
    user.settled()
    newest = page.locator(".chain > li").first
    newest.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete the snapshot").click()
    expect(page.locator(".chain > li")).to_have_count(1)
    changes = [answer.request.all_headers() for answer in answers if answer.request.method in ("POST", "DELETE")]
    assert len(changes) == 2, changes
    for headers in changes:
        assert (headers["origin"], headers["sec-fetch-site"]) == (GIVEN["url"], "same-origin"), headers
        assert "authorization" not in headers, headers
    refused = [(answer.status, answer.url) for answer in answers if answer.status >= 400]
    assert not refused, refused
    assert page.evaluate("[...window.credentials]") == ["same-origin"]
    user.close()


def logging_out_says_what_it_means(browser, api):
    user = User(browser, GIVEN, "admin")
    user.open()
    page = user.page
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("status").first).to_contain_text("A certificate has no log-in that could end")
    expect(page.get_by_label("User name")).to_be_focused()
    user.accessible("the form of a browser with a certificate")
    user.picture("certificate-form")
    page.get_by_role("button", name="Go on as cert:ann").click()
    expect(page.locator("#user")).to_contain_text("by certificate")
    page.get_by_role("button", name="Log out").click()
    user.log_in("wrong")
    expect(page.get_by_role("alert")).to_have_text("Wrong user name or password.")
    # The token of another user decides, not the certificate.
    user.log_in()
    expect(page.locator("#user")).to_have_text("admin")
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_text("You have logged out.")).to_be_visible()
    page.get_by_role("button", name="Go on as cert:ann").click()
    expect(page.locator("#user")).to_contain_text("cert:ann")
    user.close()


# What a page can send for its reader without asking the service first. A form answers with a page of its own.
ATTACKS = """async ([url, target]) => {
  const form = document.createElement("form");
  Object.assign(form, {method: "post", action: url + target, target: "away"});
  const frame = document.createElement("iframe");
  frame.name = "away";
  document.body.append(frame, form);
  const loaded = new Promise((done) => { frame.onload = done; });
  form.submit();
  await loaded;
  const read = [];
  for (const [method, path] of [["POST", target], ["GET", "/api/v1/vms"], ["GET", "/api/v1/auth/certificate"]]) {
    await fetch(url + path, {method, mode: "no-cors", credentials: "include"});
    read.push(await fetch(url + path, {method, credentials: "include"}).then((it) => it.text()).catch(() => "hidden"));
  }
  await fetch(url + "/api/v1/vms", {method: "DELETE", credentials: "include"}).catch(() => {});
  navigator.sendBeacon(url + target);
  return read;
}"""


class Elsewhere(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>Elsewhere</title><body>")

    def log_message(self, *_):
        pass


def serve(tls):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    server.daemon_threads = True
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*pair("server"))
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def other_sites_can_do_nothing_with_the_certificate(browser, api):
    """One of another host, and one of the same host at another port, which browsers call the same site."""
    before = snapshots(api)
    target = f"/api/v1/vms/{GIVEN['vm']}/snapshots"
    for tls, host, site in ((False, "127.0.0.1", "cross-site"), (True, "localhost", "same-site")):
        server = serve(tls)
        context = browser.new_context(ignore_https_errors=True)
        page = context.new_page()
        answers = []
        page.on("response", lambda answer: answers.append(answer))
        page.goto(f"http{'s' if tls else ''}://{host}:{server.server_port}/")
        with page.expect_response(lambda answer: answer.request.resource_type == "ping"):
            read = page.evaluate(ATTACKS, [GIVEN["url"], target])
        assert read == ["hidden"] * 3, read
        theirs = [answer for answer in answers if answer.url.startswith(GIVEN["url"])]
        # Chromium tells the headers of the form only.
        assert theirs[0].request.all_headers()["sec-fetch-site"] == site, theirs[0].request.all_headers()
        arrived = [(answer.request.method, answer.request.resource_type, answer.status) for answer in theirs]
        for kind in (("POST", "document"), ("POST", "fetch"), ("GET", "fetch"), ("POST", "ping")):
            assert (*kind, 403) in arrived, arrived
        assert {status for *_, status in arrived} <= {403, 405}, arrived
        # A link leads to the page, which asks for itself.
        page.evaluate("url => { location.href = url; }", f"{GIVEN['url']}/ui")
        expect(page.locator("#user")).to_contain_text("cert:ann")
        context.close()
        server.shutdown()
        server.server_close()
    assert snapshots(api) == before


def a_certificate_without_a_rule_shows_the_form(playwright, api):
    browser = launch(playwright, pathlib.Path(GIVEN["homes"]) / "bob")
    user = User(browser, GIVEN, "admin")
    refused = []
    user.page.on("response", lambda answer: answer.status >= 400 and refused.append(answer.url))
    user.open()
    expect(user.page.get_by_label("User name")).to_be_focused()
    expect(user.page.get_by_role("button", name="Go on")).to_have_count(0)
    expect(user.page.get_by_role("alert")).to_have_count(0)
    assert not refused, refused
    user.log_in()
    expect(user.page.locator("#user")).to_have_text("admin")
    user.close()
    browser.close()


def a_rule_that_is_taken_away_ends_it(browser, api):
    user = User(browser, GIVEN, "admin")
    user.open()
    expect(user.page.locator("#user")).to_contain_text("by certificate")
    user.settled()
    config = pathlib.Path(GIVEN["config"])
    config.write_text(config.read_text(encoding="utf-8").replace('["ann"]', '["another"]'), encoding="utf-8")
    os.kill(GIVEN["pid"], signal.SIGHUP)
    for _ in range(500):
        if api.status("GET", "/vms") == 401:
            break
    user.go("#/vms")
    expect(user.page.get_by_text("does not accept the certificate of this browser any more")).to_be_visible()
    expect(user.page.get_by_role("button", name="Go on")).to_have_count(0)
    user.log_in()
    expect(user.page.locator("#user")).to_have_text("admin")
    user.close()


STEPS = [the_certificate_enters_without_a_form, logging_out_says_what_it_means,
         other_sites_can_do_nothing_with_the_certificate, a_rule_that_is_taken_away_ends_it]


def main():
    api = Api(GIVEN, certificate=pair("ann"))
    with sync_playwright() as playwright:
        a_certificate_without_a_rule_shows_the_form(playwright, api)
        browser = launch(playwright, pathlib.Path(GIVEN["homes"]) / "ann")
        run(STEPS, browser, api)
        browser.close()
    print("all done")


if __name__ == "__main__":
    main()
