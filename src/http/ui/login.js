// The log-in.

import { logIn, logOut } from "./api.js";
import { h, name, replace } from "./dom.js";
import { problem } from "./parts.js";

// A wrong password needs no code and no id of the request.
function refusal({ message }) {
  const text = `${message[0].toUpperCase()}${message.slice(1).replace(/\.$/, "")}.`;
  return h("div", { class: "notice bad", role: "alert" }, h("p", {}, text));
}

// Shows the form. `message` says why the last log-in has ended. `certificate` has the user whom the browser's certificate
// names, and how to enter as that user. Returns how to show an error.
export function showLogIn(container, message, done, certificate) {
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
  const fail = (error) => replace(answer, problem(error));
  const attempt = async (work, show, refused) => {
    button.disabled = goOn.disabled = true;
    try {
      await work();
    } catch (error) {
      // The user may have no role: then the log-in is of no use.
      await logOut().catch(() => {});
      show(error);
      button.disabled = goOn.disabled = false;
      refused();
    }
  };
  const submit = (event) => {
    event.preventDefault();
    const work = async () => {
      await logIn(user.value, password.value);
      await done();
    };
    const show = (error) => (error.status === 401 ? replace(answer, refusal(error)) : fail(error));
    attempt(work, show, () => {
      password.value = "";
      password.focus();
    });
  };
  const goOn = h(
    "button",
    { type: "button", on: { click: () => attempt(certificate.enter, fail, () => goOn.focus()) } },
    "Go on as ",
    name(certificate?.user ?? ""),
  );
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
    h("p", { class: "fine" }, "Reloading or closing the page ends the log-in."),
    certificate ? [h("p", { class: "fine" }, "Or use the certificate of this browser, without a password:"), goOn] : null,
  );
  replace(container, form);
  user.focus();
  return { fail };
}
