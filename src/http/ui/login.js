// The log-in.

import { logIn, logOut } from "./api.js";
import { h, replace } from "./dom.js";
import { problem } from "./parts.js";

// Shows the form. `message` says why the last log-in has ended.
export function showLogIn(container, message, done) {
  const user = h("input", {
    id: "username",
    name: "username",
    autocomplete: "username",
    required: true,
    autocapitalize: "none",
    spellcheck: "false",
  });
  const password = h("input", {
    id: "password",
    name: "password",
    type: "password",
    autocomplete: "current-password",
    required: true,
  });
  const button = h("button", { class: "primary", type: "submit" }, "Log in");
  const answer = h("div", { class: "answer" });
  if (message) answer.append(h("p", { class: "notice", role: "status" }, message));
  const submit = async (event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      await logIn(user.value, password.value);
      await done();
    } catch (error) {
      // The password may be right, and the user have no role: then the log-in is of no use.
      await logOut().catch(() => {});
      replace(answer, problem(error));
      password.value = "";
      password.focus();
    } finally {
      button.disabled = false;
    }
  };
  const form = h(
    "form",
    { class: "login", method: "post", on: { submit } },
    h("img", { src: "/ui/icon.svg", alt: "", width: 36, height: 36 }),
    h("h1", {}, "Disk exporter"),
    h(
      "p",
      { class: "lead-in" },
      "Log in to ",
      h("strong", {}, location.hostname),
      " with a user of the virtualization manager.",
    ),
    h("label", { for: "username" }, "User name"),
    user,
    h("label", { for: "password" }, "Password"),
    password,
    answer,
    button,
  );
  replace(container, form);
  user.focus();
}
