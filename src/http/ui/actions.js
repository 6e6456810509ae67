// What changes something. Each asks first, in a dialog that names the object.

import { path, request } from "./api.js";
import { h, name, replace } from "./dom.js";
import { duration, time } from "./format.js";
import { problem } from "./parts.js";
import { deviceOf, devices } from "./vms.js";

// Shows a dialog. `run` does the work on confirmation; its error is shown, and the dialog stays. `done` follows success.
function ask({ title, text, fields = [], confirm, danger = false, run, done }) {
  const answer = h("div", { class: "answer" });
  const go = h("button", { type: "submit", class: danger ? "danger" : "primary" }, confirm);
  const cancel = h("button", { type: "button", on: { click: () => dialog.close() } }, "Cancel");
  let busy = false;
  const submit = async (event) => {
    event.preventDefault();
    busy = true;
    go.disabled = cancel.disabled = true;
    replace(answer, h("p", { class: "loading", role: "status" }, "Working…"));
    try {
      const result = await run();
      busy = false;
      dialog.close();
      done(result);
    } catch (error) {
      replace(answer, problem(error));
    } finally {
      busy = false;
      go.disabled = cancel.disabled = false;
    }
  };
  const form = h(
    "form",
    { method: "dialog", on: { submit } },
    h("h2", { id: "dialog-title" }, title),
    text,
    fields,
    answer,
    h("div", { class: "buttons" }, cancel, go),
  );
  const dialog = h(
    "dialog",
    {
      "aria-labelledby": "dialog-title",
      // The work goes on at the service, so its end must be seen.
      on: { close: () => dialog.remove(), cancel: (event) => busy && event.preventDefault() },
    },
    form,
  );
  document.body.append(dialog);
  dialog.showModal();
  if (danger) cancel.focus();
}

function field(id, label, control, hint) {
  control.id = id;
  if (hint) control.setAttribute("aria-describedby", `${id}-hint`);
  return h(
    "div",
    { class: "field" },
    h("label", { for: id }, label),
    control,
    hint ? h("p", { class: "fine", id: `${id}-hint` }, hint) : null,
  );
}

// A snapshot, as sentences name it.
function named(vm, snapshot) {
  return [
    "the snapshot of ",
    h("strong", {}, name(vm)),
    ` of ${time(snapshot.created_at)} (`,
    h("code", {}, snapshot.id),
    ")",
  ];
}

function of(snapshot, ...rest) {
  return path("vms", snapshot.vm_id, "snapshots", snapshot.id, ...rest);
}

function labelsOf(text) {
  const pairs = text.split(",").map((pair) => pair.trim()).filter(Boolean);
  return Object.fromEntries(
    pairs.map((pair) => {
      const [key, ...value] = pair.split("=");
      return [key.trim(), value.join("=").trim()];
    }),
  );
}

// Which disks of the VM are included. `excluded` returns the others, or nothing if the service decides.
function diskChoice(vm) {
  const fit = vm.disks.filter((disk) => disk.snapshot_compatible);
  const unfit = vm.disks.filter((disk) => !disk.snapshot_compatible);
  const boxes = fit.map((disk) => [disk, h("input", { type: "checkbox", checked: true })]);
  const label = ([disk, box]) =>
    h("label", {}, box, h("span", {}, deviceOf(disk), " · ", name(disk.friendly_name || disk.name)));
  const element = h(
    "fieldset",
    {},
    h("legend", {}, "Disks"),
    boxes.map(label),
    unfit.length ? h("p", { class: "fine" }, `Without ${devices(unfit)}: see the reasons at the disks of the VM.`) : null,
  );
  const excluded = () => {
    const unwanted = boxes.filter(([, box]) => !box.checked).map(([disk]) => disk);
    // Those that are left out anyway need not be named.
    return (vm.snapshot_compatible ? unwanted : [...unfit, ...unwanted]).map(deviceOf);
  };
  return { element, excluded };
}

