/** Reliable messages of one seat to its instance: numbered, kept until acknowledged, sent again where needed. */

import { FullError, Misbehaved, TooLargeError } from "./errors.js";

/** Messages that may wait to be acknowledged, and their bytes: what an instance remembers of a seat's way up. */
export const UNACKNOWLEDGED_MAX = 64;
export const UNACKNOWLEDGED_BYTES_MAX = 32 * 1024;
/** Pause in ms before what a full queue threw away is sent again; doubles while it stays full. */
const PAUSE = 50;
const PAUSE_MAX = 1000;

interface Message {
  readonly number: number;
  readonly kind: number;
  readonly payload: Uint8Array;
}

export function checkLength(payload: Uint8Array): void {
  if (payload.length > UNACKNOWLEDGED_BYTES_MAX) {
    const text = `a message of ${payload.length} bytes; at most ${UNACKNOWLEDGED_BYTES_MAX} may be sent at once`;
    throw new TooLargeError(text);
  }
}

/** The sending end. */
export class Uplink {
  /** When the pause is over, if there is one. */
  pausedUntil: number | null = null;
  #last: number;
  #waiting: Message[] = [];
  #bytes = 0;
  /** How many at the front of `#waiting` were sent on this connection. */
  #sent = 0;
  #pause = PAUSE;

  /** Begins after the messages that the instance has from this seat already. */
  constructor(received: number) {
    this.#last = received;
  }

  /** How many messages wait to be acknowledged. */
  get length(): number {
    return this.#waiting.length;
  }

  /** Queues a message and gives its number. */
  push(kind: number, payload: Uint8Array): number {
    checkLength(payload);
    const isFull = this.#waiting.length >= UNACKNOWLEDGED_MAX;
    if (isFull || this.#bytes + payload.length > UNACKNOWLEDGED_BYTES_MAX) {
      throw new FullError(this.#waiting.length, this.#bytes);
    }
    this.#last += 1;
    this.#bytes += payload.length;
    this.#waiting.push({ number: this.#last, kind, payload });
    return this.#last;
  }

  /** The instance has everything up to `received`. */
  acknowledge(received: number): void {
    if (received > this.#last) {
      throw new Misbehaved(`message ${received} is acknowledged, and the last one sent is ${this.#last}`);
    }
    let news = 0;
    while (news < this.#waiting.length && this.#waiting[news]!.number <= received) {
      this.#bytes -= this.#waiting[news]!.payload.length;
      news += 1;
    }
    this.#waiting.splice(0, news);
    this.#sent = Math.max(0, this.#sent - news);
    if (news > 0 && this.pausedUntil === null) this.#pause = PAUSE;
  }

  /** Whether the stream can go on where an instance says that it has everything up to `received`. */
  goesOnAfter(received: number): boolean {
    const acknowledged = this.#waiting.length > 0 ? this.#waiting[0]!.number - 1 : this.#last;
    return received >= acknowledged && received <= this.#last;
  }

  /** A new connection: everything that waits is to be sent on it. */
  rewind(): void {
    this.#sent = 0;
    this.pausedUntil = null;
    this.#pause = PAUSE;
  }

  /** What was sent last was thrown away on the way: all is to be sent again, after a pause. */
  sendAgain(now: number): void {
    if (this.pausedUntil !== null) return; // Several were thrown away; one pause is for all of them.
    this.#sent = 0;
    this.pausedUntil = now + this.#pause;
    this.#pause = Math.min(this.#pause * 2, PAUSE_MAX);
  }

  /** What is to be sent now; it counts as sent. */
  unsent(now: number): readonly Message[] {
    if (this.pausedUntil !== null && this.pausedUntil > now) return [];
    this.pausedUntil = null;
    const unsent = this.#waiting.slice(this.#sent);
    this.#sent = this.#waiting.length;
    return unsent;
  }
}
