// A disk of a snapshot: its map, or what changed since an older snapshot.

import { get, path } from "./api.js";
import { address, h, name, replace } from "./dom.js";
import { bytes, count, exactBytes, number, percent, shortId, time } from "./format.js";
import { DiskMap } from "./map.js";
import { facts, heading, load, problem, table } from "./parts.js";
import { DATA, readRanges } from "./ranges.js";
import { may } from "./rights.js";

const PARTS = 16;
const LISTED = 50;

// What the colours mean, with and without a base.
const WORDS = {
  map: {
    title: "Map",
    data: "Data",
    zero: "Zeros",
    rest: "Zeros",
    restHint: "nothing is stored there: holes, and space that was never written",
    colors: { data: "--map-data", zero: "--map-zero", rest: "--map-rest" },
  },
  changes: {
    title: "Changes",
    data: "Changed",
    zero: "Became zeros",
    rest: "Unchanged",
    restHint: "the same in both snapshots",
    colors: { data: "--map-changed", zero: "--map-zeroed", rest: "--map-rest" },
  },
};

export function showDisk(page, context) {
  const { signal, vm, disk } = context;
  const body = h("div", {});
  page.append(heading(name(disk)), body);
  const task = () => Promise.all([get(`${path("vms", vm, "snapshots")}?chunks=false`, signal), nameOf(vm, signal)]);
  load(body, signal, task, ([snapshots, title]) => render(snapshots, title, context));
}

// A VM that is not defined any more may still have snapshots.
async function nameOf(vm, signal) {
  try {
    return (await get(path("vms", vm), signal)).friendly_name || vm;
  } catch (error) {
    if (error.status === 404 || error.status === 503) return vm;
    throw error;
  }
}

function render(snapshots, vmName, context) {
  const { vm, snapshot: id, disk, since, rights, signal } = context;
  const snapshot = snapshots.find((other) => other.id === id);
  if (!snapshot) throw new Error("There is no such snapshot any more.");
  const older = snapshots
    .slice(0, snapshots.indexOf(snapshot))
    .filter((other) => may(other, "read") && other.disks.some((its) => its.name === disk));
  const base = older.find((other) => other.id === since) ?? null;
  const words = base ? WORDS.changes : WORDS.map;
  const progress = h("div", { class: "measuring" });
  const view = h("div", {});
  const content = [
    h(
      "nav",
      { class: "crumbs", "aria-label": "Path" },
      h("a", { href: address("vms") }, "VMs"),
      " / ",
      h("a", { href: address("vms", vm) }, name(vmName)),
    ),
    choices(snapshots, snapshot, older, base, context),
    progress,
    view,
  ];
  let shown = null;
  const update = (ranges) => {
    shown ??= mapView(view, words, snapshot, base, disk, signal);
    shown.setRanges(ranges);
    const read = ranges.readTo < ranges.size && !ranges.isCut;
    replace(
      progress,
      read
        ? [
            h("p", { class: "loading", role: "status" }, `Reading the ranges: ${percent(ranges.readTo, ranges.size)}`),
            h("progress", { max: ranges.size, value: ranges.readTo, "aria-label": "Part of the disk that was read" }),
          ]
        : null,
      ranges.isCut
        ? h(
            "p",
            { class: "notice warn", role: "status" },
            `The disk has more ranges than this page can keep. It shows the first ${number(ranges.count)}, up to ${bytes(ranges.readTo)}.`,
          )
        : null,
      base && ranges.mode === "full"
        ? h(
            "p",
            { class: "notice warn", role: "status" },
            `These snapshots cannot be compared, so the whole disk counts as changed: ${ranges.reason}`,
          )
        : null,
    );
  };
  replace(progress, h("p", { class: "loading", role: "status" }, "Reading the ranges…"));
  readRanges({ vm, snapshot: id, disk, base: base?.id }, rights.limits.chunks_per_page, signal, update).catch(
    (error) => {
      if (!signal.aborted) replace(progress, problem(error));
    },
  );
  return content;
}

// The times of the snapshots, with ids if several are of one second.
function titled(snapshots) {
  const times = snapshots.map((snapshot) => time(snapshot.created_at));
  const isUnique = (title) => times.filter((other) => other === title).length === 1;
  return new Map(
    snapshots.map((snapshot, at) => [
      snapshot,
      isUnique(times[at]) ? times[at] : `${times[at]} · ${shortId(snapshot.id)}`,
    ]),
  );
}

function choices(snapshots, snapshot, older, base, { vm, disk }) {
  const hasDisk = (other) => other.disks.some((its) => its.name === disk && its.status !== "error");
  const others = snapshots.filter((other) => hasDisk(other) && (other === snapshot || may(other, "read")));
  const titles = titled(snapshots);
  const to = h(
    "select",
    { id: "to" },
    others.map((other) => h("option", { value: other.id, selected: other === snapshot }, titles.get(other))).reverse(),
  );
  const from = h(
    "select",
    { id: "from" },
    h("option", { value: "" }, "nothing: show the map"),
    older.map((other) => h("option", { value: other.id, selected: other === base }, titles.get(other))).reverse(),
  );
  const go = () => {
    const since =
      from.value &&
      snapshots.findIndex(({ id }) => id === from.value) < snapshots.findIndex(({ id }) => id === to.value)
        ? `?since=${from.value}`
        : "";
    location.hash = address("vms", vm, to.value, disk) + since;
  };
  to.addEventListener("change", go);
  from.addEventListener("change", go);
  return h(
    "div",
    { class: "filters" },
    h("div", { class: "field" }, h("label", { for: "to" }, "Snapshot"), to),
    h("div", { class: "field" }, h("label", { for: "from" }, "Compare with"), from),
  );
}

