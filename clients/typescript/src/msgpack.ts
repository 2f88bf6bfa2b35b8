/**
 * MessagePack as the protocol wants it: no extension types, one value and nothing after it, and never more memory than
 * the bytes that are there can fill. Written for this package because a map's key is somebody's name now and then, and
 * "__proto__" is a name; and because an integer that JavaScript's numbers don't hold has to come as a `bigint`.
 */

import { ArgumentError, DecodeError, TooLargeError } from "./errors.js";

/** How large a value may be: containers inside each other, values in all (keys count), elements of one container. */
export interface Limits {
  readonly depth: number;
  readonly nodes: number;
  readonly elements: number;
}

/** What servers take from clients. */
export const UP: Limits = { depth: 16, nodes: 4096, elements: 1024 };
/** What clients take from servers. The frame bounds it anyway. */
export const DOWN: Limits = { depth: 64, nodes: 1 << 20, elements: 1 << 18 };

/** Texts shorter than this are read and written letter by letter: that costs less than the platform's own way. */
const SHORT_MAX = 24;

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const toUtf8 = new TextEncoder();

/** The one value in `bytes`. Bytes in it (`bin`) are copies. @throws {@link DecodeError} */
export function decode(bytes: Uint8Array, limits: Limits = DOWN): unknown {
  const reader = new Reader(bytes, limits);
  const value = reader.value(0);
  const extra = bytes.length - reader.at;
  if (extra > 0) throw new DecodeError("trailing", `${extra} bytes follow the end of the message`);
  return value;
}

class Reader {
  at = 0;
  readonly #view: DataView;
  #nodes = 0;

  constructor(
    readonly bytes: Uint8Array,
    readonly limits: Limits,
  ) {
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  value(depth: number): unknown {
    if (++this.#nodes > this.limits.nodes) {
      throw new DecodeError("too_many_nodes", `the message has more than ${this.limits.nodes} values`);
    }
    const start = this.at;
    const type = this.#view.getUint8(this.#take(1, start));
    if (type < 0x80) return type;
    if (type < 0x90) return this.#map(type & 0x0f, depth);
    if (type < 0xa0) return this.#array(type & 0x0f, depth);
    if (type < 0xc0) return this.#text(type & 0x1f, start);
    if (type >= 0xe0) return type - 0x100;
    switch (type) {
      case 0xc0:
        return null;
      case 0xc2:
        return false;
      case 0xc3:
        return true;
      case 0xc4:
        return this.#bytes(this.#view.getUint8(this.#take(1, start)), start);
      case 0xc5:
        return this.#bytes(this.#view.getUint16(this.#take(2, start)), start);
      case 0xc6:
        return this.#bytes(this.#view.getUint32(this.#take(4, start)), start);
      case 0xca:
        return this.#view.getFloat32(this.#take(4, start));
      case 0xcb:
        return this.#view.getFloat64(this.#take(8, start));
      case 0xcc:
        return this.#view.getUint8(this.#take(1, start));
      case 0xcd:
        return this.#view.getUint16(this.#take(2, start));
      case 0xce:
        return this.#view.getUint32(this.#take(4, start));
      case 0xcf:
        return narrowed(this.#view.getBigUint64(this.#take(8, start)));
      case 0xd0:
        return this.#view.getInt8(this.#take(1, start));
      case 0xd1:
        return this.#view.getInt16(this.#take(2, start));
      case 0xd2:
        return this.#view.getInt32(this.#take(4, start));
      case 0xd3:
        return narrowed(this.#view.getBigInt64(this.#take(8, start)));
      case 0xd9:
        return this.#text(this.#view.getUint8(this.#take(1, start)), start);
      case 0xda:
        return this.#text(this.#view.getUint16(this.#take(2, start)), start);
      case 0xdb:
        return this.#text(this.#view.getUint32(this.#take(4, start)), start);
      case 0xdc:
        return this.#array(this.#view.getUint16(this.#take(2, start)), depth);
      case 0xdd:
        return this.#array(this.#view.getUint32(this.#take(4, start)), depth);
      case 0xde:
        return this.#map(this.#view.getUint16(this.#take(2, start)), depth);
      case 0xdf:
        return this.#map(this.#view.getUint32(this.#take(4, start)), depth);
      default:
        throw new DecodeError(
          "forbidden_type",
          `type byte 0x${type.toString(16)} at byte ${start} is not used in this protocol`,
        );
    }
  }

  /** Goes on by `count` bytes and gives where they begin. */
  #take(count: number, start: number): number {
    const from = this.at;
    const missing = count - (this.bytes.length - from);
    if (missing > 0) {
      const text = `the message ends early: ${missing} more bytes were announced at byte ${start}`;
      throw new DecodeError("truncated", text);
    }
    this.at = from + count;
    return from;
  }

  #text(length: number, start: number): string {
    const from = this.#take(length, start);
    if (length < SHORT_MAX) {
      let text = "";
      for (let at = from; at < this.at; at++) {
        const byte = this.bytes[at]!;
        if (byte > 0x7f) return this.#utf8(from);
        text += String.fromCharCode(byte);
      }
      return text;
    }
    return this.#utf8(from);
  }

  #utf8(from: number): string {
    try {
      return utf8.decode(this.bytes.subarray(from, this.at));
    } catch {
      throw new DecodeError("shape", `the text at byte ${from} is not UTF-8`);
    }
  }

