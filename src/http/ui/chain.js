// The snapshots of a VM as a timeline, and their sizes.

import { get, path } from "./api.js";
import { deleteSnapshot, endLease, takeLease } from "./actions.js";
import { address, h, name } from "./dom.js";
import { bytes, count, exactBytes, relative, time } from "./format.js";
import { ago, badge, facts, meter, moment, table } from "./parts.js";
import { may, mayDelete, sumsOf } from "./rights.js";

// How many snapshots are measured without being asked: each needs the maps of two snapshots.
export const MEASURED_AT_ONCE = 30;

export function newFigures() {
  return { data: new Map(), increments: new Map(), exclusive: new Map() };
}

// Those that can be compared with the one before, newest first.
export function comparable(snapshots) {
  const both = (at) => at > 0 && may(snapshots[at], "read") && may(snapshots[at - 1], "read");
  return snapshots
    .map((snapshot, at) => ({ id: snapshot.id, base: snapshots[at - 1]?.id, can: both(at) }))
    .filter(({ can }) => can)
    .reverse();
}

// Reads the sizes of the newest `most` increments, one request after the other, and calls `changed` after each answer.
// Sizes are those of the file system's maps: contents are not compared, which would read the disks.
export async function measure(vm, snapshots, most, figures, signal, changed) {
  const route = path("vms", vm, "snapshots");
  const failed = (error) => {
    if (error.name === "AbortError" || error.status === 401) throw error;
    return { error };
  };
  if (!figures.data.size) {
    const sums = await sumsOf(vm, snapshots, signal).catch(failed);
    if (!sums.error) sums.forEach((snapshot) => figures.data.set(snapshot.id, dataOf(snapshot)));
    changed();
  }
  for (const { id, base } of comparable(snapshots).slice(0, most)) {
    if (figures.increments.has(id)) continue;
    const query = new URLSearchParams({ compareTo: base, summary: true, refine: 0, definition: false });
    const compared = await get(`${route}/${id}?${query}`, signal).catch(failed);
    figures.increments.set(id, compared.error ? compared : incrementOf(compared));
    changed();
  }
  if (!figures.exclusive.size) {
    const { snapshots: costs } = await get(`/status?cost=true&vm=${encodeURIComponent(vm)}`, signal).catch(failed);
    (costs ?? []).forEach((cost) => figures.exclusive.set(cost.id, cost));
    changed();
  }
}

function dataOf(snapshot) {
  return {
    disks: snapshot.disks,
    data: snapshot.disks.reduce((sum, disk) => sum + (disk.data_bytes ?? 0), 0),
    known: snapshot.disks.every((disk) => disk.data_bytes !== undefined),
  };
}

function incrementOf({ disks }) {
  const sum = (key) => disks.reduce((total, disk) => total + (disk[key] ?? 0), 0);
  return {
    data: sum("data_bytes"),
    zero: sum("zero_bytes"),
    full: disks.filter((disk) => disk.mode === "full").map((disk) => disk.name),
  };
}

const CONSISTENCY = {
  crash: ["Crash-consistent", "as after a power cut: the guest recovers when it starts from it"],
  quiesced: ["Quiesced", "the guest had written everything, and waited, when it was made"],
};

// The list, newest first. `context` has the VM's name, the user and the limits, and `done`.
export function chain(snapshots, figures, context) {
  const largest = Math.max(1, ...[...figures.increments.values()].map((increment) => increment.data ?? 0));
  const items = snapshots.map((snapshot, at) => entry(snapshot, snapshots[at - 1], figures, largest, context));
  return h("ol", { class: "chain", reversed: true }, items.reverse());
}

function entry(snapshot, before, figures, largest, context) {
  const lost = snapshot.disks.filter((disk) => disk.status === "error");
  const [consistency, meaning] = CONSISTENCY[snapshot.consistency] ?? [snapshot.consistency];
  return h(
    "li",
    { "data-id": snapshot.id },
    h(
      "div",
      { class: "row" },
      h("h3", {}, moment(snapshot.created_at)),
      h("span", { class: "fine" }, ago(snapshot.created_at)),
      badge(snapshot.consistency === "quiesced" ? "good" : "plain", consistency, meaning),
      lost.length ? badge("bad", "Damaged") : null,
      snapshot.leased_until ? badge("accent", `Leased, ends ${relative(snapshot.leased_until)}`) : null,
      snapshot.expires_at ? badge("plain", `Expires ${relative(snapshot.expires_at)}`) : null,
    ),
    h(
      "p",
      { class: "fine" },
      "by ",
      name(snapshot.created_by),
      snapshot.description ? [" · ", name(snapshot.description)] : null,
      Object.entries(snapshot.labels ?? {}).map(([key, value]) => [
        " · ",
        h("span", { class: "label-text" }, name(value ? `${key}=${value}` : key)),
      ]),
    ),
    lost.map((disk) => h("p", { class: "reason" }, name(disk.name), ": ", disk.status_reason)),
    size(snapshot, before, figures, largest),
    h(
      "ul",
      { class: "disk-links" },
      snapshot.disks.map((disk) => diskLinks(snapshot, before, disk)),
    ),
    more(snapshot, context),
  );
}

