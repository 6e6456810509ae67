// The ranges of a disk in typed arrays. The bytes before each range are summed up once, so that any part of the disk has
// its numbers after two binary searches, also with millions of ranges.

import { get, path } from "./api.js";

// More are not kept: 33 bytes each.
const MOST = 4_000_000;

export const DATA = 0;
export const ZERO = 1;

function larger(old, Type) {
  const array = new Type(old.length * 2);
  array.set(old);
  return array;
}

export class Ranges {
  constructor() {
    this.count = 0;
    this.size = 0;
    this.starts = new Float64Array(1024);
    this.lengths = new Float64Array(1024);
    this.kinds = new Uint8Array(1024);
    // Bytes of each kind before the range.
    this.before = [new Float64Array(1024), new Float64Array(1024)];
    this.sums = [0, 0];
    this.counts = [0, 0];
  }

  push(start, length, kind) {
    if (this.count === this.starts.length) {
      this.starts = larger(this.starts, Float64Array);
      this.lengths = larger(this.lengths, Float64Array);
      this.kinds = larger(this.kinds, Uint8Array);
      this.before = this.before.map((sums) => larger(sums, Float64Array));
    }
    const at = this.count;
    this.starts[at] = start;
    this.lengths[at] = length;
    this.kinds[at] = kind;
    this.before[DATA][at] = this.sums[DATA];
    this.before[ZERO][at] = this.sums[ZERO];
    this.sums[kind] += length;
    this.counts[kind] += 1;
    this.count = at + 1;
  }

  // The first range that ends after `offset`.
  indexAt(offset) {
    let [low, high] = [0, this.count];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.starts[middle] + this.lengths[middle] > offset) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  // Bytes of a kind before `offset`.
  bytesBefore(offset, kind) {
    const at = this.indexAt(offset);
    if (at === this.count) return this.sums[kind];
    const inside = this.kinds[at] === kind ? Math.max(0, offset - this.starts[at]) : 0;
    return this.before[kind][at] + inside;
  }

  bytesIn(from, to, kind) {
    return this.bytesBefore(to, kind) - this.bytesBefore(from, kind);
  }

  // Bytes of data and of zeros in each of `parts` equal parts between two offsets.
  bins(from, to, parts) {
    const [data, zero] = [new Float64Array(parts), new Float64Array(parts)];
    let [lastData, lastZero] = [this.bytesBefore(from, DATA), this.bytesBefore(from, ZERO)];
    for (let part = 0; part < parts; part += 1) {
      const end = from + ((to - from) * (part + 1)) / parts;
      const [nextData, nextZero] = [this.bytesBefore(end, DATA), this.bytesBefore(end, ZERO)];
      data[part] = nextData - lastData;
      zero[part] = nextZero - lastZero;
      [lastData, lastZero] = [nextData, nextZero];
    }
    return { data, zero };
  }

  // The number of ranges between two offsets.
  countIn(from, to) {
    const first = this.indexAt(from);
    let last = this.indexAt(to);
    if (last < this.count && this.starts[last] < to) last += 1;
    return Math.max(0, last - first);
  }

  // The first ranges between two offsets.
  first(from, to, most) {
    const found = [];
    for (let at = this.indexAt(from); at < this.count && this.starts[at] < to && found.length < most; at += 1) {
      found.push({ start: this.starts[at], length: this.lengths[at], kind: this.kinds[at] });
    }
    return found;
  }
}

// Reads the ranges page by page. `base`: only what changed since that snapshot; otherwise all data. `progress` gets the
// ranges after each page, and the offset up to which they are read.
export async function readRanges({ vm, snapshot, disk, base }, pageSize, signal, progress) {
  const ranges = new Ranges();
  const route = path("vms", vm, "snapshots", snapshot, "disks", disk, "chunks");
  let offset = 0;
  while (offset !== null) {
    const query = new URLSearchParams({ maxResults: pageSize, startingOffset: offset });
    if (base) query.set("compareTo", base);
    else query.set("type", "data");
    const page = await get(`${route}?${query}`, signal);
    for (const { start, length, type } of page.chunks) ranges.push(start, length, type === "data" ? DATA : ZERO);
    Object.assign(ranges, { size: page.size, mode: page.mode, reason: page.reason });
    ranges.isCut = ranges.count >= MOST && page.next_offset !== null;
    ranges.readTo = page.next_offset ?? page.size;
    offset = ranges.isCut ? null : page.next_offset;
    progress(ranges);
  }
  return ranges;
}