function mapView(view, words, snapshot, base, disk, signal) {
  const summary = h("p", { class: "in-view", role: "status" });
  const numbers = h("div", { class: "panel" });
  const tables = h("div", {});
  const title = base
    ? `Changes from ${time(base.created_at)} to ${time(snapshot.created_at)}`
    : `Map at ${time(snapshot.created_at)}`;
  let timer = null;
  const changed = () => {
    clearTimeout(timer);
    timer = setTimeout(() => describe(map, words, summary, tables), 120);
  };
  const map = new DiskMap({
    label: `${title}, ${disk}. The tables below have the numbers.`,
    colors: words.colors,
    changed,
    signal,
  });
  const button = (text, label, click) => h("button", { type: "button", "aria-label": label, on: { click } }, text);
  const tools = h(
    "div",
    { class: "tools", role: "group", "aria-label": "Zoom and move" },
    button("−", "Zoom out", () => map.zoom(2)),
    button("+", "Zoom in", () => map.zoom(0.5)),
    button("◀", "Move to lower offsets", () => map.pan(-map.span() / 2)),
    button("▶", "Move to higher offsets", () => map.pan(map.span() / 2)),
    button("Whole disk", null, () => map.whole()),
  );
  const key = (kind, text) => h("li", {}, h("span", { class: `key ${base ? "change" : "content"}-${kind}` }), text);
  const legend = h(
    "ul",
    { class: "legend" },
    key("data", words.data),
    base ? key("zero", words.zero) : null,
    key("rest", `${words.rest}: ${words.restHint}`),
  );
  replace(
    view,
    h(
      "section",
      { class: "panel" },
      h("h2", {}, title),
      h("div", { class: "map-head" }, legend, tools),
      map.element,
      summary,
      h(
        "p",
        { class: "fine" },
        "Drag to move. Click the map, then turn the wheel or press + and − to zoom. The height of a column is the share of its bytes.",
      ),
    ),
    h("div", { class: "map-numbers" }, numbers),
    tables,
  );
  return {
    setRanges(ranges) {
      replace(numbers, totals(ranges, words, base));
      map.setRanges(ranges);
    },
  };
}

function totals(ranges, words, base) {
  const [data, zero] = ranges.sums;
  const share = (value) => `${exactBytes(value)}, ${percent(value, ranges.size)}`;
  return [
    h("h2", {}, "The whole disk"),
    facts([
      ["Size", exactBytes(ranges.size)],
      [words.data, h("span", { "data-bytes": data }, share(data))],
      base ? [words.zero, h("span", { "data-bytes": zero }, share(zero))] : ["", null],
      [words.rest, share(ranges.size - data - zero)],
      ["Ranges", number(ranges.count)],
    ]),
  ];
}

function describe(map, words, summary, tables) {
  if (!map.ranges) return;
  const { from, to } = map;
  const { data, zero, count: found } = map.numbers(from, to);
  summary.textContent = `In view: ${bytes(from)} to ${bytes(to)} (${bytes(to - from)}). ${words.data}: ${bytes(data)}, ${percent(data, to - from)}${zero ? `. ${words.zero}: ${bytes(zero)}` : ""}. ${count(found, "range")}.`;
  const parts = Array.from({ length: PARTS }, (_, at) => {
    const [start, end] = [from + ((to - from) * at) / PARTS, from + ((to - from) * (at + 1)) / PARTS];
    return { start, end, ...map.numbers(start, end) };
  });
  const offset = { title: "Offset", lead: true, cell: ({ start }) => exactBytes(Math.round(start)) };
  const columns = [
    offset,
    {
      title: words.data,
      numeric: true,
      cell: (part) => `${bytes(Math.round(part.data))} (${percent(part.data, part.end - part.start)})`,
    },
    words === WORDS.changes ? { title: words.zero, numeric: true, cell: (part) => bytes(Math.round(part.zero)) } : null,
    { title: words.rest, numeric: true, cell: (part) => bytes(Math.round(part.rest)) },
    { title: "Ranges", numeric: true, cell: (part) => number(part.count) },
  ].filter(Boolean);
  const listed = map.ranges.first(from, to, LISTED);
  const open = new Set([...tables.querySelectorAll("details[open]")].map((details) => details.dataset.details));
  const details = (key, title, content) =>
    h(
      "details",
      { class: "panel", "data-details": key, open: open.has(key) },
      h("summary", { "data-key": key }, title),
      content,
    );
  replace(
    tables,
    details("parts", `The view in ${PARTS} equal parts`, table("The view in equal parts", columns, parts)),
    details(
      "ranges",
      found > LISTED ? `The first ${LISTED} of ${number(found)} ranges in view` : `${count(found, "range")} in view`,
      table(
        "Ranges in view",
        [
          offset,
          { title: "Length", numeric: true, cell: ({ length }) => exactBytes(length) },
          { title: "Kind", cell: ({ kind }) => (kind === DATA ? words.data : words.zero) },
          {
            title: "Zoom",
            cell: ({ start, length }) =>
              h(
                "button",
                {
                  class: "quiet",
                  type: "button",
                  "data-key": `zoom-${start}`,
                  "aria-label": `Show the range at ${bytes(start)}`,
                  on: { click: () => map.show(start - length, start + 2 * length) },
                },
                "Show",
              ),
          },
        ],
        listed,
        "Nothing is in view.",
      ),
    ),
  );
}
