/** Frames: their kinds, headers and fields. PROTOCOL.md, sections 2, 5, 6 and 7. What comes is checked here, once. */

import { DecodeError, type Refusal } from "./errors.js";
import { decode, encode } from "./msgpack.js";

/** The version of the protocol that is spoken here. */
export const PROTOCOL = 1;
/** Longest frame up while checking in, and after; longest frame down, and longest view, in bytes. */
export const HELLO_BYTES_MAX = 4 * 1024;
export const UP_BYTES_MAX = 64 * 1024;
export const VIEW_BYTES_MAX = 1024 * 1024;
export const DOWN_BYTES_MAX = VIEW_BYTES_MAX + 4 * 1024;

/** Kinds of frames, by PROTOCOL.md's names. */
export const kinds = {
  hello: 0x01,
  checkIn: 0x02,
  ping: 0x03,
  pong: 0x04,
  seen: 0x05,
  create: 0x10,
  join: 0x11,
  joinOrCreate: 0x12,
  leave: 0x13,
  destroy: 0x14,
  search: 0x15,
  watch: 0x16,
  unwatch: 0x17,
  rank: 0x18,
  message: 0x20,
  call: 0x21,
  query: 0x22,
  ack: 0x23,
  needSnapshot: 0x24,
  serverHello: 0x81,
  checkedIn: 0x82,
  serverPing: 0x83,
  serverPong: 0x84,
  closing: 0x85,
  goAway: 0x86,
  sessionServers: 0x87,
  rejoined: 0x88,
  created: 0x90,
  joined: 0x91,
  left: 0x93,
  destroyed: 0x94,
  found: 0x95,
  watching: 0x96,
  unwatched: 0x97,
  ranking: 0x98,
  changes: 0x99,
  refused: 0x9f,
  event: 0xa0,
  reply: 0xa1,
  replyRefused: 0xa2,
  queryReply: 0xa3,
  queryRefused: 0xa4,
  downAck: 0xa5,
  seatEnded: 0xa6,
  sendAgain: 0xa7,
  patch: 0xb0,
  piece: 0xb1,
} as const;

/** The view that everybody in an instance sees, and the one that only a seat sees. */
export const SHARED_VIEW = 0;
export const viewOfSeat = (seat: number): number => 0x8000 | seat;

/** A session server, by the word of another. */
export interface SessionServer {
  readonly name: string;
  readonly urls: readonly string[];
}

/** Kind `0x82`. */
export interface CheckedIn {
  readonly user: string;
  readonly name: string;
  readonly session: string;
  readonly sessionServers: readonly SessionServer[];
}

/** Kind `0x91`. */
export interface Joined {
  readonly instance: string;
  readonly kind: string;
  readonly incarnation: string;
  readonly channel: number;
  readonly seat: number;
  readonly upReceived: number;
  readonly downNext: number;
  readonly tickRate: number;
}

/** An instance, as a search finds it. */
export interface Listed {
  /** Its id. */
  readonly instance: string;
  /** Seats that are taken or reserved. */
  readonly seatsTaken: number;
  /** Seats in all. */
  readonly seatsMax: number;
  /** When it was granted, in milliseconds since 1970 by the cluster's clock. */
  readonly createdMs: number;
  /** What its game says of it. */
  readonly meta: Readonly<Record<string, boolean | number | string>>;
}

/** A page of what was found. */
export interface Found {
  readonly instances: readonly Listed[];
  /** Where the same search goes on, if more may follow. */
  readonly cursor: Uint8Array | null;
  /** How it was answered, if that was asked for. */
  readonly explain: unknown;
}

/** Somebody on a rank board. */
export interface Ranked {
  /** From 1, which is the best. */
  readonly rank: number;
  readonly user: string;
  readonly name: string;
  readonly score: number;
}

/** A part of a rank board. */
export interface Ranking {
  /** How many are on the board. */
  readonly members: number;
  readonly ranks: readonly Ranked[];
}

/** Kind `0x99`. */
export interface Changes {
  readonly n: number;
  readonly anew: boolean;
  readonly more: boolean;
  readonly instances: readonly Listed[];
  readonly gone: readonly string[];
  readonly ended: Refusal | null;
}

/** Header of a frame from an instance. */
export interface Down {
  readonly kind: number;
  readonly channel: number;
  readonly number: number;
  readonly ack: number;
  readonly tick: number;
  readonly payload: Uint8Array;
}

/** Kind `0xb0`. */
export interface Patch {
  readonly channel: number;
  readonly view: number;
  readonly tick: number;
  readonly base: number;
  readonly version: number;
  readonly delta: Uint8Array;
}

/** Kind `0xb1`. */
export interface Piece {
  readonly channel: number;
  readonly view: number;
  readonly tick: number;
  readonly offset: number;
  readonly version: number;
  readonly total: number;
  readonly bytes: Uint8Array;
}

