"""Uses the page as people do. The argument is JSON: where the service is, and what it has."""

import json
import sys
import urllib.parse

from playwright.sync_api import expect, sync_playwright

import renewal
import rights
import trouble
from browser import SCHEMES, SIZES, Api, User, launch, run

GIVEN = json.loads(sys.argv[1])
VM, SNAPSHOTS = GIVEN["vm"], GIVEN["snapshots"]
VM_VIEW = f"#/vms/{VM}"


def disk_view(snapshot, disk="system.img", since=None):
    return f"{VM_VIEW}/{snapshot}/{disk}" + (f"?since={since}" if since else "")


def chunks(snapshot, query, disk="system.img"):
    return f"/vms/{VM}/snapshots/{snapshot}/disks/{disk}/chunks?{query}"


def a_refused_log_in_says_why(browser, api):
    user = User(browser, GIVEN, "test-somebody")
    user.open()
    user.log_in("wrong")
    alert = user.page.get_by_role("alert")
    expect(alert).to_have_text("Wrong user name or password.")
    expect(user.page.locator("#bar")).to_be_hidden()
    expect(user.page.get_by_label("Password")).to_be_focused()
    expect(user.page.get_by_label("Password")).to_have_value("")
    assert "wrong" not in user.page.url
    user.close()


def the_host_is_seen_and_names_are_texts(browser, api):
    user = User(browser, GIVEN, "admin")
    page = user.enter()
    expect(page.get_by_role("heading", level=1)).to_have_text("localhost")
    expect(page.get_by_text("1 VM cannot be snapshotted")).to_be_visible()
    repository = api.call("GET", "/repositories")[0]
    expect(page.get_by_role("heading", name=repository["id"])).to_be_visible()
    expect(page.locator(".tiles")).to_contain_text("2 can be snapshotted")
    page.get_by_role("link", name="Show them").click()
    expect(page.get_by_label("Show")).to_have_value("unfit")
    expect(page.get_by_role("row").filter(has_text=GIVEN["unfit_vm"])).to_contain_text("Cannot be snapshotted")
    reason = next(vm["reason"] for vm in api.call("GET", "/vms") if vm["name"] == GIVEN["unfit_vm"])
    expect(page.locator(".reason").first).to_have_text(reason)
    page.get_by_label("Show").select_option("all")
    expect(page.get_by_role("link", name=GIVEN["hostile"])).to_be_visible()
    page.get_by_label("Filter").fill(VM[-6:])
    expect(page.get_by_text("1 of 3 VMs")).to_be_visible()
    page.get_by_role("link", name=GIVEN["hostile"]).click()
    expect(page.get_by_role("heading", level=1)).to_have_text(GIVEN["hostile"])
    expect(page.locator(".chain > li")).to_have_count(3)
    expect(page.get_by_text("before the upgrade")).to_be_visible()
    user.settled()
    expect(page.locator("img")).to_have_count(1)
    # An address is a text of strangers too.
    user.go("#/vms/%2E%2E")
    expect(page.get_by_role("alert")).to_contain_text("nothing at this address")
    user.close()


