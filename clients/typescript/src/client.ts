/** The application's handle on a session, and what it can ask the directory for. */

import { type Auth, type Connection, type Credentials, Dialer, isFinal } from "./dialer.js";
import {
  ArgumentError,
  ClosedError,
  GreenroomError,
  Misbehaved,
  type Refusal,
  RefusedError,
} from "./errors.js";
import { EVERYTHING, type Filter } from "./filter.js";
import { callOut, Handlers, type Unsubscribe } from "./handlers.js";
import { encode } from "./msgpack.js";
import { Room, type RoomHost } from "./room.js";
import type { Seat, Stats } from "./seat.js";
import { ServerBook } from "./servers.js";
import { type Done, Session, type Watched } from "./session.js";
import { platformSocket, type SocketConstructor } from "./socket.js";
import { Keep, type Storage } from "./storage.js";
import type { Current, WatchEvent } from "./watch.js";
import { type Found, kinds, type Listed, NOTHING, pingFrame, type Ranking } from "./wire.js";

/** Connections in a row that may end because the server broke the protocol. */
const MISBEHAVED_MAX = 5;
/** How long in ms a connection may take to close. */
const CLOSE_WITHIN = 1000;
/** What timers of browsers and of Node hold, in ms. */
const TIMER_MAX = 2 ** 31 - 1;

/** Settings of a client. */
export interface Options {
  /** The well-known session servers: `ws://host:port` or `wss://host:port`. */
  readonly servers: readonly string[];
  /** Who checks in. */
  readonly auth: Auth;
  /** Where it is kept who the guest is, which session goes on after the page is loaded again, and the list of servers. */
  readonly storage?: Storage;
  /** What opens connections, where the platform has no `WebSocket`, or another one is wanted. */
  readonly webSocket?: SocketConstructor;
  /**
   * Certificates (PEM) that vouch for `wss://` servers in place of those that Node knows: for a cluster with an authority
   * of its own. On Node only: a browser trusts whom its user trusts.
   */
  readonly trust?: string;
  /** How long `connect` tries, in all. 15,000 ms by default. */
  readonly connectMs?: number;
  /** How long one address may take to take a connection. 5,000 ms by default. */
  readonly attemptMs?: number;
  /** How long another connection is looked for when one is lost. 120,000 ms by default, as long as a session waits. */
  readonly reconnectMs?: number;
  /** How long a request, a call or a query may take before it counts as undecided. 5,000 ms by default. */
  readonly requestMs?: number;
}

/** Where a client stands: checked in; looking for another connection; connected again, seats included; over. */
export type Status = "live" | "resuming" | "resumed" | "closed";

/** What {@link Client.on} tells. */
export interface ClientEvents {
  status: (status: Status) => void;
  /** It is over, and why. Nothing follows. Soon, where it is over already. */
  ended: (why: Refusal) => void;
}

/** What a new instance is to be. */
export interface CreateOptions {
  /** At most one instance of the kind has this key; if there is one, it is the answer. */
  readonly key?: string;
  /** The kind's own parameters. */
  readonly params?: unknown;
  /** It is found by nobody: who wants in has its id or its key. */
  readonly private?: boolean;
  /** Seats are kept for these users (ids) for a while, 32 at most. */
  readonly expected?: readonly string[];
}

/** How a seat is taken. */
export interface JoinOptions {
  /** What the game gets to see to decide whether it admits this user. */
  readonly options?: unknown;
  /** The kind takes and gives bytes of its own, and no MessagePack. */
  readonly raw?: boolean;
}

/** Which instance a seat is taken in, and what one that has to be made is to be. */
export interface JoinOrCreateOptions extends CreateOptions, JoinOptions {
  /** Only in one that this lets through. Callers with the same filter meet. */
  readonly filter?: Filter;
}

/** How instances are looked for. */
export interface SearchOptions {
  /** From the smallest to the largest by this field; by id otherwise. */
  readonly order?: { readonly field: string; readonly descending?: boolean } | null;
  /** So many at most, 1 to 100. 20 by default. */
  readonly limit?: number;
  /** What follows the answer of the same search that had this cursor. */
  readonly cursor?: Uint8Array | null;
  /** Says how it was answered. */
  readonly explain?: boolean;
}

