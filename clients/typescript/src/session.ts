/**
 * One session: its requests, its seats, its live searches, and what every frame from the server means for them. Decides
 * only: who holds it owns the socket and tells the time, in milliseconds. It is the Rust SDK's `session.rs`, and what is
 * said there holds here.
 */

import {
  ArgumentError,
  ClosedError,
  DecodeError,
  type GreenroomError,
  Misbehaved,
  type Refusal,
  RefusedError,
  TooLargeError,
  UnavailableError,
  UndecidedError,
} from "./errors.js";
import { encode } from "./msgpack.js";
import { Seat, type SeatListener, type Stats } from "./seat.js";
import { Mirror, type WatchEvent } from "./watch.js";
import {
  changesOf,
  channelOf,
  downOf,
  type Found,
  foundOf,
  goAwayOf,
  instanceOf,
  type Joined,
  joinedOf,
  kinds,
  patchOf,
  pieceOf,
  plainFrame,
  type Ranking,
  rankingOf,
  refusalOf,
  replyOf,
  REQUEST_HEADER_BYTES,
  requestFrame,
  type SessionServer,
  sessionServersOf,
  stampOf,
  UP_BYTES_MAX,
} from "./wire.js";

/** Requests that may be under way at once; more that may wait for one of them to end. */
const UNDER_WAY_MAX = 8;
const WAITING_MAX = 64;
/** How long in ms an undecided request, or its answer, is kept for somebody who asks again. */
export const KEPT = 30_000;
/** Pause in ms before a seat that was refused for a passing reason, or a live search that was forgotten, is asked again. */
const AGAIN_PAUSE = 100;
const AGAIN_PAUSE_MAX = 2000;
/** How long in ms after a reconnect a live search may take to be told anew, before it counts as forgotten. */
const ANEW_WITHIN = 5000;
/** One acknowledgement of live searches is sent in this time on the whole, in ms; and what may be sent ahead of that. */
const SEEN_EVERY = 50;
const SEEN_AHEAD = 450;
/** Largest number at which a seat's streams may begin: larger ones are nonsense, and would wrap around. */
const NUMBER_MAX = 2 ** 31;

/** What was refused for one of these may be granted a little later. */
const PASSING = ["busy", "unavailable", "undecided", "rate_limited", "draining", "no_capacity"];

/** What a request came to. */
export type Done =
  | { readonly type: "created"; readonly instance: string }
  | { readonly type: "joined"; readonly seat: Seat }
  | { readonly type: "left" }
  | { readonly type: "destroyed" }
  | { readonly type: "found"; readonly found: Found }
  | { readonly type: "watching"; readonly watch: Watched }
  | { readonly type: "unwatched" }
  | { readonly type: "ranking"; readonly ranking: Ranking };

/** What a frame means for who holds the session. */
export type Flow =
  | { readonly type: "pong"; readonly stamp: number }
  | { readonly type: "servers"; readonly servers: readonly SessionServer[] }
  | { readonly type: "go_away"; readonly message: string; readonly servers: readonly SessionServer[] }
  | { readonly type: "closing"; readonly refusal: Refusal };

/** What a session needs of the outside. */
export interface Outside {
  /** Whom a seat that was just taken tells what happens there; `isRaw` as the request said. */
  listener(seat: Seat, isRaw: boolean): SeatListener;
  /** A request with this id is about to be sent for the first time. */
  requested(id: number): void;
}

type Answer = Done | GreenroomError;

/** Whom an answer is for: the application, the client itself, nobody, or whoever asks again in time. */
type Asker =
  | { readonly type: "caller"; readonly answer: (answer: Answer) => void }
  | { readonly type: "rejoin"; readonly instance: string }
  | { readonly type: "rewatch"; readonly watch: Watched }
  | { readonly type: "nobody" }
  | { readonly type: "kept" };

interface Request {
  readonly kind: number;
  readonly payload: Uint8Array;
  /** Instance that it gives up, if that is what it does. */
  readonly leaves: string | null;
  /** What its seat's game sends and takes is bytes of the game's own. */
  readonly isRaw: boolean;
  /** Of the asker; for a kept one, when it is given up. */
  deadline: number;
  asker: Asker;
  /** Of a live search that begins. What it has to tell may come before the answer. */
  watch: Watched | null;
}

