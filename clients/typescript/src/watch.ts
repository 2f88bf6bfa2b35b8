/** A live search: the set as the server tells it, and what of it the application is told. */

import { isEqual } from "./collections.js";
import { Misbehaved, type Refusal } from "./errors.js";
import type { Changes, Listed } from "./wire.js";

/**
 * Instances that one live search may hold. A server lets one begin with 1,000 and ends one that grows far beyond; this
 * bounds what a server that does not can make us keep.
 */
const INSTANCES_MAX = 1 << 16;

/** What a live search tells. */
export type WatchEvent =
  /** An instance is found that was not before. */
  | { readonly type: "add"; readonly listed: Listed }
  /** An instance that is found has changed: this is how it is now, and how it was. */
  | { readonly type: "change"; readonly listed: Listed; readonly before: Listed }
  /** An instance is no longer found: it is closed, or the filter does not let it through any more. */
  | { readonly type: "remove"; readonly listed: Listed }
  /** Everything that was there when the live search began has been told. Comes once. */
  | { readonly type: "ready" }
  /** The live search is over, and why. Nothing follows. */
  | { readonly type: "ended"; readonly why: Refusal };

/** What is found, by id, as it is after all events of the message that is being told. */
export type Current = ReadonlyMap<string, Listed>;

/** The set of one live search. Told anew, only what is different is shown; acknowledged when all of it was told. */
export class Mirror {
  readonly current = new Map<string, Listed>();
  ended: Refusal | null = null;
  /** To be acknowledged: number of the newest message that was taken in. */
  seen: number | null = null;
  /** While the set is told anew: what of it has been told. */
  #told: Set<string> | null = null;
  #isReady = false;
  #isOpen = false;
  #newest = 0;

  constructor(readonly listener: (event: WatchEvent) => void) {}

  /** The application has it: tells what came before, and goes on telling. */
  open(): void {
    this.#isOpen = true;
    for (const listed of this.current.values()) this.#tell({ type: "add", listed });
    if (this.#isReady) this.#tell({ type: "ready" });
    if (this.ended !== null) this.#tell({ type: "ended", why: this.ended });
  }

  #tell(event: WatchEvent): void {
    if (this.#isOpen) this.listener(event);
  }

  /** Takes a message in. */
  take({ n, anew, more, instances, gone, ended }: Changes): void {
    if (this.ended !== null || (!anew && n <= this.#newest)) return; // It came before.
    this.#newest = n;
    if (anew) this.#told = new Set();
    for (const listed of instances) {
      this.#told?.add(listed.instance);
      const before = this.current.get(listed.instance);
      if (before !== undefined && isEqual(before, listed)) continue;
      this.current.set(listed.instance, listed);
      this.#tell(before === undefined ? { type: "add", listed } : { type: "change", listed, before });
    }
    for (const instance of gone) this.#remove(instance);
    if (this.current.size > INSTANCES_MAX) {
      throw new Misbehaved(`a live search tells of more than ${INSTANCES_MAX} instances`);
    }
    if (ended !== null) return this.end(ended);
    this.seen = n;
    if (more || this.#told === null) return;
    for (const instance of [...this.current.keys()]) if (!this.#told.has(instance)) this.#remove(instance);
    this.#told = null;
    if (!this.#isReady) {
      this.#isReady = true;
      this.#tell({ type: "ready" });
    }
  }

  #remove(instance: string): void {
    this.#told?.delete(instance);
    const listed = this.current.get(instance);
    if (listed === undefined) return;
    this.current.delete(instance);
    this.#tell({ type: "remove", listed });
  }

  /** The connection is gone, or the server has forgotten it: what comes next is told anew, whatever its number. */
  expectAnew(): void {
    this.seen = null;
  }

  /** It is over. */
  end(why: Refusal): void {
    if (this.ended !== null) return;
    this.ended = why;
    this.#tell({ type: "ended", why });
  }
}