function size(snapshot, before, { data, increments, exclusive }, largest) {
  const whole = data.get(snapshot.id);
  const increment = increments.get(snapshot.id);
  const cost = exclusive.get(snapshot.id);
  const lines = [];
  if (!before && whole) lines.push(h("span", {}, "The oldest snapshot: there is none to compare it with"));
  if (increment?.error)
    lines.push(
      h("span", { class: "reason" }, `Increment unknown: ${increment.error.message} (${increment.error.code})`),
    );
  else if (increment) {
    lines.push(
      meter(increment.data, largest),
      h("strong", { class: "increment", title: exactBytes(increment.data) }, bytes(increment.data)),
      " changed",
    );
    if (increment.zero) lines.push(`, ${bytes(increment.zero)} became zeros`);
    if (increment.full.length)
      lines.push(h("span", { class: "reason" }, `Without a base, so counted in full: ${increment.full.join(", ")}`));
  }
  const rest = [];
  if (whole) rest.push(whole.known ? `${bytes(whole.data)} of data` : "data unknown");
  if (cost)
    rest.push(
      cost.exclusive_bytes === null ? `cost unknown: ${cost.reason}` : `deletion frees ${bytes(cost.exclusive_bytes)}`,
    );
  return lines.length || rest.length
    ? h("div", { class: "sizes" }, h("div", {}, lines), h("div", { class: "fine" }, rest.join(" · ")))
    : null;
}

function diskLinks(snapshot, before, disk) {
  const map = address("vms", snapshot.vm_id, snapshot.id, disk.name);
  const had = before && may(before, "read") && before.disks.some((other) => other.name === disk.name);
  return h(
    "li",
    {},
    h("span", { class: "disk-name" }, name(disk.name)),
    h("span", { class: "fine" }, bytes(disk.size)),
    may(snapshot, "read") && disk.status !== "error"
      ? [
          h("a", { href: map, "aria-label": `Map of ${disk.name} at ${time(snapshot.created_at)}` }, "Map"),
          had
            ? h(
                "a",
                {
                  href: `${map}?since=${before.id}`,
                  "aria-label": `Changes of ${disk.name} up to ${time(snapshot.created_at)}`,
                },
                "Changes",
              )
            : null,
        ]
      : null,
  );
}

function more(snapshot, context) {
  const { vm, rights, done } = context;
  const at = time(snapshot.created_at);
  const button = (key, text, click, kind = "") =>
    h(
      "button",
      {
        type: "button",
        class: `quiet ${kind}`,
        "data-key": `${key}-${snapshot.id}`,
        "aria-label": `${text}: snapshot of ${at}`,
        on: { click },
      },
      text,
    );
  const buttons = [
    may(snapshot, "read")
      ? button("lease", "Keep longer (lease)", () =>
          takeLease(vm, snapshot, rights, (lease) => done(`The lease lasts until ${time(lease.expires_at)}.`)),
        )
      : null,
    may(snapshot, "read") && snapshot.leased_until
      ? button("end", "End the lease", () => endLease(vm, snapshot, () => done("Your lease has ended.")))
      : null,
    mayDelete(snapshot, rights.user)
      ? button(
          "delete",
          "Delete",
          () => deleteSnapshot(vm, snapshot, () => done(`The snapshot of ${at} is deleted.`)),
          "red",
        )
      : null,
  ];
  const details = h(
    "details",
    { "data-details": snapshot.id },
    h("summary", { "data-key": `details-${snapshot.id}`, "aria-label": `Details of the snapshot of ${at}` }, "Details"),
    facts([
      ["Id", h("code", {}, snapshot.id)],
      [
        "Consistency",
        [
          CONSISTENCY[snapshot.consistency]?.join(", ") ?? snapshot.consistency,
          snapshot.consistency_reason ? h("p", { class: "fine" }, snapshot.consistency_reason) : null,
        ],
      ],
      ["Freeze", snapshot.freeze_ms === undefined ? null : `at most ${count(snapshot.freeze_ms, "millisecond")}`],
      ["Expires", snapshot.expires_at ? moment(snapshot.expires_at) : "never"],
      ["Lease", snapshot.leased_until ? ["until ", moment(snapshot.leased_until)] : "none"],
    ]),
    snapshot.hooks.length ? table("Hooks", HOOKS, snapshot.hooks) : null,
  );
  return h("div", { class: "more" }, details, h("div", { class: "buttons" }, buttons));
}

const HOOKS = [
  { title: "Hook", lead: true, cell: (run) => name(run.name) },
  { title: "Stage", cell: (run) => run.stage },
  {
    title: "Outcome",
    cell: (run) => [
      badge(run.outcome === "ok" ? "good" : run.outcome === "skipped" ? "plain" : "bad", run.outcome),
      run.detail ? h("p", { class: "fine" }, name(run.detail)) : null,
    ],
  },
  { title: "Time", numeric: true, cell: (run) => `${run.duration_ms} ms` },
];