def the_map_and_the_changes_are_those_of_the_api(browser, api):
    user = User(browser, GIVEN, "admin")
    first, second, third = SNAPSHOTS
    page = user.enter(disk_view(third))
    data, _, count = api.sums(chunks(third, "zero=omit"))
    numbers = page.locator(".map-numbers [data-bytes]")
    expect(numbers).to_have_attribute("data-bytes", str(data))
    expect(page.locator(".map-numbers")).to_contain_text(f"{data:,} bytes")
    expect(page.locator(".map-numbers")).to_contain_text(f"Ranges{count}")
    for base in (second, first):
        page.get_by_label("Compare with").select_option(base)
        data, zero, count = api.sums(chunks(third, f"compareTo={base}"))
        assert data > 0
        expect(numbers).to_have_count(2)
        expect(numbers.nth(0)).to_have_attribute("data-bytes", str(data))
        expect(numbers.nth(1)).to_have_attribute("data-bytes", str(zero))
    # With the keyboard: into the map, to its end, and closer. The numbers follow.
    box = page.get_by_role("group", name="Map.")
    box.focus()
    expect(page.locator(".in-view")).to_contain_text("0 bytes to 256 MiB")
    page.keyboard.press("+")
    page.keyboard.press("+")
    page.keyboard.press("End")
    expect(page.locator(".in-view")).to_contain_text("192 MiB to 256 MiB")
    end = [chunk for chunk in api.call("GET", chunks(third, f"compareTo={first}"))["chunks"]
           if chunk["start"] + chunk["length"] > 192 << 20]
    expect(page.locator("details", has_text="in view").last).to_contain_text(f"{len(end)} range")
    # With the mouse: a quarter of the width to the right, then closer.
    place = box.bounding_box()
    page.mouse.move(place["x"] + 10, place["y"] + 50)
    page.mouse.down()
    page.mouse.move(place["x"] + 10 + place["width"] / 4, place["y"] + 50, steps=3)
    page.mouse.up()
    expect(page.locator(".in-view")).to_contain_text("176 MiB to 240 MiB")
    page.mouse.wheel(0, -50)
    expect(page.locator(".in-view")).not_to_contain_text("(64 MiB)")
    page.get_by_role("button", name="Whole disk").click()
    expect(page.locator(".in-view")).to_contain_text("0 bytes to 256 MiB")
    # What is drawn: with the colour of changes where there are some, and without where there are none.
    drawn = page.evaluate("""() => {
      const canvas = document.querySelector("canvas");
      const context = canvas.getContext("2d");
      const at = (share) => context.getImageData(Math.floor(canvas.width * share), 148, 1, 1).data.join();
      return [at(200.5 / 256), at(210 / 256)];
    }""")
    assert drawn[0] != drawn[1], drawn
    user.close()


def a_snapshot_is_made_and_deleted_with_the_keyboard_alone(browser, api):
    user = User(browser, GIVEN, "admin")
    user.open(VM_VIEW)
    page = user.page
    expect(page.get_by_label("User name")).to_be_focused()
    page.keyboard.type("admin")
    page.keyboard.press("Tab")
    page.keyboard.type(GIVEN["password"])
    page.keyboard.press("Enter")
    expect(page.locator(".chain > li")).to_have_count(3)

    def tab_to(role, name):
        wanted = page.get_by_role(role, name=name).first
        expect(wanted).to_be_visible()
        for _ in range(80):
            page.keyboard.press("Tab")
            if wanted.evaluate("element => element === document.activeElement"):
                return page.keyboard.press("Enter")
        raise AssertionError(f"Tab does not reach {name}")

    user.settled()
    tab_to("button", "Create a snapshot")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text(GIVEN["hostile"])
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    assert len(api.call("GET", f"/vms/{VM}/snapshots?chunks=false")) == 3
    page.keyboard.press("Enter")
    page.keyboard.type("made by the page")
    page.keyboard.press("Tab")
    page.keyboard.type("nonsense")
    page.keyboard.press("Enter")
    expect(dialog.get_by_role("alert")).to_contain_text("bad_request")
    page.get_by_label("Keep for").fill("1h")
    page.keyboard.press("Enter")
    expect(page.locator(".chain > li")).to_have_count(4)
    made = api.call("GET", f"/vms/{VM}/snapshots?chunks=false")[-1]
    assert made["description"] == "made by the page" and "expires_at" in made, made
    newest = page.locator(".chain > li").first
    expect(newest).to_contain_text("made by the page")
    user.settled()
    tab_to("button", "Delete")
    expect(dialog).to_contain_text(made["id"])
    expect(dialog.get_by_role("button", name="Cancel")).to_be_focused()
    user.accessible("the dialog")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator(".chain > li")).to_have_count(3)
    assert api.status("GET", f"/vms/{VM}/snapshots/{made['id']}?chunks=false") == 404
    user.close()


