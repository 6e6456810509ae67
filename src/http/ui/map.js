// Draws the ranges of a disk, offset across. Each pixel shows how much of its bytes is data, and how much zeros.

import { h } from "./dom.js";
import { bytes, number } from "./format.js";
import { DATA, ZERO } from "./ranges.js";

const HEIGHT = 150;
const AXIS = 24;
const STRIP = 12;
const GAP = 8;
const LEAST_SPAN = 16384;

function step(span, most) {
  let size = 512;
  while (span / size > most) size *= 2;
  return size;
}

export class DiskMap {
  // `changed` is called after the view has changed. `colors` are names of custom properties of the style.
  constructor({ label, colors, changed, signal }) {
    this.colors = colors;
    this.changed = changed;
    this.ranges = null;
    this.from = 0;
    this.to = 1;
    this.canvas = h("canvas", { role: "img", "aria-label": label });
    this.element = h(
      "div",
      {
        class: "map",
        tabindex: "0",
        role: "group",
        "aria-label": "Map. Arrow keys move, plus and minus zoom, Home and End go to the ends, 0 shows the whole disk.",
      },
      this.canvas,
    );
    this.listen(signal);
  }

  listen(signal) {
    const on = (type, listener, options) => this.element.addEventListener(type, listener, { signal, ...options });
    on("keydown", (event) => this.key(event));
    on("wheel", (event) => this.wheel(event), { passive: false });
    const pointers = new Map();
    on("pointerdown", (event) => {
      pointers.set(event.pointerId, event.offsetX);
      this.element.setPointerCapture(event.pointerId);
      this.element.classList.add("dragged");
    });
    on("pointermove", (event) => {
      if (!pointers.has(event.pointerId)) return;
      const last = pointers.get(event.pointerId);
      if (pointers.size === 2) this.pinch([...pointers.entries()], event);
      else this.pan(((last - event.offsetX) / this.width()) * this.span());
      pointers.set(event.pointerId, event.offsetX);
    });
    const up = (event) => {
      pointers.delete(event.pointerId);
      this.element.classList.toggle("dragged", pointers.size > 0);
    };
    on("pointerup", up);
    on("pointercancel", up);
    const observer = new ResizeObserver(() => this.draw());
    observer.observe(this.element);
    signal.addEventListener("abort", () => observer.disconnect(), { once: true });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw(), { signal });
  }

  width() {
    return this.canvas.clientWidth || 1;
  }

  span() {
    return this.to - this.from;
  }

  setRanges(ranges) {
    const isNew = !this.ranges || this.ranges.size !== ranges.size;
    this.ranges = ranges;
    if (isNew) [this.from, this.to] = [0, Math.max(1, ranges.size)];
    this.draw();
    this.changed();
  }

  // Shows this part of the disk, as far as it exists.
  show(from, to) {
    const { size } = this.ranges ?? { size: 1 };
    const span = Math.min(size, Math.max(Math.min(LEAST_SPAN, size), to - from));
    const start = Math.min(Math.max(0, from), size - span);
    [this.from, this.to] = [start, start + span];
    this.draw();
    this.changed();
  }

  pan(offset) {
    this.show(this.from + offset, this.to + offset);
  }

  // Zooms by `factor`; the offset at `share` of the width stays where it is.
  zoom(factor, share = 0.5) {
    const { size } = this.ranges ?? { size: 1 };
    const fixed = this.from + this.span() * share;
    const span = Math.min(size, Math.max(Math.min(LEAST_SPAN, size), this.span() * factor));
    this.show(fixed - span * share, fixed + span * (1 - share));
  }

  whole() {
    this.show(0, Number.MAX_SAFE_INTEGER);
  }

  key(event) {
    const { size } = this.ranges ?? { size: 1 };
    const actions = {
      ArrowLeft: () => this.pan(-this.span() / 5),
      ArrowRight: () => this.pan(this.span() / 5),
      "+": () => this.zoom(0.5),
      "=": () => this.zoom(0.5),
      "-": () => this.zoom(2),
      Home: () => this.show(0, this.span()),
      End: () => this.show(size - this.span(), size),
      0: () => this.whole(),
    };
    if (!actions[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    actions[event.key]();
  }

  // The page scrolls as usual unless the map has the focus.
  wheel(event) {
    const sideways = Math.abs(event.deltaX) > Math.abs(event.deltaY);
    if (!sideways && !event.ctrlKey && document.activeElement !== this.element) return;
    event.preventDefault();
    if (sideways) this.pan((event.deltaX / this.width()) * this.span());
    else this.zoom(Math.exp(Math.max(-50, Math.min(50, event.deltaY)) / 200), event.offsetX / this.width());
  }

  pinch([[first, a], [, b]], event) {
    const [still, moved] = event.pointerId === first ? [b, a] : [a, b];
    const [before, after] = [Math.abs(moved - still), Math.abs(event.offsetX - still)];
    if (before > 8 && after > 8) this.zoom(before / after, (event.offsetX + still) / 2 / this.width());
  }

  draw() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.paint();
    });
  }

  paint() {
    const { ranges, canvas } = this;
    if (!ranges || !canvas.isConnected) return;
    const [width, scale] = [this.width(), devicePixelRatio || 1];
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round((HEIGHT + AXIS + GAP + STRIP) * scale);
    const style = getComputedStyle(canvas);
    const color = (property) => style.getPropertyValue(property).trim();
    const context = canvas.getContext("2d");
    context.scale(scale, scale);
    context.clearRect(0, 0, width, HEIGHT + AXIS + GAP + STRIP);
    this.columns(context, [this.from, this.to], [0, HEIGHT], width, color);
    this.axis(context, width, color, style.fontFamily);
    const top = HEIGHT + AXIS + GAP;
    this.columns(context, [0, ranges.size], [top, STRIP], width, color);
    const whole = Math.max(1, ranges.size);
    const [left, shown] = [(this.from / whole) * width, Math.max(3, (this.span() / whole) * width)];
    context.strokeStyle = color("--ink");
    context.lineWidth = 1.5;
    context.strokeRect(Math.min(left, width - shown) + 0.75, top + 0.75, shown - 1.5, STRIP - 1.5);
  }

  columns(context, [from, to], [top, height], width, color) {
    const parts = Math.max(1, Math.round(width));
    const [dataColor, zeroColor] = [color(this.colors.data), color(this.colors.zero)];
    context.fillStyle = color(this.colors.rest);
    context.fillRect(0, top, width, height);
    const { data, zero } = this.ranges.bins(from, to, parts);
    const each = (to - from) / parts;
    // What exists is at least two pixels high.
    const tall = (sum) => (sum > 0 ? Math.min(height, Math.max(2, (sum / each) * height)) : 0);
    for (let part = 0; part < parts; part += 1) {
      const [low, high] = [tall(data[part]), tall(zero[part])];
      if (low) {
        context.fillStyle = dataColor;
        context.fillRect(part, top + height - low, 1, low);
      }
      if (high) {
        context.fillStyle = zeroColor;
        context.fillRect(part, Math.max(top, top + height - low - high), 1, high);
      }
    }
    const read = ((Math.min(this.ranges.readTo, to) - from) / (to - from)) * width;
    if (read < width) {
      context.fillStyle = color("--unread");
      context.fillRect(Math.max(0, read), top, width - Math.max(0, read), height);
    }
  }

  axis(context, width, color, fontFamily) {
    const size = step(this.span(), Math.max(2, Math.floor(width / 110)));
    context.fillStyle = color("--ink-2");
    context.font = `12px ${fontFamily}`;
    context.textBaseline = "top";
    // Close to each other, offsets of large disks look alike: then they count from the left edge.
    const isFine = this.from > 0 && size / this.to < 1 / 256;
    const base = isFine ? this.from : 0;
    for (let offset = Math.ceil((this.from - base) / size) * size + base; offset <= this.to; offset += size) {
      const x = ((offset - this.from) / this.span()) * width;
      context.fillRect(Math.min(x, width - 1), HEIGHT, 1, 5);
      const text = isFine ? (offset === base ? number(base) : `+${bytes(offset - base)}`) : bytes(offset);
      const textWidth = context.measureText(text).width;
      context.fillText(text, Math.min(Math.max(0, x - textWidth / 2), width - textWidth), HEIGHT + 8);
    }
  }

  // The numbers of a part of the disk.
  numbers(from, to) {
    const { ranges } = this;
    const [data, zero] = [ranges.bytesIn(from, to, DATA), ranges.bytesIn(from, to, ZERO)];
    return { data, zero, rest: to - from - data - zero, count: ranges.countIn(from, to) };
  }
}