/** A kind byte, numbers of 32 bits, and a payload. */
function framed(kind: number, numbers: readonly number[], payload: Uint8Array): Uint8Array {
  const frame = new Uint8Array(1 + 4 * numbers.length + payload.length);
  const view = new DataView(frame.buffer);
  view.setUint8(0, kind);
  numbers.forEach((number, index) => view.setUint32(1 + 4 * index, number, true));
  frame.set(payload, 1 + 4 * numbers.length);
  return frame;
}

export const NOTHING = new Uint8Array(0);

/** A frame without a header but its kind. */
export const plainFrame = (kind: number, fields: object): Uint8Array => framed(kind, [], encode(fields));
/** A heartbeat: its stamp comes back as it is. */
export const pingFrame = (stamp: number): Uint8Array => framed(kinds.ping, [stamp, 0], NOTHING);
/** Length of a request's header. */
export const REQUEST_HEADER_BYTES = 9;
/** A request to the directory. */
export const requestFrame = (kind: number, id: number, answered: number, payload: Uint8Array): Uint8Array =>
  framed(kind, [id, answered], payload);
/** A frame to an instance. */
export const upFrame = (kind: number, channel: number, number: number, ack: number, payload: Uint8Array): Uint8Array =>
  framed(kind, [channel, number, ack], payload);

function header(frame: Uint8Array, length: number): DataView {
  if (frame.length < length) {
    const kind = (frame[0] ?? 0).toString(16).padStart(2, "0");
    const text = `a frame of kind 0x${kind} has a header of ${length} bytes; this one has ${frame.length} bytes in all`;
    throw new DecodeError("short_header", text);
  }
  return new DataView(frame.buffer, frame.byteOffset, frame.byteLength);
}

export function replyOf(frame: Uint8Array): { id: number; payload: Uint8Array } {
  return { id: header(frame, 5).getUint32(1, true), payload: frame.subarray(5) };
}

/** The 8 bytes of a ping or pong: the first four as a number. */
export function stampOf(frame: Uint8Array): number {
  const stamp = header(frame, 9).getUint32(1, true);
  if (frame.length > 9) throw new DecodeError("trailing", `${frame.length - 9} bytes follow the end of a heartbeat`);
  return stamp;
}

export const channelOf = (frame: Uint8Array): number => header(frame, 5).getUint32(1, true);

export function downOf(frame: Uint8Array): Down {
  const view = header(frame, 17);
  const [channel, number] = [view.getUint32(1, true), view.getUint32(5, true)];
  const [ack, tick] = [view.getUint32(9, true), view.getUint32(13, true)];
  return { kind: frame[0]!, channel, number, ack, tick, payload: frame.subarray(17) };
}

export function patchOf(frame: Uint8Array): Patch {
  const at = header(frame, 19);
  const [channel, view, tick] = [at.getUint32(1, true), at.getUint16(5, true), at.getUint32(7, true)];
  const [base, version] = [at.getUint32(11, true), at.getUint32(15, true)];
  return { channel, view, tick, base, version, delta: frame.subarray(19) };
}

export function pieceOf(frame: Uint8Array): Piece {
  const at = header(frame, 23);
  const [channel, view, tick] = [at.getUint32(1, true), at.getUint16(5, true), at.getUint32(7, true)];
  const [offset, version, total] = [at.getUint32(11, true), at.getUint32(15, true), at.getUint32(19, true)];
  return { channel, view, tick, offset, version, total, bytes: frame.subarray(23) };
}

/** The fields of a map, each read as what it has to be. @throws {@link DecodeError} */
export class Fields {
  readonly #map: Record<string, unknown>;

  constructor(
    value: unknown,
    readonly what: string,
  ) {
    if (typeof value !== "object" || value === null || Array.isArray(value) || value instanceof Uint8Array) {
      throw new DecodeError("shape", `${what} is no map`);
    }
    this.#map = value as Record<string, unknown>;
  }

  static of(payload: Uint8Array, what: string): Fields {
    return new Fields(decode(payload), what);
  }

  #fault(name: string, wanted: string): never {
    throw new DecodeError("shape", `\`${name}\` of ${this.what} is not ${wanted}`);
  }

  /** The field, or `undefined` where it is nil or missing. */
  any(name: string): unknown {
    return Object.hasOwn(this.#map, name) ? (this.#map[name] ?? undefined) : undefined;
  }

  text(name: string): string {
    const value = this.any(name);
    return typeof value === "string" ? value : this.#fault(name, "a text");
  }

  /** A whole number from 0 to `max`. */
  number(name: string, max = 0xffff_ffff, min = 0): number {
    const value = this.any(name);
    const fits = typeof value === "number" && Number.isInteger(value) && value >= min && value <= max;
    return fits ? value : this.#fault(name, `a whole number from ${min} to ${max}`);
  }

  boolean(name: string): boolean {
    const value = this.any(name) ?? false;
    return typeof value === "boolean" ? value : this.#fault(name, "true or false");
  }

  bytes(name: string): Uint8Array | null {
    const value = this.any(name) ?? null;
    return value === null || value instanceof Uint8Array ? value : this.#fault(name, "bytes");
  }

  /** A list that may be missing. */
  list<T>(name: string, read: (item: unknown) => T): T[] {
    const value = this.any(name) ?? [];
    return Array.isArray(value) ? value.map(read) : this.#fault(name, "a list");
  }
}

