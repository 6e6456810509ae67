// Charts over time, as SVG, each with its numbers as a table.

import { h, name, svg } from "./dom.js";
import { bytes, day, minute, time } from "./format.js";
import { table } from "./parts.js";

const HEIGHT = 190;
const LEFT = 64;
const RIGHT = 10;
const TOP = 10;
const BOTTOM = 26;
// Between the axis and the first point, so that half a bar has room.
const INSET = 8;

// In CSS pixels, so that the text has its size also on a telephone.
function widthNow() {
  return matchMedia("(max-width: 700px)").matches ? 300 : 520;
}

// A round step in bytes, so that about four lines are drawn.
function niceStep(most) {
  let step = 1;
  while (most / step > 4) step *= 2;
  return step;
}

function frame(points, most) {
  const width = widthNow();
  const times = points.map(([at]) => at);
  const [first, last] = [Math.min(...times), Math.max(...times)];
  const span = last - first || 1;
  const step = niceStep(most);
  const top = Math.max(step, Math.ceil(most / step) * step);
  const x = (at) => LEFT + INSET + ((at - first) / span) * (width - LEFT - RIGHT - 2 * INSET);
  const y = (value) => TOP + (1 - value / top) * (HEIGHT - TOP - BOTTOM);
  const lines = [];
  for (let value = 0; value <= top; value += step) {
    lines.push(
      svg("line", { class: value ? "grid" : "axis", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }),
      svg("text", { class: "tick", x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, bytes(value)),
    );
  }
  // Days, or the time too if there are few.
  const short = span < 48 * 3_600_000 ? minute : day;
  const label = (at, anchor) =>
    svg(
      "text",
      { class: "tick", x: anchor === "end" ? width - RIGHT : LEFT, y: HEIGHT - 6, "text-anchor": anchor },
      short(at),
    );
  return { x, y, width, parts: [...lines, label(first, "start"), first === last ? null : label(last, "end")] };
}

function figure(title, { width, parts }, drawn, rows, legend) {
  const columns = [
    { title: "Time", lead: true, cell: ([at]) => time(at) },
    ...(legend ? [{ title: "Of", cell: ([, , of]) => name(of) }] : []),
    { title: "Size", numeric: true, cell: ([, value]) => bytes(value) },
  ];
  return h(
    "figure",
    { class: "chart" },
    h("figcaption", {}, title),
    legend,
    svg(
      "svg",
      { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": `${title}. The table below has the numbers.` },
      parts,
      drawn,
    ),
    h("details", {}, h("summary", {}, "The numbers"), table(title, columns, rows)),
  );
}

// A bar at each of `points`, which are pairs of milliseconds and bytes.
export function bars(title, points) {
  const axes = frame(points, Math.max(1, ...points.map(([, value]) => value)));
  const { x, y } = axes;
  const drawn = points.map(([at, value]) => {
    const height = value ? Math.max(1.5, y(0) - y(value)) : 0;
    return svg(
      "rect",
      { class: "bar-fill", x: x(at) - 4, y: y(0) - height, width: 8, height },
      svg("title", {}, `${time(at)}: ${bytes(value)}`),
    );
  });
  return figure(title, axes, drawn, points);
}

// Lines of steps: a value lasts until the next one. `series` have a `name` and `points`.
export function steps(title, series) {
  const all = series.flatMap(({ points }) => points);
  const axes = frame(all, Math.max(1, ...all.map(([, value]) => value)));
  const { x, y } = axes;
  const drawn = series.map(({ points }, at) => {
    const line = points
      .map(([when, value], index) => (index ? `H${x(when)}V${y(value)}` : `M${x(when)} ${y(value)}`))
      .join("");
    const dots =
      points.length > 60
        ? []
        : points.map(([when, value]) =>
            svg(
              "circle",
              { class: `dot series-${at % 4}`, cx: x(when), cy: y(value), r: 3 },
              svg("title", {}, `${time(when)}: ${bytes(value)}`),
            ),
          );
    return [svg("path", { class: `line series-${at % 4}`, d: line }), ...dots];
  });
  const legend =
    series.length > 1
      ? h(
          "ul",
          { class: "legend" },
          series.map((one, at) => h("li", {}, h("span", { class: `key series-${at % 4}` }), name(one.name))),
        )
      : null;
  const rows = series
    .flatMap((one) => one.points.map(([at, value]) => [at, value, one.name]))
    .sort((a, b) => a[0] - b[0]);
  return figure(title, axes, drawn, rows, legend);
}

// A small line without axes; the table row beside it has the numbers.
export function spark(points) {
  const [w, hgt] = [120, 26];
  const times = points.map(([at]) => at);
  const values = points.map(([, value]) => value);
  const [first, span] = [Math.min(...times), Math.max(...times) - Math.min(...times) || 1];
  const most = Math.max(1, ...values);
  const d = points
    .map(([at, value], index) => {
      const [px, py] = [2 + ((at - first) / span) * (w - 4), hgt - 2 - (value / most) * (hgt - 4)];
      return index ? `H${px.toFixed(1)}V${py.toFixed(1)}` : `M${px.toFixed(1)} ${py.toFixed(1)}`;
    })
    .join("");
  return svg(
    "svg",
    { class: "spark", viewBox: `0 0 ${w} ${hgt}`, width: w, height: hgt, "aria-hidden": "true" },
    svg("path", { class: "line series-0", d }),
  );
}
