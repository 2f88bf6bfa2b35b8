import assert from "node:assert/strict";
import { test } from "node:test";
import * as other from "@msgpack/msgpack";
import { DecodeError } from "../src/errors.js";
import { decode, encode } from "../src/msgpack.js";
import { bytes, dice, hex, vector } from "./vectors.js";

const WIDE = { depth: 64, nodes: 1 << 20, elements: 1 << 18 };

interface Bounded {
  name: string;
  limits: { depth_max: number; nodes_max: number; elements_max: number };
  hex: string;
  error: string;
  text: string;
}

const limitsOf = ({ limits }: Bounded) => {
  return { depth: limits.depth_max, nodes: limits.nodes_max, elements: limits.elements_max };
};

test("what is within the limits is taken, and what is not is refused in the words that servers use", () => {
  const { accepted, refused } = vector("refused.json");
  for (const each of accepted as Bounded[]) assert.doesNotThrow(() => decode(bytes(each.hex), limitsOf(each)), each.name);
  for (const each of refused as Bounded[]) {
    // How many bytes are missing is counted another way where a length is cut off.
    const message = each.error === "truncated" ? /^the message ends early: \d+ more bytes were announced at byte / : each.text;
    const fault = { name: "DecodeError", code: each.error, message };
    assert.throws(() => decode(bytes(each.hex), limitsOf(each)), fault, each.name);
  }
});

/** A value by chance, of what both sides have. */
function value(random: () => number, depth: number): unknown {
  const below = (bound: number): number => Math.floor(random() * bound);
  const kind = below(depth > 4 ? 7 : 9);
  const text = (): string => String.fromCodePoint(...Array.from({ length: below(40) }, () => below(0xd7ff)));
  switch (kind) {
    case 0:
      return null;
    case 1:
      return random() < 0.5;
    case 2:
      return Math.trunc((random() - 0.5) * 2 ** (1 + below(53))) + 0; // No -0: it is written as 0.
    case 3:
      return (random() - 0.5) * 10 ** below(300);
    case 4:
      return text();
    case 5:
      return Uint8Array.from({ length: below(300) }, () => below(256));
    case 6:
      return "x".repeat(below(70_000 / (1 + depth * depth)));
    case 7:
      return Array.from({ length: below(20) }, () => value(random, depth + 1));
    default:
      return Object.fromEntries(Array.from({ length: below(20) }, () => [`k${text()}`, value(random, depth + 1)]));
  }
}

test("what is written here is read by @msgpack/msgpack, and the other way round", () => {
  const random = dice(3);
  for (let round = 0; round < 400; round++) {
    const original = value(random, 0);
    const written = encode(original, WIDE);
    assert.deepEqual(other.decode(written), original);
    assert.deepEqual(decode(other.encode(original)), original);
    assert.deepEqual(decode(written), original);
  }
});

test("a whole number that a number does not hold comes as it is, and no other does", () => {
  const cases: [string, unknown][] = [
    ["cf001fffffffffffff", Number.MAX_SAFE_INTEGER],
    ["cf0020000000000000", 2n ** 53n],
    ["cfffffffffffffffff", 2n ** 64n - 1n],
    ["cf0000000000000005", 5],
    ["d3ffe0000000000001", Number.MIN_SAFE_INTEGER],
    ["d3ffe0000000000000", -(2n ** 53n)],
    ["d38000000000000000", -(2n ** 63n)],
    ["d3ffffffffffffffff", -1],
  ];
  for (const [text, expected] of cases) assert.equal(decode(bytes(text)), expected);
  for (const [, original] of cases) assert.equal(decode(encode(original)), original);
});

test("numbers are written as the shortest integer, and as a float only where they are none", () => {
  const cases: [unknown, string][] = [
    [0, "00"],
    [127, "7f"],
    [128, "cc80"],
    [256, "cd0100"],
    [65536, "ce00010000"],
    [2 ** 32, "cf0000000100000000"],
    [-1, "ff"],
    [-33, "d0df"],
    [-129, "d1ff7f"],
    [-32769, "d2ffff7fff"],
    [-(2 ** 31) - 1, "d3ffffffff7fffffff"],
    [-0, "00"],
    [1.5, "cb3ff8000000000000"],
    [2 ** 60, "cb43b0000000000000"],
    [NaN, "cb7ff8000000000000"],
  ];
  for (const [number, expected] of cases) assert.equal(hex(encode(number)), expected, String(number));
});

test("a key that is called as a part of every object is a key as any other", () => {
  // {"__proto__": {"isAdmin": true}, "constructor": 1, "toString": 2}
  const hostile = other.encode({ constructor: 1, toString: 2 });
  hostile[0] = 0x83;
  const proto = Buffer.concat([Buffer.from("a95f5f70726f746f5f5f81a7697341646d696ec3", "hex")]);
  const read = decode(Buffer.concat([hostile, proto])) as Record<string, unknown>;
  assert.deepEqual(Object.keys(read).sort(), ["__proto__", "constructor", "toString"]);
  assert.equal((read as { isAdmin?: unknown }).isAdmin, undefined);
  assert.equal(({} as { isAdmin?: unknown }).isAdmin, undefined);
  assert.equal(Object.getPrototypeOf(read), Object.prototype);
  assert.equal(hex(encode(read)), hex(Buffer.concat([hostile, proto])));
});

test("keys that are numbers or tuples become texts, and other keys are refused", () => {
  assert.deepEqual(decode(bytes("820001ccff02")), { 0: 1, 255: 2 });
  assert.deepEqual(decode(bytes("8192010203")), { "1,2": 3 });
  assert.throws(() => decode(bytes("81c401ff00")), DecodeError);
  assert.throws(() => decode(bytes("81c000")), DecodeError);
});

test("what has no form in MessagePack, or no end, is refused before it is sent", () => {
  const ring: unknown[] = [];
  ring.push(ring);
  assert.throws(() => encode(ring), { name: "TooLargeError", code: "too_large" });
  assert.throws(() => encode(Array.from({ length: 1025 }, () => 0)), { code: "too_large" });
  assert.throws(() => encode(Array.from({ length: 5 }, () => Array.from({ length: 1000 }, () => 0))), { code: "too_large" });
  assert.throws(() => encode(() => 1), { name: "ArgumentError" });
  assert.throws(() => encode(Symbol("a")), { name: "ArgumentError" });
  assert.throws(() => encode(2n ** 64n), { name: "ArgumentError" });
  assert.deepEqual(decode(encode({ a: undefined, b: [undefined], c: new Map([[1, "x"]]) })), { b: [null], c: { 1: "x" } });
});

test("whatever bytes come, there is a value or the reader's own error, and never more memory than the bytes fill", () => {
  const random = dice(4);
  for (let round = 0; round < 50_000; round++) {
    const noise = Uint8Array.from({ length: Math.floor(random() * 60) }, () => {
      // Types with lengths come often.
      return random() < 0.3 ? 0xc0 + Math.floor(random() * 32) : Math.floor(random() * 256);
    });
    try {
      decode(noise);
    } catch (error) {
      assert.ok(error instanceof DecodeError, String(error));
    }
  }
  const nested = new Uint8Array(1_000_000).fill(0x91);
  assert.throws(() => decode(nested), { code: "too_deep" });
});