/** Which part of a rank board. */
export interface RankOptions {
  /** From this rank on; 1, the best, by default. */
  readonly from?: number;
  /** This user (id) in the middle; `null` for the caller. */
  readonly around?: string | null;
  /** So many at most, 1 to 100. 20 by default. */
  readonly limit?: number;
}

/** A live search. */
export interface Watch {
  /** What is found, by id. */
  readonly current: Current;
  /** Ends it; nothing more is told. */
  stop(): void;
}

/** What a request came to, for who asked again. See {@link Client.askAgain}. */
export type Answer =
  | { readonly type: "created"; readonly instance: string }
  | { readonly type: "joined"; readonly room: Room }
  | { readonly type: "left" }
  | { readonly type: "destroyed" }
  | { readonly type: "found"; readonly found: Found }
  | { readonly type: "watching"; readonly watch: Watch }
  | { readonly type: "ranking"; readonly ranking: Ranking };

/**
 * Checks in.
 *
 * @throws `RefusedError` with a refusal that would be the same everywhere, as of the credentials; `NoServerError` with the
 * reason of each address; `ArgumentError` when the settings can't be used.
 */
export async function connect(options: Options): Promise<Client> {
  const keep = new Keep(options.storage ?? {});
  try {
    const Socket = options.webSocket ?? (await platformSocket(options.trust));
    const now = (): number => performance.now();
    const book = new ServerBook(options.servers, keep);
    const { credentials, lastRequest } = restored(options.auth, keep);
    const dialer = new Dialer(book, credentials, Socket, options.attemptMs ?? 5000, now);
    const giveUp = now() + (options.connectMs ?? 15_000);
    try {
      return new Client(await dialer.checkIn(giveUp), dialer, keep, options, lastRequest);
    } catch (error) {
      // The session of the page before this one is over: this one begins its own.
      const isOver = error instanceof RefusedError && OVER.includes(error.code);
      if (lastRequest === 0 || !isOver) throw error;
      dialer.credentials = { ...credentials, sessionKey: newSession(keep) };
      return new Client(await dialer.checkIn(giveUp), dialer, keep, options, 0);
    }
  } catch (error) {
    keep.release();
    throw error;
  }
}

/** A session that ended so does not go on. */
const OVER = ["session_expired", "superseded", "kicked"];

const hex = (bytes: Uint8Array): string => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
const secret = (): Uint8Array => crypto.getRandomValues(new Uint8Array(16));

function newSession(keep: Keep): Uint8Array {
  const key = secret();
  keep.set("session", hex(key));
  keep.set("request", "0");
  return key;
}

/** What checking in is done with: what the tab has from the page before this one, or anew. */
function restored(auth: Auth, keep: Keep): { credentials: Credentials; lastRequest: number } {
  const given = auth.token;
  let token = typeof given === "function" ? given : (): string => given ?? "";
  if (auth.scheme === "guest" && given === undefined) {
    const kept = keep.get("guest") ?? hex(secret());
    keep.set("guest", kept);
    token = () => kept;
  }
  const key = /^[0-9a-f]{32}$/.exec(keep.get("session") ?? "")?.[0];
  const last = /^[0-9]{1,9}$/.exec(keep.get("request") ?? "")?.[0];
  const goesOn = key !== undefined && last !== undefined;
  const sessionKey = goesOn ? Uint8Array.from({ length: 16 }, (_, at) => parseInt(key.slice(2 * at, 2 * at + 2), 16)) : newSession(keep);
  const credentials = { sessionKey, scheme: auth.scheme, name: auth.name ?? "", token };
  return { credentials, lastRequest: goesOn ? Number(last) : 0 };
}