export function createSnapshot(vm, { limits }, done) {
  const description = h("input", { maxlength: 1024, autocomplete: "off" });
  const ttl = h("input", { autocomplete: "off", placeholder: "72h" });
  const labels = h("input", { autocomplete: "off", spellcheck: "false", placeholder: "job=nightly" });
  const quiesce = h(
    "select",
    {},
    h("option", { value: "try" }, "Try to quiesce the guest, by the hooks"),
    h("option", { value: "require" }, "No snapshot unless the guest is quiesced"),
    h("option", { value: "skip" }, "Call no hooks"),
  );
  const disks = diskChoice(vm);
  // The same request, if it is sent again after an error, makes no second snapshot.
  let sent = null;
  const run = () => {
    const body = { quiesce: quiesce.value };
    if (description.value.trim()) body.description = description.value.trim();
    if (ttl.value.trim()) body.ttl = ttl.value.trim();
    const excluded = disks.excluded();
    if (excluded.length) body.exclude_disks = excluded;
    if (labels.value.trim()) body.labels = labelsOf(labels.value);
    const text = JSON.stringify(body);
    if (sent?.text !== text) sent = { text, key: crypto.randomUUID() };
    return request("POST", `${path("vms", vm.name, "snapshots")}?chunks=false`, {
      body,
      headers: { "Idempotency-Key": sent.key },
    });
  };
  const kept = limits.default_ttl_seconds
    ? `${duration(limits.default_ttl_seconds)}, as the service is configured`
    : "until it is deleted";
  ask({
    title: "Create a snapshot",
    text: h(
      "p",
      {},
      "The snapshot has the disks of ",
      h("strong", {}, name(vm.friendly_name || vm.name)),
      " (",
      h("code", {}, vm.name),
      "), all as they are at the same moment.",
    ),
    fields: [
      field("description", "Description", description, "Optional. What the snapshot is for."),
      field("ttl", "Keep for", ttl, `Such as 72h or 30m. If it is empty: ${kept}.`),
      field("labels", "Labels", labels, "Such as job=nightly, env=test. Your role may be limited to some of them."),
      field("quiesce", "Guest", quiesce),
      vm.disks.length > 1 ? disks.element : null,
    ],
    confirm: "Create the snapshot",
    run,
    done,
  });
}

export function deleteSnapshot(vm, snapshot, done) {
  const lease = snapshot.leased_until
    ? h(
        "p",
        { class: "notice warn" },
        `A lease keeps it until ${time(snapshot.leased_until)}: a user may be reading it.`,
      )
    : null;
  ask({
    title: "Delete this snapshot?",
    text: [
      h("p", {}, "This deletes ", named(vm, snapshot), ". It cannot be undone."),
      h("p", {}, "A backup that was made from it needs a full copy next time, if the backup has no newer base."),
      lease,
    ],
    confirm: "Delete the snapshot",
    danger: true,
    run: () => request("DELETE", of(snapshot)),
    done,
  });
}

export function takeLease(vm, snapshot, { limits }, done) {
  const ttl = h("input", { value: "2h", required: true, autocomplete: "off" });
  ask({
    title: "Keep the snapshot longer",
    text: h("p", {}, "Until it ends, a lease keeps ", named(vm, snapshot), " from expiring. It can still be deleted."),
    fields: [
      field(
        "ttl",
        "For",
        ttl,
        `Such as 2h. At most ${duration(limits.lease_seconds.max)}. It replaces your former lease.`,
      ),
    ],
    confirm: "Take the lease",
    run: () => request("POST", of(snapshot, "lease"), { body: { ttl: ttl.value.trim() } }),
    done,
  });
}

export function endLease(vm, snapshot, done) {
  ask({
    title: "End your lease?",
    text: h("p", {}, "Then ", named(vm, snapshot), " expires as it would without it. Leases of other users stay."),
    confirm: "End the lease",
    run: () => request("DELETE", of(snapshot, "lease")),
    done,
  });
}