function textItem(item: unknown): string {
  if (typeof item !== "string") throw new DecodeError("shape", "a list of texts holds something else");
  return item;
}

function sessionServer(item: unknown): SessionServer {
  const fields = new Fields(item, "a session server");
  return { name: fields.text("name"), urls: fields.list("urls", textItem) };
}

export function sessionServersOf(payload: Uint8Array): SessionServer[] {
  return Fields.of(payload, "a list of servers").list("session_servers", sessionServer);
}

export function refusalOf(payload: Uint8Array): Refusal {
  return refusal(decode(payload));
}

function refusal(value: unknown): Refusal {
  const fields = new Fields(value, "a refusal");
  return { code: fields.text("code"), message: fields.text("message") };
}

export function serverHelloOf(payload: Uint8Array): { protocol: number; heartbeatMs: number } {
  const fields = Fields.of(payload, "a hello");
  return { protocol: fields.number("protocol", 0xffff), heartbeatMs: fields.number("heartbeat_ms") };
}

export function checkedInOf(payload: Uint8Array): CheckedIn {
  const fields = Fields.of(payload, "a check-in's answer");
  return {
    user: fields.text("user"),
    name: fields.text("name"),
    session: fields.text("session"),
    sessionServers: fields.list("session_servers", sessionServer),
  };
}

export function goAwayOf(payload: Uint8Array): { message: string; sessionServers: SessionServer[] } {
  const fields = Fields.of(payload, "a farewell");
  return { message: fields.text("message"), sessionServers: fields.list("session_servers", sessionServer) };
}

/** The id in the answers that are about one instance. */
export const instanceOf = (payload: Uint8Array): string => Fields.of(payload, "an answer").text("instance");

export function joinedOf(payload: Uint8Array): Joined {
  const fields = Fields.of(payload, "a seat");
  return {
    instance: fields.text("instance"),
    kind: fields.text("kind"),
    incarnation: fields.text("incarnation"),
    channel: fields.number("channel"),
    seat: fields.number("seat", 0xffff),
    upReceived: fields.number("up_received"),
    downNext: fields.number("down_next"),
    tickRate: fields.number("tick_rate", 0xffff),
  };
}

function listed(item: unknown): Listed {
  const fields = new Fields(item, "an instance that was found");
  const meta = fields.any("meta") ?? {};
  new Fields(meta, "what an instance says of itself");
  for (const value of Object.values(meta)) {
    if (!["boolean", "number", "string"].includes(typeof value)) {
      throw new DecodeError("shape", "what an instance says of itself is more than texts and numbers");
    }
  }
  return {
    instance: fields.text("instance"),
    seatsTaken: fields.number("seats_taken", 0xffff),
    seatsMax: fields.number("seats_max", 0xffff),
    createdMs: fields.number("created_ms", Number.MAX_SAFE_INTEGER),
    meta: meta as Listed["meta"],
  };
}

export function foundOf(payload: Uint8Array): Found {
  const fields = Fields.of(payload, "a search's answer");
  return {
    instances: fields.list("instances", listed),
    cursor: fields.bytes("cursor"),
    explain: fields.any("explain") ?? null,
  };
}

function ranked(item: unknown): Ranked {
  const fields = new Fields(item, "a rank");
  return {
    rank: fields.number("rank", Number.MAX_SAFE_INTEGER),
    user: fields.text("user"),
    name: fields.text("name"),
    score: fields.number("score", Number.MAX_SAFE_INTEGER, Number.MIN_SAFE_INTEGER),
  };
}

export function rankingOf(payload: Uint8Array): Ranking {
  const fields = Fields.of(payload, "a ranking");
  return { members: fields.number("members", Number.MAX_SAFE_INTEGER), ranks: fields.list("ranks", ranked) };
}

export function changesOf(payload: Uint8Array): Changes {
  const fields = Fields.of(payload, "what a live search tells");
  const ended = fields.any("ended");
  return {
    n: fields.number("n", Number.MAX_SAFE_INTEGER),
    anew: fields.boolean("anew"),
    more: fields.boolean("more"),
    instances: fields.list("instances", listed),
    gone: fields.list("gone", textItem),
    ended: ended === undefined ? null : refusal(ended),
  };
}
