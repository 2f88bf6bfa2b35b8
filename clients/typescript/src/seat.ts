/** One seat of this client: its two streams, its views, and what waits for an answer. Decides only; time is given. */

import {
  CallUndecidedError,
  FullError,
  type GreenroomError,
  LeftError,
  Misbehaved,
  type Refusal,
  RefusedError,
} from "./errors.js";
import { checkLength, Uplink } from "./uplink.js";
import { type Latest, type Need, Views } from "./views.js";
import type { Outcome } from "./views.js";
import {
  type Down,
  type Joined,
  kinds,
  NOTHING,
  type Patch,
  type Piece,
  refusalOf,
  SHARED_VIEW,
  upFrame,
  viewOfSeat,
} from "./wire.js";
import { encode } from "./msgpack.js";

/** Messages that come down before they are acknowledged by a frame of its own, and how long in ms they may wait. */
const ACK_AFTER = 16;
const ACK_WITHIN = 50;
/** Calls whose reply is remembered to be missing, also after their callers gave up; queries that wait. */
const CALLS_MAX = 1024;
const QUERIES_MAX = 64;

/** Counts of one client since its first check-in. */
export interface Stats {
  /** Connections that replaced a lost one. */
  reconnects: number;
  /** Messages of games. */
  messages: number;
  /** Reliable messages that came again and were dropped, as they should be after a reconnect. */
  duplicatesDropped: number;
  /** Reliable messages that never came: the client was away for longer than they are kept. */
  missed: number;
  /** Messages of games that nobody had asked for with `onMessage` until too many waited. */
  unheard: number;
  /** Patches and whole snapshots that came; views that changed; patches that did not fit. */
  patches: number;
  snapshots: number;
  states: number;
  desyncs: number;
  /** Times that messages were to be sent again, because a queue on the way was full. */
  sentAgain: number;
  /** Connections that ended because the server broke the protocol; why the last one did is in `lastFault`. */
  misbehaved: number;
  lastFault: string;
  /** Frames of kinds that this version does not know. */
  unknownFrames: number;
  /** How long the last heartbeat took there and back, in ms. */
  roundTripMs: number | null;
}

/** Whom a seat tells what happens. */
export interface SeatListener {
  message(payload: Uint8Array, tick: number): void;
  /** A view is newer: the shared one, or this seat's own. */
  view(view: Latest, isPrivate: boolean): void;
  refused(number: number, refusal: Refusal): void;
  missed(messages: number): void;
  rewound(unacknowledged: number): void;
  left(refusal: Refusal): void;
}

interface Asked {
  readonly resolve: (payload: Uint8Array) => void;
  readonly reject: (error: GreenroomError) => void;
  /** Whoever asked has stopped waiting. */
  isLate: boolean;
}

interface Query extends Asked {
  readonly payload: Uint8Array;
  isSent: boolean;
}

/** A question under way. */
export interface Asking {
  readonly number: number;
  readonly answer: Promise<Uint8Array>;
  /** Nobody waits for the answer any more. */
  readonly giveUp: (error: GreenroomError) => void;
}

export class Seat {
  readonly instance: string;
  readonly kind: string;
  seat: number;
  tickRate: number;
  /** Why the seat is gone, once it is. */
  ended: Refusal | null = null;
  listener: SeatListener | null = null;
  up: Uplink;
  readonly views = new Views();
  #incarnation: string;
  #calls = new Map<number, Asked>();
  #queries = new Map<number, Query>();
  #lastQuery = 0;
  /** Everything that came down up to here is taken. */
  #received: number;
  /** What the instance was told of that on this connection. */
  #acknowledged: number;
  #acknowledgeAt = Infinity;
  #needs: Need[] = [];

  constructor(
    joined: Joined,
    readonly stats: Stats,
  ) {
    this.instance = joined.instance;
    this.kind = joined.kind;
    this.seat = joined.seat;
    this.tickRate = joined.tickRate;
    this.up = new Uplink(joined.upReceived);
    this.#incarnation = joined.incarnation;
    this.#received = Math.max(0, joined.downNext - 1);
    this.#acknowledged = this.#received;
  }