  #bytes(length: number, start: number): Uint8Array {
    const from = this.#take(length, start);
    return this.bytes.slice(from, this.at);
  }

  #enter(elements: number, depth: number): void {
    if (depth >= this.limits.depth) {
      throw new DecodeError("too_deep", `containers are nested more than ${this.limits.depth} deep`);
    }
    if (elements > this.limits.elements) {
      const text = `a container has ${elements} elements, more than ${this.limits.elements}`;
      throw new DecodeError("too_many_elements", text);
    }
  }

  #array(length: number, depth: number): unknown[] {
    this.#enter(length, depth);
    const array: unknown[] = [];
    for (let n = 0; n < length; n++) array.push(this.value(depth + 1));
    return array;
  }

  #map(length: number, depth: number): Record<string, unknown> {
    this.#enter(length, depth);
    const map: Record<string, unknown> = {};
    for (let n = 0; n < length; n++) {
      const start = this.at;
      const key = keyed(this.value(depth + 1), start);
      const value = this.value(depth + 1);
      if (key === "__proto__") {
        // As an assignment it would change what the object is; so it is a key as any other.
        Object.defineProperty(map, key, { value, configurable: true, enumerable: true, writable: true });
      } else {
        map[key] = value;
      }
    }
    return map;
  }
}

/** A whole number as a number if that holds it, else as it is. */
function narrowed(value: bigint): number | bigint {
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value;
}

/** A map's key as an object has it: numbers become their digits, and a tuple of such its parts with commas. */
function keyed(key: unknown, at: number): string {
  if (typeof key === "string") return key;
  const scalar = typeof key === "number" || typeof key === "bigint" || typeof key === "boolean";
  if (scalar) return String(key);
  if (Array.isArray(key)) return key.map((part) => keyed(part, at)).join(",");
  throw new DecodeError("shape", `the map's key at byte ${at} is neither text nor a number`);
}

/**
 * `value` as bytes. What is `undefined` is left out of an object, and nil elsewhere; a `Map` is a map, as an object is;
 * whole numbers are integers, all others are floats of 64 bits.
 *
 * @throws {@link TooLargeError} when a server would refuse it, or when it has no end; {@link ArgumentError} for what has
 * no form in MessagePack: functions, symbols, whole numbers over 64 bits.
 */
export function encode(value: unknown, limits: Limits = UP): Uint8Array {
  const writer = new Writer(limits);
  writer.value(value, 0);
  return writer.taken();
}

class Writer {
  #bytes = new Uint8Array(128);
  #view = new DataView(this.#bytes.buffer);
  #at = 0;
  #nodes = 0;

  constructor(readonly limits: Limits) {}

  taken(): Uint8Array {
    return this.#bytes.slice(0, this.#at);
  }

