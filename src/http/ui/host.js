// The host at a glance.

import { get } from "./api.js";
import { attention, spaceOf } from "./attention.js";
import { address, h, name, replace } from "./dom.js";
import { bytes, count, number, percent } from "./format.js";
import { ago, badge, facts, heading, meter, poll, section } from "./parts.js";
import { busy, showQueues } from "./work.js";

const PAUSE = 10;
const PAUSE_BUSY = 3;

export function showHost(page, { signal }) {
  const title = heading(location.hostname);
  const body = h("div", {}, h("p", { class: "loading", role: "status" }, "Loading…"));
  page.append(title, body);
  // These are read once: the status has what changes.
  let known = null;
  poll(signal, page, async () => {
    known ??= await Promise.all([get("/repositories", signal), vmsOrNone(signal)]);
    const [repositories, vms] = known;
    const status = await get("/status", signal);
    replace(body, render(status, repositories, vms));
    return busy(status) ? PAUSE_BUSY : PAUSE;
  });
}

// The list fails if no repository can be read; the status then says why.
async function vmsOrNone(signal) {
  try {
    return await get("/vms", signal);
  } catch (error) {
    if (error.status === 503) return null;
    throw error;
  }
}

function render(status, repositories, vms) {
  const names = new Map((vms ?? []).map((vm) => [vm.name, vm.friendly_name]));
  return [
    attentionPanel(attention(status, vms), names),
    tiles(status, vms),
    section(
      "Repositories",
      h(
        "ul",
        { class: "repositories" },
        status.repositories.map((repository) =>
          repositoryRow(
            repository,
            repositories.find(({ id }) => id === repository.id),
          ),
        ),
      ),
      status.repositories.length ? null : h("p", { class: "empty" }, "The service knows no repository."),
    ),
    busy(status) ? section("Work now", showQueues(status, names)) : null,
    section("Service", service(status)),
  ];
}

function attentionPanel(items, names) {
  if (!items.length) {
    return h(
      "section",
      { class: "panel calm" },
      h("h2", {}, "Nothing needs attention"),
      h("p", {}, "Repositories, database, hooks, webhooks and certificates are in order, as far as this user may see."),
    );
  }
  const line = ({ kind, title, text, vm, link }) =>
    h(
      "li",
      { class: kind },
      title ? h("h3", {}, badge(kind, kind === "bad" ? "Problem" : "Warning"), " ", title) : null,
      h("p", {}, title ? null : [badge(kind, "Warning"), " "], text),
      vm ? h("p", {}, h("a", { href: address("vms", vm) }, "VM ", name(names.get(vm) ?? vm))) : null,
      link ? h("p", {}, h("a", { href: link }, "Show them")) : null,
    );
  return h(
    "section",
    { class: "panel attention" },
    h("h2", {}, `${count(items.length, "thing")} ${items.length === 1 ? "needs" : "need"} attention`),
    h("ul", {}, items.map(line)),
  );
}

function tile(value, title, detail, link) {
  const content = [
    h("span", { class: "figure" }, value),
    h("span", { class: "title" }, title),
    h("span", { class: "detail" }, detail),
  ];
  return h("li", {}, link ? h("a", { class: "tile", href: link }, content) : h("div", { class: "tile" }, content));
}

function tiles(status, vms) {
  const all = (vms ?? []).filter((vm) => !vm.unavailable_repository);
  const fit = all.filter((vm) => vm.snapshot_compatible).length;
  const snapshots = all.reduce((sum, vm) => sum + vm.snapshots.length, 0);
  const queue = ({ running, waiting, limit }) => `${number(waiting.length)} waiting, ${number(limit)} at a time`;
  return h(
    "ul",
    { class: "tiles" },
    tile(
      vms ? number(all.length) : "—",
      "VMs",
      vms ? `${number(fit)} can be snapshotted` : "The list cannot be read",
      "#/vms",
    ),
    tile(
      vms ? number(snapshots) : "—",
      "Snapshots",
      `of ${count(all.filter((vm) => vm.snapshots.length).length, "VM")}`,
      "#/growth",
    ),
    tile(number(status.exports.running.length), "Downloads", queue(status.exports), "#/work"),
    tile(number(status.creates.running.length), "Snapshots being made", queue(status.creates), "#/work"),
  );
}

function repositoryRow(repository, listed) {
  const { total_bytes: total, free_bytes: free, min_free_bytes: least } = repository;
  const known = total !== null && free !== null;
  const used = known ? total - free : 0;
  const space = spaceOf(repository);
  const isOk = repository.status === "ok" && listed?.reflink !== false;
  const state =
    repository.status !== "ok"
      ? badge("bad", "Cannot be used")
      : !isOk
        ? badge("warn", "No snapshots")
        : { short: badge("bad", "Too little space"), low: badge("warn", "Almost full") }[space] ??
          badge("good", "In order");
  const bar = meter(used, total ?? 0, space ? "low" : "");
  if (known && least) {
    const mark = h("span", { class: "mark" });
    mark.style.insetInlineStart = `${(100 * (1 - Math.min(1, least / total))).toFixed(2)}%`;
    bar.append(mark);
  }
  const reason = repository.reason ?? (isOk ? null : listed?.reason);
  return h(
    "li",
    {},
    h("div", { class: "row" }, h("h3", {}, name(repository.alias || repository.id)), state),
    repository.alias ? h("p", { class: "fine mono" }, repository.id) : null,
    known
      ? [
          bar,
          h(
            "p",
            { class: "figures" },
            h("strong", {}, `${bytes(free)} free`),
            ` of ${bytes(total)}, ${percent(used, total)} used`,
            least ? `. Snapshots need ${bytes(least)} free (the mark on the bar).` : "",
          ),
        ]
      : h("p", {}, "Its space is unknown."),
    h(
      "p",
      { class: "fine" },
      [count(repository.snapshots, "snapshot"), listed?.filesystem, repository.mount_point].filter(Boolean).join(" · "),
    ),
    reason ? h("p", { class: "reason" }, reason) : null,
  );
}

function service(status) {
  const { database, tls, confinement, sessions, audit } = status;
  const confined =
    confinement &&
    [
      confinement.capabilities && "capabilities",
      confinement.files && "files",
      confinement.system_calls && "system calls",
    ].filter(Boolean);
  return facts([
    ["Version", status.version],
    [
      "Database",
      database
        ? [database.status === "ok" ? "in order, checked " : "has a problem, checked ", ago(database.checked_at)]
        : null,
    ],
    [
      "Certificates",
      tls
        ? [
            tls.status === "ok" ? "in order" : "have a problem",
            tls.loaded_at ? [", loaded ", ago(tls.loaded_at)] : null,
          ]
        : null,
    ],
    ["Log-ins", sessions ? `${number(sessions.renewable)} open` : null],
    ["Audit", audit ? `line ${number(audit.seq)} is the newest` : null],
    [
      "Confinement",
      confined
        ? [
            confined.length ? `restricted: ${confined.join(", ")}` : "none",
            confinement.problems.map((text) => h("span", { class: "reason" }, text)),
          ]
        : null,
    ],
  ]);
}
