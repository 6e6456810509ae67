// Parts of views: loading, errors, tables, badges.

import { h, replace } from "./dom.js";
import { relative, time } from "./format.js";

export function problem(error, retry) {
  const lines = [h("p", {}, error.message)];
  if (error.code) {
    const wait = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
    const request = error.requestId ? h("span", {}, " Request ", h("code", {}, error.requestId), ".") : null;
    lines.push(h("p", { class: "fine" }, "Code ", h("code", { class: "code" }, error.code), ".", wait, request));
  }
  if (retry) lines.push(h("button", { type: "button", on: { click: retry } }, "Try again"));
  return h("div", { class: "notice bad", role: "alert" }, lines);
}

// Shows what `render` makes of the result of `task`, or the error.
export async function load(container, signal, task, render) {
  replace(container, h("p", { class: "loading", role: "status" }, "Loading…"));
  try {
    const result = await task();
    if (!signal.aborted) replace(container, await render(result));
  } catch (error) {
    if (signal.aborted || error.name === "AbortError") return;
    replace(
      container,
      problem(error, () => load(container, signal, task, render)),
    );
  }
}

function visible(signal) {
  return new Promise((resolve) => {
    if (!document.hidden) return resolve();
    const done = () => {
      document.removeEventListener("visibilitychange", check);
      resolve();
    };
    const check = () => document.hidden || done();
    document.addEventListener("visibilitychange", check);
    signal.addEventListener("abort", done, { once: true });
  });
}

function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener(
      "abort",
      () => {
        clearTimeout(timer);
        resolve();
      },
      { once: true },
    );
  });
}

// Runs `task` again and again until `signal`, and not while the page is hidden. The task returns the pause in seconds.
export async function poll(signal, container, task) {
  while (!signal.aborted) {
    let seconds = 10;
    try {
      seconds = await task();
      container.querySelector(":scope > .stale")?.remove();
    } catch (error) {
      if (signal.aborted || error.name === "AbortError") return;
      const stale = h("div", { class: "stale" }, problem(error));
      container.querySelector(":scope > .stale")?.remove();
      container.querySelector(":scope > .loading")?.remove();
      container.prepend(stale);
    }
    await pause(seconds * 1000, signal);
    await visible(signal);
  }
}

// Columns have a `title`, a function `cell` of the row, and `numeric` for numbers. On narrow screens each row is a block.
export function table(caption, columns, rows, empty) {
  if (!rows.length && empty) return h("p", { class: "empty" }, empty);
  const head = columns.map(({ title, numeric }) =>
    h("th", { scope: "col", role: "columnheader", class: numeric ? "numeric" : null }, title),
  );
  const body = rows.map((row) =>
    h(
      "tr",
      { role: "row" },
      columns.map(({ title, cell, numeric, lead }) =>
        h(
          "td",
          { role: "cell", class: [numeric ? "numeric" : "", lead ? "lead" : ""].join(" ").trim() || null },
          h("span", { class: "label", "aria-hidden": "true" }, title),
          h("div", { class: "value" }, cell(row)),
        ),
      ),
    ),
  );
  return h(
    "table",
    { class: "stack", role: "table" },
    h("caption", { class: "hidden" }, caption),
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, head)),
    h("tbody", { role: "rowgroup" }, body),
  );
}

// `meaning` is seen at the pointer only, so something else must say it too.
export function badge(kind, text, meaning = null) {
  return h("span", { class: `badge ${kind}`, title: meaning }, text);
}

export function moment(text) {
  return h("time", { datetime: text, title: text }, time(text));
}

export function ago(text) {
  return h("time", { datetime: text, title: time(text) }, relative(text));
}

export function facts(pairs) {
  const shown = pairs.filter(([, value]) => value !== null && value !== undefined);
  return h(
    "dl",
    { class: "facts" },
    shown.map(([term, value]) => h("div", {}, h("dt", {}, term), h("dd", {}, value))),
  );
}

// A bar that shows `part` of `whole`. The text beside it has the numbers.
export function meter(part, whole, kind = "") {
  const fill = h("span", { class: `fill ${kind}` });
  const share = whole > 0 ? Math.min(1, part / whole) : 0;
  fill.style.inlineSize = share > 0 ? `max(2px, ${(100 * share).toFixed(2)}%)` : "0";
  return h("span", { class: "meter", "aria-hidden": "true" }, fill);
}

export function section(title, ...children) {
  return h("section", { class: "panel" }, h("h2", {}, title), children);
}

export function heading(title, detail) {
  return h(
    "div",
    { class: "heading" },
    h("h1", { tabindex: "-1" }, title),
    detail ? h("p", { class: "lead-in" }, detail) : null,
  );
}
