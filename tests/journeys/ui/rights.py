"""What the page offers to users with roles for some VMs, or for snapshots with certain labels."""

import json
import sys

from playwright.sync_api import expect

from browser import User

GIVEN = json.loads(sys.argv[1])


class Watched(User):
    """A user of whom nothing is refused: the page offers only what the user may do."""

    def __init__(self, browser, name):
        super().__init__(browser, GIVEN, name)
        self.refused = []
        self.page.on("response", lambda answer: answer.status == 403 and self.refused.append(answer.url))

    def close(self):
        assert not self.refused, self.refused
        super().close()


def make_and_delete(user, labels=""):
    """Creates a snapshot, takes a lease on it, and deletes it."""
    page = user.page
    items = page.locator(".chain > li")
    before = items.count()
    page.get_by_role("button", name="Create a snapshot").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Labels").fill(labels)
    user.accessible("the dialog for a snapshot")
    user.picture("create")
    dialog.get_by_role("button", name="Create the snapshot").click()
    expect(items).to_have_count(before + 1)
    user.settled()
    newest = items.first
    newest.get_by_role("button", name="Keep longer").click()
    dialog.get_by_role("button", name="Take the lease").click()
    expect(newest.locator(".row")).to_contain_text("Leased")
    user.settled()
    newest.get_by_role("button", name="Delete").click()
    dialog.get_by_role("button", name="Delete the snapshot").click()
    expect(items).to_have_count(before)


def roles_for_some_vms_limit_what_is_offered(browser, api):
    user = Watched(browser, "test-one-vm")
    page = user.enter(f"#/vms/{GIVEN['vm']}")
    expect(page.locator(".chain > li")).to_have_count(3)
    expect(page.get_by_text("The sizes of increments, and the maps of disks, need the role reader.")).to_be_visible()
    expect(page.locator("main button")).to_have_count(0)
    expect(page.get_by_role("link", name="Map of")).to_have_count(0)
    user.go(f"#/vms/{GIVEN['other_vm']}")
    expect(page.get_by_text("This VM has no snapshot.")).to_be_visible()
    make_and_delete(user)
    # Growth leaves out the VM whose snapshots the user may not read.
    user.go("#/growth")
    expect(page.get_by_text("No VM has a snapshot that you may read")).to_be_visible()
    user.close()


def roles_for_some_labels_limit_what_is_offered(browser, api):
    user = Watched(browser, "test-nightly")
    page = user.enter(f"#/vms/{GIVEN['vm']}")
    items = page.locator(".chain > li")
    expect(items).to_have_count(3)
    user.settled()
    expect(page.get_by_text("the maps of disks, of 2 snapshots need the role reader.")).to_be_visible()
    for number, offered in enumerate((0, 0, 1)):
        for role, name in (("button", "Keep longer"), ("link", "Map of system.img")):
            expect(items.nth(number).get_by_role(role, name=name)).to_have_count(offered)
        expect(items.nth(number).get_by_role("button", name="Delete")).to_have_count(0)
    expect(items.last).to_contain_text("of data")
    user.picture("labels")
    make_and_delete(user, "job=nightly, kind=test")
    user.go(f"#/vms/{GIVEN['vm']}/{GIVEN['snapshots'][0]}/system.img")
    expect(page.locator(".map-numbers [data-bytes]")).to_be_visible()
    expect(page.get_by_label("Snapshot").locator("option")).to_have_count(1)
    user.close()
