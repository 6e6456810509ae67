// The page: log-in, navigation, and which view is shown.

import { certificateUser, get, isByCertificate, logOut, useCertificate, whenEnded } from "./api.js";
import { address, h, name, replace } from "./dom.js";
import { showDisk } from "./disk.js";
import { showGrowth } from "./growth.js";
import { showHost } from "./host.js";
import { showLogIn } from "./login.js";
import { showVm } from "./vm.js";
import { showVms } from "./vms.js";
import { showWork } from "./work.js";

const VIEWS = [
  { path: [], title: "Host", show: showHost },
  { path: ["vms"], title: "VMs", show: showVms },
  { path: ["work"], title: "Work", show: showWork },
  { path: ["growth"], title: "Growth", show: showGrowth },
];

const NEWS_MS = 8000;

const content = document.getElementById("content");
const bar = document.getElementById("bar");
const navigation = document.getElementById("nav");

// The capabilities, with what the user may do at least for some VMs. `null` before the log-in.
let rights = null;
// The user whom the browser's certificate names, or `null`.
let certified = null;
let current = new AbortController();

// The view for the address: its parts, such as `#/vms/<vm>/<snapshot>/<disk>?since=<snapshot>`.
function route() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  let parts = [];
  try {
    parts = path.split("/").filter(Boolean).map(decodeURIComponent);
  } catch {
    // Not an address of this page.
  }
  const parameters = new URLSearchParams(query);
  const [first, vm, snapshot, disk] = parts;
  if (first === "vms" && disk !== undefined)
    return {
      tab: "VMs",
      title: disk,
      show: showDisk,
      parameters: { vm, snapshot, disk, since: parameters.get("since") },
    };
  if (first === "vms" && vm !== undefined) return { tab: "VMs", title: "VM", show: showVm, parameters: { vm } };
  const view = VIEWS.find(({ path: [own] }) => own === first) ?? VIEWS[0];
  return { tab: view.title, title: view.title, show: view.show, parameters: Object.fromEntries(parameters) };
}

// Says what was done, for a while.
let newsTimer = null;
function say(text) {
  const news = document.getElementById("news");
  news.textContent = text;
  clearTimeout(newsTimer);
  newsTimer = setTimeout(() => {
    news.textContent = "";
  }, NEWS_MS);
}

// Ends what the view does, and closes its dialog.
function stop() {
  current.abort();
  current = new AbortController();
  document.querySelectorAll("dialog").forEach((dialog) => dialog.close());
}

function show({ top = true } = {}) {
  stop();
  if (!rights) return;
  const view = route();
  const links = VIEWS.map(({ path, title }) =>
    h("a", { href: address(...path), "aria-current": title === view.tab ? "page" : null }, title),
  );
  replace(navigation, links);
  document.title = `${view.title} · ${location.hostname}`;
  const page = h("div", { class: "page" });
  content.replaceChildren(page);
  const { signal } = current;
  view.show(page, { signal, rights, say, reload: () => show({ top: false }), ...view.parameters });
  if (top) scrollTo(0, 0);
  content.querySelector("h1")?.focus({ preventScroll: true });
}

async function enter() {
  rights = await get("/capabilities");
  document.getElementById("host-name").textContent = location.hostname;
  const how = isByCertificate() ? h("span", { class: "how" }, "by certificate") : null;
  replace(document.getElementById("user"), name(rights.user), how);
  bar.hidden = false;
  show();
}

function enterByCertificate() {
  useCertificate();
  return enter();
}

function leave(message) {
  rights = null;
  bar.hidden = true;
  stop();
  document.title = `Log in · ${location.hostname}`;
  return showLogIn(content, message, enter, certified && { user: certified, enter: enterByCertificate });
}

// A certificate that names a user needs no form.
async function start() {
  certified = await certificateUser().catch(() => null);
  if (!certified) return leave();
  try {
    await enterByCertificate();
  } catch (error) {
    // No rule lets the user see anything.
    await logOut();
    leave().fail(error);
  }
}

whenEnded((wasByCertificate) => {
  if (!wasByCertificate) return leave("The log-in has ended. Log in again to go on.");
  certified = null;
  leave("The service does not accept the certificate of this browser any more. Log in to go on.");
});
document.getElementById("log-out").addEventListener("click", async () => {
  if (isByCertificate()) {
    await logOut();
    return leave("A certificate has no log-in that could end: this browser still shows it. You can log in as another user.");
  }
  // The service ends the log-in; if it cannot be reached, the tokens are forgotten here.
  await logOut().catch(() => {});
  leave("You have logged out.");
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  content.focus();
});
addEventListener("hashchange", () => show());
// A page that is closed cannot renew its log-in any more, so the log-in ends.
addEventListener("pagehide", (event) => {
  if (!event.persisted) logOut({ keepalive: true }).catch(() => {});
});
start();
