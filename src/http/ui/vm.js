// A VM: its disks, its snapshots, and how it grew.

import { get, path } from "./api.js";
import { createSnapshot } from "./actions.js";
import { MEASURED_AT_ONCE, chain, comparable, measure, newFigures } from "./chain.js";
import { bars, steps } from "./chart.js";
import { h, name, replace } from "./dom.js";
import { bytes, count, number, time } from "./format.js";
import { heading, load, problem, section, table } from "./parts.js";
import { may, readable } from "./rights.js";
import { devices, fitness, obstacles } from "./vms.js";

const DISKS = [
  {
    title: "Disk",
    lead: true,
    cell: (disk) => [name(disk.name), disk.friendly_name ? h("p", { class: "fine" }, name(disk.friendly_name)) : null],
  },
  { title: "Device", cell: (disk) => disk.device_name },
  { title: "Access", cell: (disk) => ({ r: "read", w: "write", "w!": "write, shared" })[disk.mode] ?? disk.mode },
  { title: "Size", numeric: true, cell: (disk) => bytes(disk.size) },
  {
    title: "In snapshots",
    cell: (disk) =>
      disk.snapshot_compatible
        ? "yes"
        : [
            h("strong", {}, "no"),
            disk.incompatible_reason ? h("p", { class: "reason" }, disk.incompatible_reason) : null,
          ],
  },
];

export function showVm(page, context) {
  const { signal, vm } = context;
  const body = h("div", {});
  page.append(heading("VM"), body);
  const task = () => Promise.all([vmOrGone(vm, signal), get(`${path("vms", vm, "snapshots")}?chunks=false`, signal)]);
  load(body, signal, task, ([found, snapshots]) => render(page, found, snapshots, context));
}

// A VM that is not defined any more may still have snapshots.
async function vmOrGone(vm, signal) {
  try {
    return await get(path("vms", vm), signal);
  } catch (error) {
    if (error.status === 404)
      return { error, name: vm, friendly_name: vm, disks: [], snapshot_compatible: false, gone: true };
    throw error;
  }
}

function render(page, vm, snapshots, context) {
  const { signal, rights, reload, say } = context;
  if (vm.gone && !snapshots.length) throw vm.error;
  replace(page.querySelector("h1"), name(vm.friendly_name || vm.name));
  document.title = `${vm.friendly_name || vm.name} · ${location.hostname}`;
  const done = (text) => {
    say(text);
    reload();
  };
  const without = obstacles(vm);
  const create =
    may(vm, "create") && (vm.snapshot_compatible || without.length)
      ? h(
          "button",
          {
            class: "primary",
            type: "button",
            on: {
              click: () =>
                createSnapshot(vm, rights, (made) => done(`The snapshot of ${time(made.created_at)} is created.`)),
            },
          },
          without.length ? `Create a snapshot without ${devices(without)}` : "Create a snapshot",
        )
      : null;
  const about = h(
    "div",
    { class: "about" },
    h("p", { class: "fine mono" }, vm.name),
    h(
      "div",
      { class: "fitness" },
      vm.gone ? "The repositories do not define this VM any more. Its snapshots are left." : fitness(vm),
    ),
    create,
  );
  const list = h("div", {});
  const growth = h("div", {});
  const figures = newFigures();
  const draw = () => {
    const open = new Set([...list.querySelectorAll("details[open]")].map((details) => details.dataset.details));
    replace(list, chain(snapshots, figures, { vm: vm.friendly_name || vm.name, rights, done }));
    list.querySelectorAll("details").forEach((details) => {
      details.open = open.has(details.dataset.details);
    });
    replace(growth, grown(snapshots, figures));
  };
  draw();
  const status = h("div", { class: "measuring" });
  const hidden = snapshots.length - readable(snapshots).length;
  if (hidden < snapshots.length) follow(status, snapshots, figures, vm.name, signal, draw, MEASURED_AT_ONCE);
  return [
    about,
    section("Disks", vm.snapshot_compatible ? null : remedy(vm), table("Disks", DISKS, vm.disks, "No disk is known.")),
    section(
      count(snapshots.length, "snapshot"),
      snapshots.length ? null : h("p", { class: "empty" }, "This VM has no snapshot."),
      hidden
        ? h("div", { class: "measuring" }, h("p", { class: "fine" }, unread(hidden, snapshots.length)))
        : null,
      status,
      list,
    ),
    growth,
  ];
}

// What to do about disks that cannot be snapshotted.
function remedy(vm) {
  const unfit = vm.disks.filter((disk) => !disk.snapshot_compatible);
  if (!unfit.length || vm.status === "error") return null;
  const [it, names] = unfit.length === 1 ? ["it", "its friendly name"] : ["them", "their friendly names"];
  const lines = [
    `${devices(unfit)} cannot be snapshotted.`,
    obstacles(vm).length && may(vm, "create") ? `Create a snapshot without ${it}.` : null,
    obstacles(vm).length
      ? `To leave ${it} out of every snapshot, let ${names} in the manager start with [NOBAK].`
      : null,
    `To include ${it}, remove the reason that the table shows: a disk must be a file in a repository.`,
  ];
  return h("p", { class: "notice" }, lines.filter(Boolean).join(" "));
}

function unread(hidden, all) {
  const what = hidden === all ? "" : ` of ${count(hidden, "snapshot")}`;
  return `The sizes of increments, and the maps of disks,${what} need the role reader.`;
}

async function follow(status, snapshots, figures, vm, signal, draw, most) {
  replace(status, h("p", { class: "loading", role: "status" }, "Reading the sizes…"));
  try {
    await measure(vm, snapshots, most, figures, signal, draw);
    const left = comparable(snapshots).length - figures.increments.size;
    const next = () => follow(status, snapshots, figures, vm, signal, draw, figures.increments.size + MEASURED_AT_ONCE);
    replace(
      status,
      left > 0
        ? h(
            "button",
            { type: "button", on: { click: next } },
            `Read the sizes of ${number(Math.min(left, MEASURED_AT_ONCE))} older ones`,
          )
        : null,
    );
  } catch (error) {
    if (!signal.aborted) replace(status, problem(error));
  }
}

function grown(snapshots, figures) {
  const known = snapshots.filter((snapshot) => figures.data.get(snapshot.id)?.known);
  const changed = snapshots.filter((snapshot) => figures.increments.get(snapshot.id)?.data !== undefined);
  if (known.length < 2) return null;
  const at = (snapshot) => new Date(snapshot.created_at).getTime();
  return section(
    "Growth",
    h(
      "p",
      { class: "fine" },
      "Only snapshots that still exist count. The sizes come from the maps of the file system, so a block that was written several times between two snapshots counts once.",
    ),
    h(
      "div",
      { class: "charts" },
      steps("Data in the disks at each snapshot", [
        { name: "", points: known.map((snapshot) => [at(snapshot), figures.data.get(snapshot.id).data]) },
      ]),
      changed.length
        ? bars(
            "Changed since the snapshot before",
            changed.map((snapshot) => [at(snapshot), figures.increments.get(snapshot.id).data]),
          )
        : null,
    ),
  );
}
