// How the VMs of the host grew, as far as their snapshots show it.

import { get, path } from "./api.js";
import { spark, steps } from "./chart.js";
import { address, h, name, replace } from "./dom.js";
import { bytes, count, day, number } from "./format.js";
import { heading, load, problem, section, table } from "./parts.js";
import { may, sumsOf } from "./rights.js";

// With more snapshots, their maps are read only on request.
const READ_AT_ONCE = 60;

export function showGrowth(page, { signal, rights }) {
  const body = h("div", {});
  page.append(
    heading(
      "Growth",
      "How much data the disks of each VM had at each of its snapshots. Only snapshots that still exist count: the service keeps no other history.",
    ),
    body,
  );
  if (!may(rights, "read")) {
    body.append(h("p", { class: "empty" }, "The sizes of snapshots need the role reader."));
    return;
  }
  load(
    body,
    signal,
    () => Promise.all([get("/vms", signal), get("/repositories", signal)]),
    ([vms, repositories]) => start(vms, repositories, signal),
  );
}

function start(vms, repositories, signal) {
  const some = vms.filter((vm) => vm.snapshots.length && may(vm, "read"));
  const total = some.reduce((sum, vm) => sum + vm.snapshots.length, 0);
  if (!total) return h("p", { class: "empty" }, "No VM has a snapshot that you may read, so nothing is known yet.");
  const result = h("div", {});
  const read = () => measure(result, some, repositories, signal);
  if (total <= READ_AT_ONCE) {
    read();
    return result;
  }
  const button = h("button", { class: "primary", type: "button", on: { click: read } }, "Read the sizes");
  replace(
    result,
    h("p", {}, `This reads the maps of ${count(total, "snapshot")} of ${count(some.length, "VM")}. `),
    button,
  );
  return result;
}

async function measure(result, vms, repositories, signal) {
  const bar = h("progress", { max: vms.length, value: 0, "aria-label": "VMs that were read" });
  replace(result, h("p", { class: "loading", role: "status" }, "Reading the sizes of the snapshots…"), bar);
  const read = [];
  const failed = [];
  for (const vm of vms) {
    try {
      read.push({ vm, snapshots: (await sums(vm, signal)).filter(isKnown) });
    } catch (error) {
      if (signal.aborted || error.status === 401) return;
      failed.push({ vm, error });
    }
    bar.value = read.length + failed.length;
  }
  const known = read.filter(({ snapshots }) => snapshots.length);
  replace(
    result,
    failed.map(({ vm, error }) =>
      h("div", {}, h("p", {}, "The snapshots of ", name(vm.friendly_name), " could not be read:"), problem(error)),
    ),
    section(
      "Repositories",
      h(
        "p",
        { class: "fine" },
        "The data of the VMs in each repository. Between two snapshots, a VM counts as it was at the earlier one; before its first snapshot, it does not count. Snapshots share blocks with the disks, so this is not the used space.",
      ),
      known.length ? repositoriesChart(known, repositories) : h("p", { class: "empty" }, "No size is known."),
    ),
    section(
      "VMs",
      table(
        "Growth of the VMs",
        COLUMNS,
        known.map(rowOf).sort((a, b) => b.grown - a.grown),
        "No size is known.",
      ),
    ),
  );
}

async function sums(vm, signal) {
  try {
    return await get(`${path("vms", vm.name, "snapshots")}?summary=true`, signal);
  } catch (error) {
    if (error.status !== 403) throw error;
    // The user may not read all of them.
    return sumsOf(vm.name, await get(`${path("vms", vm.name, "snapshots")}?chunks=false`, signal), signal);
  }
}

function isKnown(snapshot) {
  return snapshot.disks.every((disk) => disk.data_bytes !== undefined);
}

function at(snapshot) {
  return new Date(snapshot.created_at).getTime();
}

function dataOf(disks) {
  return disks.reduce((sum, disk) => sum + disk.data_bytes, 0);
}

function rowOf({ vm, snapshots }) {
  const points = snapshots.map((snapshot) => [at(snapshot), dataOf(snapshot.disks)]);
  const [first, last] = [points[0], points.at(-1)];
  const days = (last[0] - first[0]) / 86_400_000;
  return { vm, points, first, last, grown: last[1] - first[1], days };
}

function repositoriesChart(read, repositories) {
  const titles = new Map(repositories.map((repository) => [repository.mount_point, repository.alias || repository.id]));
  const mounts = [
    ...new Set(
      read.flatMap(({ snapshots }) =>
        snapshots.flatMap((snapshot) => snapshot.disks.map((disk) => disk.repo_mountpoint)),
      ),
    ),
  ].sort();
  const series = mounts.map((mount) => {
    const events = read.flatMap(({ vm, snapshots }) =>
      snapshots.map((snapshot) => ({
        vm: vm.name,
        at: at(snapshot),
        data: dataOf(snapshot.disks.filter((disk) => disk.repo_mountpoint === mount)),
      })),
    );
    const latest = new Map();
    let sum = 0;
    const points = events
      .sort((a, b) => a.at - b.at)
      .map((event) => {
        sum += event.data - (latest.get(event.vm) ?? 0);
        latest.set(event.vm, event.data);
        return [event.at, sum];
      });
    return { name: titles.get(mount) ?? mount, points };
  });
  return steps("Data of the VMs at their snapshots", series);
}

function signed(value) {
  return value > 0 ? `+${bytes(value)}` : bytes(value);
}

const COLUMNS = [
  {
    title: "VM",
    lead: true,
    cell: ({ vm }) => h("a", { href: address("vms", vm.name) }, name(vm.friendly_name || vm.name)),
  },
  { title: "Snapshots", numeric: true, cell: ({ points }) => number(points.length) },
  { title: "First", numeric: true, cell: ({ first }) => [bytes(first[1]), h("p", { class: "fine" }, day(first[0]))] },
  { title: "Newest", numeric: true, cell: ({ last }) => [bytes(last[1]), h("p", { class: "fine" }, day(last[0]))] },
  {
    title: "Change",
    numeric: true,
    cell: ({ grown, days, points }) =>
      points.length < 2
        ? "—"
        : [signed(grown), days >= 1 ? h("p", { class: "fine" }, `${signed(Math.round(grown / days))} a day`) : null],
  },
  { title: "Course", cell: ({ points }) => (points.length > 1 ? spark(points) : "one snapshot") },
];