  value(value: unknown, depth: number): void {
    if (++this.#nodes > this.limits.nodes) {
      throw new TooLargeError(`a message has more than ${this.limits.nodes} values`);
    }
    switch (typeof value) {
      case "undefined":
        return this.#byte(0xc0);
      case "boolean":
        return this.#byte(value ? 0xc3 : 0xc2);
      case "number":
        return Number.isSafeInteger(value) ? this.#integer(value) : this.#float(value);
      case "bigint":
        return this.#bigint(value);
      case "string":
        return this.#text(value);
      case "object":
        if (value === null) return this.#byte(0xc0);
        if (Array.isArray(value)) return this.#array(value, depth);
        if (value instanceof Uint8Array) return this.#binary(value);
        if (value instanceof Map) return this.#map([...value], depth);
        return this.#map(
          Object.entries(value).filter(([, field]) => field !== undefined),
          depth,
        );
      default:
        throw new ArgumentError(`a ${typeof value} can't be sent`);
    }
  }

  #room(count: number): number {
    const at = this.#at;
    this.#at += count;
    if (this.#at > this.#bytes.length) {
      const larger = new Uint8Array(Math.max(this.#at, this.#bytes.length * 2));
      larger.set(this.#bytes);
      this.#bytes = larger;
      this.#view = new DataView(larger.buffer);
    }
    return at;
  }

  #byte(byte: number): void {
    const at = this.#room(1);
    this.#view.setUint8(at, byte);
  }

  #headed(type: number, count: 1 | 2 | 4 | 8, set: (view: DataView, at: number) => void): void {
    const at = this.#room(1 + count);
    this.#view.setUint8(at, type);
    set(this.#view, at + 1);
  }

  #integer(value: number): void {
    if (value >= 0) {
      if (value < 0x80) this.#byte(value);
      else if (value < 0x100) this.#headed(0xcc, 1, (view, at) => view.setUint8(at, value));
      else if (value < 0x10000) this.#headed(0xcd, 2, (view, at) => view.setUint16(at, value));
      else if (value < 0x100000000) this.#headed(0xce, 4, (view, at) => view.setUint32(at, value));
      else this.#bigint(BigInt(value));
    } else if (value >= -0x20) this.#byte(value & 0xff);
    else if (value >= -0x80) this.#headed(0xd0, 1, (view, at) => view.setInt8(at, value));
    else if (value >= -0x8000) this.#headed(0xd1, 2, (view, at) => view.setInt16(at, value));
    else if (value >= -0x80000000) this.#headed(0xd2, 4, (view, at) => view.setInt32(at, value));
    else this.#bigint(BigInt(value));
  }

  #bigint(value: bigint): void {
    if (value >= 0n) {
      if (value > 0xffff_ffff_ffff_ffffn) throw new ArgumentError("a whole number of more than 64 bits can't be sent");
      this.#headed(0xcf, 8, (view, at) => view.setBigUint64(at, value));
    } else {
      if (value < -0x8000_0000_0000_0000n) throw new ArgumentError("a whole number of more than 64 bits can't be sent");
      this.#headed(0xd3, 8, (view, at) => view.setBigInt64(at, value));
    }
  }

  #float(value: number): void {
    this.#headed(0xcb, 8, (view, at) => view.setFloat64(at, value));
  }

  /** The type and length of what follows, in the shortest form; `fixed` is that of less than `fixedMax`. */
  #length(length: number, fixed: number, fixedMax: number, types: readonly [number, number, number]): void {
    if (length < fixedMax) this.#byte(fixed | length);
    else if (length < 0x100 && types[0]) this.#headed(types[0], 1, (view, at) => view.setUint8(at, length));
    else if (length < 0x10000) this.#headed(types[1], 2, (view, at) => view.setUint16(at, length));
    else this.#headed(types[2], 4, (view, at) => view.setUint32(at, length));
  }

  #text(text: string): void {
    // Names of fields are most of what is written, and are short: the platform's encoder costs more than they do.
    if (text.length < SHORT_MAX) {
      const at = this.#room(1 + text.length);
      for (let index = 0; ; index++) {
        if (index === text.length) {
          this.#bytes[at] = 0xa0 | text.length;
          return;
        }
        const code = text.charCodeAt(index);
        if (code > 0x7f) break;
        this.#bytes[at + 1 + index] = code;
      }
      this.#at = at;
    }
    const bytes = toUtf8.encode(text);
    this.#length(bytes.length, 0xa0, 32, [0xd9, 0xda, 0xdb]);
    const at = this.#room(bytes.length); // Before its bytes are looked at: they may move.
    this.#bytes.set(bytes, at);
  }

  #binary(bytes: Uint8Array): void {
    this.#length(bytes.length, 0, 0, [0xc4, 0xc5, 0xc6]);
    const at = this.#room(bytes.length);
    this.#bytes.set(bytes, at);
  }

  #enter(elements: number, depth: number): void {
    if (depth >= this.limits.depth) {
      throw new TooLargeError(`containers of a message are nested more than ${this.limits.depth} deep, or without end`);
    }
    if (elements > this.limits.elements) {
      throw new TooLargeError(`a container of a message has ${elements} elements, more than ${this.limits.elements}`);
    }
  }

  #array(array: readonly unknown[], depth: number): void {
    this.#enter(array.length, depth);
    this.#length(array.length, 0x90, 16, [0, 0xdc, 0xdd]);
    for (const value of array) this.value(value, depth + 1);
  }

  #map(entries: readonly (readonly [unknown, unknown])[], depth: number): void {
    this.#enter(entries.length, depth);
    this.#length(entries.length, 0x80, 16, [0, 0xde, 0xdf]);
    for (const [key, value] of entries) {
      this.value(key, depth + 1);
      this.value(value, depth + 1);
    }
  }
}
