"""Renewals whose answers are lost. The tokens of this service are so short that the page renews before each request."""

import json
import sys

from playwright.sync_api import expect

from browser import User

GIVEN = json.loads(sys.argv[1])
REFRESH = "**/auth/refresh"


class Cut:
    """Cuts off the first renewal, after the service has answered or before it hears of it, and counts all."""

    def __init__(self, user, is_answered):
        self.is_answered, self.count, self.statuses = is_answered, 0, []
        user.page.route(REFRESH, self.handle)
        user.page.on("response", lambda answer: answer.url.endswith("/auth/refresh")
                     and self.statuses.append(answer.status))

    def handle(self, route):
        self.count += 1
        if self.count > 1:
            route.continue_()
            return
        if self.is_answered:
            assert route.fetch().status == 200
        route.abort("connectionreset")


def a_renewal_that_is_cut_off_is_sent_again(browser, api):
    user = User(browser, GIVEN, "test-renewal")
    page = user.enter("#/work")
    user.settled()
    token = user.tokens[-1]
    cut = Cut(user, is_answered=False)
    user.go("#/vms")
    expect(page.get_by_text("3 VMs")).to_be_visible()
    assert cut.count >= 2 and set(cut.statuses) == {200}, (cut.count, cut.statuses)
    assert user.tokens[-1] != token
    expect(page.get_by_role("alert")).to_have_count(0)
    user.close()


def a_renewal_whose_answer_is_lost_ends_the_log_in(browser, api):
    """The service has used the refresh token up. It cannot know that the one who sends it again is the same."""
    user = User(browser, GIVEN, "test-renewal")
    page = user.enter("#/work")
    user.settled()
    token = user.tokens[-1]
    cut = Cut(user, is_answered=True)
    user.go("#/vms")
    expect(page.get_by_text("The log-in has ended. Log in again to go on.")).to_be_visible()
    expect(page.locator("#bar")).to_be_hidden()
    expect(page.get_by_label("User name")).to_be_focused()
    assert (cut.count, cut.statuses) == (2, [401]), (cut.count, cut.statuses)
    assert api.status("GET", "/vms", token) == 401
    # The same address, with another log-in.
    user.log_in()
    expect(page.get_by_text("3 VMs")).to_be_visible()
    user.close()
