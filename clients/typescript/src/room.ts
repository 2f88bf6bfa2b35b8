/** A seat in an instance, as the application has it. */

import { Collection, type ItemHandlers, type Path } from "./collections.js";
import { ArgumentError, CallUndecidedError, DecodeError, Misbehaved, type Refusal, UnavailableError } from "./errors.js";
import { callOut, Handlers, type Unsubscribe } from "./handlers.js";
import { decode, encode } from "./msgpack.js";
import type { Asking, Seat, SeatListener } from "./seat.js";
import type { Latest } from "./views.js";

/** Messages that wait for the first `onMessage`, and their bytes. Beyond, the oldest are dropped and counted. */
const UNHEARD_MAX = 256;
const UNHEARD_BYTES_MAX = 256 * 1024;

/** An item of a collection: of a map with whatever keys, or of a list. */
export type ItemOf<C> = C extends readonly (infer Item)[] ? Item : C extends object ? C[keyof C] : never;

/** What a room needs of its client. */
export interface RoomHost {
  /** Has the application called after what is going on now. */
  defer(call: () => void): void;
  /** The seat has something to send. */
  flush(seat: Seat): void;
  leave(instance: string): Promise<void>;
  readonly requestMs: number;
  readonly latencyMs: number | null;
}

/**
 * A seat in an instance, and what happens there. `State` is what everybody in it sees, `Out` what the game sends, `In`
 * what it takes, `Reply` what it answers calls with, `Private` what only this seat sees, `Query` what it can be asked:
 * the game's own types, as MessagePack has them.
 *
 * The seat is kept until {@link leave}, whatever becomes of connections and session servers.
 */
export class Room<State = any, Out = any, In = any, Reply = any, Private = any, Query = any> {
  readonly #seat: Seat;
  readonly #host: RoomHost;
  readonly #isRaw: boolean;
  #state: { readonly value: State; readonly tick: number } | null = null;
  #privateState: { readonly value: Private; readonly tick: number } | null = null;
  /** Until somebody listens. */
  #unheard: { readonly message: Out; readonly tick: number; readonly bytes: number }[] | null = [];
  #unheardBytes = 0;
  readonly #collections = new Set<Collection>();
  readonly #onState = new Handlers<[state: State, tick: number]>();
  readonly #onPrivateState = new Handlers<[state: Private, tick: number]>();
  readonly #onMessage = new Handlers<[message: Out, tick: number]>();
  readonly #onRefused = new Handlers<[number: number, refusal: Refusal]>();
  readonly #onMissed = new Handlers<[messages: number]>();
  readonly #onRewound = new Handlers<[unacknowledged: number]>();
  readonly #onLeave = new Handlers<[why: Refusal]>();

  /** @internal Rooms come from a `Client`. */
  constructor(seat: Seat, host: RoomHost, isRaw: boolean) {
    this.#seat = seat;
    this.#host = host;
    this.#isRaw = isRaw;
  }

