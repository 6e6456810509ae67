"""What needs attention, and what the page offers then: unfit disks, full repositories, receivers that do not answer."""

import json
import os
import pathlib
import sys

from playwright.sync_api import expect

from browser import User

GIVEN = json.loads(sys.argv[1])


def create(user, api, vm, dialog):
    """Confirms the dialog. Returns the names of the disks in the snapshot, which it deletes again."""
    items = user.page.locator(".chain > li")
    before = items.count()
    dialog.get_by_role("button", name="Create the snapshot").click()
    expect(items).to_have_count(before + 1)
    user.settled()
    made = api.call("GET", f"/vms/{vm}/snapshots?chunks=false")[-1]
    api.call("DELETE", f"/vms/{vm}/snapshots/{made['id']}")
    return [disk["name"] for disk in made["disks"]]


def a_disk_is_left_out(browser, api):
    """One that cannot be snapshotted, and one that the user does not want."""
    user = User(browser, GIVEN, "admin")
    page = user.enter(f"#/vms/{GIVEN['unfit_vm']}")
    dialog = page.get_by_role("dialog")
    expect(page.get_by_text("A snapshot without xvda is possible.")).to_be_visible()
    expect(page.get_by_text("let its friendly name in the manager start with [NOBAK]")).to_be_visible()
    user.settled()
    user.accessible("a VM that cannot be snapshotted")
    user.picture("unfit")
    page.get_by_role("button", name="Create a snapshot without xvda").click()
    expect(dialog.get_by_role("checkbox")).to_have_count(1)
    expect(dialog).to_contain_text("Without xvda")
    user.accessible("the dialog for a snapshot without a disk")
    user.picture("create-without")
    assert create(user, api, GIVEN["unfit_vm"], dialog) == ["c.img"]
    user.go(f"#/vms/{GIVEN['vm']}")
    expect(page.locator(".chain > li")).to_have_count(3)
    user.settled()
    page.get_by_role("button", name="Create a snapshot").click()
    expect(dialog.get_by_role("checkbox", checked=True)).to_have_count(2)
    dialog.get_by_label("data.img").uncheck()
    assert create(user, api, GIVEN["vm"], dialog) == ["system.img"]
    user.close()


def a_failing_webhook_needs_attention(browser, api):
    """Its receiver does not listen. Who may not see webhooks is not told."""
    for name, shown in (("admin", 1), ("test-viewer", 0)):
        user = User(browser, GIVEN, name)
        page = user.enter()
        expect(page.locator(".tiles")).to_be_visible()
        item = page.locator(".attention li").filter(has_text="Webhook alerts gets no events")
        expect(item).to_have_count(shown)
        if shown:
            expect(item).to_contain_text("The service tries again.")
            expect(item).to_contain_text("wait.")
        user.close()


def a_full_repository_is_not_in_order(browser, api):
    folder = pathlib.Path(GIVEN["repository"])
    user = User(browser, GIVEN, "admin")
    page = user.enter()
    badge = page.locator(".repositories .badge")
    expect(badge).to_have_text("In order")
    filler = folder / "filler"
    # Below the 10% of the warning, then below the 5% of the policy.
    for percent, text in ((7, "Almost full"), (3, "Too little space")):
        with open(filler, "ab") as file:
            space = os.statvfs(folder)
            more = (space.f_bavail - space.f_blocks * percent // 100) * space.f_frsize
            os.posix_fallocate(file.fileno(), file.tell(), more)
        user.go("#/vms")
        user.settled()
        user.go("#/")
        expect(badge).to_have_text(text)
    user.picture("full")
    filler.unlink()
    user.close()