interface Seated {
  readonly seat: Seat;
  /** What its frames carry on this connection; `null` until the seat is taken again. */
  channel: number | null;
  rejoinAt: number;
  rejoinPause: number;
}

/** A live search that is not over. */
export interface Watched {
  readonly mirror: Mirror;
  /** What was asked, to be asked again. */
  readonly payload: Uint8Array;
  /** Its number at the server, if it may have one there: that of its newest request. */
  number: number | null;
  /** Its request is under way; it was set up; or it is to be asked again, at `at`. */
  standing: "asked" | "lives" | "again";
  /** When it is asked again, unless something comes first. */
  at: number;
  pause: number;
  /** Asked again, it may be refused until then for what a cluster that has lost its memory finds out in a moment. */
  unknownUntil: number;
  /** It is ended, or to be ended as soon as it is there. */
  isStopped: boolean;
}

export class Session {
  #id: string;
  #isOnline = false;
  #isSameSession = true;
  #seats = new Map<string, Seated>();
  #channels = new Map<number, string>();
  #waiting: Request[] = [];
  #underWay = new Map<number, Request>();
  #late = new Map<number, { readonly answer: Answer; readonly until: number }>();
  #lastRequest: number;
  /** Requests up to here are of a page that is gone: nobody here made them. */
  readonly #inherited: number;
  /** Seats that are to be taken again before the session counts as resumed. */
  #resuming = new Set<string>();
  #watches = new Set<Watched>();
  /** Those that have something to acknowledge, in the order in which they came to have it. */
  #seen = new Set<Watched>();
  /** Until when what was acknowledged would have taken, one in each {@link SEEN_EVERY}. */
  #seenUntil = -Infinity;
  /** Frames to be written. */
  #out: Uint8Array[] = [];

  constructor(
    id: string,
    lastRequest: number,
    readonly stats: Stats,
    readonly outside: Outside,
  ) {
    this.#id = id;
    this.#lastRequest = lastRequest;
    this.#inherited = lastRequest;
  }

  /** Whether every seat is taken again. */
  get isResumed(): boolean {
    return this.#resuming.size === 0;
  }

  /** What is to be written. */
  takeFrames(): readonly Uint8Array[] {
    const frames = this.#out;
    if (frames.length > 0) this.#out = [];
    return frames;
  }

