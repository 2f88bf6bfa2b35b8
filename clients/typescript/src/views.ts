/** An instance's views as bytes: snapshots put together, patches applied. PROTOCOL.md, section 9. */

import { apply } from "./delta.js";
import { DecodeError, Misbehaved } from "./errors.js";
import { type Patch, type Piece, SHARED_VIEW, VIEW_BYTES_MAX } from "./wire.js";

/** Views of one instance that a client keeps: the shared one, its own, and groups. */
const VIEWS_MAX = 16;
/** Patches that are held while a snapshot is on its way, and their bytes: they may belong on top of it. */
const HELD_MAX = 256;
const HELD_BYTES_MAX = VIEW_BYTES_MAX;
/** How long in ms a snapshot may take before it is asked for again; doubles up to the second figure. */
const SNAPSHOT_WAIT = 2000;
const SNAPSHOT_WAIT_MAX = 30_000;

/** A whole view. */
export interface Latest {
  readonly version: number;
  readonly tick: number;
  readonly bytes: Uint8Array;
}

/** What a frame did to a view: newer now, nothing to see, or it does not fit and a snapshot is to be asked for. */
export type Outcome = "changed" | "kept" | { readonly lost: string };

/** A view, the version that there is, and why a snapshot of it is needed. */
export interface Need {
  readonly view: number;
  readonly version: number;
  readonly reason: string;
}

interface Waiting {
  pieces: { readonly version: number; readonly tick: number; readonly total: Uint8Array; length: number } | null;
  held: Patch[];
  heldBytes: number;
  /** When to ask for it, unless something of it comes. */
  askAt: number;
  wait: number;
}

interface View {
  latest: Latest | null;
  waiting: Waiting | null;
}

function waitingSince(now: number): Waiting {
  return { pieces: null, held: [], heldBytes: 0, askAt: now + SNAPSHOT_WAIT, wait: SNAPSHOT_WAIT };
}

/** Keeps a patch for later. The oldest go when there are too many: they are the likeliest to be in the snapshot. */
function hold(waiting: Waiting, patch: Patch): void {
  waiting.held.push(patch);
  waiting.heldBytes += patch.delta.length;
  while (waiting.held.length > HELD_MAX || waiting.heldBytes > HELD_BYTES_MAX) {
    waiting.heldBytes -= waiting.held.shift()!.delta.length;
  }
}

/** All views of one seat. */
export class Views {
  #views = new Map<number, View>();

  latest(view: number): Latest | null {
    return this.#views.get(view)?.latest ?? null;
  }

  /** The seat is taken, or taken again: whole views come now, without being asked for. */
  expect(now: number): void {
    this.#view(SHARED_VIEW);
    for (const view of this.#views.values()) view.waiting = waitingSince(now);
  }

  /** Forgets all views: they are of an incarnation that is gone. */
  forget(): void {
    this.#views.clear();
  }

  /** When {@link overdue} has something to say. */
  askAt(): number {
    let at = Infinity;
    for (const { waiting } of this.#views.values()) at = Math.min(at, waiting?.askAt ?? Infinity);
    return at;
  }

  /** Views whose snapshot did not come in time. */
  overdue(now: number): Need[] {
    const overdue: Need[] = [];
    for (const [view, { latest, waiting }] of this.#views) {
      if (waiting === null || waiting.askAt > now) continue;
      waiting.pieces = null;
      waiting.wait = Math.min(waiting.wait * 2, SNAPSHOT_WAIT_MAX);
      waiting.askAt = now + waiting.wait;
      overdue.push({ view, version: latest?.version ?? 0, reason: "no snapshot came" });
    }
    return overdue;
  }

  #view(id: number): View {
    let view = this.#views.get(id);
    if (view === undefined) {
      if (this.#views.size >= VIEWS_MAX) throw new Misbehaved(`an instance has more than ${VIEWS_MAX} views`);
      view = { latest: null, waiting: null };
      this.#views.set(id, view);
    }
    return view;
  }

  /** Applies a patch, or keeps it for when the snapshot is there. */
  patch(now: number, patch: Patch): Outcome {
    const view = this.#view(patch.view);
    if (view.waiting !== null) {
      hold(view.waiting, patch);
      return "kept";
    }
    return applied(view, now, [patch]) ?? "kept";
  }

  /** Takes a piece of a snapshot. */
  piece(now: number, piece: Piece): Outcome {
    if (piece.total > VIEW_BYTES_MAX) {
      throw new Misbehaved(`a view of ${piece.total} bytes; at most ${VIEW_BYTES_MAX} are allowed`);
    }
    const view = this.#view(piece.view);
    // A snapshot can come unasked, after the server dropped patches for a slow client.
    const waiting = (view.waiting ??= waitingSince(now));
    waiting.askAt = now + waiting.wait;
    const { version, tick, offset, bytes } = piece;
    if (offset === 0) waiting.pieces = { version, tick, total: new Uint8Array(piece.total), length: 0 };
    const pieces = waiting.pieces;
    if (pieces?.version !== version || pieces.total.length !== piece.total || pieces.length !== offset) {
      // Its beginning was lost: a new one comes when it is overdue, or sooner if the server sends one.
      waiting.pieces = null;
      return "kept";
    }
    if (offset + bytes.length > piece.total) {
      throw new Misbehaved(`pieces of a snapshot are longer than the ${piece.total} bytes of the whole`);
    }
    pieces.total.set(bytes, offset);
    pieces.length += bytes.length;
    if (pieces.length < piece.total) return "kept";
    view.latest = { version, tick: pieces.tick, bytes: pieces.total };
    view.waiting = null;
    return applied(view, now, waiting.held) ?? "changed";
  }
}

/** Applies patches in order; the first that does not fit, and what follows it, wait for a snapshot. */
function applied(view: View, now: number, patches: readonly Patch[]): Outcome | null {
  let outcome: Outcome | null = null;
  for (const [index, patch] of patches.entries()) {
    const lost = misfit(view, patch);
    if (lost === "") outcome = "changed";
    else if (lost !== null) {
      view.waiting = waitingSince(now);
      for (const held of patches.slice(index)) hold(view.waiting, held);
      return { lost };
    }
  }
  return outcome;
}

/** Applies one patch: `""` if it did, `null` if there is nothing new in it, else why it does not fit. */
function misfit(view: View, { base, version, tick, delta }: Patch): string | null {
  const { latest } = view;
  if (latest === null) return `patch ${base} to ${version}, and there is no view`;
  if (version <= latest.version) return null; // The snapshot was newer.
  if (base !== latest.version) return `patch ${base} to ${version} does not fit version ${latest.version}`;
  try {
    view.latest = { version, tick, bytes: apply(latest.bytes, delta, VIEW_BYTES_MAX) };
    return "";
  } catch (error) {
    if (error instanceof DecodeError) return `patch ${base} to ${version}: ${error.message}`;
    throw error;
  }
}