def roles_limit_what_is_offered(browser, api):
    first, second, _ = SNAPSHOTS
    viewer = User(browser, GIVEN, "test-viewer")
    page = viewer.enter(VM_VIEW)
    expect(page.locator(".chain > li")).to_have_count(3)
    expect(page.get_by_text("need the role reader")).to_be_visible()
    expect(page.locator("main button")).to_have_count(0)
    viewer.go(disk_view(second))
    expect(page.get_by_role("alert")).to_contain_text("the role reader is needed")
    viewer.go("#/growth")
    expect(page.get_by_text("need the role reader")).to_be_visible()
    viewer.go("#/")
    expect(page.locator(".tiles")).to_contain_text("2 can be snapshotted")
    viewer.close()
    reader = User(browser, GIVEN, "test-reader")
    page = reader.enter(VM_VIEW)
    expect(page.get_by_role("link", name="Map of system.img").first).to_be_visible()
    expect(page.get_by_role("button", name="Delete")).to_have_count(0)
    expect(page.get_by_role("button", name="Create a snapshot")).to_have_count(0)
    oldest = page.locator(".chain > li").last
    reader.settled()
    oldest.get_by_role("button", name="Keep longer").click()
    page.get_by_role("dialog").get_by_role("button", name="Take the lease").click()
    expect(oldest.locator(".row")).to_contain_text("Leased")
    assert "leased_until" in api.call("GET", f"/vms/{VM}/snapshots/{first}?chunks=false")
    reader.settled()
    oldest.get_by_role("button", name="End the lease").click()
    page.get_by_role("dialog").get_by_role("button", name="End the lease").click()
    expect(oldest.locator(".row")).not_to_contain_text("Leased")
    reader.close()
    # A user without a role is refused by the API, and keeps no log-in.
    nobody = User(browser, GIVEN, "test-nobody")
    nobody.open()
    nobody.log_in()
    expect(nobody.page.get_by_role("alert")).to_contain_text("the role viewer is needed")
    token = nobody.tokens[-1]
    expect(nobody.page.get_by_label("Password")).to_be_focused()
    assert api.status("POST", "/auth/logout", token) == 401
    nobody.close()


def a_log_in_ends_at_the_service_too(browser, api):
    user = User(browser, GIVEN, "test-leaver")
    page = user.enter()
    user.settled()
    token = user.tokens[-1]
    assert api.status("GET", "/vms", token) == 200
    assert len(set(user.tokens)) > 1, "the token was never renewed"
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_text("You have logged out.")).to_be_visible()
    assert api.status("GET", "/vms", token) == 401
    user.log_in()
    expect(page.locator("#bar")).to_be_visible()
    api.call("POST", "/auth/revoke", {"user": "test-leaver"})
    user.go("#/vms")
    expect(page.get_by_text("The log-in has ended.")).to_be_visible()
    user.log_in()
    expect(page.locator("#bar")).to_be_visible()
    user.settled()
    token = user.tokens[-1]
    # A page that is left cannot renew its log-in, so it ends it.
    page.goto("/ui/icon.svg")
    for _ in range(100):
        if api.status("GET", "/vms", token) == 401:
            break
    assert api.status("GET", "/vms", token) == 401
    user.context.close()


# A disk of 1 TiB with 4 KiB of data in each MiB, in place of the answers of the service.
A_MILLION = """
const real = window.fetch;
window.fetch = (url, options) => {
  const query = new URL(url, location.href).searchParams;
  if (!String(url).includes("/chunks?")) return real(url, options);
  const [first, most] = [Number(query.get("startingOffset")) / 2 ** 20, Number(query.get("maxResults"))];
  const chunks = Array.from({length: most}, (_, at) => ({start: (first + at) * 2 ** 20, length: 4096, type: "data"}));
  const next = first + most < 1e6 ? (first + most) * 2 ** 20 : null;
  return Promise.resolve(new Response(JSON.stringify({size: 2 ** 40, mode: "full", chunks, next_offset: next})));
};
"""


def a_million_ranges_are_drawn(browser, api):
    """The service is not asked for the ranges: a file with as many extents would take minutes to make."""
    user = User(browser, GIVEN, "admin")
    user.context.add_init_script(A_MILLION)
    page = user.enter(disk_view(SNAPSHOTS[0]))
    expect(page.locator(".map-numbers")).to_contain_text("Ranges1,000,000", timeout=40_000)
    user.settled()
    expect(page.locator(".map-numbers [data-bytes]")).to_have_attribute("data-bytes", str(4096 * 1_000_000))
    page.get_by_role("group", name="Map.").focus()
    for _ in range(12):
        page.keyboard.press("+")
    expect(page.locator(".in-view")).to_contain_text("(256 MiB)")
    expect(page.locator(".in-view")).to_contain_text("256 ranges")
    user.close()


def two_fingers_zoom(browser, api):
    user = User(browser, GIVEN, "admin", "narrow")
    page = user.enter(disk_view(SNAPSHOTS[0]))
    box = page.locator(".map")
    expect(page.locator(".in-view")).to_contain_text("(256 MiB)")
    box.scroll_into_view_if_needed()
    place = box.bounding_box()
    fingers = user.context.new_cdp_session(page)

    def touch(kind, apart):
        middle = place["x"] + place["width"] / 2
        points = [{"x": middle + side * apart, "y": place["y"] + 40, "id": side + 1} for side in (-1, 1) if apart]
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", 20)
    touch("touchMove", 40)
    touch("touchMove", 80)
    touch("touchEnd", 0)
    expect(page.locator(".in-view")).to_contain_text("(64 MiB)")
    user.close()