/** One session with a cluster. It ends with {@link close}, or when the cluster says so. */
export class Client {
  readonly #dialer: Dialer;
  readonly #keep: Keep;
  readonly #session: Session;
  readonly #host: RoomHost;
  readonly #rooms = new WeakMap<Seat, Room>();
  readonly #requestMs: number;
  readonly #reconnectMs: number;
  readonly #onStatus = new Handlers<[status: Status]>();
  readonly #onEnded = new Handlers<[why: Refusal]>();
  #connection: Connection | null = null;
  #status: Status = "live";
  #endedBy: Refusal | null = null;
  #identity: { user: string; name: string; session: string; server: string };
  #stats: Stats;
  /** Calls of the application that are to be made. */
  #calls: (() => void)[] = [];
  #isSettling = false;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #timerAt = Infinity;
  #misbehaved = 0;
  // Moments of this connection.
  #heard = 0;
  #sent = 0;
  #pinged = 0;

  /** @internal Clients come from {@link connect}. */
  constructor(connection: Connection, dialer: Dialer, keep: Keep, options: Options, lastRequest: number) {
    this.#dialer = dialer;
    this.#keep = keep;
    this.#requestMs = options.requestMs ?? 5000;
    this.#reconnectMs = options.reconnectMs ?? 120_000;
    this.#stats = {
      reconnects: 0,
      messages: 0,
      duplicatesDropped: 0,
      missed: 0,
      unheard: 0,
      patches: 0,
      snapshots: 0,
      states: 0,
      desyncs: 0,
      sentAgain: 0,
      misbehaved: 0,
      lastFault: "",
      unknownFrames: 0,
      roundTripMs: null,
    };
    const stats = this.#stats;
    this.#host = {
      defer: (call) => void this.#calls.push(call),
      flush: (seat) => this.#step((now) => this.#session.flush(now, seat)),
      leave: (instance) => this.leave(instance),
      requestMs: this.#requestMs,
      get latencyMs() {
        return stats.roundTripMs;
      },
    };
    const { user, name, session } = connection.checkedIn;
    this.#identity = { user, name, session, server: connection.address };
    this.#session = new Session(session, lastRequest, stats, {
      listener: (seat, isRaw) => {
        const room = new Room(seat, this.#host, isRaw);
        this.#rooms.set(seat, room);
        return room.listener;
      },
      requested: (id) => keep.set("request", String(id)),
    });
    this.#begin(connection);
  }

  /** The user's id, as the cluster decided. */
  get user(): string {
    return this.#identity.user;
  }
  /** The name that others see. Text, whatever is in it. */
  get name(): string {
    return this.#identity.name;
  }
  /** The session's id. */
  get session(): string {
    return this.#identity.session;
  }
  /** The session server that the client is connected to, or was last. */
  get server(): string {
    return this.#identity.server;
  }
  /** Where the client stands. */
  get status(): Status {
    return this.#status;
  }
  /** Why it is over, once it is. */
  get endedBy(): Refusal | null {
    return this.#endedBy;
  }
  /** Counts since the first check-in. */
  get stats(): Readonly<Stats> {
    return { ...this.#stats };
  }
  /** How long the last heartbeat took there and back, in ms; `null` before the first. */
  get latency(): number | null {
    return this.#stats.roundTripMs;
  }

  /** Calls when something happens to the session. */
  on<Name extends keyof ClientEvents>(name: Name, handler: ClientEvents[Name]): Unsubscribe {
    if (name === "status") return this.#onStatus.add(handler as ClientEvents["status"]);
    if (name !== "ended") throw new ArgumentError(`there is no event ${JSON.stringify(name)}`);
    const ended = handler as ClientEvents["ended"];
    const why = this.#endedBy;
    if (why === null) return this.#onEnded.add(ended);
    let isWanted = true;
    queueMicrotask(() => {
      if (isWanted) callOut(() => ended(why));
    });
    return () => {
      isWanted = false;
    };
  }

  /**
   * Ends the session, and waits until the connection is closed. Seats stay the user's for as long as their games grant:
   * leave them first to give them up.
   */
  async close(): Promise<void> {
    const closed = this.#connection?.wire.closed;
    this.#over({ code: "left", message: "the application closed the client" });
    let timer: ReturnType<typeof setTimeout> | undefined;
    const late = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, CLOSE_WITHIN);
    });
    await Promise.race([closed, late]);
    clearTimeout(timer);
  }

  // Requests.

  /** Makes an instance, without a seat in it; gives its id. */
  async create(kind: string, options: CreateOptions = {}): Promise<string> {
    const done = await this.#request(kinds.create, { kind, ...making(options) });
    return expected(done, "created").instance;
  }

  /** Takes a seat in an instance. */
  async join<State = any, Out = any, In = any, Reply = any, Private = any, Query = any>(
    instance: string,
    { options, raw }: JoinOptions = {},
  ): Promise<Room<State, Out, In, Reply, Private, Query>> {
    const done = await this.#request(kinds.join, { instance, options: opaque(options) }, raw);
    return this.#rooms.get(expected(done, "joined").seat)!;
  }

  /**
   * Takes a seat in an instance of this kind that has a free one, else makes one. The instance in which the user has a
   * seat already comes first: a page that is loaded again is where it was.
   */
  async joinOrCreate<State = any, Out = any, In = any, Reply = any, Private = any, Query = any>(
    kind: string,
    options: JoinOrCreateOptions = {},
  ): Promise<Room<State, Out, In, Reply, Private, Query>> {
    const filter = options.filter ?? EVERYTHING;
    const fields = { kind, filter, ...making(options), options: opaque(options.options) };
    const done = await this.#request(kinds.joinOrCreate, fields, options.raw);
    return this.#rooms.get(expected(done, "joined").seat)!;
  }

  /** Gives a seat up, whether there is a {@link Room} for it or not. A seat that is gone already is no error. */
  async leave(instance: string): Promise<void> {
    try {
      expected(await this.#request(kinds.leave, { instance }), "left");
    } catch (error) {
      const isGone = error instanceof RefusedError && GONE.includes(error.code);
      if (!isGone) throw error;
    }
  }

  /** Closes an instance that this user made. */
  async destroy(instance: string): Promise<void> {
    expected(await this.#request(kinds.destroy, { instance }), "destroyed");
  }

  /** Looks for instances of a kind; the answer shows every write that was acknowledged before the question. */
  async search(kind: string, filter: Filter = EVERYTHING, options: SearchOptions = {}): Promise<Found> {
    const { order = null, limit = 20, cursor = null, explain = false } = options;
    const ordered = order === null ? null : { field: order.field, descending: order.descending ?? false };
    const done = await this.#request(kinds.search, { kind, filter, order: ordered, limit, cursor, explain });
    return expected(done, "found").found;
  }

  /** Every instance that is found, page after page as they are wanted; `limit` is that of a page. */
  async *find(kind: string, filter: Filter = EVERYTHING, options: SearchOptions = {}): AsyncGenerator<Listed, void> {
    let cursor = options.cursor ?? null;
    do {
      const found = await this.search(kind, filter, { ...options, cursor });
      yield* found.instances;
      cursor = found.cursor;
    } while (cursor !== null);
  }

  /**
   * Looks for instances of a kind and goes on telling what changes: first everything that is found, then `ready`, then
   * what is different. After a reconnect only what is different is told.
   */
  async watch(
    kind: string,
    filter: Filter,
    listener: (event: WatchEvent, current: Current) => void,
  ): Promise<Watch> {
    const watched = { current: new Map() as Current };
    const tell = (event: WatchEvent): void => void this.#calls.push(() => callOut(() => listener(event, watched.current)));
    const done = await this.#ask((deadline, answer) => {
      this.#session.watch({ kind, filter }, deadline, tell, answer);
    });
    const { watch } = expected(done, "watching");
    watched.current = watch.mirror.current;
    return this.#watch(watch);
  }

  #watch(watched: Watched): Watch {
    this.#step(() => watched.mirror.open());
    return {
      current: watched.mirror.current,
      stop: () => this.#step((now) => this.#session.stopWatch(now, watched)),
    };
  }

  /** Reads a rank board: its best, unless another part is asked for. */
  async rank(board: string, { from = 1, around, limit = 20 }: RankOptions = {}): Promise<Ranking> {
    const part = around === undefined ? { from } : { around };
    return expected(await this.#request(kinds.rank, { board, part, limit }), "ranking").ranking;
  }

  /**
   * Waits once more for the answer to a request that was `UndecidedError`, whose `request` it takes. The request is
   * repeated with the same id, so that it happens once at most; answers are kept for 30 s.
   */
  async askAgain(request: number): Promise<Answer> {
    const done = await this.#ask((deadline, answer) => this.#session.askAgain(request, deadline, answer));
    if (done.type === "joined") return { type: "joined", room: this.#rooms.get(done.seat)! };
    if (done.type === "watching") return { type: "watching", watch: this.#watch(done.watch) };
    if (done.type === "unwatched") throw mismatch();
    return done;
  }

  #request(kind: number, fields: object, isRaw = false): Promise<Done> {
    return this.#ask((deadline, answer) => this.#session.request(kind, fields, deadline, answer, isRaw));
  }

  #ask(
    begin: (deadline: number, answer: (answer: Done | GreenroomError) => void) => void,
  ): Promise<Done> {
    return new Promise((resolve, reject) => {
      if (this.#endedBy !== null) throw new ClosedError(this.#endedBy);
      this.#step((now) =>
        begin(now + this.#requestMs, (answer) => (answer instanceof Error ? reject(answer) : resolve(answer))),
      );
    });
  }

  // The connection.

  /** Lets the session decide, then does what it decided. */
  #step(decide: (now: number) => void): void {
    try {
      if (this.#endedBy === null) decide(this.#dialer.now());
    } finally {
      this.#settle();
    }
  }

  #settle(): void {
    if (this.#isSettling) return; // Whoever called the application goes on when it is back.
    this.#isSettling = true;
    do {
      for (const frame of this.#session.takeFrames()) {
        this.#sent = this.#dialer.now();
        this.#connection?.wire.send(frame);
      }
      if (this.#status === "resuming" && this.#connection !== null && this.#session.isResumed) this.#tell("resumed");
      const calls = this.#calls;
      this.#calls = [];
      calls.forEach(callOut);
    } while (this.#calls.length > 0);
    this.#isSettling = false;
    for (const frame of this.#session.takeFrames()) this.#connection?.wire.send(frame);
    this.#schedule();
  }

  #tell(status: Status): void {
    this.#status = status;
    this.#calls.push(() => this.#onStatus.tell(status));
  }

  #begin(connection: Connection): void {
    const { user, name, session, sessionServers } = connection.checkedIn;
    this.#connection = connection;
    this.#identity = { user, name, session, server: connection.address };
    this.#dialer.book.learn(sessionServers);
    this.#heard = this.#sent = this.#dialer.now();
    this.#ping();
    this.#step((now) => this.#session.connected(now, session));
    connection.wire.take(
      (frame) => this.#take(connection, frame),
      (error) => {
        if (error instanceof Misbehaved) this.#fault(error);
        else this.#lost();
      },
    );
  }

  #ping(): void {
    this.#pinged = this.#dialer.now();
    this.#connection?.wire.send(pingFrame(Math.floor(this.#pinged * 1000) >>> 0));
  }

  #take(connection: Connection, frame: Uint8Array): void {
    if (this.#connection !== connection) return;
    this.#heard = this.#dialer.now();
    let flow = null;
    try {
      this.#step((now) => {
        flow = this.#session.handle(now, frame);
      });
    } catch (error) {
      if (error instanceof Misbehaved) return this.#fault(error);
      throw error;
    }
    if (flow !== null && this.#connection === connection) this.#follow(flow, connection);
  }

  #follow(flow: NonNullable<ReturnType<Session["handle"]>>, { address }: Connection): void {
    const { book } = this.#dialer;
    switch (flow.type) {
      case "pong": {
        const now = Math.floor(this.#dialer.now() * 1000) >>> 0;
        this.#stats.roundTripMs = ((now - flow.stamp) >>> 0) / 1000;
        return;
      }
      case "servers":
        return book.learn(flow.servers);
      case "go_away":
        book.learn(flow.servers);
        // With nowhere to go, the one that is stopping is still better than none.
        if (book.hasOtherThan(address)) this.#lost();
        return;
      case "closing":
        if (isFinal(flow.refusal)) this.#over(flow.refusal);
        else this.#lost(false);
    }
  }

  /** The server broke the protocol: another connection may be better, but not for ever. */
  #fault({ message }: Misbehaved): void {
    this.#misbehaved += 1;
    this.#stats.misbehaved += 1;
    this.#stats.lastFault = message;
    if (this.#misbehaved >= MISBEHAVED_MAX) this.#over({ code: "malformed", message });
    else this.#lost(false);
  }

  /** The connection is gone, or to be given up: the client looks for another. */
  #lost(isByItself = true): void {
    const connection = this.#connection;
    if (connection === null) return;
    if (isByItself) this.#misbehaved = 0;
    this.#connection = null;
    connection.wire.close();
    this.#dialer.ended(connection);
    this.#tell("resuming");
    this.#step(() => this.#session.disconnected());
    void this.#resume();
  }

  async #resume(): Promise<void> {
    try {
      const connection = await this.#dialer.checkIn(this.#dialer.now() + this.#reconnectMs);
      if (this.#endedBy !== null) return connection.wire.close();
      this.#stats.reconnects += 1;
      this.#begin(connection);
    } catch (error) {
      if (this.#endedBy !== null) return;
      const message = error instanceof Error ? error.message : String(error);
      this.#over(error instanceof RefusedError ? error.refusal : { code: "unavailable", message });
    }
  }

  /** It is over. */
  #over(why: Refusal): void {
    if (this.#endedBy !== null) return;
    this.#session.close(why);
    this.#endedBy = why;
    // A session that nobody could be reached for goes on when the page is loaded again; any other is over.
    if (why.code !== "unavailable") this.#keep.set("session", null);
    this.#keep.release();
    this.#dialer.stop();
    this.#connection?.wire.close();
    this.#connection = null;
    this.#tell("closed");
    this.#calls.push(() => this.#onEnded.tell(why));
    this.#settle();
  }

  // Time.

  #pingAt(beat: number): number {
    return Math.max(Math.min(this.#sent, this.#heard), this.#pinged) + beat;
  }

  #lostAt(beat: number): number {
    return this.#heard + beat * 3.5;
  }

  #schedule(): void {
    const beat = this.#connection?.heartbeat ?? Infinity;
    const at =
      this.#endedBy === null ? Math.min(this.#session.deadline(), this.#pingAt(beat), this.#lostAt(beat)) : Infinity;
    if (at === this.#timerAt) return;
    clearTimeout(this.#timer);
    this.#timerAt = at;
    if (at === Infinity) return;
    this.#timer = setTimeout(() => this.#due(), Math.min(Math.max(at - this.#dialer.now(), 0), TIMER_MAX));
  }

  #due(): void {
    this.#timerAt = Infinity;
    const now = this.#dialer.now();
    const beat = this.#connection?.heartbeat ?? Infinity;
    if (this.#lostAt(beat) <= now) return this.#lost();
    if (this.#pingAt(beat) <= now) this.#ping();
    this.#step(() => this.#session.timePassed(now));
  }
}

/** Refusals to leave where there is nothing to leave. */
const GONE = ["not_seated", "instance_unknown", "instance_closed"];

/** A value as bytes of its kind's own; none for the default. */
function opaque(value: unknown): Uint8Array {
  return value === undefined ? NOTHING : encode(value);
}

function making({ key, params, private: isPrivate, expected }: CreateOptions): object {
  return { key: key ?? null, params: opaque(params), private: isPrivate ?? false, expected: expected ?? [] };
}

function mismatch(): RefusedError {
  const message = "the server answered another question than it was asked";
  return new RefusedError({ code: "unexpected_kind", message });
}

function expected<Type extends Done["type"]>(done: Done, type: Type): Extract<Done, { type: Type }> {
  if (done.type !== type) throw mismatch();
  return done as Extract<Done, { type: Type }>;
}
