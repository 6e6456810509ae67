// The VMs of the host.

import { get } from "./api.js";
import { address, h, name, replace } from "./dom.js";
import { bytes, count, number } from "./format.js";
import { badge, heading, load, table } from "./parts.js";

const CHOICES = {
  all: ["All VMs", () => true],
  fit: ["Can be snapshotted", (vm) => vm.snapshot_compatible],
  unfit: ["Cannot be snapshotted", (vm) => !vm.snapshot_compatible],
  some: ["With snapshots", (vm) => vm.snapshots.length > 0],
  none: ["Without snapshots", (vm) => vm.snapshots.length === 0 && !vm.unavailable_repository],
};

export function showVms(page, { signal, show }) {
  const body = h("div", {});
  page.append(heading("VMs"), body);
  load(
    body,
    signal,
    () => get("/vms", signal),
    (vms) => list(vms, show in CHOICES ? show : "all"),
  );
}

function list(vms, chosen) {
  const text = h("input", {
    id: "filter",
    type: "search",
    placeholder: "Name, id or disk",
    autocomplete: "off",
    spellcheck: "false",
  });
  const choice = h(
    "select",
    { id: "choice" },
    Object.entries(CHOICES).map(([key, [title]]) => h("option", { value: key, selected: key === chosen }, title)),
  );
  const found = h("p", { class: "found", role: "status" });
  const rows = h("div", { class: "panel flush" });
  const update = () => {
    const words = text.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const [, fits] = CHOICES[choice.value];
    const shown = vms.filter((vm) => fits(vm) && words.every((word) => searched(vm).includes(word)));
    shown.sort((a, b) => title(a).localeCompare(title(b), "en", { numeric: true }));
    found.textContent =
      shown.length === vms.length ? count(vms.length, "VM") : `${number(shown.length)} of ${count(vms.length, "VM")}`;
    replace(
      rows,
      table(
        "VMs",
        COLUMNS,
        shown,
        vms.length ? "No VM has this text and this state." : "The repositories define no VM.",
      ),
    );
  };
  text.addEventListener("input", update);
  choice.addEventListener("change", update);
  update();
  return [
    h(
      "div",
      { class: "filters" },
      h("div", { class: "field" }, h("label", { for: "filter" }, "Filter"), text),
      h("div", { class: "field" }, h("label", { for: "choice" }, "Show"), choice),
      found,
    ),
    rows,
  ];
}

function title(vm) {
  return vm.friendly_name || vm.name;
}

function searched(vm) {
  return [vm.friendly_name, vm.name, vm.uuid, ...vm.disks.flatMap((disk) => [disk.name, disk.friendly_name ?? ""])]
    .join("\n")
    .toLowerCase();
}

// The disks that a snapshot must leave out, if it is possible without them; else none.
export function obstacles(vm) {
  const unfit = vm.disks.filter((disk) => !disk.snapshot_compatible);
  // An error can pass: then no disk needs to be left out.
  const helps = !vm.snapshot_compatible && vm.status !== "error" && unfit.length < vm.disks.length;
  return helps ? unfit : [];
}

// How the API and people tell the disks of a VM apart.
export function deviceOf(disk) {
  return disk.device_name || disk.name;
}

export function devices(disks) {
  return disks.map(deviceOf).join(", ");
}

// Whether a snapshot is possible, and if not, why. Disks that are left out have reasons of their own.
export function fitness(vm) {
  const reasons = vm.disks
    .filter((disk) => disk.incompatible_reason)
    .map((disk) => h("li", {}, name(disk.name), ": ", disk.incompatible_reason));
  if (vm.snapshot_compatible) {
    return reasons.length
      ? [badge("good", "Can be snapshotted"), h("p", { class: "fine" }, `without ${count(reasons.length, "disk")}`)]
      : badge("good", "Can be snapshotted");
  }
  // The reason of the VM often is that of one disk.
  const repeated = vm.disks.some((disk) => disk.incompatible_reason && vm.reason?.includes(disk.incompatible_reason));
  return [
    badge(vm.status === "error" ? "bad" : "warn", "Cannot be snapshotted"),
    vm.reason ? h("p", { class: "reason" }, vm.reason) : null,
    reasons.length && !(repeated && reasons.length === 1) ? h("ul", { class: "reasons" }, reasons) : null,
    obstacles(vm).length ? h("p", { class: "fine" }, `A snapshot without ${devices(obstacles(vm))} is possible.`) : null,
  ];
}

const COLUMNS = [
  {
    title: "VM",
    lead: true,
    cell: (vm) =>
      vm.unavailable_repository || vm.name === "ovs-agent"
        ? [h("strong", {}, "VMs of an unavailable repository"), h("p", { class: "fine mono" }, vm.name)]
        : [
            h("a", { class: "name", href: address("vms", vm.name) }, name(title(vm))),
            h("p", { class: "fine mono" }, vm.name),
          ],
  },
  {
    title: "Disks",
    numeric: true,
    cell: (vm) => {
      const sizes = vm.disks.map((disk) => disk.size).filter((size) => size !== undefined);
      return [
        number(vm.disks.length),
        sizes.length ? h("p", { class: "fine" }, bytes(sizes.reduce((sum, size) => sum + size, 0))) : null,
      ];
    },
  },
  {
    title: "Snapshots",
    numeric: true,
    cell: (vm) => [number(vm.snapshots.length), vm.snapshots_incomplete ? h("p", { class: "fine" }, "or more") : null],
  },
  { title: "State", cell: fitness },
];
