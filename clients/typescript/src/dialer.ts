/** The way in: picks a session server, opens a conversation and checks in. */

import { type Attempt, DecodeError, GreenroomError, Misbehaved, NoServerError, type Refusal, RefusedError } from "./errors.js";
import type { ServerBook } from "./servers.js";
import type { Socket, SocketConstructor } from "./socket.js";
import {
  type CheckedIn,
  checkedInOf,
  DOWN_BYTES_MAX,
  HELLO_BYTES_MAX,
  kinds,
  plainFrame,
  PROTOCOL,
  refusalOf,
  serverHelloOf,
} from "./wire.js";

/** Pause in ms between two rounds over all addresses; doubles up to the second figure. */
const PAUSE = 100;
const PAUSE_MAX = 5000;
/** A connection that lived for less, in ms, counts as a failed attempt: the next one waits. */
const LIVED = 5000;
/** How long in ms a server may take to look at credentials. */
const CHECK_IN_WITHIN = 10_000;
/** Bounds in ms of what a server may ask for as the span between heartbeats. */
const HEARTBEAT_MIN = 100;
const HEARTBEAT_MAX = 60_000;
const AGENT = "greenroom-typescript/0.1.0";

/** Refusals that would be the same at every server and at every time. */
const FINAL = new Set([
  "malformed",
  "too_large",
  "unexpected_kind",
  "scheme_unknown",
  "credentials_invalid",
  "token_expired",
  "token_early",
  "token_signature",
  "token_algorithm",
  "token_audience",
  "origin_denied",
  "superseded",
  "session_expired",
  "forbidden",
  "user_unknown",
  "kicked",
]);

export const isFinal = ({ code }: Refusal): boolean => FINAL.has(code);

/** Who checks in. */
export type Auth =
  /** A guest. Its secret is made here and kept for the tab, unless it is given: 16 characters or more. */
  | { readonly scheme: "guest"; readonly name?: string; readonly token?: string }
  /** With a token that its server knows how to check; a function is asked for a fresh one before each check-in. */
  | { readonly scheme: string; readonly token: string | (() => string | Promise<string>); readonly name?: string };

/** Frames from one socket, and the end of it. What comes before somebody takes it waits. */
export class Wire {
  #frame: ((frame: Uint8Array) => void) | null = null;
  #end: ((error: GreenroomError) => void) | null = null;
  #waiting: Uint8Array[] = [];
  #ended: GreenroomError | null = null;
  readonly closed: Promise<void>;