  /** @internal Takes what the seat tells, and has the application told. */
  get listener(): SeatListener {
    const defer = (call: () => void): void => this.#host.defer(call);
    return {
      message: (payload, tick) => {
        const message = this.#read<Out>(payload, "a message");
        defer(() => this.#message(message, tick, payload.length));
      },
      view: (view, isPrivate) => {
        const value = this.#read<any>(view.bytes, "a view");
        defer(() => (isPrivate ? this.#privateView(value, view) : this.#view(value, view)));
      },
      refused: (number, refusal) => defer(() => this.#onRefused.tell(number, refusal)),
      missed: (messages) => defer(() => this.#onMissed.tell(messages)),
      rewound: (unacknowledged) => defer(() => this.#onRewound.tell(unacknowledged)),
      left: (why) => defer(() => this.#onLeave.tell(why)),
    };
  }

  #read<T>(payload: Uint8Array, what: string): T {
    if (this.#isRaw) return payload.slice() as T;
    try {
      return decode(payload) as T;
    } catch (error) {
      throw error instanceof DecodeError ? new Misbehaved(`${what} of the game: ${error.message}`) : error;
    }
  }

  #write(value: unknown): Uint8Array {
    if (!this.#isRaw) return encode(value);
    if (value instanceof Uint8Array) return value.slice();
    throw new ArgumentError("this room takes bytes, as it was joined with `raw`");
  }

  #message(message: Out, tick: number, bytes: number): void {
    if (this.#unheard === null) return this.#onMessage.tell(message, tick);
    this.#unheard.push({ message, tick, bytes });
    this.#unheardBytes += bytes;
    while (this.#unheard.length > UNHEARD_MAX || this.#unheardBytes > UNHEARD_BYTES_MAX) {
      this.#unheardBytes -= this.#unheard.shift()!.bytes;
      this.#seat.stats.unheard += 1;
    }
  }

  #view(value: State, { tick }: Latest): void {
    this.#state = { value, tick };
    for (const collection of [...this.#collections]) this.#tellItems(collection);
    this.#onState.tell(value, tick);
  }

  #privateView(value: Private, { tick }: Latest): void {
    this.#privateState = { value, tick };
    this.#onPrivateState.tell(value, tick);
  }

  #tellItems(collection: Collection): void {
    for (const call of collection.update(this.#state?.value)) {
      if (this.#collections.has(collection)) callOut(call);
    }
  }

  /** The instance's id: others join it by this. */
  get instance(): string {
    return this.#seat.instance;
  }
  /** The name of its kind. */
  get kind(): string {
    return this.#seat.kind;
  }
  /** This client's seat, from 0. */
  get seat(): number {
    return this.#seat.seat;
  }
  /** Steps of the game per second; 0 for one that steps when it is spoken to. */
  get tickRate(): number {
    return this.#seat.tickRate;
  }
  /** What everybody sees, newest; `undefined` before the first came. Another object each time it changes. */
  get state(): State | undefined {
    return this.#state?.value;
  }
  /** Low 32 bits of the step that made {@link state}. */
  get tick(): number {
    return this.#state?.tick ?? 0;
  }
  /** What only this seat sees, newest; `undefined` before it came, and where the game has no such thing. */
  get privateState(): Private | undefined {
    return this.#privateState?.value;
  }
  /** Messages and calls that the instance has not yet acknowledged: at most 64. */
  get unacknowledged(): number {
    return this.#seat.up.length;
  }
  /** How long the way to the session server and back took last, in ms; `null` before that was measured. */
  get latency(): number | null {
    return this.#host.latencyMs;
  }
  /** Why the seat is gone, once it is. */
  get left(): Refusal | null {
    return this.#seat.ended;
  }

  /** Calls for each new state, and soon for the one that is there. States that are overtaken may be skipped. */
  onState(handler: (state: State, tick: number) => void): Unsubscribe {
    const subscription = this.#onState.add(handler);
    return this.#first(subscription, () => this.#state, ({ value, tick }) => handler(value, tick));
  }

  /** As {@link onState}, of what only this seat sees. */
  onPrivateState(handler: (state: Private, tick: number) => void): Unsubscribe {
    const subscription = this.#onPrivateState.add(handler);
    return this.#first(subscription, () => this.#privateState, ({ value, tick }) => handler(value, tick));
  }

  /** Has `handler` called with what is there at this moment, unless it is unsubscribed before. */
  #first<T>(unsubscribe: Unsubscribe, there: () => T | null, handler: (value: T) => void): Unsubscribe {
    let isWanted = there() !== null;
    const before = there();
    queueMicrotask(() => {
      // What came meanwhile was told.
      if (isWanted && there() === before) callOut(() => handler(before!));
    });
    return () => {
      isWanted = false;
      unsubscribe();
    };
  }

  /**
   * Calls once for each item that comes into a collection of the state, and soon for each that is in it. A collection is
   * a map, whose keys are texts here whatever they are in the game, or a list whose items have an `id` or a `seat`,
   * which is then the key; items of other lists are known by where they stand. `path` leads to it: `"players"`,
   * `"board.pieces"`.
   */
  onAdd<P extends keyof State & string>(path: P, handler: (item: ItemOf<State[P]>, key: string) => void): Unsubscribe;
  onAdd<Item = any>(path: Path, handler: (item: Item, key: string) => void): Unsubscribe;
  onAdd(path: Path, handler: (item: any, key: string) => void): Unsubscribe {
    return this.#collect(path, { add: handler }, false);
  }

  /** Calls once for each item of a collection that is another one than before, with what it was. */
  onChange<P extends keyof State & string>(
    path: P,
    handler: (item: ItemOf<State[P]>, key: string, before: ItemOf<State[P]>) => void,
  ): Unsubscribe;
  onChange<Item = any>(path: Path, handler: (item: Item, key: string, before: Item) => void): Unsubscribe;
  onChange(path: Path, handler: (item: any, key: string, before: any) => void): Unsubscribe {
    return this.#collect(path, { change: handler }, true);
  }

  /** Calls once for each item that leaves a collection, with what it was. */
  onRemove<P extends keyof State & string>(path: P, handler: (item: ItemOf<State[P]>, key: string) => void): Unsubscribe;
  onRemove<Item = any>(path: Path, handler: (item: Item, key: string) => void): Unsubscribe;
  onRemove(path: Path, handler: (item: any, key: string) => void): Unsubscribe {
    return this.#collect(path, { remove: handler }, true);
  }

  #collect(path: Path, handlers: ItemHandlers, isKnown: boolean): Unsubscribe {
    const collection = new Collection(path, handlers);
    if (isKnown) collection.know(this.#state?.value);
    this.#collections.add(collection);
    if (!isKnown) {
      queueMicrotask(() => {
        if (this.#collections.has(collection)) this.#tellItems(collection);
      });
    }
    return () => {
      this.#collections.delete(collection);
    };
  }

  /**
   * Calls for each message of the game: each once, in order, also when it was sent while the connection was lost.
   * Messages from before the first call of this wait for it, up to 256 of them.
   */
  onMessage(handler: (message: Out, tick: number) => void): Unsubscribe {
    const unsubscribe = this.#onMessage.add(handler);
    const unheard = this.#unheard;
    if (unheard !== null && unheard.length === 0) this.#unheard = null;
    else if (unheard !== null) {
      queueMicrotask(() => {
        this.#unheard = null;
        for (const { message, tick } of unheard) this.#onMessage.tell(message, tick);
      });
    }
    return unsubscribe;
  }

  /** Calls when a message that was sent with {@link send} is refused, with the number that it gave. */
  onRefused(handler: (number: number, refusal: Refusal) => void): Unsubscribe {
    return this.#onRefused.add(handler);
  }

  /** Calls when messages to this seat are lost, since the client was away for longer than they are kept. */
  onMissed(handler: (messages: number) => void): Unsubscribe {
    return this.#onMissed.add(handler);
  }

  /**
   * Calls when the instance, or this seat in it, began anew: from an older state, or from none. Messages that were not
   * acknowledged, so many, may or may not have happened.
   */
  onRewound(handler: (unacknowledged: number) => void): Unsubscribe {
    return this.#onRewound.add(handler);
  }

  /** Calls once when the seat is gone, with why; soon, if it is gone already. Nothing follows. */
  onLeave(handler: (why: Refusal) => void): Unsubscribe {
    const subscription = this.#onLeave.add(handler);
    return this.#first(subscription, () => this.left, handler);
  }

  /**
   * Sends a message: delivered once and in order. Gives its number.
   *
   * @throws `FullError` when 64 messages or 32 KiB are not yet acknowledged, `TooLargeError`, `LeftError`.
   */
  send(input: In): number {
    const number = this.#seat.send(this.#write(input));
    this.#host.flush(this.#seat);
    return number;
  }

  /**
   * Sends a message and waits for its reply. It is delivered once, in order with what is sent otherwise.
   *
   * @throws `RefusedError` with the game's own refusal; `CallUndecidedError` when there is no reply in time; else as
   * {@link send}.
   */
  async call<R = Reply>(input: In): Promise<R> {
    const payload = this.#write(input);
    return this.#answered<R>(this.#seat.call(payload), ({ number }) => new CallUndecidedError(number));
  }

  /**
   * Asks a question that changes nothing and that is answered at once, outside of the order of messages.
   *
   * @throws `RefusedError`; `UnavailableError` when there is no answer in time; `FullError` when 64 wait already.
   */
  async query<R = Reply>(question: Query): Promise<R> {
    const payload = this.#write(question);
    return this.#answered<R>(this.#seat.query(payload), () => new UnavailableError());
  }

  async #answered<R>(asking: Asking, late: (asking: Asking) => CallUndecidedError | UnavailableError): Promise<R> {
    this.#host.flush(this.#seat);
    const timer = setTimeout(() => asking.giveUp(late(asking)), this.#host.requestMs);
    try {
      const payload = await asking.answer;
      return this.#isRaw ? (payload.slice() as R) : (decode(payload) as R);
    } finally {
      clearTimeout(timer);
    }
  }

  /** Gives the seat up and waits until that is done. A seat that is gone already is no error. */
  async leave(): Promise<void> {
    if (this.left === null) await this.#host.leave(this.instance);
  }
}
