// What an operator should look at, according to the status, the repositories and the VMs.

import { bytes, count, day, percent } from "./format.js";

const ALMOST_FULL = 0.1;

// Whether a repository has too little space for a snapshot (`short`), or soon (`low`). `null`: enough, or unknown.
export function spaceOf({ free_bytes: free, min_free_bytes: least, total_bytes: total }) {
  if (free === null) return null;
  if (least !== null && free < least) return "short";
  return total && free / total < ALMOST_FULL ? "low" : null;
}

function ofRepository(repository) {
  const title = `Repository ${repository.alias || repository.id}`;
  const found = [];
  if (repository.status === "error")
    found.push({ kind: "bad", title: `${title} cannot be used`, text: repository.reason });
  const { free_bytes: free, min_free_bytes: least, total_bytes: total } = repository;
  const space = spaceOf(repository);
  if (space === "short") {
    found.push({
      kind: "bad",
      title: `${title} has too little free space`,
      text: `${bytes(free)} are free, and the policy requires ${bytes(least)}. No snapshot is created until there is more: delete snapshots, or other files.`,
    });
  } else if (space === "low") {
    found.push({
      kind: "warn",
      title: `${title} is almost full`,
      text: `${bytes(free)} of ${bytes(total)} are free (${percent(free, total)}).`,
    });
  }
  if (repository.unknown_snapshots) {
    found.push({
      kind: "warn",
      title: `${title} has ${count(repository.unknown_snapshots, "snapshot")} that the database does not know`,
      text: "The command adopt adds them; adopt --dry-run shows what it would do.",
    });
  }
  return found;
}

function ofHook(owed) {
  const text =
    owed.reason ??
    `The post ${owed.hooks.length === 1 ? "hook" : "hooks"} ${owed.hooks.join(", ")} failed ${count(owed.attempts, "time")}${owed.operation ? ` (${owed.operation})` : ""}. The service tries again; look at the guest.`;
  return { kind: "bad", title: "A guest may still be frozen", text, vm: owed.vm_id };
}

function ofDatabase(database) {
  if (!database) return [];
  const found = [];
  if (database.status === "error")
    found.push({ kind: "bad", title: "The database has a problem", text: database.problem });
  if (database.rebuilding)
    found.push({
      kind: "bad",
      title: "The database is being rebuilt",
      text: "Some snapshots may be missing in the lists until everything was searched.",
    });
  if (database.lost.length)
    found.push({
      kind: "warn",
      title: "The database was rebuilt",
      text: `It does not have what these had: ${database.lost.join(", ").replaceAll("_", " ")}.`,
    });
  return found;
}

function ofCertificates(tls) {
  if (!tls) return [];
  const found = [];
  if (tls.status === "error") found.push({ kind: "bad", title: "The certificates have a problem", text: tls.problem });
  if (tls.revocations_end) {
    const days = (new Date(tls.revocations_end) - Date.now()) / 86_400_000;
    if (days < 7)
      found.push({
        kind: "warn",
        title: "A revocation list ends soon",
        text: `It is valid until ${day(tls.revocations_end)}.`,
      });
  }
  return found;
}

function ofWebhook({ name, origin, queued, dropped, last_error: error, disabled }) {
  if (!disabled && !error) return [];
  const sentence = (text) => `${text.replace(/\.$/, "")}.`;
  const reason = disabled
    ? "The receiver answered that it is gone (410), so it gets no events until the service is reloaded or restarted, or a test succeeds."
    : `${sentence(error.reason)} The service tries again.`;
  const owed = [
    queued ? `${count(queued, "event")} ${queued === 1 ? "waits" : "wait"}. ` : "",
    dropped ? `${count(dropped, "event")} ${dropped === 1 ? "was" : "were"} dropped. ` : "",
  ];
  return {
    kind: disabled || dropped ? "bad" : "warn",
    title: `Webhook ${name} gets no events`,
    text: `${owed.join("")}${origin}: ${reason}`,
  };
}

// An array of `kind` (bad, warn), `text`, perhaps a `title`, and `vm` or `link` if there is more to see.
export function attention(status, vms) {
  const found = [
    ...status.repositories.flatMap(ofRepository),
    ...status.owed_hooks.map(ofHook),
    ...ofDatabase(status.database),
    ...ofCertificates(status.tls),
    ...(status.webhooks ?? []).flatMap(ofWebhook),
    ...(status.warnings ?? []).map((text) => ({ kind: "warn", text })),
    ...status.leftovers.map(({ id, vm_id: vm, reason }) => ({
      kind: "warn",
      title: `Files of snapshot ${id} could not be removed`,
      text: reason,
      vm,
    })),
  ];
  const unfit = (vms ?? []).filter((vm) => !vm.snapshot_compatible);
  if (unfit.length) {
    found.push({
      kind: "warn",
      title: `${count(unfit.length, "VM")} cannot be snapshotted`,
      text: "The list of the VMs has the reasons, and which of them can be snapshotted without a disk.",
      link: "#/vms?show=unfit",
    });
  }
  return found.sort((a, b) => (a.kind === b.kind ? 0 : a.kind === "bad" ? -1 : 1));
}