  #checkOpen(): void {
    if (this.ended !== null) throw new LeftError(this.ended);
  }

  /** Queues a message and gives its number. */
  send(payload: Uint8Array): number {
    this.#checkOpen();
    return this.up.push(kinds.message, payload);
  }

  /** Queues a call. */
  call(payload: Uint8Array): Asking {
    this.#checkOpen();
    if (this.#calls.size >= CALLS_MAX) {
      // Nobody waits for these any more, and the game seems not to answer.
      for (const [number, call] of this.#calls) if (call.isLate) this.#calls.delete(number);
    }
    const number = this.up.push(kinds.call, payload);
    return asking(number, (asked) => {
      this.#calls.set(number, asked);
    });
  }

  /** Queues a query. */
  query(payload: Uint8Array): Asking {
    this.#checkOpen();
    checkLength(payload);
    for (const [number, query] of this.#queries) if (query.isLate) this.#queries.delete(number);
    if (this.#queries.size >= QUERIES_MAX) {
      let bytes = 0;
      for (const query of this.#queries.values()) bytes += query.payload.length;
      throw new FullError(this.#queries.size, bytes);
    }
    const number = (this.#lastQuery = (this.#lastQuery + 1) >>> 0);
    return asking(number, (asked) => {
      this.#queries.set(number, Object.assign(asked, { payload, isSent: false }));
    });
  }

  /**
   * The seat is taken again on a new connection. The same session has the same seat, and both streams go on where they
   * were; otherwise they begin anew.
   */
  resume(now: number, joined: Joined, isSameSession: boolean): void {
    const goesOn =
      isSameSession &&
      joined.incarnation === this.#incarnation &&
      joined.seat === this.seat &&
      this.up.goesOnAfter(joined.upReceived);
    if (goesOn) {
      this.up.acknowledge(joined.upReceived);
      this.up.rewind();
    } else {
      const unacknowledged = this.up.length;
      this.up = new Uplink(joined.upReceived);
      this.#received = Math.max(0, joined.downNext - 1);
      // Before the calls that it leaves undecided: whoever hears of them can see why.
      this.listener?.rewound(unacknowledged);
      for (const [number, call] of this.#calls) call.reject(new CallUndecidedError(number));
      this.#calls.clear();
      this.views.forget();
    }
    this.#incarnation = joined.incarnation;
    this.seat = joined.seat;
    this.tickRate = joined.tickRate;
    this.views.expect(now);
    this.#needs = [];
    for (const query of this.#queries.values()) query.isSent = false;
    // Acknowledgements may have been lost with the connection: say it once more.
    this.#acknowledged = this.#received;
    this.#acknowledgeAt = now + ACK_WITHIN;
  }

  /** The seat is gone: everybody who waits for something of it is told. */
  end(refusal: Refusal): void {
    if (this.ended !== null) return;
    this.ended = refusal;
    for (const asked of [...this.#calls.values(), ...this.#queries.values()]) asked.reject(new LeftError(refusal));
    this.#calls.clear();
    this.#queries.clear();
    this.listener?.left(refusal);
  }

  /** Takes a frame of the kinds with a {@link Down} header. */
  down(now: number, down: Down): void {
    this.up.acknowledge(down.ack);
    switch (down.kind) {
      case kinds.event:
      case kinds.reply:
      case kinds.replyRefused:
        if (this.#accept(now, down.number)) this.#reliable(down);
        return;
      case kinds.queryReply:
      case kinds.queryRefused: {
        // An answer that came twice, or after its query was given up, is of no use.
        const query = this.#queries.get(down.number);
        this.#queries.delete(down.number);
        if (query === undefined) return;
        if (down.kind === kinds.queryReply) query.resolve(down.payload);
        else query.reject(new RefusedError(refusalOf(down.payload)));
        return;
      }
      case kinds.seatEnded:
        return this.end(refusalOf(down.payload));
      case kinds.sendAgain:
        this.stats.sentAgain += 1;
        return this.up.sendAgain(now);
      case kinds.downAck:
        return;
      default:
        this.stats.unknownFrames += 1; // Of a newer version.
    }
  }

  /** Whether a reliable message is new. What comes again is dropped; a gap is counted and told. */
  #accept(now: number, number: number): boolean {
    this.#acknowledgeAt = Math.min(this.#acknowledgeAt, now + ACK_WITHIN);
    if (number <= this.#received) {
      this.stats.duplicatesDropped += 1;
      return false;
    }
    const missed = number - this.#received - 1;
    if (missed > 0) {
      this.stats.missed += missed;
      this.listener?.missed(missed);
    }
    this.#received = number;
    if (this.#received - this.#acknowledged >= ACK_AFTER) this.#acknowledgeAt = now;
    return true;
  }

  #reliable({ kind, number, tick, payload }: Down): void {
    if (kind === kinds.event) {
      this.stats.messages += 1;
      this.listener?.message(payload, tick);
      return;
    }
    if (payload.length < 4) throw new Misbehaved(`reply ${number} does not say which call it answers`);
    const of = new DataView(payload.buffer, payload.byteOffset).getUint32(0, true);
    const answer = payload.subarray(4);
    const call = this.#calls.get(of);
    this.#calls.delete(of);
    if (kind === kinds.reply) {
      call?.resolve(answer);
      return;
    }
    const refusal = refusalOf(answer);
    if (call !== undefined) call.reject(new RefusedError(refusal));
    else this.listener?.refused(of, refusal);
  }

  patch(now: number, patch: Patch): void {
    this.stats.patches += 1;
    this.#seen(patch.view, this.views.latest(patch.view), this.views.patch(now, patch));
  }

  piece(now: number, piece: Piece): void {
    const outcome = this.views.piece(now, piece);
    if (outcome !== "kept") this.stats.snapshots += 1;
    this.#seen(piece.view, null, outcome);
  }

  #seen(view: number, before: Latest | null, outcome: Outcome): void {
    if (outcome === "kept") return;
    const latest = this.views.latest(view);
    if (outcome !== "changed") {
      this.stats.desyncs += 1;
      this.#needs.push({ view, version: latest?.version ?? 0, reason: outcome.lost });
    }
    if (latest === null || latest === before) return;
    this.stats.states += 1;
    if (view === SHARED_VIEW) this.listener?.view(latest, false);
    else if (view === viewOfSeat(this.seat)) this.listener?.view(latest, true);
  }

  /** When {@link frames} has something that it has not now. */
  deadline(): number {
    return Math.min(this.#acknowledgeAt, this.up.pausedUntil ?? Infinity, this.views.askAt());
  }

  /** Everything that is to go up now. */
  frames(now: number, channel: number, out: Uint8Array[]): void {
    const ack = this.#received;
    const before = out.length;
    const frame = (kind: number, number: number, payload: Uint8Array): void => {
      out.push(upFrame(kind, channel, number, ack, payload));
    };
    for (const message of this.up.unsent(now)) frame(message.kind, message.number, message.payload);
    for (const [number, query] of this.#queries) {
      if (query.isSent) continue;
      query.isSent = true;
      frame(kinds.query, number, query.payload);
    }
    this.#needs.push(...this.views.overdue(now));
    for (const need of this.#needs) frame(kinds.needSnapshot, 0, encode(need));
    this.#needs = [];
    if (out.length === before && this.#acknowledgeAt <= now) frame(kinds.ack, 0, NOTHING);
    if (out.length > before) {
      this.#acknowledged = ack;
      this.#acknowledgeAt = Infinity;
    }
  }
}

function asking(number: number, keep: (asked: Asked) => void): Asking {
  let asked: Asked | undefined;
  const answer = new Promise<Uint8Array>((resolve, reject) => {
    asked = { resolve, reject, isLate: false };
    keep(asked);
  });
  const giveUp = (error: GreenroomError): void => {
    asked!.isLate = true;
    asked!.reject(error);
  };
  return { number, answer, giveUp };
}
