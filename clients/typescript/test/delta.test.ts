import assert from "node:assert/strict";
import { test } from "node:test";
import { apply, checksum } from "../src/delta.js";
import { DecodeError } from "../src/errors.js";
import { bytes, dice, hex, vector } from "./vectors.js";

const MAX = 1 << 20;
const { applied, refused } = vector("delta.json");

test("every delta of the vectors makes its target, whoever made it", () => {
  assert.ok(applied.length > 0);
  for (const { name, base, delta, target } of applied) {
    assert.equal(hex(apply(bytes(base), bytes(delta), MAX)), target, name);
  }
});

test("every damaged delta of the vectors is refused for the reason that they name", () => {
  assert.ok(refused.length > 0);
  for (const { name, base, delta, target_max, refusal } of refused) {
    const fault = { name: "DecodeError", code: refusal };
    assert.throws(() => apply(bytes(base), bytes(delta), target_max), fault, name);
  }
});

const DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~";

function number(value: number): string {
  let digits = DIGITS[value % 64]!;
  for (let rest = Math.floor(value / 64); rest > 0; rest = Math.floor(rest / 64)) digits = DIGITS[rest % 64]! + digits;
  return digits;
}

/** A target that copies and inserts by chance, and the delta that makes it. */
function made(base: Buffer, random: () => number): { target: Buffer; delta: Buffer } {
  const [target, commands]: [Buffer[], Buffer[]] = [[], []];
  const below = (bound: number): number => Math.floor(random() * bound);
  for (let count = below(8); count > 0; count--) {
    if (base.length > 0 && random() < 0.6) {
      const offset = below(base.length);
      const length = below(base.length - offset + 1);
      target.push(base.subarray(offset, offset + length));
      commands.push(Buffer.from(`${number(length)}@${number(offset)},`));
    } else {
      const inserted = Buffer.from(Array.from({ length: below(90) }, () => below(256)));
      target.push(inserted);
      commands.push(Buffer.from(`${number(inserted.length)}:`), inserted);
    }
  }
  const whole = Buffer.concat(target);
  const [head, sum] = [Buffer.from(`${number(whole.length)}\n`), Buffer.from(`${number(checksum(whole))};`)];
  return { target: whole, delta: Buffer.concat([head, ...commands, sum]) };
}

test("deltas of any commands make their targets", () => {
  const random = dice(1);
  for (let round = 0; round < 3000; round++) {
    const base = Buffer.from(Array.from({ length: Math.floor(random() * 300) }, () => Math.floor(random() * 256)));
    const { target, delta } = made(base, random);
    assert.equal(hex(apply(base, delta, MAX)), target.toString("hex"));
  }
});

test("a delta that is damaged in any way gives a target with the checksum that it names, or its own error", () => {
  const random = dice(2);
  const originals: { base: string; delta: string }[] = [...applied, ...refused];
  let accepted = 0;
  for (let round = 0; round < 30_000; round++) {
    const original = originals[round % originals.length]!;
    const base = bytes(original.base);
    const before = hex(base);
    let delta = bytes(original.delta);
    for (let damages = 1 + Math.floor(random() * 3); damages > 0 && delta.length > 0; damages--) {
      const at = Math.floor(random() * delta.length);
      const kind = random();
      if (kind < 0.5) delta[at] = Math.floor(random() * 256);
      else if (kind < 0.7) delta = delta.slice(0, at);
      else if (kind < 0.85) delta = Uint8Array.from([...delta.slice(0, at), ...delta.slice(at + 1)]);
      else delta = Uint8Array.from([...delta.slice(0, at), DIGITS.charCodeAt(Math.floor(random() * 64)), ...delta.slice(at)]);
    }
    try {
      const target = apply(base, delta, 4096);
      assert.ok(target.length <= 4096);
      assert.ok(Buffer.from(delta).toString("latin1").endsWith(`${number(checksum(target))};`));
      accepted += 1;
    } catch (error) {
      assert.ok(error instanceof DecodeError, String(error));
    }
    assert.equal(hex(base), before);
  }
  assert.ok(accepted < 30_000);
});