  constructor(readonly socket: Socket) {
    this.closed = new Promise((resolve) => {
      socket.onclose = ({ code, reason }) => {
        const why = reason ? `: ${reason}` : code === undefined ? "" : ` (${code})`;
        this.#over(new GreenroomError("connection_lost", `the connection is closed${why}`));
        resolve();
      };
    });
    socket.onerror = ({ message }) => {
      const why = typeof message === "string" && message !== "" ? `: ${message}` : "";
      this.#over(new GreenroomError("connection_lost", `the connection failed${why}`));
    };
    socket.onmessage = ({ data }) => {
      if (this.#ended !== null) return;
      if (!(data instanceof ArrayBuffer)) return this.#over(new Misbehaved("a message that is text"));
      if (data.byteLength > DOWN_BYTES_MAX) return this.#over(new Misbehaved(`a frame of ${data.byteLength} bytes`));
      const frame = new Uint8Array(data);
      if (this.#frame !== null) this.#frame(frame);
      else this.#waiting.push(frame);
    };
  }

  #over(error: GreenroomError): void {
    if (this.#ended !== null) return;
    this.#ended = error;
    this.#end?.(error);
  }

  /** From here on frames go to `frame`, and the end to `end`. */
  take(frame: (frame: Uint8Array) => void, end: (error: GreenroomError) => void): void {
    this.#frame = frame;
    this.#end = end;
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const each of waiting) frame(each);
    if (this.#ended !== null) end(this.#ended);
  }

  /** What comes from here on waits for who takes it next. */
  hold(): void {
    this.#frame = null;
    this.#end = null;
  }

  send(frame: Uint8Array): void {
    // A socket that is closing throws what it is given away; its end is told by itself.
    if (this.#ended === null) this.socket.send(frame);
  }

  /** Nothing of it is of interest any more. */
  close(): void {
    this.#ended ??= new GreenroomError("connection_lost", "the connection is closed");
    this.hold();
    this.#waiting = [];
    try {
      this.socket.close();
    } catch {
      // Some sockets don't like to be closed before they are open; they end by themselves.
    }
  }
}

/** A connection on which the client is checked in. */
export interface Connection {
  readonly wire: Wire;
  readonly address: string;
  readonly heartbeat: number;
  readonly checkedIn: CheckedIn;
  readonly since: number;
}

/** What checking in is done with. */
export interface Credentials {
  readonly sessionKey: Uint8Array;
  readonly scheme: string;
  readonly name: string;
  readonly token: () => string | Promise<string>;
}

/** All that is needed to get in, and in again. */
export class Dialer {
  /** The address that was lost last. */
  #lost: string | null = null;
  /** The pause before the next round, if the last connection broke at once. */
  #pause: number | null = null;
  #stop: (() => void) | null = null;
  #isStopped = false;

  constructor(
    readonly book: ServerBook,
    public credentials: Credentials,
    readonly Socket: SocketConstructor,
    readonly attemptMs: number,
    readonly now: () => number,
  ) {}

  /** A connection has ended. */
  ended({ address, since }: Connection): void {
    this.#lost = address;
    // What breaks at once would break at once again and again.
    if (this.now() - since >= LIVED) this.#pause = null;
    else this.#pause ??= PAUSE;
  }

  /** Nobody wants to get in any more. */
  stop(): void {
    this.#isStopped = true;
    this.#stop?.();
  }

  /**
   * Tries every address, then pauses, then tries again, until one lets the client in, or `giveUp`.
   *
   * @throws {@link RefusedError} where the answer would be the same everywhere, {@link NoServerError} with the last reason
   * of each address otherwise.
   */
  async checkIn(giveUp: number): Promise<Connection> {
    const reasons = new Map<string, string>();
    let pause = this.#pause;
    for (;;) {
      if (pause !== null) await this.#wait(Math.min(pause * (0.5 + Math.random() / 2), giveUp - this.now()));
      pause = pause === null ? PAUSE : Math.min(pause * 2, PAUSE_MAX);
      if (this.#pause !== null) this.#pause = pause;
      let mismatch: RefusedError | null = null;
      let areAllOld = true;
      for (const address of this.book.round(this.#lost)) {
        if (this.#isStopped) throw new NoServerError([]);
        try {
          return await this.#attempt(address, giveUp);
        } catch (error) {
          if (!(error instanceof GreenroomError)) throw error;
          if (error instanceof RefusedError && isFinal(error.refusal)) throw error;
          if (error.code === "version_mismatch" && error instanceof RefusedError) mismatch = error;
          else areAllOld = false;
          // Our own end cut this attempt short: what an earlier one came to says more.
          const isCut = this.now() >= giveUp && reasons.has(address);
          if (!isCut) reasons.set(address, error.message);
        }
        if (this.now() >= giveUp) break;
      }
      // No server speaks our version: that will not change while we wait.
      if (areAllOld && mismatch !== null) throw mismatch;
      if (this.#isStopped || this.now() >= giveUp) {
        throw new NoServerError([...reasons].map(([address, reason]): Attempt => ({ address, reason })));
      }
    }
  }

  async #wait(ms: number): Promise<void> {
    if (this.#isStopped) return;
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, Math.max(0, ms));
      this.#stop = () => {
        clearTimeout(timer);
        resolve();
      };
    });
    this.#stop = null;
  }

  /** The token to check in with. One that can't be had now may be had at the next attempt. */
  async #token(): Promise<string> {
    try {
      return await this.credentials.token();
    } catch (error) {
      throw new GreenroomError("token_failed", `there is no token to check in with: ${String(error)}`);
    }
  }

  async #attempt(address: string, giveUp: number): Promise<Connection> {
    const token = await this.#token();
    const { sessionKey, scheme, name } = this.credentials;
    const hello = { protocol_min: PROTOCOL, protocol_max: PROTOCOL, features: [], agent: AGENT };
    const checkIn = plainFrame(kinds.checkIn, { session_key: sessionKey, credentials: { scheme, token, name } });
    if (checkIn.length > HELLO_BYTES_MAX) {
      const text = `the credentials make a check-in of ${checkIn.length} bytes; at most ${HELLO_BYTES_MAX} are allowed`;
      throw new RefusedError({ code: "credentials_invalid", message: text });
    }
    let wire: Wire;
    try {
      wire = new Wire(new this.Socket(address, "greenroom.v1"));
    } catch (error) {
      throw new GreenroomError("connection_lost", `it can't be opened: ${String(error)}`);
    }
    let timer: ReturnType<typeof setTimeout> | undefined;
    try {
      return await new Promise<Connection>((resolve, reject) => {
        const within = (ms: number, what: string): void => {
          clearTimeout(timer);
          const fail = (): void => reject(new GreenroomError("no_answer", `${what} in time`));
          timer = setTimeout(fail, Math.max(0, Math.min(ms, giveUp - this.now())));
        };
        this.#stop = () => reject(new GreenroomError("no_answer", "the client is closed"));
        within(this.attemptMs, "no connection");
        wire.socket.binaryType = "arraybuffer";
        wire.socket.onopen = () => {
          within(CHECK_IN_WITHIN, "no answer");
          // One version is spoken here, so that nothing depends on the server's hello.
          wire.send(plainFrame(kinds.hello, hello));
          wire.send(checkIn);
        };
        let heartbeat: number | null = null;
        const take = (frame: Uint8Array): void => {
          const kind = frame[0];
          const payload = frame.subarray(1);
          if (kind === kinds.closing) throw new RefusedError(refusalOf(payload));
          if (kind === kinds.serverPing) {
            const pong = frame.slice(0, 9);
            pong[0] = kinds.pong;
            return wire.send(pong);
          }
          if (heartbeat === null && kind === kinds.serverHello) {
            const { protocol, heartbeatMs } = serverHelloOf(payload);
            if (protocol !== PROTOCOL) throw new Misbehaved(`it speaks protocol ${protocol}, which was not offered`);
            heartbeat = Math.min(Math.max(heartbeatMs, HEARTBEAT_MIN), HEARTBEAT_MAX);
          } else if (heartbeat !== null && kind === kinds.checkedIn) {
            const checkedIn = checkedInOf(payload);
            wire.hold();
            resolve({ wire, address, heartbeat, checkedIn, since: this.now() });
          } else {
            throw new Misbehaved(`kind ${kind} is not what comes first in a conversation`);
          }
        };
        wire.take((frame) => {
          try {
            take(frame);
          } catch (error) {
            wire.hold(); // What follows the end is not read.
            reject(error instanceof DecodeError ? new Misbehaved(error.message) : error);
          }
        }, reject);
      });
    } catch (error) {
      wire.close();
      throw error;
    } finally {
      clearTimeout(timer);
      this.#stop = null;
    }
  }
}