# Pages of browsers are hidden by their users only, so the page hears that it is.
HIDE = """hidden => {
  Object.defineProperty(document, "hidden", {configurable: true, value: hidden});
  document.dispatchEvent(new Event("visibilitychange"));
}"""


def a_hidden_page_asks_for_nothing(browser, api):
    user = User(browser, GIVEN, "admin")
    user.page.clock.install()
    page = user.enter("#/work")
    user.settled()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    with page.expect_response("**/status"):
        page.clock.run_for(10_000)
    page.evaluate(HIDE, True)
    asked.clear()
    for _ in range(3):
        page.clock.run_for(60_000)
    assert asked == [], asked
    with page.expect_response("**/status"):
        page.evaluate(HIDE, False)
    user.close()


def a_download_is_followed(browser, api):
    """A client that reads slowly, and one that has ended."""
    import http.client
    import ssl
    target = urllib.parse.urlsplit(GIVEN["url"])
    connection = http.client.HTTPSConnection(target.hostname, target.port, context=ssl._create_unverified_context())
    connection.request("GET", f"/api/v1/vms/{VM}/snapshots/{SNAPSHOTS[0]}/disks/system.img",
                       headers={"Authorization": f"Bearer {api.token}"})
    answer = connection.getresponse()
    answer.read(1)
    user = User(browser, GIVEN, "admin")
    page = user.enter("#/work")
    row = page.get_by_role("row").filter(has_text="system.img")
    expect(row).to_contain_text("of 256 MiB")
    expect(row).to_contain_text(GIVEN["hostile"])
    user.picture("download")
    answer.close()
    connection.close()
    expect(page.get_by_text("No download runs or waits.")).to_be_visible()
    user.close()


VIEWS = {
    "host": "#/", "vms": "#/vms", "vm": VM_VIEW, "map": disk_view(SNAPSHOTS[2]),
    "changes": disk_view(SNAPSHOTS[2], since=SNAPSHOTS[0]), "work": "#/work", "growth": "#/growth",
}


def each_view_is_accessible(browser, api):
    for size in SIZES:
        user = User(browser, GIVEN, "admin", size)

        def look(name):
            # All rules for the first scheme; the others differ in their colours only.
            for scheme in SCHEMES:
                user.page.emulate_media(color_scheme=scheme)
                user.accessible(f"{name}, {size}, {scheme}", None if scheme == SCHEMES[0] else ["color-contrast"])
                user.picture(f"{name}-{size}-{scheme}")

        user.open()
        expect(user.page.get_by_role("button", name="Log in")).to_be_visible()
        look("login")
        user.log_in()
        expect(user.page.locator("#bar")).to_be_visible()
        for name, view in VIEWS.items():
            user.go(view)
            expect(user.page.locator("main .panel").first).to_be_visible()
            user.settled()
            if name in ("map", "changes"):
                expect(user.page.locator("details")).to_have_count(2)
            user.page.evaluate("for (const it of [...document.querySelectorAll('details')].slice(0, 2)) it.open = true")
            look(name)
        user.close()


STEPS = [
    a_refused_log_in_says_why, the_host_is_seen_and_names_are_texts, the_map_and_the_changes_are_those_of_the_api,
    a_snapshot_is_made_and_deleted_with_the_keyboard_alone, roles_limit_what_is_offered, trouble.a_disk_is_left_out,
    trouble.a_failing_webhook_needs_attention, trouble.a_full_repository_is_not_in_order,
    rights.roles_for_some_vms_limit_what_is_offered, rights.roles_for_some_labels_limit_what_is_offered,
    a_log_in_ends_at_the_service_too, renewal.a_renewal_that_is_cut_off_is_sent_again,
    renewal.a_renewal_whose_answer_is_lost_ends_the_log_in, a_million_ranges_are_drawn, two_fingers_zoom, a_hidden_page_asks_for_nothing,
    a_download_is_followed, each_view_is_accessible,
]


def main():
    api = Api(GIVEN)
    with sync_playwright() as playwright:
        browser = launch(playwright)
        run(STEPS, browser, api)
        browser.close()
    print("all done")


if __name__ == "__main__":
    main()
