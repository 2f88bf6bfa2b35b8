/** What can go wrong. Every error of this package is a {@link GreenroomError}: look at its `code`, show its `message`. */

/** A normal "no" of a server or of a game: it travels as data, and nothing is broken. */
export interface Refusal {
  /** The stable name, as `instance_full`. Codes of newer servers come as they are. */
  readonly code: string;
  /** For people: what is wrong and what to do. Text of others, to be shown as text and never as HTML. */
  readonly message: string;
}

/** The base of all errors here. */
export class GreenroomError extends Error {
  /** The class's name, also where a bundler has shortened it. */
  override readonly name: string = "GreenroomError";
  /** The stable name of what is wrong. */
  readonly code: string;
  constructor(code: string, message: string) {
    super(message);
    this.code = code;
  }
}

/** A server or a game said no; `code` is the refusal's. */
export class RefusedError extends GreenroomError {
  override readonly name = "RefusedError";
  constructor(readonly refusal: Refusal) {
    super(refusal.code, `refused: ${refusal.message} (${refusal.code})`);
  }
}

/** One address that was tried, and what came of it. */
export interface Attempt {
  readonly address: string;
  readonly reason: string;
}

/** No session server could be reached, or none let the client in. */
export class NoServerError extends GreenroomError {
  override readonly name = "NoServerError";
  constructor(readonly attempts: readonly Attempt[]) {
    const each = attempts.map(({ address, reason }) => `${address}: ${reason}`).join("; ");
    super("no_server", `no session server let this client in: ${each || "none was tried before the deadline"}`);
  }
}

/** What was given to a function here can't be used; nothing was sent. */
export class ArgumentError extends GreenroomError {
  override readonly name = "ArgumentError";
  constructor(message: string) {
    super("argument_invalid", message);
  }
}

/** Nothing was started, since no session server could take it before its deadline. It can be made again. */
export class UnavailableError extends GreenroomError {
  override readonly name = "UnavailableError";
  constructor() {
    super("unavailable", "no session server took the request before its deadline; nothing was started");
  }
}

/** It may have happened: it was sent and has no answer yet. `Client.askAgain(request)` waits for the same answer. */
export class UndecidedError extends GreenroomError {
  override readonly name = "UndecidedError";
  constructor(readonly request: number) {
    super("undecided", `request ${request} was sent and not answered before its deadline; ask again for its answer`);
  }
}

/** The call may have happened: it is delivered once, but its reply will not be seen. */
export class CallUndecidedError extends GreenroomError {
  override readonly name = "CallUndecidedError";
  constructor(readonly call: number) {
    super("undecided", `call ${call} has no reply; it is delivered once at most, and its reply will not be seen`);
  }
}

/** As much as may be under way is under way; nothing was queued. */
export class FullError extends GreenroomError {
  override readonly name = "FullError";
  constructor(messages: number, bytes: number) {
    super("full", `${messages} messages with ${bytes} bytes wait to be acknowledged; try again later`);
  }
}

/** What should be sent is too long, too deep or has too many values; nothing was queued. */
export class TooLargeError extends GreenroomError {
  override readonly name = "TooLargeError";
  constructor(message: string) {
    super("too_large", message);
  }
}

/** The seat is gone; `code` says why. */
export class LeftError extends GreenroomError {
  override readonly name = "LeftError";
  constructor(readonly refusal: Refusal) {
    super(refusal.code, `the seat is gone: ${refusal.message} (${refusal.code})`);
  }
}

/** The client is closed for good; `code` says why. */
export class ClosedError extends GreenroomError {
  override readonly name = "ClosedError";
  constructor(readonly refusal: Refusal) {
    super(refusal.code, `the client is closed: ${refusal.message} (${refusal.code})`);
  }
}

/** Bytes are not what they should be. `code` names the fault. */
export class DecodeError extends GreenroomError {
  override readonly name = "DecodeError";
}

/** The server said something that is no part of the protocol: its connection is of no use any more. */
export class Misbehaved extends GreenroomError {
  override readonly name = "Misbehaved";
  constructor(what: string) {
    super("malformed", `the server broke the protocol: ${what}`);
  }
}
