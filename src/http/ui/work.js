// What runs and waits: downloads, creations, log-ins.

import { get, path } from "./api.js";
import { address, h, name, replace } from "./dom.js";
import { bytes, count, duration, percent } from "./format.js";
import { heading, meter, poll, table } from "./parts.js";

const PAUSE = 5;
const PAUSE_BUSY = 2;

const QUEUES = ["exports", "creates", "log_ins", "cost_requests"];

export function busy(status) {
  return QUEUES.some((queue) => status[queue].running.length + status[queue].waiting.length > 0);
}

export function showWork(page, { signal }) {
  const body = h("div", {}, h("p", { class: "loading", role: "status" }, "Loading…"));
  page.append(heading("Work", "What runs and waits now. This view follows it until it is hidden."), body);
  const names = new Map();
  poll(signal, page, async () => {
    const status = await get("/status", signal);
    await learn(names, status, signal);
    replace(body, showQueues(status, names));
    return busy(status) ? PAUSE_BUSY : PAUSE;
  });
}

// The names of the VMs in the queues. Each is asked for once.
async function learn(names, status, signal) {
  const ids = [...QUEUES.slice(0, 2)]
    .flatMap((queue) => [...status[queue].running, ...status[queue].waiting])
    .flatMap((work) => work.vm_ids ?? [work.vm_id]);
  for (const id of new Set(ids.filter((id) => !names.has(id)))) {
    names.set(id, id);
    const vm = await get(path("vms", id), signal).catch((error) => {
      if (error.name === "AbortError" || error.status === 401) throw error;
    });
    if (vm) names.set(id, vm.friendly_name);
  }
}

function vmLink(id, names) {
  return h("a", { href: address("vms", id) }, name(names.get(id) ?? id));
}

function tagged(queue) {
  return [
    ...queue.running.map((work) => ({ ...work, runs: true })),
    ...queue.waiting.map((work) => ({ ...work, runs: false })),
  ];
}

function state({ runs, seconds }) {
  return `${runs ? "runs" : "waits"} for ${duration(seconds)}`;
}

function progress(work) {
  if (!work.runs) return state(work);
  const left = work.seconds_left === null ? "" : `, ${duration(work.seconds_left)} left`;
  return [
    meter(work.bytes_done, work.bytes_total),
    h(
      "span",
      { class: "figures" },
      `${bytes(work.bytes_done)} of ${bytes(work.bytes_total)} (${percent(work.bytes_done, work.bytes_total)})`,
    ),
    h("span", { class: "fine" }, `${bytes(work.bytes_per_second)}/s${left}`),
  ];
}

// A table for each queue that this user may see. The lists of log-ins and cost requests are empty for others.
export function showQueues(status, names) {
  const { exports, creates, log_ins: logIns, cost_requests: costs } = status;
  const vm = {
    title: "VM",
    lead: true,
    cell: (work) =>
      (work.vm_ids?.length ? work.vm_ids : [work.vm_id]).map((id, at) => [at ? ", " : "", vmLink(id, names)]),
  };
  const user = { title: "User", cell: (work) => name(work.user) };
  const since = { title: "State", cell: state };
  const from = { title: "From", cell: (work) => work.address ?? "unknown" };
  const part = (title, queue, columns, empty) =>
    h(
      "section",
      { class: "panel" },
      h("h2", {}, title),
      h(
        "p",
        { class: "fine" },
        `${count(queue.running.length, "running", "running")}, ${queue.waiting.length} waiting, ${queue.limit} at a time`,
      ),
      table(title, columns, tagged(queue), empty),
    );
  return [
    part(
      "Downloads",
      exports,
      [vm, { title: "Disk", cell: (work) => name(work.disk) }, { title: "Progress", cell: progress }, user, from],
      "No download runs or waits.",
    ),
    part("Snapshots being made", creates, [vm, user, since], "No snapshot is being made."),
    logIns.running.length + logIns.waiting.length
      ? part("Log-ins at the manager", logIns, [{ ...from, lead: true }, since])
      : null,
    costs.running.length ? part("Requests for the cost of snapshots", costs, [{ ...user, lead: true }, since]) : null,
  ];
}
