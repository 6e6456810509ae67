// What the user may do with a VM or a snapshot.

import { get, path } from "./api.js";

// `document` is that of a VM or of a snapshot. If it does not tell, the API decides.
export function may(document, permission) {
  return document.permissions?.includes(permission) ?? true;
}

// Needs the user's name, because some may delete only what they have created.
export function mayDelete(snapshot, user) {
  const folded = (name) => name.trim().toLowerCase();
  const isOwn = folded(snapshot.created_by) === folded(user);
  return may(snapshot, "administer") || (isOwn && may(snapshot, "delete_own"));
}

export function readable(snapshots) {
  return snapshots.filter((snapshot) => may(snapshot, "read"));
}

// The snapshots of a VM with the sums of their disks, without those that the user may not read. `snapshots` are those of
// the VM. The API refuses the sums of all if the user may not read one.
export async function sumsOf(vm, snapshots, signal) {
  const route = path("vms", vm, "snapshots");
  const wanted = readable(snapshots);
  if (wanted.length === snapshots.length) return get(`${route}?summary=true`, signal);
  const sums = [];
  for (const { id } of wanted) sums.push(await get(`${route}/${id}?summary=true&definition=false`, signal));
  return sums;
}