  /** The client is checked in. */
  connected(now: number, session: string): void {
    this.#isOnline = true;
    this.#isSameSession = this.#id === session;
    this.#id = session;
    if (!this.#isSameSession) {
      const message = "the session that it belonged to is over: begin another live search";
      this.#endWatches({ code: "session_expired", message });
    }
    for (const watched of this.#watches) if (watched.standing === "lives") watched.at = now + ANEW_WITHIN;
    for (const [id, { kind, asker }] of [...this.#underWay]) {
      const isRead = kind === kinds.search || kind === kinds.rank;
      if (asker.type === "rejoin") {
        this.#underWay.delete(id); // Asked for again below, on this connection.
      } else if (!this.#isSameSession && !isRead) {
        // The new session knows nothing of it.
        this.#underWay.delete(id);
        give(asker, new UndecidedError(id));
      }
    }
    for (const id of this.#underWay.keys()) this.#write(id);
    this.#resuming = new Set(this.#seats.keys());
    for (const instance of this.#resuming) this.#rejoin(now, instance);
    this.#start();
  }

  /** The connection is gone. */
  disconnected(): void {
    this.#isOnline = false;
    this.#out = [];
    this.#channels.clear();
    this.#waiting = this.#waiting.filter(({ asker }) => asker.type !== "rejoin");
    for (const seated of this.#seats.values()) {
      seated.channel = null;
      seated.rejoinAt = Infinity;
    }
    this.#seen.clear();
    for (const watched of this.#watches) {
      watched.mirror.expectAnew();
      if (watched.standing === "lives") watched.at = Infinity;
    }
  }

  #endWatches(why: Refusal): void {
    for (const watched of this.#watches) watched.mirror.end(why);
    this.#watches.clear();
    this.#seen.clear();
  }

  /** The client is closed for good: everybody is told why. */
  close(refusal: Refusal): void {
    this.#isOnline = false;
    this.#endWatches(refusal);
    const requests = [...this.#waiting, ...this.#underWay.values()];
    this.#waiting = [];
    this.#underWay.clear();
    this.#late.clear();
    for (const { asker } of requests) give(asker, new ClosedError(refusal));
    for (const { seat } of this.#seats.values()) seat.end(refusal);
    this.#seats.clear();
    this.#channels.clear();
  }

  /** Asks the directory for something. */
  request(
    kind: number,
    fields: object,
    deadline: number,
    answer: (answer: Answer) => void,
    isRaw = false,
  ): void {
    if (this.#waiting.length >= WAITING_MAX) return answer(new UnavailableError());
    this.#ask(kind, fields, deadline, { type: "caller", answer }, isRaw);
  }

  /** Begins a live search; what it tells goes to `listener`, once its mirror is opened. */
  watch(
    fields: object,
    deadline: number,
    listener: (event: WatchEvent) => void,
    answer: (answer: Answer) => void,
  ): void {
    if (this.#waiting.length >= WAITING_MAX) return answer(new UnavailableError());
    const payload = encoded(fields);
    const watch: Watched = {
      mirror: new Mirror(listener),
      payload,
      number: null,
      standing: "asked",
      at: Infinity,
      pause: AGAIN_PAUSE,
      unknownUntil: deadline,
      isStopped: false,
    };
    const asker: Asker = { type: "caller", answer };
    this.#enqueue({ kind: kinds.watch, payload, leaves: null, isRaw: false, deadline, asker, watch });
  }

  /** Nobody wants to hear of a live search any more. */
  stopWatch(now: number, watched: Watched): void {
    if (watched.isStopped) return;
    watched.isStopped = true;
    this.#seen.delete(watched);
    if (!this.#watches.delete(watched)) return;
    // Of one that is under way the answer says whether there is something to end.
    if (watched.number !== null && !this.#underWay.has(watched.number)) this.#unwatch(now, watched.number);
  }

  #unwatch(now: number, watch: number): void {
    this.#ask(kinds.unwatch, { watch }, now + KEPT, { type: "nobody" });
  }

  #leave(now: number, instance: string): void {
    this.#ask(kinds.leave, { instance }, now + KEPT, { type: "nobody" });
  }

  #ask(kind: number, fields: object, deadline: number, asker: Asker, isRaw = false): void {
    const leaves = kind === kinds.leave ? (fields as { instance: string }).instance : null;
    this.#enqueue({ kind, payload: encoded(fields), leaves, isRaw, deadline, asker, watch: null });
  }

  #enqueue(request: Request): void {
    if (request.asker.type === "rejoin") this.#waiting.unshift(request); // A room that stands still is worse.
    else this.#waiting.push(request);
    this.#start();
  }

  /** Waits once more for the answer to a request that was undecided. */
  askAgain(id: number, deadline: number, answer: (answer: Answer) => void): void {
    const late = this.#late.get(id);
    if (late !== undefined) {
      this.#late.delete(id);
      return answer(late.answer);
    }
    const request = this.#underWay.get(id);
    if (request?.asker.type !== "kept") {
      const text = `request ${id} is unknown: it was answered, or nobody asked for it within ${KEPT / 1000} s`;
      return answer(new ArgumentError(text));
    }
    request.asker = { type: "caller", answer };
    request.deadline = deadline;
    this.#write(id);
  }

  #rejoin(now: number, instance: string): void {
    // Asked for behind the leave, it would be taken again, and nobody would know of it.
    const requests = [...this.#underWay.values(), ...this.#waiting];
    if (requests.some((request) => request.leaves === instance)) return;
    this.#ask(kinds.join, { instance, options: new Uint8Array(0) }, now + KEPT, { type: "rejoin", instance });
  }

  /** Starts waiting requests while there is room for them. */
  #start(): void {
    while (this.#isOnline && this.#underWay.size < UNDER_WAY_MAX) {
      const request = this.#waiting.shift();
      if (request === undefined) break;
      const id = this.#lastRequest + 1;
      const watched = request.asker.type === "rewatch" ? request.asker.watch : request.watch;
      if (watched !== null) {
        if (request.asker.type === "rewatch" && watched.isStopped) continue;
        watched.number = id;
        watched.standing = "asked";
        watched.at = Infinity;
        if (!watched.isStopped) this.#watches.add(watched);
      }
      this.#lastRequest = id;
      this.outside.requested(id);
      this.#underWay.set(id, request);
      this.#write(id);
    }
  }

  #write(id: number): void {
    const request = this.#underWay.get(id);
    if (!this.#isOnline || request === undefined) return; // Written when the client is connected again.
    let answered = this.#lastRequest;
    for (const under of this.#underWay.keys()) answered = Math.min(answered, under - 1);
    this.#out.push(requestFrame(request.kind, id, answered, request.payload));
  }

  /** Takes a frame. @throws {@link Misbehaved} when it is no part of the protocol. */
  handle(now: number, frame: Uint8Array): Flow | null {
    try {
      return this.#handle(now, frame);
    } catch (error) {
      throw error instanceof DecodeError ? new Misbehaved(error.message) : error;
    }
  }

  #handle(now: number, frame: Uint8Array): Flow | null {
    const kind = frame[0];
    if (kind === undefined) throw new Misbehaved("an empty frame");
    if (kind >= 0xa0 && kind <= 0xbf) {
      this.#seatFrame(now, kind, frame);
      return null;
    }
    if (kind >= 0x90 && kind <= 0x9f) {
      const { id, payload } = replyOf(frame);
      this.#reply(now, id, kind, payload);
      return null;
    }
    const payload = frame.subarray(1);
    switch (kind) {
      case kinds.serverPing: {
        stampOf(frame);
        const pong = frame.slice();
        pong[0] = kinds.pong;
        this.#out.push(pong);
        return null;
      }
      case kinds.serverPong:
        return { type: "pong", stamp: stampOf(frame) };
      case kinds.closing:
        return { type: "closing", refusal: refusalOf(payload) };
      case kinds.goAway: {
        const { message, sessionServers } = goAwayOf(payload);
        return { type: "go_away", message, servers: sessionServers };
      }
      case kinds.sessionServers:
        return { type: "servers", servers: sessionServersOf(payload) };
      case kinds.rejoined: {
        const joined = checked(joinedOf(payload));
        const seated = this.#seats.get(joined.instance);
        if (seated !== undefined) this.#takeUp(now, seated, joined);
        // It was given up meanwhile: nobody would know of it. But one that a page before this one had is for this one to
        // take, whose join may be on its way; and a leave that is, needs no other.
        else if (this.#inherited === 0) this.#leave(now, joined.instance);
        return null;
      }
      case kinds.serverHello:
      case kinds.checkedIn:
        throw new Misbehaved(`kind ${kind} comes once, before everything else`);
      default:
        this.stats.unknownFrames += 1; // Of a newer version.
        return null;
    }
  }

  #seatFrame(now: number, kind: number, frame: Uint8Array): void {
    const channel = channelOf(frame);
    // A seat that was just given up may still be spoken to.
    const seated = this.#seats.get(this.#channels.get(channel) ?? "");
    if (seated === undefined) return;
    const { seat } = seated;
    if (kind === kinds.patch) seat.patch(now, patchOf(frame));
    else if (kind === kinds.piece) seat.piece(now, pieceOf(frame));
    else if (kind < kinds.patch) seat.down(now, downOf(frame));
    else this.stats.unknownFrames += 1;
    seat.frames(now, channel, this.#out);
    if (seat.ended !== null) this.#forget(seat.instance);
  }

  #forget(instance: string): void {
    const channel = this.#seats.get(instance)?.channel ?? null;
    if (channel !== null) this.#channels.delete(channel);
    this.#seats.delete(instance);
    this.#resuming.delete(instance);
  }

  /** A room has something to say. */
  flush(now: number, seat: Seat): void {
    const seated = this.#seats.get(seat.instance);
    if (seated?.seat === seat && seated.channel !== null) seat.frames(now, seated.channel, this.#out);
  }

  #reply(now: number, id: number, kind: number, payload: Uint8Array): void {
    if (id > this.#lastRequest || id === 0) throw new Misbehaved(`request ${id} is answered, and was never made`);
    if (kind === kinds.changes) return this.#changes(now, id, payload);
    const request = this.#underWay.get(id);
    if (request === undefined) {
      // Given up. If it took a seat, nobody knows of it; one that a page before this one took is for this one to take.
      if (kind === kinds.joined && id > this.#inherited) {
        const { instance } = joinedOf(payload);
        if (!this.#seats.has(instance)) this.#leave(now, instance);
      }
      return;
    }
    const { asker } = request;
    const refusal = kind === kinds.refused ? refusalOf(payload) : null;
    if (refusal?.code === "undecided" && (asker.type === "caller" || asker.type === "kept")) {
      // The answer is still to come, for who asks again; until then its number stays taken.
      request.asker = { type: "kept" };
      request.deadline = now + KEPT;
      give(asker, new UndecidedError(id));
      return;
    }
    this.#underWay.delete(id);
    if (asker.type === "rejoin") {
      this.#rejoined(now, asker.instance, kind, payload, refusal);
    } else if (asker.type === "rewatch") {
      this.#rewatched(now, asker.watch, id, kind, refusal);
    } else {
      const done = refusal !== null ? new RefusedError(refusal) : this.#done(now, id, kind, payload, request);
      if (refusal !== null && request.watch !== null) {
        this.#watches.delete(request.watch); // It never was: there is nothing to end.
        request.watch.mirror.ended = refusal;
      }
      if (asker.type === "kept") this.#late.set(id, { answer: done, until: request.deadline });
      else if (asker.type === "caller") give(asker, done);
      else this.#discard(now, done);
    }
    this.#start();
  }

  #done(now: number, id: number, kind: number, payload: Uint8Array, { watch, isRaw }: Request): Answer {
    switch (kind) {
      case kinds.created:
        return { type: "created", instance: instanceOf(payload) };
      case kinds.joined:
        return this.#joined(now, checked(joinedOf(payload)), isRaw);
      case kinds.left: {
        const instance = instanceOf(payload);
        this.#seats.get(instance)?.seat.end({ code: "left", message: "the seat was given up" });
        this.#forget(instance);
        return { type: "left" };
      }
      case kinds.destroyed:
        instanceOf(payload);
        return { type: "destroyed" };
      case kinds.found:
        return { type: "found", found: foundOf(payload) };
      case kinds.watching:
        if (watch === null) throw new Misbehaved(`request ${id} is no live search`);
        watch.standing = "lives";
        if (watch.isStopped) this.#unwatch(now, id);
        return { type: "watching", watch };
      case kinds.unwatched:
        return { type: "unwatched" };
      case kinds.ranking:
        return { type: "ranking", ranking: rankingOf(payload) };
      default: {
        const message = `request ${id} is answered with a frame of kind ${kind}, which is of a newer version`;
        return new RefusedError({ code: "unexpected_kind", message });
      }
    }
  }

  /** A seat is taken that the application asked for. */
  #joined(now: number, joined: Joined, isRaw: boolean): Answer {
    const { instance, channel } = joined;
    if (this.#seats.has(instance)) {
      return new ArgumentError(`this client already has a room for instance ${instance}`);
    }
    const seat = new Seat(joined, this.stats);
    seat.listener = this.outside.listener(seat, isRaw);
    seat.views.expect(now);
    this.#seats.set(instance, { seat, channel, rejoinAt: Infinity, rejoinPause: AGAIN_PAUSE });
    this.#channels.set(channel, instance);
    return { type: "joined", seat };
  }

  /** Nobody wants this answer: what it gave is given up. */
  #discard(now: number, answer: Answer): void {
    if (answer instanceof Error) return;
    if (answer.type === "watching") this.stopWatch(now, answer.watch);
    if (answer.type === "joined" && answer.seat.ended === null) {
      const { instance } = answer.seat;
      this.#forget(instance);
      this.#leave(now, instance);
    }
  }

  /** A seat is taken again, or not. */
  #rejoined(now: number, instance: string, kind: number, payload: Uint8Array, refusal: Refusal | null): void {
    const seated = this.#seats.get(instance);
    if (seated === undefined) {
      // It was given up meanwhile: nobody would know of it.
      if (kind === kinds.joined) this.#leave(now, instance);
    } else if (kind === kinds.joined) {
      const joined = checked(joinedOf(payload));
      if (joined.instance !== instance) throw new Misbehaved(`a join of ${instance} is answered otherwise`);
      this.#takeUp(now, seated, joined);
    } else if (refusal === null) {
      throw new Misbehaved(`a join of ${instance} is answered otherwise`);
    } else if (PASSING.includes(refusal.code)) {
      seated.rejoinAt = now + seated.rejoinPause;
      seated.rejoinPause = Math.min(seated.rejoinPause * 2, AGAIN_PAUSE_MAX);
    } else {
      seated.seat.end(refusal);
      this.#forget(instance);
    }
  }

  /** A seat is taken again: on a new connection, or where its instance goes on. */
  #takeUp(now: number, seated: Seated, joined: Joined): void {
    seated.seat.resume(now, joined, this.#isSameSession);
    seated.seat.frames(now, joined.channel, this.#out);
    if (seated.channel !== null) this.#channels.delete(seated.channel);
    seated.channel = joined.channel;
    seated.rejoinPause = AGAIN_PAUSE;
    this.#channels.set(joined.channel, joined.instance);
    this.#resuming.delete(joined.instance);
  }

  /** A live search is set up again, or not. */
  #rewatched(now: number, watched: Watched, id: number, kind: number, refusal: Refusal | null): void {
    if (watched.isStopped) {
      // It was ended meanwhile. Where it may have been set up, it is ended there too.
      if (refusal === null || refusal.code === "undecided") this.#unwatch(now, id);
    } else if (kind === kinds.watching) {
      watched.standing = "lives";
      watched.at = Infinity;
    } else if (refusal === null) {
      throw new Misbehaved(`live search ${id} is answered otherwise`);
    } else {
      if (refusal.code !== "undecided") watched.number = null;
      // Until the game servers have said what they run, a master that has just begun knows no kind.
      const isUnknown = refusal.code === "kind_unknown" || refusal.code === "field_unknown";
      if (PASSING.includes(refusal.code) || (isUnknown && now < watched.unknownUntil)) {
        askAgainLater(watched, now);
      } else {
        watched.mirror.end(refusal);
        this.#watches.delete(watched);
      }
    }
  }

  /** A live search has something to tell. */
  #changes(now: number, id: number, payload: Uint8Array): void {
    const changes = changesOf(payload);
    const watched = [...this.#watches].find(({ number }) => number === id);
    if (watched === undefined) {
      // One that was just ended may still be told of; one of a page that is gone is ended by this one.
      if (id <= this.#inherited && changes.anew && changes.ended === null) this.#unwatch(now, id);
      return;
    }
    if (changes.ended?.code === "watch_unknown") {
      // One whose request is under way is set up by the answer to it.
      if (watched.standing === "lives") {
        watched.number = null;
        watched.unknownUntil = now + KEPT;
        askAgainLater(watched, now);
        watched.mirror.expectAnew();
      }
      return;
    }
    if (changes.anew) {
      watched.pause = AGAIN_PAUSE;
      if (watched.standing === "lives") watched.at = Infinity;
    }
    watched.mirror.take(changes);
    if (watched.mirror.ended !== null) this.#watches.delete(watched);
    else if (watched.mirror.seen !== null) this.#seen.add(watched);
    this.#acknowledge(now);
  }

  /** Asks for a live search again: the server has forgotten it, or may have. */
  #rewatch(now: number, watched: Watched): void {
    if (watched.standing === "lives") {
      watched.unknownUntil = now + KEPT;
      watched.mirror.expectAnew();
    }
    watched.standing = "asked";
    watched.at = Infinity;
    const { number, payload } = watched;
    watched.number = null;
    // It may live all the same, and there is only room for so many.
    if (number !== null) this.#unwatch(now, number);
    const asker: Asker = { type: "rewatch", watch: watched };
    this.#enqueue({ kind: kinds.watch, payload, leaves: null, isRaw: false, deadline: now + KEPT, asker, watch: null });
  }

  /** Acknowledges what live searches told, as far as the rate allows. */
  #acknowledge(now: number): void {
    for (const watched of this.#seen) {
      if (!this.#isOnline || this.#seenUntil > now + SEEN_AHEAD) return;
      this.#seen.delete(watched);
      const { number, mirror } = watched;
      const n = mirror.seen;
      mirror.seen = null;
      if (number === null || n === null) continue;
      this.#out.push(plainFrame(kinds.seen, { watch: number, n }));
      this.#seenUntil = Math.max(this.#seenUntil, now) + SEEN_EVERY;
    }
  }

  /** When {@link timePassed} has something to do; `Infinity` if never. */
  deadline(): number {
    let at = this.#isOnline && this.#seen.size > 0 ? this.#seenUntil - SEEN_AHEAD : Infinity;
    for (const { deadline } of this.#waiting) at = Math.min(at, deadline);
    for (const { deadline } of this.#underWay.values()) at = Math.min(at, deadline);
    for (const { until } of this.#late.values()) at = Math.min(at, until);
    for (const { seat, channel, rejoinAt } of this.#seats.values()) {
      at = Math.min(at, channel === null ? rejoinAt : seat.deadline());
    }
    for (const watched of this.#watches) at = Math.min(at, watched.at);
    return at;
  }

  /** Does what is due. */
  timePassed(now: number): void {
    const due = this.#waiting.filter(({ deadline }) => deadline <= now);
    if (due.length > 0) this.#waiting = this.#waiting.filter(({ deadline }) => deadline > now);
    for (const { asker } of due) {
      if (asker.type === "rejoin") this.#rejoin(now, asker.instance);
      else if (asker.type === "rewatch") this.#rewatch(now, asker.watch);
      else give(asker, new UnavailableError());
    }
    for (const [id, { deadline }] of [...this.#underWay]) if (deadline <= now) this.#requestDue(now, id);
    for (const [id, { answer, until }] of [...this.#late]) {
      if (until > now) continue;
      this.#late.delete(id);
      this.#discard(now, answer);
    }
    for (const [instance, seated] of [...this.#seats]) {
      if (seated.channel !== null) {
        if (seated.seat.deadline() <= now) seated.seat.frames(now, seated.channel, this.#out);
      } else if (seated.rejoinAt <= now) {
        seated.rejoinAt = Infinity;
        this.#rejoin(now, instance);
      }
    }
    for (const watched of [...this.#watches]) if (watched.at <= now) this.#rewatch(now, watched);
    this.#acknowledge(now);
    this.#start();
  }

  /** A request has no answer by its deadline. */
  #requestDue(now: number, id: number): void {
    const request = this.#underWay.get(id)!;
    const { asker } = request;
    if (asker.type === "caller") {
      request.asker = { type: "kept" };
      request.deadline = now + KEPT;
      give(asker, new UndecidedError(id));
      return;
    }
    this.#underWay.delete(id); // Given up: its number counts as answered from here on.
    if (asker.type === "rejoin") this.#rejoin(now, asker.instance);
    else if (asker.type === "rewatch") {
      if (this.#watches.has(asker.watch)) this.#rewatch(now, asker.watch);
      else this.#unwatch(now, id); // It was ended meanwhile, and it may have been set up.
    } else if (request.watch !== null) {
      this.stopWatch(now, request.watch);
    }
  }
}

/** It is to be asked again after a pause. */
function askAgainLater(watched: Watched, now: number): void {
  watched.standing = "again";
  watched.at = now + watched.pause;
  watched.pause = Math.min(watched.pause * 2, AGAIN_PAUSE_MAX);
}

/** A request's fields, unless they are longer than a frame. */
function encoded(fields: object): Uint8Array {
  const payload = encode(fields);
  const max = UP_BYTES_MAX - REQUEST_HEADER_BYTES;
  if (payload.length > max) throw new TooLargeError(`a request of ${payload.length} bytes; at most ${max} are allowed`);
  return payload;
}

function give(asker: Asker, answer: Answer): void {
  if (asker.type === "caller") asker.answer(answer);
}

function checked(joined: Joined): Joined {
  const { instance, upReceived, downNext } = joined;
  if (Math.max(upReceived, downNext) > NUMBER_MAX) {
    throw new Misbehaved(`the streams of a seat in ${instance} begin at ${upReceived} and ${downNext}`);
  }
  return joined;
}
